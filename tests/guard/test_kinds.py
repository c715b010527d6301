"""The names of the ways in which contributions are combined."""

import pytest

from obhut.guard.kinds import KINDS, Combining, parse
from obhut.worker.evaluation import ELEMENTWISE


@pytest.mark.parametrize(
    "kind",
    [
        Combining("sum"),
        Combining("count"),
        Combining("trimmed_mean", 1),
        Combining("trimmed_mean"),
    ],
)
def test_a_name_that_was_written_down_is_read(kind: Combining) -> None:
    """The ledger's text means the kind that was decided on."""
    assert parse(str(kind)) == kind


@pytest.mark.parametrize(
    "text",
    [
        "",
        "median",
        "sum:1",
        "count:0",
        "trimmed_mean",
        "trimmed_mean:",
        "trimmed_mean:-1",
        "trimmed_mean:1_0",
        "trimmed_mean:1:1",
        "trimmed_mean:1000000",
        "trimmed_mean:\u0661",
    ],
)
def test_any_other_text_is_no_kind(text: str) -> None:
    """Unknown is refused, and so is a number where none belongs."""
    assert parse(text) is None


def test_each_way_is_computed() -> None:
    """Whatever lets values leave and is no sum has a row that computes it."""
    ways = {n for n, traits in KINDS.items() if traits.values and not traits.weighted}
    assert ways == set(ELEMENTWISE)
