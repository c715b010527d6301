"""Operators behind a guard: what a requester sees does not depend on values."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from obhut.errors import CallError, MemoryLimitError, OpNotAdmittedError
from obhut.ops.table import ROWS, Flag, Kind
from obhut.protocol.messages import (
    NOWHERE,
    Backward,
    Differentiate,
    Ref,
    Run,
    Symbol,
)
from obhut.worker import guarded_backward
from obhut.worker.executor import Executor
from obhut.worker.store import Store

CPU = torch.device("cpu")


class Workbench:
    """An executor with tensors of its own, behind a guard unless told otherwise."""

    def __init__(self, *, guarded: bool = True, limit: int | None = None) -> None:
        self.store = Store("bob", limit)
        self.log: list[str] = []
        self.executor = Executor(
            self.store, CPU, log=self.log.append if guarded else None
        )
        self.next = 0

    def hold(self, value: Any, *, requires_grad: bool = False) -> Ref:
        """Hold a tensor; return its name."""
        self.next += 1
        self.store[self.next] = torch.as_tensor(value).requires_grad_(requires_grad)
        return Ref(self.next)

    def run(self, op: str, *args: Any, grad: bool = True, **kwargs: Any) -> Ref:
        """Run an operator that yields one tensor or more; return the first's name."""
        self.next += 1
        out, self.next = self.next, self.next + 9
        self.ask(Run(op, list(args), kwargs, out, 0, grad, True))
        return Ref(out)

    def ask(self, request: Run) -> Any:
        """Run a request, and leave the grad mode as it was."""
        with torch.set_grad_enabled(request.grad):
            return self.executor.run(request)

    def backward(self, root: Ref, **how: bool) -> None:
        """Run a backward pass."""
        known = {"retain_graph": False, "create_graph": False, **how}
        self.executor.backward(Backward((root.id,), (None,), None, **known))

    def __getitem__(self, ref: Ref) -> torch.Tensor:
        return self.store[ref.id]


BAD = [7, -9, 1 << 40]

FAIL_ON_VALUES = [
    ("aten.embedding.default", [torch.ones(3, 2), torch.tensor(BAD)], {}),
    ("aten.gather.default", [torch.ones(3), 0, torch.tensor(BAD)], {}),
    ("aten.index_select.default", [torch.ones(3), 0, torch.tensor(BAD)], {}),
    ("aten.index.Tensor", [torch.ones(3), [torch.tensor(BAD)]], {}),
    ("aten.take.default", [torch.ones(3), torch.tensor(BAD)], {}),
    ("aten.bernoulli.default", [torch.full((3,), 2.0)], {}),
    ("aten.multinomial.default", [torch.full((3,), -1.0), 1], {}),
    ("aten.cholesky.default", [-torch.eye(3)], {}),
    ("aten._linalg_eigh.default", [torch.full((3, 3), float("nan"))], {}),
    ("aten.linalg_eig.default", [torch.full((3, 3), float("inf"))], {}),
    ("aten.binary_cross_entropy.default", [torch.full((3,), 7.0), torch.ones(3)], {}),
    (
        "aten.nll_loss_forward.default",
        [torch.ones(3, 2), torch.tensor(BAD), None, 1, -100],
        {},
    ),
    (
        "aten.div.Tensor_mode",
        [torch.tensor([1]), torch.tensor([0])],
        {"rounding_mode": "trunc"},
    ),
]


def _given(site: Workbench, args: list[Any]) -> list[Any]:
    def one(value: Any) -> Any:
        if isinstance(value, list):
            return [one(item) for item in value]
        if isinstance(value, torch.Tensor):
            return site.hold(value.clone(), requires_grad=value.is_floating_point())
        return value

    return [one(value) for value in args]


@pytest.mark.parametrize(
    ("op", "args", "kwargs"), FAIL_ON_VALUES, ids=[op for op, *_ in FAIL_ON_VALUES]
)
def test_a_failure_on_values_yields_nan_and_a_line_for_the_owner(op, args, kwargs):
    """Nothing is raised, results are NaN or 0, the log has kinds and no values."""
    site = Workbench()
    made = site[site.run(op, *_given(site, args), **kwargs)]
    assert bool((torch.isnan(made) | (made == 0)).all())
    assert made.dtype is torch.int64 or bool(torch.isnan(made).all())
    (line,) = site.log
    assert line.startswith(f"{op} failed: ")
    assert not any(str(value) in line for value in (*BAD, "nan", "inf"))


