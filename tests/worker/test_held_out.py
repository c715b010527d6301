"""Parts of an owner's rows that are held out, and runs of so many steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from msgspec import structs

from obhut.errors import RemoteProtocolError
from obhut.programs.text import digest
from obhut.protocol import codec
from obhut.protocol.limits import HIDDEN_ROWS, LINES_PER_RUN, STEPS
from obhut.protocol.messages import (
    AnyRequest,
    DatasetRows,
    Define,
    Describe,
    Load,
    Move,
    Put,
    RunProgram,
    Split,
    Stepping,
    TensorData,
)
from obhut.worker.core import Worker
from obhut.worker.held_out import SplitRows
from obhut.worker.owners import OwnersWorker
from obhut.worker.roles import Owner
from obhut.worker.tensors import to_frame

from .conftest import POLICY, Driver, OwnersDriver

STEP = """obhut program 1
parameter %w: float32[2]
rows %x: float32[$B, 2]
optimizer 0: SGD [%w]
set_grad(%w, None)
%0 = aten.mv.default(%x, %w)
%1 = aten.sum.default(%0)
backward([%1], [None], None, False, False)
step(0)
%2 = aten.sum.dim_IntList(%x, [0])
%3 = aten.detach.default(%2)
return %3 / $B
"""

WHOLE = """obhut program 1
rows %x: float32[$B, 2]
%0 = aten.zeros.default([2], device=here)
batches 4 epochs 1:
  carry %1 = %0
  then:
    %2 = aten.sum.dim_IntList(%x, [0])
    %3 = aten.add.Tensor(%1, %2)
    next %1 = %3
return %1 / 1*$N0
"""

ROWS = DatasetRows("d", ("features",))
WEIGHT, SUM, COUNT, X = 1, 10, 11, 20
STRICT = structs.replace(POLICY, minimum_rows=5)

Open = Callable[..., Driver]


def features(rows: int) -> torch.Tensor:
    """Return rows of which each is known by its sum: (rows, 2)."""
    return torch.stack([torch.arange(rows), torch.ones(rows)], 1).float()


def step(rows: Any = ROWS, text: str = STEP, **how: Any) -> RunProgram:
    """Return a run of a program."""
    inputs = () if text is WHOLE else (WEIGHT,)
    given = {"batch_size": 4} | how if text is STEP else how
    if text is STEP:
        given["optimizers"] = (Stepping(0, ({"lr": 0.1},)),)
    return RunProgram(digest(text), inputs, rows, SUM, 2, **given)


def begun(me: Driver) -> Driver:
    """Return a client that has sent a weight, and programs."""
    me.hold(WEIGHT, torch.zeros(2, requires_grad=True))
    assert me(Define(STEP), Define(WHOLE)) == []
    return me


def open_worker(opened: Open, rows: int) -> Driver:
    """Return a client of a worker without a policy."""
    return begun(opened(Worker("bob", datasets={"d": {"features": features(rows)}})))


def owner(
    rows: int, *hidden: str, strict: bool = True, log: Any = lambda line: None
) -> OwnersDriver:
    """Return a client of an owner whose policy takes no part of fewer than five."""
    worker = OwnersWorker(
        "bob",
        Owner(STRICT if strict else POLICY, log),
        datasets={"d": {"features": features(rows)}},
        hidden=hidden,
    )
    me = OwnersDriver(worker, "me", "s")
    me.open()
    begun(me)
    return me


def places(split: Split, rows: int) -> list[int]:
    """Return which rows a part has."""
    found: list[int] = SplitRows(split, "bob", rows).places().tolist()
    return found


# --- which rows -----------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.001, 0.2, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("rows", [1, 2, 25, 1_000])
def test_two_parts_are_all_rows(share: float, rows: int) -> None:
    """No row is in both, and as many are held out as the share rounds to."""
    held, left = (places(Split(share, 3, one), rows) for one in (True, False))
    assert sorted(held + left) == list(range(rows))
    assert (
        len(held)
        == round(share * rows)
        == len(SplitRows(Split(share, 3, True), "bob", rows))
    )
    assert held == sorted(held)


def test_a_part_is_always_the_same() -> None:
    """These are written down: another version must not train on what was held out."""
    assert places(Split(0.2, 0, True), 20) == [1, 5, 6, 7]
    other = {
        tuple(SplitRows(Split(0.2, seed, True), name, 20).places().tolist())
        for seed in (0, 1)
        for name in ("bob", "alice")
    }
    assert len(other) == 4


def test_shares_of_one_seed_do_not_differ_by_a_row() -> None:
    """Else two sums over an owner's rows would tell one row by their difference."""
    one, more = (set(places(Split(share, 0, True), 100)) for share in (0.5, 0.51))
    assert len(more - one) > 1


