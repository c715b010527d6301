from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from obhut.protocol.messages import AnyRequest, Batch, Load, Put, Ref, Run, TensorData
from obhut.worker.tasks import (
    Averaged,
    Summed,
    Sums,
    Task,
    Turn,
    holds_rows,
    run,
)
from obhut.worker.tensors import DTYPE_NAMES, to_frame


def put(id: int, tensor: torch.Tensor, frame: int) -> Put:
    """Return a request that sends a tensor."""
    return Put(id, TensorData(DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), frame))


def plus(id: int, other: int, out: int) -> Run:
    """Return a request that adds two tensors."""
    return Run("aten.add.Tensor", [Ref(id), Ref(other)], {}, out, 1, False)


def none(name: str) -> dict[str, torch.Tensor]:
    """Return no data."""
    return {}


def task(*requests: AnyRequest, **what: object) -> Task:
    """Return a task of such requests."""
    return Task(Batch("task", 1, requests), **what)  # type: ignore[arg-type]


def one_each(
    model: torch.Tensor, changes: dict[str, torch.Tensor], weights: dict[str, float]
) -> tuple[Task, list[Turn], list[memoryview]]:
    """Return a task in which each adds a change of its own to what all get."""
    made = task(
        put(2, next(iter(changes.values())), 0),
        put(1, model, 1),
        plus(1, 2, 3),
        averaged=(Averaged(3, DTYPE_NAMES[model.dtype], tuple(model.shape), 0),),
        summed=(Summed(2, tuple(model.shape)),),
        own=(3,),
    )
    turns = [
        Turn(name, 0, weights[name], (bytes(to_frame(change)),))
        for name, change in changes.items()
    ]
    return made, turns, [to_frame(model)]


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.complex64],
)
def test_means_and_sums_are_those_of_all_workers(dtype: torch.dtype) -> None:
    """Weighed, in each dtype, whole numbers rounded."""
    draw = torch.Generator().manual_seed(0)

    def drawn() -> torch.Tensor:
        return (torch.randn(4, 5, generator=draw) * 8).to(dtype)

    model = drawn()
    changes = {name: drawn() for name in ("ann", "bob", "eve")}
    weights = {"ann": 3.0, "bob": 1.0, "eve": 2.0}
    made_of, turns, frames = one_each(model, changes, weights)
    if dtype.is_complex:
        made_of = Task(made_of.batch, made_of.averaged, (), made_of.own)
    sums = run([made_of], turns, frames, none)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    each = {name: (model + change).to(wide) for name, change in changes.items()}
    mean = sum(weights[name] * one for name, one in each.items()) / 6
    (found,) = sums.means(made_of, [model])
    assert found.dtype is dtype
    expected = mean.round() if dtype is torch.int64 else mean
    torch.testing.assert_close(found, expected.to(dtype), rtol=1e-6, atol=1e-6)
    assert sums.weight == 6
    assert {*sums.own} == {*changes}
    if not dtype.is_complex:
        (summed,) = sums.sums(made_of)
        total = sum(one.double() for one in changes.values())
        torch.testing.assert_close(summed, total)


@given(st.integers(1, 6), st.randoms(use_true_random=False))
def test_sums_do_not_depend_on_who_is_computed_where(
    parts: int, random: object
) -> None:
    """Of any division of the turns, in order, the sums are the same within rounding."""
    model = torch.linspace(-1, 1, 700)
    names = [f"c{place}" for place in range(12)]
    changes = {name: torch.sin(model * (3 + place)) for place, name in enumerate(names)}
    weights = {name: 1.0 + place for place, name in enumerate(names)}
    made_of, turns, frames = one_each(model, changes, weights)
    whole = run([made_of], turns, frames, none)
    dealt = [turns[place::parts] for place in range(parts)]
    total: Sums | None = None
    for some in dealt:
        part = run([made_of], some, frames, none)
        total = part if total is None else total.added(part)
    assert total is not None
    for one, other in zip(
        whole.means(made_of, [model]), total.means(made_of, [model]), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=2.5e-7)
    assert whole.own == total.own


def test_a_worker_may_say_what_it_weighs() -> None:
    """By a scalar of its own, such as how many rows it has."""
    model = torch.zeros(3)
    weigh = torch.tensor(4.0, dtype=torch.float64)
    made_of = task(
        put(2, weigh, 0),
        put(1, model, 1),
        averaged=(Averaged(1, "float32", (3,), 0),),
        weight=2,
    )
    turns = [Turn("ann", own=(bytes(to_frame(weigh)),))]
    assert run([made_of], turns, [to_frame(model)], none).weight == 4


def test_a_worker_may_weigh_as_much_as_it_has_rows() -> None:
    """Which nobody else need know before."""
    model = torch.zeros(3)
    rows = {"features": torch.zeros(7, 2), "target": torch.zeros(7)}
    made_of = task(
        put(1, model, 0),
        averaged=(Averaged(1, "float32", (3,), 0),),
        by_rows=True,
    )
    turns = [Turn("ann"), Turn("bob", weight=2.0)]
    sums = run([made_of], turns, [to_frame(model)], lambda name: rows)
    assert sums.weight == 9


def test_the_first_request_that_fails_is_told() -> None:
    """With whose turn it was; nobody after it takes a turn."""
    taken: list[str] = []

    def watched(name: str) -> dict[str, torch.Tensor]:
        taken.append(name)
        return {}

    good, bad = torch.ones(2), torch.ones(3)
    made_of = task(put(2, good, 0), put(1, good, 1), plus(1, 2, 3))
    other = task(put(2, bad, 0), put(1, good, 1), plus(1, 2, 3))
    turns = [
        Turn("ann", 0, own=(bytes(to_frame(good)),)),
        Turn("bob", 1, own=(bytes(to_frame(bad)),)),
        Turn("eve", 0, own=(bytes(to_frame(good)),)),
    ]
    sums = run([made_of, other], turns, [to_frame(good)], watched)
    (failure,) = sums.failures
    assert (failure.client, failure.task, failure.failed.origin) == ("bob", 1, 2)
    assert taken == ["ann", "bob"]


def test_who_is_spoilt_is_told_by_name() -> None:
    """Whoever has what is not finite; others' infinities of both signs do not hide."""
    model = torch.zeros(3)
    changes = {
        "ann": torch.ones(3),
        "bob": torch.tensor([1.0, torch.inf, 0.0]),
        "eve": torch.tensor([1.0, -torch.inf, 0.0]),
    }
    made_of, turns, frames = one_each(model, changes, dict.fromkeys(changes, 1.0))
    assert run([made_of], turns, frames, none).spoilt == ("bob", "eve")
    assert not run([made_of], turns[:1], frames, none).spoilt


def test_a_task_that_holds_rows_is_known() -> None:
    """They could be written to, and be mapped to be read only, or the caller's own."""
    assert holds_rows([task(), task(Load("data", "features", 1))])
    assert not holds_rows([task(put(1, torch.zeros(3), 0))])
