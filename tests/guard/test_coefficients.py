"""Coefficients: which fraction a float stands for, and which are taken."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from obhut.errors import CoefficientError
from obhut.guard.coefficients import check, fits, simplest

TYPES = {53: np.float64, 24: np.float32, 11: np.float16}


@pytest.mark.parametrize(
    ("value", "fraction"),
    [
        (0.1, "1/10"),
        (1 / 3, "1/3"),
        (-2 / 3, "-2/3"),
        (0.5, "1/2"),
        (1.01, "101/100"),
        (0.0, "0"),
        (-3.0, "-3"),
        (2.0**60, str(2**60)),
        (569 / 1797, "569/1797"),
    ],
)
def test_a_float_stands_for_the_simplest_fraction(value, fraction):
    """Decimals and quotients of counts come out as they were meant."""
    assert simplest(value) == Fraction(fraction)


@pytest.mark.parametrize("bits", [24, 11, 8])
def test_thirds_and_tenths_of_shorter_floats_are_found(bits):
    """Also what was rounded to float32, float16 or bfloat16 is what it was meant."""
    for fraction in (Fraction(1, 3), Fraction(1, 10), Fraction(2, 7), Fraction(1)):
        exponent = math.frexp(float(fraction))[1]
        unit = Fraction(2) ** (exponent - bits)
        value = float(round(fraction / unit) * unit)
        assert simplest(value, bits) == fraction


def rounds_to(fraction, value, bits):
    """Tell whether a fraction rounds to a float, by the float type itself."""
    # Through float64 it would be rounded twice.
    if bits == 53:
        return fraction.numerator / fraction.denominator == value
    kind = TYPES[bits]
    below, above = (
        Fraction(float(np.nextafter(kind(value), kind(side))))
        for side in (-np.inf, np.inf)
    )
    exact = Fraction(value)
    low, high = (below + exact) / 2, (above + exact) / 2
    if low < fraction < high:
        return True
    even = int(np.array(kind(value)).view(f"u{kind().itemsize}")) % 2 == 0
    return even and fraction in (low, high)


@given(
    st.sampled_from([53, 24, 11]),
    st.floats(allow_nan=False, allow_infinity=False, width=16),
    st.floats(min_value=0.5, max_value=2),
)
def test_no_simpler_fraction_rounds_to_it(bits, value, factor):
    """It rounds to the float, and no fraction of smaller denominator does."""
    with np.errstate(all="ignore"):
        value = float(TYPES[bits](value * factor))
    if not math.isfinite(value):
        return
    found = simplest(value, bits)
    assert rounds_to(found, value, bits) or value.is_integer()
    for denominator in range(1, min(found.denominator, 200)):
        numerator = round(Fraction(value) * denominator)
        for near in (numerator - 1, numerator, numerator + 1):
            assert not rounds_to(Fraction(near, denominator), value, bits)


def test_every_short_float_has_its_fraction():
    """All positive float16, the tiny ones too: the fraction rounds to it."""
    for pattern in itertools.chain(range(1, 2100), range(2100, 0x7C00, 37)):
        value = float(np.uint16(pattern).view(np.float16))
        assert rounds_to(simplest(value, 11), value, 11)


def test_a_bound_that_is_whole_is_left_out():
    """The odd neighbour of a power of two does not reach to it, nor past it."""
    for value in (1 + 2**-52, 1 - 2**-53, 2 - 2**-52):
        found = simplest(value)
        assert found.denominator != 1
        assert float(found) == value


@pytest.mark.parametrize(
    ("value", "bits", "words"),
    [
        (math.nan, 53, "nan is no coefficient: it is not finite"),
        (math.inf, 53, "inf is no coefficient"),
        (0.1, 24, "a float of 24 bits does not hold it"),
    ],
)
def test_what_is_no_number_of_the_type_is_refused(value, bits, words):
    """Not finite, or longer than the type."""
    with pytest.raises(CoefficientError, match=words):
        simplest(value, bits)


def test_coefficients_have_32_bits():
    """In numerator and denominator, either sign."""
    most = 2**32 - 1
    for value in (most, -most, Fraction(1, most), 0):
        assert check(Fraction(value)) == value
    for value in (most + 1, -most - 1, Fraction(1, most + 1), 2**1000):
        assert not fits(Fraction(value))
        with pytest.raises(CoefficientError, match="32 bits") as caught:
            check(Fraction(value))
        assert len(str(caught.value)) < 400