@pytest.mark.parametrize(
    ("op", "args", "kwargs"), FAIL_ON_VALUES, ids=[op for op, *_ in FAIL_ON_VALUES]
)
def test_without_a_guard_the_same_is_raised(op, args, kwargs):
    """The attack succeeds on an open worker: the values decide whether it raises."""
    site = Workbench(guarded=False)
    with pytest.raises(Exception):  # noqa: B017, PT011 # torch raises many kinds
        site.run(op, *_given(site, args), **kwargs)


@pytest.mark.filterwarnings("ignore:An output with one or more")
def test_an_error_of_sizes_is_told_in_full():
    """What depends on sizes only is said in PyTorch's words, and not logged."""
    site = Workbench()
    with pytest.raises(RuntimeError, match="must have same reduction dim"):
        site.run(
            "aten.mm.default", site.hold(torch.ones(2, 3)), site.hold(torch.eye(2))
        )
    target = site.hold(torch.ones(2, 1))
    with pytest.raises(RuntimeError, match="output with shape"):
        site.run("aten.atan2_.default", target, site.hold(torch.ones(2, 2)))
    assert site.log == []


SHARED = torch.ones(5)

STRUCTURAL = {
    "no kernel": ("aten.trace.default", [torch.ones(2, 2) > 0], "not implemented for"),
    "no derivative": (
        "aten.binary_cross_entropy.default",
        [torch.ones(3), torch.ones(3), torch.ones(3).requires_grad_()],
        "is not differentiable with respect to argument",
    ),
    "one place for several elements": (
        "aten.add_.Tensor",
        [torch.ones(1).expand(3), torch.ones(3)],
        "refers to a single memory location",
    ),
    "what is read is written": (
        "aten.add_.Tensor",
        [SHARED[1:], SHARED[:-1]],
        "refer to a single memory location",
    ),
}


@pytest.mark.parametrize(
    ("op", "args", "words"), STRUCTURAL.values(), ids=STRUCTURAL.keys()
)
def test_what_fails_whatever_the_values_is_told(op, args, words):
    """An error of dtypes, derivatives or memory is raised in all worlds, not a NaN."""
    for value in (1.0, float("nan")):
        for tensor in args:
            with torch.no_grad():
                tensor.fill_(value)
        site = Workbench()
        given = []
        for tensor in args:
            site.next += 1
            site.store[site.next] = tensor
            given.append(Ref(site.next))
        with pytest.raises(RuntimeError, match=words):
            site.run(op, *given, grad=any(t.requires_grad for t in args))
        assert site.log == []


def test_a_target_that_may_be_written_at_once_is():
    """Zeros may go to one place several times, as PyTorch allows."""
    site = Workbench()
    one = torch.ones(1)
    site.store[500] = one.expand(3)
    request = Run("aten.zero_.default", [Ref(500)], {}, NOWHERE, 0, False, False)
    site.ask(request)
    assert one.item() == 0
    assert site.log == []


def test_a_graph_without_a_derivative_is_told_of():
    """A pass that no values let succeed is refused in all worlds, in words."""
    for matrix in (torch.diag(torch.tensor([1.0, 2.0])), ROTATION):
        site = Workbench()
        _, loss = _eigenvectors(site, matrix.clone())
        other = site.hold(torch.ones(2), requires_grad=True)
        step = site.run("aten.heaviside.default", other, other)
        total = site.run("aten.add.Tensor", site.run("aten.sum.default", step), loss)
        with pytest.raises(NotImplementedError, match="derivative"):
            site.backward(total)


def test_a_target_of_another_size_is_refused():
    """``out=`` is never resized: a failure could leave it in another size."""
    site = Workbench()
    out = site.hold(torch.empty(0))
    with pytest.raises(CallError, match="out= must have the result's shape"):
        site.run("aten.exp.out", site.hold(torch.ones(2)), out=out)
    assert site[out].shape == (0,)


def test_what_is_changed_in_place_becomes_nan():
    """A target keeps its look; its values, also what was written already, go."""
    site = Workbench()
    target, bad = site.hold(torch.ones(3)), site.hold(torch.tensor(BAD))
    site.run("aten.index_fill_.int_Scalar", target, 0, bad, 5.0, grad=False)
    assert bool(torch.isnan(site[target]).all())
    whole = site.hold(torch.ones(3, dtype=torch.int64))
    site.run("aten.index_fill_.int_Scalar", whole, 0, bad, 5, grad=False)
    assert site[whole].tolist() == [0, 0, 0]


def test_a_leaf_is_written_to_neither_way():
    """That a leaf can not be changed in place is told, whatever the values."""
    for index in ([0], BAD):
        site = Workbench()
        leaf = site.hold(torch.ones(3), requires_grad=True)
        with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
            site.run("aten.index_fill_.int_Scalar", leaf, 0, site.hold(index), 5.0)


