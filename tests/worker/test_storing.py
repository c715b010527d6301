"""What stays beyond a session, as a core and both executions of an owner's see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from obhut.protocol.codec import FrameDigest
from obhut.protocol.messages import (
    Batch,
    Described,
    Done,
    Expect,
    ListState,
    Move,
    Put,
    RecallState,
    Ref,
    Refused,
    Run,
    State,
    StateAnswer,
    StateQuestion,
    StoreState,
    TensorData,
    Versions,
)
from obhut.worker.effects import Keeping, Parcel, Seeking
from obhut.worker.tensors import to_frame

from .conftest import Driver, OwnersDriver

Runs = Callable[..., Run]
Owners = Callable[..., OwnersDriver]

LOOK = TensorData("float32", (2,), 0)
RECALL = RecallState("n", 3, 50)


def told(driver: Driver, *frames: Any, index: int = 0, **fields: Any) -> Any:
    """Tell a worker what is stored; return what it says."""
    message = StateAnswer(driver.name, index, **fields)
    parcel = Parcel(message, frames)
    return driver.worker.handle(driver.sender, parcel, driver.now)[0].message


def asked(driver: Driver, *requests: Any) -> None:
    """Send a batch whose effects are under way from then on."""
    assert driver.batch(*requests).answers == ()
    assert driver.effects


# --- an open worker -------------------------------------------------------------------


def test_what_is_stored_is_of_its_moment(me: Driver, run: Runs) -> None:
    """A write later in its batch does not change it; the tensors stay."""
    me.hold(1, [1.0, 2.0])
    fill = run("aten.fill_.Scalar", Ref(1), 9.0, grad=False, count=0)
    asked(me, StoreState("n", 3, (1, 1)), fill)
    (keeping,) = me.effects
    looks = (LOOK, TensorData("float32", (2,), 1))
    assert keeping == Keeping(State("n", 3, looks), keeping.frames, 0)
    assert [bytes(f) for f in keeping.frames] == [
        bytes(to_frame(torch.tensor([1.0, 2.0])))
    ] * 2
    assert me.settle(None) == []
    assert me.value(1).tolist() == [9.0, 9.0]


def test_what_is_refused_is_answered(me: Driver) -> None:
    """With the shell's reason, and what it is called by users."""
    me.hold(1, [1.0, 2.0])
    asked(me, StoreState("n", 3, (1,)), RECALL, ListState("n"))
    why = Refused("LimitError", "too much")
    found = me.settle(why, why, why)
    assert [(one.kind, one.op, one.text) for one in found] == [
        ("LimitError", op, "too much") for op in ("store", "recall", "stored")
    ]
    assert me.fails(Move((50,), "x", "x", (1,))).kind == "ObjectNotFoundError"


def test_what_is_recalled_is_held_and_described(me: Driver) -> None:
    """In the order in which it was stored, under consecutive ids."""
    asked(me, RECALL, ListState("n"))
    assert me.effects == (
        Seeking(StateQuestion("n", 3), 0),
        Seeking(StateQuestion("n", None), 1),
    )
    looks = (LOOK, TensorData("bool", (), 1, False))
    frames = to_frame(torch.tensor([5.0, 6.0])), b"\1"
    assert told(me, *frames, tensors=looks) == Done()
    assert told(me, index=1, versions=(2, 3)) == Done()
    described, versions = me.settle(None, None)
    assert isinstance(described, Described)
    assert [(one.dtype, one.shape) for one in described.specs] == [
        ("float32", (2,)),
        ("bool", ()),
    ]
    assert versions == Versions(1, (2, 3))
    assert me.value(50).tolist() == [5.0, 6.0]
    assert me.value(51).item() is True


def test_what_is_told_again_is_held_once(me: Driver) -> None:
    """After Ctrl-C in between the same batch asks, and is told, a second time."""
    asked(me, RECALL)
    frame = to_frame(torch.tensor([5.0, 6.0]))
    for _ in range(2):
        assert told(me, frame, tensors=(LOOK,)) == Done()
        me.batch(RECALL, number=me.number)
    assert isinstance(me.settle(None)[0], Described)
    assert me.count() == 1


