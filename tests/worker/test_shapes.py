"""What results look like, found on meta tensors."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from obhut.worker import shapes
from obhut.worker.shapes import UnknownShapeError, dense, infer, spec, spec_of

aten = torch.ops.aten


def test_the_same_description_is_the_same_object():
    """Specifications are interned, with and without requires_grad."""
    one = spec((2, 3), (3, 1), torch.float32)
    assert spec((2, 3), (3, 1), torch.float32) is one
    assert dense((2, 3), torch.float32) is one
    assert spec_of(torch.zeros(2, 3)) is one
    tracked = spec((2, 3), (3, 1), torch.float32, requires_grad=True)
    assert tracked is one.tracked is spec_of(torch.zeros(2, 3, requires_grad=True))
    assert tracked is not one
    assert tracked.plain is one
    assert tracked.tracked is tracked
    assert (tracked.requires_grad, one.requires_grad) == (True, False)


def test_interning_does_not_grow_without_end():
    """After very many descriptions the table begins anew; specs stay sound."""
    first = dense((1, 7), torch.float32)
    for size in range(shapes._INTERNED_AT_MOST + 10):
        dense((size, 3), torch.int8)
    assert len(shapes._interned) <= shapes._INTERNED_AT_MOST
    assert dense((1, 7), torch.float32).shape == first.shape


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (4, 1, 5)])
def test_a_dense_specification_is_pytorchs(shape):
    """Row-major strides are those that PyTorch gives, empty tensors too."""
    assert dense(shape, torch.float16) is spec_of(torch.empty(shape, dtype=torch.half))
    assert dense(shape, torch.float16).nbytes == 2 * torch.empty(shape).numel()


def test_row_major_is_what_a_new_tensor_has():
    """Only the strides of a new tensor count, of sizes of 1 as well."""
    assert spec_of(torch.zeros(2, 3)).row_major
    assert not spec_of(torch.zeros(3, 2).t()).row_major
    assert not spec((1, 2), (7, 1), torch.float32).row_major


def test_differentiable_types():
    """Floating point and complex types have gradients."""
    assert dense((), torch.bfloat16).differentiable
    assert dense((), torch.complex64).differentiable
    assert not dense((), torch.int64).differentiable


CASES = [
    (aten.mm.default, (torch.zeros(2, 3), torch.zeros(3, 4))),
    (aten.add.Tensor, (torch.zeros(2, 1), torch.zeros(1, 3))),
    (aten.add.Tensor, (torch.zeros(2, dtype=torch.int64), 1.5)),
    (aten.permute.default, (torch.zeros(2, 3, 4), [2, 0, 1])),
    (aten.max.dim, (torch.zeros(2, 3), 1)),
    (aten.split.Tensor, (torch.zeros(5, 2), 2)),
    (aten.cat.default, ([torch.zeros(2), torch.zeros(3)],)),
    (aten.sum.default, (torch.zeros(3, dtype=torch.bool),)),
]


@pytest.mark.parametrize(("func", "args"), CASES, ids=lambda x: str(x)[:30])
def test_results_look_as_they_will(func, args):
    """Sizes, strides and dtypes are those of the operator run on values."""
    described = [
        [spec_of(t) for t in a]
        if isinstance(a, list) and isinstance(a[0], torch.Tensor)
        else spec_of(a)
        if isinstance(a, torch.Tensor)
        else a
        for a in args
    ]
    results = torch.utils._pytree.tree_leaves(func(*args))
    inferred = infer(func, described, {}, False)
    assert inferred.results == tuple(map(spec_of, results))


@pytest.mark.parametrize(
    ("func", "args", "kwargs", "growth"),
    [
        (aten.add.Tensor, [dense((10,), torch.float32)] * 2, {}, 40),
        (aten.view.default, [dense((10,), torch.float32), [5, 2]], {}, 0),
        (aten.t_.default, [dense((10, 2), torch.float32)], {}, 0),
        (aten.expand.default, [dense((1,), torch.float32), [2**50]], {}, 0),
        (aten.resize_.default, [dense((1,), torch.float32), [10]], {}, 36),
        (aten.zeros.default, [[10]], {"device": torch.device("cpu")}, 40),
        (
            aten.add.out,
            [dense((10,), torch.float32)] * 2,
            {"out": dense((0,), torch.float32)},
            40,
        ),
        (
            aten.add.out,
            [dense((10,), torch.float32)] * 2,
            {"out": dense((10,), torch.float32)},
            0,
        ),
        (aten.split.Tensor, [dense((10,), torch.float32), 3], {}, 0),
        (aten.max.dim, [dense((10, 2), torch.float32), 0], {}, 2 * (4 + 8)),
    ],
)
def test_growth_is_what_was_not_there_before(func, args, kwargs, growth):
    """Only new memory counts: not views, not what is written in place."""
    assert infer(func, args, kwargs, False).growth == growth


def test_gradients_are_inferred():
    """A result requires a gradient where an input does and grad mode is on."""
    x = dense((2,), torch.float32)
    for grad, tracked in ((True, True), (False, False)):
        (result,) = infer(aten.neg.default, [x.tracked], {}, grad).results
        assert result is not None
        assert result.requires_grad is tracked


def test_a_shape_that_depends_on_values_is_unknown():
    """Where meta tensors can not tell, the error says so."""
    for func, args in (
        (aten.nonzero.default, [dense((3,), torch.float32)]),
        (aten.masked_select.default, [dense((3,), torch.float32)] * 2),
    ):
        with pytest.raises(UnknownShapeError):
            infer(func, args, {}, False)


def test_a_kernel_that_can_not_tell_in_its_own_way():
    """Other classes of RuntimeError are about meta tensors and not about the call."""

    def func(x):
        raise torch.OutOfMemoryError("no")

    with pytest.raises(UnknownShapeError, match="no"):
        infer(func, [dense((3,), torch.float32)], {}, False)


def test_an_error_is_pytorchs_own():
    """What does not fit fails in PyTorch's own words."""
    with pytest.raises(RuntimeError, match="broadcast"):
        infer(
            aten.add.Tensor,
            [dense((2,), torch.float32), dense((3,), torch.float32)],
            {},
            False,
        )


