"""A data set whose number of rows is hidden: programs run on it, nothing tells it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from obhut.programs.text import digest
from obhut.protocol import codec
from obhut.protocol.limits import HIDDEN_ROWS, LINES_PER_RUN
from obhut.protocol.messages import (
    Alias,
    AnyRequest,
    DatasetRows,
    Define,
    Describe,
    Load,
    Move,
    Put,
    Ref,
    RunProgram,
    Stepping,
    TensorData,
)
from obhut.worker.tensors import from_frame, to_frame

from .conftest import OwnersDriver

Owners = Callable[..., OwnersDriver]

STEP = """obhut program 1
parameter %w: float32[2]
rows %x: float32[$B, 2]
rows %y: float32[$B]
optimizer 0: SGD [%w]
set_grad(%w, None)
%0 = aten.mv.default(%x, %w)
%1 = aten.mse_loss.default(%0, %y)
backward([%1], [None], None, False, False)
step(0)
%2 = aten.detach.default(%1)
%3 = aten._to_copy.default(%2, dtype=float64)
return %3 / $B
"""

PAIRED = STEP.replace("program 1\n", "program 1\nbatches of 3 rows or more\n")
"""The same, of batches of three rows or more."""

ROWS = DatasetRows("d", ("features", "target"))

WEIGHT, LOSS, COUNT, X, Y = 1, 10, 11, 20, 21
SIZES = (17, 40, 136)


def data(rows: int) -> dict[str, dict[str, torch.Tensor]]:
    """Return a data set of so many rows."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 2, generator=draw)
    return {"d": {"features": x, "target": x[:, 0].clone()}}


def step(text: str = STEP, rows: Any = ROWS, **how: Any) -> RunProgram:
    """Return a run of a program."""
    options = (Stepping(0, ({"lr": 0.1},)),)
    given = {"optimizers": options, "batch_size": 8} | how
    return RunProgram(digest(text), (WEIGHT,), rows, LOSS, 2, **given)


def begun(owners: Owners, rows: int, *hidden: str, **options: Any) -> OwnersDriver:
    """Return a client that has sent a weight, and programs."""
    me = owners(datasets=data(rows), hidden=hidden, **options)
    me.hold(WEIGHT, torch.zeros(2, requires_grad=True))
    assert me(Define(STEP), Define(PAIRED)) == []
    return me


def test_it_is_not_loaded(owners: Owners):
    """Neither part of it, by whatever name; the error says what to write."""
    me = begun(owners, 17, "d")
    for part in ("features", "target", "nothing"):
        failed = me.fails(Load("d", part, X))
        assert failed.kind == "CallError"
        assert "run an @obhut.program over worker.dataset('d')" in failed.text
    assert "expected a data set" in me.fails(Load("e", "features", X)).text


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_program_goes_through_all_of_it(owners: Owners, rows: int, shuffle: bool):
    """The trained weight, the loss and the number of rows are those of exact rows."""
    found = []
    for hidden, given in ((("d",), ROWS), ((), ROWS), ((), (X, Y))):
        me = begun(owners, rows, *hidden)
        if given is not ROWS:
            me(Load("d", "features", X), Load("d", "target", Y))
        assert me(step(rows=given, shuffle=shuffle, seed=3, epochs=2)) == []
        found.append([me.peek(one) for one in (WEIGHT, LOSS, COUNT)])
    for one in found:
        assert one[2].tolist() == [rows, rows]
        for mine, first in zip(one, found[0], strict=True):
            assert torch.equal(mine, first)


def test_a_last_batch_that_is_too_small_is_left_out(owners: Owners):
    """Of 17 rows in batches of eight one is left, of 20 in batches of four none.

    A number that is exact is refused, since everybody knows it.
    """
    for rows, size, gone in ((17, 8, 16), (19, 8, 19), (20, 4, 20)):
        me = begun(owners, rows, "d")
        assert me(step(PAIRED, batch_size=size)) == []
        assert me.peek(COUNT).tolist() == [gone]
    assert "has 1 row" in begun(owners, 17).fails(step(PAIRED)).text


