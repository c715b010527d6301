"""How tensors were made, as low's headers state it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from msgspec import structs

from obhut.guard.policy import SAME, Quorum
from obhut.protocol import codec
from obhut.protocol.codec import FrameDigest
from obhut.protocol.messages import (
    NOWHERE,
    Aggregate,
    Alias,
    Backward,
    Batch,
    Clear,
    Deliver,
    Differentiate,
    Expect,
    Free,
    Label,
    Load,
    Move,
    Put,
    ReadData,
    ReadGrad,
    Ref,
    RetainGrad,
    Run,
    SetRequiresGrad,
    Symbol,
    TensorData,
    WriteData,
    WriteGrad,
)
from obhut.worker import provenance
from obhut.worker.effects import Parcel
from obhut.worker.owners import OwnersWorker
from obhut.worker.roles import Owner
from obhut.worker.tensors import to_frame

from .conftest import POLICY, OwnersDriver

Runs = Callable[..., Run]
COMPARED = POLICY
assert COMPARED.programs == SAME
DATA = {"d": {"features": torch.ones(4, 2), "target": torch.ones(4, 1)}}


def driver(id: str = "bob", policy: Quorum = COMPARED, **options: Any) -> OwnersDriver:
    """Return a client of an owner's worker with a data set."""
    worker = OwnersWorker(id, Owner(policy, print), datasets=DATA, **options)
    made = OwnersDriver(worker, "me", f"session of {id}")
    made.open()
    return made


def stated(me: OwnersDriver, *ids: int) -> tuple[bytes, ...]:
    """Return what a header states of objects, which stay."""
    outs = tuple(range(1 << 40, (1 << 40) + len(ids)))
    aliases = [Alias(id, out) for id, out in zip(ids, outs, strict=True)]
    assert me(*aliases, Move(outs, "hub", "t", outs)) == []
    (header,) = me.headers
    (delivery,) = me.delivered
    assert delivery.message.digests == header.message.digests
    return header.message.digests


def made(*steps: Any, of: int = 9, me: OwnersDriver | None = None) -> bytes:
    """Return what is stated of an object after requests, and tensors that are held."""
    me = me or driver()
    for step in steps:
        if isinstance(step, tuple):
            me.hold(step[0], step[1])
        else:
            failed = [one for one in me(step) if type(one).__name__ == "Failed"]
            assert not failed, failed
    (digest,) = stated(me, of)
    return digest


X, W = 1, 2
LEAF = torch.ones(2, requires_grad=True)
ROWS = Load("d", "features", X)


def _run(op: str, *args: Any, out: int = 9, **fields: Any) -> Run:
    known = {"kwargs": {}, "count": 1, "grad": True}
    return Run(op, list(args), out=out, **{**known, **fields})


TIMES = _run("aten.mul.Tensor", Ref(X), 0.5)
LOSS = [
    ROWS,
    (W, LEAF),
    _run("aten.mul.Tensor", Ref(X), Ref(W), out=3),
    _run("aten.sum.default", Ref(3), out=4),
]
GRAD = [Backward((4,), (None,), None, False, False), ReadGrad(W, 9)]

