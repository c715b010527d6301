"""Tensors that a module keeps as attributes of its own, no parameters or buffers.

A table of positions that ``forward`` makes once, a mask from ``__init__``, a list of
what was seen: in an attribute, or in lists, tuples and dicts there.

Rules:

- They follow the module to a worker when it next runs there, as copies: whoever else
  has a name for one keeps what it was. Not earlier, so that an aggregator which a
  module only passes through gets none of them.
- They come from here, and from workers where the module has been. Rows of somebody
  else's, which a program may have put into a module, do not.
- Left where it is: what requires a gradient, for a copy would get none; a single
  number that is here, which joins; and what can not come, for it may not be needed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container
from itertools import islice
from typing import Any, TypeAlias

import torch
from torch import nn

from obhut.errors import ObhutError

from .remote_tensor import RemoteTensor, send
from .session import Session
from .transfer import is_sendable, relocate

Swap: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""Returns what takes the place of a tensor, or the tensor itself."""

_OF_EVERY_MODULE = frozenset((*nn.Module().__dict__, "forward", "_obhut_forward"))

_DEPTH = 4
"""How deep in lists, tuples and dicts a tensor is looked for."""

_ITEMS = 1000
"""How many items of each are looked at; a module looks whenever it runs."""


def swap_all(part: nn.Module, swap: Swap) -> None:
    """Let each tensor that a module keeps be replaced, not those of its children."""
    for name, value in list(part.__dict__.items()):
        if name not in _OF_EVERY_MODULE:
            new = _swapped(value, swap, _DEPTH)
            if new is not value:
                part.__dict__[name] = new


# Any: whatever a module has for an attribute.
def _swapped(value: Any, swap: Swap, depth: int) -> Any:
    if isinstance(value, torch.Tensor):
        return swap(value)
    if not isinstance(value, list | tuple | dict) or not depth:
        return value
    items = value.items() if isinstance(value, dict) else enumerate(value)
    news = {
        key: new
        for key, item in islice(items, _ITEMS)
        if (new := _swapped(item, swap, depth - 1)) is not item
    }
    if not news:
        return value
    if isinstance(value, tuple):
        changed = [news.get(place, item) for place, item in enumerate(value)]
        named = hasattr(value, "_fields")
        return type(value)(*changed) if named else type(value)(changed)
    for key, new in news.items():
        value[key] = new
    return value


def kept(part: nn.Module) -> dict[int, torch.Tensor]:
    """Return the tensors that a module keeps, by their ids, each once."""
    found: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        found[id(tensor)] = tensor
        return tensor

    swap_all(part, note)
    return found


def bring(part: nn.Module, session: Session, past: Container[Session]) -> None:
    """Let what a module keeps be at a worker; it is about to run there.

    Args:
        part: the module.
        session: with the worker.
        past: with the workers where the module has been.
    """
    brought: dict[int, torch.Tensor] = {}

    def swap(tensor: torch.Tensor) -> torch.Tensor:
        if not _follows(tensor, session, past):
            return tensor
        if id(tensor) not in brought:
            with contextlib.suppress(ObhutError):
                brought[id(tensor)] = _copied_to(tensor, session)
        return brought.get(id(tensor), tensor)

    swap_all(part, swap)


def _follows(tensor: torch.Tensor, session: Session, past: Container[Session]) -> bool:
    if isinstance(tensor, RemoteTensor):
        held = tensor._held
        left_behind = held.session is not session and held.session in past
        return left_behind and not held.spent and not tensor.requires_grad
    return tensor.dim() > 0 and not tensor.requires_grad and is_sendable(tensor)


def _copied_to(tensor: torch.Tensor, session: Session) -> torch.Tensor:
    if isinstance(tensor, RemoteTensor):
        return RemoteTensor._of(relocate([tensor.copy()._held], session)[0])
    return send(tensor, session)


def strays(part: nn.Module, session: Session) -> list[str]:
    """Return the names of attributes with tensors that are not at a worker."""
    names: list[str] = []
    for name, value in part.__dict__.items():
        if name in _OF_EVERY_MODULE:
            continue
        found: list[torch.Tensor] = []
        _swapped(value, lambda x, found=found: found.append(x) or x, _DEPTH)  # type: ignore[misc] # append returns None
        if any(
            tensor._held.session is not session
            if isinstance(tensor, RemoteTensor)
            else tensor.dim() > 0 or tensor.requires_grad
            for tensor in found
        ):
            names.append(name)
    return names
