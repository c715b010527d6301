"""The order of gate, core, effects and answer, with a core that only pretends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pytest

from obhut.errors import AccessDeniedError, ObhutError, RemoteProtocolError
from obhut.guard.audit import Auditor
from obhut.guard.policy import Quorum, encode
from obhut.host.conductor import Conductor, DistrustedError, covered, spoilt
from obhut.host.gate import Gate
from obhut.protocol.codec import Frame
from obhut.protocol.messages import (
    AnyMessage,
    Batch,
    Close,
    Deliver,
    Fetched,
    Open,
    Refused,
    ReleaseQuestion,
    Results,
    State,
    StateAnswer,
    StateQuestion,
    TensorData,
)
from obhut.worker.effects import AskRelease, Delivery, Effect, Keeping, Seeking

FLOAT = TensorData("float32", (1,), 0)
OWNERS = ("alice", "bob", "carol")
POLICY = Quorum(  # releases that are written down were computed by nobody
    aggregators=["sw"], contributors=list(OWNERS), requesters=["me"], programs="any"
)


class Said(NamedTuple):
    """What a core says."""

    message: AnyMessage
    frames: Sequence[Frame] = ()
    effects: Sequence[Effect] = ()


class ScriptedCore:
    """A core that says what it is told to, and keeps what it hears."""

    def __init__(self, *effects: Effect, reply: Said | None = None) -> None:
        self.first = Said(Results(1, ()), (), effects)
        self.reply = reply or Said(Results(1, ()))
        self.outcomes: list[Sequence[Refused | None]] = []

    def handle(self) -> Said:
        """Say what is wanted done."""
        return self.first if self.first.effects else self.reply

    def settle(self, outcomes: Sequence[Refused | None]) -> Said:
        """Hear how it ended."""
        self.outcomes.append(outcomes)
        return self.reply


def delivery(to: str, policy: bytes = b"") -> Delivery:
    """Return a delivery of one number."""
    return Delivery(to, Deliver("t", (1,), (FLOAT,), policy), (bytes(4),), 0)


def question(*owners: str) -> AskRelease:
    """Return the question whether a sum over owners may leave."""
    terms = tuple((owner, f"{owner}/1", 1, 1) for owner in owners)
    policies = tuple((owner, encode(POLICY)) for owner in owners)
    return AskRelease(ReleaseQuestion("sum", terms, policies), 0)


def test_effects_are_carried_out_in_order_and_all_have_an_outcome() -> None:
    """Questions in a row are decided together; a core hears of each effect."""
    carried: list[str] = []

    def deliver(one: Delivery) -> Refused | None:
        carried.append(one.to)
        return Refused("LimitError", "full")

    core = ScriptedCore(
        question(*OWNERS), question("alice"), delivery("sw"), question("bob")
    )
    conductor = Conductor("sw", Gate(POLICY, Auditor("sw", POLICY)))
    assert conductor.conduct("me", core, deliver).message == Results(1, ())
    ((first, second, third, fourth),) = core.outcomes
    assert first is None
    assert second is not None
    assert second.kind == fourth.kind == "ReleaseRefusedError"  # type: ignore[union-attr] # it is one
    # An aggregator delivers nothing under a policy: it reaches nobody.
    assert third is not None
    assert carried == []


def test_what_is_stored_goes_to_its_own_shell() -> None:
    """In order, and to no gate: it does not leave. By default it is refused."""
    kept: list[int] = []
    keeping = Keeping(State("n", 1, (FLOAT,)), (), 3)
    core = ScriptedCore(keeping, Seeking(StateQuestion("n", None), 4))
    conductor = Conductor("bob", Gate(POLICY))
    conductor.conduct("me", core, lambda one: None, lambda one: kept.append(one.index))
    conductor.conduct("me", core, lambda one: None)
    assert kept == [3, 4]
    (first, second), (third, fourth) = core.outcomes
    assert (first, second) == (None, None)
    for one in (third, fourth):
        assert one is not None
        assert one.kind == "CallError"


@pytest.mark.parametrize("gate", [None, Gate(POLICY)])
def test_nobody_says_from_outside_what_is_stored(gate: Gate | None) -> None:
    """It is a word of the shell's own."""
    with pytest.raises(RemoteProtocolError, match="nobody else says"):
        Conductor("bob", gate).admit("me", StateAnswer("s", 0))


