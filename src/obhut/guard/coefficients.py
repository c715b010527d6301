"""Coefficients of sums over owners: exact fractions, read from floats.

Rules:

- A float stands for the simplest fraction that rounds to it: 0.1 is 1/10. Else
  honest weights such as 0.2 and 0.3 would look like new rows in each round.
- Numerator and denominator have at most ``BITS`` bits: larger ratios would let one
  owner's contribution drown the others in floating point.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

from obhut.errors import CoefficientError

BITS = 32
"""Bits of a numerator and of a denominator."""

_LEAST: Mapping[int, int] = {53: -1074, 24: -149, 11: -24, 8: -133}
"""The exponent of the smallest positive number, by the bits of a float's fraction:
float64, float32, float16, bfloat16."""


def simplest(value: float, bits: int = 53) -> Fraction:
    """Return the simplest fraction that rounds to a float.

    Of all fractions that round to it, to nearest and ties to even, it is the one with
    the smallest denominator, as the Stern-Brocot tree finds it. A whole number stands
    for itself.

    Args:
        value: a number that the float type can hold.
        bits: of the float type's fraction: 53 for float64, 24 for float32, 11 for
            float16, 8 for bfloat16.

    Raises:
        CoefficientError: if it is not finite, or not a number of that type.
    """
    if not math.isfinite(value):
        raise CoefficientError(str(value), "it is not finite; write a fraction")
    exact = Fraction(value)
    if exact.denominator == 1:
        return exact
    if exact < 0:
        return -simplest(-value, bits)
    _, exponent = math.frexp(value)
    unit = Fraction(2) ** max(exponent - bits, _LEAST[bits])
    steps = exact / unit
    if steps.denominator != 1:
        raise CoefficientError(
            repr(value), f"a float of {bits} bits does not hold it; round it first"
        )
    # Below a power of two floats lie twice as dense.
    power = steps.numerator == 2 ** (bits - 1) and unit > Fraction(2) ** _LEAST[bits]
    low = exact - unit / (4 if power else 2)
    # Whether a tie would round to it does not matter: the float itself lies between
    # and has a smaller denominator than the bounds.
    return _simplest_between(low, exact + unit / 2)


def _simplest_between(low: Fraction, high: Fraction) -> Fraction:
    """Return the fraction of smallest denominator between two, ``0 <= low < high``.

    Both bounds need a larger denominator than some fraction between them.
    """
    whole: list[int] = []
    while (floor := low.numerator // low.denominator) + 1 >= high:
        # Both lie in [floor, floor + 1]: go on with what is left, turned over.
        whole.append(floor)
        low, high = 1 / (high - floor), 1 / (low - floor)
    answer = Fraction(floor + 1)
    for floor in reversed(whole):
        answer = floor + 1 / answer
    return answer


def whole(weights: Sequence[Fraction]) -> list[int]:
    """Return whole numbers in the proportions of weights, over one denominator."""
    common = math.lcm(*(weight.denominator for weight in weights))
    return [int(weight * common) for weight in weights]


def apportioned(numbers: Sequence[int], total: int) -> list[int]:
    """Return whole numbers that sum to a total, about in the proportions of others.

    Their shares still sum to 1; one is off by less than ``len(numbers) / total``.

    Args:
        numbers: not negative, not all 0.
        total: what the result sums to.
    """
    everything = sum(numbers)
    parts = [number * total // everything for number in numbers]
    parts[numbers.index(max(numbers))] += total - sum(parts)
    return parts


def check(coefficient: Fraction) -> Fraction:
    """Return a coefficient that an audit can take.

    Raises:
        CoefficientError: if numerator or denominator need more than ``BITS`` bits.
    """
    if not fits(coefficient):
        raise CoefficientError(
            _shown(coefficient),
            f"numerator and denominator may have {BITS} bits; write a fraction such "
            "as 1/3, or round the weight to fewer digits",
        )
    return coefficient


def fits(coefficient: Fraction) -> bool:
    """Tell whether numerator and denominator have at most ``BITS`` bits."""
    return (
        coefficient.numerator.bit_length() <= BITS
        and coefficient.denominator.bit_length() <= BITS
    )


def _shown(coefficient: Fraction) -> str:
    bits = coefficient.numerator.bit_length() + coefficient.denominator.bit_length()
    return str(coefficient) if bits <= 400 else f"a fraction of {bits} bits"
