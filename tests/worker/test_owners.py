"""An owner's worker: low answers and has no values, high follows and answers nobody."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from msgspec import structs

import obhut
from obhut.guard.policy import encode
from obhut.protocol import codec
from obhut.protocol.messages import (
    NOWHERE,
    Aggregate,
    Alias,
    Backward,
    Batch,
    Close,
    Count,
    Deliver,
    Describe,
    Differentiate,
    Done,
    Expect,
    Failed,
    Fetch,
    Free,
    Inline,
    Load,
    Move,
    Open,
    Put,
    ReadGrad,
    Ref,
    Refused,
    Results,
    Run,
    SetRequiresGrad,
    Symbol,
    TensorData,
    WriteData,
)
from obhut.worker.core import Worker
from obhut.worker.effects import Parcel
from obhut.worker.roles import Owner
from obhut.worker.shape_only import ShapeOnly, like
from obhut.worker.tensors import to_frame

from .conftest import POLICY, Driver, OwnersDriver

Runs = Callable[..., Run]
Owners = Callable[..., OwnersDriver]

SECRET = 7_654_321
"""A value that must stand in no log."""

X, LOSS = 1, 90


def kinds(answers: Sequence[Any]) -> list[str]:
    """Return the kinds of failures among answers."""
    return [one.kind for one in answers if isinstance(one, Failed)]


def bad_index(run: Runs, of: int, where: int, out: int) -> Run:
    """Return an operator that fails in high where ``where`` is out of range."""
    return run("aten.index_select.default", Ref(of), 0, Ref(where), out=out)


# --- who answers ----------------------------------------------------------------------


class NoBytes:
    """A frame that has a length and can not be read."""

    def __len__(self) -> int:
        return 12


def test_who_answers_holds_no_memory_and_reads_no_frame(opened: Any, run: Runs):
    """Each of its tensors has sizes and nothing behind them.

    Where programs are compared it hashes what comes, and holds no more of it.
    """
    rows = {"d": {"features": like(torch.ones(4, 3))}}
    owner = Owner(structs.replace(POLICY, programs="any"), print)
    low = opened(Worker("bob", role=owner, datasets=rows, memory_limit=10**6))
    requests = (
        Put(2, TensorData("float32", (3,), 0, True)),
        Load("d", "features", X),
        run("aten.mv.default", Ref(X), Ref(2), out=3),
        run("aten.sum.default", Ref(3), out=4),
        Backward((4,), (None,), None, False, False),
        ReadGrad(2, 5),
        run("aten.ones.default", [100], out=6),
        Aggregate("sum", (2, 5), 0, 7),
        Aggregate("trimmed_mean", (2, 5, 7), 1, 8),
        Move((8,), "hub", "t", (9,)),
    )
    parcel = Parcel(Batch("s", 1, requests), (NoBytes(),))  # type: ignore[arg-type] # what nobody may read
    reply, (header,) = low.worker.handle("me", parcel, 0.0)
    assert reply.message.answers == ()
    assert header.frames == ()
    held = list(low.worker._sessions["s"].store.held())
    assert len(held) == 8
    for tensor in held:
        assert type(tensor) is ShapeOnly
        assert tensor.data_ptr() == 0


def test_values_are_fetched_from_nobody(owners: Owners):
    """Nor moved to whom the policy does not name; nothing is lost by asking."""
    me = owners()
    me.hold(X, [1.0])
    for request in (Fetch(X), Move((X,), "mallory", "t", (8,))):
        assert me.fails(request).kind == "ReleaseRefusedError"
        assert me.delivered == ()
    assert me.peek(X).tolist() == [1.0]


# --- the same answers whatever the rows -----------------------------------------------

LEAST = -(2**63)
INT64: dict[str, Any] = {"dtype": Symbol("int64")}
ROWS: Mapping[str, torch.Tensor] = {
    "small": torch.tensor([[0.5, 1.0], [2.0, 3.0]]),
    "zeros": torch.zeros(2, 2),
    "large": torch.tensor([[4.0, -1e30], [3e38, 9.0]]),
    "not finite": torch.tensor([[float("nan"), float("inf")], [1.0, 0.0]]),
    "rotation": torch.tensor([[0.0, 1.0], [-1.0, 0.0]]),
}

Program = Callable[[Runs], list[list[Any]]]


def _search(run: Runs) -> list[list[Any]]:
    """Ask whether a number is larger than another, through an index."""
    number = Inline("float32", (), torch.tensor(3.5).numpy().tobytes())
    return [
        [
            run("aten.ones.default", [1], out=2),
            SetRequiresGrad(2, True),
            run("aten.select.int", Ref(X), 0, 0, out=3, grad=False),
            run("aten.select.int", Ref(3), 0, 0, out=4, grad=False),
            run("aten.gt.Tensor", Ref(4), number, out=5, grad=False),
            run(
                "aten._to_copy.default",
                Ref(5),
                out=6,
                grad=False,
                kwargs=INT64,
            ),
            run("aten.view.default", Ref(6), [1], out=7, grad=False),
            run("aten.gather.default", Ref(2), 0, Ref(7), out=8),
            run("aten.zero_.default", Ref(7), out=NOWHERE, grad=False),
            run("aten.sum.default", Ref(8), out=LOSS),
        ],
        [Backward((LOSS,), (None,), None, False, False)],
        [ReadGrad(2, 91, describe=True)],
    ]


def _version(run: Runs) -> list[list[Any]]:
    """Ask whether a write by ``out=`` failed, through what a graph keeps."""
    return [
        [
            run("aten._to_copy.default", Ref(X), out=2, grad=False, kwargs=INT64),
            run("aten.ones.default", [2, 2], out=3, grad=False, kwargs=INT64),
            run("aten.ones.default", [2, 2], out=4),
            SetRequiresGrad(4, True),
            run("aten.ones.default", [2, 2], out=5, grad=False, kwargs=INT64),
            run("aten.mul.Tensor", Ref(4), Ref(5), out=6),
            run(
                "aten.remainder.Tensor_out",
                Ref(3),
                Ref(2),
                out=NOWHERE,
                grad=False,
                kwargs={"out": Ref(5)},
            ),
            run("aten.sum.default", Ref(6), out=LOSS),
        ],
        [Backward((LOSS,), (None,), None, False, False)],
    ]


def _derivative(*ops: Any) -> Program:
    """Return a program that asks for the look of second derivatives."""

    def program(run: Runs) -> list[list[Any]]:
        made = [SetRequiresGrad(X, True)]
        made += [run(op, *args, out=out, count=count) for op, args, out, count in ops]
        last = ops[-1][2]
        return [
            [*made, run("aten.sum.default", Ref(last), out=LOSS)],
            [Differentiate((LOSS,), (None,), (X,), 91, True, True), Describe(91)],
            [
                run("aten.sum.default", Ref(91), out=92),
                Differentiate((92,), (None,), (X,), 93, False, False),
                Describe(93),
            ],
        ]

    return program


def _in_place(run: Runs) -> list[list[Any]]:
    """Ask whether ``cumprod``'s derivative needs its result."""
    return [
        [
            SetRequiresGrad(X, True),
            run("aten.cumprod.default", Ref(X), 0, out=2),
            run("aten.add_.Tensor", Ref(2), 1, out=NOWHERE),
            run("aten.sum.default", Ref(2), out=LOSS),
        ],
        [Backward((LOSS,), (None,), None, False, False)],
        [ReadGrad(X, 91, describe=True)],
    ]