@pytest.mark.parametrize("how", [{"batch_size": 18, "drop_last": True}, {}])
def test_where_no_batch_is_possible_it_is_missing(owners: Owners, how: dict[str, Any]):
    """All that it would have changed is, and nobody is told but the owner."""
    log: list[str] = []
    me = begun(owners, 17 if how else 2, "d", log=log.append)
    assert me(step(PAIRED, **how)) == []
    assert me.peek(LOSS) is None
    assert me.peek(WEIGHT) is None
    assert len(log) == 1
    assert log[0].endswith("failed: CallError")


def test_computations_are_the_same_whoever_hides_what(owners: Owners):
    """Rows by name have the digest of rows that were loaded, hidden or not."""
    made = []
    for hidden, given in ((("d",), ROWS), ((), ROWS), ((), (X, Y))):
        me = begun(owners, 40, *hidden)
        if given is not ROWS:
            me(Load("d", "features", X), Load("d", "target", Y))
        me(step(rows=given, shuffle=True), Move((WEIGHT, LOSS), "hub", "t", (1, 2)))
        (header,) = me.headers
        made.append(header.message.digests)
    assert made[0] == made[1] == made[2]
    other = begun(owners, 40, "d")
    other(
        step(rows=DatasetRows("d", ("target", "features")[::-1]), seed=1),
        Move((WEIGHT, LOSS), "hub", "t", (1, 2)),
    )
    assert other.headers[0].message.digests != made[0]


def test_rows_that_were_written_are_unknown_by_name_too(owners: Owners, run: Any):
    """Who loads an exact data set and writes into it changes what its name means."""
    me = begun(owners, 40)
    me(Load("d", "features", X), run("aten.zero_.default", Ref(X), out=0, count=0))
    me(step(), Move((WEIGHT,), "hub", "t", (1,)))
    assert me.headers[0].message.digests == (b"",)


def test_a_run_that_is_cancelled_ends_between_two_batches(owners: Owners, run: Any):
    """What it would have changed is missing; what was sent, and names, are not.

    Who answers is not asked, and says the same.
    """
    log: list[str] = []
    me = begun(owners, 40, "d", log=log.append)
    asked: list[int] = []
    batch = me.number + 1

    def cancelled(number: int) -> bool:
        asked.append(number)
        return number == batch and len(asked) > 4

    high = next(iter(me.worker._highs.values()))
    high._cancelled = cancelled
    requests = (
        step(epochs=100),
        Put(X, TensorData("float32", (2,), 0)),
        Alias(X, Y),
        run("aten.neg.default", Ref(X), out=30),
        run("aten.abs.default", Ref(X), out=31),
    )
    assert me(*requests, frames=[to_frame(torch.ones(2))]) == []
    assert len(asked) == 7
    there = [me.peek(one) is not None for one in (LOSS, WEIGHT, 30, 31, X, Y)]
    assert there == [False] * 4 + [True] * 2
    assert log == ["what was under way was cancelled, and is dropped"]
    assert me(run("aten.neg.default", Ref(X), out=32)) == []
    assert me.peek(32).tolist() == [-1, -1]


# --- what can be asked ----------------------------------------------------------------

TALLY = """obhut program 1
rows %x: float32[$B, 2]
%0 = aten.sum.dim_IntList(%x, [1])
return {} / {}
"""


