"""The node that routes parcels: who may do what, with children that only pretend."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

import pytest

from obhut.errors import SessionLostError, TransportError
from obhut.protocol import codec
from obhut.protocol.codec import Frame
from obhut.protocol.messages import (
    PROTOCOL_VERSION,
    AnyMessage,
    Batch,
    Close,
    Deliver,
    Done,
    Open,
    Refused,
    Results,
    TensorData,
    Welcome,
)
from obhut.transports.grpc.node import Node


class Departing(NamedTuple):
    """A delivery that a child wants carried."""

    to: str
    header: bytes
    frames: Sequence[Frame]


class Exchanged(NamedTuple):
    """What a child answers."""

    header: bytes
    frames: Sequence[Frame] = ()
    deliveries: Sequence[Departing] = ()


class Script:
    """A child that answers as it is told, and remembers what it was sent.

    Attributes:
        answers: what comes next, a message or an error; else an empty result.
        senders: who sent what it was sent.
        settled: how its deliveries ended.
        closed: how often it was ended.
    """

    def __init__(self) -> None:
        self.answers: list[Exchanged | Exception] = []
        self.senders: list[str] = []
        self.settled: list[Sequence[Refused | None]] = []
        self.closed = 0
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def exchange(
        self, sender: str, header: bytes, frames: Sequence[Frame], now: float
    ) -> Exchanged:
        """Answer as told."""
        self.senders.append(sender)
        self.entered.set()
        assert self.gate.wait(15)
        answer = self.answers.pop(0) if self.answers else said(Results(1, ()))
        if isinstance(answer, Exception):
            raise answer
        return answer

    def settle(
        self, sender: str, session: str, outcomes: Sequence[Refused | None]
    ) -> Exchanged:
        """Remember how deliveries ended."""
        self.settled.append(outcomes)
        return said(Results(1, ()))

    def close(self) -> None:
        """Remember that it was ended."""
        self.closed += 1


def said(message: AnyMessage, *deliveries: Departing) -> Exchanged:
    """Return a child's answer."""
    return Exchanged(codec.encode(message), (), deliveries)


class Stage:
    """A node, its children, and what it wrote into its log."""

    def __init__(self, **more: float) -> None:
        self.children: dict[str, Script] = {}
        self.log: list[str] = []
        self.fails: Exception | None = None
        self.node = Node(
            "bob",
            "bobs-id",
            self.start,
            lambda to: None,
            may_open=lambda sender: sender in ("me", "you"),
            may_deliver=lambda sender: sender == "alice",
            log=self.log.append,
            **more,  # type: ignore[arg-type] # numbers of one kind or the other
        )

    def start(self, session: str) -> Script:
        """Start a child."""
        if self.fails is not None:
            raise self.fails
        child = self.children[session] = Script()
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
def stage() -> Stage:
    """A node where me and you may open, and alice may deliver."""
    return Stage()


def kind(reply: AnyMessage) -> str:
    """Return by which name a message was refused."""
    assert isinstance(reply, Refused), reply
    return reply.kind


DELIVERY = Deliver("s", (1,), (TensorData("float32", (1,), 0),))


def test_a_session_is_its_openers(stage: Stage) -> None:
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


def test_who_may_not_is_refused_before_a_child_is_there(stage: Stage) -> None:
    """Who may not open a session costs no process."""
    assert kind(stage.open("mallory", "s")) == "AccessDeniedError"
    assert not stage.children
    assert stage.log == ["mallory: AccessDeniedError: bob opens no session for mallory"]


def test_who_may_not_deliver_does_not_reach_the_child(stage: Stage) -> None:
    """Neither the session's owner nor a stranger; who may reaches it."""
    stage.open("me", "s")
    for sender in ("me", "you", "mallory"):
        assert kind(stage.tell(sender, DELIVERY, [bytes(4)])) == "AccessDeniedError"
    assert stage.children["s"].senders == ["me"]
    stage.children["s"].answers.append(said(Done()))
    assert stage.tell("alice", DELIVERY, [bytes(4)]) == Done()
    assert stage.children["s"].senders == ["me", "alice"]


def test_a_delivery_into_no_session_is_refused(stage: Stage) -> None:
    """A delivery that comes too late hears so."""
    assert isinstance(stage.tell("alice", DELIVERY, [bytes(4)]), Refused)


@pytest.mark.parametrize("header", [b"", b"\xc1", b"\x00" * 20, bytes(range(256))])
def test_bytes_that_are_no_message_reach_no_child(stage: Stage, header: bytes) -> None:
    """They are refused by name, and so is what only workers say."""
    stage.open("me", "s")
    reply, _ = stage.node.exchange("me", header, ())
    assert kind(codec.decode(reply)) == "RemoteProtocolError"
    assert kind(stage.tell("me", Done())) == "RemoteProtocolError"
    assert kind(stage.tell("me", Welcome(1))) == "RemoteProtocolError"
    assert stage.children["s"].senders == ["me"]