def _combining(run: Runs) -> list[list[Any]]:
    """Ask an aggregation at the owner."""
    return [
        [
            Alias(X, 2),
            run("aten.neg.default", Ref(X), out=3),
            Aggregate("trimmed_mean", (X, 2, 3), 1, 4),
            Describe(4),
            Aggregate("sum", (X, 3), 0, 5, (1, -1)),
            Describe(5),
        ],
        [Move((4, 5), "hub", "t", (8, 9))],
    ]


def _failing(run: Runs) -> list[list[Any]]:
    """Let some operators fail, and go on with what they did not make."""
    return [
        [
            run("aten._to_copy.default", Ref(X), out=2, grad=False, kwargs=INT64),
            run("aten.select.int", Ref(2), 0, 0, out=3, grad=False),
            run("aten.index_select.default", Ref(X), 0, Ref(3), out=4, describe=True),
            run("aten._linalg_eigh.default", Ref(X), out=5, count=2, describe=True),
            run("aten.bernoulli.default", Ref(X), out=7, describe=True, seed=1),
            run("aten.multinomial.default", Ref(X), 1, out=8, describe=True, seed=1),
            run("aten.cholesky.default", Ref(X), out=9, describe=True),
            run("aten.linalg_inv_ex.default", Ref(X), out=10, count=2, describe=True),
            run("aten.mm.default", Ref(10), Ref(4), out=12, describe=True),
            run("aten.mm.default", Ref(10), Ref(10), out=13, describe=True),
        ],
        [Count(), Move((4, 9), "hub", "t", (8, 9)), Move((X,), "hub", "t", (10,))],
        [Count(), Describe(12)],
    ]


