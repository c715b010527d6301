"""The sum over an owner's rows of what batches came to, line by line, and their number.

::

    ratio = sums_over_rows([loss, other], [32, 5], owner)    # two scalars there

Rules:

- They are rounded as in a program's run.
- All rows in one batch are counted there: so it is the same computation at all owners,
  however many rows they have.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from obhut.client.data import tensor_at
from obhut.client.ratio import Ratio
from obhut.client.remote_dataset import RemoteDataset
from obhut.client.remote_tensor import RemoteTensor

_AT_ONCE = 10_000
"""Values that one request stacks at most."""


def sums_over_rows(
    values: Sequence[torch.Tensor], rows: Sequence[int], owner: RemoteDataset
) -> Ratio:
    """Return a sum over rows at an owner and their number, without history, float64.

    Args:
        values: of each batch a mean over its rows, there, all of one shape.
        rows: how many rows each batch has.
        owner: the rows.
    """
    there, total = owner.location.session, float(sum(rows))
    if not values:
        zero = tensor_at(RemoteTensor, there, 0.0, torch.float64)
        return Ratio(zero, zero.clone())
    whole = owner.count() if list(rows) == [len(owner)] else None
    numbers: Sequence[int | torch.Tensor] = rows if whole is None else [whole]
    products = [
        value.detach().to(torch.float64) * number
        for value, number in zip(values, numbers, strict=True)
    ]
    if whole is None:
        whole = tensor_at(RemoteTensor, there, total, torch.float64)
    return Ratio(summed(products), whole)


def summed(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the sum of tensors of one shape, as a program's run sums them.

    Args:
        values: of each batch one, float64.
    """
    stacks = [
        torch.stack(list(values[start : start + _AT_ONCE]))
        for start in range(0, len(values), _AT_ONCE)
    ]
    return (stacks[0] if len(stacks) == 1 else torch.cat(stacks)).sum(0)