def test_what_may_not_leave_is_not_delivered() -> None:
    """An owner's gate is asked before anything is carried; words name no values."""
    carried: list[str] = []
    log: list[str] = []
    core = ScriptedCore(
        delivery("sw", encode(POLICY)), delivery("mallory", encode(POLICY))
    )
    conductor = Conductor("bob", Gate(POLICY), log=log.append)
    conductor.conduct("me", core, lambda one: carried.append(one.to))
    assert carried == ["sw"]
    ((first, second),) = core.outcomes
    assert first is None
    assert second is not None
    assert "mallory" in second.text
    assert len(log) == 1


def test_nothing_is_released_without_a_gate() -> None:
    """A core that asks where nobody decides is refused."""
    core = ScriptedCore(question(*OWNERS))
    Conductor("sw").conduct("me", core, lambda one: None)
    ((refused,),) = core.outcomes
    assert refused is not None


def test_an_answer_with_values_does_not_leave_an_owner() -> None:
    """Whatever made the core say it."""
    core = ScriptedCore(reply=Said(Results(1, (Fetched(0, FLOAT),)), (bytes(4),)))
    with pytest.raises(DistrustedError):
        Conductor("bob", Gate(POLICY)).conduct("me", core, lambda one: None)
    said = Conductor("bob").conduct("me", core, lambda one: None)
    assert said.frames == (bytes(4),)


@pytest.mark.parametrize("message", [Open("s", 1, "2"), Batch("s", 1, ())])
def test_a_stranger_is_not_admitted_but_may_close(message: AnyMessage) -> None:
    """Who is not named opens nothing and computes nothing."""
    conductor = Conductor("bob", Gate(POLICY))
    conductor.admit("me", message)
    with pytest.raises(AccessDeniedError):
        conductor.admit("you", message)
    conductor.admit("you", Close("s"))
    Conductor("bob").admit("you", message)


def test_a_decision_that_fails_is_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is released, each question has its answer, and the log says why."""
    gate, log = Gate(POLICY, Auditor("sw", POLICY)), list[str]()

    def fails(requester: str, asked: Sequence[ReleaseQuestion]) -> list[Refused | None]:
        raise ObhutError("/home/sw/ledger")

    monkeypatch.setattr(gate, "decide", fails)
    core = ScriptedCore(question(*OWNERS), question(*OWNERS))
    Conductor("sw", gate, log=log.append).conduct("me", core, lambda one: None)
    ((first, second),) = core.outcomes
    assert first == second
    assert first is not None
    assert "ledger" not in first.text
    assert any("/home/sw/ledger" in line for line in log)


def declared(index: int, *ids: int, frames: Sequence[Frame] = ()) -> Delivery:
    """Return a delivery to the aggregator, or its header."""
    looks = tuple(TensorData("float32", (1,), at) for at in range(len(ids)))
    return Delivery("sw", Deliver("t", ids, looks), tuple(frames), index)


def test_bytes_go_where_a_header_was_accepted():
    """Each header gets its bytes, or that they do not come; nothing else goes."""
    headers = [declared(1, 8), declared(3, 9), declared(5, 10, 11)]
    sound = declared(1, 8, frames=[bytes(4)])
    others = [
        declared(3, 99, frames=[bytes(4)]),
        spoilt(headers[2]),
        declared(7, 12, frames=[bytes(4)]),
    ]
    found = list(covered(headers, [*others, sound]))
    assert found == [sound, spoilt(headers[1]), spoilt(headers[2])]
    assert [one.message.spoilt for one in found] == [False, True, True]
    assert list(covered([], [sound])) == []