PROGRAMS: dict[str, Program] = {
    "an index that may be out of range": _search,
    "a write that may fail": _version,
    "det": _derivative(("aten._linalg_det.default", [Ref(X)], 2, 3)),
    "slogdet": _derivative(("aten._linalg_slogdet.default", [Ref(X)], 2, 4)),
    "solve": _derivative(("aten._linalg_solve_ex.default", [Ref(X), Ref(X)], 2, 4)),
    "eig": _derivative(
        ("aten.linalg_eig.default", [Ref(X)], 2, 2),
        ("aten.view_as_real.default", [Ref(3)], 4, 1),
        ("aten.select.int", [Ref(4), -1, 0], 5, 1),
    ),
    "cumprod": _derivative(("aten.cumprod.default", [Ref(X), 0], 2, 1)),
    "a write to the result of cumprod": _in_place,
    "a trimmed mean": _combining,
    "failures": _failing,
}


def transcript(me: Driver, batches: list[list[Any]]) -> list[bytes]:
    """Return every byte that a requester and an aggregator get of a program."""
    said: list[bytes] = []
    for requests in ([Load("d", "features", X)], *batches):
        me.number += 1
        reply = me.handle(Batch("s", me.number, tuple(requests)))
        if isinstance(me, OwnersDriver):
            headers = me.headers
        else:
            headers = me.effects
            if headers:
                settled = me.worker.settle("me", "s", [None] * len(headers))
                reply = settled.message
        said.append(codec.encode(reply))
        said += [codec.encode(one.message) for one in headers]
        assert all(one.frames == () for one in headers)
    return said


def of_rows(owners: Owners, rows: torch.Tensor, program: list[list[Any]]) -> Any:
    """Return the transcript of a program on rows."""
    return transcript(owners(datasets={"d": {"features": rows}}), program)


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_answers_are_the_same_whatever_the_rows(
    owners: Owners, opened: Any, run: Runs, program: Program
):
    """Byte for byte, and low alone, which has no rows, gives them as well."""
    rows = {"d": {"features": like(torch.ones(2, 2))}}
    low = opened(Worker("bob", role=Owner(POLICY, print), datasets=rows))
    expected = transcript(low, program(run))
    assert not any(b"no such operator" in one for one in expected)
    for name, values in ROWS.items():
        found = of_rows(owners, values.clone(), program(run))
        assert found == expected, name


OPEN_TELLS = {
    "an index that may be out of range",
    "a write that may fail",
    "det",
    "eig",
    "failures",
}


@pytest.mark.parametrize("name", sorted(OPEN_TELLS))
def test_an_open_worker_answers_by_the_rows(opened: Any, run: Runs, name: str):
    """These programs tell rows apart where nothing keeps them from it."""
    found = set()
    for values in ROWS.values():
        rows = {"d": {"features": values.clone()}}
        me = opened(Worker("bob", datasets=rows))
        told = []
        for requests in ([Load("d", "features", X)], *PROGRAMS[name](run)):
            reply = me.batch(*(r for r in requests if not isinstance(r, Move)))
            told.append(codec.encode(reply))
        found.add(tuple(told))
    assert len(found) > 1


