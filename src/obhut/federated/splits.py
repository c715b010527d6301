"""How rows are split among owners when one process has them all.

For demonstrations and tests: real owners have their rows already.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from obhut.errors import CallError


def split(
    rows: int, shares: Iterable[float], generator: torch.Generator | None = None
) -> list[torch.Tensor]:
    """Split rows at random into parts of given shares.

    Args:
        rows: how many there are.
        shares: one for each part; they need not sum to 1.
        generator: what the order comes from, by default torch's own.

    Returns:
        For each part the numbers of its rows, (rows of the part,) int64. Each row
        is in one part.

    Raises:
        CallError: if a part would have no row.
    """
    numbers = [float(share) for share in shares]
    total = math.fsum(numbers)
    if not all(0 < number < math.inf for number in numbers):
        raise CallError(f"expected shares that are positive and finite, got {numbers}")
    ends = [
        round(rows * math.fsum(numbers[: i + 1]) / total) for i in range(len(numbers))
    ]
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    if not sizes or 0 in sizes:
        raise CallError(
            f"expected a row or more for each part, got {rows} rows in parts of {sizes}"
        )
    return list(torch.randperm(rows, generator=generator).split(sizes))
