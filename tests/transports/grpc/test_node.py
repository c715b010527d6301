"""The node that routes parcels: who may do what, with children that only pretend."""

from __future__ import annotations

import os
import threading
import tracemalloc
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import NamedTuple

import pytest

from obhut.errors import (
    AccessDeniedError,
    LimitError,
    ObhutError,
    PeerNotFoundError,
    RemoteProtocolError,
    SessionLostError,
    TransportError,
    WorkerNotFoundError,
)
from obhut.host.quotas import Quotas
from obhut.protocol import codec
from obhut.protocol.codec import Frame
from obhut.protocol.messages import (
    PROTOCOL_VERSION,
    AnyMessage,
    Batch,
    Cancel,
    Close,
    Count,
    Deliver,
    Done,
    Fetch,
    Free,
    Open,
    Progress,
    Put,
    Refused,
    Results,
    Run,
    TensorData,
    Watch,
    Welcome,
)
from obhut.transports.grpc.arriving import Arriving
from obhut.transports.grpc.node import Node
from obhut.transports.grpc.sessions import ANSWERS, Starting
from obhut.transports.pipe.parent import InSegment
from obhut.transports.pipe.segment import Pool, Segment, places
from obhut.worker.effects import Delivery, Effect

LIMIT = 2**22


class Exchanged(NamedTuple):
    """What a child answers."""

    header: bytes
    frames: Sequence[Frame] = ()
    effects: Sequence[Effect] = ()

    @property
    def message(self) -> AnyMessage:
        """The reply."""
        return codec.decode(self.header, self.frames)


class ScriptedChild:
    """A child that answers as it is told, and remembers what it was sent.

    Attributes:
        answers: what comes next, a message or an error; else an empty result.
        senders: who sent what it was sent.
        settled: how its deliveries ended.
        closed: how often it was ended.
        cancelled: the batches that it was told not to go on with.
        seconds: the processor time that it says it has used.
        done: how many thousandths it says are done.
        memory: what it may hold.
        stored: the frames that came in memory of its own.
        given_back: memory that was taken for it and came to nothing.
    """

    def __init__(self) -> None:
        self.answers: list[Exchanged | Exception] = []
        self.senders: list[str] = []
        self.settled: list[Sequence[Refused | None]] = []
        self.closed = 0
        self.cancelled: list[int] = []
        self.seconds = 0.0
        self.done: int | None = 0
        self.memory: int | None = None
        self.pool = Pool(0, mapped=False, most=LIMIT)
        self.stored: list[InSegment] = []
        self.given_back: list[Segment] = []
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def exchange(
        self,
        sender: str,
        header: bytes,
        frames: Sequence[Frame] | InSegment,
        now: float,
    ) -> Exchanged:
        """Answer as told."""
        self.senders.append(sender)
        if isinstance(frames, InSegment):
            self.stored.append(frames)
        self.entered.set()
        assert self.gate.wait(15)
        answer = self.answers.pop(0) if self.answers else said(Results(1, ()))
        if isinstance(answer, Exception):
            raise answer
        return answer

    def progress(self) -> int | None:
        """Say how much is done."""
        return self.done

    def settle(
        self, sender: str, session: str, outcomes: Sequence[Refused | None]
    ) -> Exchanged:
        """Remember how deliveries ended."""
        self.settled.append(outcomes)
        return said(Results(1, ()))

    def segment(self, size: int) -> Segment:
        """Return memory."""
        return self.pool.take(size)

    def write(self, segment: Segment, offset: int, data: Frame) -> None:
        """Copy bytes into it."""
        self.pool.write(segment, offset, data)

    def give_back(self, segment: Segment) -> None:
        """Take memory back."""
        self.given_back.append(segment)
        self.pool.give(segment)

    blameless = False

    def cancel(self, number: int) -> None:
        """Remember which batch was cancelled."""
        self.cancelled.append(number)

    def used(self) -> float:
        """Return the processor time that it says it has used."""
        return self.seconds

    def close(self) -> None:
        """Remember that it was ended."""
        self.closed += 1
        self.gate.set()


def said(message: AnyMessage, *effects: Effect) -> Exchanged:
    """Return a child's answer."""
    return Exchanged(codec.encode(message), (), effects)


class Ways:
    """Ways to other workers, that remember what they were asked.

    Attributes:
        answer: what comes of each delivery, a reply or an error.
        carried: the sessions that delivered something.
        dropped: the sessions that ended.
        fails: an error of the machine that the next delivery meets.
    """

    def __init__(self) -> None:
        self.answer: AnyMessage | ObhutError | None = None
        self.fails: Exception | None = None
        self.carried: list[str] = []
        self.dropped: list[str] = []

    def carry(
        self, session: str, to: str, message: AnyMessage, frames: Sequence[Frame]
    ) -> AnyMessage:
        """Answer as told."""
        self.carried.append(session)
        if self.fails is not None:
            fails, self.fails = self.fails, None
            raise fails
        if self.answer is None:
            raise WorkerNotFoundError(to, ())
        if isinstance(self.answer, ObhutError):
            raise self.answer
        return self.answer

    def drop(self, session: str) -> None:
        """Remember that a session ended."""
        self.dropped.append(session)


GENEROUS = Quotas(64)


