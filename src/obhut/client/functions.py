"""``send``, ``get``, ``move`` and ``copy`` as functions, for tensors and modules.

PySyft 0.2 made them methods of every torch tensor. Functions need no
patch, and a type checker knows what they return.
"""

from __future__ import annotations

from typing import Literal, TypeVar, overload

import torch
from torch import nn

from obhut.errors import CallError, LocationError

from .modules import copy_module, get_module, move_module, send_module
from .registry import WORKERS, Place
from .remote_tensor import RemoteTensor
from .remote_tensor import send as send_tensor
from .transfer import Future

Module = TypeVar("Module", bound=nn.Module)


@overload
def send(x: Module, worker: Place | str) -> Module: ...


@overload
def send(
    x: torch.Tensor,
    worker: Place | str,
    *,
    tags: tuple[str, ...] = (),
    description: str = "",
) -> RemoteTensor: ...


def send(
    x: torch.Tensor | nn.Module,
    worker: Place | str,
    *,
    tags: tuple[str, ...] = (),
    description: str = "",
) -> torch.Tensor | nn.Module:
    """Send a copy of a tensor, or a module in place.

    Args:
        x: the tensor, which stays as it is, or the module.
        worker: where to, itself or by id.
        tags: by which ``worker.search`` finds the tensor.
        description: what it says of it.

    Returns:
        The remote tensor, or the module itself.

    Raises:
        NotSendableError: if it can not travel.
        WorkerNotFoundError: if no worker is known by that id.
    """
    if isinstance(x, nn.Module):
        return send_module(x, worker)
    if isinstance(x, RemoteTensor):
        x.send(worker)
    return send_tensor(x, WORKERS.find(worker).session, tags, description)


@overload
def get(x: Module) -> Module: ...


@overload
def get(x: torch.Tensor, wait: Literal[True] = True) -> torch.Tensor: ...


@overload
def get(x: torch.Tensor, wait: Literal[False]) -> Future[torch.Tensor]: ...


def get(
    x: torch.Tensor | nn.Module, wait: bool = True
) -> torch.Tensor | nn.Module | Future[torch.Tensor]:
    """Bring a remote tensor here, or a module in place.

    Leak: their values come to this process.

    Args:
        x: the tensor, or the module.
        wait: with False, return a future of a tensor at once.

    Returns:
        A local tensor or its future, or the module itself.

    Raises:
        LocationError: if it is here already.
        CallError: if a module is not to be waited for.
    """
    if isinstance(x, nn.Module):
        if not wait:
            raise CallError(
                "get(wait=False) is for tensors; a module is fetched in place, which "
                "waits for all of it: obhut.get(model)"
            )
        return get_module(x)
    remote = sent(x, "get")
    return remote.get() if wait else remote.get(wait=False)


@overload
def move(x: Module, worker: Place | str) -> Module: ...


@overload
def move(
    x: torch.Tensor, worker: Place | str, requires_grad: bool = False
) -> RemoteTensor: ...


def move(
    x: torch.Tensor | nn.Module, worker: Place | str, requires_grad: bool = False
) -> torch.Tensor | nn.Module:
    """Move a remote tensor or a sent module straight to another worker, in place.

    The values do not pass through this process.

    Args:
        x: the tensor, or the module.
        worker: where to, itself or by id.
        requires_grad: of a tensor, let its gradients go back to where it was; see
            ``RemoteTensor.move``. A module's parameters have no history.

    Returns:
        The tensor or the module itself.

    Raises:
        LocationError: if it is here; send it instead.
    """
    if isinstance(x, nn.Module):
        return move_module(x, worker)
    return sent(x, "move").move(worker, requires_grad)


@overload
def copy(x: Module) -> Module: ...


@overload
def copy(x: torch.Tensor) -> torch.Tensor: ...


def copy(x: torch.Tensor | nn.Module) -> torch.Tensor | nn.Module:
    """Return a copy at the same place, apart from any history.

    A copy of a module shares nothing with it, as ``copy.deepcopy`` would make it.
    What the module keeps of earlier passes is copied without their history too.
    """
    if isinstance(x, nn.Module):
        return copy_module(x)
    if isinstance(x, RemoteTensor):
        return x.copy()
    return x.detach().clone().requires_grad_(x.requires_grad)


def sent(x: torch.Tensor, op: str) -> RemoteTensor:
    """Return a tensor that has to be remote.

    Raises:
        LocationError: if it is not.
    """
    if not isinstance(x, RemoteTensor):
        raise LocationError(op, ["this process"], "it was not sent")
    return x
