"""Turns are taken in the order in which they were asked for."""

from __future__ import annotations

import threading

import pytest

from obhut.host.turns import Turns


def waits(turns: Turns, count: int) -> None:
    """Go on once so many wait."""
    while turns.waiting != count:
        threading.Event().wait(0.001)


def test_who_comes_first_is_served_first():
    """And who has had a turn queues behind those who came meanwhile."""
    turns, order, threads = Turns(), [], []

    def take(name: str) -> None:
        with turns.turn():
            order.append(name)

    with turns.turn():
        for count, name in enumerate("abc", 1):
            threads.append(threading.Thread(target=take, args=(name,)))
            threads[-1].start()
            waits(turns, count)
        order.append("first")
    with turns.turn():
        order.append("again")
    for thread in threads:
        thread.join()
    assert order == ["first", "a", "b", "c", "again"]
    assert turns.waiting == 0


def test_a_turn_ends_with_an_error():
    """Nobody waits for ever for one who failed."""
    turns = Turns()
    with pytest.raises(ValueError, match="it failed"), turns.turn():
        raise ValueError("it failed")
    with turns.turn():
        assert turns.waiting == 0
