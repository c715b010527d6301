"""Optimizers follow their parameters.

A parameter keeps its identity when its module is sent or fetched, so an
optimizer goes on with it. What the optimizer keeps for it (momentum, Adam's
averages) must be where the parameter is. PyTorch calls a registered function
before each step of any optimizer; it brings that state along.

Rule: nothing is registered before the first module is sent, and a step after
which nothing has moved costs one comparison.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from .remote_tensor import RemoteTensor, send
from .session import Session
from .transfer import fetch, relocate, spend


class _Locations:
    """Counts moves, and remembers which optimizers have taken them in."""

    def __init__(self) -> None:
        self.moves = 0
        self.seen: weakref.WeakKeyDictionary[Optimizer, int] = (
            weakref.WeakKeyDictionary()
        )


_locations = _Locations()


def locations_changed() -> None:
    """Let every optimizer look, before its next step, where its parameters are."""
    if not _locations.moves:
        register_optimizer_step_pre_hook(_before_step)
    _locations.moves += 1


# Any: what the caller gave to ``step``.
def _before_step(
    optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    if _locations.seen.get(optimizer) == _locations.moves:
        return
    follow(optimizer)
    _locations.seen[optimizer] = _locations.moves


def follow(optimizer: Optimizer) -> None:
    """Bring an optimizer's state to where its parameters are.

    Numbers (0-dim tensors, such as Adam's ``step``) may stay here; they join.

    Leak: state of a parameter that was fetched comes to this process.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            state[name] = _brought(value, parameter)


def _brought(value: Any, parameter: torch.Tensor) -> Any:
    """Return a state's value at the parameter's place."""
    if isinstance(value, list | tuple):
        return type(value)(_brought(item, parameter) for item in value)
    if not isinstance(value, torch.Tensor):
        return value
    to = _session(parameter)
    if _session(value) is to:
        return value
    if to is None:
        remote = value
        (local,) = fetch([remote._held]).result()  # type: ignore[attr-defined] # remote
        spend([remote._held], "its optimizer's parameter was fetched")  # type: ignore[attr-defined] # remote
        return local
    if not isinstance(value, RemoteTensor):
        return value if value.dim() == 0 else send(value, to)
    return RemoteTensor._of(relocate([value._held], to)[0])


def _session(tensor: torch.Tensor) -> Session | None:
    return tensor._held.session if isinstance(tensor, RemoteTensor) else None