def test_what_would_end_a_process_is_answered_without_it(opened: Any, run: Runs):
    """Low answers for operators that end a process on some integers, and lives."""
    rows = {"d": {"features": like(torch.tensor([LEAST]))}}
    low = opened(Worker("bob", role=Owner(POLICY, print), datasets=rows))
    low(Load("d", "features", X))
    five = Inline("int64", (1,), (5).to_bytes(8, "little"))
    told = low(run("aten.lcm.default", Ref(X), five, out=2, describe=True))
    assert told[0].specs[0].shape == (1,)
    mode = {"rounding_mode": "trunc"}
    name = "aten.div.Scalar_mode"
    told = low(run(name, Ref(X), -1, out=3, describe=True, kwargs=mode))
    assert told[0].specs[0].dtype == "int64"


# --- what low tells -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "rows", "words"),
    [
        (torch.ones(1, 2), torch.ones(4, 2).double(), "same dtype"),
        (torch.ones(1, 2), torch.ones(4, 3), "shapes cannot be multiplied"),
        (torch.ones(1, 2), torch.ones(4, 2).int(), "same dtype"),
    ],
    ids=["float64", "sizes", "int32"],
)
def test_what_is_wrong_of_sizes_and_dtypes_is_told(
    owners: Owners, run: Runs, weight: torch.Tensor, rows: torch.Tensor, words: str
):
    """In PyTorch's words, and not to the owner."""
    log: list[str] = []
    me = owners(datasets={"d": {"features": rows}}, log=log.append)
    me.hold(2, weight)
    me(Load("d", "features", X))
    failed = me.fails(run("aten.linear.default", Ref(X), Ref(2), out=3))
    assert words in failed.text
    with pytest.raises(RuntimeError) as raised:
        torch.nn.functional.linear(rows, weight)
    assert failed.text == str(raised.value)
    assert log == []


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32])
def test_targets_of_another_dtype_are_refused(
    owners: Owners, run: Runs, dtype: torch.dtype
):
    """As a local cross entropy refuses them, and no loss is zero in silence."""
    me = owners(datasets={"d": {"target": torch.zeros(4, dtype=dtype)}})
    me.hold(2, torch.ones(4, 3))
    me(Load("d", "target", X))
    name = "aten.nll_loss_forward.default"
    failed = me.fails(run(name, Ref(2), Ref(X), None, 1, -100, out=3, count=2))
    with pytest.raises(RuntimeError) as raised:
        torch.nn.functional.nll_loss(torch.ones(4, 3), torch.zeros(4, dtype=dtype))
    assert failed.text == str(raised.value)


def test_a_second_backward_and_a_late_write_are_told(owners: Owners, run: Runs):
    """As autograd tells them; high runs neither, and keeps what it has."""
    me = owners()
    me.hold(2, torch.ones(2, requires_grad=True))
    square = run("aten.mul.Tensor", Ref(2), Ref(2), out=3)
    exp = run("aten.exp.default", Ref(3), out=4)
    total = run("aten.sum.default", Ref(4), out=5)
    backward = Backward((5,), (None,), None, False, False)
    assert me(square, exp, total, backward) == []
    assert "second time" in me.fails(backward).text
    me(Free((3, 4, 5)), square, exp, total)
    me(run("aten.zero_.default", Ref(4), out=NOWHERE, grad=False))
    assert "modified by an inplace operation" in me.fails(backward).text
    assert (
        "a leaf Variable"
        in me.fails(run("aten.add_.Tensor", Ref(2), 1, out=NOWHERE)).text
    )
    me(ReadGrad(2, 6))
    assert torch.allclose(me.peek(6), torch.full((2,), 2 * torch.e))


