"""The process that has an owner's rows: what it does, and what becomes of it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import pytest
from msgspec import structs

from obhut.errors import LimitError, SessionLostError, TransportError
from obhut.protocol.codec import Frame
from obhut.protocol.messages import Deliver, TensorData
from obhut.transports.grpc.following import QUEUED, Followed, Following
from obhut.transports.pipe.parent import Frames
from obhut.transports.pipe.segment import Pool, Segment
from obhut.worker.effects import Delivery, Effect

HEADER = Delivery(
    "sw", Deliver("t", (1,), (TensorData("float32", (1,), 0),), b"policy"), (), 0
)


class Returned(NamedTuple):
    """What a process returns."""

    effects: Sequence[Effect]


class Rows:
    """A process that has the rows, and does as it is told.

    Attributes:
        came: what it was sent, and what it was told not to do of it.
        answers: what it returns, or how it fails; else nothing.
        room: what it has for frames.
    """

    def __init__(self, answers: list[Sequence[Effect] | Exception]) -> None:
        self.came: list[tuple[bytes, tuple[int, ...]]] = []
        self.answers = answers
        self.pool = Pool(0, mapped=False, most=2**20)
        self.closed = threading.Event()
        self.cancelled: list[int] = []
        self.go = threading.Event()
        self.go.set()

    def exchange(
        self,
        sender: str,
        header: bytes,
        frames: Frames,
        now: float,
        *,
        undone: tuple[int, ...] = (),
    ) -> Returned:
        """Do as it is told."""
        assert self.go.wait(15)
        self.came.append((header, undone))
        answer = self.answers.pop(0) if self.answers else ()
        if isinstance(answer, Exception):
            raise answer
        return Returned(answer)

    def cancel(self, number: int) -> None:
        """Take in what is cancelled."""
        self.cancelled.append(number)

    def segment(self, size: int) -> Segment:
        """Return memory."""
        return self.pool.take(size)

    def write(self, segment: Segment, offset: int, data: Frame) -> None:
        """Copy bytes."""
        self.pool.write(segment, offset, data)

    def give_back(self, segment: Segment) -> None:
        """Take memory back."""
        self.pool.give(segment)

    alive = True

    def close(self) -> None:
        """End."""
        self.closed.set()


class Owner:
    """An owner's worker with one session.

    Attributes:
        processes: what was started for it.
        delivered: what was delivered.
        answers: what the next process does.
        fails: why the next process does not start.
    """

    def __init__(self) -> None:
        self.processes: list[Rows] = []
        self.delivered: list[Delivery] = []
        self.answers: list[Sequence[Effect] | Exception] = []
        self.fails: list[Exception] = []
        self.log: list[str] = []
        self.ended = threading.Event()
        self.following = Following(
            self.start, self.deliver, self.log.append, lambda: 0.0, self.ended.set
        )

    def start(self) -> Rows:
        """Start a process."""
        if self.fails:
            raise self.fails.pop()
        self.processes.append(Rows(self.answers))
        return self.processes[-1]

    def deliver(self, deliveries: Iterable[Delivery]) -> None:
        """Deliver."""
        self.delivered += deliveries

    def finish(self) -> None:
        """End it, and wait until it has done all."""
        self.following.end()
        assert self.ended.wait(15)


def spoilt(delivery: Delivery) -> bool:
    """Tell whether a delivery is."""
    return delivery.message.spoilt and delivery.frames == (bytes(4),)


def message(name: bytes, *accepted: Delivery, undone: tuple[int, ...] = ()) -> Followed:
    """Return a batch that was answered."""
    return Followed("me", name, (), undone, accepted)


def test_what_comes_after_its_end_is_spoilt() -> None:
    """What a batch declared that was answered as its session ended."""
    owner = Owner()
    owner.finish()
    owner.following.put(message(b"late", HEADER))
    (late,) = owner.delivered
    assert spoilt(late)


def test_it_does_in_order_what_was_answered() -> None:
    """After the session has ended, too; then its process is ended."""
    owner = Owner()
    owner.following.put(message(b"1"))
    owner.following.put(message(b"2", undone=(3, 4)))
    owner.finish()
    (rows,) = owner.processes
    assert rows.came == [(b"1", ()), (b"2", (3, 4))]
    assert rows.closed.is_set()
    assert owner.log == []


def test_only_what_was_declared_is_delivered() -> None:
    """Other bytes, or more of them, go nowhere; what is lacking is spoilt.

    How it was made is what the header states, whatever comes with the bytes.
    """
    header = replace(HEADER, message=structs.replace(HEADER.message, digests=(b"d",)))
    whole = Delivery("sw", HEADER.message, (bytes(4),), 0)
    other = Delivery("sw", Deliver("u", (1,), HEADER.message.tensors), (bytes(4),), 0)
    more = Delivery("me", HEADER.message, (bytes(4),), 7)
    owner = Owner()
    owner.answers += [[whole, more], [other], []]
    for name in (b"1", b"2", b"3"):
        owner.following.put(message(name, header))
    owner.following.put(message(b"4"))
    owner.finish()
    first, *others = owner.delivered
    assert first == replace(whole, message=header.message)
    assert [spoilt(one) for one in others] == [True, True]


def test_one_that_ends_is_replaced_by_an_empty_one() -> None:
    """What it had to deliver is spoilt; only the owner's log says so."""
    owner = Owner()
    owner.answers.append(SessionLostError("bob", "its process ended (SIGFPE)"))
    owner.following.put(message(b"1", HEADER))
    owner.following.put(message(b"2"))
    owner.finish()
    first, second = owner.processes
    assert first.closed.is_set()
    assert second.came == [(b"2", ())]
    assert [spoilt(one) for one in owner.delivered] == [True]
    assert len(owner.log) == 1
    assert "SIGFPE" in owner.log[0]


