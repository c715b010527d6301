from __future__ import annotations

import pytest
import torch

import obhut
from obhut.errors import CallError
from obhut.federated import mean_and_std


def test_statistics_equal_those_of_pooled_rows() -> None:
    """Mean and deviation over the owners are those of all rows in one place."""
    parts = [torch.randn(rows, 4) * 3 + 100 for rows in (5, 2, 40)]
    remote = [obhut.send(part, obhut.VirtualWorker()) for part in parts]
    mean, std = mean_and_std(remote, obhut.VirtualWorker("aggregator"))
    pooled = torch.cat(parts).double()
    assert mean.dtype == std.dtype == torch.float32
    torch.testing.assert_close(mean, pooled.mean(0).float())
    torch.testing.assert_close(std, pooled.std(0).float())


def test_a_constant_column_has_no_deviation() -> None:
    """A column that does not vary has a deviation of 0, not NaN."""
    owner = obhut.VirtualWorker("owner")
    _, std = mean_and_std([obhut.send(torch.full((7, 1), 0.1), owner)], owner)
    assert std.item() < 1e-8


@pytest.mark.parametrize("shapes", [[(1, 3)], [(4, 3), (4, 2)], []])
def test_columns_that_do_not_match_are_refused(shapes: list[tuple[int, int]]) -> None:
    """Two rows or more of the same columns are needed."""
    owner = obhut.VirtualWorker("owner")
    tensors = [obhut.send(torch.ones(shape), owner) for shape in shapes]
    with pytest.raises(CallError, match=r"two rows|the same columns"):
        mean_and_std(tensors, owner)
