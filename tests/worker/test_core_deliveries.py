"""Moves: what leaves, what is expected, from whom, and how it ends."""

from __future__ import annotations

import pytest
import torch

from obhut.protocol.messages import (
    NOWHERE,
    Alias,
    Backward,
    Clear,
    Count,
    Deliver,
    Done,
    Expect,
    Failed,
    Fetch,
    Free,
    Move,
    Put,
    ReadGrad,
    Ref,
    Refused,
    Results,
    Run,
    TensorData,
)
from obhut.worker.effects import Delivery, Parcel
from obhut.worker.tensors import to_frame

FLOAT = TensorData("float32", (1,), 0)


def deliver(worker, sender, ids, tensors=None, frames=None, session="s"):
    """Hand a delivery in and return the reply."""
    tensors = [FLOAT] * len(ids) if tensors is None else tensors
    tensors = tuple(
        TensorData(t.dtype, t.shape, k, t.requires_grad) for k, t in enumerate(tensors)
    )
    frames = tuple(frames or [to_frame(torch.ones(1))] * len(ids))
    message = Deliver(session, tuple(ids), tensors)
    return worker.handle(sender, Parcel(message, frames), 0.0)[0].message


def test_what_is_expected_is_taken_once(me):
    """The sender that was named fills the ids that were named, and then no more.

    The same delivery again is one whose answer was lost: it is answered as before,
    and changes nothing.
    """
    me(Expect((1, 2), "alice"))
    assert deliver(me.worker, "alice", [1, 2]) == Done()
    assert me.value(2).item() == 1.0
    me(Run("aten.add_.Tensor", [Ref(2), 5], {}, NOWHERE, 0, False))
    assert deliver(me.worker, "alice", [1, 2]) == Done()
    assert me.value(2).item() == 6.0
    for sender, ids in (("bob", [1, 2]), ("alice", [1, 3])):
        reply = deliver(me.worker, sender, ids)
        assert (type(reply), reply.kind) == (Refused, "RemoteProtocolError")
    assert me.count() == 2


@pytest.mark.parametrize(
    ("sender", "ids"),
    [
        ("mallory", [1, 2]),
        ("me", [1, 2]),
        ("alice", [3]),
        ("alice", [1, 3]),
        ("alice", [1, 1]),
        ("alice", [7]),
        ("alice", [-1]),
    ],
)
def test_what_is_not_expected_is_refused(me, sender, ids):
    """Another sender, another id or an id twice: refused, and all still expected."""
    me.hold(7, [7.0])
    me(Expect((1, 2), "alice"), Expect((3,), "carol"))
    reply = deliver(me.worker, sender, ids)
    assert (type(reply), reply.kind) == (Refused, "RemoteProtocolError")
    assert me.count() == 1
    assert deliver(me.worker, "alice", [1, 2]) == Done()


def test_a_session_that_is_not_there_takes_no_delivery(me):
    """A delivery to an unknown session is refused by name."""
    reply = deliver(me.worker, "alice", [1], session="elsewhere")
    assert reply.kind == "WorkerClosedError"


def test_part_of_what_is_expected_may_come_alone(me):
    """Ids that were expected together may be delivered apart."""
    me(Expect((1, 2), "alice"))
    assert deliver(me.worker, "alice", [2]) == Done()
    assert deliver(me.worker, "alice", [1]) == Done()
    assert me.count() == 2


def test_a_delivery_is_all_or_nothing(me):
    """If one of its tensors can not be held, none of them is."""
    me(Expect((1, 2), "alice"))
    me.batch(Put(2, FLOAT), frames=[to_frame(torch.zeros(1))])
    deliver(me.worker, "alice", [1, 2])
    one, two = (me(Fetch(id))[0] for id in (1, 2))
    assert type(one) is type(two)


def test_an_id_that_is_expected_is_taken(me, run):
    """Nothing else can take an id that another worker may fill, a failure neither."""
    me.hold(5, [5.0])
    me(Expect((1,), "alice"))
    for request in (Alias(5, 1), run("aten.neg.default", Ref(5), out=1)):
        assert me.fails(request).kind == "RemoteProtocolError"
    assert deliver(me.worker, "alice", [1]) == Done()
    assert me.value(1).item() == 1.0


