from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from obhut.errors import CallError
from obhut.federated import split


@given(
    rows=st.integers(50, 500),
    shares=st.lists(st.floats(0.1, 10), min_size=1, max_size=8),
)
def test_every_row_is_in_one_part(rows: int, shares: list[float]) -> None:
    """The parts hold every row once, and each is a row or less off its share."""
    try:
        parts = split(rows, shares)
    except CallError:
        assert min(shares) / sum(shares) * rows < 1
        return
    assert torch.cat(parts).sort().values.tolist() == list(range(rows))
    for part, share in zip(parts, shares, strict=True):
        assert abs(len(part) - rows * share / math.fsum(shares)) <= 1


def test_a_generator_decides_the_order() -> None:
    """The same seed gives the same parts, another seed gives others."""
    first, again, other = (
        split(100, (0.7, 0.3), torch.Generator().manual_seed(seed))
        for seed in (3, 3, 4)
    )
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("shares", [(), (1.0, 0.001), (1.0, 0.0), (1.0, math.nan)])
def test_a_part_without_rows_is_refused(shares: tuple[float, ...]) -> None:
    """No part may come out empty."""
    with pytest.raises(CallError):
        split(100, shares)
