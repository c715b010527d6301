"""Connections that stand still or hold too much, by a clock that a test sets."""

from __future__ import annotations

import pytest

from obhut.errors import LimitError
from obhut.transports.grpc.streams import EACH, STALLED_SECONDS, State, Stream, Streams

MIB = 2**20


class Hall:
    """Connections, the time, and who was ended."""

    def __init__(self) -> None:
        self.now = 50.0
        self.ended: list[str] = []
        self.streams = Streams(10 * MIB, 600.0, lambda: self.now)

    def admit(self, who: str, name: str = "") -> Stream:
        """Admit a connection."""
        return self.streams.admit(who, lambda: self.ended.append(name or who))


@pytest.fixture
def hall() -> Hall:
    """Return a hall that is empty."""
    return Hall()


def test_connections_of_one_are_counted(hall: Hall) -> None:
    """One too many is refused, for that principal; one that ends makes room."""
    streams = [hall.admit("me") for _ in range(EACH)]
    with pytest.raises(LimitError, match=f"at most {EACH}"):
        hall.admit("me")
    hall.admit("you")
    hall.streams.remove(streams[0])
    hall.admit("me")


def test_connections_of_all_are_counted() -> None:
    """When there is no place, nobody gets one; others are told, and not kept."""
    streams = Streams(MIB, 600.0, at_most=3)
    for who in ("me", "you", "she"):
        streams.admit(who, lambda: None)
    with pytest.raises(LimitError, match="at most 3"):
        streams.admit("he", lambda: None)


def test_who_never_said_anything_is_ended_sooner(hall: Hall) -> None:
    """Than who did, and is quiet for a while."""
    hall.admit("silent")
    hall.admit("quiet").finish()
    hall.now += STALLED_SECONDS + 1
    hall.streams.expire()
    assert hall.ended == ["silent"]


@pytest.mark.parametrize("state", [State.OPENED, State.RECEIVING, State.SENDING])
def test_who_stands_still_is_ended(hall: Hall, state: State) -> None:
    """In the middle of a message or an answer; a step forward begins time anew."""
    stream = hall.admit("me")
    stream.turn(state)
    hall.now += STALLED_SECONDS
    assert hall.streams.expire() == 0
    stream.turn(state)
    hall.now += STALLED_SECONDS
    assert hall.streams.expire() == 0
    hall.now += 1
    assert hall.streams.expire() == 1
    assert hall.ended == ["me"]


def test_a_byte_at_a_time_is_no_step_forward(hall: Hall) -> None:
    """Who drips a message does not keep a connection by it."""
    stream = hall.admit("drip")
    steady = hall.admit("steady")
    for _ in range(11):
        stream.receive(100)
        steady.receive(2**16)
        hall.now += STALLED_SECONDS / 10
    hall.streams.expire()
    assert hall.ended == ["drip"]


def test_who_computes_is_not_ended_and_who_waits_later(hall: Hall) -> None:
    """An answer takes as long as it takes; silence is ended after its own time."""
    computing = hall.admit("computing")
    hall.admit("waiting").turn(State.WAITING)
    computing.turn(State.COMPUTING)
    hall.now += 600
    assert hall.streams.expire() == 0
    hall.now += 1e6
    hall.streams.expire()
    assert hall.ended == ["waiting"]


def test_a_clock_that_jumps_elsewhere_changes_nothing(hall: Hall) -> None:
    """Nobody is ended while the clock that was handed in stands still."""
    hall.admit("me").turn(State.RECEIVING)
    for _ in range(100):
        assert hall.streams.expire() == 0


def test_bytes_under_way_are_the_principals(hall: Hall) -> None:
    """All connections together; what was answered counts no more; others don't."""
    one, two, other = hall.admit("me"), hall.admit("me"), hall.admit("you")
    one.receive(6 * MIB)
    two.receive(4 * MIB)
    for stream in (one, two):
        with pytest.raises(LimitError, match="10,485,760 bytes"):
            stream.receive(1)
    other.receive(10 * MIB)
    one.turn(State.COMPUTING)
    with pytest.raises(LimitError):
        two.receive(1)  # it is there until it was answered
    one.finish()
    two.receive(6 * MIB)
    hall.streams.remove(two)
    one.receive(10 * MIB)


def test_answers_on_their_way_are_the_principals(hall: Hall) -> None:
    """They count as messages do; one that is alone goes out, however large."""
    one, two = hall.admit("me"), hall.admit("me")
    one.receive(9 * MIB)
    one.answer(7 * MIB)  # what came is gone
    two.receive(3 * MIB)
    with pytest.raises(LimitError, match="10,485,760 bytes"):
        two.answer(4 * MIB)
    with pytest.raises(LimitError):
        two.receive(1)
    one.finish()
    two.answer(99 * MIB)
    with pytest.raises(LimitError):
        one.answer(1)


def test_closing_ends_who_waits_and_admits_nobody(hall: Hall) -> None:
    """What is being answered goes on."""
    busy, idle = hall.admit("busy"), hall.admit("idle")
    busy.turn(State.COMPUTING)
    assert not idle.busy
    hall.streams.close()
    assert hall.ended == ["idle"]
    with pytest.raises(LimitError, match="stops"):
        hall.admit("me")
