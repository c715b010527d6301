"""The execution that has the rows: what fails there is dropped, and told to nobody."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from obhut.errors import RemoteProtocolError
from obhut.guard.policy import Quorum, encode
from obhut.protocol.messages import (
    NOWHERE,
    Aggregate,
    Alias,
    Backward,
    Batch,
    Clear,
    Deliver,
    Describe,
    Differentiate,
    Expect,
    Label,
    Load,
    Move,
    Put,
    ReadData,
    ReadGrad,
    Ref,
    Run,
    SetRequiresGrad,
    TensorData,
    WriteData,
    WriteGrad,
)
from obhut.worker.execution import computing
from obhut.worker.high import High
from obhut.worker.shape_only_calls import shape_only_mode
from obhut.worker.tensors import DTYPE_NAMES, from_frame, to_frame

POLICY = Quorum(aggregators=("hub",), contributors=("bob", "alice", "carol"))
SECRET = 7_654_321
"""An index that is out of range, and must stand in no log."""

Runs = Callable[..., Run]


class Driver:
    """Sends numbered batches to a session's high, and looks at what it delivers."""

    def __init__(self, **options: Any) -> None:
        self.log: list[str] = []
        self.high = High("bob", POLICY, log=self.log.append, **options)
        self.number = 0

    def __call__(
        self, *requests: Any, frames: Sequence[Any] = (), undone: Any = (), **how: Any
    ) -> list[Any]:
        """Let it follow a batch; return what it delivers."""
        self.number += 1
        batch = Batch("s", self.number, requests, **how)
        return self.high.follow(batch, frames, undone)

    def hold(self, id: int, value: Any, *tags: str) -> None:
        """Send a tensor."""
        tensor = torch.as_tensor(value)
        tracked = tensor.requires_grad
        data = TensorData(DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), 0, tracked)
        assert self(Put(id, data, tags), frames=[to_frame(tensor)]) == []

    def value(self, id: int) -> torch.Tensor | None:
        """Return what an id names; None if it is missing."""
        found = self(Alias(id, 1 << 40), Move((1 << 40,), "hub", "t", (1,)))
        if not found:
            return None
        (delivery,) = found
        (data,) = delivery.message.tensors
        return from_frame(delivery.frames[0], data.dtype, data.shape)

    def there(self, *ids: int) -> list[int]:
        """Return those of the ids that name something."""
        return [id for id in ids if self.value(id) is not None]


@pytest.fixture
def high() -> Driver:
    """A session's high."""
    return Driver()


def index(id: int, *where: int) -> list[Any]:
    """Return arguments of ``index_select`` and the like."""
    return [Ref(id), 0, *map(Ref, where)]


def bad_write(run: Runs, target: int, where: int) -> Run:
    """Return a write that fails where ``where`` is out of range."""
    name = "aten.index_fill_.int_Scalar"
    return run(name, *index(target, where), 5.0, out=NOWHERE, grad=False)


# --- what is delivered ----------------------------------------------------------------


def test_a_delivery_is_what_low_declares_with_its_bytes(high: Driver, run: Runs):
    """It names ids and looks, carries the policy, and is let go of here."""
    high.hold(1, [1.0, 2.0])
    double = run("aten.mul.Tensor", Ref(1), 2, out=2)
    (delivery,) = high(double, Move((2, 1), "hub", "t", (8, 9)))
    looks = (TensorData("float32", (2,), 0), TensorData("float32", (2,), 1))
    assert delivery.message == Deliver("t", (8, 9), looks, encode(POLICY))
    assert (delivery.to, delivery.index) == ("hub", 1)
    assert [from_frame(f, "float32", (2,)).tolist() for f in delivery.frames] == [
        [2.0, 4.0],
        [1.0, 2.0],
    ]
    assert high.there(1, 2) == []


def test_what_is_missing_is_not_delivered(high: Driver):
    """Nothing of that delivery, and all others of its batch."""
    high.hold(1, [1.0])
    high.hold(2, [2.0])
    (sound,) = high(Move((1, 7), "hub", "t", (8, 9)), Move((2,), "hub", "t", (10,)))
    assert (sound.message.ids, sound.index, len(sound.frames)) == ((10,), 1, 1)
    assert high.log == []
    assert high.there(1, 7) == []


def test_what_is_delivered_is_of_its_moment(high: Driver, run: Runs):
    """A write that comes later in the batch does not change it."""
    high.hold(1, [1.0])
    view = run("aten.view.default", Ref(1), [1], out=2)
    write = run("aten.fill_.Scalar", Ref(1), 9.0, out=NOWHERE, grad=False)
    (delivery,) = high(view, Move((2,), "hub", "t", (8,)), write)
    assert from_frame(delivery.frames[0], "float32", (1,)).item() == 1.0
    assert high.value(1).item() == 9.0


