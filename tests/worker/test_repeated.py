"""A turn after others' comes to what a new worker comes to, bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from msgspec import structs
from tests.programs.whole import TRAININGS
from tests.programs.zoo import BODIES, mlp, noisy
from torch import nn

from obhut.client.programs import _stepping, program
from obhut.client.recording import settings_of
from obhut.errors import InternalError
from obhut.protocol.messages import (
    Alias,
    AnyRequest,
    Backward,
    Batch,
    DatasetRows,
    Define,
    Fetch,
    Free,
    Load,
    Put,
    ReadGrad,
    Ref,
    Run,
    RunProgram,
    SetRequiresGrad,
    Split,
    Stepping,
    TensorData,
    WriteData,
)
from obhut.worker import runs
from obhut.worker.core import Worker
from obhut.worker.repeated import Repeated
from obhut.worker.tensors import DTYPE_NAMES, to_frame

from .conftest import Driver

Datasets = dict[str, dict[str, torch.Tensor]]

NAMES = ("ann", "eve", "carl", "bob")


def data(count: int, seed: int) -> Datasets:
    """Return rows of numbers and labels."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 16, generator=draw)
    return {
        "data": {
            "features": x,
            "target": torch.randint(0, 10, (count,), generator=draw),
        }
    }


OTHERS = [data(70, 1), data(70, 2), data(41, 3)]
"""What those have whose turns come before."""


def put(id: int, one: torch.Tensor, frame: int) -> Put:
    """Return a request that sends a tensor."""
    kind, shape = DTYPE_NAMES[one.dtype], tuple(one.shape)
    return Put(id, TensorData(kind, shape, frame, one.requires_grad))


def op(name: str, *args: Any, out: int, grad: bool = True) -> Run:
    """Return a request that runs an operator."""
    return Run(name, list(args), {}, out, 1, grad)


def check(
    requests: Sequence[AnyRequest],
    frames: Sequence[Any],
    ids: Sequence[int],
    own: Mapping[str, Sequence[Any]] | None = None,
    datasets: Sequence[Datasets] = (*OTHERS, OTHERS[0]),
) -> None:
    """Check that each of some workers has what it has in a session of its own."""
    batch = Batch("task", 1, tuple(requests))
    repeated = Repeated(batch, frames)
    for name, given in zip(NAMES, datasets, strict=True):
        mine = tuple((own or {}).get(name, ()))
        copied = {
            key: {part: one.clone() for part, one in parts.items()}
            for key, parts in given.items()
        }
        state = torch.get_rng_state()
        assert repeated.turn(name, given, mine) is None
        after = torch.get_rng_state()
        torch.set_rng_state(state)
        me = Driver(Worker(name, datasets=copied))
        me.open()
        assert not any(
            hasattr(one, "kind") for one in me(*requests, frames=(*mine, *frames))
        )
        assert torch.equal(after, torch.get_rng_state())
        held = repeated.held(*ids)
        for id, one in zip(ids, held, strict=True):
            torch.testing.assert_close(
                one, me.value(id), rtol=0, atol=0, equal_nan=True
            )


def training(
    body: Callable[..., Any],
    *,
    whole: bool = False,
    make: Any = None,
    targets: torch.Tensor | None = None,
    **how: Any,
) -> tuple[list[Any], list[Any], list[int]]:
    """Return requests that train, their frames, and the ids of what they leave."""
    torch.manual_seed(0)
    model = mlp()
    optimizer = None if whole else (make or _sgd)(model.parameters())
    given = {"model": model} if whole else {"model": model, "optimizer": optimizer}
    x, y = OTHERS[0]["data"].values()
    y = y if targets is None else targets
    made = program(body).record(data=(x, y), **given)
    tensors = [one.detach().requires_grad_(one.requires_grad) for one in made.tensors]
    sent = [put(id, one, id - 1) for id, one in enumerate(tensors, 1)]
    inputs = tuple(range(1, len(sent) + 1))
    steppings = (
        _stepping(None, made) if whole else (Stepping(0, settings_of(optimizer)),)
    )  # type: ignore[arg-type] # of no session, since none is passed
    count = 2 * len(made.program.results)
    if not whole:
        how.setdefault("batch_size", 16)
    run = RunProgram(
        made.digest,
        inputs,
        DatasetRows("data", ("features", "target")),
        1000,
        count,
        optimizers=steppings,
        **how,
    )
    frames = [to_frame(one) for one in tensors]
    return (
        [*sent, Define(made.text), run],
        frames,
        [*inputs, *range(1000, 1000 + count)],
    )


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


@pytest.mark.parametrize("name", TRAININGS)
def test_each_whole_training_is_repeated(name: str) -> None:
    """With its optimizers, schedules, copies and sums, for rows of two numbers."""
    check(*training(TRAININGS[name], whole=True))


@pytest.mark.parametrize("name", BODIES)
def test_each_body_is_repeated_shuffled(name: str) -> None:
    """In an order that is drawn from the worker's name, with what else is drawn."""
    check(*training(BODIES[name], shuffle=True, seed=5, epochs=2))


def test_a_part_of_the_rows_is_each_workers_own() -> None:
    """What is held out follows from a worker's name."""
    check(*training(noisy, split=Split(0.3, 7, held_out=False)))


def test_an_optimizer_goes_on_in_a_turn_and_not_in_the_next() -> None:
    """What it keeps is its worker's."""

    def make(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=0.01)

    requests, frames, ids = training(BODIES["plain"], make=make)
    *sent, first = requests
    options = first.optimizers[0].options
    runs = [
        RunProgram(
            first.program,
            first.inputs,
            first.rows,
            out,
            first.count,
            batch_size=16,
            optimizers=(Stepping(77, options),),
        )
        for out in (1000, 2000)
    ]
    check([*sent, *runs], frames, [*ids, *range(2000, 2000 + first.count)])