def test_a_number_from_here_may_stand_among_meta_tensors():
    """A 0-dim local tensor joins, with the dtype that it gives the result."""
    number = torch.tensor(1.5, dtype=torch.float64)
    x = dense((2,), torch.int64)
    (result,) = infer(aten.add.Tensor, [x, number], {}, False).results
    assert result is spec_of(torch.zeros(2, dtype=torch.int64) + number)
    (copied,) = infer(aten.copy_.default, [x, number], {}, False).results
    assert copied is x


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (aten.masked_fill.Tensor, [dense((3,), torch.bool)]),
        (aten.index_fill.int_Tensor, [0, dense((1,), torch.int64)]),
    ],
)
def test_a_number_may_stand_where_meta_kernels_take_none(func, args):
    """Kernels that want all tensors at one place get the number there."""
    x = dense((3,), torch.float32)
    (result,) = infer(func, [x, *args, torch.tensor(1.5)], {}, False).results
    assert result is x


@pytest.mark.parametrize(
    "mode",
    ["torch.inference_mode()", "torch.autocast('cpu')", "torch.no_grad()"],
)
def test_the_modes_of_the_import_are_not_kept(mode):
    """A program that first imports obhut inside a mode computes as outside of it."""
    program = f"""
import torch
with {mode}:
    import obhut.worker.shapes as shapes
x = torch.ones(2, 2, requires_grad=True)
with shapes.outside_dispatch():
    y = torch.mm(x, x)
    y.sum().backward()
assert y.dtype is torch.float32, y.dtype
assert x.grad is not None
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_keys_are_those_that_pytorch_begins_with():
    """Inside, a thread's dispatch keys are those of a new thread."""
    import threading

    def keys():
        return (
            torch._C._dispatch_tls_local_include_set(),
            torch._C._dispatch_tls_local_exclude_set(),
        )

    found = []
    thread = threading.Thread(target=lambda: found.append(keys()))
    thread.start()
    thread.join()
    with torch.autocast("cpu"), torch.inference_mode(), shapes.outside_dispatch():
        inside = keys()
    assert [str(k) for k in inside] == [str(k) for k in found[0]]