def questions(most: int) -> Iterator[list[AnyRequest]]:
    """Yield what may be asked to learn a number of rows, in a session each.

    Args:
        most: epochs, at most.
    """
    yield [Load("d", "features", X), Describe(X)]
    for parts in ((), ("features",), ("features", "features"), ("features", "none")):
        yield [step(rows=DatasetRows("d", parts))]
    for size in (0, 1, 2, 16, 17, 18, 40, 41, 136, 137, 2**20, 2**20 + 1, 2**40):
        for text in (STEP, PAIRED):
            for drop in (False, True):
                how = {"batch_size": size, "drop_last": drop}
                yield [step(text, **how), Describe(LOSS), Describe(COUNT)]
    for epochs in (2, 100, 2_000, 2**20):
        for size in (1, 8):
            yield [step(batch_size=size, epochs=min(epochs, most))]
    for above, below in (("%0", "$B"), ("%x", "$B"), ("%0", "%0")):
        text = TALLY.format(above, below)
        run = RunProgram(digest(text), (), DatasetRows("d", ("features",)), LOSS, 2)
        yield [
            Define(text),
            run,
            Describe(LOSS),
            Move((LOSS,), "hub", "t", (5,)),
        ]
    whole = (
        "obhut program 1\nrows %x: float32[$B, 2]\nbatches 8 epochs 2:\n  then:\n"
        "    %0 = aten.sum.default(%x)\n"
        "%1 = aten.zeros.default([1*$N0], device=here)\nreturn %1 / 1*$N0\n"
    )
    run = RunProgram(digest(whole), (), DatasetRows("d", ("features",)), LOSS, 2)
    yield [Define(whole), run, Describe(LOSS), Move((LOSS,), "hub", "t", (5,))]


def told(owners: Owners, rows: int, *hidden: str, **options: Any) -> list[bytes]:
    """Return all that is said to all questions: answers, headers and sizes."""
    said = []
    for requests in questions(2**20 if hidden else 2):
        me = owners(datasets=data(rows), hidden=hidden, **options)
        weight = torch.zeros(2, requires_grad=True)
        put = Put(WEIGHT, TensorData("float32", (2,), 0, True))
        me.batch(put, Define(STEP), Define(PAIRED), frames=[to_frame(weight.detach())])
        said.append(codec.encode(me.batch(*requests)))
        said += [codec.encode(one.message) for one in me.headers]
        said += [repr([*map(len, one.frames)]).encode() for one in me.delivered]
    return said


@pytest.mark.parametrize("limit", [None, 10**6])
def test_nothing_that_is_said_depends_on_it(owners: Owners, limit: int | None):
    """Byte for byte the same of 17, 40 and 136 rows; of exact ones it is not."""
    first, *others = [
        told(owners, rows, "d", memory_limit=limit) for rows in (*SIZES, 1)
    ]
    assert all(other == first for other in others)
    exact, other = (told(owners, rows, memory_limit=limit) for rows in SIZES[:2])
    assert sum(a != b for a, b in zip(exact, other, strict=True)) > 10


def test_limits_are_held_to_by_the_most_rows_that_may_be(owners: Owners):
    """A refusal names that number, and not the data set's."""
    me = begun(owners, 17, "d")
    epochs = LINES_PER_RUN // (7 * HIDDEN_ROWS) + 1
    assert "with 1,048,576 rows for a number that is hidden" in (
        me.fails(step(batch_size=1, epochs=epochs)).text
    )
    much = me.fails(step(batch_size=2**20 + 1, drop_last=True)).text
    assert "expected a batch of 1 to 1,048,576 rows" in much
    assert begun(owners, 17, "d")(step(batch_size=1, epochs=epochs - 1)) == []


def test_what_has_as_many_rows_as_a_batch_is_delivered_as_spoilt(owners: Owners):
    """Its header has the most rows that may be, and its bytes would have others."""
    text = TALLY.format("%0", "$B")
    me = begun(owners, 17, "d")
    run = RunProgram(digest(text), (), DatasetRows("d", ("features",)), LOSS, 2)
    assert me(Define(text), run, Move((LOSS,), "hub", "t", (5,))) == []
    (delivery,) = me.delivered
    assert delivery.message.spoilt
    assert delivery.message.tensors[0].shape == (1, HIDDEN_ROWS)
    values = from_frame(delivery.frames[0], "float64", (1, HIDDEN_ROWS))
    assert not values.any()