DIFFERENT: dict[str, list[list[Any]]] = {
    "literals": [
        [ROWS, TIMES],
        [ROWS, _run("aten.mul.Tensor", Ref(X), 0.25)],
        [ROWS, _run("aten.mul.Tensor", Ref(X), 1)],
        [ROWS, _run("aten.mul.Tensor", Ref(X), True)],
        [ROWS, _run("aten.div.Tensor", Ref(X), 0.5)],
        [ROWS, _run("aten.mul.Tensor", Ref(X), 0.5, grad=False)],
    ],
    "keywords": [
        [ROWS, _run("aten.add.Tensor", Ref(X), Ref(X), kwargs={"alpha": n})]
        for n in (1, 2)
    ]
    + [[ROWS, _run("aten.add.Tensor", Ref(X), Ref(X))]],
    "lists": [
        [ROWS, (W, torch.ones(4, 2)), _run("aten.cat.default", [Ref(a), Ref(b)])]
        for a, b in ((X, W), (W, X), (X, X))
    ],
    "data": [
        [Load("d", "features", 9)],
        [Load("d", "target", 9)],
        [(9, torch.ones(4, 2))],
        [(9, torch.zeros(4, 2))],
        [(9, torch.ones(2, 4))],
        [(9, torch.ones(4, 2).double())],
        [(9, torch.ones(4, 2, requires_grad=True))],
    ],
    "results": [
        [ROWS, _run("aten.split.Tensor", Ref(X), 2, out=8, count=2), Alias(at, 99)]
        for at in (8, 9)
    ],
    "writes": [
        [(9, torch.ones(2))],
        [(9, torch.ones(2)), _run("aten.mul_.Tensor", Ref(9), 2.0, out=NOWHERE)],
        [(9, torch.ones(2)), _run("aten.mul_.Tensor", Ref(9), 3.0, out=NOWHERE)],
        [
            (9, torch.ones(2)),
            _run("aten.mul_.Tensor", Ref(9), 2.0, out=NOWHERE),
            _run("aten.mul_.Tensor", Ref(9), 3.0, out=NOWHERE),
        ],
        [
            (9, torch.ones(2)),
            _run("aten.mul_.Tensor", Ref(9), 3.0, out=NOWHERE),
            _run("aten.mul_.Tensor", Ref(9), 2.0, out=NOWHERE),
        ],
        [
            (9, torch.ones(2)),
            _run("aten.view.default", Ref(9), [2, 1], out=8),
            _run("aten.zero_.default", Ref(8), out=NOWHERE),
        ],
        [
            (9, torch.ones(2)),
            _run("aten.select.int", Ref(9), 0, 0, out=8),
            _run("aten.zero_.default", Ref(8), out=NOWHERE),
        ],
        [
            (9, torch.ones(2)),
            ReadData(9, 8),
            _run("aten.zero_.default", Ref(8), out=NOWHERE),
        ],
        [
            (9, torch.ones(2)),
            _run("aten.detach.default", Ref(9), out=8),
            _run("aten.zero_.default", Ref(8), out=NOWHERE),
        ],
        [(9, torch.ones(2)), (8, torch.zeros(2)), WriteData(9, 8)],
        [
            (9, torch.ones(2)),
            _run("aten.neg.out", Ref(9), kwargs={"out": Ref(9)}, out=NOWHERE),
        ],
        [
            (9, torch.ones(2)),
            _run("aten._foreach_mul_.Scalar", [Ref(9)], 2.0, out=NOWHERE),
        ],
        [(9, torch.ones(2)), SetRequiresGrad(9, True)],
    ],
    "lists that are written": [
        [
            (8, torch.ones(2)),
            (9, torch.ones(2)),
            _run("aten._foreach_mul_.ScalarList", [Ref(8), Ref(9)], n, out=NOWHERE),
        ]
        for n in ([1.0, 2.0], [2.0, 1.0])
    ]
    + [
        [
            (9, torch.ones(2)),
            (8, torch.ones(2)),
            _run(
                "aten._foreach_mul_.ScalarList",
                [Ref(9), Ref(8)],
                [1.0, 2.0],
                out=NOWHERE,
            ),
        ]
    ],
    "gradients": [
        [*LOSS, *GRAD],
        [*LOSS, Differentiate((4,), (None,), (W,), 9, True, True)],
        [*LOSS, Backward((4,), (None,), (W,), False, False), ReadGrad(W, 9)],
        [
            *LOSS,
            (5, torch.tensor(2.0)),
            Backward((4,), (5,), None, False, False),
            *GRAD[1:],
        ],
        [*LOSS, Backward((4,), (None,), None, True, False), *GRAD],
        [*LOSS, Differentiate((4,), (None,), (W,), 9, False, False)],
    ],
    "retained": [
        [*LOSS, RetainGrad(3), *GRAD[:1], ReadGrad(3, 9)],
        [*LOSS, RetainGrad(3), RetainGrad(4), *GRAD[:1], ReadGrad(4, 9)],
    ],
    "combined": [
        [(7, torch.ones(2)), (8, torch.zeros(2)), Aggregate("sum", ids, 0, 9, w, 2)]
        for ids, w in (((7, 8), (1, 1)), ((7, 8), (1, 2)), ((8, 7), (1, 1)))
    ],
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_differs_is_stated_otherwise(name: str):
    """Each of these computations has a digest that none of the others has."""
    of = 99 if name == "results" else 9
    digests = [made(*steps, of=of) for steps in DIFFERENT[name]]
    assert b"" not in digests
    assert len(set(digests)) == len(digests)


def shifted(step: Any) -> Any:
    """Return a request with other ids."""
    if isinstance(step, tuple):
        return (step[0] + 100, step[1])
    fields = {}
    for name in ("id", "out", "grad", "data"):
        value = getattr(step, name, None)
        if type(value) is int and not (name == "out" and value == NOWHERE):
            fields[name] = value + 100
    for name in ("ids", "roots", "inputs"):
        value = getattr(step, name, None)
        if value is not None:
            fields[name] = tuple(one + 100 for one in value)
    if isinstance(step, Backward | Differentiate):
        fields["grads"] = tuple(None if g is None else g + 100 for g in step.grads)
    if isinstance(step, Run):
        fields["args"] = [_shifted(one) for one in step.args]
        fields["kwargs"] = {k: _shifted(one) for k, one in step.kwargs.items()}
    return structs.replace(step, **fields)


def _shifted(value: Any) -> Any:
    if isinstance(value, list):
        return [_shifted(one) for one in value]
    return Ref(value.id + 100) if isinstance(value, Ref) else value


@pytest.mark.parametrize("name", DIFFERENT)
def test_ids_owners_and_what_was_before_are_not_stated(name: str):
    """Another owner's worker, with other ids, after something else: the same."""
    of = 99 if name == "results" else 9
    for steps in DIFFERENT[name]:
        other = driver("alice")
        other.hold(50, torch.ones(3, requires_grad=True))
        other(
            _run("aten.exp.default", Ref(50), out=51),
            _run("aten.sum.default", Ref(51), out=52),
            Backward((52,), (None,), None, False, False),
            ReadData(50, 53),
            _run("aten.zero_.default", Ref(53), out=NOWHERE),
            Label(50, ("aside",)),
        )
        again = made(*map(shifted, steps), of=of + 100, me=other)
        assert again == made(*steps, of=of)


def test_it_is_the_same_in_another_process():
    """Nothing of a process is in it: neither addresses nor the order of a hash."""
    code = (
        "from tests.worker.test_provenance import *; "
        "print([made(*s).hex() for s in DIFFERENT['gradients']])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.getcwd()}
    said = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    ).stdout
    here = [made(*steps).hex() for steps in DIFFERENT["gradients"]]
    assert said.strip().endswith(str(here))


def test_many_steps_are_hashed_on_the_way(monkeypatch: pytest.MonkeyPatch):
    """However many wait, it is the same."""
    steps = [(9, torch.ones(2))]
    steps += [_run("aten.mul_.Tensor", Ref(9), 2.0, out=NOWHERE)] * 40
    once = made(*steps)
    monkeypatch.setattr(provenance, "_PENDING", 3)
    assert made(*steps) == once


def test_nothing_is_stated_where_nobody_asks():
    """A policy that compares no programs costs nothing."""
    me = driver(policy=structs.replace(POLICY, programs="any"))
    me(ROWS)
    assert stated(me, X) == ()


# --- leaves that were made alike ------------------------------------------------------


def _two_leaves(first: int, second: int) -> list[Any]:
    """Use leaves in a product and a sum: one twice, or two that were sent alike."""
    return [
        (W, LEAF),
        (5, LEAF),
        _run("aten.mul.Tensor", Ref(first), 0.5, out=6),
        _run("aten.add.Tensor", Ref(6), Ref(second), out=7),
        _run("aten.sum.default", Ref(7), out=8),
        Backward((8,), (None,), None, False, False),
    ]


def test_leaves_that_are_alike_have_gradients_of_their_own():
    """One that is used twice, and each of two, are told apart."""
    digests = [
        made(*_two_leaves(W, W), ReadGrad(W, 9)),
        made(*_two_leaves(W, 5), ReadGrad(W, 9)),
        made(*_two_leaves(W, 5), ReadGrad(5, 9)),
    ]
    assert len(set(digests)) == 3
    assert made(*_two_leaves(5, W), ReadGrad(5, 9)) == digests[1]


# --- what autograd does not notice ----------------------------------------------------


def _saved(*between: Any) -> list[Any]:
    """Return a gradient, with something between forward and backward."""
    saves = [
        (W, LEAF),
        (5, torch.ones(2)),
        (8, torch.zeros(2)),
        (10, torch.ones(2)),
        _run("aten.mul.Tensor", Ref(W), Ref(5), out=6),
        _run("aten.sum.default", Ref(6), out=7),
    ]
    backward = Backward((7,), (None,), None, False, False)
    return [*saves, *between, backward, ReadGrad(W, 9)]


def test_writes_that_autograd_does_not_notice_are_stated():
    """Between forward and backward they change a gradient: what it is is unknown."""
    plain = made(*_saved())
    zero = _run("aten.zero_.default", Ref(11), out=NOWHERE)
    assert made(*_saved(ReadData(5, 11))) == plain
    assert made(*_saved(ReadData(5, 11), zero)) == b""
    assert made(*_saved(ReadData(8, 11), zero)) == plain  # of what no graph saved
    normal = _run(
        "aten.batch_norm.default",
        *(Ref(3), None, None, Ref(5), Ref(10), True, 0.1, 1e-5, False),
        out=12,
    )
    three = (3, torch.ones(3, 2))
    assert made(*_saved(three, normal)) == b""


def test_writes_before_the_graph_are_not():
    """What was done aside, before, keeps nobody from training."""
    aside = [
        (20, torch.ones(2)),
        ReadData(20, 21),
        _run("aten.zero_.default", Ref(21), out=NOWHERE),
    ]
    assert made(*aside, *_saved()) == made(*_saved())


def test_what_a_second_derivative_saved_is_known_to_it():
    """Its graph is younger than what it has saved of the first one's."""

    def second(*between: Any) -> bytes:
        return made(
            (W, LEAF),
            (5, torch.ones(2)),
            ReadData(5, 11),
            _run("aten.mul.Tensor", Ref(W), Ref(5), out=6),
            _run("aten.exp.default", Ref(6), out=7),
            _run("aten.sum.default", Ref(7), out=8),
            Differentiate((8,), (None,), (W,), 20, True, True),
            *between,
            _run("aten.sum.default", Ref(20), out=21),
            Backward((21,), (None,), None, False, False),
            ReadGrad(W, 9),
        )

    assert second() != b""
    zero = _run("aten.zero_.default", Ref(11), out=NOWHERE, grad=False)
    assert second(zero) == b""


def test_passes_that_are_told_apart_are_bounded(monkeypatch: pytest.MonkeyPatch):
    """What many have saved is taken together."""
    again = Differentiate((4,), (None,), (W,), 20, True, True)
    steps = [*LOSS, again, Free((20,)), again, *GRAD]
    once = made(*steps)
    monkeypatch.setattr(provenance, "_PASSES", 1)
    assert made(*steps) == once != b""


def test_statistics_change_in_training_only():
    """A normalisation that only reads them is stated nowhere."""

    def normal(training: bool) -> list[Any]:
        stats = ((9, torch.zeros(2)), (10, torch.ones(2)))
        args = (Ref(X), None, None, Ref(9), Ref(10), training, 0.1, 1e-5, False)
        return [ROWS, *stats, _run("aten.batch_norm.default", *args, out=12)]

    untouched = made((9, torch.zeros(2)))
    assert made(*normal(False)) == untouched
    assert made(*normal(True)) != untouched


def test_a_gradient_shares_its_fate_with_others():
    """Those of one pass may be one memory: a write to one counts for all."""
    both = [*_two_leaves(W, 5), ReadGrad(W, 9), ReadGrad(5, 10)]
    zero = _run("aten.zero_.default", Ref(10), out=NOWHERE)
    assert made(*both, zero) != made(*both)


ADD_LISTS = "aten._foreach_add_.List"


def test_which_arguments_are_one_memory_is_stated():
    """Two that were sent alike are another thing than one and its view."""

    def added(of: int) -> list[Any]:
        return [
            (1, torch.ones(2)),
            (2, torch.ones(2)),
            _run("aten.view.default", Ref(of), [2], out=9),
            (4, torch.ones(2)),
            _run(
                "aten._foreach_add_.List",
                [Ref(1), Ref(9)],
                [Ref(4), Ref(4)],
                out=NOWHERE,
            ),
        ]

    assert made(*added(1)) != made(*added(2))


def test_gradients_that_come_together_are_stated():
    """Two passes into one gradient, or one each; what the graph saved is unknown."""

    def twice(*more: Any) -> bytes:
        backward = Backward((8,), (None,), None, True, False)
        return made(*_two_leaves(W, 5)[:-1], backward, *more, backward, ReadGrad(W, 9))

    share = [ReadGrad(W, 20), WriteGrad(5, 20)]
    assert len({twice(), twice(*share), twice(ReadGrad(5, 20), WriteGrad(W, 20))}) == 3
    assert twice((20, torch.zeros(2)), WriteGrad(5, 20)) == b""


# --- draws ----------------------------------------------------------------------------

DRAW = _run("aten.rand.default", [2], kwargs={"dtype": Symbol("float32")})


def test_what_nobody_seeded_is_unknown():
    """And so is all that is made of it; a seed ends that."""
    assert made(DRAW) == b""
    assert made(DRAW, _run("aten.neg.default", Ref(9), out=8), of=8) == b""
    assert made(structs.replace(DRAW, seed=1)) != b""


def test_draws_go_on_from_a_seed():
    """Another seed, another place in the stream, other draws before."""
    first, other = structs.replace(DRAW, seed=1, out=3), structs.replace(DRAW, out=4)
    longer = structs.replace(first, args=[[3]])
    digests = [
        made(structs.replace(DRAW, seed=1)),
        made(structs.replace(DRAW, seed=2)),
        made(first, DRAW),
        made(first, other, DRAW),
        made(longer, DRAW),
    ]
    assert len(set(digests)) == 5
    assert b"" not in digests


def test_what_failed_seeded_nothing():
    """A seed that came with what was refused is no seed."""
    me = driver()
    bad = structs.replace(DRAW, args=[[-1]], seed=1, out=3)
    assert me.fails(bad)
    assert made(DRAW, me=me) == b""


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("aten.dropout.default", (Ref(X), 0.5, False)),
        ("aten.dropout.default", (Ref(X), 0.0, True)),
    ],
)
def test_what_draws_nothing_needs_no_seed(op: str, args: Any):
    """And its seed is stated by nobody: clients send one all the same."""
    one = made(ROWS, _run(op, *args, seed=1))
    assert one == made(ROWS, _run(op, *args, seed=2)) != b""