def test_what_has_no_bytes_is_not_delivered(high: Driver):
    """A tensor that can not be written down keeps back its delivery only."""
    high.hold(1, [1.0])
    sparse = torch.ones(2, 2).to_sparse()
    high.high._store[5] = sparse
    (sound,) = high(Move((5,), "hub", "t", (8,)), Move((1,), "hub", "t", (9,)))
    assert sound.message.ids == (9,)
    assert len(high.log) == 1


# --- what fails -----------------------------------------------------------------------


def test_a_failed_operator_leaves_nothing(high: Driver, run: Runs):
    """Its results are missing, its arguments stay; the owner is told no value."""
    high.hold(1, [1.0, 2.0])
    high.hold(2, [SECRET])
    high(run("aten.index_select.default", *index(1, 2), out=3))
    assert high.there(1, 2, 3) == [1, 2]
    assert high.log == ["aten.index_select.default failed: IndexError"]


def test_what_needs_something_missing_is_skipped(high: Driver, run: Runs):
    """So is what needs that; the owner is told of the first failure only."""
    high.hold(1, torch.ones(2, requires_grad=True))
    high(
        run("aten.neg.default", Ref(9), out=2),
        run("aten.neg.default", Ref(2), out=3),
        Alias(3, 4),
        ReadData(3, 5),
        ReadGrad(3, 6),
        Aggregate("sum", (1, 3), 0, 7),
        Differentiate((3,), (None,), (1,), 8, False, False),
        SetRequiresGrad(3, True),
        Describe(3),
        Label(3, ("x",)),
        run("aten.cat.default", [Ref(1), Ref(3)], out=10),
        run("aten.mul.Tensor", Ref(1), kwargs={"other": Ref(3)}, out=11),
    )
    assert high.there(*range(1, 12)) == [1]
    assert high.log == []


def test_a_failed_write_drops_its_target_and_what_shares_its_memory(
    high: Driver, run: Runs
):
    """Views, aliases, ``.data``: whatever is in that memory, and nothing else."""
    high.hold(1, torch.ones(4))
    high.hold(2, [SECRET])
    high.hold(3, torch.ones(4))
    high(
        run("aten.slice.Tensor", Ref(1), 0, 2, 4, out=4),
        run("aten.detach.default", Ref(1), out=5),
        Alias(1, 6),
        ReadData(1, 7),
        run("aten.mul.Tensor", Ref(1), 2, out=8),
        bad_write(run, 4, 2),
    )
    assert high.there(*range(1, 9)) == [2, 3, 8]
    assert high.log == ["aten.index_fill_.int_Scalar failed: IndexError"]


@pytest.mark.parametrize("kind", ["in place", "out", "list", "grad", "data", "gone"])
def test_a_skipped_write_drops_its_target(high: Driver, run: Runs, kind: str):
    """What would have been written is not what low says it is."""
    high.hold(1, torch.ones(2, requires_grad=kind == "grad"))
    high.hold(2, torch.ones(2))
    write: dict[str, Any] = {
        "in place": run("aten.add_.Tensor", Ref(1), Ref(9), out=NOWHERE, grad=False),
        "out": Run("aten.exp.out", [Ref(9)], {"out": Ref(1)}, NOWHERE, 0, False),
        "list": run(
            "aten._foreach_add_.List",
            [Ref(1)],
            [Ref(9)],
            out=NOWHERE,
            count=0,
            grad=False,
        ),
        "grad": WriteGrad(1, 9),
        "data": WriteData(1, 9),
        "gone": run("aten.add_.Tensor", Ref(9), Ref(2), out=NOWHERE, grad=False),
    }
    high(write[kind])
    assert high.there(1, 2) == ([1, 2] if kind == "gone" else [2])
    assert high.log == []


def test_results_are_dropped_together(high: Driver, run: Runs):
    """A failed operator with several results has none of them."""
    high.hold(1, [[float("nan")]])
    high(run("aten.linalg_eig.default", Ref(1), out=2, count=2))
    assert high.there(2, 3) == []


def test_a_result_that_looks_otherwise_is_a_failure(high: Driver, run: Runs):
    """What low has told must be true; a difference is a bug, and shows in the log."""
    high.hold(1, [1.0, 2.0])
    high(run("aten.max.dim", Ref(1), 0, out=2, count=3))
    assert high.there(2, 3, 4) == []
    assert high.log == ["aten.max.dim failed: RemoteProtocolError"]


# --- gradients ------------------------------------------------------------------------

ROTATION = [[0.0, 1.0], [-1.0, 0.0]]
"""Its eigenvectors are complex: their phase is arbitrary, and decides the loss."""