class NodeStage:
    """A node, its children, and what it wrote into its log.

    Attributes:
        now: what its clock says.
    """

    def __init__(
        self,
        quotas: Quotas = GENEROUS,
        session_seconds: float = 600.0,
        answer_seconds: float = 15.0,
    ) -> None:
        self.now = 1000.0
        self.ways = Ways()
        self.children: dict[str, ScriptedChild] = {}
        self.log: list[str] = []
        self.fails: Exception | None = None
        self.node = Node(
            "bob",
            "bobs-id",
            lambda sender: Starting(self.start),
            self.ways,
            may_open=lambda sender: sender in ("me", "you"),
            may_deliver=lambda sender: sender == "alice",
            quotas=quotas,
            session_seconds=session_seconds,
            answer_seconds=answer_seconds,
            clock=lambda: self.now,
            log=self.log.append,
        )

    def start(self, session: str, memory: int | None) -> ScriptedChild:
        """Start a child."""
        if self.fails is not None:
            raise self.fails
        child = self.children[session] = ScriptedChild()
        child.memory = memory
        child.answers.append(said(Welcome(0)))
        return child

    def tell(
        self, sender: str, message: AnyMessage, frames: Sequence[Frame] = ()
    ) -> AnyMessage:
        """Send a message and return the reply."""
        header, back = self.node.exchange(sender, codec.encode(message), frames)
        return codec.decode(header, back)

    def open(self, sender: str, session: str) -> AnyMessage:
        """Open a session."""
        return self.tell(sender, Open(session, PROTOCOL_VERSION, "2"))


@pytest.fixture
def stage() -> NodeStage:
    """A node where me and you may open, and alice may deliver."""
    return NodeStage()


def kind(reply: AnyMessage) -> str:
    """Return by which name a message was refused."""
    assert isinstance(reply, Refused), reply
    return reply.kind


DELIVERY = Deliver("s", (1,), (TensorData("float32", (1,), 0),))


def test_a_session_is_its_openers(stage: NodeStage) -> None:
    """The child hears who the certificate says it is, and nobody else reaches it."""
    assert stage.open("me", "s") == Welcome(0)
    assert stage.tell("me", Batch("s", 1, ())) == Results(1, ())
    for there, nowhere in (
        (Batch("s", 1, ()), Batch("?", 1, ())),
        (Close("s"), Close("?")),
    ):
        reply = stage.tell("you", there)
        assert isinstance(reply, Refused)
        assert reply == stage.tell("you", nowhere)
    assert isinstance(stage.open("you", "s"), Refused)
    assert stage.children["s"].senders == ["me", "me"]
    assert stage.children["s"].closed == 0


def test_who_may_not_is_refused_before_a_child_is_there(stage: NodeStage) -> None:
    """Who may not open a session costs no process."""
    assert kind(stage.open("mallory", "s")) == "AccessDeniedError"
    assert not stage.children
    said = 'ask its owner to add "mallory" to sessions under [access] in its'
    assert stage.log == [
        'to let mallory in, add "mallory" to sessions under [access] in its '
        "configuration",
        f"mallory: AccessDeniedError: bob opens no session for you: {said} "
        "configuration",
    ]


def test_who_may_not_deliver_does_not_reach_the_child(stage: NodeStage) -> None:
    """Neither the session's owner nor a stranger; who may reaches it."""
    stage.open("me", "s")
    for sender in ("me", "you", "mallory"):
        assert kind(stage.tell(sender, DELIVERY, [bytes(4)])) == "AccessDeniedError"
    assert stage.children["s"].senders == ["me"]
    stage.children["s"].answers.append(said(Done()))
    assert stage.tell("alice", DELIVERY, [bytes(4)]) == Done()
    assert stage.children["s"].senders == ["me", "alice"]


def test_a_delivery_into_no_session_is_refused(stage: NodeStage) -> None:
    """A delivery that comes too late hears so."""
    assert isinstance(stage.tell("alice", DELIVERY, [bytes(4)]), Refused)


@pytest.mark.parametrize("header", [b"", b"\xc1", b"\x00" * 20, bytes(range(256))])
def test_bytes_that_are_no_message_reach_no_child(
    stage: NodeStage, header: bytes
) -> None:
    """They are refused by name, and so is what only workers say."""
    stage.open("me", "s")
    reply, _ = stage.node.exchange("me", header, ())
    assert kind(codec.decode(reply)) == "RemoteProtocolError"
    assert kind(stage.tell("me", Done())) == "RemoteProtocolError"
    assert kind(stage.tell("me", Welcome(1))) == "RemoteProtocolError"
    assert stage.children["s"].senders == ["me"]


def test_close_ends_the_child_once(stage: NodeStage) -> None:
    """It is answered, and the session is gone."""
    stage.open("me", "s")
    assert stage.tell("me", Close("s")) == Done()
    assert isinstance(stage.tell("me", Close("s")), Refused)
    assert stage.children["s"].closed == 1
    assert stage.node.busy() == 0


def test_sessions_of_each_client_are_limited() -> None:
    """One too many is refused; closing one, or being another, helps."""
    stage = NodeStage(Quotas(2))
    stage.open("me", "a")
    stage.open("me", "b")
    assert kind(stage.open("me", "c")) == "LimitError"
    assert stage.open("you", "d") == Welcome(0)
    stage.tell("me", Close("a"))
    assert stage.open("me", "c") == Welcome(0)


def test_opening_again_is_the_same_session(stage: NodeStage) -> None:
    """A client whose answer was lost gets the child that it has."""
    stage.open("me", "s")
    child = stage.children["s"]
    child.answers.append(said(Welcome(0)))
    assert stage.open("me", "s") == Welcome(0)
    assert stage.children["s"] is child


@pytest.mark.parametrize(
    "answer",
    [
        said(Refused("RemoteProtocolError", "another version")),
        SessionLostError("bob", "its process ended"),
    ],
    ids=["refused", "lost"],
)
def test_a_session_that_did_not_begin_is_not_there(
    answer: Exchanged | Exception,
) -> None:
    """Its child is ended, and its name is free."""
    stage = NodeStage()

    def start(session: str, memory: int | None) -> ScriptedChild:
        child = stage.children[session] = ScriptedChild()
        child.answers.append(answer)
        return child

    stage.node._start = lambda sender: Starting(start)
    assert isinstance(stage.open("me", "s"), Refused)
    assert stage.node.busy() == 0
    assert stage.children["s"].closed == 1


