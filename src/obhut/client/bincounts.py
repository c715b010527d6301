"""``torch.bincount`` in a program, as a sum at places.

::

    with Counting():
        torch.bincount(x, minlength=10)          # (10,), as a scatter_add

Rules:

- Its shape is (minlength,), whatever the values are: else the shape would tell them.
- A value of ``minlength`` or more, for which PyTorch's own would be longer, is an error
  where the rows are, as a negative one is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .remote_tensor import RemoteTensor

# Any below: what PyTorch's own functions take and return.


class Counting(TorchFunctionMode):
    """Stands in for ``torch.bincount`` of remote tensors, if it has a length."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function, or what stands in for it."""
        given = kwargs or {}
        if func in (torch.bincount, torch.Tensor.bincount):
            found = _bincount(*args, **given)
            if found is not None:
                return found
        return func(*args, **given)


def _bincount(
    input: Any, weights: torch.Tensor | None = None, minlength: int = 0
) -> torch.Tensor | None:
    if not isinstance(input, RemoteTensor) or input.dim() != 1 or not minlength:
        return None
    if weights is None:
        weights = torch.ones_like(input, dtype=torch.int64)
    elif weights.dtype != torch.float32:
        weights = weights.to(torch.float64)
    zeros = input.new_zeros(minlength, dtype=weights.dtype)
    return zeros.scatter_add(0, input.to(torch.int64), weights)
