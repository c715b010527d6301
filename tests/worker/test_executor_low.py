"""The executor and the store on tensors without values."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from obhut.errors import CallError, MemoryLimitError, OpNotAdmittedError
from obhut.protocol.messages import (
    NOWHERE,
    Backward,
    Differentiate,
    Inline,
    ReadData,
    Ref,
    Run,
    WriteData,
)
from obhut.worker.answers import describe
from obhut.worker.executor import Executor
from obhut.worker.shape_only import ShapeOnly, shape_only
from obhut.worker.shapes import dense, spec_of
from obhut.worker.store import Store


class Low:
    """A store and an executor, and requests to it."""

    def __init__(self, limit: int | None = None) -> None:
        self.store = Store("bob", limit)
        self.executor = Executor(self.store, torch.device("cpu"), low=True)

    def hold(self, id: int, *shape: int, grad: bool = False) -> None:
        """Hold a tensor of float32."""
        look = dense(shape, torch.float32)
        self.store[id] = shape_only(look.tracked if grad else look)

    def run(self, op: str, *args: Any, out: int = NOWHERE, **kwargs: Any) -> Any:
        """Run an operator."""
        return self.executor.run(
            Run(f"aten.{op}", list(args), kwargs, out, 0, True, False, 7)
        )


def test_a_step_is_run_and_described():
    """Forward, backward, gradients: all that an answer says is there."""
    low = Low()
    low.hold(1, 2, 3, grad=True)
    low.hold(2, 8, 3)
    state = torch.get_rng_state()
    with torch.enable_grad():
        low.run("linear.default", Ref(2), Ref(1), out=3)
        low.run("dropout.default", Ref(3), 0.5, True, out=4)
        total = low.run("sum.default", Ref(4), out=5)
    assert describe(0, total).specs[0].requires_grad
    low.executor.backward(Backward((5,), (None,), None, True, False))
    assert spec_of(low.store[1].grad) is dense((2, 3), torch.float32)
    (grad,) = low.executor.differentiate(
        Differentiate((5,), (None,), (1,), 6, True, False)
    )
    assert type(grad) is type(low.store[6]) is ShapeOnly
    assert torch.equal(torch.get_rng_state(), state)
    assert type(torch.ones(1)) is torch.Tensor


def test_memory_is_counted_by_storage():
    """Views cost nothing, results do, and what grows is asked for before."""
    low = Low(limit=1000)
    low.hold(1, 10, 10)
    low.run("t.default", Ref(1), out=2)
    low.run("sum.dim_IntList", Ref(1), [0], out=3)
    assert low.store._held == 440
    low.run("mul.Scalar", Ref(1), 2.0, out=4)
    with pytest.raises(MemoryLimitError):
        low.run("cat.default", [Ref(1), Ref(1)], out=5)
    low.store.free((4,), tagged=False)
    low.hold(6, 0)
    with torch.no_grad():
        low.executor.run(_into(6, 3))
    assert low.store._held == 480
    low.run("mul.Scalar", Ref(1), 2.0, out=7)
    low.hold(8, 0)
    with torch.no_grad(), pytest.raises(MemoryLimitError):
        low.executor.run(_into(8, 1))
    assert low.store[8].shape == (0,)


def _into(target: int, id: int) -> Run:
    """Return a request to add a tensor to itself, into another."""
    args: list[Any] = [Ref(id), Ref(id)]
    return Run(
        "aten.add.out", args, {"out": Ref(target)}, NOWHERE, 0, False, False, None
    )


def test_what_needs_a_value_is_refused_by_both_names():
    """What was asked for, and what it runs."""
    low = Low()
    low.hold(1, 4)
    with pytest.raises(OpNotAdmittedError) as raised:
        low.run("_local_scalar_dense.default", Ref(1))
    assert raised.value.op == "aten._local_scalar_dense.default"
    low.hold(2, 4, grad=True)
    with torch.enable_grad():
        scalar = low.run("sum.default", Ref(2), out=3)
        index = torch.zeros(2, dtype=torch.int64)
        low.run(
            "index_fill.int_Tensor",
            Ref(1),
            0,
            Inline("int64", (2,), index.numpy().tobytes()),
            Ref(3),
            out=4,
        )
        low.run("sum.default", Ref(4), out=5)
    assert scalar.requires_grad
    with pytest.raises(OpNotAdmittedError, match=r"it runs aten\._unique") as raised:
        low.executor.backward(Backward((5,), (None,), None, False, False))
    assert raised.value.op == "backward"
    with pytest.raises(OpNotAdmittedError, match=r"it runs aten\._unique"):
        low.executor.differentiate(Differentiate((5,), (None,), (2,), 9, True, False))


def test_the_tables_rules_behind_a_guard_hold():
    """What the op table refuses there is refused, and arguments are checked."""
    low = Low()
    low.hold(1, 4)
    with pytest.raises(OpNotAdmittedError, match="behind a guard"):
        low.run("nonzero.default", Ref(1))
    low.hold(2, 2, 2)
    with pytest.raises(CallError):
        low.run("gru_cell.default", Ref(2), Ref(2), Ref(1), Ref(1))


def test_written_numbers_are_held_without_values():
    """An operator that returns one returns its look only."""
    low = Low()
    three = Inline("float32", (), b"\0\0@@")
    held = low.run("lift_fresh.default", three, out=1)
    assert type(held) is type(low.store[1]) is ShapeOnly


def test_data_is_read_and_written():
    """The same storage under another name; indices keep autograd's notice."""
    low = Low(limit=10_000)
    low.hold(1, 4, grad=True)
    low.hold(2, 8)
    low.executor.read_data(ReadData(1, 3))
    assert (low.store[3].requires_grad, low.store._held) == (False, 48)
    low.executor.write_data(WriteData(1, 2))
    assert low.store[1].look is dense((8,), torch.float32)
    assert low.store._held == 32 + 16
    low.store[5] = shape_only(dense((2,), torch.int64))
    with pytest.raises(CallError):
        low.executor.write_data(WriteData(5, 5))
