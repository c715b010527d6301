"""Recurrent layers on packed sequences, whose batch sizes may stand in the message.

Rules:

- Written sizes are a list of numbers, the requester's own: the sizes of the results
  follow from them, and no value is looked at.
- Sizes that are a tensor at the worker are values: what the results look like is known
  only there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from obhut.errors import CallError

PACKED = frozenset(
    f"aten.{name}.data" for name in ("gru", "lstm", "rnn_relu", "rnn_tanh")
)
"""The overloads; their second argument is the batch sizes."""


# Any below: operators take and return whatever their schema says.


def takes_sizes(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """Return an operator that takes written batch sizes too, if it is one of these.

    Args:
        name: the overload.
        call: the overload itself.
    """
    if name not in PACKED:
        return call

    @functools.wraps(call)
    def run(data: Any, batch_sizes: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(batch_sizes, list):
            if not all(type(size) is int for size in batch_sizes):
                raise CallError("batch sizes are whole numbers")
            batch_sizes = torch.tensor(batch_sizes, dtype=torch.int64)
        elif batch_sizes.is_meta:
            raise NotImplementedError("the sizes depend on values")
        return call(data, batch_sizes, *args, **kwargs)

    return run