def test_nothing_is_told_that_was_not_asked(me: Driver) -> None:
    """Not before, not of another request, not to another session or sender."""
    frame = to_frame(torch.tensor([5.0, 6.0]))
    assert told(me, frame, tensors=(LOOK,)).kind == "RemoteProtocolError"
    me.hold(1, [1.0])
    asked(me, RECALL, StoreState("n", 1, (1,)))
    for index in (1, 2):
        said = told(me, frame, tensors=(LOOK,), index=index)
        assert said.kind == "RemoteProtocolError"
    mallory = Driver(me.worker, "mallory", me.name)
    assert told(mallory, frame, tensors=(LOOK,)).kind == "WorkerClosedError"
    (failed,) = me.settle(None, None)
    assert (failed.kind, failed.text) == ("InternalError", "nobody knows how it ended")
    assert me.count() == 1


def test_an_id_that_is_taken_is_refused(me: Driver) -> None:
    """What is there stays as it is."""
    me.hold(50, [1.0])
    asked(me, RECALL)
    frame = to_frame(torch.tensor([5.0, 6.0]))
    refused = told(me, frame, tensors=(LOOK,))
    assert refused.kind == "RemoteProtocolError"
    assert me.settle(refused)[0].kind == "RemoteProtocolError"
    assert me.value(50).tolist() == [1.0]


def test_a_cancelled_batch_stores_and_recalls_nothing(me: Driver) -> None:
    """Neither is asked of the shell."""
    me.hold(1, [1.0])
    me.number += 1
    requests = (StoreState("n", 1, (1,)), RECALL, ListState("n"))
    reply = me.handle(Batch(me.name, me.number, requests, cancelled=True))
    assert reply.cut == 0
    assert me.effects == ()


def test_a_batch_that_is_given_up_lets_nothing_wait(me: Driver) -> None:
    """What was under way is answered for, and the next one goes on."""
    me.hold(1, [1.0])
    asked(me, StoreState("n", 1, (1,)), RECALL)
    me.batch(number=me.number)
    assert [one.kind for one in me.settle(None, None)] == ["LimitError"] * 2
    assert me.value(1).tolist() == [1.0]


# --- an owner's -----------------------------------------------------------------------


def stored(owner: OwnersDriver) -> Any:
    """Return what is stored after a batch."""
    (keeping,) = owner.delivered
    return keeping


def recalled(owner: OwnersDriver, *frames: Any, out: int = 50, **fields: Any) -> Any:
    """Let an owner's worker recall something; return the answer."""
    owner.number += 1
    batch = Parcel(Batch(owner.name, owner.number, (RecallState("n", 3, out),)))
    owner.worker.handle("me", batch, owner.now)
    answer = Parcel(StateAnswer(owner.name, 0, **fields), frames)
    unread = Parcel(answer.message, (FrameDigest(),) * len(frames))
    said, _ = owner.worker.handle("me", unread, owner.now)
    assert said.message == Done()
    owner.worker.follow("me", answer, said.message)
    reply = owner.worker.settle("me", owner.name, [None])
    owner.worker.follow("me", batch, reply.message)
    return reply.message.answers[0]


def test_low_declares_and_high_brings_the_bytes(owners: Owners, run: Runs) -> None:
    """The header has looks and digests and no frames; high adds only bytes."""
    bob = owners()
    bob.hold(1, [1.0, 2.0])
    double = run("aten.mul.Tensor", Ref(1), 2, out=2)
    assert bob(double, StoreState("n", 3, (2,))) == []
    (header,) = bob.headers
    assert header.frames == ()
    (digest,) = header.message.digests
    assert len(digest) == 32
    assert header.message == State("n", 3, (LOOK,), False, (digest,))
    assert stored(bob).message == header.message
    assert bytes(stored(bob).frames[0]) == bytes(to_frame(torch.tensor([2.0, 4.0])))


def test_what_is_missing_is_stored_as_spoilt(owners: Owners, run: Runs) -> None:
    """As many zeros stand for it, and low declares it as ever."""
    bob = owners()
    bob.hold(1, [1.0, 2.0])
    bob.hold(2, torch.tensor([7]))
    pick = run("aten.index_select.default", Ref(1), 0, Ref(2), out=3)
    assert bob(pick, StoreState("n", 3, (1, 3))) == []
    assert not bob.headers[0].message.spoilt
    assert stored(bob).message.spoilt
    assert list(map(bytes, stored(bob).frames)) == [bytes(8), bytes(4)]
    assert bob.peek(1).tolist() == [1.0, 2.0]


