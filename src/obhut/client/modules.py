"""How modules travel: in place, every parameter keeping its identity.

Rules:

- ``send``, ``get`` and ``move`` turn the very parameters and buffers that the
  module has, so that optimizers, tied parameters and whoever else refers to them
  go on with the same objects, and with what a program set on them.
- All travel or none: what can not be sent is found before anything changes.
- A single number that is here beside a module elsewhere stays here; it joins.
"""

from __future__ import annotations

import copy as python_copy
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

import torch
from torch import nn

from obhut.errors import CallError, LocationError, NotSendableError

from .forwards import place, unplace
from .gradients import resolve
from .kept import kept, swap_all
from .optimizers import locations_changed
from .registry import WORKERS, Place
from .remote_tensor import RemoteTensor, attributes, settle
from .session import Session
from .transfer import check_sendable, fetch, put, relocate, spend

Module = TypeVar("Module", bound=nn.Module)


def send_module(
    module: nn.Module, worker: Place | str, *, steady: bool = False
) -> nn.Module:
    """Send a module's parameters and buffers, in place.

    Args:
        module: all of it here; or the rest of it there, as after ``model.head = ...``.
        worker: where to, itself or by id.
        steady: whether values stay as they are until the worker has answered.

    Returns:
        The module itself.

    Raises:
        LocationError: if all of it is at a worker already, or part of it at another.
        NotSendableError: if a parameter can not travel, is not made yet, or has a
            hook; or if a module has a backward hook or is TorchScript's.
    """
    session = WORKERS.find(worker).session
    _check_parts(module)
    named = _named(module)
    there = {n: t for n, t in named.items() if isinstance(t, RemoteTensor)}
    named = {name: tensor for name, tensor in named.items() if name not in there}
    places = {remote._held.session for remote in there.values()}
    if places and (places != {session} or not named):
        raise LocationError(
            "send",
            sorted(place.worker for place in places),
            "use model.move(worker), which moves it there directly",
        )
    for name, tensor in named.items():
        if nn.parameter.is_lazy(tensor):
            raise NotSendableError(
                "a lazy module's parameter",
                "run the module once on data of the right shape first",
            )
        check_sendable(tensor, f" called {name}")
    tensors = list(named.values())
    with session.together():
        helds = [put(session, tensor, steady=steady) for tensor in tensors]
    for tensor, held in zip(tensors, helds, strict=True):
        remote = RemoteTensor._of(held)
        if isinstance(tensor, nn.Parameter):
            remote._is_param = True
        exchange(tensor, remote)
    place(module, session)
    locations_changed()
    return module


def send_copy(
    module: Module,
    worker: Place | str,
    there: Mapping[str, torch.Tensor] | None = None,
) -> Module:
    """Send a module that stays here, and return the one that is there.

    Its values are not copied here first, and gradients are not sent.

    Duty: let its values stay as they are until the worker has answered.

    Args:
        module: all of it here.
        worker: where to, itself or by id.
        there: of its tensors, by name, copies that are at the worker already.

    Raises:
        LocationError, NotSendableError: as ``send_module``.
    """
    aliases: dict[int, torch.Tensor] = {}
    for name, tensor in _named(module).items():
        if there and name in there:
            aliases[id(tensor)] = there[name]
            continue
        alias = tensor.detach()
        if isinstance(tensor, nn.Parameter):
            alias = type(tensor)(alias)
        aliases[id(tensor)] = alias.requires_grad_(tensor.requires_grad)
    copied = copy_module(module, aliases)
    if aliases and all(isinstance(one, RemoteTensor) for one in aliases.values()):
        place(copied, WORKERS.find(worker).session)
        locations_changed()
    else:
        send_module(copied, worker, steady=True)
    return copied


