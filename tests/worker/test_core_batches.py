"""Exactly once: batches sent again, cut short, out of order; sessions apart."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from obhut.errors import InternalError
from obhut.guard.policy import Quorum
from obhut.protocol.messages import (
    PROTOCOL_VERSION,
    Alias,
    Batch,
    Close,
    Count,
    Deliver,
    Expect,
    Failed,
    Fetch,
    Free,
    Move,
    Open,
    Put,
    Ref,
    Refused,
    Results,
    Run,
    TensorData,
    Welcome,
    WriteGrad,
)
from obhut.worker.core import Worker
from obhut.worker.effects import Parcel
from obhut.worker.roles import Owner


def test_a_batch_sent_again_is_applied_once(me, run):
    """The same number again gives the same reply, frames too, and does nothing."""
    me.hold(1, [1.0])
    requests = (run("aten.add_.Tensor", Ref(1), 1.0), Fetch(1), Fetch(7))
    first = me.batch(*requests)
    frames = [bytes(frame) for frame in me.frames]
    for _ in range(3):
        assert me.batch(*requests, number=me.number) == first
        assert [bytes(frame) for frame in me.frames] == frames
    assert me.value(1).item() == 2.0


@pytest.mark.parametrize("jump", [-2, -1, 2, 3, 1000])
def test_a_gap_or_an_old_number_is_refused(me, jump):
    """Only the last batch and the next one are taken; nothing is lost by trying."""
    me.hold(1, [1.0])
    me.hold(2, [1.0])
    reply = me.batch(Count(), number=me.number + jump)
    assert isinstance(reply, Refused)
    assert reply.kind == "RemoteProtocolError"
    assert f"expected batch {me.number + 1}, got {me.number + jump}" in reply.text
    assert me.count() == 2


@pytest.mark.parametrize("number", [0, -1, 2])
def test_numbers_begin_at_one(me, number):
    """The first batch of a session is number 1."""
    reply = me.handle(Batch("s", number, (Count(),)))
    assert isinstance(reply, Refused)


def test_an_open_session_tells_what_was_applied(me):
    """Opening again resumes: it answers the last batch that was applied."""
    me.hold(1, [1.0])
    me.hold(2, [1.0])
    assert me.open() == Welcome(2)
    assert me.count() == 2


# --- interruption -------------------------------------------------------------------


class Interrupting(tuple):
    """Requests of which one, the first time it is read, is met by Ctrl-C."""

    def __new__(cls, requests, at):
        """Make them; the one at ``at`` is met."""
        made = super().__new__(cls, requests)
        made.at = at
        return made

    def __getitem__(self, index):
        if index == self.at:
            self.at = None
            raise KeyboardInterrupt
        return super().__getitem__(index)


class InterruptedAfterwards(Run):
    """An operator after whose effect, once, Ctrl-C comes."""

    interrupted: ClassVar[list[bool]] = []

    @property
    def describe(self):
        """Whether to describe the result; asked after it was made."""
        if not self.interrupted:
            self.interrupted.append(True)
            raise KeyboardInterrupt
        return False


@pytest.fixture
def interrupted(me):
    """A function that sends a batch past the codec, expecting Ctrl-C."""

    def send(requests):
        me.number += 1
        with pytest.raises(KeyboardInterrupt):
            me.worker.handle("me", Parcel(Batch("s", me.number, requests)), 0.0)

    return send


@pytest.mark.parametrize("at", range(4))
def test_an_interrupted_batch_goes_on_after_what_was_begun(me, run, interrupted, at):
    """Sent again, each request was begun once; the one that was cut has failed."""
    me.hold(1, [1.0])
    requests = tuple(
        run("aten.add.Tensor", Ref(1), float(10**k), out=10 + k) for k in range(4)
    )
    interrupted(Interrupting(requests, at))
    assert me.open() == Welcome(me.number - 1)
    reply = me.batch(*requests, number=me.number)
    (failed,) = reply.answers
    assert (failed.index, failed.kind) == (at, "RemoteExecutionError")
    assert failed.text == "interrupted while it ran"
    for k in range(4):
        if k == at:
            assert me.fails(Fetch(10 + k)).text == "interrupted while it ran"
        else:
            assert me.value(10 + k).item() == 1.0 + 10**k


def test_what_was_cut_after_its_effect_is_not_done_twice(me, run, interrupted):
    """An operator in place that had run before the interruption runs no more."""
    me.hold(1, [1.0])
    write = InterruptedAfterwards("aten.add_.Tensor", [Ref(1), 1.0], {}, 0, 1, False)
    InterruptedAfterwards.interrupted.clear()
    interrupted((write, run("aten.neg.default", Ref(1), out=2)))
    plain = run("aten.add_.Tensor", Ref(1), 1.0, grad=False)
    me.batch(plain, run("aten.neg.default", Ref(1), out=2), number=me.number)
    assert me.value(1).item() == 2.0
    assert me.value(2).item() == -2.0


def test_a_fetch_that_was_cut_leaves_no_frame_behind(me, run, interrupted):
    """The reply of a resumed batch has the frames that it names and no others."""
    me.hold(1, [1.0])
    me.hold(2, [2.0])

    class Later(tuple):
        """Requests whose rest, the first time it is looked at, brings Ctrl-C."""

        cut: ClassVar[list[bool]] = []

        def __getitem__(self, index):
            if isinstance(index, slice) and not self.cut:
                self.cut.append(True)
                raise KeyboardInterrupt
            return super().__getitem__(index)

    interrupted(Later((Fetch(1), Fetch(2))))
    failed, fetched = me.batch(Fetch(1), Fetch(2), number=me.number).answers
    assert isinstance(failed, Failed)
    assert len(me.frames) == 1
    assert fetched.data.frame == 0


def test_interrupted_twice(me, run, interrupted):
    """A batch can be cut more than once and still comes to its end."""
    me.hold(1, [1.0])
    requests = tuple(
        run("aten.add.Tensor", Ref(1), float(k), out=10 + k) for k in range(4)
    )
    interrupted(Interrupting(requests, 1))
    me.number -= 1
    interrupted(Interrupting(requests, 3))
    reply = me.batch(*requests, number=me.number)
    assert [failed.index for failed in reply.answers] == [1, 3]
    assert me.value(12).item() == 3.0


def test_an_interruption_leaves_the_callers_grad_mode(me, run, interrupted):
    """Whatever cuts a batch short, the caller's grad mode is as it was."""
    me.hold(1, [1.0])
    with torch.no_grad():
        interrupted(Interrupting((run("aten.neg.default", Ref(1), out=2), Count()), 1))
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