def test_high_draws_nothing_before_it_was_seeded():
    """A process that took another's place would draw something else.

    The first one draws: nobody takes what was never seeded for the same.
    """
    me = driver()
    assert me(DRAW) == []
    assert me.peek(9) is not None
    assert made(DRAW, of=9) == b""
    me.worker._highs.clear()
    assert me(structs.replace(DRAW, out=12)) == []
    assert me.peek(12) is None
    assert me(structs.replace(DRAW, seed=3, out=10)) == []
    assert me(structs.replace(DRAW, out=11)) == []
    assert me.peek(11) is not None


def test_high_draws_nothing_after_it_has_lost_a_draw():
    """Where an argument is missing, the numbers after are not those of others."""
    me = driver()
    me.hold(20, torch.tensor([9]))
    me.hold(21, torch.ones(2))
    assert me(_run("aten.index_select.default", Ref(21), 0, Ref(20), out=22)) == []
    lost = _run("aten.rand_like.default", Ref(22), out=23, seed=3)
    assert me(structs.replace(DRAW, out=24, seed=1), lost, DRAW) == []
    assert me.peek(24) is not None
    assert me.peek(9) is None


# --- rows that are written ------------------------------------------------------------


def test_rows_that_were_written_are_unknown():
    """A process that begins anew has them as they were."""
    zero = _run("aten.zero_.default", Ref(X), out=NOWHERE)
    assert made(ROWS, zero, of=X) == b""
    assert made(ROWS, zero, Load("d", "features", 3), of=3) == b""
    assert made(ROWS, _run("aten.mul.Tensor", Ref(X), 0, out=3), of=X) != b""


