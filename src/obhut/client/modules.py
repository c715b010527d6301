"""How modules travel: in place, every parameter keeping its identity.

Rules:

- ``send``, ``get`` and ``move`` turn the very parameters and buffers that the
  module has, so that optimizers, tied parameters and whoever else refers to them
  go on with the same objects.
- All travel or none: what can not be sent is found before anything changes.
- While a sent module runs, factory functions create at its worker, so that
  modules which make tensors of their own need no change.
"""

from __future__ import annotations

import copy as python_copy
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any, NoReturn

import torch
from torch import nn
from torch.nn.modules.rnn import RNNBase

from obhut.errors import CallError, LocationError, NotSendableError

from .gradients import resolve
from .optimizers import locations_changed
from .placement import Placement
from .registry import WORKERS, Place
from .remote_tensor import RemoteTensor, settle
from .session import Session
from .transfer import check_sendable, fetch, put, relocate, spend
from .unread import run


def send_module(module: nn.Module, worker: Place | str) -> nn.Module:
    """Send a module's parameters and buffers, in place.

    Args:
        module: all of it here.
        worker: where to, itself or by id.

    Returns:
        The module itself.

    Raises:
        LocationError: if part of it is at a worker already.
        NotSendableError: if a parameter can not travel, or is not made yet.
    """
    session = WORKERS.find(worker).session
    tensors = _tensors(module)
    for tensor in tensors:
        if isinstance(tensor, RemoteTensor):
            raise LocationError(
                "send",
                [tensor._held.session.worker],
                "use model.move(worker), which moves it there directly",
            )
        if nn.parameter.is_lazy(tensor):
            raise NotSendableError(
                "a lazy module's parameter",
                "run the module once on data of the right shape first",
            )
        check_sendable(tensor)
    with session.together():
        helds = [put(session, tensor) for tensor in tensors]
    for tensor, held in zip(tensors, helds, strict=True):
        remote = RemoteTensor._of(held)
        if isinstance(tensor, nn.Parameter):
            remote._is_param = True
        _exchange(tensor, remote)
    _place(module, session)
    locations_changed()
    return module


def get_module(module: nn.Module) -> nn.Module:
    """Fetch a module's parameters and buffers, in place.

    Leak: their values, and those of their gradients, come to this process.

    Returns:
        The module itself.

    Raises:
        LocationError: if it is here already.
    """
    remotes = _remotes(module, "get")
    helds = [remote._held for remote in remotes]
    for held in helds:
        resolve(RemoteTensor, held)
    values = fetch(helds).result()
    for remote, value in zip(remotes, values, strict=True):
        local = value
        if getattr(remote, "_is_param", False):
            local = nn.Parameter(value.detach(), value.requires_grad)
            local.grad = value.grad
        _exchange(remote, local)
    spend(helds, "its module was fetched with get()")
    _unplace(module)
    locations_changed()
    return module


def move_module(module: nn.Module, worker: Place | str) -> nn.Module:
    """Move a module's parameters and buffers straight to a worker, in place.

    The values do not pass through this process. Gradients stay behind and go.

    Returns:
        The module itself.

    Raises:
        LocationError: if it is here; send it instead.
    """
    session = WORKERS.find(worker).session
    by_session: dict[Session, list[RemoteTensor]] = {}
    for remote in _remotes(module, "move"):
        by_session.setdefault(remote._held.session, []).append(remote)
    for source, remotes in by_session.items():
        if source is session:
            continue
        moved = relocate([remote._held for remote in remotes], session)
        for remote, held in zip(remotes, moved, strict=True):
            settle(remote, held)
    _unplace(module)
    _place(module, session)
    locations_changed()
    return module


def location_of(module: nn.Module) -> Place | None:
    """Return the worker that a module is at, or None if it is here.

    Raises:
        LocationError: if its parts are at different places.
    """
    tensors = _tensors(module)
    places = {t._held.session: t for t in tensors if isinstance(t, RemoteTensor)}
    if not places:
        return None
    first, *others = places
    if others or not all(isinstance(t, RemoteTensor) for t in tensors):
        here = [] if others else ["this process"]
        raise LocationError(
            "location",
            [session.worker for session in places] + here,
            "send or move the module as a whole",
        )
    return places[first].location