def test_a_child_that_can_not_be_started_is_said(stage: NodeStage) -> None:
    """The client hears it, and the next attempt may work."""
    stage.fails = TransportError("the fork server ended")
    assert kind(stage.open("me", "s")) == "TransportError"
    assert stage.node.busy() == 0
    stage.fails = None
    assert stage.open("me", "s") == Welcome(0)


def test_a_lost_child_costs_its_session(stage: NodeStage) -> None:
    """Its client is told why, the others go on."""
    stage.open("me", "s")
    stage.open("you", "t")
    stage.children["s"].answers.append(SessionLostError("bob", "SIGKILL"))
    reply = stage.tell("me", Batch("s", 1, ()))
    assert kind(reply) == "SessionLostError"
    assert isinstance(reply, Refused)
    assert "SIGKILL" in reply.text
    assert stage.tell("me", Batch("s", 2, ())) == reply  # it was on its way already
    assert stage.tell("you", Batch("t", 1, ())) == Results(1, ())


def test_an_error_of_the_machine_is_answered(stage: NodeStage) -> None:
    """It is refused once, by name only, where a client would else try for a minute."""
    stage.open("me", "s")
    stage.children["s"].answers.append(OSError(28, "No space left: 7.625"))
    reply = stage.tell("me", Batch("s", 1, ()))
    assert kind(reply) == "InternalError"
    assert isinstance(reply, Refused)
    assert "OSError" in reply.text
    assert "7.625" not in reply.text
    assert "No space left" in stage.log[-1]
    assert stage.tell("me", Batch("s", 1, ())) == Results(1, ())


def test_sessions_that_nobody_uses_end() -> None:
    """Those of whom nothing was heard for the time; a child is not left behind."""
    stage = NodeStage(session_seconds=60.0)
    stage.open("me", "s")
    stage.now += 60
    stage.node.expire()
    assert stage.tell("me", Batch("s", 1, ())) == Results(1, ())
    stage.now += 61
    stage.node.expire()
    assert stage.children["s"].closed == 1
    reply = stage.tell("me", Batch("s", 1, ()))
    assert isinstance(reply, Refused)
    assert "it expired" in reply.text
    assert stage.node.busy() == 0


def test_why_a_session_ended_is_told_to_its_owner_only() -> None:
    """Anybody else hears of it what they hear of one that never was."""
    stage = NodeStage(session_seconds=60.0)
    stage.open("me", "s")
    stage.now += 61
    stage.node.expire()
    mine, theirs, none = (
        stage.tell(who, Batch(name, 1, ()))
        for who, name in (("me", "s"), ("you", "s"), ("you", "?"))
    )
    assert isinstance(mine, Refused)
    assert mine != theirs == none


def test_who_attends_a_session_keeps_it() -> None:
    """Its owner, without a message, for as long as they are connected and then some."""
    stage = NodeStage(session_seconds=60.0)
    stage.open("me", "s")
    assert not stage.node.attend("you", "s", "yours")
    assert not stage.node.attend("me", "?", "mine")
    assert stage.node.attend("me", "s", "mine")
    assert (stage.node.attends("mine"), stage.node.attends("yours")) == (True, False)
    for then in (lambda: None, lambda: stage.node.hung_up("mine")):
        stage.now += 1000
        then()
        stage.node.expire()
        assert stage.children["s"].closed == 0
    stage.now += 61
    stage.node.expire()
    assert stage.children["s"].closed == 1


def test_a_session_that_computes_does_not_expire() -> None:
    """A batch may take longer than a session is kept unused."""
    stage = NodeStage(session_seconds=60.0)
    stage.open("me", "s")
    child = stage.children["s"]
    child.entered.clear()
    child.gate.clear()
    replies: list[AnyMessage] = []
    thread = threading.Thread(
        target=lambda: replies.append(stage.tell("me", Batch("s", 1, ())))
    )
    thread.start()
    try:
        assert child.entered.wait(15)
        stage.now += 1000
        stage.node.expire()
        assert child.closed == 0
    finally:
        child.gate.set()
        thread.join(15)
    assert replies == [Results(1, ())]


def test_a_session_for_which_bytes_come_does_not_expire() -> None:
    """Neither while a message comes that is longer under way than it is kept unused."""
    stage = NodeStage(session_seconds=60.0)
    stage.open("me", "s")
    header, sizes = large("s", 300_000)
    place = stage.node.place("me", header, sizes)
    for offset in range(0, 300_000, 100_000):
        stage.now += 50
        place.write(offset, memoryview(bytes(100_000)))
        stage.node.expire()
    assert stage.children["s"].closed == 0
    reply, _ = stage.node.exchange("me", header, place.frames())
    assert codec.decode(reply) == Results(1, ())


def test_a_session_that_is_delivered_to_does_not_expire() -> None:
    """Its owner waits for others; what is refused keeps nothing alive."""
    stage = NodeStage(session_seconds=60.0)
    stage.open("me", "s")
    for answer in (Done(), Done(), Refused("CallError", "not expected")):
        stage.now += 50
        stage.node.expire()
        stage.children["s"].answers.append(said(answer))
        assert stage.tell("alice", DELIVERY, [bytes(4)]) == answer
    stage.now += 50
    stage.node.expire()
    assert stage.children["s"].closed == 1


def test_closing_ends_every_child(stage: NodeStage) -> None:
    """None is left behind."""
    stage.open("me", "s")
    stage.open("you", "t")
    stage.node.close()
    assert [child.closed for child in stage.children.values()] == [1, 1]


