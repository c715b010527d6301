"""``send``, ``get``, ``move`` and ``copy`` as functions, for tensors and modules.

PySyft 0.2 made them methods of every torch tensor. Functions need no
patch, and a type checker knows what they return.
"""

from __future__ import annotations

from typing import TypeVar, overload

import torch
from torch import nn

from obhut.errors import LocationError

from .modules import copy_module, get_module, move_module, send_module
from .registry import WORKERS, Place
from .remote_tensor import RemoteTensor
from .remote_tensor import send as send_tensor

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
def get(x: torch.Tensor) -> torch.Tensor: ...


def get(x: torch.Tensor | nn.Module) -> torch.Tensor | nn.Module:
    """Bring a remote tensor here, or a module in place.

    Leak: their values come to this process.

    Returns:
        A local tensor, or the module itself.

    Raises:
        LocationError: if it is here already.
    """
    if isinstance(x, nn.Module):
        return get_module(x)
    return _remote(x, "get").get()


@overload
def move(x: Module, worker: Place | str) -> Module: ...


@overload
def move(x: torch.Tensor, worker: Place | str) -> RemoteTensor: ...


def move(x: torch.Tensor | nn.Module, worker: Place | str) -> torch.Tensor | nn.Module:
    """Move a remote tensor or a sent module straight to another worker, in place.

    The values do not pass through this process.

    Returns:
        The tensor or the module itself.

    Raises:
        LocationError: if it is here; send it instead.
    """
    if isinstance(x, nn.Module):
        return move_module(x, worker)
    return _remote(x, "move").move(worker)


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


def _remote(x: torch.Tensor, op: str) -> RemoteTensor:
    if not isinstance(x, RemoteTensor):
        raise LocationError(op, ["this process"], "it was not sent")
    return x
