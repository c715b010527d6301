"""Values of sums: canonical, finite, clipped."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from obhut.guard import coefficients
from obhut.guard.kinds import Combining
from obhut.worker import evaluation
from obhut.worker.evaluation import elementwise, evaluate
from obhut.worker.sums import Contribution, Sum


def contribution(owner: str, values: list[float], key: str = "1", dtype=torch.float32):
    """Return a contribution of an owner."""
    return Contribution(owner, key, torch.tensor(values, dtype=dtype))


def total(*terms, dtype=torch.float32, **fields) -> Sum:
    """Return a sum of contributions with coefficients."""
    shape = tuple(terms[0][0].tensor.shape)
    return Sum({c: Fraction(f) for c, f in terms}, shape, dtype, **fields)


def test_a_mean_is_the_mean_in_float64_rounded_once():
    """(a + b + c) / 3 is what float64 makes of it, not three roundings."""
    parts = [torch.randn(1_000) for _ in range(3)]
    terms = [
        (Contribution(name, "1", part), Fraction(1, 3))
        for name, part in zip("abc", parts, strict=True)
    ]
    made = evaluate(Sum(dict(terms), (1_000,), torch.float32))
    exact = sum(part.double() for part in parts) / 3
    assert torch.equal(made.values, exact.float())
    assert not made.nonfinite


def test_the_order_of_the_expression_does_not_show():
    """However a sum was written, its values are the same to the last bit."""
    parts = [
        Contribution(name, "1", torch.randn(500) * 10**k)
        for k, name in enumerate("abcd")
    ]
    wanted = None
    for order in itertools.permutations(parts):
        made = evaluate(
            Sum({c: Fraction(1, 7) for c in order}, (500,), torch.float32)
        ).values
        wanted = made if wanted is None else wanted
        assert torch.equal(made, wanted)


def test_absorption_leaves_nothing_of_the_others_out():
    """Large numbers that cancel are gone before anything is added.

    ((a + 2**40) - 2**40) printed single contributions: coefficients are exact here, so
    that what cancels has the coefficient 0 and is not looked at.
    """
    a, b = contribution("a", [1.25]), contribution("b", [1e30])
    assert evaluate(total((a, 1), (b, 0))).values.item() == 1.25


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_counts_as_nothing(bad):
    """A NaN of one owner does not spoil the sum, and whose it was is known."""
    a = contribution("a", [bad, 1.0])
    b = contribution("b", [2.0, 3.0])
    own = contribution("", [bad, 0.0])
    made = evaluate(total((a, 1), (b, 1), (own, 1)))
    assert made.values.tolist() == [2.0, 4.0]
    assert made.nonfinite == {"a"}


def test_values_that_overflow_together_are_finite():
    """Large finite values are not taken for infinite ones, though their sum is."""
    a = contribution("a", [3e38, 3e38, -3e38], dtype=torch.float32)
    made = evaluate(total((a, Fraction(1, 2))))
    assert not made.nonfinite
    assert made.values.tolist() == pytest.approx([1.5e38, 1.5e38, -1.5e38])


def test_contributions_are_clipped_and_the_requesters_own_are_not():
    """Each owner's tensor has at most the clip norm; what is public stays."""
    a = contribution("a", [3.0, 4.0])
    b = contribution("b", [0.3, 0.4])
    own = contribution("", [30.0, 40.0])
    made = evaluate(total((a, 1), (b, 1), (own, 1)), clip_norm=1.0)
    assert made.values.tolist() == pytest.approx([30.9, 41.2])


def test_what_an_owner_has_is_bounded_by_its_weight():
    """Its deliveries add up to the clip norm times the sum of their coefficients."""
    pieces = [Contribution("a", str(k), torch.full((4,), 9.0)) for k in range(5)]
    made = evaluate(total(*((one, 1) for one in pieces)), clip_norm=2.0)
    assert made.values.norm().item() == pytest.approx(5 * 2.0)
    mean = evaluate(total(*((one, Fraction(1, 5)) for one in pieces)), clip_norm=2.0)
    assert mean.values.norm().item() == pytest.approx(2.0)