def made_there(**how: Any) -> tuple[list[Any], list[Any], list[int]]:
    """Return requests that train on what others of them make."""
    requests, frames, ids = training(BODIES["plain"], **how)
    *sent, define, run = requests
    moved = [
        op("aten.mul.Tensor", Ref(one), 0.5, out=500 + one, grad=False)
        for one in run.inputs
    ]
    tracked = [SetRequiresGrad(500 + one, True) for one in run.inputs]
    made = tuple(500 + one for one in run.inputs)
    again = structs.replace(run, inputs=made)
    return [*sent, define, *moved, *tracked, again], frames, [*ids, *made]


def test_inputs_that_are_made_there_are_not_those_of_the_turn_before() -> None:
    """A graph is bound anew then, and steps change the right memory."""
    check(*made_there())


def test_what_fails_at_first_is_bound_to_nothing() -> None:
    """Whatever it is that is trained, the next turn is as if it were the first."""
    for make in (made_there, partial(training, BODIES["plain"])):
        requests, frames, ids = make(drop_last=True)
        batch = Batch("task", 1, tuple(requests))
        repeated, other = Repeated(batch, frames), Repeated(batch, frames)
        assert repeated.turn("bob", {}) is not None
        assert repeated.turn("bob", data(9, 4)) is not None
        for name in ("ann", "eve"):
            assert repeated.turn(name, OTHERS[0]) is None
            assert other.turn(name, OTHERS[0]) is None
            for one, known in zip(repeated.held(*ids), other.held(*ids), strict=True):
                assert torch.equal(one, known)


def test_gradients_and_changes_in_place_are_not_the_next_workers() -> None:
    """Nor is another size, another memory, or history."""
    weight = torch.linspace(-1, 1, 12).view(3, 4).requires_grad_()
    count = torch.zeros(3)
    requests = [
        put(1, weight, 0),
        put(2, count, 1),
        Load("data", "features", 3),
        op("aten.select.int", Ref(3), 1, 0, out=4),
        op("aten.sum.default", Ref(4), out=5),
        op("aten.mul.Tensor", Ref(1), Ref(5), out=6),
        op("aten.sum.default", Ref(6), out=7),
        Backward((7,), (None,), None, False, False),
        ReadGrad(1, 8),
        op("aten.add_.Tensor", Ref(2), Ref(7), out=9),  # now it has a history
        op("aten.mul.Tensor", Ref(2), 2.0, out=10),
        Alias(2, 11),
        op("aten.unsqueeze_.default", Ref(11), 0, out=12),
        WriteData(1, 6),
        Free((3,)),
    ]
    frames = [to_frame(weight.detach()), to_frame(count)]
    check(requests, frames, [1, 2, 5, 7, 8, 10])


def test_what_is_a_workers_own_comes_anew() -> None:
    """Frames of its own come before those that all get."""
    model = torch.ones(5)
    requests: list[AnyRequest] = [put(2, model, 0), put(1, model, 1)]
    requests += [op("aten.add_.Tensor", Ref(1), Ref(2), out=3)]
    own = {name: [to_frame(torch.full((5,), float(len(name))))] for name in NAMES}
    check(requests, [to_frame(model)], [1, 2], own)


def test_a_turn_that_fails_says_so_and_the_next_is_sound() -> None:
    """A worker whose rows are too few."""
    requests, frames, ids = training(BODIES["plain"], drop_last=True)
    repeated = Repeated(Batch("task", 1, tuple(requests)), frames)
    few = data(9, 4)
    assert repeated.turn("ann", OTHERS[0]) is None
    known = [one.clone() for one in repeated.held(*ids)]
    failed = repeated.turn("bob", few)
    assert failed is not None
    assert (failed.kind, failed.index) == ("CallError", len(requests) - 1)
    assert repeated.turn("ann", OTHERS[0]) is None
    for one, other in zip(known, repeated.held(*ids), strict=True):
        assert torch.equal(one, other)


def test_rows_that_share_memory_are_refused_in_any_turn() -> None:
    """As in the first."""
    requests, frames, _ = training(_squared, targets=torch.randn(70, 10))
    repeated = Repeated(Batch("task", 1, tuple(requests)), frames)
    x = torch.randn(40, 16)
    apart = {"data": {"features": x, "target": torch.randn(40, 10)}}
    shared = {"data": {"features": x, "target": x[:, :10]}}
    assert repeated.turn("ann", apart) is None
    failed = repeated.turn("bob", shared)
    assert failed is not None
    assert "share memory" in failed.text


def _squared(model: nn.Module, optimizer: Any, x: Any, y: Any) -> Any:
    optimizer.zero_grad()
    loss = F.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    return loss


def test_a_graph_is_bound_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """To memory that stays: the next turns make none of it again."""
    bound: list[object] = []
    made = runs.LoopRun._lowered

    def watched(self: Any, *given: Any) -> Any:
        found = made(self, *given)
        bound.append(found)
        return found

    monkeypatch.setattr(runs.LoopRun, "_lowered", watched)
    requests, frames, _ = training(BODIES["plain"])
    repeated = Repeated(Batch("task", 1, tuple(requests)), frames, exact=False)
    for seed in range(5):
        assert repeated.turn(f"c{seed}", data(70, seed)) is None
    assert len([one for one in bound if one is not None]) == 2  # of 16 rows, and of 6


def test_a_batch_that_asks_for_a_value_is_none() -> None:
    """What leaves is its requester's affair."""
    repeated = Repeated(Batch("task", 1, (Fetch(1),)), [])
    failed = repeated.turn("ann", {})
    assert failed is not None
    assert failed.kind == InternalError.__name__
