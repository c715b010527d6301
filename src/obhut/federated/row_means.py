"""The mean over an owner's rows of what batches came to, line by line.

::

    mean = mean_over_rows([loss, other], [32, 5], owner)     # a scalar there, float64

Rules:

- It is rounded as in a program's run, where a numerator and a denominator are summed.
- All rows in one batch are counted there: so it is the same computation at all owners,
  however many rows they have.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from obhut.client.remote_dataset import RemoteDataset

_AT_ONCE = 10_000
"""Values that one request stacks at most."""


def mean_over_rows(
    values: Sequence[torch.Tensor], rows: Sequence[int], owner: RemoteDataset
) -> torch.Tensor:
    """Return a mean over rows at an owner, without history, float64.

    Args:
        values: of each batch a mean over its rows, there, all of one shape.
        rows: how many rows each batch has.
        owner: the rows.
    """
    alone = owner.count() if list(rows) == [len(owner)] else None
    numbers: Sequence[int | torch.Tensor] = rows if alone is None else [alone]
    products = [
        value.detach().to(torch.float64) * number
        for value, number in zip(values, numbers, strict=True)
    ]
    return summed(products) / (sum(rows) if alone is None else alone)


def summed(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the sum of tensors of one shape, as a program's run sums them.

    Args:
        values: of each batch one, float64.
    """
    stacks = [
        torch.stack(list(values[start : start + _AT_ONCE]))
        for start in range(0, len(values), _AT_ONCE)
    ]
    stacked = stacks[0] if len(stacks) == 1 else torch.cat(stacks)
    return stacked.sum(0)