@pytest.mark.parametrize(
    "requests",
    [
        [("aten.nonzero.default", [Ref(X)])],
        [("aten._local_scalar_dense.default", [Ref(X)])],
        [("aten.masked_select.default", [Ref(X), Ref(X)])],
    ],
)
def test_what_needs_a_value_is_refused_by_name(
    owners: Owners, run: Runs, requests: list[Any]
):
    """With what to do instead, in the op table's words."""
    me = owners()
    me.hold(X, [True])
    for op, args in requests:
        failed = me.fails(run(op, *args, out=5))
        assert (failed.kind, failed.op) == ("OpNotAdmittedError", op)


def test_memory_is_limited_by_sizes(owners: Owners, run: Runs):
    """Low counts what high would hold; what it refuses high does not make."""
    me = owners(memory_limit=1000)
    me.hold(X, torch.ones(100))
    failed = me.fails(run("aten.repeat.default", Ref(X), [3], out=2))
    assert (failed.kind, failed.facts) == ("MemoryLimitError", (1200, 400, 1000))
    me(run("aten.neg.default", Ref(X), out=3), Free((X,)))
    assert me(run("aten.neg.default", Ref(3), out=4)) == []
    assert me.peek(4).tolist() == [1.0] * 100


# --- what high drops ------------------------------------------------------------------


def test_a_spoilt_round_spoils_no_other(owners: Owners, run: Runs):
    """One bad batch in round 7: its contribution is spoilt, and that of round 8 is not.

    Nothing is answered differently, and the session goes on.
    """
    log: list[str] = []
    rows = {"features": torch.ones(3, 2), "target": torch.tensor([0, 1, SECRET])}
    me = owners(datasets={"d": rows}, log=log.append)
    me(Load("d", "features", X), Load("d", "target", 2))
    said, spoilt = [], []
    for number, stop in ((7, 3), (8, 2)):
        first = number * 100
        weight, loss, grad = first, first + 4, first + 9
        me.hold(weight, torch.ones(2, 2, requires_grad=True))
        told = me(
            run("aten.slice.Tensor", Ref(2), 0, stop - 2, stop, out=first + 1),
            run("aten.slice.Tensor", Ref(X), 0, stop - 2, stop, out=first + 2),
            run("aten.linear.default", Ref(first + 2), Ref(weight), out=first + 3),
            run(
                "aten.nll_loss_forward.default",
                Ref(first + 3),
                Ref(first + 1),
                None,
                1,
                -100,
                out=loss,
                count=2,
            ),
            Backward((loss,), (None,), None, False, False),
            ReadGrad(weight, grad),
            run("aten.sub_.Tensor", Ref(weight), Ref(grad), out=NOWHERE, grad=False),
            Move((weight, loss), "hub", "t", (first, first + 1)),
        )
        said.append(told)
        (delivery,) = me.delivered
        spoilt.append(delivery.message.spoilt)
        assert delivery.message.policy == encode(POLICY)
    assert said == [[], []]
    assert spoilt == [True, False]
    assert "IndexError" in log[0]
    assert not any(str(SECRET) in line for line in log)


def test_a_refused_delivery_leaves_what_it_was_of(owners: Owners):
    """Its header was not accepted: high does not make it, and has the tensor still."""
    me = owners()
    me.hold(X, [1.0])
    me.refused = Refused("ReleaseRefusedError", "no: no")
    (failed,) = me(Move((X,), "hub", "t", (8,)))
    assert (failed.kind, me.delivered) == ("ReleaseRefusedError", ())
    me.refused = None
    assert me.peek(X).tolist() == [1.0]


def test_what_low_refused_is_not_done(owners: Owners, run: Runs):
    """Also where high could have done it."""
    me = owners(memory_limit=1000)
    me.hold(X, torch.ones(100))
    big = run("aten.repeat.default", Ref(X), [3], out=2)
    again = run("aten.neg.default", Ref(2), out=3)
    assert kinds(me(big, again)) == ["MemoryLimitError"]
    (high,) = me.worker._highs.values()
    assert list(high._store._objects) == [X]


