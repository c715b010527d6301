"""Autocast's casts of weights, each made once while autocast is on.

Within ``torch.autocast`` PyTorch casts a weight once and uses that again, so that the
gradients of several uses are added in the lower precision, and what an optimizer
writes is not seen before autocast has ended. It asks for C++'s view of what requires
a gradient; remote tensors, which have it at the worker, do the same by themselves.

Rules:

- The same casts are used again as PyTorch's own would be: those of leaves that require
  a gradient, from float32 to autocast's dtype, unless ``cache_enabled=False``.
- They go when PyTorch lets its own go. A weight of one element here is cast along with
  them; what is noted at that cast's node goes with it.
- A cast that a program writes itself is made whenever it is written.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch.utils import _python_dispatch as python_dispatch

from obhut.worker.shapes import outside_dispatch

from .held import Held

# Any: a remote tensor, whose class is defined above this module.
Casts: TypeAlias = "weakref.WeakKeyDictionary[Held, Any]"
"""The cast of each weight."""

CAST = torch.ops.aten._to_copy.default
"""The operator that casts."""

WRITTEN = (
    torch.Tensor.bfloat16,
    torch.Tensor.half,
    torch.Tensor.to,
    torch.Tensor.type,
    torch.Tensor.type_as,
)
"""The functions with which programs cast."""

_NOTE = "obhut"
"""The key under which a node's metadata has the casts."""

_weight = torch.zeros((1, 1), requires_grad=True)


class _OwnCasts(threading.local):
    """How many casts that a program wrote itself are being made."""

    depth = 0


_written = _OwnCasts()


@contextlib.contextmanager
def as_written() -> Iterator[None]:
    """Make a cast that a program wrote itself."""
    _written.depth += 1
    try:
        yield
    finally:
        _written.depth -= 1


# Any below: what an operator takes.
def casts(held: Held, kwargs: Mapping[str, Any]) -> Casts | None:
    """Return the casts that were made so far, if one of a weight is to be added.

    Args:
        held: what is cast.
        kwargs: how.
    """
    state = held.autograd
    if (
        state is None
        or not (state.requires_grad and state.is_leaf and state.base is None)
        or held.spec.dtype is not torch.float32
        or kwargs.get("dtype") is not torch.get_autocast_dtype("cpu")
        or _written.depth
        or not torch.is_autocast_cache_enabled()
        or not _is_nested()
    ):
        return None
    return _noted()


def _is_nested() -> bool:
    """Tell whether autocast has begun, switched on or off."""
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting() > 0


def _noted() -> Casts:
    """Return what goes when PyTorch's own casts go."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch._C.DisableTorchFunction())
        if torch._C._len_torch_dispatch_stack():
            stack.enter_context(python_dispatch._disable_current_modes())
        stack.enter_context(torch.enable_grad())
        stack.enter_context(outside_dispatch(autocast=True))
        product = torch.mm(_weight, _weight)
    # Any: PyTorch's own nodes have no usable type.
    cast: Any = product.grad_fn.next_functions[0][0]  # type: ignore[union-attr] # recorded
    noted: Casts = cast.metadata.setdefault(_NOTE, weakref.WeakKeyDictionary())
    return noted
