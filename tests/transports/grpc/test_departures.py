"""Deliveries whose header was accepted: their bytes go, and are waited for."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from obhut.errors import TransportError
from obhut.protocol import codec
from obhut.protocol.codec import Frame
from obhut.protocol.messages import (
    Batch,
    Cancel,
    Count,
    Deliver,
    Done,
    Expect,
    Fetch,
    Move,
    Refused,
    Results,
    TensorData,
)
from obhut.transports.grpc.awaited import COMING_SECONDS
from obhut.transports.grpc.departures import REMIND_SECONDS, Departures
from obhut.worker.effects import Delivery

from .test_node import NodeStage, said

FLOAT = TensorData("float32", (1,), 0)
HEADER = Deliver("s", (1,), (FLOAT,))
BYTES = (bytes(4),)


def delivery(id: int) -> Delivery:
    """Return a delivery of one number to alice."""
    return Delivery("alice", replace(HEADER, ids=(id,)), BYTES, 0)


class Peer:
    """Another worker, which takes what comes as it is told.

    Attributes:
        came: the id of what came, with how many frames, or whether it was spoilt.
        answer: a refusal or an error, for bytes that come.
        open: whether it takes bytes; they wait until then.
    """

    def __init__(self) -> None:
        self.came: list[tuple[int, int | str]] = []
        self.answer: Refused | Exception | None = None
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.now = 0.0
        self.log: list[tuple[str, str]] = []
        self.departures = Departures(
            self.carry, lambda *line: self.log.append(line), lambda: self.now
        )

    def carry(
        self, to: str, message: Deliver, frames: tuple[Frame, ...]
    ) -> Refused | None:
        """Take a message."""
        (id,) = message.ids
        if frames:
            self.entered.set()
            assert self.open.wait(15)
        self.came.append((id, "spoilt" if message.spoilt else len(frames)))
        if isinstance(self.answer, Exception) and frames:
            raise self.answer
        return self.answer if frames and isinstance(self.answer, Refused) else None


@pytest.fixture
def peer() -> Iterator[Peer]:
    """A peer that takes all."""
    peer = Peer()
    yield peer
    peer.open.set()
    peer.departures.finish(15)
    assert not peer.departures.has("s")


def test_a_sessions_deliveries_go_in_order(peer: Peer) -> None:
    """What is added meanwhile too; adding waits for nothing."""
    peer.open.clear()
    peer.departures.add("s", [delivery(1), delivery(2)])
    assert peer.departures.has("s")
    assert not peer.departures.has("t")
    peer.departures.add("s", [delivery(3)])
    peer.departures.finish(0.01)
    assert peer.came == []
    peer.open.set()
    peer.departures.wait("s", lambda: False)
    assert peer.came == [(1, 1), (2, 1), (3, 1)]


def test_who_waits_may_stop(peer: Peer) -> None:
    """When something else has happened, and it was said."""
    peer.open.clear()
    peer.departures.add("s", [delivery(1)])
    ended = threading.Event()
    waits = threading.Thread(target=peer.departures.wait, args=("s", ended.is_set))
    waits.start()
    ended.set()
    peer.departures.look()
    waits.join(15)
    assert not waits.is_alive()
    assert peer.came == []


@pytest.mark.parametrize(
    "answer", [TransportError("nobody is there"), Refused("LimitError", "too much")]
)
def test_what_can_not_go_is_said_to_be_spoilt(
    peer: Peer, answer: Refused | Exception
) -> None:
    """The owner learns why, the other worker only that; the next one goes."""
    peer.answer = answer
    peer.departures.add("s", [delivery(1)])
    peer.departures.finish(15)
    assert peer.came == [(1, 1), (1, "spoilt")]
    ((to, why),) = peer.log
    assert to == "alice"
    assert why in ("TransportError: nobody is there", "LimitError: too much")
    peer.answer = None
    peer.departures.add("s", [delivery(2)])
    peer.departures.finish(15)
    assert peer.came[2:] == [(2, 1)]


def test_what_waits_is_said_to_be_still_to_come(peer: Peer) -> None:
    """Not what is under way; and not before it is time."""
    peer.open.clear()
    peer.departures.add("s", [delivery(1), delivery(2), delivery(3)])
    assert peer.entered.wait(15)
    peer.now = REMIND_SECONDS - 1
    peer.departures.remind()
    assert peer.came == []
    peer.now = REMIND_SECONDS + 1
    peer.departures.remind()
    reminded = [one for one in threading.enumerate() if one.name == "obhut-reminds"]
    for thread in reminded:
        thread.join(15)
    assert peer.came == [(2, 0), (3, 0)]
    peer.departures.remind()
    peer.open.set()
    peer.departures.finish(15)
    assert peer.came[2:] == [(1, 1), (2, 1), (3, 1)]


@pytest.fixture
def stage() -> NodeStage:
    """A worker where I may open sessions, and alice may deliver."""
    return NodeStage()


def test_what_is_promised_is_said_to_be_still_to_come(peer: Peer) -> None:
    """As long as it takes; it is waited for before the worker stops."""
    peer.departures.promise("s", [delivery(1), delivery(2)])
    assert not peer.departures.has("s")
    for _ in range(2):
        peer.now += REMIND_SECONDS + 1
        peer.departures.remind()
        for thread in threading.enumerate():
            if thread.name == "obhut-reminds":
                thread.join(15)
    assert peer.came == [(1, 0), (2, 0)] * 2
    peer.departures.add("s", [delivery(1)])
    peer.departures.wait("s", lambda: False)
    assert peer.came[4:] == [(1, 1)]
    peer.departures.finish(0.01)
    peer.departures.add("s", [delivery(2)])
    peer.departures.finish(15)
    assert peer.came[5:] == [(2, 1)]


# --- at a worker ----------------------------------------------------------------------


def expecting(stage: NodeStage) -> None:
    """Open a session that expects something, of which the header has come."""
    stage.open("me", "s")
    stage.tell("me", Batch("s", 1, (Expect((1, 2), "alice"),)))
    stage.children["s"].answers.append(said(Done()))
    assert stage.tell("alice", HEADER) == Done()


def begun(stage: NodeStage, batch: Batch) -> threading.Thread:
    """Send a batch from another thread; return the thread once the batch waits."""
    stage.children["s"].entered.clear()
    thread = threading.Thread(target=stage.tell, args=("me", batch))
    thread.start()
    while not stage.node._sessions["s"].lock.locked():
        assert thread.is_alive()
    return thread


def deliver(stage: NodeStage, spoilt: bool = False) -> None:
    """Let the bytes come, or that they will not."""
    stage.children["s"].answers.append(said(Done()))
    message = replace(HEADER, spoilt=spoilt)
    assert stage.tell("alice", message, () if spoilt else BYTES) == Done()


@pytest.mark.parametrize("spoilt", [False, True])
@pytest.mark.parametrize("request_", [Fetch(1), Count(), Move((1,), "x", "x", (1,))])
def test_who_reads_what_is_to_come_waits(
    stage: NodeStage, request_: Fetch | Count | Move, spoilt: bool
) -> None:
    """Until the bytes come, or it is said that they will not."""
    expecting(stage)
    waiting = begun(stage, Batch("s", 2, (request_,)))
    assert not stage.children["s"].entered.wait(0.05)
    deliver(stage, spoilt)
    waiting.join(15)
    assert stage.children["s"].senders == ["me", "me", "alice", "alice", "me"]


def test_others_do_not_wait(stage: NodeStage) -> None:
    """A batch that does not read it goes on, and one that comes afterwards."""
    expecting(stage)
    stage.tell("me", Batch("s", 2, (Fetch(2),)))
    deliver(stage)
    stage.tell("me", Batch("s", 3, (Fetch(1), Count())))
    assert stage.children["s"].senders.count("me") == 4


def test_who_is_cancelled_waits_no_more(stage: NodeStage) -> None:
    """The batch goes to the child as one of which nothing is computed."""
    expecting(stage)
    waiting = begun(stage, Batch("s", 2, (Fetch(1),)))
    stage.node.cancel("me", codec.encode(Cancel("s", 2)))
    waiting.join(15)
    assert set(stage.children["s"].cancelled) == {2}
    assert stage.children["s"].senders[-1] == "me"


def test_who_is_ended_waits_no_more(stage: NodeStage) -> None:
    """Its session is gone."""
    expecting(stage)
    waiting = begun(stage, Batch("s", 2, (Fetch(1),)))
    stage.node.close()
    waiting.join(15)
    assert not waiting.is_alive()


def test_what_is_not_heard_of_is_not_waited_for(stage: NodeStage) -> None:
    """After a time; a header that comes again, or bytes, begin it anew."""
    expecting(stage)
    stage.now += COMING_SECONDS - 1
    stage.children["s"].answers.append(said(Done()))
    assert stage.tell("alice", HEADER) == Done()
    stage.now += COMING_SECONDS + 1
    stage.children["s"].answers += [said(Done()), said(Results(2, ()))]
    stage.tell("me", Batch("s", 2, (Fetch(1),)))
    assert stage.children["s"].senders[-2:] == ["alice", "me"]
    assert any("nothing was heard of it any more" in line for line in stage.log)


def test_a_header_that_is_refused_is_not_waited_for(stage: NodeStage) -> None:
    """Nor one that nobody may send."""
    stage.open("me", "s")
    stage.children["s"].answers.append(said(Refused("RemoteProtocolError", "no")))
    assert isinstance(stage.tell("alice", HEADER), Refused)
    assert isinstance(stage.tell("mallory", HEADER), Refused)
    stage.tell("me", Batch("s", 1, (Fetch(1),)))


def test_a_batch_that_delivers_waits_for_the_deliveries_before(
    stage: NodeStage,
) -> None:
    """One that delivers nothing does not."""
    stage.open("me", "t")
    peer = Peer()
    peer.open.clear()
    stage.node._departures = peer.departures
    stage.ways.answer = Done()
    stage.children["t"].answers.append(said(Results(1, ()), delivery(1)))
    stage.tell("me", Batch("t", 1, (Move((1,), "alice", "s", (1,)),)))
    assert stage.children["t"].settled == [[None]]
    assert peer.entered.wait(15)
    stage.tell("me", Batch("t", 2, (Fetch(2),)))
    move = Batch("t", 3, (Move((2,), "alice", "s", (2,)),))
    thread = threading.Thread(target=stage.tell, args=("me", move))
    stage.children["t"].entered.clear()
    thread.start()
    assert not stage.children["t"].entered.wait(0.05)
    peer.open.set()
    thread.join(15)
    assert stage.children["t"].entered.is_set()
    assert peer.came == [(1, 1)]
