"""Turns are dealt by rows, the same way each time."""

from __future__ import annotations

from obhut.transports.ray.portions import dealt
from obhut.worker.tasks import Turn

TURNS = [Turn(name) for name in "abcdef"]


def test_portions_have_about_as_many_rows() -> None:
    """The largest goes first, each to who has the fewest; order is kept within."""
    rows = [1, 2, 3, 4, 5, 9]
    portions = dealt(TURNS, rows, 2)
    names = ["".join(turn.client for turn in one.turns) for one in portions]
    assert names == ["cf", "abde"]
    assert [one.place for one in portions] == [(0, 0), (1, 0)]


def test_there_are_no_more_portions_than_turns() -> None:
    """Nobody is called for nothing."""
    assert len(dealt(TURNS[:2], [0, 0], 4)) == 2


def test_a_portion_singly_is_added_in_the_same_order() -> None:
    """Each turn has a place of its own, between those of the other portions."""
    first, second = dealt(TURNS, [1] * 6, 2)
    singly = [*first.singly(), *second.singly()]
    assert [one.turns[0].client for one in singly] == list("acebdf")
    assert sorted(one.place for one in singly) == [one.place for one in singly]
    assert {one.losses for one in singly} == {1}