# --- what comes from elsewhere --------------------------------------------------------


def test_what_others_deliver_is_stated_by_its_bytes():
    """As what the requester sends itself: whoever brings it is not believed."""
    tensor = torch.ones(2)
    data = TensorData("float32", (2,), 0)
    me = driver()
    me(Expect((9,), "peer"))
    message = Deliver(me.name, (9,), (data,), digests=(b"\1" * 32,))
    me.worker.handle("peer", Parcel(message, (to_frame(tensor),)), 0.0)
    assert made(me=me) == made((9, tensor))


@pytest.mark.unrecorded("what stands in for a frame has other bytes")
def test_a_frame_that_nobody_reads_is_stated_by_its_digest():
    """Where it is not known, nothing is."""
    frame = bytes(to_frame(torch.ones(2)))
    put = Put(9, TensorData("float32", (2,), 0))

    def stated_of(stand_in: bytes) -> bytes:
        me = driver()
        me.number += 1
        batch = codec.decode_ahead(
            codec.encode(Batch(me.name, me.number, (put,))), (len(frame),)
        )
        me.worker.handle("me", Parcel(batch, (stand_in,)), 0.0)
        return made(me=me)

    known = made((9, torch.ones(2)))
    assert stated_of(FrameDigest(hashlib.sha256(frame).digest())) == known
    assert stated_of(FrameDigest(b"")) == b""