def test_an_id_that_names_something_can_not_be_expected(me):
    """Expecting a taken id fails as a whole: the ids beside it are free."""
    me.hold(1, [1.0])
    assert me.fails(Expect((2, 1), "alice")).kind == "RemoteProtocolError"
    reply = deliver(me.worker, "alice", [2])
    assert isinstance(reply, Refused)
    me.hold(2, [2.0])


def test_an_id_can_not_be_expected_twice(me):
    """The first sender who was named stays the one who may deliver."""
    me(Expect((1,), "alice"))
    assert me.fails(Expect((1,), "mallory")).kind == "RemoteProtocolError"
    assert isinstance(deliver(me.worker, "mallory", [1]), Refused)


def test_what_was_not_delivered_yet_says_so(me):
    """An object that is on its way is told from one that never was."""
    me(Expect((1,), "alice"))
    assert "never delivered" in me.fails(Fetch(1)).text
    assert "unknown" in me.fails(Fetch(2)).text


def test_a_delivered_tensor_is_a_leaf(me):
    """What arrives requires a gradient if its sender says so."""
    me(Expect((1, 2), "alice"))
    tracked = TensorData("float32", (1,), 0, True)
    assert deliver(me.worker, "alice", [1, 2], [tracked, FLOAT]) == Done()
    assert me.value(1).requires_grad
    assert not me.value(2).requires_grad
    me(Backward((1,), (None,), None, False, False), ReadGrad(1, 3))
    assert me.value(3).item() == 1.0


@pytest.mark.parametrize(
    ("spec", "frame"),
    [
        (TensorData("int64", (1,), 0, True), bytes(8)),
        (TensorData("uint8", (2**40, 2**40, 0), 0), b""),
        (TensorData("uint8", (2**64 - 1, 0), 0), b""),
    ],
    ids=["an integer that requires a gradient", "sizes that overflow", "a huge size"],
)
def test_a_hostile_peer_can_not_break_the_worker(me, spec, frame):
    """A delivery that no tensor can be made of is refused, even past the codec."""
    me(Expect((1,), "mallory"))
    reply = deliver(me.worker, "mallory", [1], [spec], [frame])
    assert isinstance(reply, Refused)
    assert me.count() == 0


# --- moves --------------------------------------------------------------------------


def test_a_move_asks_for_a_delivery(me):
    """The effect names the other worker and carries the message and its frames."""
    x = me.hold(1, [1.0, 2.0])
    y = me.hold(2, torch.tensor([[3]]))
    assert me.batch(Count(), Move((2, 1), "alice", "there", (8, 9))).answers == ()
    (effect,) = me.effects
    assert isinstance(effect, Delivery)
    assert (effect.to, effect.index) == ("alice", 1)
    assert effect.message == Deliver(
        "there",
        (8, 9),
        (TensorData("int64", (1, 1), 0), TensorData("float32", (2,), 1)),
    )
    assert [bytes(f) for f in effect.frames] == [
        bytes(to_frame(y)),
        bytes(to_frame(x)),
    ]
    (counted,) = me.settle(None)
    assert counted.count == 2


def test_a_move_forgets_only_what_arrived(me):
    """After success the objects are gone, after a refusal they are all still here."""
    me.hold(1, [1.0], "tagged")
    me.hold(2, [2.0])
    me.batch(Move((1,), "alice", "t", (8,)), Move((2,), "carol", "t", (9,)))
    assert [effect.to for effect in me.effects] == ["alice", "carol"]
    (failed,) = me.settle(None, Refused("WorkerClosedError", "carol is closed"))
    assert (failed.index, failed.op, failed.kind) == (1, "move", "WorkerClosedError")
    assert "carol is closed" in failed.text
    assert me.fails(Fetch(1)).kind == "ObjectNotFoundError"
    assert me.value(2).item() == 2.0


def test_a_move_ships_the_moments_values(me, run):
    """Requests after a move in its batch do not change what it carries."""
    me.hold(1, [1.0])
    me.batch(
        Move((1,), "alice", "t", (8,)), run("aten.add_.Tensor", Ref(1), 1.0), Count()
    )
    (effect,) = me.effects
    assert bytes(effect.frames[0]) == bytes(to_frame(torch.tensor([1.0])))
    me.settle(None)