@pytest.mark.parametrize("index", [[0, 1], [7, 7]])
def test_a_backward_pass_through_a_failure_is_like_any_other(index):
    """The graph is that of a success: the same leaves get gradients, once."""
    site = Workbench()
    table = site.hold(torch.ones(3, 2), requires_grad=True)
    rows = site.run("aten.embedding.default", table, site.hold(index))
    product = site.run("aten.mul.Tensor", rows, rows)
    loss = site.run("aten.sum.default", product)
    site.backward(loss)
    assert site[table].grad.shape == (3, 2)
    with pytest.raises(RuntimeError) as caught:
        site.backward(loss)
    assert str(caught.value) == guarded_backward.FREED


def test_a_factorization_that_failed_is_nan():
    """Where PyTorch would raise after the fact, what it found becomes NaN."""
    site = Workbench()
    factor = site.run("aten.linalg_cholesky_ex.default", site.hold(-torch.eye(3)))
    info = Ref(factor.id + 1)
    request = Run(
        "aten._linalg_check_errors.default",
        [info, "linalg.cholesky"],
        {"is_matrix": True},
        out=500,
        count=0,
        grad=False,
    )
    assert site.ask(request) is None
    assert bool(torch.isnan(site[factor]).all())
    assert len(site.log) == 1


# --- what would tell values by its own nature -------------------------------------


@pytest.mark.parametrize(
    "name", [r.name for r in ROWS.values() if Flag.GUARD_REFUSED in r.flags]
)
def test_what_is_refused_behind_a_guard_says_why(name):
    """The error quotes the row's reason before anything is looked at."""
    site = Workbench()
    with pytest.raises(OpNotAdmittedError) as caught:
        site.run(name)
    assert caught.value.reason == f"behind a guard {ROWS[name].guard_reason}"
    assert ROWS[name].guard_reason


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("aten.nonzero.default", [torch.tensor([0, 1, 1])]),
        ("aten.masked_select.default", [torch.ones(2), torch.tensor([True, False])]),
        ("aten._unique2.default", [torch.tensor([1, 2, 2])]),
        ("aten.bincount.default", [torch.tensor([5])]),
        ("aten.repeat_interleave.Tensor", [torch.tensor([2, 3])]),
        ("aten.index.Tensor", [torch.ones(2), [torch.tensor([True, False])]]),
    ],
)
def test_no_shape_tells_values(op, args):
    """A shape that depends on values is told by an open worker, not behind a guard."""
    site = Workbench(guarded=False)
    site.run(op, *_given(site, args))
    site = Workbench()
    with pytest.raises(CallError, match="behind a guard"):
        site.run(op, *_given(site, args))


def test_a_mask_as_an_index_is_told_what_to_write_instead():
    """The error says what does the same with a shape that tells nothing."""
    site = Workbench()
    args = _given(site, [torch.ones(2), [torch.tensor([True, False])]])
    with pytest.raises(CallError, match=r"got a mask; .* torch.where\(mask, x, 0\)"):
        site.run("aten.index.Tensor", *args)


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("aten._local_scalar_dense.default", [torch.tensor(3.5)]),
        ("aten.equal.default", [torch.ones(2), torch.ones(2)]),
        ("aten.allclose.default", [torch.ones(2), torch.ones(2)]),
    ],
)
def test_no_operator_answers_a_value(op, args):
    """Numbers and truths are answered by an open worker and not behind a guard."""
    site = Workbench(guarded=False)
    assert site.ask(Run(op, _given(site, args), {}, 900, 0, False)) is not None
    site = Workbench()
    with pytest.raises(OpNotAdmittedError, match="behind a guard"):
        site.ask(Run(op, _given(site, args), {}, 900, 0, False))


def test_memory_beyond_a_tensor_is_out_of_reach():
    """Views, strides and factories stay inside what the session holds."""
    site = Workbench(limit=1 << 20)
    small = site.hold(torch.ones(4))
    with pytest.raises(MemoryLimitError):
        site.run("aten.as_strided.default", small, [1 << 20], [1], grad=False)
    beyond = site.run("aten.as_strided.default", small, [4], [1], 1, grad=False)
    assert bool(torch.isnan(site[beyond]).all())
    assert site[small].tolist() == [1.0] * 4
    for op in ("aten.resize_.default", "aten.set_.source_Tensor"):
        with pytest.raises(OpNotAdmittedError):
            site.run(op, small, [1 << 10])
    with pytest.raises(MemoryLimitError):
        site.run("aten.zeros.default", [1 << 30], dtype=Symbol("float32"))
    made = site.run("aten.empty.memory_format", [64], dtype=Symbol("float32"))
    assert not site[made].any()