# --- what was not carried out ---------------------------------------------------------


def test_what_failed_is_not_stated():
    """Neither here, nor where the rows are, was it done."""
    me = driver()
    me.hold(9, torch.ones(2))
    assert me.fails(_run("aten.add_.Tensor", Ref(9), Ref(77), out=NOWHERE))
    assert me.fails(_run("aten.mul_.Tensor", Ref(9), Ref(9), Ref(9), out=NOWHERE))
    assert made(me=me) == made((9, torch.ones(2)))


def test_what_is_forgotten_keeps_nothing():
    """After all was let go of a session is like a new one."""
    me = driver()
    me.hold(5, torch.ones(2))
    me(ReadData(5, 6), _run("aten.zero_.default", Ref(6), out=NOWHERE), Free((6,)))
    me(Clear())
    assert made(*LOSS, *GRAD, me=me) == made(*LOSS, *GRAD)


def test_a_failed_pass_drops_gradients_that_only_names_keep():
    """Low has added to them; what high has is as it was, and must not leave."""
    me = driver()
    for step in (*LOSS, *GRAD):
        me.hold(*step) if isinstance(step, tuple) else me(step)
    assert me.peek(9) is not None
    me.hold(20, torch.tensor([9]))
    me.hold(21, torch.ones(2, requires_grad=True))
    me(
        Free((W,)),
        _run("aten.index_select.default", Ref(21), 0, Ref(20), out=22),
        _run("aten.sum.default", Ref(22), out=23),
        Backward((23,), (None,), None, False, False),
    )
    assert me.peek(9) is None
    assert me.peek(X) is not None
