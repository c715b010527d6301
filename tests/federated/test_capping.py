from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import obhut
from obhut.errors import CallError, ReleaseRefusedError
from obhut.federated import capped
from obhut.federated.averaging import to_whole
from obhut.guard.coefficients import fits
from obhut.guard.p_percent import of_row
from obhut.guard.policy import UnsafeOpen

OWNERS = ("aspen", "birch", "cedar", "dogwood", "elm")
POLICY = obhut.Quorum(aggregators=["aggregator"], contributors=OWNERS)
ROWS = (136, 86, 68, 34, 17)


def keeps(weights: list[Fraction], colluders: int, percent: int) -> bool:
    """Tell by the rule's own words whether weights keep to it."""
    heaviest, *rest = sorted(weights, reverse=True)
    return heaviest * percent <= 100 * sum(rest[colluders:])


def test_the_heaviest_are_capped_and_no_others() -> None:
    """Of 136 rows beside 86, 68, 34 and 17 so many count as the last three have."""
    assert capped(ROWS, POLICY) == [119, 86, 68, 34, 17]
    assert capped([5, 5, 4, 5, 4], POLICY) == [5, 5, 4, 5, 4]
    assert capped([0.5, 0.25, 0.25], POLICY) == [1, 1, 1]
    assert capped([1000, 1, 1, 1], POLICY) == [2, 1, 1, 1]


def test_capped_weights_pass_where_those_by_rows_are_refused() -> None:
    """An aggregator that applies the weights refuses the rows', and takes these."""
    aggregator = obhut.VirtualWorker("aggregator", policy=POLICY)

    def deliver() -> list[torch.Tensor]:
        delivered = []
        for name, n in zip(OWNERS, ROWS, strict=True):
            data = {"count": {"features": torch.tensor([float(n)])}}
            worker = obhut.VirtualWorker(name, policy=POLICY, datasets=data)
            delivered.append(obhut.move(worker["count"], aggregator))
        return delivered

    with pytest.raises(
        ReleaseRefusedError, match=r"136/341 .*: at most 119/341"
    ) as one:
        obhut.average(deliver(), weights=ROWS).get()
    assert one.value.rule == "p-percent"
    weights = capped(ROWS, POLICY)
    average = obhut.average(deliver(), weights=weights).get()
    expected = sum(w * n for w, n in zip(weights, ROWS, strict=True)) / sum(weights)
    assert average.item() == pytest.approx(expected, rel=1e-6)


@given(
    weights=st.lists(st.integers(1, 10**9), min_size=3, max_size=9)
    | st.lists(st.floats(1e-6, 1e6), min_size=3, max_size=9),
    colluders=st.integers(0, 2),
    percent=st.integers(1, 300),
)
def test_capped_weights_keep_to_the_rule_as_an_aggregator_reads_them(
    weights: list[float], colluders: int, percent: int
) -> None:
    """Divided by their sum, rounded and read again, they are fractions that pass."""
    policy = obhut.Quorum(
        aggregators=["aggregator"],
        contributors=[str(owner) for owner in range(9)],
        honest=2,
        colluders=colluders,
        p_percent=percent,
    )
    possible = len(weights) >= policy.quorum and keeps(
        [Fraction(1)] * len(weights), colluders, percent
    )
    if not possible:
        with pytest.raises(CallError):
            capped(weights, policy)
        return
    found = capped(weights, policy)
    whole = to_whole(found, len(found))
    read = [Fraction(weight, sum(whole)) for weight in whole]
    assert keeps(read, colluders, percent)
    assert all(fits(share) for share in read)
    # No lighter than need be: one more for all that are capped breaks the rule, or
    # nobody is capped.
    heaviest = max(found)
    more = [w + 1 if w == heaviest else w for w in found]
    row = {str(owner): w for owner, w in enumerate(found)}
    assert of_row(row, colluders, percent) is None
    if sum(weights) < 2**24 and all(isinstance(w, int) for w in weights):
        assert all(f == min(w, heaviest) for f, w in zip(found, weights, strict=True))
        if heaviest < max(weights):
            assert not keeps([Fraction(w) for w in more], colluders, percent) or any(
                w == heaviest for w in weights
            )


@pytest.mark.parametrize(
    "weights",
    [[], [1, 2, 0], [1, 2, -1], [1, 2, float("nan")], [1, 2, float("inf")]],
)
def test_weights_that_are_none_are_refused(weights: list[float]) -> None:
    """Each must be positive and finite."""
    with pytest.raises(CallError, match="positive and finite"):
        capped(weights, POLICY)


def test_too_few_owners_are_refused() -> None:
    """Where not even equal weights would do, the error says why."""
    with pytest.raises(CallError, match="at least 3 weights"):
        capped([1, 1], POLICY)
    strict = obhut.Quorum(
        aggregators=["aggregator"], contributors=OWNERS, p_percent=200
    )
    with pytest.raises(CallError, match="3 owners break p_percent = 200"):
        capped([1, 1, 1], strict)
    assert capped([3, 2, 1, 1], strict) == [1, 1, 1, 1]


@pytest.mark.parametrize("policy", [None, UnsafeOpen(), "Quorum"])
def test_without_a_quorum_nothing_is_capped(policy):
    """What is no policy with a rule is an error of the call, and says what to do."""
    with pytest.raises(CallError, match=r"expected the owners' obhut.Quorum, got"):
        capped([1, 2, 3], policy)
