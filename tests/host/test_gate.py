"""Who a policy lets in, and that decisions are written down before they are told."""

from __future__ import annotations

import datetime
import threading
import time
import tracemalloc

import pytest
from msgspec import structs

from obhut.errors import AccessDeniedError, InternalError, LedgerError
from obhut.guard.audit import Auditor
from obhut.guard.policy import Quorum, encode
from obhut.host.gate import TERMS_AT_MOST, Gate
from obhut.protocol.messages import (
    Deliver,
    Described,
    Done,
    Failed,
    Fetched,
    Open,
    Refused,
    ReleaseQuestion,
    Results,
    Returned,
    TensorData,
    Welcome,
)

OWNERS = ("alice", "bob", "carol", "dave")
POLICY = Quorum(
    aggregators=("sw",),
    contributors=OWNERS,
    requesters=("me", "you"),
    refusals=2,
    programs="any",  # releases that are written down were computed by nobody
    expires=datetime.date(2030, 6, 30),
)
FLOAT = TensorData("float32", (1,), 0)


class Clock:
    """Times that a test sets."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.moment = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)

    def gate(self, **options) -> Gate:
        """Return a gate that goes by this clock."""
        return Gate(
            POLICY, clock=lambda: self.seconds, now=lambda: self.moment, **options
        )


class Memory:
    """A record that remembers, and can fail."""

    def __init__(self) -> None:
        self.decided = []
        self.broken = False

    def extend(self, decided, time) -> None:
        """Remember decisions."""
        if self.broken:
            raise LedgerError("/srv/ledger.sqlite", "the disk is full", "make room")
        self.decided += [(wanted, decision, time) for wanted, decision in decided]


def release(*owners, weights=None, key="1", policy=POLICY) -> ReleaseQuestion:
    """Return a question about a sum over owners."""
    weights = weights or [1] * len(owners)
    return ReleaseQuestion(
        "sum",
        tuple((o, f"{o}/{key}", w, 1) for o, w in zip(owners, weights, strict=True)),
        tuple((o, encode(policy)) for o in owners),
    )


@pytest.fixture
def clock():
    """Times that a test sets."""
    return Clock()


def aggregator(clock, **options) -> Gate:
    """Return the gate of an aggregator."""
    return clock.gate(auditor=Auditor("sw", POLICY), **options)


def test_only_requesters_come_in(clock):
    """Whom the policy does not name, it lets ask nothing."""
    gate = clock.gate()
    gate.admit("me")
    for stranger in ("mallory", "alice", "sw", ""):
        with pytest.raises(AccessDeniedError):
            gate.admit(stranger)


def test_a_policy_ends_with_its_day(clock):
    """On its last day it holds, on the next nobody is let in."""
    gate = clock.gate()
    clock.moment = datetime.datetime(2030, 6, 30, 23, 59, tzinfo=datetime.UTC)
    gate.admit("me")
    clock.moment += datetime.timedelta(minutes=1)
    with pytest.raises(AccessDeniedError, match="2030-06-30"):
        gate.admit("me")


def test_refusals_are_the_principals(clock):
    """More refusals than allowed shut a requester out, for an hour, and nobody else."""
    gate = aggregator(clock)
    for _ in range(3):
        gate.admit("me")
        (refused,) = gate.decide("me", [release("alice", "bob")])
        assert refused.kind == "ReleaseRefusedError"
    with pytest.raises(AccessDeniedError, match="refused"):
        gate.admit("me")
    gate.admit("you")
    clock.moment += datetime.timedelta(days=30)  # the time of day decides nothing
    with pytest.raises(AccessDeniedError):
        gate.admit("me")
    clock.seconds += 3_700.0
    gate.admit("me")


def test_nobody_asks_for_the_count_of_what_is_refused(clock):
    """A count falls with its sum, leaves no trace, and is no refusal of its own."""
    gate = aggregator(clock)
    owners = ("alice", "bob", "carol")
    heavy = release(*owners, weights=[9, 1, 1])
    count = structs.replace(release(*owners), kind="count")
    refused = gate.decide("me", [heavy, count])
    assert [one.text.partition(":")[0] for one in refused] == ["p-percent"] * 2
    # Had the count been recorded, these tensors would leave in no other combination.
    other = release("alice", "bob", "carol", weights=[1, 1, 1])
    assert gate.decide("me", [other]) == [None]
    for _ in range(5):
        again = structs.replace(release("alice", "bob", key="2"), kind="count")
        assert gate.decide("me", [again])[0] is not None
    gate.admit("me")


def test_an_owners_refusals_count_too(clock):
    """What an owner's session refused is counted from its reply."""
    gate = clock.gate()
    failed = Failed(0, 1, 0, "ReleaseRefusedError", "fetch", "place: no")
    other = Failed(1, 1, 1, "RemoteIndexError", "op", "no")
    gate.check_reply("me", Results(1, (failed, other)), ())
    gate.check_reply("me", Refused("ReleaseRefusedError", "place: no"), ())
    gate.check_reply("me", Results(2, (other,)), ())
    gate.admit("me")
    gate.check_reply("me", Results(3, (failed,)), ())
    with pytest.raises(AccessDeniedError):
        gate.admit("me")