def test_a_cancelled_batch_is_followed_so_far(owners: Owners, run: Runs):
    """Of it only names are kept; nothing is computed and nothing leaves."""
    me = owners()
    me.hold(X, [1.0])
    me.hold(2, [2.0])
    me.number += 1
    add = run("aten.add_.Tensor", Ref(2), 1, out=NOWHERE, grad=False)
    requests = (add, Move((2,), "hub", "t", (8,)), WriteData(2, X), Free((X,)))
    reply = me.handle(Batch("s", me.number, requests, cancelled=True))
    assert isinstance(reply, Results)
    assert reply.cut == 0
    assert me.headers == me.delivered == ()
    (high,) = me.worker._highs.values()
    assert list(high._store._objects) == list(me.worker._sessions["s"].store._objects)
    assert me.peek(2).tolist() == [1.0]


def test_a_batch_that_comes_again_is_followed_once(owners: Owners, run: Runs):
    """Its reply is the same, and nothing is written twice."""
    me = owners()
    me.hold(X, [1.0])
    add = run("aten.add_.Tensor", Ref(X), 1, out=NOWHERE, grad=False)
    first = me.batch(add)
    assert me.batch(add, number=me.number) == first
    assert me.peek(X).item() == 2.0


def test_a_batch_that_was_given_up_is_not_half_there(owners: Owners, run: Runs):
    """Low did what high never saw: nothing of before is delivered as if it had."""
    me = owners()
    me.hold(X, [1.0])
    add = run("aten.add_.Tensor", Ref(X), 1, out=NOWHERE, grad=False)
    me.number += 1
    lost = Batch("s", me.number, (add, Move((X,), "hub", "t", (8,))))
    me.worker.handle("me", Parcel(lost), 0.0)  # and its shell fails
    assert kinds(me.batch(number=me.number).answers) == ["LimitError"]
    assert me.peek(X) is None
    me.hold(2, [2.0])
    assert me.peek(2).item() == 2.0


def test_random_numbers_are_high_only(owners: Owners, run: Runs):
    """They come from the request's seed, and low draws none."""
    me = owners()
    state = torch.get_rng_state()
    low = me.worker.handle(
        "me",
        Parcel(Batch("s", 1, (run("aten.rand.default", [3], out=1, seed=7),))),
        0.0,
    )
    assert low[0].message == Results(1, ())
    assert torch.equal(torch.get_rng_state(), state)
    me.number = 0
    me.batch(run("aten.rand.default", [3], out=1, seed=7))
    torch.manual_seed(7)
    assert torch.equal(me.peek(1), torch.rand(3))


# --- sessions, and what others deliver ------------------------------------------------


def test_each_session_has_its_own(owners: Owners):
    """A session has nothing of another; closed or expired, its tensors go."""
    me = owners(session_seconds=10.0)
    me.hold(X, [1.0])
    you = OwnersDriver(me.worker, "me", "t")
    you.open()
    you.hold(X, [2.0])
    assert (me.peek(X).item(), you.peek(X).item()) == (1.0, 2.0)
    assert set(me.worker._highs) == {"s", "t"}
    assert me.handle(Close("s")) == Done()
    assert set(me.worker._highs) == {"t"}
    you.now = 100.0
    again = OwnersDriver(me.worker, "me", "u")
    again.now = 100.0
    again.open()
    again.hold(X, [3.0])
    assert set(me.worker._highs) == {"u"}


def test_nobody_elses_messages_are_followed(owners: Owners):
    """What low refuses a stranger changes nothing in high."""
    me = owners()
    me.hold(X, [1.0])
    stranger = OwnersDriver(me.worker, "mallory")
    assert isinstance(stranger.batch(Free((X,))), Refused)
    assert isinstance(stranger.handle(Close("s")), Refused)
    assert me.peek(X) is not None