def test_one_that_ended_in_between_costs_nothing_but_what_it_had() -> None:
    """What comes next goes to the one that takes its place."""
    owner = Owner()
    segment = owner.following.segment(1)
    owner.following.give_back(segment)
    owner.processes[0].alive = False
    owner.following.put(message(b"1"))
    owner.finish()
    first, second = owner.processes
    assert first.closed.is_set()
    assert first.came == []
    assert second.came == [(b"1", ())]


def test_one_that_does_not_start_spoils_what_it_would_deliver() -> None:
    """It is tried again with the next message."""
    owner = Owner()
    owner.fails += [TransportError("no process"), TransportError("no process")]
    owner.following.put(message(b"1", HEADER))
    owner.following.put(message(b"2"))
    owner.finish()
    assert [rows.came for rows in owner.processes][-1][-1] == (b"2", ())
    assert all(spoilt(one) for one in owner.delivered)


def test_room_is_waited_for() -> None:
    """While there is something to do; nobody is refused for how long that takes."""
    owner = Owner()
    held = owner.following.segment(2**20)
    owner.following.write(held, 0, bytes(2**20))
    (rows,) = owner.processes
    rows.go.clear()
    owner.following.put(message(b"1"))
    wrote = threading.Event()

    def write() -> None:
        segment = owner.following.segment(2**20)
        owner.following.write(segment, 0, bytes(2**20))
        wrote.set()

    threading.Thread(target=write, daemon=True).start()
    assert not wrote.wait(0.05)
    owner.following.give_back(held)
    rows.go.set()
    assert wrote.wait(15)
    owner.finish()


def test_what_never_fits_is_refused() -> None:
    """Nothing is to be done, so there will be no more room."""
    owner = Owner()
    segment = owner.following.segment(2**21)
    with pytest.raises(LimitError):
        owner.following.write(segment, 0, bytes(2**21))
    owner.following.give_back(segment)
    owner.finish()


def test_who_puts_waits_when_much_is_to_be_done() -> None:
    """The queue is bounded."""
    owner = Owner()
    owner.following.segment(1)
    (rows,) = owner.processes
    rows.go.clear()
    done = threading.Event()

    def put() -> None:
        for number in range(QUEUED + 2):
            owner.following.put(message(b"%d" % number))
        done.set()

    threading.Thread(target=put, daemon=True).start()
    assert not done.wait(0.05)
    rows.go.set()
    assert done.wait(15)
    owner.finish()
    assert len(rows.came) == QUEUED + 2


def test_what_is_cancelled_is_told_while_it_is_done() -> None:
    """The process hears of it at once, and so does one that takes its place."""
    owner = Owner()
    owner.answers += [TransportError("it ended"), ()]
    owner.following.put(Followed("me", b"first"))
    owner.following.cancel(3)
    owner.following.put(Followed("me", b"second"))
    owner.following.cancel(2)
    owner.finish()
    first, second = owner.processes
    assert [header for header, _ in second.came] == [b"second"]
    assert 3 in second.cancelled
    assert {*first.cancelled} <= {3, 2}
    assert len(owner.log) == 1


def test_cancelling_does_not_wait() -> None:
    """Not for what is under way."""
    owner = Owner()
    owner.following.put(Followed("me", b"first"))
    while not owner.processes:
        threading.Event().wait(0.01)
    (process,) = owner.processes
    process.go.clear()
    owner.following.put(Followed("me", b"second"))
    owner.following.cancel(2)
    assert process.cancelled == [2]
    process.go.set()
    owner.finish()
    assert [header for header, _ in process.came] == [b"first", b"second"]