def test_the_number_of_results_is_checked_before_anything_runs():
    """A count that does not fit is refused in every world."""
    for index in ([0], BAD):
        site = Workbench()
        request = Run(
            "aten.index_select.default",
            [site.hold(torch.ones(3)), 0, site.hold(index)],
            {},
            out=100,
            count=2,
            grad=False,
        )
        with pytest.raises(Exception, match="expected 2 results"):
            site.ask(request)
        assert site.log == []


# --- backward passes ----------------------------------------------------------------


def _eigenvectors(site: Workbench, matrix: torch.Tensor) -> tuple[Ref, Ref]:
    """Return a leaf, and a loss whose derivative exists for some matrices only."""
    leaf = site.hold(matrix, requires_grad=True)
    values = site.run("aten.linalg_eig.default", leaf)
    vectors = Ref(values.id + 1)
    real = site.run("aten.view_as_real.default", vectors)
    return leaf, site.run("aten.sum.default", site.run("aten.select.int", real, -1, 0))


ROTATION = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
"""Its eigenvectors are complex: their phase is arbitrary, and decides the loss."""


def test_without_a_guard_a_backward_pass_tells_values():
    """The attack succeeds on an open worker: one matrix has a gradient, one raises."""
    site = Workbench(guarded=False)
    leaf, loss = _eigenvectors(site, torch.diag(torch.tensor([1.0, 2.0])))
    site.backward(loss)
    assert site[leaf].grad is not None
    _, loss = _eigenvectors(site, ROTATION.clone())
    with pytest.raises(RuntimeError, match="ill-defined"):
        site.backward(loss)


@pytest.mark.filterwarnings("ignore:Using backward")
@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("retain", [False, True])
def test_a_backward_pass_that_fails_on_values_does_not_show(retain, create):
    """The same gradients exist, and the graph is freed or not as after a success."""
    seen = []
    for matrix in (torch.diag(torch.tensor([1.0, 2.0])), ROTATION):
        site = Workbench()
        leaf, loss = _eigenvectors(site, matrix.clone())
        told = []
        for _ in range(2):
            try:
                site.backward(loss, retain_graph=retain, create_graph=create)
            except RuntimeError as error:
                told.append(str(error))
            grad = site[leaf].grad
            told.append((grad.shape, grad.dtype, grad.requires_grad, grad.is_leaf))
        seen.append(told)
        failed = bool(torch.isnan(site[leaf].grad).all())
        assert (failed, bool(site.log)) == ((matrix is ROTATION),) * 2
    assert seen[0] == seen[1]
    assert (guarded_backward.FREED in seen[0]) == (not retain)


def test_gradients_asked_for_are_nan_where_a_success_reaches():
    """An input that the graph does not reach has none; others have NaN."""
    for matrix in (torch.diag(torch.tensor([1.0, 2.0])), ROTATION):
        site = Workbench()
        leaf, loss = _eigenvectors(site, matrix.clone())
        other = site.hold(torch.ones(2), requires_grad=True)
        grads = site.executor.differentiate(
            Differentiate((loss.id,), (None,), (leaf.id, other.id), 800, False, False)
        )
        assert grads[0] is not None
        assert grads[0].shape == (2, 2)
        assert grads[1] is None


def test_errors_of_structure_are_told():
    """No graph, a gradient of another shape, a write since: said in full."""
    site = Workbench()
    leaf = site.hold(torch.ones(3), requires_grad=True)
    vector = site.run("aten.exp.default", leaf)
    with pytest.raises(RuntimeError, match="only for scalar outputs"):
        site.backward(vector)
    with pytest.raises(RuntimeError, match="does not require grad"):
        site.backward(site.hold(torch.tensor(1.0)))
    site.run("aten.zero_.default", vector, grad=False)
    loss = site.run("aten.sum.default", site.run("aten.mul.Tensor", vector, vector))
    other = site.run("aten.exp.default", leaf)
    site.run("aten.zero_.default", other, grad=False)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        site.backward(site.run("aten.sum.default", other))
    assert site.log == []
    assert loss


def test_kinds_of_rows():
    """Behind a guard runs less than on an open worker, and most of it."""
    kinds = [r for r in ROWS.values() if r.kind is not Kind.REFUSED]
    behind = [r for r in kinds if Flag.GUARD_REFUSED not in r.flags]
    assert 0.9 * len(kinds) < len(behind) < len(kinds)
    values = [r.name for r in behind if r.kind is Kind.VALUE]
    assert values == ["aten._linalg_check_errors.default"]