def test_clipping_does_not_tell_one_delivery_from_two():
    """What the audit takes for twice the same is that: nothing is left of one owner.

    Scaled down together, both of a's would weigh as one, and the difference of the two
    releases would be a's alone.
    """
    values = {"a": [30.0, 40.0], "b": [0.3, 0.4], "c": [5.0, 12.0]}
    a, b, c = (contribution(name, numbers) for name, numbers in values.items())
    again = Contribution("a", "again", a.tensor)
    once = evaluate(total((a, 1), (b, 1), (c, 1)), clip_norm=1.0).values
    twice = evaluate(total((a, 1), (again, 1), (b, 2), (c, 2)), clip_norm=1.0).values
    assert torch.equal(twice, 2 * once)


def test_blocks_do_not_show(monkeypatch):
    """A tensor of many blocks has the values that one block would have."""
    parts = [Contribution(name, "1", torch.randn(1_003)) for name in "abc"]
    of = Sum({c: Fraction(2, 3) for c in parts}, (17, 59), torch.float32)
    whole = evaluate(of, clip_norm=5.0).values
    monkeypatch.setattr(evaluation, "BLOCK", 100)
    assert torch.equal(evaluate(of, clip_norm=5.0).values, whole)


def test_whole_numbers_are_rounded_or_cut_as_asked():
    """A mean of counts is rounded to the nearest, or cut as a conversion does."""
    a = contribution("a", [2], dtype=torch.int64)
    b = contribution("b", [5], dtype=torch.int64)
    half = Fraction(1, 2)
    for finish, wanted in (("round", 4), ("trunc", 3)):
        of = total((a, half), (b, half), dtype=torch.int64, finish=finish)
        values = evaluate(of).values
        assert values.dtype is torch.int64
        assert values.item() == wanted


def test_large_coefficients_fall_back_to_floats():
    """Coefficients without a common denominator in float64 are used as they are."""
    a, b = contribution("a", [1.0]), contribution("b", [1.0])
    f, g = Fraction(1, 2**31 - 1), Fraction(1, 2**31 - 19)
    made = evaluate(total((a, f), (b, g), dtype=torch.float64)).values.item()
    assert made == pytest.approx(float(f + g), rel=1e-12)


@given(
    st.lists(st.integers(-1000, 1000), min_size=3, max_size=9),
    st.integers(1, 4),
)
def test_a_trimmed_mean_leaves_the_extremes_out(values, trim):
    """Sorted, cut at both ends, averaged: each element by itself."""
    if 2 * trim >= len(values):
        return
    rows = [torch.tensor([float(v), -float(v)]) for v in values]
    kept = sorted(values)[trim : len(values) - trim]
    wanted = sum(kept) / len(kept)
    made = elementwise([row.double() for row in rows], Combining("trimmed_mean", trim))
    assert made.tolist() == pytest.approx([wanted, -wanted])
    terms = {Contribution(str(k), "1", row): Fraction(1) for k, row in enumerate(rows)}
    of = Sum(terms, (2,), torch.float32, kind=f"trimmed_mean:{trim}")
    assert evaluate(of).values.tolist() == pytest.approx([wanted, -wanted])


def test_an_empty_sum_is_zeros():
    """Zeros that an accumulator begins with are zeros."""
    made = evaluate(Sum({}, (2, 3), torch.float32)).values
    assert torch.equal(made, torch.zeros(2, 3))


def test_a_large_number_of_ones_own_rounds_nobody_by_themselves():
    """Beside a large number of the requester's own only the sum is rounded."""
    own = contribution("", [2.0**54])
    for a, b, c in ((0.75, 0.75, 0.5), (1.5, 0.25, 0.25)):
        parts = [contribution(n, [x]) for n, x in zip("abc", (a, b, c), strict=True)]
        of = total((own, 1), *((part, 1) for part in parts), dtype=torch.float64)
        assert evaluate(of).values.item() == 2.0**54  # and a tie goes to the even one
        of = total((own, 1), *((part, 4) for part in parts), dtype=torch.float64)
        assert evaluate(of).values.item() == 2.0**54 + 8


