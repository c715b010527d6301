"""What a graph keeps is not changed behind autograd's back, where there is a guard.

Derivative kernels trust the indices that a graph keeps: whoever changes them after the
forward pass ends the process, or writes beyond a tensor. Low, which has no values,
finds such writes by their versions, and high runs nothing that low refused.
"""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from obhut.guard.policy import Quorum
from obhut.ops.table import ROWS, Flag, Kind
from obhut.protocol.messages import (
    NOWHERE,
    Backward,
    ReadData,
    ReadGrad,
    Ref,
    Symbol,
    WriteData,
)
from obhut.worker.core import Worker
from obhut.worker.roles import Owner

POLICY = Quorum(
    aggregators=("hub",), contributors=("bob", "alice", "carol"), requesters=("me",)
)
IMAGE, POOLED, INDICES, LOSS, OTHER, FLOATS = 1, 10, 11, 12, 20, 21
BACKWARD = Backward((LOSS,), (None,), None, False, False)


@pytest.fixture
def owner(opened: Callable[..., Any]) -> Any:
    """A client with a session at an owner's worker."""
    return opened(Worker("bob", role=Owner(POLICY, lambda line: None)))


def _pool(client: Any, run: Callable[..., Any]) -> None:
    """Let a graph keep indices of the kernel's own, and name them."""
    client.hold(IMAGE, torch.arange(64.0).reshape(1, 1, 8, 8).requires_grad_())
    name = "aten.max_pool2d_with_indices.default"
    assert client(run(name, Ref(IMAGE), [2, 2], out=POOLED, count=2)) == []
    assert client(run("aten.sum.default", Ref(POOLED), out=LOSS)) == []


def _fill(run: Callable[..., Any], id: int, value: float) -> Any:
    name = "aten.fill_.Scalar"
    return run(name, Ref(id), value, out=NOWHERE, count=0, grad=False)


CRASHES = {
    "data": "i.data.fill_(1 << 40)",
    "data of a view of floats": "i.view(torch.float64).data.fill_(1e300)",
}


