"""Tensors that are made at a worker of data in the program.

Rules:

- What is written here is made here and sent: it is the requester's own.
- Remote tensors in a list are put together where they are; no value comes here.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch

from .dispatch import wrap
from .held import Held
from .session import Session
from .transfer import put

# Any below: data is whatever torch.tensor takes.


def is_remote(cls: type[torch.Tensor], data: Any) -> bool:
    """Tell whether data is a remote tensor, or a list that holds one."""
    if isinstance(data, list | tuple):
        return any(is_remote(cls, item) for item in data)
    return isinstance(data, cls)


def tensor_at(
    cls: type[torch.Tensor],
    session: Session,
    data: Any,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return a tensor of data at a worker, as ``torch.tensor`` would make it.

    Args:
        cls: the class of remote tensors.
        session: with the worker.
        data: numbers, arrays, tensors, or nested lists of them.
        dtype: of the result, by default what the data decide.

    Raises:
        LocationError: if a tensor among the data is at another worker.
        Exception: PyTorch's own, if no tensor can be made of it.
    """
    found: list[torch.Tensor] = []
    places: list[int] = []
    seen = 0

    def blank(value: Any) -> Any:
        nonlocal seen
        if isinstance(value, list | tuple):
            return [blank(item) for item in value]
        seen += 1
        if not isinstance(value, cls):
            return value
        found.append(value)
        places.append(seen - 1)
        return torch.zeros(value.shape, dtype=value.dtype)

    if isinstance(data, cls):
        return data.detach().clone().to(dtype or data.dtype)
    if isinstance(data, torch.Tensor):
        return wrap(cls, put(session, data.detach().to(dtype or data.dtype)))
    here = torch.tensor(blank(data), dtype=dtype)  # with PyTorch's checks and words
    if not found:
        return wrap(cls, put(session, here))
    values = torch.stack([one.detach().reshape(()).to(here.dtype) for one in found])
    if len(found) < here.numel():
        flat = wrap(cls, put(session, here.flatten()))
        values = flat.index_put_((torch.tensor(places),), values)
    return values.reshape(here.shape)


def new(
    cls: type[torch.Tensor],
    like: torch.Tensor,
    *args: Any,
    size: Sequence[int] | None = None,
    **_: object,
) -> torch.Tensor:
    """Stand in for ``x.new``, whose C++ would make a local tensor.

    It takes sizes, one after the other or as a ``torch.Size``, or data.
    """
    if len(args) == 1 and not isinstance(args[0], Integral):
        if not isinstance(args[0], torch.Size):
            return new_tensor(cls, like, args[0])
        size = args[0]
    return like.new_empty((args or (0,)) if size is None else size)


def new_tensor(
    cls: type[torch.Tensor],
    like: torch.Tensor,
    data: Any,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    requires_grad: bool = False,
    **_: object,
) -> torch.Tensor:
    """Stand in for ``x.new_tensor``, whose C++ would make a local tensor."""
    where = like if isinstance(like, cls) else data
    held: Held = where._held  # type: ignore[union-attr] # of the class
    made = tensor_at(cls, held.session, data, dtype or like.dtype)
    return made.requires_grad_(requires_grad)