def get_module(module: nn.Module) -> nn.Module:
    """Fetch a module's parameters and buffers, in place.

    What it keeps as plain attributes where they are comes along, as copies.

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
    along = _kept_beside(module, remotes)
    values = fetch([*helds, *(remote._held for remote in along)]).result()
    copies = dict(zip(map(id, along), values[len(helds) :], strict=True))
    for remote, value in zip(remotes, values[: len(helds)], strict=True):
        come_home(remote, value)
    for part in module.modules():
        swap_all(part, lambda tensor: copies.get(id(tensor), tensor))
    spend(helds, "its module was fetched with get()")
    unplace(module)
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
    to = WORKERS.find(worker)
    if to.here:
        return get_module(module)
    session = to.session
    by_session: dict[Session, list[RemoteTensor]] = {}
    for remote in _remotes(module, "move"):
        by_session.setdefault(remote._held.session, []).append(remote)
    for source, remotes in by_session.items():
        if source is session:
            continue
        moved = relocate([remote._held for remote in remotes], session)
        for remote, held in zip(remotes, moved, strict=True):
            settle(remote, held)
    place(module, session)
    locations_changed()
    return module


def copy_module(
    module: Module, memo: Mapping[int, torch.Tensor] | None = None
) -> Module:
    """Return a copy of a module, at the same place and apart from any history.

    Args:
        module: the module.
        memo: what has a copy already, by the id of the original.
    """
    copies: dict[int, Any] = dict(memo or {})  # Any: whatever deepcopy adds
    for part in module.modules():
        for key, tensor in kept(part).items():
            if not (tensor.is_leaf and _is_there(tensor)):
                copies.setdefault(key, _without_history(tensor))
    copied = python_copy.deepcopy(module, copies)
    for old, new in zip(_tensors(module), _tensors(copied), strict=True):
        for name, value in attributes(old).items():
            if name not in new.__dict__:
                new.__dict__[name] = python_copy.deepcopy(value, copies)
    return copied


def _is_there(tensor: torch.Tensor) -> bool:
    return not isinstance(tensor, RemoteTensor) or not tensor._held.spent


def _without_history(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of what a module keeps, or itself if it was fetched or moved."""
    return tensor.detach().clone() if _is_there(tensor) else tensor


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
    if others or not all(isinstance(t, RemoteTensor) or _joins(t) for t in tensors):
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
    stays = all(isinstance(t, RemoteTensor) or _joins(t) for t in tensors)
    if not remotes or not stays:
        places = sorted({t._held.session.worker for t in remotes})
        where = f": obhut.send(model, {places[0]})" if len(places) == 1 else ""
        raise LocationError(
            op, [*places, "this process"], f"send the module first{where}"
        )
    for remote in remotes:
        remote._held.check()
    return remotes


def _joins(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor that is here may stay, its module being elsewhere."""
    return tensor.dim() == 0 and not tensor.requires_grad


def _kept_beside(module: nn.Module, remotes: list[RemoteTensor]) -> list[RemoteTensor]:
    """Return what a module keeps where its parameters are, apart from these."""
    sessions = {remote._held.session for remote in remotes}
    own = set(map(id, remotes))
    found: dict[int, RemoteTensor] = {}
    for part in module.modules():
        for key, tensor in kept(part).items():
            if not isinstance(tensor, RemoteTensor) or key in own:
                continue
            held = tensor._held
            if held.session in sessions and not held.spent and not tensor.requires_grad:
                found[key] = tensor
    return list(found.values())


def _named(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return each parameter and buffer once, tied ones too, by its name."""
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for path, part in module.named_modules():
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is not None:
                full = f"{path}.{name}".lstrip(".")
                found.setdefault(id(tensor), (full, tensor))
    return dict(found.values())


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return list(_named(module).values())


def _check_parts(module: nn.Module) -> None:
    """Check that all modules can run at a worker.

    Raises:
        NotSendableError: if one is compiled, or has a hook that autograd would have
            to run.
    """
    for path, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise NotSendableError(
                "a module that TorchScript compiled",
                "send the module that it was made of",
            )
        if part._backward_hooks or part._backward_pre_hooks:
            raise NotSendableError(
                f"a module with a backward hook ({path or type(part).__name__})",
                "remove it (handle.remove()); let a forward hook call "
                "output.retain_grad(), and read output.grad after backward()",
            )


def come_home(remote: RemoteTensor, value: torch.Tensor) -> None:
    """Let a remote tensor's object become the local one that was fetched."""
    local = value
    if getattr(remote, "_is_param", False):
        local = nn.Parameter(value.detach(), value.requires_grad)
        local.grad = value.grad
    exchange(remote, local)


def exchange(tensor: torch.Tensor, other: torch.Tensor) -> None:
    """Let two tensors change places: each Python object becomes the other.

    What a program set on an object stays on it.

    As ``torch.utils.swap_tensors``, which refuses where a graph, a view or a weak
    reference holds on to one of them. Here those may: graphs and views go on with
    the memory that they hold, weak references with the object.
    """
    apart = isinstance(tensor, RemoteTensor) or tensor.is_inference()
    if not apart and tensor.is_leaf and tensor.requires_grad:
        # What an earlier forward pass here would add to would be nobody's.
        with torch.inference_mode(False):
            accumulator = torch.autograd.graph.get_gradient_edge(tensor).node
        accumulator.register_prehook(_stale)
    tensor.__class__, other.__class__ = other.__class__, tensor.__class__
    kept_on, set_on = attributes(tensor), attributes(other)
    tensor.__dict__, other.__dict__ = other.__dict__, tensor.__dict__
    for one, gone, stays in ((tensor, set_on, kept_on), (other, kept_on, set_on)):
        for name in gone:
            del one.__dict__[name]
        one.__dict__.update(stays)
    torch._C._swap_tensor_impl(tensor, other)


def _stale(grads: object) -> NoReturn:
    raise CallError(
        "backward through a forward pass that was made before its module was sent; "
        "run the forward pass again"
    )