@pytest.mark.parametrize("write", CRASHES.values(), ids=CRASHES)
def test_why_writes_must_show(write: str) -> None:
    """The attack ends a process in which autograd is not told of the write."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "import torch\n"
        "x = torch.rand(1, 1, 8, 8, requires_grad=True)\n"
        "y, i = torch.nn.functional.max_pool2d(x, 2, return_indices=True)\n"
        f"{write}\n"
        "y.sum().backward()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False
    )
    assert done.returncode < 0


def test_a_write_through_data_shows(owner: Any, run: Callable[..., Any]) -> None:
    """Indices changed by their ``.data`` are found before the kernel runs."""
    _pool(owner, run)
    assert owner(ReadData(INDICES, OTHER), _fill(run, OTHER, 1 << 40)) == []
    assert "modified by an inplace operation" in owner.fails(BACKWARD).text


def test_indices_have_no_view_of_floats(owner: Any, run: Callable[..., Any]) -> None:
    """Nor have floats one of integers: the ``.data`` of floats tells of no write."""
    _pool(owner, run)
    view = run("aten.view.dtype", Ref(INDICES), Symbol("float64"), out=FLOATS)
    assert "behind a guard expected a view of torch.int64" in owner.fails(view).text
    owner.hold(OTHER, torch.zeros(4))
    view = run("aten.view.dtype", Ref(OTHER), Symbol("int32"), out=30)
    assert "behind a guard expected a view of torch.float32" in owner.fails(view).text
    same = run("aten.view.dtype", Ref(OTHER), Symbol("float64"), out=31)
    assert owner(same) == []


@pytest.mark.parametrize(
    ("target", "source"), [(INDICES, OTHER), (OTHER, INDICES), (OTHER, FLOATS)]
)
def test_indices_get_no_other_memory(
    owner: Any, run: Callable[..., Any], target: int, source: int
) -> None:
    """``x.data = y`` is refused for what can hold indices, on either side."""
    _pool(owner, run)
    owner.hold(FLOATS, torch.zeros(1, 1, 4, 4))
    owner.hold(OTHER, torch.zeros(1, 1, 4, 4, dtype=torch.int64))
    failure = owner.fails(WriteData(target, source))
    assert "behind a guard .data is replaced only by floating-point" in failure.text


def test_a_graph_that_keeps_what_gets_other_memory_is_spent(
    owner: Any, run: Callable[..., Any]
) -> None:
    """A derivative kernel can not be given another size than the forward pass had."""
    _pool(owner, run)
    owner.hold(OTHER, torch.zeros(1, 1, 2, 2))
    assert owner(WriteData(IMAGE, OTHER)) == []
    assert "modified by an inplace operation" in owner.fails(BACKWARD).text


def test_data_of_floats_is_as_ever(
    owner: Any, me: Any, run: Callable[..., Any]
) -> None:
    """A write to the ``.data`` of floats is none that autograd refuses."""
    for client in (owner, me):
        client.hold(1, torch.ones(3).requires_grad_())
        square = run("aten.mul.Tensor", Ref(1), Ref(1), out=2)
        total = run("aten.sum.default", Ref(2), out=LOSS)
        assert client(square, total, ReadData(1, 3), _fill(run, 3, 5.0)) == []
        assert client(BACKWARD, ReadGrad(1, 4, describe=False)) == []
    assert me.value(4).tolist() == [10.0] * 3


def _own(tree: Any) -> tuple[Any, list[torch.Tensor]]:
    """Return the same arguments with tensors that count writes, and those."""
    made: dict[int, torch.Tensor] = {}

    def copy(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
            return value
        if id(value) not in made:
            new = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
            made[id(value)] = new.copy_(value)
        return made[id(value)]

    return pytree.tree_map(copy, tree), list(made.values())


WRITERS = [
    *("scatter", "index_put", "index_fill", "cumsum", "sort", "topk", "kthvalue"),
    *(
        "bitwise_and",
        "clamp",
        "cummax",
        "max_reduction_with_dim",
        "nn.functional.rrelu",
    ),
    *("masked_fill", "put", "lu", "linalg.lu_factor", "fill", "sub", "searchsorted"),
]


class _Calls(TorchDispatchMode):
    """Notes some calls of each overload that changes an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[str, list[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        calls = self.of.setdefault(str(func), [])
        call = _own((args, kwargs or {}))[0]
        result = func(*args, **(kwargs or {}))
        if func._schema.is_mutable and len(calls) < 4:
            calls.append(call)
        return result


def _writing() -> list[tuple[str, Any]]:
    """Return calls of overloads that change an argument, of PyTorch's samples."""
    from torch.testing._internal.common_methods_invocations import op_db

    calls = _Calls()
    for op in op_db:
        if op.full_name not in WRITERS:
            continue
        for dtype in (torch.float32, torch.int64, torch.bool):
            if not op.supports_dtype(dtype, "cpu"):
                continue
            for sample in itertools.islice(op.sample_inputs("cpu", dtype), 3):
                given, args, kwargs = sample.input, sample.args, sample.kwargs
                with contextlib.suppress(Exception), torch.no_grad():
                    result = op(given, *args, **kwargs)
                    with calls, contextlib.suppress(Exception):
                        op(given, *args, **kwargs)
                        op(given, *args, **kwargs, out=_own(result)[0])
                    if op.inplace_variant is not None:
                        with calls:
                            op.inplace_variant(_own(given)[0], *args, **kwargs)
    return [(op, call) for op, some in calls.of.items() for call in some]


@pytest.mark.filterwarnings("ignore")
def test_every_write_to_integers_shows() -> None:
    """What changes an integer in place or by ``out=`` counts it as a write."""
    written = 0
    for op, call in _writing():
        row = ROWS.get(op)
        if row is None or row.kind is Kind.REFUSED or Flag.GUARD_REFUSED in row.flags:
            continue
        _, packet, overload = op.split(".")
        func = getattr(getattr(torch.ops.aten, packet), overload)
        (args, kwargs), tensors = _own(call)
        whole = [t for t in tensors if not t.is_floating_point()]
        for tensor in whole if row.kind is Kind.OUT else ():
            if any(tensor is one for one in pytree.tree_leaves(kwargs)):
                tensor.bitwise_not_()  # a result is not there already
        before = [(t.clone(), t._version) for t in whole]
        with torch.no_grad():
            func(*args, **kwargs)
        for tensor, (value, version) in zip(whole, before, strict=True):
            if not torch.equal(tensor, value):
                written += 1
                assert tensor._version > version, op
    assert written > 20


def test_what_is_written_and_not_returned_is_no_index() -> None:
    """PyTorch counts writes to what a schema returns; of the rest none holds indices.

    ``_amp_update_scale_`` counts steps in an integer that it does not return.
    """
    found = set()
    for row in ROWS.values():
        if row.kind is Kind.REFUSED or Flag.GUARD_REFUSED in row.flags:
            continue
        _, packet, overload = row.name.split(".")
        schema = getattr(getattr(torch.ops.aten, packet), overload)._schema
        marked = [a for a in schema.arguments if a.alias_info and a.alias_info.is_write]
        returned = [r for r in schema.returns if r.alias_info]
        if returned or packet.endswith(("_norm_with_update", "rrelu_with_noise")):
            marked = marked[len(returned) :]
        elif packet.startswith(("_foreach_", "split_", "unbind_")):
            marked = []  # lists, of which each is counted
        elif packet.startswith("_fused_"):
            marked = []  # floating-point numbers, as their check says
        found.update((row.name, a.name) for a in marked)
    assert found == {
        ("aten._amp_foreach_non_finite_check_and_unscale_.default", "self"),
        ("aten._amp_foreach_non_finite_check_and_unscale_.default", "found_inf"),
        ("aten._batch_norm_with_update.default", "running_mean"),
        ("aten._batch_norm_with_update.default", "running_var"),
        ("aten.rrelu_with_noise.default", "noise"),
        ("aten.rrelu_with_noise.out", "out"),
        ("aten.rrelu_with_noise_.default", "noise"),
    }
    assert Flag.GUARD_REFUSED in ROWS["aten._amp_update_scale_.default"].flags
