"""A node under a policy: whatever a child says, the parent looks at it first."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from obhut.errors import LedgerError, LimitError, UnsafeFileError
from obhut.guard.audit import Auditor
from obhut.guard.ledger import Head
from obhut.guard.policy import Quorum, encode
from obhut.host.gate import Gate
from obhut.host.quotas import Quotas
from obhut.protocol import codec
from obhut.protocol.codec import Frame
from obhut.protocol.messages import (
    PROTOCOL_VERSION,
    AnyMessage,
    Batch,
    Deliver,
    Done,
    Failed,
    Fetched,
    Open,
    Recall,
    Recalled,
    Refused,
    ReleaseQuestion,
    Results,
    Returned,
    TensorData,
)
from obhut.transports.grpc.node import Node
from obhut.transports.grpc.sessions import Starting
from obhut.worker.effects import AskRelease, Delivery, Effect

from .test_node import Exchanged, ScriptedChild, Ways, said

POLICY = Quorum(
    aggregators=("sw",),
    contributors=("alice", "bob", "carol"),
    requesters=("me",),
    refusals=2,
    programs="any",
)
FLOAT = TensorData("float32", (1,), 0)


class GatedNode:
    """A node under a policy, with children that say what a test tells them."""

    def __init__(self, gate: Gate) -> None:
        self.ways = Ways()
        self.ways.answer = Done()
        self.children: dict[str, ScriptedChild] = {}
        self.log: list[str] = []
        self.node = Node(
            "bob",
            "bobs-id",
            lambda sender: Starting(self.start),
            self.ways,
            may_open=lambda sender: True,
            may_deliver=lambda sender: True,
            quotas=Quotas(64),
            log=self.log.append,
            gate=gate,
        )
        self.number = 0
        opened = self.tell("me", Open("s", PROTOCOL_VERSION, "2"))
        assert not isinstance(opened, Refused)
        self.child = self.children["s"]

    def start(self, session: str, memory: int | None) -> ScriptedChild:
        """Start a child."""
        child = self.children[session] = ScriptedChild()
        return child

    def tell(
        self, sender: str, message: AnyMessage, frames: Sequence[Frame] = ()
    ) -> AnyMessage:
        """Send a message and return the reply, as it leaves."""
        header, back = self.node.exchange(sender, codec.encode(message), frames)
        return codec.decode(header, back)

    def answered(self, answer: Exchanged) -> AnyMessage:
        """Send a batch that the child answers so; return what leaves."""
        self.child.answers = [answer]
        self.number += 1
        return self.tell("me", Batch("s", self.number, ()))


@pytest.fixture
def bob() -> GatedNode:
    """An owner's node."""
    return GatedNode(Gate(POLICY))


@pytest.fixture
def sw() -> GatedNode:
    """An aggregator's node."""
    return GatedNode(Gate(POLICY, Auditor("sw", POLICY)))


def departing(to: str, message: AnyMessage, frames: Sequence[Frame] = ()) -> Effect:
    """Return what a child wants done."""
    if isinstance(message, ReleaseQuestion):
        return AskRelease(message, 0)
    assert isinstance(message, Deliver)
    return Delivery(to, message, tuple(frames), 0)


def delivery(policy: bytes) -> Deliver:
    """Return a delivery that carries a policy."""
    return Deliver("t", (1,), (FLOAT,), policy)


VALUES = (
    Exchanged(codec.encode(Results(1, (Fetched(0, FLOAT),))), (b"\0\0\0\0",)),
    Exchanged(codec.encode(Results(1, (Returned(0, 1.5),)))),
    Exchanged(codec.encode(Batch("s", 1, ()))),
    Exchanged(b"\xc1 no message"),
)


@pytest.mark.parametrize("answer", VALUES, ids=["fetched", "returned", "batch", "none"])
def test_a_child_that_lies_costs_its_session_and_tells_nothing(bob, answer):
    """A child which an operator has taken over answers with a value: it is ended."""
    reply = bob.answered(answer)
    assert isinstance(reply, Refused)
    assert reply.kind == "SessionLostError"
    assert bob.child.closed
    assert bob.node.busy() == 0
    again = bob.tell("me", Batch("s", 2, ()))
    assert isinstance(again, Refused)


def test_an_aggregators_child_may_answer_with_values(sw):
    """What it answers with was permitted before it was made."""
    reply = sw.answered(VALUES[0])
    assert isinstance(reply, Results)


@pytest.mark.parametrize(
    ("to", "message", "carried"),
    [
        ("sw", delivery(encode(POLICY)), True),
        ("mallory", delivery(encode(POLICY)), False),
        ("alice", delivery(encode(POLICY)), False),
        ("bobs-id", delivery(encode(POLICY)), False),
        ("sw", delivery(b""), False),
        ("sw", ReleaseQuestion("sum", (), ()), False),
        ("", ReleaseQuestion("sum", (), ()), False),
    ],
)
def test_what_a_child_sends_away_is_looked_at(bob, to, message, carried):
    """Only deliveries to a named aggregator, with the owner's policy, are carried."""
    frames = (b"\0\0\0\0",) if isinstance(message, Deliver) else ()
    bob.answered(said(Results(1, ()), departing(to, message, frames)))
    assert bool(bob.ways.carried) is carried
    (outcomes,) = bob.child.settled
    assert [outcome is None for outcome in outcomes] == [carried]