@pytest.mark.parametrize("held_out", [True, False])
@pytest.mark.parametrize("how", [{}, {"shuffle": True, "seed": 5}])
def test_a_run_goes_through_its_part_alone(
    opened: Open, held_out: bool, how: dict[str, Any]
) -> None:
    """By name or as tensors, behind a policy, hidden or not; its sum tells the rows."""
    split = Split(0.3, 7, held_out)
    wanted = features(25)[places(split, 25)]
    for rows in (ROWS, (X,)):
        me = open_worker(opened, 25)
        me(Load("d", "features", X))
        assert me(step(rows, split=split, **how)) == []
        assert me.value(SUM).tolist() == [wanted.sum(0).tolist()]
        assert me.value(COUNT).tolist() == [len(wanted)]
    for hidden in ((), ("d",)):
        them = owner(25, *hidden)
        assert them(step(split=split, **how)) == []
        found = [them.peek(one) for one in (SUM, COUNT)]
        assert [one.tolist() for one in found] == [
            [wanted.sum(0).tolist()],
            [len(wanted)],
        ]
    me = open_worker(opened, 25)
    assert me(step(text=WHOLE, split=split)) == []
    assert me.value(SUM).tolist() == wanted.sum(0).tolist()
    assert me.value(COUNT).item() == len(wanted)


def test_a_part_without_rows_adds_nothing(opened: Open) -> None:
    """Neither a batch nor an error: sums of 0, shaped as any, and the weight stays."""
    split = Split(0.001, 0, True)
    for how in ({"epochs": 3}, {"steps": 7}):
        me = open_worker(opened, 25)
        assert me(step(split=split, **how)) == []
        lines = how.get("epochs", 1)
        assert me.value(SUM).tolist() == [[0, 0]] * lines
        assert me.value(COUNT).tolist() == [0] * lines
        assert me.value(WEIGHT).tolist() == [0, 0]
    for hidden in ((), ("d",)):
        them = owner(25, *hidden)
        assert them(step(split=split, epochs=3)) == []
        for id, zeros in ((SUM, [[0, 0]] * 3), (COUNT, [0] * 3), (WEIGHT, [0, 0])):
            found = them.peek(id)
            assert found is not None
            assert found.tolist() == zeros
    me = open_worker(opened, 25)
    assert "has no rows" in me.fails(step(text=WHOLE, split=split)).text


# --- few rows, and what is told -------------------------------------------------------


@pytest.mark.parametrize("share", [0.96, 0.04, 0.16, 0.84])
@pytest.mark.parametrize("held_out", [True, False])
def test_a_part_of_few_rows_is_refused(share: float, held_out: bool) -> None:
    """So is what would leave few: less than all rows it tells them.

    Publicly, if the number of rows is public; else the owner alone is told.
    """
    split = Split(share, 0, held_out)
    failed = owner(25).fails(step(split=split))
    assert failed.kind == "CallError"
    assert "policy takes no part of fewer than 5" in failed.text
    log: list[str] = []
    them = owner(25, "d", log=log.append)
    assert them(step(split=split)) == []
    assert them.peek(SUM) is None
    assert them.peek(WEIGHT) is None
    assert len(log) == 1
    assert log[0].endswith("failed: CallError")
    assert owner(25, strict=False)(step(split=split)) == []


def test_a_share_that_makes_few_of_any_number_is_refused_at_once() -> None:
    """Of the most rows that may be it makes three; an owner's own are not asked."""
    failed = owner(25, "d").fails(step(split=Split(3 / HIDDEN_ROWS, 0, True)))
    assert f"a part of 3 of {HIDDEN_ROWS:,} rows" in failed.text


def questions(steps: int) -> Iterator[AnyRequest]:
    """Yield runs that may tell of a number of rows."""
    for share in (1e-7, 1e-6, 0.001, 0.01, 0.04, 0.1, 0.3, 0.5, 0.96, 0.999, 1.0):
        for held_out in (True, False):
            split = Split(share, 0, held_out)
            for how in ({}, {"steps": steps}, {"batch_size": 9, "drop_last": True}):
                yield step(split=split, **how)
            yield step(text=WHOLE, split=split)