@pytest.mark.parametrize(
    ("message", "frames"),
    [
        (Results(1, (Fetched(0, FLOAT),)), (b"\0\0\0\0",)),
        (Results(1, (Returned(0, 1.5),)), ()),
        (Results(1, ()), (b"secret",)),
        (Open("s", 1, "2"), ()),
        (Deliver("s", (), ()), ()),
    ],
    ids=["fetched", "returned", "frames", "open", "deliver"],
)
def test_a_value_does_not_pass_an_owners_gate(clock, message, frames):
    """Whatever made such a reply, it is not passed on."""
    with pytest.raises(InternalError):
        clock.gate().check_reply("me", message, frames)


def test_the_rest_passes(clock):
    """Welcomes, descriptions and failures are what an owner's session answers."""
    gate = clock.gate()
    gate.check_reply("me", Welcome(0), ())
    gate.check_reply("me", Done(), ())
    gate.check_reply("me", Results(1, (Described(0, ()),)), ())
    aggregator(clock).check_reply("me", Results(1, (Fetched(0, FLOAT),)), (b"1234",))


def test_deliveries_go_to_aggregators_and_carry_the_policy(clock):
    """A delivery to another, or under another policy, is stopped at the gate."""
    gate = clock.gate()
    gate.check_delivery("sw", Deliver("s", (), (), encode(POLICY)))
    other = encode(Quorum(aggregators=("sw",), contributors=OWNERS, honest=1))
    for to, message in (
        ("mallory", Deliver("s", (), (), encode(POLICY))),
        ("alice", Deliver("s", (), (), encode(POLICY))),
        ("sw", Deliver("s", (), ())),
        ("sw", Deliver("s", (), (), other)),
        ("sw", release("alice")),
    ):
        with pytest.raises(InternalError):
            gate.check_delivery(to, message)


def test_decisions_are_written_before_they_are_told(clock):
    """Both ways: permits and refusals are in the record; unwritten, nothing leaves."""
    memory = Memory()
    lines = []
    gate = aggregator(clock, record=memory, log=lines.append)
    outcomes = gate.decide("me", [release(*OWNERS), release("alice", "bob", key="2")])
    assert [outcome is None for outcome in outcomes] == [True, False]
    assert [decision.permits for _, decision, _ in memory.decided] == [True, False]
    moment = int(clock.moment.timestamp())
    assert all(time == moment for _, _, time in memory.decided)
    memory.broken = True
    (refused,) = gate.decide("me", [release(*OWNERS, key="3")])
    assert refused.kind == "InternalError"
    assert "/srv" not in refused.text
    assert any("/srv" in line for line in lines)
    memory.broken = False
    assert gate.decide("me", [release(*OWNERS, key="3")]) == [None]


class Slow(Auditor):
    """An auditor who, while it first decides, waits until somebody else wants a turn.

    Attributes:
        meanwhile: does something in another thread, and returns when that waits.
        order: who asked, as it was decided.
    """

    def decide(self, release, today):
        """Decide as an auditor does."""
        self.order.append(release.requester)
        if len(self.order) == 1:
            self.meanwhile()
        return super().decide(release, today)