def eigenvectors(run: Runs, matrix: int, loss: int) -> list[Run]:
    """Return requests for a loss whose derivative exists for some matrices only."""
    vectors, real = loss + 2, loss + 4
    return [
        run("aten.linalg_eig.default", Ref(matrix), out=loss + 1, count=2),
        run("aten.view_as_real.default", Ref(vectors), out=loss + 3),
        run("aten.select.int", Ref(loss + 3), -1, 0, out=real),
        run("aten.sum.default", Ref(real), out=loss),
    ]


@pytest.mark.parametrize("missing", [False, True])
def test_a_failed_backward_drops_what_needs_gradients(
    high: Driver, run: Runs, missing: bool
):
    """And the gradients, under whatever name; the rows stay, and what needs none."""
    high.hold(1, torch.tensor(ROTATION, requires_grad=True))
    high.hold(2, torch.ones(3))
    high.hold(3, torch.ones(3, requires_grad=True))
    product = run("aten.mul.Tensor", Ref(2), Ref(3), out=4)
    total = run("aten.sum.default", Ref(4), out=5)
    high(product, total, Backward((5,), (None,), None, False, False), ReadGrad(3, 6))
    assert high.value(6).tolist() == [1.0] * 3
    detached = run("aten.mul.Tensor", Ref(2), 2, out=7)
    high(detached, *eigenvectors(run, 1, 20))
    root = 99 if missing else 20
    high(Backward((root,), (None,), None, False, False))
    assert high.there(1, 2, 3, 4, 5, 6, 7, 20) == [2, 7]
    assert high.log == ([] if missing else ["backward failed: RuntimeError"])


def test_a_failed_differentiation_has_no_results(high: Driver, run: Runs):
    """It writes nothing, so that nothing else is dropped."""
    high.hold(1, torch.tensor(ROTATION, requires_grad=True))
    high(*eigenvectors(run, 1, 20))
    high(Differentiate((20,), (None,), (1,), 30, False, False))
    assert high.there(1, 20, 30) == [1, 20]


def test_a_gradient_that_is_not_there_is_missing(high: Driver):
    """What low says was accumulated and was not here leaves no name."""
    high.hold(1, torch.ones(2, requires_grad=True))
    high(ReadGrad(1, 2), ReadGrad(1, 3, describe=True))
    assert high.there(2, 3) == []
    assert high.log == ["readgrad failed: CallError"]


# --- what is run ----------------------------------------------------------------------


def test_what_low_did_not_do_is_not_done(high: Driver, run: Runs):
    """Nor is it dropped for that."""
    high.hold(1, [1.0])
    fill = run("aten.fill_.Scalar", Ref(1), 9.0, out=NOWHERE, grad=False)
    move = Move((1,), "hub", "t", (8,))
    assert high(fill, run("aten.neg.default", Ref(1), out=2), move, undone={0, 2}) == []
    assert high.value(1).item() == 1.0
    assert high.value(2).item() == -1.0


def test_a_batch_is_run_once(high: Driver, run: Runs):
    """Sent again, it changes and delivers nothing."""
    high.hold(1, [1.0])
    high(run("aten.add_.Tensor", Ref(1), 1, out=NOWHERE, grad=False))
    high.number -= 1
    assert high(run("aten.add_.Tensor", Ref(1), 1, out=NOWHERE, grad=False)) == []
    assert high.value(1).item() == 2.0


def test_what_was_lost_on_its_way_leaves_nothing():
    """Where low did what did not come here, nobody knows what is left; rows come."""
    high = Driver(datasets={"d": {"features": torch.ones(3)}})
    high.hold(1, [1.0])
    high(undone={1})
    assert high.there(1) == []
    assert high.log == ["a batch was given up on its way; what there was is dropped"]
    high(Load("d", "features", 2), Load("d", "target", 3))
    assert high.there(2, 3) == [2]


def test_the_clients_dtype_decides_and_modes_are_left_as_they_were(
    high: Driver, run: Runs
):
    """What runs here changes nothing for who runs it."""
    with torch.no_grad():
        ones = run("aten.ones.default", [2], out=1)
        high(ones, default_dtype="float64")
        assert not torch.is_grad_enabled()
    assert torch.get_default_dtype() is torch.float32
    assert high.value(1).dtype is torch.float64


def test_random_numbers_are_those_of_the_seed(high: Driver, run: Runs):
    """Which is in the request, so that low need not draw."""
    high(
        run("aten.rand.default", [4], out=1, seed=7),
        run("aten.rand.default", [4], out=2),
    )
    torch.manual_seed(7)
    assert torch.equal(high.value(1), torch.rand(4))
    assert torch.equal(high.value(2), torch.rand(4))


