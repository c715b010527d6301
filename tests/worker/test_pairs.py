"""Pairs of float64: what they add, divide and round."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from obhut.worker.evaluation import combine
from obhut.worker.pairs import Pair

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)

weights = st.lists(st.integers(0, 2**40), min_size=1, max_size=6).filter(any)


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1),
    weights,
    st.sampled_from(FLOATS),
)
def test_the_mean_of_equal_numbers_is_that_number(values, numbers, dtype):
    """Whatever they weigh, and as far as the dtype goes at either end."""
    x = torch.tensor(values, dtype=torch.float64).to(dtype)
    x = x.nan_to_num()  # what is too large for the dtype becomes its largest
    shares = [Fraction(number, sum(numbers)) for number in numbers]
    assert torch.equal(combine([x] * len(shares), shares, dtype), x)


@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1),
    weights,
    st.sampled_from(WHOLE),
)
def test_the_mean_of_equal_whole_numbers_is_that_number(values, numbers, dtype):
    """All 64 bits of them."""
    x = torch.tensor(values).to(dtype)
    shares = [Fraction(number, sum(numbers)) for number in numbers]
    assert torch.equal(combine([x] * len(shares), shares, dtype), x)


@given(
    st.lists(st.floats(-1e200, 1e200), min_size=1, max_size=9),
    st.integers(1, 2**31),
)
def test_a_sum_is_the_exact_one_rounded(values, divisor):
    """To a unit in the last place of what was added, in twice float64's digits."""
    shares = [Fraction(1, divisor)] * len(values)
    parts = [torch.tensor([value], dtype=torch.float64) for value in values]
    made = combine(parts, shares, torch.float64).item()
    exact = sum(map(Fraction, values)) / divisor
    largest = max(map(abs, map(Fraction, values))) / divisor
    slack = largest * Fraction(2) ** -98 + Fraction(math.ulp(0.0))
    assert abs(Fraction(made) - exact) <= abs(exact) * Fraction(2) ** -53 + slack


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([math.inf, 1.0], math.inf),
        ([-math.inf, 1.0], -math.inf),
        ([math.inf, -math.inf], math.nan),
        ([math.nan, 1.0], math.nan),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_what_is_not_finite_stays_so(values, wanted, dtype):
    """Where nobody is guarded a mean is as infinite as PyTorch's."""
    parts = [torch.tensor([value], dtype=dtype) for value in values]
    made = combine(parts, [Fraction(1, 2)] * 2, dtype).item()
    assert made == wanted or (math.isnan(made) and math.isnan(wanted))


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5))
def test_whole_numbers_overflow_as_pytorchs(values):
    """A sum of whole numbers is what PyTorch's is, modulo 2**64 and less."""
    for dtype in WHOLE[:-1]:
        parts = [torch.tensor(value).to(dtype) for value in values]
        wanted = parts[0].clone()
        for part in parts[1:]:
            wanted = wanted + part
        made = combine(parts, [Fraction(1)] * len(parts), dtype)
        assert torch.equal(made, wanted)


@pytest.mark.parametrize(
    ("high", "low", "rounded", "cut"),
    [
        (3.0, -1e-20, 3, 2),
        (-3.0, 1e-20, -3, -2),
        (2.5, 0.0, 2, 2),
        (3.5, 0.0, 4, 3),
        (2.0**53, 1.0, 2**53 + 1, 2**53 + 1),
        (2.0**62, -1.0, 2**62 - 1, 2**62 - 1),
        (-(2.0**62), 1.0, -(2**62) + 1, -(2**62) + 1),
    ],
)
def test_whole_numbers_of_pairs(high, low, rounded, cut):
    """Rounding and cutting look at both numbers of a pair."""
    pair = Pair(*(torch.tensor([x], dtype=torch.float64) for x in (high, low)))
    assert pair.whole("round").item() == rounded
    assert pair.whole("trunc").item() == cut