def test_a_move_of_what_is_not_there_fails(me):
    """A missing object fails the move as a whole; nothing leaves."""
    me.hold(1, [1.0])
    assert me.fails(Move((1, 5), "alice", "t", (8, 9))).kind == "ObjectNotFoundError"
    assert me.effects == ()
    assert me.value(1).item() == 1.0


def test_a_move_names_one_id_there_for_each_here(me):
    """Fewer or more ids there than here are refused."""
    me.hold(1, [1.0])
    assert me.fails(Move((1,), "alice", "t", ())).kind == "RemoteProtocolError"
    assert me.fails(Move((1,), "alice", "t", (8, 9))).kind == "RemoteProtocolError"


def test_a_moved_failure_stays_one(me, run):
    """What could not be made can not be moved; its receiver waits in vain."""
    me.hold(1, [1.0])
    me(run("aten.view.default", Ref(1), [3], out=2))
    me.batch(Move((2,), "alice", "t", (8,)), Fetch(2))
    assert me.effects == ()


def test_a_batch_that_moves_can_be_sent_again(me):
    """Once it is settled, the same batch gives the same reply and no effects."""
    me.hold(1, [1.0])
    requests = (Move((1,), "alice", "t", (8,)), Count())
    me.batch(*requests)
    answers = me.settle(None)
    again = me.batch(*requests, number=me.number)
    assert list(again.answers) == answers
    assert me.effects == ()


def test_a_batch_that_is_being_delivered_is_not_applied_again(me):
    """Sent again before it is settled: the same deliveries, and no failure."""
    me.hold(1, [1.0])
    requests = (Move((1,), "alice", "t", (8,)), Count())
    me.batch(*requests)
    before = me.effects
    me.batch(*requests, number=me.number)
    assert me.effects == before
    (counted,) = me.settle(None)
    assert counted.count == 1


def test_a_batch_that_is_being_delivered_can_not_be_changed(me):
    """Neither a shorter batch nor the next one breaks what is under way."""
    me.hold(1, [1.0])
    me.batch(Move((1,), "alice", "t", (8,)), Count())
    for number in (me.number, me.number + 1):
        me.batch(Count(), number=number)
    me.settle(None)
    assert me.fails(Fetch(1)).kind == "ObjectNotFoundError"


def test_what_arrives_after_its_batch_was_given_up_is_not_here(me):
    """Its owner was told that it stayed; what is true is found out at the next use."""
    me.hold(1, [1.0])
    me.batch(Move((1,), "alice", "t", (8,)), Count())
    me.batch(number=me.number)
    me.settle(None)
    assert me.fails(Fetch(1)).kind == "ObjectNotFoundError"


def test_a_batch_that_was_refused_on_its_way_can_be_given_up(me):
    """A client that was told so sends an empty batch, and the session goes on.

    Its shell may have failed between the batch and its settling.
    """
    me.hold(1, [1.0])
    me.batch(Move((1,), "alice", "t", (8,)), Count())
    reply = me.batch(number=me.number)
    assert isinstance(reply, Results)
    (failed,) = [one for one in reply.answers if isinstance(one, Failed)]
    assert failed.kind == "LimitError"
    assert me.value(1).item() == 1.0
    me.batch(Move((1,), "alice", "t", (9,)))
    assert me.settle(None) == []


def test_an_object_that_moves_twice_is_forgotten_once(me):
    """Two moves of one object in a batch deliver it twice and end well."""
    me.hold(1, [1.0])
    me.batch(Move((1,), "alice", "t", (8,)), Move((1,), "carol", "t", (9,)), Free((1,)))
    assert len(me.effects) == 2
    assert me.settle(None, None) == []
    assert me.count() == 0


def test_settling_again_changes_nothing(me):
    """A batch that has ended gives the reply that it gave."""
    me.hold(1, [1.0])
    me.batch(Move((1,), "alice", "t", (8,)), Count())
    assert me.settle(None) == me.settle()


