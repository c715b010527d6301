"""A worker's ways to its peers: one delivery each, whatever others are stuck in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from obhut.errors import ObhutError, TransportError, WorkerNotFoundError
from obhut.protocol.codec import Frame
from obhut.protocol.messages import AnyMessage, Deliver, Done
from obhut.transports.grpc.ways import Ways
from obhut.worker.effects import Parcel

DELIVERY = Deliver("s", (), ())


class Reply:
    """A reply that comes when a test says so."""

    def __init__(self) -> None:
        self.future: Future[Parcel] = Future()

    def done(self) -> bool:
        """Tell whether it is there."""
        return self.future.done()

    def result(self, timeout: float | None = None) -> Parcel:
        """Wait for it."""
        return self.future.result(timeout)

    def when_done(self, call: Callable[[], None]) -> None:
        """Call when it is there."""
        self.future.add_done_callback(lambda _: call())

    def cancel(self) -> None:
        """Do nothing."""


class Line:
    """A way to a worker.

    Attributes:
        replies: to what was submitted.
        closed: whether it was.
        given_up: whether it is beyond mending.
    """

    eager = mends = True
    shared = False
    worker = address = "them"

    def __init__(self, network: Dialled) -> None:
        self.network = network
        self.replies: list[Reply] = []
        self.closed = False
        self.given_up = False

    def submit(
        self,
        message: AnyMessage,
        frames: Sequence[Frame] = (),
    ) -> Reply:
        """Take a message."""
        reply = Reply()
        self.replies.append(reply)
        if self.network.answers:
            reply.future.set_result(Parcel(Done()))
        self.network.submitted.release()
        return reply

    def close(self) -> None:
        """Give up, as a real one does."""
        self.closed = True
        for reply in self.replies:
            if not reply.done():
                reply.future.set_exception(TransportError("it is closed"))


class Dialled:
    """All ways that were made.

    Attributes:
        answers: whether what is submitted is answered at once.
        submitted: one for each message.
    """

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.answers = True
        self.submitted = threading.Semaphore(0)

    def make(self, to: str) -> Line | None:
        """Make a way to all but nobody."""
        if to == "nobody":
            return None
        self.lines.append(Line(self))
        return self.lines[-1]


@pytest.fixture
def network() -> Dialled:
    """Return a network without ways."""
    return Dialled()


def test_a_free_way_is_used_again(network: Dialled) -> None:
    """Deliveries one after the other need one connection, to each worker its own."""
    ways = Ways(network.make)
    for session in ("s", "t", "s"):
        assert ways.carry(session, "them", DELIVERY) == Done()
    assert len(network.lines) == 1
    ways.carry("s", "others", DELIVERY)
    assert len(network.lines) == 2
    ways.close()
    assert [line.closed for line in network.lines] == [True, True]


def test_a_stuck_delivery_holds_up_nobody(network: Dialled) -> None:
    """Another session's delivery to the same worker goes past it."""
    ways = Ways(network.make)
    network.answers = False
    with ThreadPoolExecutor(1) as pool:
        stuck = pool.submit(ways.carry, "s", "them", DELIVERY)
        assert network.submitted.acquire(timeout=15)
        network.answers = True
        assert ways.carry("t", "them", DELIVERY) == Done()
        assert not stuck.done()
        network.lines[0].replies[0].future.set_result(Parcel(Done()))
        assert stuck.result(15) == Done()
    assert not network.lines[0].closed
    ways.close()


def test_a_session_that_ends_gives_up_its_delivery(network: Dialled) -> None:
    """Who carries it hears so, and the way is not used again."""
    ways = Ways(network.make)
    network.answers = False
    with ThreadPoolExecutor(2) as pool:
        mine = pool.submit(ways.carry, "s", "them", DELIVERY)
        assert network.submitted.acquire(timeout=15)
        other = pool.submit(ways.carry, "t", "them", DELIVERY)
        assert network.submitted.acquire(timeout=15)
        ways.drop("s")
        with pytest.raises(TransportError, match="closed"):
            mine.result(15)
        assert not other.done()
        ways.drop("t")
        with pytest.raises(TransportError):
            other.result(15)
    network.answers = True
    ways.carry("s", "them", DELIVERY)
    assert len(network.lines) == 3
    ways.close()


def test_a_session_that_ends_gives_up_the_way_being_made(network: Dialled) -> None:
    """It ended while a way was looked for: nothing is sent on it."""
    begun, go = threading.Event(), threading.Event()

    def make(to: str) -> Line | None:
        begun.set()
        assert go.wait(15)
        return network.make(to)

    ways = Ways(make, each=1)
    with ThreadPoolExecutor(2) as pool:
        makes = pool.submit(ways.carry, "s", "them", DELIVERY)
        assert begun.wait(15)
        waits = pool.submit(ways.carry, "s", "them", DELIVERY)
        with pytest.raises(TimeoutError):
            waits.result(0.1)
        ways.drop("s")
        with pytest.raises(TransportError, match="session ended"):
            waits.result(15)
        go.set()
        with pytest.raises(TransportError, match="session ended"):
            makes.result(15)
    assert [(line.closed, line.replies) for line in network.lines] == [(True, [])]
    assert ways.carry("t", "them", DELIVERY) == Done()
    ways.close()


def test_a_delivery_that_times_out_is_dropped(network: Dialled) -> None:
    """Its way is closed, so that nothing comes of it later, and the next is new."""
    ways = Ways(network.make, seconds=0.05)
    network.answers = False
    with pytest.raises(TransportError, match=r"0\.05 seconds"):
        ways.carry("s", "them", DELIVERY)
    assert network.lines[0].closed
    network.answers = True
    assert ways.carry("s", "them", DELIVERY) == Done()
    assert len(network.lines) == 2
    ways.close()


def test_ways_to_one_worker_are_few(network: Dialled) -> None:
    """Who finds none free waits, and gets the next that is; or not in time."""
    ways = Ways(network.make, each=1, seconds=15)
    network.answers = False
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ways.carry, "s", "them", DELIVERY)
        assert network.submitted.acquire(timeout=15)
        second = pool.submit(ways.carry, "t", "them", DELIVERY)
        network.answers = True
        network.lines[0].replies[0].future.set_result(Parcel(Done()))
        assert (first.result(15), second.result(15)) == (Done(), Done())
    assert len(network.lines) == 1
    ways.close()


def test_what_is_beyond_mending_is_not_used_again(network: Dialled) -> None:
    """Neither a way that was refused nor one to a peer who was removed."""
    known = {"them"}
    ways = Ways(network.make, known.__contains__)
    ways.carry("s", "them", DELIVERY)
    network.lines[0].given_up = True
    ways.carry("s", "them", DELIVERY)
    known.clear()
    ways.carry("s", "them", DELIVERY)
    assert [line.closed for line in network.lines] == [True, True, False]
    ways.close()


def test_there_is_no_way_to_nobody(network: Dialled) -> None:
    """It is said, again and again, and takes no place among those there may be."""
    ways = Ways(network.make, each=1)
    for _ in range(3):
        with pytest.raises(WorkerNotFoundError):
            ways.carry("s", "nobody", DELIVERY)
    ways.close()
    with pytest.raises(ObhutError, match="stops"):
        ways.carry("s", "them", DELIVERY)