def test_what_is_recalled_has_its_digest_and_its_values(
    owners: Owners, run: Runs
) -> None:
    """The digest is the stored one's, whatever the bytes are; high has the values."""
    bob = owners()
    made = (b"d" * 32,)
    found = recalled(
        bob, to_frame(torch.tensor([5.0, 6.0])), tensors=(LOOK,), digests=made
    )
    assert isinstance(found, Described)
    said = []
    for values, digests in (([5.0, 6.0], made), ([0.0, 0.0], made), ([5.0, 6.0], ())):
        other, frame = owners(), to_frame(torch.tensor(values))
        recalled(other, frame, tensors=(LOOK,), digests=digests)
        other(run("aten.mul.Tensor", Ref(50), 2, out=51), Move((51,), "hub", "t", (1,)))
        said.append(other.headers[0].message.digests)
    assert said[0] == said[1]
    assert said[2] == (b"",)
    assert bob.peek(50).tolist() == [5.0, 6.0]


def test_what_was_spoilt_is_missing_where_the_rows_are(owners: Owners) -> None:
    """Low holds it; high does not, and delivers nothing of it."""
    bob = owners()
    bob.number += 1
    batch = Parcel(Batch(bob.name, bob.number, (RECALL,)))
    bob.worker.handle("me", batch, 0.0)
    answer = Parcel(StateAnswer(bob.name, 0, (LOOK,)), (FrameDigest(),))
    bob.worker.handle("me", answer, 0.0)
    reply = bob.worker.settle("me", bob.name, [None])
    bob.worker.follow("me", batch, reply.message)
    assert isinstance(reply.message.answers[0], Described)
    assert bob.peek(50) is None


def test_what_can_not_be_read_is_missing_and_logged(owners: Owners) -> None:
    """A frame that does not fit is told to the owner, and to nobody else."""
    lines: list[str] = []
    bob = owners(log=lines.append)
    assert isinstance(recalled(bob, b"short", tensors=(LOOK,)), Described)
    assert bob.peek(50) is None
    assert [line for line in lines if "what was stored is missing" in line]


def test_what_is_recalled_for_one_batch_is_not_there_for_the_next(
    owners: Owners,
) -> None:
    """What low did not carry out high drops."""
    bob = owners()
    frame = to_frame(torch.tensor([5.0, 6.0]))
    bob.hold(1, [1.0])  # it has begun
    answer = Parcel(StateAnswer(bob.name, 0, (LOOK,)), (frame,))
    bob.worker.follow("me", answer, Done())
    bob.hold(2, [1.0])
    recalled(bob, frame, tensors=(LOOK,))
    high = bob.worker._highs[bob.name]
    assert high._recalled == {}
    assert bob.peek(50).tolist() == [5.0, 6.0]


@pytest.mark.parametrize("request_", [StoreState("n", 1, (1,)), RECALL, ListState("n")])
def test_nobody_executes_what_only_a_shell_does(owners: Owners, request_: Any) -> None:
    """An execution by itself refuses it."""
    from obhut.errors import InternalError

    bob = owners()
    state = bob.worker._sessions[bob.name]
    with pytest.raises(InternalError, match="is not decided here"):
        state.execution.apply(request_, 0, ())


def test_an_id_may_be_expected_and_stored_values_do_not_come_there(me: Driver) -> None:
    """What another worker is to deliver is not filled by what is recalled."""
    assert me(Expect((50,), "alice")) == []
    asked(me, RECALL)
    frame = to_frame(torch.tensor([5.0, 6.0]))
    assert told(me, frame, tensors=(LOOK,)).kind == "RemoteProtocolError"


def test_a_sent_tensor_counts_by_its_bytes_and_a_recalled_one_by_its_making(
    owners: Owners,
) -> None:
    """Sent here and recalled there are two computations."""
    bob, alice = owners(), owners()
    frame = to_frame(torch.tensor([5.0, 6.0]))
    bob(Put(50, LOOK), frames=[frame])
    bob(StoreState("n", 3, (50,)), Move((50,), "hub", "t", (1,)))
    digests = bob.headers[0].message.digests
    recalled(alice, frame, tensors=(LOOK,), digests=digests)
    alice(Move((50,), "hub", "t", (1,)))
    assert alice.headers[0].message.digests != bob.headers[1].message.digests