def test_a_long_batch_does_not_hold_up_others(clock):
    """Between two of its decisions, who waits has a turn; and anybody is let in."""
    auditor = Slow("sw", POLICY)
    auditor.order = []
    gate = clock.gate(auditor=auditor, record=Memory())
    other = threading.Thread(
        target=gate.decide, args=("you", [release(*OWNERS, key="you")])
    )

    def meanwhile() -> None:
        gate.admit("you")
        other.start()
        while not gate._turns.waiting:
            threading.Event().wait(0.001)

    auditor.meanwhile = meanwhile
    asked = [release(*OWNERS, key=str(k)) for k in range(5)]
    assert gate.decide("me", asked) == [None] * 5
    other.join()
    assert auditor.order == ["me", "you", *["me"] * 4]


def over(count: int, key: str = "", kind: str = "sum") -> ReleaseQuestion:
    """Return a question about a sum over so many contributions of four owners."""
    terms = tuple((OWNERS[k % 4], f"{key}/{k}", 1, 1) for k in range(count))
    return ReleaseQuestion(kind, terms, tuple((o, encode(POLICY)) for o in OWNERS))


def test_what_a_sum_is_over_is_bounded(clock):
    """One contribution more than may be is refused, before anything is computed."""
    gate = aggregator(clock)
    assert gate.decide("me", [over(TERMS_AT_MOST)]) == [None]
    (refused,) = gate.decide("me", [over(TERMS_AT_MOST + 4, "more")])
    assert refused.kind == "LimitError"
    assert f"at most {TERMS_AT_MOST:,}" in refused.text
    gate.admit("me")


def test_what_a_batch_asks_for_is_bounded(clock, monkeypatch):
    """All sums of one batch together; the next batch goes on."""
    monkeypatch.setattr("obhut.host.gate.BATCH_AT_MOST", 100)
    gate = aggregator(clock)
    asked = [over(40, str(k)) for k in range(4)]
    outcomes = gate.decide("me", asked)
    assert outcomes[:2] == [None, None]
    assert [one.kind for one in outcomes[2:]] == ["LimitError"] * 2
    assert gate.decide("me", asked[2:]) == [None, None]


def test_a_repeat_over_many_contributions_is_cheap(clock):
    """Each contribution is looked at once, however many are in the sum.

    Compared as a whole for each, 10,000 of them took longer than ten seconds.
    """
    gate = aggregator(clock)
    assert gate.decide("me", [over(10_000)]) == [None]
    begun = time.thread_time()
    assert gate.decide("me", [over(10_000)] * 3) == [None] * 3
    assert time.thread_time() - begun < 3


def test_a_repeat_takes_no_memory(clock):
    """Nothing is kept of a permitted release that was permitted before."""
    gate = aggregator(clock)
    gate.decide("me", [over(1_000)])
    tracemalloc.start()
    try:
        gate.decide("me", [over(1_000)])
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(5):
            assert gate.decide("me", [over(1_000)]) == [None]
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 20_000  # another one would take some 300,000


def test_each_decision_sees_those_before(clock):
    """Two questions of one batch are decided one after the other."""
    gate = aggregator(clock)
    first, second = release("alice", "bob", "carol"), release("alice", "bob", "dave")
    outcomes = gate.decide("me", [first, second])
    assert outcomes[0] is None
    assert outcomes[1].text.startswith(("owners: ", "atoms: "))


def test_who_asks_does_not_matter_to_the_history(clock):
    """Two requesters get together no more than one."""
    gate = aggregator(clock)
    assert gate.decide("me", [release("alice", "bob", "carol")]) == [None]
    (refused,) = gate.decide("you", [release("alice", "bob", "dave", key="2")])
    assert refused.kind == "ReleaseRefusedError"


def test_an_owner_releases_nothing(clock):
    """A question that reaches an owner's gate is a session that lies."""
    (refused,) = clock.gate().decide("me", [release(*OWNERS)])
    assert refused.kind == "InternalError"


def test_a_policy_that_is_none_is_refused(clock):
    """Bytes that are no policy release nothing."""
    asked = ReleaseQuestion("sum", (("alice", "1", 1, 1),), (("alice", b"{}"),))
    (refused,) = aggregator(clock).decide("me", [asked])
    assert refused.kind == "RemoteProtocolError"