def told(rows: int, *hidden: str) -> list[bytes]:
    """Return all that is said to all questions: answers, headers and sizes."""
    said = []
    for request in questions(9):
        me = owner(rows, *hidden)
        ids = (SUM, COUNT, WEIGHT)
        asked = (request, Describe(SUM), Describe(COUNT), Move(ids, "hub", "t", ids))
        said.append(codec.encode(me.batch(*asked)))
        said += [codec.encode(one.message) for one in me.headers]
        said += [repr([*map(len, one.frames)]).encode() for one in me.delivered]
    return said


def test_nothing_that_is_said_depends_on_a_hidden_number() -> None:
    """Byte for byte the same of few rows and many; of exact ones it is not."""
    first, *others = [told(rows, "d") for rows in (25, 4, 60, 1)]
    assert all(one == first for one in others)
    assert told(25) != told(60)


def test_other_parts_are_other_computations() -> None:
    """Owners who went through different parts, or steps, have other digests.

    The same part of other rows has the same digest, also where it has no rows.
    """
    made: dict[object, set[Any]] = {}
    for rows, hidden in ((25, ()), (60, ("d",)), (60, ())):
        for split in (
            None,
            Split(0.2, 0, True),
            Split(0.2, 0, False),
            Split(0.2, 1, True),
            Split(0.25, 0, True),
            Split(0.001, 0, True),
        ):
            for steps in (0, 3):
                me = owner(rows, *hidden, strict=False)
                ids = (WEIGHT, SUM)
                me(step(split=split, steps=steps), Move(ids, "hub", "t", ids))
                (header,) = me.headers
                made.setdefault((split, steps), set()).add(header.message.digests)
    assert all(len(one) == 1 for one in made.values())
    assert len(set.union(*made.values())) == len(made) == 12


# --- steps ----------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3, 4, 7, 30])
def test_a_run_has_so_many_steps(opened: Open, steps: int) -> None:
    """It goes round again as often as need be, and its sums are over all steps."""
    me = open_worker(opened, 14)
    assert me(step(steps=steps)) == []
    batches = [one for _ in range(steps) for one in features(14).split(4)][:steps]
    assert me.value(SUM).tolist() == [torch.cat(batches).sum(0).tolist()]
    assert me.value(COUNT).tolist() == [sum(map(len, batches))]


def test_each_round_has_another_order(opened: Open) -> None:
    """Shuffled, two rounds are twice all rows, in an order that the seed decides."""
    found = []
    for how in ({"steps": 8}, {"epochs": 2}, {"steps": 5, "seed": 1}, {"steps": 5}):
        me = open_worker(opened, 14)
        assert me(step(shuffle=True, **how)) == []
        found.append([me.value(one) for one in (SUM, COUNT, WEIGHT)])
    steps, epochs, *others = found
    assert steps[0].tolist() == [epochs[0].sum(0).tolist()]
    assert torch.equal(steps[2], epochs[2])
    assert others[0][0].tolist() != others[1][0].tolist()


def test_what_has_both_is_refused(opened: Open) -> None:
    """So has a whole training, which says itself how often it goes through rows."""
    me = open_worker(opened, 14)
    assert "not both" in me.fails(step(steps=2, epochs=2)).text
    assert "says itself" in me.fails(step(text=WHOLE, steps=2)).text


def test_steps_are_bounded(opened: Open) -> None:
    """By their number, and by the lines that they run, whatever the rows are."""
    with pytest.raises(RemoteProtocolError, match="1048576"):
        open_worker(opened, 14)(step(steps=STEPS + 1))
    for share in (-0.1, 1.1, float("nan"), float("inf")):
        with pytest.raises(RemoteProtocolError):
            open_worker(opened, 14)(step(split=Split(share, 0, True)))
    lines = LINES_PER_RUN // STEPS + 1
    text = STEP.replace(
        "return %3 /",
        "".join(f"%{n + 1} = aten.neg.default(%{n})\n" for n in range(3, lines + 3))
        + f"return %{lines + 3} /",
    )
    for me in (open_worker(opened, 14), owner(14), owner(14, "d")):
        flood = structs.replace(step(steps=STEPS), program=digest(text))
        failed = me.fails(Define(text), flood)
        assert failed.kind == "LimitError"
        assert "go through the rows less often" in failed.text


def test_put_rows_have_parts_too() -> None:
    """Rows that a client sent are split by the worker's name like any."""
    me = owner(25)
    sent = features(30)
    put = Put(X, TensorData("float32", (30, 2), 0))
    split = Split(0.3, 7, True)
    assert me(put, step((X,), split=split), frames=[to_frame(sent)]) == []
    found = me.peek(SUM)
    assert found is not None
    assert found.tolist() == [sent[places(split, 30)].sum(0).tolist()]
