"""Sums in twice float64's digits: pairs of a number and of what it lacks.

Rules:

- A pair stands for ``high + low``, and ``high`` is what float64 makes of it.
- Only what leaves a pair is rounded, once: equal numbers have themselves as their
  mean, whatever they are divided by, and whole numbers of 64 bits stay whole.
- What is not finite, or overflows, is so in ``high``; ``low`` then says nothing.

Source: Ogita, Rump, Oishi 2005, "Accurate sum and dot product", algorithms 3.1
(TwoSum), 3.3 (TwoProduct) and 4.4 (Sum2); Dekker 1971 for splitting and division.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

_LARGE = 2.0**890
"""What is larger is worked on as a multiple of ``_UNIT``: it would overflow."""

_UNIT = 2.0**128

_HALF = 2.0**27 + 1
"""Splits a float64 into two halves of 26 bits."""

_LOWER = 2**32 - 1
"""The lower half of 64 bits."""


class Pair(NamedTuple):
    """The sum of two numbers, element by element.

    Attributes:
        high: (size,) float64.
        low: (size,) float64, at most half a unit in the last place of ``high``, or
            little more.
    """

    high: torch.Tensor
    low: torch.Tensor

    def plus(self, other: Pair) -> Pair:
        """Return the sum of two pairs."""
        high, error = _two_sum(self.high, other.high)
        return Pair(high, error.add_(self.low).add_(other.low))

    def times(self, factor: float) -> Pair:
        """Return a multiple."""
        if factor == 1:
            return self
        high = self.high * factor
        error = _product_error(self.high, factor, high)
        return Pair(high, error.add_(self.low, alpha=factor))

    def over(self, divisor: float) -> Pair:
        """Return a fraction; exact, where two float64 numbers have it."""
        if divisor == 1:
            return self
        high = self.high / divisor
        product = high * divisor
        rest = (self.high - product).sub_(_product_error(high, divisor, product))
        return Pair(high, rest.add_(self.low).div_(divisor))

    def rounded(self) -> torch.Tensor:
        """Return it in float64, (size,)."""
        return torch.where(self.low.isfinite(), self.high + self.low, self.high)

    def whole(self, finish: str) -> torch.Tensor:
        """Return it in int64, (size,), modulo 2**64 as PyTorch adds.

        Args:
            finish: ``trunc`` cuts; all else is rounded, to nearest and ties to even.
        """
        high, low = self.high, torch.where(self.low.isfinite(), self.low, 0.0)
        if finish == "trunc":
            sign = torch.where(high < 0, -1.0, 1.0).double()
            first = (high * sign).floor()
            rest = (high * sign - first).add_(low * sign).floor() * sign
            first = first * sign
        else:
            first = high.round()
            rest = (high - first).add_(low).round()
        first = first.fmod(2.0**64)
        first = torch.where(first >= 2.0**63, first - 2.0**64, first)
        first = torch.where(first < -(2.0**63), first + 2.0**64, first)
        return first.to(torch.int64).add_(rest.to(torch.int64))


def units(blocks: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Return what to divide each element by lest it overflows; None for 1.

    Args:
        blocks: (size,) each.
    """
    large = None
    for block in blocks:
        if block.dtype is torch.float64:
            above = block.abs() > _LARGE
            if bool(above.any()):
                large = above if large is None else large | above
    if large is None:
        return None
    ones = torch.ones_like(large, dtype=torch.float64)
    return ones.masked_fill_(large, _UNIT)


def total(
    blocks: Sequence[torch.Tensor],
    weights: Sequence[float],
    unit: torch.Tensor | None = None,
) -> Pair:
    """Return a linear combination of blocks.

    Args:
        blocks: (size,) each, one or more, of real or whole numbers.
        weights: one a block.
        unit: what it is a multiple of, by ``units``.
    """
    high = torch.zeros_like(blocks[0], dtype=torch.float64)
    low = torch.zeros_like(high)
    for block, weight in zip(blocks, weights, strict=True):
        for part in _in_float64(block):
            scaled = part if unit is None else part / unit
            product = scaled if weight == 1 else scaled * weight
            high, error = _two_sum(high, product)
            low.add_(error)
            if abs(math.frexp(weight)[0]) not in (0.0, 0.5):
                low.add_(_product_error(scaled, weight, product))
    return Pair(high, low)


def _in_float64(block: torch.Tensor) -> list[torch.Tensor]:
    """Return numbers whose sum a block is, in float64."""
    if block.dtype is torch.int64:
        lower = block & _LOWER
        return [(block - lower).double(), lower.double()]
    return [block.double()]


def _two_sum(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a sum as float64 has it, and what that lacks, exactly."""
    high = a + b
    other = high - a
    return high, (a - (high - other)).add_(b - other)


def _product_error(a: torch.Tensor, b: float, product: torch.Tensor) -> torch.Tensor:
    """Return what a product lacks, exactly; ``product`` is ``a * b`` in float64."""
    spread = a * _HALF
    a1 = spread - (spread - a)
    a2 = a - a1
    b1 = b * _HALF - (b * _HALF - b)
    b2 = b - b1
    error = (a1 * b1).sub_(product)
    return error.add_(a1, alpha=b2).add_(a2, alpha=b1).add_(a2, alpha=b2)
