"""Means and standard deviations over all owners' rows.

Rule: each owner's sum and sum of squares move straight to the aggregator and are
added there, each with the coefficient 1; what comes here is the total over the owners.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from obhut.client.registry import Place
from obhut.errors import CallError

from .columns import Data, check_columns, look_of, sums, totals


def mean_and_std(
    data: Sequence[Data], aggregator: Place | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each column's mean and standard deviation over all owners' rows.

    Sums are made in float64; a standard deviation is wrong where it is less than
    about 1e-8 of the mean. ``describe``'s is not, and leaves out cells that are NaN.

    Leak: the totals, and how many rows there are, come to this process; each owner's
    own go to the aggregator.

    Args:
        data: of each owner a data set, of which features are meant, or a remote tensor,
            (rows, columns); numbers of any dtype.
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
    check_columns(data)
    (total, squares), rows = totals(
        sums, data, aggregator, advice="look for empty cells in their rows"
    )
    if rows < 2:
        raise CallError(f"expected two rows or more, got {rows}")
    variance = ((squares - total**2 / rows) / (rows - 1)).clamp_min(0)
    dtype, shape = look_of(data[0])
    dtype = dtype if dtype.is_floating_point else torch.get_default_dtype()
    mean, std = total / rows, variance.sqrt()
    return mean.to(dtype).reshape(shape), std.to(dtype).reshape(shape)
