"""The values of a sum, made once, when it leaves an aggregator.

Canonical: the result depends on the contributions and their coefficients and not on
the expression they came from.

- A value that is not finite counts as 0.
- With a clip norm, a contribution is scaled down to that L2 norm first.
- Contributions are added in float64, in the order of owners and keys, with whole
  coefficients that have no common factor. So all multiples of a sum are made of the
  same one: no factor rounds each owner's values by themselves.
- What is the requester's own is added last, and decides nothing of how the owners' are
  added, for the same reason: beside a large number each owner's values would be
  rounded by themselves.
- Whole numbers of more than 53 bits are rounded.

Leak: ``nonfinite`` is how many contributions had a value that was not finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

import torch

from .sums import Contribution, Sum

BLOCK = 1 << 18
"""Elements that are worked on at a time: they stay in a processor's cache."""

_EXACT = 2**53
"""Whole numbers up to this one are float64."""


class Evaluated(NamedTuple):
    """The values of a sum.

    Attributes:
        values: (the sum's shape), of its dtype.
        nonfinite: how many contributions of owners had values that are not finite.
    """

    values: torch.Tensor
    nonfinite: int


def keep(block: torch.Tensor) -> None:
    """Keep a block that was read where it is."""


def evaluate(
    of: Sum,
    clip_norm: float | None = None,
    passed: Callable[[torch.Tensor], None] = keep,
) -> Evaluated:
    """Return the values of a sum.

    Args:
        of: the sum.
        clip_norm: the L2 norm that a contribution of an owner has at most.
        passed: told of each block, (elements) of a contribution, in order, once it was
            read and is not needed for now.
    """
    terms = sorted(
        ((c, f) for c, f in of.terms.items() if f),
        key=lambda t: (not t[0].owner, t[0].owner, t[0].key),
    )
    with torch.no_grad():
        flats = [contribution.tensor.reshape(-1) for contribution, _ in terms]
        scales = [_clip(c, clip_norm, passed) for c, _ in terms]
        owned = sum(1 for c, _ in terms if c.owner)
        factors = _factors([f for _, f in terms], scales, owned)
        size = math.prod(of.shape)
        result = torch.empty(size, dtype=of.dtype)
        nonfinite = [False] * len(terms)
        for start in range(0, size, BLOCK):
            end = min(start + BLOCK, size)
            blocks: list[torch.Tensor] = []
            for index, flat in enumerate(flats):
                block, clean = _finite(flat[start:end])
                nonfinite[index] |= not clean
                blocks.append(block)
            total = _reduce(of.kind, blocks, factors, scales, end - start)
            if of.finish == "round":
                total.round_()
            elif of.finish == "trunc":
                total.trunc_()
            result[start:end] = total
            for flat in flats:
                passed(flat[start:end])
    bad = sum(n for n, (c, _) in zip(nonfinite, terms, strict=True) if c.owner)
    return Evaluated(result.reshape(of.shape), bad)


def _reduce(
    kind: str,
    blocks: Sequence[torch.Tensor],
    factors: _Factors,
    scales: Sequence[float],
    size: int,
) -> torch.Tensor:
    """Combine blocks, each (size,), into one, (size,) float64."""
    if kind == "sum":
        total = torch.zeros(size, dtype=torch.float64)
        count = len(factors.owned)
        for block, factor in zip(blocks[:count], factors.owned, strict=True):
            total.add_(block, alpha=factor)
        if factors.shared != 1:
            total.mul_(factors.shared)
        if factors.divisor != 1:
            total.div_(factors.divisor)
        for block, factor in zip(blocks[count:], factors.own, strict=True):
            total.add_(block, alpha=factor)
        return total
    trim = int(kind.removeprefix("trimmed_mean:"))
    clipped = [b.to(torch.float64) * s for b, s in zip(blocks, scales, strict=True)]
    return trimmed_mean(clipped, trim)


def trimmed_mean(values: Sequence[torch.Tensor], trim: int) -> torch.Tensor:
    """Return each element's mean without its smallest and its largest values.

    Args:
        values: floating-point tensors of one shape, more than twice ``trim``.
        trim: how many are left out at each end.

    Source: Yin et al. 2018, arXiv 1803.01498, definition 2.
    """
    ordered = torch.stack(list(values)).sort(dim=0).values
    return ordered[trim : len(values) - trim].mean(0)


def _finite(block: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Return a block with 0 for what is not finite, and whether all was finite."""
    if not block.is_floating_point():
        return block, True
    # A sum is finite only if all is; one that overflows is looked at closely.
    if math.isfinite(block.sum(dtype=torch.float64).item()):
        return block, True
    clean = torch.nan_to_num(block, nan=0.0, posinf=0.0, neginf=0.0)
    return clean, bool(torch.isfinite(block).all())


def _clip(
    contribution: Contribution,
    clip_norm: float | None,
    passed: Callable[[torch.Tensor], None],
) -> float:
    """Return what a contribution is scaled by to keep to the clip norm."""
    if clip_norm is None or not contribution.owner:
        return 1.0
    squares = 0.0
    flat = contribution.tensor.reshape(-1)
    for start in range(0, len(flat), BLOCK):
        block = _finite(flat[start : start + BLOCK])[0].to(torch.float64)
        squares += float(block.dot(block))
        passed(flat[start : start + BLOCK])
    norm = math.sqrt(squares)
    return clip_norm / norm if norm > clip_norm else 1.0


class _Factors(NamedTuple):
    """What contributions are multiplied by.

    Attributes:
        owned: for each of an owner's, without a common factor.
        shared: for the sum of these.
        divisor: what that is divided by.
        own: for each of the requester's own, which are added then.
    """

    owned: list[float]
    shared: float
    divisor: float
    own: list[float]


def _factors(
    coefficients: Sequence[Fraction], scales: Sequence[float], owned: int
) -> _Factors:
    """Return what contributions are multiplied by; the first so many are owners'.

    Whole numbers over a common denominator, where float64 has them exactly: a mean
    is then a sum that is divided once, as one would write it.
    """
    theirs = coefficients[:owned]
    common = math.lcm(*(f.denominator for f in theirs))
    whole = [int(f * common) for f in theirs]
    shared = math.gcd(*whole) or 1
    first = [n // shared for n in whole]
    largest = max((abs(n) for n in first), default=1)
    if max(common, shared, largest) <= _EXACT:
        weights, times, divisor = (
            [float(n) for n in first],
            float(shared),
            float(common),
        )
    else:
        weights = [float(Fraction(n, largest)) for n in first]
        times, divisor = float(Fraction(largest * shared, common)), 1.0
    scaled = [n * s for n, s in zip(weights, scales[:owned], strict=True)]
    return _Factors(scaled, times, divisor, [float(f) for f in coefficients[owned:]])