def test_strides_are_lows(high: Driver, run: Runs):
    """What a kernel lays out otherwise than it does without values is copied."""
    high.hold(1, torch.eye(3))
    high(run("aten.linalg_eig.default", Ref(1), out=2, count=2))
    vectors = high.high._store[3]
    assert vectors.stride() == torch.linalg.eig(torch.eye(3, device="meta"))[1].stride()


def test_values_are_combined(high: Driver):
    """A named aggregator runs here as anywhere; what it refuses is missing."""
    for id in (1, 2, 3):
        high.hold(id, [float(id), 5.0])
    high(
        Aggregate("trimmed_mean", (1, 2, 3), 1, 4),
        Aggregate("sum", (1, 2, 3), 0, 5),
        Aggregate("sum", (), 0, 6),
    )
    assert high.value(4).tolist() == [2.0, 5.0]
    assert high.value(5).tolist() == [6.0, 15.0]
    assert high.there(6) == []


# --- what others deliver --------------------------------------------------------------


def test_what_is_expected_is_taken(high: Driver):
    """And nothing else; the owner is told that something is missing."""
    message = Deliver("s", (1,), (TensorData("float32", (1,), 0),))
    high.high.take("alice", message, [to_frame(torch.ones(1))])
    high(Expect((1,), "alice"))
    high.high.take("mallory", message, [to_frame(torch.ones(1))])
    high.high.take("alice", message, [b""])
    lines = ["a delivery of alice", "a delivery of mallory", "a delivery of alice"]
    assert [line.partition(" is")[0] for line in high.log] == lines
    high.high.take("alice", message, [to_frame(torch.full((1,), 3.0))])
    assert high.value(1).item() == 3.0


def test_what_is_unwanted_is_let_go(high: Driver):
    """What was cleared before it came is not kept."""
    high(Expect((1,), "alice"), Clear())
    message = Deliver("s", (1,), (TensorData("float32", (1,), 0),))
    high.high.take("alice", message, [to_frame(torch.ones(1))])
    assert high.there(1) == []
    assert high.log == []


def test_what_is_no_batch_of_requests_runs_nowhere(high: Driver):
    """A default dtype that is none stops the batch before it begins."""
    with pytest.raises(RemoteProtocolError, match="default dtype"):
        high(default_dtype="int64")


def test_a_mode_that_was_not_left_is_left():
    """Ctrl-C may come between what enters one and what would leave it."""

    def interrupted() -> None:
        with computing("float32"):
            shape_only_mode().__enter__()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert torch._C._len_torch_dispatch_stack() == 0
    assert type(torch.ones(1)) is torch.Tensor


def test_an_interrupted_batch_goes_on(high: Driver, run: Runs):
    """What was begun has failed; what comes after it is done."""
    high.hold(1, [1.0])
    high.hold(2, [2.0])
    apply, left = high.high._execution.apply, [0, 1, 0]

    def interrupted(*args: Any) -> Any:
        if left.pop():
            raise KeyboardInterrupt
        return apply(*args)

    high.high._execution.apply = interrupted  # type: ignore[method-assign]
    write = [
        run("aten.add_.Tensor", Ref(id), 1, out=NOWHERE, grad=False) for id in (2, 1, 2)
    ]
    batch = Batch("s", 3, tuple(write))
    with pytest.raises(KeyboardInterrupt):
        high.high.follow(batch, (), ())
    assert high.high.follow(batch, (), ()) == []
    assert high.high.follow(batch, (), ()) == []
    high.high._execution.apply = apply  # type: ignore[method-assign]
    high.number = 3
    assert (high.value(1), high.value(2).item()) == (None, 4.0)


def test_a_batch_that_was_never_ended_leaves_nothing(high: Driver, run: Runs):
    """The next one finds nothing, and is done."""
    high.hold(1, [1.0])
    apply = high.high._execution.apply

    def interrupted(*args: Any) -> Any:
        raise KeyboardInterrupt

    high.high._execution.apply = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        high(run("aten.add_.Tensor", Ref(1), 1, out=NOWHERE, grad=False))
    high.high._execution.apply = apply  # type: ignore[method-assign]
    high.hold(2, [2.0])
    assert high.there(1, 2) == [2]


def test_an_operator_without_tensors_leaves_nothing(high: Driver):
    """Nor does a write to a list that names none."""
    high.hold(1, [1.0])
    high(Run("aten.add_.Tensor", [3.0, 1], {}, NOWHERE, 0, False))
    high(Run("aten.add_.Tensor", [3.0, Ref(9)], {}, NOWHERE, 0, False))
    high(Run("aten._foreach_zero_.default", [[None, 3]], {}, NOWHERE, 0, False))
    assert high.there(1) == [1]
    assert high.log == ["aten._foreach_zero_.default failed: RuntimeError"]