def test_the_next_batch_waits_for_one_that_was_cut(me, interrupted):
    """What remains of a cut batch is not dropped by sending the next."""
    me.hold(1, [1.0])
    requests = (Alias(1, 2), Alias(1, 3), Alias(1, 4))
    interrupted(Interrupting(requests, 1))
    assert isinstance(me.batch(Count(), number=me.number + 1), Refused)
    me.batch(*requests, number=me.number)
    assert me.value(4).item() == 1.0


def test_a_cut_batch_sent_again_shorter_is_refused(me, interrupted):
    """A client that changes what it said before is told so; nothing breaks."""
    me.hold(1, [1.0])
    requests = (Alias(1, 2), Alias(1, 3), Alias(1, 4))
    interrupted(Interrupting(requests, 2))
    assert isinstance(me.batch(Count(), number=me.number), Refused)
    me.batch(*requests, number=me.number)
    assert me.value(2).item() == 1.0


# --- sessions -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        Batch("s", 2, (Fetch(1),)),
        Batch("s", 1, (Fetch(1),)),
        Open("s", PROTOCOL_VERSION, str(torch.__version__)),
        Close("s"),
        Deliver("s", (), ()),
    ],
    ids=lambda one: type(one).__name__,
)
def test_nobody_else_can_use_a_session(opened, me, message):
    """Another principal who knows a session's name can do nothing with it."""
    me.hold(1, [1.0])
    reply, effects = me.worker.handle("mallory", Parcel(message), 0.0)
    # An empty delivery brings nothing and takes nothing; it need not be refused.
    if not isinstance(message, Deliver):
        assert isinstance(reply.message, Refused)
        assert reply.message.kind == "WorkerClosedError"
    assert effects == ()
    assert reply.frames == ()
    assert me.value(1).item() == 1.0


def test_a_foreign_session_and_none_are_told_apart_by_nobody(me):
    """The refusal of somebody else's session and of no session reads the same."""

    def words(session):
        reply, _ = me.worker.handle("eve", Parcel(Batch(session, 1, ())), 0.0)
        return reply.message

    assert words("s") == words("nobody's")


def test_sessions_hold_what_is_theirs(opened):
    """The same id in two sessions names two things."""
    one = opened()
    two = opened(one.worker, sender="you", name="t")
    three = opened(one.worker, name="u")
    for driver, value in ((one, 1.0), (two, 2.0), (three, 3.0)):
        driver.hold(1, [value])
    assert [d.value(1).item() for d in (one, two, three)] == [1.0, 2.0, 3.0]
    one(Free((1,)))
    two.handle(Close("t"))
    assert three.value(1).item() == 3.0


def test_an_open_session_tells_whether_there_is_a_guard(opened):
    """So that a client runs nothing that would have to read a value."""
    policy = Quorum(aggregators=("hub",), contributors=("a", "b", "c"))
    guarded = opened(Worker("a", role=Owner(policy, lambda line: None)))
    assert guarded.open() == Welcome(0, guarded=True)
    assert opened(Worker("b")).open() == Welcome(0, guarded=False)


def test_another_protocol_is_refused(opened):
    """A client that speaks another version is told which to use."""
    driver = opened()
    reply = driver.open(session="new", protocol=99)
    assert reply.kind == "RemoteProtocolError"
    assert f"version {PROTOCOL_VERSION}," in reply.text
    assert "99" in reply.text