def deliver(me: OwnersDriver, ids: Sequence[int], **how: Any) -> Any:
    """Hand in a delivery of a worker's, its header first; return what is said."""
    tensors = tuple(TensorData("float32", (1,), k) for k in range(len(ids)))
    sender = OwnersDriver(me.worker, "hub")
    message = Deliver(me.name, tuple(ids), tensors, **how)
    said = [sender.handle(message)]
    frames = [to_frame(torch.full((1,), float(id))) for id in ids]
    if not message.spoilt:
        said.append(sender.handle(message, frames))
    return said


def test_what_another_worker_delivers_is_in_both(owners: Owners, run: Runs):
    """Low has its look, high its values; what does not come is missing."""
    me = owners()
    (failed,) = me(Expect((3, 4), "hub"), Describe(3))
    assert failed.kind == "ObjectNotFoundError"
    assert deliver(me, [3]) == [Done(), Done()]
    assert me(Describe(3))[0].specs[0].shape == (1,)
    assert me.peek(3).item() == 3.0
    assert deliver(me, [4], spoilt=True) == [Done()]
    assert kinds(me(Describe(4))) == ["TransportError"]
    (refused, _) = deliver(me, [9])
    assert isinstance(refused, Refused)


def test_a_delivery_before_any_batch_waits_for_none(owners: Owners):
    """A session that has asked for nothing expects nothing."""
    me = owners()
    assert {type(one) for one in deliver(me, [3])} == {Refused}
    assert me.worker._highs == {}
    assert me.worker.undone("s") == set()


def test_an_aggregation_at_the_owner_is_one(owners: Owners):
    """Low says what it looks like and what is wrong, high has its values."""
    me = owners(memory_limit=1000)
    for id in (1, 2, 3):
        me.hold(id, [float(id), 5.0])
    assert me(Aggregate("trimmed_mean", (1, 2, 3), 1, 4)) == []
    assert me(Aggregate("sum", (1, 2), 0, 5, (1, -2), 1, "float64")) == []
    assert me.peek(4).tolist() == [2.0, 5.0]
    assert me.peek(5).tolist() == [-3.0, -5.0]
    assert me.fails(Aggregate("trimmed_mean", (1, 2), 1, 6)).kind
    me.hold(7, torch.ones(120))
    assert kinds(me(Aggregate("sum", (7, 7), 0, 8))) == ["MemoryLimitError"]


def test_what_follows_on_no_batch_is_nothing(owners: Owners):
    """An open session, a header, a refusal: there is nothing to do after them."""
    me = owners()
    for reply in (Done(), Refused("LimitError", "no")):
        parcel = Parcel(Open("s", 1, ""))
        assert me.worker.follow("me", parcel, reply) == ()
    header = Deliver("s", (3,), (TensorData("float32", (1,), 0),))
    assert me.worker.follow("hub", Parcel(header), Done()) == ()
    come = Parcel(header, (to_frame(torch.ones(1)),))
    assert me.worker.follow("hub", come, Done()) == ()
    assert me.worker._highs == {}


def test_a_failed_backward_is_why_there_is_no_gradient(owners: Owners, run: Runs):
    """Low tells of the pass that it refused, where a gradient is asked for."""
    me = owners()
    me.hold(2, torch.ones(2, requires_grad=True))
    failed = me.fails(Backward((2,), (None,), None, False, False))
    assert "scalar outputs" in failed.text
    again = me(ReadGrad(2, 3), Describe(3))
    assert [one.text for one in again] == [failed.text]


def test_an_error_names_no_file_of_the_workers():
    """PyTorch adds lines of its own process to some errors; they stay there."""
    policy = obhut.Quorum(aggregators=["hub"], contributors=["a", "b", "bob"])
    bob = obhut.VirtualWorker("bob", policy=policy)
    x = obhut.send(torch.tensor(1.0), bob)
    session = bob.session
    session.post(
        Run("aten.zeros.default", [Ref(x._held.id)], {}, session.new_id(), 1, True)
    )
    with pytest.raises(obhut.ObhutError, match="Expected a value of type") as told:
        bob.wait()
    assert ".py" not in str(told.value).split("called at")[0]
    bob.close()
