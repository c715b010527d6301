"""Means and standard deviations over all owners' rows.

Rule: each owner's sum and sum of squares move straight to the aggregator and are
added there, each with the coefficient 1; what comes here is the total over the owners.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from obhut.client.registry import Place
from obhut.errors import CallError

from .contributions import collected


def mean_and_std(
    tensors: Sequence[torch.Tensor], aggregator: Place | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each column's mean and standard deviation over all owners' rows.

    Sums are made in float64; a standard deviation is wrong where it is less than
    about 1e-8 of the mean.

    Leak: the two totals, and how many rows each owner has, come to this process;
    each owner's own sums go to the aggregator.

    Args:
        tensors: (rows, columns), numbers of any dtype, remote; one an owner.
        aggregator: where the sums are added, itself or by id.

    Returns:
        Mean and standard deviation (of n - 1 degrees of freedom, as
        ``torch.std`` has it), both (columns,) and of the tensors' dtype; of whole
        numbers they are of PyTorch's default dtype. A column that does not vary has a
        standard deviation of 0.

    Raises:
        CallError: if there are fewer than two rows, or the columns differ.
        NonFiniteError: if an owner's rows have values that are NaN or infinite, or a
            computation on them failed.
    """
    rows = sum(int(tensor.shape[0]) for tensor in tensors)
    columns = {tuple(tensor.shape[1:]) for tensor in tensors}
    if rows < 2 or len(columns) != 1:
        raise CallError(
            "expected two rows or more, all of the same columns, got shapes "
            + ", ".join(str(list(tensor.shape)) for tensor in tensors)
        )
    values = [tensor.detach().double() for tensor in tensors]
    sums, squares = collected(
        [[value.sum(0), (value**2).sum(0)] for value in values],
        aggregator,
        [torch.float64] * 2,
        advice="look for empty cells in their rows",
    )
    variance = (squares - sums**2 / rows) / (rows - 1)
    dtype = tensors[0].dtype
    dtype = dtype if dtype.is_floating_point else torch.get_default_dtype()
    return (sums / rows).to(dtype), variance.clamp_min(0).sqrt().to(dtype)