def test_another_torch_is_refused(opened):
    """A client with another version, a patch too, is told both; builds may differ."""
    driver = opened()
    ours = torch.__version__.split("+")[0]
    major, minor, *_ = ours.split(".")
    for other in ("1.4.0", f"{major}.{minor}.99"):
        reply = driver.open(session="new", torch=other)
        assert reply.kind == "RemoteProtocolError"
        assert f"{ours}, you run {other}; use the same" in reply.text
    same = driver.open(session="new", torch=f"{ours}+cu130")
    assert same == Welcome(0)


def test_a_session_expires(opened):
    """After its time without a word a session is gone, and not a moment before."""
    me = opened(session_seconds=10.0)
    me.hold(1, [1.0])
    me.now = 10.0
    assert me.value(1).item() == 1.0
    me.now = 20.0
    assert me.count() == 1
    me.now = 30.1
    reply = me.batch(Count())
    assert (reply.kind, me.open()) == ("WorkerClosedError", Welcome(0))


def test_a_session_without_a_time_stays(opened):
    """Unless it is given a time, a session lasts as long as its worker."""
    me = opened()
    me.hold(1, [1.0])
    me.now = 1e12
    assert me.count() == 1


def test_others_do_not_keep_a_session_alive(opened):
    """Only its owner's messages count: not a stranger's, not a delivery."""
    me = opened(session_seconds=10.0)
    me(Expect((1,), "alice"))
    spec = TensorData("float32", (1,), 0)
    for now in (5.0, 9.0):
        me.worker.handle("mallory", Parcel(Batch("s", 3, ())), now)
        me.worker.handle("alice", Parcel(Deliver("s", (1,), (spec,)), (bytes(4),)), now)
    me.now = 11.0
    assert isinstance(me.batch(Count()), Refused)


def test_a_session_that_expired_can_not_be_settled(opened):
    """A delivery that took longer than the session lived is refused by name."""
    me = opened(session_seconds=10.0)
    me.hold(1, [1.0])
    me.batch(Move((1,), "alice", "there", (1,)))
    assert len(me.effects) == 1
    me.worker.handle(
        "you", Parcel(Open("t", PROTOCOL_VERSION, str(torch.__version__))), 100.0
    )
    reply = me.worker.settle("me", "s", [None])
    assert isinstance(reply.message, Refused)
    assert reply.message.kind == "WorkerClosedError"


@pytest.mark.parametrize(
    "message", [Welcome(1), Results(1, ()), Refused("a", "b")], ids=lambda m: str(m)[:7]
)
def test_a_worker_takes_no_replies(me, message):
    """What only a worker says is refused when it is said to one."""
    reply = me.handle(message)
    assert isinstance(reply, Refused)
    assert reply.kind == "RemoteProtocolError"


def test_settling_is_the_owners(me):
    """Nobody else can tell a session how its deliveries ended."""
    me.hold(1, [1.0])
    me.batch(Move((1,), "alice", "there", (1,)))
    reply = me.worker.settle("mallory", "s", [None])
    assert isinstance(reply.message, Refused)
    assert me.settle(None) == []


def test_an_empty_batch_is_a_batch(me):
    """A batch of nothing is applied and counted."""
    assert me() == []
    assert me.open() == Welcome(1)


def test_two_workers_know_nothing_of_each_other(opened):
    """Cores share no state: the same session and ids are others elsewhere."""
    here, there = opened(Worker("a")), opened(Worker("b"))
    here.hold(1, [1.0])
    assert there.fails(Fetch(1)).kind == "ObjectNotFoundError"
    there(Put(1, TensorData("float32", (1,), 0)), frames=[bytes(4)])
    assert here.value(1).item() == 1.0


def test_what_did_not_arrive_after_its_batch_was_given_up_is_here(me):
    """It was refused where it went, and stays."""
    me.hold(1, [1.0])
    me.batch(Move((1,), "alice", "t", (8,)), Count())
    me.batch(number=me.number)
    me.settle(Refused("TransportError", "nobody is there"))
    assert me.value(1).item() == 1.0


def test_a_cancelled_batch_keeps_no_name_of_nothing(me):
    """What names something that is missing is not carried out, and fails nothing."""
    me.hold(1, torch.ones(1, requires_grad=True))
    me.number += 1
    requests = (WriteGrad(1, 9), Free((8,)), Alias(7, 2))
    reply = me.handle(Batch("s", me.number, requests, cancelled=True))
    assert (reply.answers, reply.cut) == ((), 0)
    assert me.worker.undone("s") == {0, 2}
    assert me.count() == 1


def test_nothing_follows_at_an_open_worker(me):
    """It has done what it answered, and tells its own shell what there is."""
    me.hold(1, [1.0], "x")
    reply = Results(me.number, ())
    assert me.worker.follow("me", Parcel(Batch("s", me.number, ())), reply) == ()
    assert me.worker.named("me", "s") == [(1, ("x",))]


def test_what_leaves_is_decided_by_the_worker_only(me):
    """Neither an execution nor an open worker releases by itself."""
    session = me.worker._sessions["s"]
    for request in (Fetch(1), Move((1,), "alice", "t", (8,))):
        with pytest.raises(InternalError, match="not decided here"):
            session.execution.apply(request, 0, ())
    with pytest.raises(InternalError, match="only an aggregator"):
        me.worker._release(session, None, 0, False)