def test_a_sum_is_rounded_once():
    """Whatever factor it has, a sum is the exact one, rounded when it leaves.

    So no factor shows how owners' values round by themselves.
    """
    values = [torch.randn(64, dtype=torch.float64) for _ in "abc"]
    parts = [Contribution(n, "1", v) for n, v in zip("abc", values, strict=True)]
    exact = [
        sum(map(Fraction, row))
        for row in zip(*map(torch.Tensor.tolist, values), strict=True)
    ]
    for factor in (Fraction(1), Fraction(3**20), Fraction(7, 3), Fraction(-1, 10)):
        of = Sum(dict.fromkeys(parts, factor), (64,), torch.float64)
        made = evaluate(of).values.tolist()
        assert made == [float(x * factor) for x in exact]


def test_a_trimmed_mean_is_clipped_too():
    """The requester does not choose a way around the owners' clip norm."""
    parts = [contribution(name, [600.0]) for name in "abc"]
    of = total(*((part, 1) for part in parts), kind="trimmed_mean:1")
    assert evaluate(of, clip_norm=1.0).values.item() == pytest.approx(1.0)


def test_ones_own_zeros_decide_no_digit():
    """What the requester adds changes nothing of how the owners' are rounded."""
    parts = [Contribution(name, "1", torch.randn(1_000)) for name in "abc"]
    terms = {part: Fraction(k + 1) for k, part in enumerate(parts)}
    alone = evaluate(Sum(terms, (1_000,), torch.float64)).values
    for denominator in (2**31 - 1, 7):
        own = Contribution("", "own", torch.zeros(1_000))
        mixed = {**terms, own: Fraction(1, denominator)}
        beside = evaluate(Sum(mixed, (1_000,), torch.float64)).values
        assert torch.equal(beside, alone)


def test_ones_own_values_and_dtypes_decide_no_digit():
    """Neither a large value of one's own, nor its dtype, nor the result's, rounds."""
    tiny = torch.tensor([1.3, 2.4, 1.3], dtype=torch.float64) * 2.0**-948
    apart = torch.tensor([2.0**60, 37.25, -(2.0**60)], dtype=torch.float64)
    own = [torch.tensor([x], dtype=torch.float64) for x in (1e300, -1e300, 0.0)]
    for values in (tiny, apart, apart.float(), apart.float() * 2.0**-100):
        terms = {
            Contribution(name, "1", value): Fraction(1)
            for name, value in zip("abc", values.split(1), strict=True)
        }
        mine = {Contribution("", str(k), x): Fraction(1) for k, x in enumerate(own)}
        alone = evaluate(Sum(terms, (1,), torch.float64)).values
        beside = evaluate(Sum({**terms, **mine}, (1,), torch.float64)).values
        assert torch.equal(beside, alone)
        for dtype in (torch.float32, torch.bfloat16, torch.int64):
            narrow = evaluate(Sum(terms, (1,), dtype)).values
            expected = alone.round() if dtype is torch.int64 else alone
            assert torch.equal(narrow, expected.to(dtype)), dtype


def test_a_factor_decides_no_digit_of_long_weights():
    """Weights whose multiples have no short fractions are as exact in these."""
    first, second = 2**24 - 3, 2**24 - 17
    values = torch.tensor([second, -first], dtype=torch.float64) * 2.0**20
    parts = [
        Contribution(n, "1", v) for n, v in zip("ab", values.split(1), strict=True)
    ]
    for factor in (Fraction(1), Fraction(1, 127 * first * second)):
        shares = [first * factor, second * factor]
        assert all(map(coefficients.fits, shares))
        terms = dict(zip(parts, shares, strict=True))
        assert evaluate(Sum(terms, (1,), torch.float64)).values.item() == 0
