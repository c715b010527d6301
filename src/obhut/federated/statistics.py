"""Means and standard deviations over all owners' rows.

Rule: each owner's sum and sum of squares move straight to the aggregator and are
added there, each with the coefficient 1; what comes here is the total over the owners.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from obhut.client.registry import Place
from obhut.client.remote_dataset import RemoteDataset
from obhut.errors import CallError

from .columns import check_columns, dtype_of, features_of, moments, shape_of, totals


def mean_and_std(
    data: Sequence[torch.Tensor | RemoteDataset], aggregator: Place | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each column's mean and standard deviation over all owners' rows.

    Cells that are NaN are left out. Sums are made in float64; a standard deviation is
    wrong where it is less than about 1e-8 of the mean, other than ``describe``'s.

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
        standard deviation of 0, and one of a single cell NaN.

    Raises:
        CallError: if there are fewer than two rows, or the columns differ.
        NonFiniteError: if an owner's rows have values that are infinite, or a
            computation on them failed.
    """
    features = [
        features_of(one) if isinstance(one, RemoteDataset) else one for one in data
    ]
    check_columns(features)
    (cells, sums, squares), rows = totals(moments, features, aggregator)
    if rows < 2:
        raise CallError(f"expected two rows or more, got {rows}")
    variance = ((squares - sums**2 / cells) / (cells - 1)).clamp_min(0)
    dtype, shape = dtype_of(features[0]), shape_of(features[0])
    dtype = dtype if dtype.is_floating_point else torch.get_default_dtype()
    found = [(sums / cells).to(dtype), variance.sqrt().to(dtype)]
    return found[0].reshape(shape), found[1].reshape(shape)