def test_releases_are_decided_here(sw):
    """A child asks, the node decides over all that was decided before."""
    owners = ("alice", "bob", "carol")
    policies = tuple((owner, encode(POLICY)) for owner in owners)

    def ask(*weights: int, key: str = "1") -> Effect:
        terms = tuple(
            (o, f"{o}/{key}", w, 1) for o, w in zip(owners, weights, strict=True) if w
        )
        return departing("", ReleaseQuestion("sum", terms, policies))

    sw.answered(said(Results(1, ()), ask(1, 1, 1), ask(1, 1, 0, key="2")))
    sw.answered(said(Results(2, ()), ask(2, 1, 1, key="3")))
    first, second = sw.child.settled
    assert [outcome and outcome.kind for outcome in first] == [
        None,
        "ReleaseRefusedError",
    ]
    assert second[0].kind == "ReleaseRefusedError"
    assert any("ReleaseRefusedError" in line for line in sw.log)


def test_a_decision_that_fails_releases_nothing(sw, monkeypatch):
    """Whatever goes wrong, the child hears of each release, and no path is told."""

    def fails(requester, releases):
        raise UnsafeFileError("/home/sw/peers", "others can change it")

    monkeypatch.setattr(sw.node._gate, "decide", fails)
    ask = departing("", ReleaseQuestion("sum", (("alice", "1", 1, 1),), ()))
    wrong = departing("sw", delivery(b""), (b"\0\0\0\0",))
    assert sw.answered(said(Results(1, ()), ask, ask, wrong)) == Results(1, ())
    ((first, second, third),) = sw.child.settled
    assert first == second
    assert first.kind == "InternalError"
    assert "peers" not in first.text
    assert third is not None
    assert any("/home/sw/peers" in line for line in sw.log)


def test_order_is_kept_between_releases_and_deliveries(sw):
    """Outcomes come in the order of what was wanted, whatever it was."""
    unknown = departing("", ReleaseQuestion("sum", (("alice", "1", 1, 1),), ()))
    wrong = departing("sw", delivery(b""), (b"\0\0\0\0",))
    sw.answered(said(Results(1, ()), unknown, wrong, unknown))
    (outcomes,) = sw.child.settled
    kinds = [outcome.kind for outcome in outcomes]
    assert kinds[0] == kinds[2] == "ReleaseRefusedError"
    assert kinds[1] != "ReleaseRefusedError"


def test_strangers_and_the_refused_come_no_further(bob):
    """Who is no requester opens nothing; who was refused too often asks nothing."""
    reply = bob.tell("you", Open("t", PROTOCOL_VERSION, "2"))
    assert reply.kind == "AccessDeniedError"
    assert "t" not in bob.children
    failed = Failed(0, 1, 0, "ReleaseRefusedError", "fetch", "place: no")
    for _ in range(3):
        assert isinstance(bob.answered(said(Results(1, (failed,)))), Results)
    before = len(bob.child.senders)
    assert bob.answered(said(Results(1, ()))).kind == "AccessDeniedError"
    assert len(bob.child.senders) == before
    assert bob.tell("me", Open("u", PROTOCOL_VERSION, "2")).kind == "AccessDeniedError"


def test_a_delivery_needs_no_requester(bob):
    """Workers deliver without being requesters."""
    bob.child.answers = [said(Done())]
    message = Deliver("s", (1,), (FLOAT,))
    assert bob.tell("alice", message, (b"\0\0\0\0",)) == Done()


def test_an_aggregator_tells_its_owners_how_far_it_came(sw, bob):
    """Who may deliver is told, without any child; an owner's worker has no record."""
    told = sw.tell("alice", Recall(3))
    assert isinstance(told, Refused)
    assert told.kind == "ReleaseRefusedError"
    asked: list[int] = []

    def recall(number: int) -> tuple[Head, str]:
        asked.append(number)
        return Head("sw", 5, "f" * 64), "c" * 64

    sw.node._recall = recall
    assert sw.tell("alice", Recall(3)) == Recalled(5, "f" * 64, "c" * 64)
    assert asked == [3]
    assert sw.child.senders == ["me"]  # who opened the session
    sw.node._may_deliver = lambda sender: sender == "alice"
    told = sw.tell("mallory", Recall(3))
    assert isinstance(told, Refused)
    assert told.kind == "AccessDeniedError"
    assert asked == [3]
    told = bob.tell("alice", Recall(0))
    assert "bob is no aggregator under a policy" in told.text


def test_a_record_that_can_not_be_read_names_no_file(sw):
    """Its operator's log does."""

    def recall(number: int) -> tuple[Head, str]:
        raise LedgerError("/home/sw/ledger.sqlite", "entry 2 is missing", "put it back")

    sw.node._recall = recall
    told = sw.tell("alice", Recall(2))
    assert told.kind == "InternalError"
    assert "/home" not in told.text
    assert any("/home/sw/ledger.sqlite: entry 2 is missing" in one for one in sw.log)


def test_an_owner_says_why_nothing_was_delivered(bob):
    """The requester is told whom to ask, and no file; the owner's log has the rest."""
    bob.ways.answer = LedgerError("/home/bob/heads/sw.json", "it is another", "ask")
    away = departing("sw", delivery(encode(POLICY)), (b"\0\0\0\0",))
    bob.answered(said(Results(1, ()), away))
    ((outcome,),) = bob.child.settled
    assert outcome.kind == "AccessDeniedError"
    assert "does not go on from the one that bob saw before" in outcome.text
    assert "/home" not in outcome.text
    assert any("heads/sw.json: it is another" in line for line in bob.log)


def test_errors_of_the_child_pass(bob):
    """What the child's pipe raises is told as it is without a policy."""
    bob.child.answers = [LimitError("too large")]
    assert bob.tell("me", Batch("s", 1, ())).kind == "LimitError"
