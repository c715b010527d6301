"""Losses whose tensors, such as weights of classes, go to the owners.

::

    check_loss(nn.CrossEntropyLoss)              # CallError: it is the class
    loss_fn = travelling(partial(F.cross_entropy, weight=w))     # a module: w travels

Rule: what has no tensors is a function, and nothing of it is sent but by a recording.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import nn

from obhut.errors import CallError

Loss: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""The loss of predictions and targets, a scalar."""


# Any: whatever was passed.
def check_loss(loss_fn: Any) -> None:
    """Check that a loss can be called with predictions and targets.

    Raises:
        CallError: if not, and what to write.
    """
    if isinstance(loss_fn, type):
        name = loss_fn.__name__
        raise CallError(
            f"expected a loss, got the class {name}: write {name}(), or a function "
            "such as nn.functional.cross_entropy"
        )
    if not callable(loss_fn):
        raise CallError(
            f"expected a loss of predictions and targets, got a "
            f"{type(loss_fn).__name__}: loss_fn=nn.functional.cross_entropy"
        )


def travelling(loss_fn: Loss) -> Loss:
    """Return a loss as a module if it has tensors, which a module brings along."""
    if isinstance(loss_fn, functools.partial) and _tensors(loss_fn):
        return Bound(loss_fn)
    return loss_fn


# Any: of a function of whatever.
def _tensors(bound: functools.partial[Any]) -> dict[str, torch.Tensor]:
    """Return the tensors among a partial's own arguments, by a name each."""
    given = {f"arg{place}": one for place, one in enumerate(bound.args)}
    given |= {f"of_{name}": one for name, one in bound.keywords.items()}
    return {name: one for name, one in given.items() if isinstance(one, torch.Tensor)}


class Bound(nn.Module):
    """A partial function whose tensors are buffers.

    Args:
        bound: the partial.
    """

    # Any: what a function was given.
    def __init__(self, bound: functools.partial[Any]) -> None:
        super().__init__()
        tensors = _tensors(bound)
        self.func = bound.func
        self.plain = tuple(
            None if f"arg{place}" in tensors else one
            for place, one in enumerate(bound.args)
        )
        self.named = {
            name: None if f"of_{name}" in tensors else one
            for name, one in bound.keywords.items()
        }
        for name, one in tensors.items():
            self.register_buffer(name, one.detach())

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        """Call the function."""
        own = self._buffers
        args = [own.get(f"arg{place}", one) for place, one in enumerate(self.plain)]
        kwargs = {name: own.get(f"of_{name}", one) for name, one in self.named.items()}
        result: torch.Tensor = self.func(*args, *given, **kwargs)
        return result