def test_close_ends_the_child_once(stage: Stage) -> None:
    """It is answered, and the session is gone."""
    stage.open("me", "s")
    assert stage.tell("me", Close("s")) == Done()
    assert isinstance(stage.tell("me", Close("s")), Refused)
    assert stage.children["s"].closed == 1
    assert stage.node.busy() == 0


def test_sessions_of_each_client_are_limited() -> None:
    """One too many is refused; closing one, or being another, helps."""
    stage = Stage(sessions_each=2)
    stage.open("me", "a")
    stage.open("me", "b")
    assert kind(stage.open("me", "c")) == "LimitError"
    assert stage.open("you", "d") == Welcome(0)
    stage.tell("me", Close("a"))
    assert stage.open("me", "c") == Welcome(0)


def test_opening_again_is_the_same_session(stage: Stage) -> None:
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
    stage = Stage()

    def start(session: str) -> Script:
        child = stage.children[session] = Script()
        child.answers.append(answer)
        return child

    stage.node._start = start
    assert isinstance(stage.open("me", "s"), Refused)
    assert stage.node.busy() == 0
    assert stage.children["s"].closed == 1


def test_a_child_that_can_not_be_started_is_said(stage: Stage) -> None:
    """The client hears it, and the next attempt may work."""
    stage.fails = TransportError("the fork server ended")
    assert kind(stage.open("me", "s")) == "TransportError"
    assert stage.node.busy() == 0
    stage.fails = None
    assert stage.open("me", "s") == Welcome(0)


def test_a_lost_child_costs_its_session(stage: Stage) -> None:
    """Its client is told why, the others go on."""
    stage.open("me", "s")
    stage.open("you", "t")
    stage.children["s"].answers.append(SessionLostError("bob", "SIGKILL"))
    reply = stage.tell("me", Batch("s", 1, ()))
    assert kind(reply) == "SessionLostError"
    assert isinstance(reply, Refused)
    assert "SIGKILL" in reply.text
    assert isinstance(stage.tell("me", Batch("s", 1, ())), Refused)
    assert stage.tell("you", Batch("t", 1, ())) == Results(1, ())


def test_sessions_that_nobody_uses_end() -> None:
    """Those of whom nothing was heard for the time; a child is not left behind."""
    stage = Stage(session_seconds=0.0)
    stage.open("me", "s")
    stage.node.expire()
    assert stage.children["s"].closed == 1
    assert isinstance(stage.tell("me", Batch("s", 1, ())), Refused)
    kept = Stage(session_seconds=60.0)
    kept.open("me", "s")
    kept.node.expire()
    assert kept.tell("me", Batch("s", 1, ())) == Results(1, ())


def test_a_session_that_computes_does_not_expire() -> None:
    """A batch may take longer than a session is kept unused."""
    stage = Stage(session_seconds=0.0)
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
        stage.node.expire()
        assert child.closed == 0
    finally:
        child.gate.set()
        thread.join(15)
    assert replies == [Results(1, ())]


def test_closing_ends_every_child(stage: Stage) -> None:
    """None is left behind."""
    stage.open("me", "s")
    stage.open("you", "t")
    stage.node.close()
    assert [child.closed for child in stage.children.values()] == [1, 1]


def test_a_delivery_to_nobody_is_settled_as_refused(stage: Stage) -> None:
    """The child hears how each delivery ended before its batch is answered."""
    stage.open("me", "s")
    departing = Departing("nobody", codec.encode(DELIVERY), (bytes(4),))
    stage.children["s"].answers.append(said(Results(1, ()), departing, departing))
    assert stage.tell("me", Batch("s", 1, ())) == Results(1, ())
    ((first, second),) = stage.children["s"].settled
    assert first is not None
    assert first == second
    assert "nobody" in first.text


def test_a_worker_delivers_to_its_own_sessions(stage: Stage) -> None:
    """Without a connection, and whoever else may deliver."""
    stage.open("me", "s")
    stage.open("me", "t")
    departing = Departing("bobs-id", codec.encode(DELIVERY), (bytes(4),))
    stage.children["t"].answers.append(said(Results(1, ()), departing))
    stage.children["s"].answers.append(said(Done()))
    stage.tell("me", Batch("t", 1, ()))
    assert stage.children["t"].settled == [[None]]
    assert stage.children["s"].senders == ["me", "bobs-id"]