def _remotes(module: nn.Module, op: str) -> list[RemoteTensor]:
    tensors = _tensors(module)
    remotes = [t for t in tensors if isinstance(t, RemoteTensor)]
    if len(remotes) != len(tensors) or not remotes:
        places = {t._held.session.worker for t in remotes}
        raise LocationError(
            op, [*sorted(places), "this process"], "send the module first"
        )
    for remote in remotes:
        remote._held.check()
    return remotes


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    """Return each parameter and buffer once, tied ones too."""
    found: dict[int, torch.Tensor] = {}
    for part in module.modules():
        for tensor in (*part._parameters.values(), *part._buffers.values()):
            if tensor is not None:
                found[id(tensor)] = tensor
    return list(found.values())


def _exchange(tensor: torch.Tensor, other: torch.Tensor) -> None:
    """Let two tensors change places: each Python object becomes the other.

    As ``torch.utils.swap_tensors``, which refuses where a graph, a view or a weak
    reference holds on to one of them. Here those may: graphs and views go on with
    the memory that they hold, weak references with the object.
    """
    if not isinstance(tensor, RemoteTensor) and tensor.is_leaf and tensor.requires_grad:
        # What an earlier forward pass here would add to would be nobody's.
        with torch.inference_mode(False):
            accumulator = torch.autograd.graph.get_gradient_edge(tensor).node
        accumulator.register_prehook(_stale)
    tensor.__class__, other.__class__ = other.__class__, tensor.__class__
    tensor.__dict__, other.__dict__ = other.__dict__, tensor.__dict__
    torch._C._swap_tensor_impl(tensor, other)


def _stale(grads: object) -> NoReturn:
    raise CallError(
        "backward through a forward pass that was made before its module was sent; "
        "run the forward pass again"
    )


# --- placement of what a module makes while it runs -------------------------------


def _place(module: nn.Module, session: Session) -> None:
    """Let a module enter its worker while it runs."""
    for part in module.modules():
        if _makes_tensors(part):
            part.__dict__[_FORWARD] = _Placed(part, session)


def _unplace(module: nn.Module) -> None:
    for part in module.modules():
        placed = part.__dict__.get(_FORWARD)
        if isinstance(placed, _Placed):
            placed.undo()


_FORWARD = "forward"
"""The attribute of a module's own that comes before its class's method."""


def _makes_tensors(part: nn.Module) -> bool:
    """Tell whether a module's own code may call factory functions.

    PyTorch's simplest modules, such as ``Linear``, do not, and need no hooks.
    """
    ready_made = type(part).__module__.startswith("torch.nn.modules.")
    return not ready_made or isinstance(part, RNNBase) or bool(part._modules)


class _Placed:
    """A module's ``forward`` that enters the module's worker while it runs.

    Args:
        part: the module.
        session: with the worker.
    """

    def __init__(self, part: nn.Module, session: Session) -> None:
        # Not held: the module's own attribute is this, and what it has at a worker is
        # to go with its last name, and not when a collector finds the cycle.
        self._part = weakref.ref(part)
        self._session = session
        self._own: Callable[..., Any] | None = part.__dict__.get(_FORWARD)

    # Any: what a module's own code takes and returns.
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module with factory functions creating at the worker."""
        part = self._part()
        if part is None:
            raise CallError(
                "the module is gone; keep it as long as you use its forward"
            )
        forward = self._own or MethodType(type(part).forward, part)
        with Placement(self._session):
            return run(forward, self._session, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Placed:
        """Return the same for a copy of the module, which is at the same worker."""
        copied = _Placed.__new__(_Placed)
        part = self._part()
        copied._part = weakref.ref(memo.get(id(part), part)) if part else self._part
        copied._session = self._session
        copied._own = python_copy.deepcopy(self._own, memo)
        return copied

    def undo(self) -> None:
        """Let the module be as it was."""
        part = self._part()
        if part is None:
            return
        del part.__dict__[_FORWARD]
        if self._own is not None:
            part.__dict__[_FORWARD] = self._own