def test_a_delivery_to_nobody_is_settled_as_refused(stage: NodeStage) -> None:
    """The child hears how each delivery ended before its batch is answered."""
    stage.open("me", "s")
    departing = Delivery("nobody", DELIVERY, (bytes(4),), 0)
    stage.children["s"].answers.append(said(Results(1, ()), departing, departing))
    assert stage.tell("me", Batch("s", 1, ())) == Results(1, ())
    ((first, second),) = stage.children["s"].settled
    assert first is not None
    assert first == second
    assert "nobody" in first.text


def test_a_worker_delivers_to_its_own_sessions(stage: NodeStage) -> None:
    """Without a connection, and whoever else may deliver."""
    stage.open("me", "s")
    stage.open("me", "t")
    departing = Delivery("bobs-id", DELIVERY, (bytes(4),), 0)
    stage.children["t"].answers.append(said(Results(1, ()), departing))
    stage.children["s"].answers += [said(Done()), said(Done())]
    stage.tell("me", Batch("t", 1, ()))
    assert stage.children["t"].settled == [[None]]
    stage.node.finish(20)
    assert stage.children["s"].senders == ["me", "bobs-id", "bobs-id"]


# --- what a requester is told of a delivery ---------------------------------------


SECRET = ("hospital-of-x", "10.20.30.40:7000", "other-peer")