def test_what_is_forgotten_on_its_way_arrives_and_is_gone(me):
    """A name that goes before its object came spoils nothing that came along."""
    me(Expect((1, 2), "alice"), Free((2,), True))
    assert deliver(me.worker, "alice", [1, 2]) == Done()
    assert deliver(me.worker, "alice", [1, 2]) == Done()  # its answer was lost
    assert me.count() == 1
    assert me.fails(Fetch(2)).kind == "ObjectNotFoundError"
    me(Expect((3,), "alice"), Clear())
    for sender in ("mallory", "me"):
        assert deliver(me.worker, sender, [3]).kind == "RemoteProtocolError"
    assert deliver(me.worker, "alice", [3]) == Done()
    assert me.count() == 0


# --- header, then bytes ---------------------------------------------------------------


def announce(worker, sender, ids, tensors=None, session="s", **fields):
    """Hand the header of a delivery in and return the reply."""
    tensors = [FLOAT] * len(ids) if tensors is None else tensors
    tensors = tuple(
        TensorData(t.dtype, t.shape, k, t.requires_grad) for k, t in enumerate(tensors)
    )
    message = Deliver(session, tuple(ids), tensors, **fields)
    return worker.handle(sender, Parcel(message, ()), 0.0)[0].message


def test_a_header_is_accepted_and_the_bytes_follow(me):
    """What was announced is on its way until it comes; announced again, it still is."""
    me(Expect((1, 2), "alice"))
    assert announce(me.worker, "alice", [1, 2]) == Done()
    assert announce(me.worker, "alice", [1, 2], seen=4) == Done()
    assert me.count() == 0
    (failed,) = me(Fetch(1))
    assert (failed.kind, "on its way" in failed.text) == ("ObjectNotFoundError", True)
    assert deliver(me.worker, "alice", [1, 2]) == Done()
    assert me.value(2).item() == 1.0
    assert announce(me.worker, "alice", [1, 2]) == Done()
    assert me.value(2).item() == 1.0


@pytest.mark.parametrize(
    ("sender", "ids"), [("mallory", [1, 2]), ("alice", [1, 3]), ("alice", [1, 1])]
)
def test_a_header_of_what_is_not_expected_is_refused(me, sender, ids):
    """As the delivery would be; nothing is kept free for it."""
    me(Expect((1, 2), "alice"))
    assert announce(me.worker, sender, ids).kind == "RemoteProtocolError"
    assert deliver(me.worker, "alice", [1, 2]) == Done()


def test_what_comes_is_what_was_announced(me):
    """Other tensors, or other ids among them, are refused; the announced come."""
    two = TensorData("float32", (2,), 0)
    me(Expect((1, 2), "alice"))
    assert announce(me.worker, "alice", [1]) == Done()
    for ids, tensors in (([1], [two]), ([1, 2], [FLOAT, FLOAT])):
        frames = [bytes(4 * t.shape[0]) for t in tensors]
        assert announce(me.worker, "alice", ids, tensors).kind == "RemoteProtocolError"
        reply = deliver(me.worker, "alice", ids, tensors, frames)
        assert reply.kind == "RemoteProtocolError"
    assert deliver(me.worker, "alice", [1]) == Done()
    assert deliver(me.worker, "alice", [2]) == Done()


def test_what_does_not_come_is_a_failure(me, run):
    """Who uses it is told; its ids can not be filled any more."""
    me(Expect((1, 2), "alice"))
    announce(me.worker, "alice", [1, 2])
    assert announce(me.worker, "alice", [1, 2], spoilt=True) == Done()
    (failed,) = me(Fetch(2))
    assert failed.kind == "TransportError"
    assert "alice announced this" in failed.text
    assert deliver(me.worker, "alice", [1, 2]) == Done()
    assert me(Fetch(1))[0].kind == "TransportError"
    spoilt = announce(me.worker, "mallory", [1, 2], spoilt=True)
    assert spoilt.kind == "RemoteProtocolError"


def test_what_was_forgotten_before_it_came_is_dropped(me):
    """Whether it comes or not."""
    me(Expect((1, 2), "alice"))
    announce(me.worker, "alice", [1])
    announce(me.worker, "alice", [2])
    me(Free((1, 2)))
    assert deliver(me.worker, "alice", [1]) == Done()
    assert announce(me.worker, "alice", [2], spoilt=True) == Done()
    assert me.count() == 0
