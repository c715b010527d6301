"""Deliveries to an aggregator whose record goes on, or does not."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from obhut.errors import LedgerError, RemoteProtocolError, TransportError
from obhut.host.heads import Heads, Seen
from obhut.protocol.codec import Frame
from obhut.protocol.messages import (
    AnyMessage,
    Deliver,
    Done,
    Recall,
    Recalled,
    Refused,
)
from obhut.transports.grpc.remembering import LOOKING, Remembering

DELIVERY = Deliver("s", (), ())
A, B = "a" * 64, "b" * 64


class RecordKeeper:
    """Ways that all lead to one aggregator.

    Attributes:
        record: the hashes with 0, 1, … entries.
        carried: what was, by session.
        dropped: sessions that were.
        answer: what it says instead of its record.
    """

    def __init__(self) -> None:
        self.record = [A]
        self.carried: list[tuple[str, AnyMessage]] = []
        self.dropped: list[str] = []
        self.answer: AnyMessage | TransportError | None = None

    def carry(
        self, session: str, to: str, message: AnyMessage, frames: Sequence[Frame]
    ) -> AnyMessage:
        """Answer."""
        self.carried.append((session, message))
        match message:
            case Recall(number=seen) | Deliver(seen=int(seen)):
                pass
            case _:
                return Done()
        if isinstance(self.answer, TransportError):
            raise self.answer
        if self.answer is not None:
            return self.answer
        then = self.record[seen:][:1]
        return Recalled(len(self.record) - 1, self.record[-1], "".join(then))

    def drop(self, session: str) -> None:
        """Take in that it was."""
        self.dropped.append(session)


class Deliverer:
    """An owner's ways to it, and what it wrote into its log."""

    def __init__(self, folder: Path) -> None:
        self.hub = RecordKeeper()
        self.log: list[str] = []
        self.heads = Heads(folder / "heads")
        self.ways = Remembering(self.hub, self.heads, str.upper, self.log.append)

    def deliver(self) -> AnyMessage:
        """Announce a delivery."""
        return self.ways.carry("s", "hub", DELIVERY, ())

    def end(self) -> None:
        """End the session, and wait until it was looked at."""
        self.ways.drop("s")
        for thread in threading.enumerate():
            if thread.name == LOOKING:
                thread.join(20)


@pytest.fixture
def owner(tmp_path: Path) -> Deliverer:
    """An owner who saw nothing yet."""
    return Deliverer(tmp_path)


def test_it_is_asked_before_each_delivery(owner: Deliverer) -> None:
    """About what was seen last; the first time the log says that there was nothing."""
    assert owner.deliver() == Done()
    owner.hub.record.append(B)
    assert owner.deliver() == Done()
    assert owner.deliver() == Done()
    asked = [one.seen for _, one in owner.hub.carried if isinstance(one, Deliver)]
    assert asked == [0, 0, 1]
    assert owner.ways.carry("s", "hub", DELIVERY, (bytes(4),)) == Done()
    assert owner.hub.carried[-1] == ("s", DELIVERY)
    assert owner.log == [
        "HUB: nothing was seen of its record of releases before; it has 0 entries, and "
        "has to go on from there"
    ]


def test_nothing_is_delivered_to_another_record(owner: Deliverer) -> None:
    """Not a byte follows the header, and it is told that none will."""
    owner.deliver()
    owner.hub.record = [B]
    owner.hub.carried.clear()
    with pytest.raises(LedgerError, match="there it is another"):
        owner.deliver()
    header, spoilt = replace(DELIVERY, seen=0), replace(DELIVERY, spoilt=True)
    assert owner.hub.carried == [("s", header), ("", spoilt)]


def test_who_refuses_to_say_gets_nothing(owner: Deliverer) -> None:
    """The refusal is the answer; what is no answer breaks the protocol."""
    owner.hub.answer = Refused("AccessDeniedError", "ask its owner")
    assert owner.deliver() == owner.hub.answer
    owner.hub.answer = Done()
    with pytest.raises(RemoteProtocolError):
        owner.deliver()
    header, spoilt = replace(DELIVERY, seen=0), replace(DELIVERY, spoilt=True)
    assert [one for _, one in owner.hub.carried] == [header, header, spoilt]


def test_what_was_released_is_seen_at_the_end(owner: Deliverer) -> None:
    """Of a session that delivered, once; of others nobody asks."""
    owner.end()
    assert owner.hub.carried == []
    owner.deliver()
    owner.hub.record.append(B)
    owner.end()
    assert owner.heads.read("hub") == Seen(1, B)
    asked = len(owner.hub.carried)
    owner.end()
    assert len(owner.hub.carried) == asked
    assert owner.hub.dropped == ["s"] * 3


def test_what_is_seen_at_the_end_may_be_another(owner: Deliverer) -> None:
    """The log says so; that nobody is there is no fault."""
    owner.deliver()
    owner.hub.answer = TransportError("nobody is there")
    owner.end()
    assert len(owner.log) == 1
    owner.hub.answer = None
    owner.deliver()
    owner.hub.record = [B]
    owner.end()
    assert owner.log[1].startswith("HUB: ")
    assert "there it is another" in owner.log[1]
