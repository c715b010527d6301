"""Private data of owners, in worlds that differ in nothing else.

Rules:

- A value is recognisable by its mantissa: 40 random bits of a float64 or an integer,
  22 of a float32.
- Values are whole multiples of a power of two, so that sums of a few are exact.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TypeAlias

import torch

OWNERS = ("alice", "bob", "carol", "dave", "erin")
"""The owners whom policies name."""

VECTOR = 64
"""Elements of each private vector."""

Datasets: TypeAlias = Mapping[str, Mapping[str, torch.Tensor]]
"""Parts by data set, as a worker takes them."""


class Values(enum.Enum):
    """How the owners' data differ from those of the first world.

    Attributes:
        FIRST: not at all.
        OTHER: everybody has other random values.
        ODD: everybody has zeros, huge, infinite and missing values.
        OPPOSITE: bob has more by what alice has less.
    """

    FIRST = "first"
    OTHER = "other"
    ODD = "odd"
    OPPOSITE = "opposite"


def data(owner: str, world: Values) -> Datasets:
    """Return an owner's data sets in a world.

    ``vector`` has features (64,) float64, ``rows`` features (8, 8) and target (8, 1)
    float32, ``counts`` features (64,) int64, ``labels`` features (8,) int64, and
    ``visits`` features (rows, 8) float32, of which each owner has another number.
    """
    draw = torch.Generator().manual_seed(
        1_000 * OWNERS.index(owner) + (world is Values.OTHER)
    )
    vector = _bits(draw, 40, (VECTOR,)).double() * 2.0**-37
    rows = _bits(draw, 22, (8, 8)).float() * 2.0**-19
    target = _bits(draw, 22, (8, 1)).float() * 2.0**-19
    counts = _bits(draw, 40, (VECTOR,))
    labels = torch.randint(0, 4, (8,), generator=draw)
    visits = _bits(draw, 22, (8 + OWNERS.index(owner), 8)).float() * 2.0**-19
    if world is Values.OPPOSITE and owner in ("alice", "bob"):
        sign = 1 if owner == "bob" else -1
        shift = torch.Generator().manual_seed(7)
        vector += sign * _bits(shift, 40, (VECTOR,)).double() * 2.0**-37
        rows += sign * _bits(shift, 22, (8, 8)).float() * 2.0**-19
        target += sign * _bits(shift, 22, (8, 1)).float() * 2.0**-19
        counts += sign * _bits(shift, 40, (VECTOR,))
    if world is Values.ODD:
        vector[::2] = torch.tensor([0.0, 1e300, -1e300, 1.0]).double().repeat(8)
        vector[1] = float("nan")
        vector[3] = float("inf")
        rows[::2, ::2] = 0.0
        rows[1, 1], rows[3, 3], rows[5] = float("nan"), float("inf"), rows[1]
        target[:4] = torch.tensor([[0.0], [1e30], [float("nan")], [1.0]])
        counts[::2] = 0
        counts[1], counts[3] = -(2**63), 2**63 - 1
        labels = torch.tensor([0, 0, 0, 0, -5, 1 << 40, 3, 3])
    return {
        "vector": {"features": vector},
        "rows": {"features": rows, "target": target},
        "counts": {"features": counts},
        "labels": {"features": labels},
        "visits": {"features": visits},
    }


def _bits(draw: torch.Generator, bits: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Return random integers of just so many bits, of either sign."""
    size = torch.randint(1 << (bits - 1), 1 << bits, shape, generator=draw)
    return size * (2 * torch.randint(0, 2, shape, generator=draw) - 1)