@pytest.mark.parametrize(
    ("error", "kind_"),
    [
        (PeerNotFoundError("them", SECRET), "WorkerNotFoundError"),
        (WorkerNotFoundError("them", SECRET), "WorkerNotFoundError"),
        (TransportError(" at ".join(SECRET)), "TransportError"),
        (AccessDeniedError(" at ".join(SECRET)), "AccessDeniedError"),
        (LimitError(" at ".join(SECRET)), "LimitError"),
        (RemoteProtocolError(" at ".join(SECRET)), "RemoteProtocolError"),
        (ObhutError(" at ".join(SECRET)), "InternalError"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_no_peer_and_no_address_is_told(
    stage: NodeStage, error: ObhutError, kind_: str
) -> None:
    """Who named a worker learns that it was not reached; the log has the rest."""
    stage.open("me", "s")
    stage.ways.answer = error
    departing = Delivery("them", DELIVERY, (bytes(4),), 0)
    stage.children["s"].answers.append(said(Results(1, ()), departing))
    stage.tell("me", Batch("s", 1, ()))
    ((refused,),) = stage.children["s"].settled
    assert refused is not None
    assert refused.kind == kind_
    assert "them" in refused.text
    assert not [word for word in SECRET if word in refused.text]
    assert any(SECRET[0] in line for line in stage.log)


def test_what_the_other_worker_says_is_passed_on(stage: NodeStage) -> None:
    """A refusal of the worker that was named is its own words."""
    stage.open("me", "s")
    stage.ways.answer = Refused("LimitError", "full")
    departing = Delivery("them", DELIVERY, (bytes(4),), 0)
    stage.children["s"].answers.append(said(Results(1, ()), departing))
    stage.tell("me", Batch("s", 1, ()))
    assert stage.children["s"].settled == [[Refused("LimitError", "full")]]
    assert stage.ways.carried == ["s"]


def test_a_session_that_ends_drops_its_ways(stage: NodeStage) -> None:
    """Nothing goes on being delivered for it."""
    stage.open("me", "s")
    stage.open("me", "t")
    stage.tell("me", Close("s"))
    assert stage.ways.dropped == ["s"]


# --- cancelling -------------------------------------------------------------------


def cancel(stage: NodeStage, sender: str, number: int, session: str = "s") -> None:
    """Cancel a session's batch, and those before it."""
    stage.node.cancel(sender, codec.encode(Cancel(session, number)))


@pytest.fixture
def computing(stage: NodeStage) -> Iterator[ScriptedChild]:
    """A child that computes its session's first batch until its gate is open."""
    stage.open("me", "s")
    child = stage.children["s"]
    child.entered.clear()
    child.gate.clear()
    thread = threading.Thread(target=stage.tell, args=("me", Batch("s", 1, ())))
    thread.start()
    assert child.entered.wait(15)
    yield child
    child.gate.set()
    thread.join(15)


def test_a_batch_that_is_computed_is_cancelled(
    stage: NodeStage, computing: ScriptedChild
) -> None:
    """The child hears of it meanwhile, and what it delivers is given up."""
    cancel(stage, "me", 1)
    assert computing.cancelled == [1]
    assert stage.ways.dropped == ["s"]


def test_a_batch_is_cancelled_that_comes_later(stage: NodeStage) -> None:
    """What cancels a batch may overtake it; the next one is not meant."""
    stage.open("me", "s")
    child = stage.children["s"]
    cancel(stage, "me", 2)
    assert child.cancelled == []
    for number in (1, 2, 3):
        stage.tell("me", Batch("s", number, ()))
    assert child.cancelled == [1, 2]


def test_what_was_done_before_is_not_cancelled(
    stage: NodeStage, computing: ScriptedChild
) -> None:
    """Cancelling what was answered long ago leaves what is computed now."""
    cancel(stage, "me", 0)
    assert computing.cancelled == []


@pytest.mark.parametrize(
    ("sender", "header"),
    [
        ("you", codec.encode(Cancel("s", 1))),
        ("alice", codec.encode(Cancel("s", 1))),
        ("me", codec.encode(Cancel("?", 1))),
        ("me", codec.encode(Batch("s", 1, ()))),
        ("me", b""),
        ("me", b"\xc1"),
    ],
)
def test_nobody_cancels_for_others(
    stage: NodeStage, computing: ScriptedChild, sender: str, header: bytes
) -> None:
    """Nor anything that is no such message; the operator's log says so."""
    before = len(stage.log)
    stage.node.cancel(sender, header)
    assert computing.cancelled == []
    assert stage.ways.dropped == []
    assert len(stage.log) == before + 1


# --- watching ---------------------------------------------------------------------


def watched(stage: NodeStage, sender: str, number: int, session: str = "s") -> object:
    """Return what somebody is told of how much of a batch is done."""
    return codec.decode(stage.node.watch(sender, codec.encode(Watch(session, number))))


def test_what_is_computed_is_done_in_part(
    stage: NodeStage, computing: ScriptedChild
) -> None:
    """Its child says how much; of what comes later nothing is done."""
    computing.done = 400
    assert watched(stage, "me", 1) == Progress(400)
    assert watched(stage, "me", 2) == Progress(0)


def test_what_was_computed_is_done(stage: NodeStage) -> None:
    """All of it, whatever the child said last."""
    stage.open("me", "s")
    stage.children["s"].done = 400
    stage.tell("me", Batch("s", 1, ()))
    assert watched(stage, "me", 1) == Progress(1_000)
    assert watched(stage, "me", 2) == Progress(0)


def test_of_a_child_that_tells_nothing_nothing_is_told(
    stage: NodeStage, computing: ScriptedChild
) -> None:
    """Not even of what was computed, or has not come."""
    computing.done = None
    assert [watched(stage, "me", n) for n in (0, 1, 2)] == [Progress(None)] * 3


@pytest.mark.parametrize(
    ("sender", "header", "error"),
    [
        ("you", codec.encode(Watch("s", 1)), "SessionLostError"),
        ("alice", codec.encode(Watch("s", 1)), "SessionLostError"),
        ("me", codec.encode(Watch("?", 1)), "SessionLostError"),
        ("me", codec.encode(Cancel("s", 1)), "RemoteProtocolError"),
        ("me", b"\xc1", "RemoteProtocolError"),
    ],
)
def test_nobody_watches_others(
    stage: NodeStage, computing: ScriptedChild, sender: str, header: bytes, error: str
) -> None:
    """They hear what is heard of a session that is not there; the log says so."""
    before = len(stage.log)
    reply = codec.decode(stage.node.watch(sender, header))
    assert isinstance(reply, Refused)
    assert reply.kind == error
    assert len(stage.log) == before + 1
    assert watched(stage, "you", 1) == watched(stage, "you", 1, "no session")


# --- quotas -----------------------------------------------------------------------


MINUTE = Run("aten.ones.default", [[1]], {}, 1, 1, False)


def test_whose_time_is_used_up_comes_back_to_their_session() -> None:
    """A connection that broke is no reason to lose what can still be fetched."""
    stage = NodeStage(Quotas(2, requester_seconds=1.0))
    stage.open("me", "a")
    stage.node._accounts.charge("me", 2.0)
    assert not isinstance(stage.open("me", "a"), Refused)
    assert isinstance(stage.open("me", "b"), Refused)


def test_all_sessions_together_are_limited() -> None:
    """One requester can't take all there are, and all can't take more."""
    stage = NodeStage(Quotas(2, all_sessions=3))
    stage.open("me", "a")
    stage.open("me", "b")
    assert stage.open("you", "c") == Welcome(0)
    reply = stage.open("you", "d")
    assert isinstance(reply, Refused)
    assert reply.kind == "LimitError"
    assert "try again later" in reply.text
    stage.tell("me", Close("a"))
    assert stage.open("you", "d") == Welcome(0)


MIB = 2**20


def test_memory_of_all_sessions_is_reserved() -> None:
    """The last session gets what is left; without enough, none; closing gives back."""
    stage = NodeStage(Quotas(9, None, 400 * MIB, requester_memory=1000 * MIB))
    for name, expected in (("a", 400), ("b", 400), ("c", 200)):
        assert stage.open("me", name) == Welcome(0)
        assert stage.children[name].memory == expected * MIB
    reply = stage.open("me", "d")
    assert isinstance(reply, Refused)
    assert "close some" in reply.text
    assert "requester_memory" in reply.text
    assert stage.open("you", "e") == Welcome(0)
    stage.tell("me", Close("a"))
    assert stage.open("me", "d") == Welcome(0)
    assert stage.children["d"].memory == 400 * MIB


def test_memory_of_all_requesters_is_reserved() -> None:
    """Two requesters together get no more than there is."""
    stage = NodeStage(Quotas(9, None, 400 * MIB, all_memory=500 * MIB))
    stage.open("me", "a")
    stage.open("you", "b")
    assert stage.children["b"].memory == 100 * MIB
    reply = stage.open("you", "c")
    assert isinstance(reply, Refused)
    assert "all_memory" in reply.text


def test_memory_is_given_back_by_whatever_end() -> None:
    """A session that expired, crashed, or never began holds no memory."""
    stage = NodeStage(Quotas(9, None, MIB, requester_memory=MIB), session_seconds=60.0)
    stage.open("me", "expires")
    stage.now += 61
    stage.node.expire()
    stage.open("me", "crashes")
    stage.node.lost("crashes", stage.children["crashes"])
    stage.fails = TransportError("the fork server ended")
    stage.open("me", "never")
    stage.fails = None
    assert stage.open("me", "last") == Welcome(0)
    assert kind(stage.open("me", "more")) == "LimitError"


def test_time_is_the_principals() -> None:
    """Closing and opening again does not give time back; a day does.

    What was computed can still be fetched, and others are not concerned.
    """
    stage = NodeStage(Quotas(9, requester_seconds=100.0), session_seconds=1e9)
    stage.open("me", "a")
    stage.open("me", "b")
    stage.children["a"].seconds = 60.0
    assert stage.tell("me", Batch("a", 1, (MINUTE,))) == Results(1, ())
    stage.tell("me", Close("a"))
    stage.children["b"].seconds = 50.0
    stage.tell("me", Batch("b", 1, (MINUTE,)))  # was begun in time
    reply = stage.tell("me", Batch("b", 2, (MINUTE, Fetch(1))))
    assert isinstance(reply, Refused)
    assert reply.kind == "LimitError"
    for words in ("100 seconds a day", "24 hours", "requester_seconds"):
        assert words in reply.text
    assert kind(stage.open("me", "c")) == "LimitError"
    for requests in ((), (Fetch(1),), (Free((1,)), Count())):
        assert stage.tell("me", Batch("b", 2, requests)) == Results(1, ())
    stage.open("you", "d")
    assert stage.tell("you", Batch("d", 1, (MINUTE,))) == Results(1, ())
    stage.now += 86_401 + 300  # time is counted in parts of five minutes
    assert stage.tell("me", Batch("b", 2, (MINUTE,))) == Results(1, ())
    assert stage.open("me", "c") == Welcome(0)


def test_time_is_charged_while_it_is_used() -> None:
    """A message that does not end is charged, and ended with words when it is due."""
    stage = NodeStage(Quotas(9, requester_seconds=100.0))
    stage.open("me", "s")
    child = stage.children["s"]
    child.entered.clear()
    child.gate.clear()
    child.answers.append(SessionLostError("bob", "it was closed"))
    replies: list[AnyMessage] = []
    thread = threading.Thread(
        target=lambda: replies.append(stage.tell("me", Batch("s", 1, (MINUTE,))))
    )
    thread.start()
    try:
        assert child.entered.wait(15)
        child.seconds = 99.0
        stage.node.expire()
        assert child.closed == 0
        child.seconds = 101.0
        stage.node.expire()
        assert child.closed == 1
    finally:
        child.gate.set()
        thread.join(15)
    (reply,) = replies
    assert isinstance(reply, Refused)
    assert reply.kind == "SessionLostError"
    assert "100 seconds a day" in reply.text
    assert kind(stage.open("me", "t")) == "LimitError"


def test_time_in_the_background_is_charged() -> None:
    """A child that computes though nobody asks it to is charged and ended too."""
    stage = NodeStage(Quotas(9, requester_seconds=100.0))
    stage.open("me", "quiet")
    stage.open("me", "busy")
    stage.children["busy"].seconds = 101.0
    stage.node.expire()
    assert stage.children["busy"].closed == 1
    assert stage.children["quiet"].closed == 0  # what it holds can be fetched
    stage.open("you", "s")
    stage.node.expire()
    assert stage.children["s"].closed == 0


def test_time_that_each_message_is_charged_with_is_seen() -> None:
    """Who only asks for what computes nothing is ended too, once it has cost enough."""
    stage = NodeStage(Quotas(9, requester_seconds=10.0))
    stage.open("me", "s")
    child = stage.children["s"]
    for _ in range(30):
        if not child.closed:
            child.seconds += 0.9
            stage.tell("me", Batch("s", 1, (Fetch(1),)))
            child.seconds += 0.9
            stage.tell("me", Batch("s", 1, (Fetch(1),)))
            stage.node.expire()
    assert child.closed == 1
    assert 10.0 <= child.seconds < 12.0
    reply = stage.tell("me", Batch("s", 1, (Fetch(1),)))
    assert isinstance(reply, Refused)
    assert "10 seconds a day" in reply.text


def test_reading_a_long_message_is_the_senders_time() -> None:
    """It is charged, and once time is used up no other is read; a short one is."""
    stage = NodeStage(Quotas(9, requester_seconds=1e-4))
    stage.open("me", "s")
    stage.open("you", "t")
    long = Batch("s", 1, (Free(tuple(range(200_000))),))
    assert stage.tell("me", long) == Results(1, ())
    assert kind(stage.tell("me", long)) == "LimitError"
    assert kind(stage.tell("me", Batch("s", 1, (MINUTE,)))) == "LimitError"
    assert stage.tell("me", Batch("s", 1, (Fetch(1),))) == Results(1, ())
    assert stage.tell("you", Batch("t", 1, (MINUTE,))) == Results(1, ())


def test_opening_again_waits_for_a_child_that_starts(stage: NodeStage) -> None:
    """Who is cut off while it starts gets the session, not the news of its loss."""
    begun, go = threading.Event(), threading.Event()

    def start(session: str, memory: int | None) -> ScriptedChild:
        child = NodeStage.start(stage, session, memory)
        child.answers.append(said(Welcome(0)))
        begun.set()
        assert go.wait(15)
        return child

    stage.node._start = lambda sender: Starting(start)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(stage.open, "me", "s")
        assert begun.wait(15)
        again = pool.submit(stage.open, "me", "s")
        try:
            with pytest.raises(TimeoutError):
                again.result(0.2)
        finally:
            go.set()
        assert (first.result(15), again.result(15)) == (Welcome(0), Welcome(0))
    assert stage.children["s"].closed == 0


def test_the_end_of_a_former_child_ends_nothing() -> None:
    """Who watches processes may tell it when the session has another one already."""
    stage = NodeStage(Quotas(9, requester_crashes=1))
    stage.open("me", "s")
    former = stage.children["s"]
    former.answers.append(SessionLostError("bob", "SIGSEGV"))
    assert kind(stage.tell("me", Batch("s", 1, ()))) == "SessionLostError"
    assert stage.open("me", "s") == Welcome(0)
    stage.node.lost("s", former)
    assert stage.children["s"].closed == 0
    assert stage.tell("me", Batch("s", 1, ())) == Results(1, ())
    assert stage.open("me", "t") == Welcome(0)


def test_answers_on_their_way_are_few() -> None:
    """Who asks again and again and reads nothing waits, and the child is not asked."""
    stage = NodeStage(answer_seconds=0.05)
    stage.open("me", "s")
    header = codec.encode(Batch("s", 1, (Fetch(1),)))
    sent = [ExitStack() for _ in range(ANSWERS + 1)]
    for one in sent[:-1]:
        reply, _ = stage.node.exchange("me", header, (), one)
        assert codec.decode(reply) == Results(1, ())
    asked = len(stage.children["s"].senders)
    reply, _ = stage.node.exchange("me", header, (), sent[-1])
    assert kind(codec.decode(reply)) == "LimitError"
    assert len(stage.children["s"].senders) == asked
    sent[0].close()
    sent[-1].close()
    reply, _ = stage.node.exchange("me", header, (), sent[-1])
    assert codec.decode(reply) == Results(1, ())


def test_who_waits_for_an_answer_to_go_is_answered(stage: NodeStage) -> None:
    """One that was sent, or given up, makes room at once."""
    stage.open("me", "s")
    header = codec.encode(Batch("s", 1, (Fetch(1),)))
    sent = [ExitStack() for _ in range(ANSWERS + 1)]
    for one in sent[:-1]:
        stage.node.exchange("me", header, (), one)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(stage.node.exchange, "me", header, (), sent[-1])
        with pytest.raises(TimeoutError):
            waits.result(0.1)
        sent[0].close()
        reply, _ = waits.result(10)
    assert codec.decode(reply) == Results(1, ())


@pytest.mark.parametrize(
    "error",
    [OSError(24, "Too many open files: /home/bob/peers"), MemoryError(), KeyError("x")],
    ids=lambda error: type(error).__name__,
)
def test_whatever_fails_in_a_delivery_is_its_outcome(
    stage: NodeStage, error: Exception
) -> None:
    """The others are carried, the child hears of all, and no path is told."""
    stage.open("me", "s")
    stage.ways.fails = error
    departing = Delivery("them", DELIVERY, (bytes(4),), 0)
    stage.children["s"].answers.append(said(Results(1, ()), departing, departing))
    assert stage.tell("me", Batch("s", 1, ())) == Results(1, ())
    ((first, second),) = stage.children["s"].settled
    assert first == Refused("InternalError", "bob could not deliver to them")
    assert second is not None
    assert second.kind == "WorkerNotFoundError"
    assert any(type(error).__name__ in line for line in stage.log)


def test_who_crashes_often_waits() -> None:
    """One too many crashes in an hour: no new session until the first is forgotten."""
    stage = NodeStage(Quotas(9, requester_crashes=2))
    for number in range(3):
        assert stage.open("me", f"{number}") == Welcome(0)
        stage.children[f"{number}"].answers.append(SessionLostError("bob", "SIGSEGV"))
        assert kind(stage.tell("me", Batch(f"{number}", 1, ()))) == "SessionLostError"
        # The same end, told by who watches processes.
        stage.node.lost(f"{number}", stage.children[f"{number}"])
        stage.now += 60
    reply = stage.open("me", "s")
    assert isinstance(reply, Refused)
    assert reply.kind == "LimitError"
    for words in ("3 of yours crashed", "2 may", "57 minutes", "requester_crashes"):
        assert words in reply.text
    assert stage.open("you", "t") == Welcome(0)
    assert "too many sessions of me crashed" in stage.log
    stage.now += 57 * 60 + 15
    assert stage.open("me", "s") == Welcome(0)


def test_how_a_child_ended_is_told_whoever_notices_first(stage: NodeStage) -> None:
    """Who watches processes may be faster than who waits for the answer."""

    class Watched(ScriptedChild):
        def exchange(
            self, sender: str, header: bytes, frames: Sequence[Frame], now: float
        ) -> Exchanged:
            if self.senders:
                stage.node.lost("s", self)
            return super().exchange(sender, header, frames, now)

    child = Watched()
    child.answers = [said(Welcome(0)), SessionLostError("bob", "SIGSEGV")]
    stage.node._start = lambda sender: Starting(lambda session, memory: child)
    stage.open("me", "s")
    reply = stage.tell("me", Batch("s", 1, ()))
    assert isinstance(reply, Refused)
    assert "SIGSEGV" in reply.text
    assert stage.log.count("session s of me crashed") == 1


def test_what_is_ended_here_is_no_crash() -> None:
    """Closing, expiring and refusing a version don't count."""
    stage = NodeStage(Quotas(9, requester_crashes=0), session_seconds=60.0)
    stage.open("me", "closed")
    stage.tell("me", Close("closed"))
    stage.node.lost("closed", stage.children["closed"])
    stage.open("me", "expired")
    stage.now += 61
    stage.node.expire()
    assert stage.open("me", "s") == Welcome(0)
    stage.node.lost("s", stage.children["s"])
    assert kind(stage.open("me", "t")) == "LimitError"


def test_a_delivery_to_a_session_that_begins_ends_nothing(stage: NodeStage) -> None:
    """Who delivers before a child is there is refused, and that is all."""
    early: list[AnyMessage] = []

    def start(session: str, memory: int | None) -> ScriptedChild:
        early.append(stage.tell("alice", DELIVERY, [bytes(4)]))
        return NodeStage.start(stage, session, memory)

    stage.node._start = lambda sender: Starting(start)
    assert stage.open("me", "s") == Welcome(0)
    assert [kind(one) for one in early] == ["SessionLostError"]
    assert stage.tell("me", Batch("s", 1, ())) == Results(1, ())


# --- frames that are stored as they come ------------------------------------------


def large(session: str, *sizes: int) -> tuple[bytes, tuple[int, ...]]:
    """Return the header of a batch that brings frames of these sizes."""
    puts = tuple(
        Put(k + 1, TensorData("uint8", (size,), k)) for k, size in enumerate(sizes)
    )
    return codec.encode(Batch(session, 1, puts)), sizes


def come(place: Arriving, data: bytes) -> Arriving:
    """Let bytes come in pieces."""
    for offset in range(0, len(data), 100_000):
        place.write(offset, memoryview(data)[offset : offset + 100_000])
    return place


def test_frames_are_stored_as_they_come(stage: NodeStage) -> None:
    """They are in the child's own memory, aligned, when the last has come."""
    stage.open("me", "s")
    header, sizes = large("s", 3, 300_000, 70_001, 200_000)
    frames = [bytes([k + 1]) * size for k, size in enumerate(sizes)]
    place = come(stage.node.place("me", header, sizes), b"".join(frames))
    reply, _ = stage.node.exchange("me", header, place.frames())
    assert codec.decode(reply) == Results(1, ())
    (stored,) = stage.children["s"].stored
    assert stored.sizes == sizes
    offsets, _ = places(sizes)
    for offset, frame in zip(offsets, frames, strict=True):
        assert os.pread(stored.segment.fd, len(frame), offset) == frame
    assert stage.children["s"].given_back == []


@pytest.mark.parametrize(
    ("sender", "header", "error"),
    [
        ("you", large("s", 100_000)[0], "SessionLostError"),
        ("me", large("?", 100_000)[0], "SessionLostError"),
        ("me", large("s", 100_001)[0], "RemoteProtocolError"),
        ("me", b"\xc1", "RemoteProtocolError"),
        ("me", codec.encode(Open("t", PROTOCOL_VERSION, "2")), "RemoteProtocolError"),
        (
            "mallory",
            codec.encode(Deliver("s", (1,), (TensorData("uint8", (100_000,), 0),))),
            "AccessDeniedError",
        ),
    ],
    ids=["another's", "nobody's", "lies", "noise", "no frames", "stranger"],
)
def test_who_may_not_gets_no_memory(
    stage: NodeStage, sender: str, header: bytes, error: str
) -> None:
    """What is refused by its header is thrown away, and refused when it has come."""
    stage.open("me", "s")
    child = stage.children["s"]
    place = come(stage.node.place(sender, header, (100_000,)), bytes(100_000))
    reply, _ = stage.node.exchange(sender, header, place.frames())
    assert kind(codec.decode(reply)) == error
    assert child.senders == ["me"]
    assert not child.stored
    assert not child.given_back
    assert stage.node.busy() == 1


def test_what_is_cut_off_gives_its_memory_back(stage: NodeStage) -> None:
    """A stream that ends in the middle of a frame leaves the session as it was."""
    stage.open("me", "s")
    header, sizes = large("s", 300_000)
    place = come(stage.node.place("me", header, sizes), bytes(250_000))
    place.drop()
    place.drop()
    child = stage.children["s"]
    assert len(child.given_back) == 1
    assert not child.stored
    assert stage.tell("me", Batch("s", 1, ())) == Results(1, ())


def test_more_than_a_session_may_have_is_refused_when_it_has_come(
    stage: NodeStage,
) -> None:
    """It costs the session nothing, and the memory is free for what is allowed."""
    stage.open("me", "s")
    header, sizes = large("s", LIMIT + 1)
    place = come(stage.node.place("me", header, sizes), bytes(LIMIT + 1))
    child = stage.children["s"]
    assert len(child.given_back) == 1, "before it has come"
    reply, _ = stage.node.exchange("me", header, place.frames())
    assert kind(codec.decode(reply)) == "LimitError"
    header, sizes = large("s", LIMIT)
    place = come(stage.node.place("me", header, sizes), bytes(LIMIT))
    reply, _ = stage.node.exchange("me", header, place.frames())
    assert codec.decode(reply) == Results(1, ())


def test_a_long_message_is_not_kept_while_its_frames_come(stage: NodeStage) -> None:
    """A header of megabytes, decoded, costs its receiver nothing but a moment."""
    stage.open("me", "s")
    run = Run("aten.sum.default", [[None] * 50_000] * 20, {}, 2, 1, False)
    header = codec.encode(Batch("s", 1, (Put(1, TensorData("uint8", (9,), 0)), run)))
    tracemalloc.start()
    try:
        place = stage.node.place("me", header, (9,))
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most > 7 * MIB
    assert held < MIB
    place = come(place, bytes(9))
    reply, _ = stage.node.exchange("me", header, place.frames())
    assert codec.decode(reply) == Results(1, ())


def test_one_sessions_memory_never_comes_to_another(stage: NodeStage) -> None:
    """Also not to a session of the same name that began meanwhile."""
    stage.open("me", "s")
    old = stage.children["s"]
    header, sizes = large("s", 100_000)
    place = come(stage.node.place("me", header, sizes), bytes(100_000))
    stage.tell("me", Close("s"))
    stage.open("me", "s")
    new = stage.children["s"]
    assert new is not old
    reply, _ = stage.node.exchange("me", header, place.frames())
    assert kind(codec.decode(reply)) == "SessionLostError"
    assert not new.stored
    assert not new.given_back
    assert len(old.given_back) == 1
    assert stage.tell("me", Batch("s", 1, ())) == Results(1, ())


def test_a_delivery_is_stored_while_the_child_is_busy(stage: NodeStage) -> None:
    """Its bytes come although a batch of the session's owner is being computed."""
    stage.open("me", "s")
    child = stage.children["s"]
    child.entered.clear()
    child.gate.clear()
    replies: list[AnyMessage] = []
    thread = threading.Thread(
        target=lambda: replies.append(stage.tell("me", Batch("s", 1, ())))
    )
    thread.start()
    try:
        assert child.entered.wait(15)
        data = TensorData("uint8", (100_000,), 0)
        header = codec.encode(Deliver("s", (1,), (data,)))
        place = come(stage.node.place("alice", header, (100_000,)), bytes(100_000))
    finally:
        child.gate.set()
        thread.join(15)
    child.answers.append(said(Done()))
    reply, _ = stage.node.exchange("alice", header, place.frames())
    assert codec.decode(reply) == Done()
    assert replies == [Results(1, ())]
    assert len(child.stored) == 1
