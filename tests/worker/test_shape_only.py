"""Tensors without values: they look as others do, or are refused by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from obhut.errors import OpNotAdmittedError
from obhut.transports.local import alone
from obhut.worker import looks, shape_only_calls
from obhut.worker.shape_only import ShapeOnly, like, shape_only
from obhut.worker.shape_only_calls import shape_only_mode
from obhut.worker.shapes import dense, spec_of

Tensor = torch.Tensor


@pytest.fixture(autouse=True)
def mode() -> Iterator[None]:
    """Everything here runs inside the mode, but what a test makes before."""
    with shape_only_mode():
        yield


def real(*shape: int, dtype: torch.dtype = torch.float32, **more: Any) -> Tensor:
    """Return zeros with values, also inside the mode."""
    with torch.utils._python_dispatch._disable_current_modes():
        return torch.zeros(shape, dtype=dtype, **more)


def bare(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
    """Return a tensor without values."""
    look = dense(shape, dtype)
    return shape_only(look.tracked if grad else look)


def looks_of(tensors: list[Tensor]) -> list[object]:
    """Return all that can be told of tensors."""
    numbers: dict[int, int] = {}
    return [
        (
            spec_of(one),
            one.storage_offset(),
            one.is_conj(),
            one.is_neg(),
            one.is_leaf,
            one._is_view(),
            one.untyped_storage().nbytes(),
            numbers.setdefault(one.untyped_storage()._cdata, len(numbers)),
        )
        for one in tensors
    ]


def both(change: Callable[..., Any], *shapes: Any) -> tuple[list[object], list[object]]:
    """Do something to tensors with values and without; return how all look then."""
    seen = []
    for place in (lambda one: one, like):
        tensors = [
            place(real(*shape) if isinstance(shape, tuple) else shape)
            for shape in shapes
        ]
        if place is like:
            result = change(*tensors)
        else:
            with torch.utils._python_dispatch._disable_current_modes():
                result = change(*tensors)
        leaves = [one for one in pytree.tree_leaves(result) if isinstance(one, Tensor)]
        seen.append(looks_of([*leaves, *tensors]))
    return seen[0], seen[1]


# --- what it is -------------------------------------------------------------------


def test_it_has_no_memory():
    """There are no bytes behind it, nor may anything of PyTorch's read them."""
    tensor = bare(3, 4)
    assert tensor.untyped_storage().nbytes() == 48
    assert tensor.data_ptr() == 0
    with pytest.raises(RuntimeError, match="invalid python storage"):
        tensor.untyped_storage().data_ptr()
    with pytest.raises(OpNotAdmittedError, match="a storage"):
        tensor.untyped_storage()[0]
    for read in (Tensor.numpy, Tensor.tolist):
        with pytest.raises(RuntimeError):
            read(tensor)
    assert repr(tensor) == "ShapeOnly((3, 4), torch.float32)"


def test_it_is_a_leaf_that_looks_as_told():
    """The specification decides all, requires_grad and strides too."""
    look = spec_of(real(4, 3).t()).tracked
    made = shape_only(look)
    assert (spec_of(made), made.is_leaf, made.grad_fn) == (look, True, None)
    conjugated = real(2, dtype=torch.complex64).conj()
    assert like(conjugated).is_conj()


def test_a_step_of_training_is_pytorchs_own():
    """Graphs, gradients, and writes to parameters are as ever."""
    weight, bias, data = bare(2, 3, grad=True), bare(2, grad=True), bare(8, 3)
    loss = F.mse_loss(F.relu(F.linear(data, weight, bias)), bare(8, 2))
    assert loss.grad_fn.name() == "MseLossBackward0"
    loss.backward()
    assert spec_of(weight.grad) is dense((2, 3), torch.float32)
    with torch.no_grad():
        weight.add_(weight.grad, alpha=-0.1)
    assert (weight._version, type(weight.grad)) == (1, ShapeOnly)


# --- what becomes of sizes and storages -------------------------------------------

CHANGES: dict[str, tuple[Any, ...]] = {
    "t_": (lambda x: x.t_(), (2, 3)),
    "transpose_": (lambda x: x.transpose_(0, 2), (2, 3, 4)),
    "swapaxes_": (lambda x: x.swapaxes_(0, 1), (2, 3)),
    "squeeze_": (lambda x: x.squeeze_(1), (2, 1, 3)),
    "unsqueeze_": (lambda x: x.unsqueeze_(0), (2, 3)),
    "resize_ smaller": (lambda x: x.resize_(2), (2, 3)),
    "resize_ larger": (lambda x: (x[1:], x.resize_(5, 5), x[2:].t()), (2, 3)),
    "resize_as_": (lambda x, y: x.resize_as_(y), (2, 3), (4, 4)),
    "set_": (lambda x, y: x.set_(y[1:]), (2, 3), (4, 4)),
    "set_ to nothing": (lambda x: x.set_(), (2, 3)),
    "as_strided_": (lambda x: x.as_strided_((2, 2), (1, 2), 1), (2, 3)),
    "as_strided of a part": (lambda x: x[1].as_strided((2,), (2,)), (3, 4)),
    "as_strided from a place": (lambda x: x[1].as_strided((2,), (2,), 1), (3, 4)),
    "views of views": (lambda x: (x[1], x[1].view(2, 2)[1], x[1:].t()), (3, 4)),
    "view as another dtype": (lambda x: x[1].view(torch.int16), (3, 4)),
    "complex as real": (lambda x: torch.view_as_real(torch.view_as_complex(x)), (3, 2)),
    "split": (lambda x: x.split([1, 2], 1), (2, 3)),
    "unbind": (lambda x: x.unbind(1), (2, 3)),
    "chunk": (lambda x: x.chunk(2), (3, 3)),
    "expand": (lambda x: x.expand(4, 2, 3), (2, 3)),
    "reshape": (lambda x: (x.reshape(6), x.t().reshape(6)), (2, 3)),
    "contiguous": (lambda x: (x.contiguous(), x.t().contiguous()), (2, 3)),
    "data": (lambda x: (x.data, x.data[1]), (2, 3)),
    "detach": (lambda x: x[1].detach(), (2, 3)),
    "out": (lambda x, y: torch.add(x, x, out=y), (2, 3), (2, 3)),
    "out resized": (lambda x, y: torch.add(x, x, out=y), (2, 3), (0,)),
    "out of part": (lambda x, y: torch.add(x, x, out=y[1:]), (2, 3), (3, 3)),
    "out of several": (
        lambda x, y, z: torch.max(x, 0, out=(y, z.long())),
        (2, 3),
        (3,),
        (3,),
    ),
    "foreach": (
        lambda x, y: torch._foreach_add_([x, y], [y[:1], x[:1]]),
        (2, 3),
        (4, 3),
    ),
    "foreach result": (lambda x, y: torch._foreach_mul([x, y], 2.0), (2, 3), (4,)),
    "lists": (lambda x, y: (torch.cat([x, y], 1), torch.stack([x, x])), (2, 3), (2, 1)),
    "several": (lambda x: (torch.linalg.qr(x), x.sort(), x.aminmax()), (3, 2)),
    "scalars": (lambda x: (x.sum(), x.mean(), x.norm()), (3, 2)),
    "optional": (lambda x, y: F.layer_norm(x, (3,), None, y), (2, 3), (3,)),
    "indices": (lambda x, y: x[y.long()], (2, 3), (5,)),
    "factories": (
        lambda x: (x.new_zeros(2), torch.ones_like(x), torch.ones(3)),
        (2, 3),
    ),
    "random": (lambda x: (torch.rand(2), F.dropout(x), torch.bernoulli(x)), (2, 3)),
    "empty": (lambda x: (x.sum(0), x @ x.t(), x.view(3, 0)), (0, 3)),
    "copies": (lambda x: (x.to(torch.float64), x.to(torch.float32), x.clone()), (2, 3)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CHANGES)
def test_sizes_and_storages_are_those_of_real_tensors(name):
    """Sizes, strides, offsets, sizes of storages, and who shares one, are the same."""
    change, *shapes = CHANGES[name]
    here, there = both(change, *shapes)
    assert there == here


@pytest.mark.filterwarnings("ignore")
def test_its_data_is_replaced_as_pytorchs():
    """After ``.data =`` it looks as the other one, and shares its storage."""

    def replace(x: Tensor, y: Tensor) -> Tensor:
        x.data = y[1:]
        return x.t()

    here, there = both(replace, (2, 3), (4, 5))
    assert there == here
    target = bare(2)
    target.data = real(3)
    assert target.untyped_storage().nbytes() == 12
    assert spec_of(target + 1) is dense((3,), torch.float32)


def test_an_optimizer_that_is_fused_writes():
    """Lists of several sizes, with and without optional ones, are written."""
    lists = [[bare(2, 3), bare(4)] for _ in range(4)]
    steps = [bare(), bare()]
    more = {"amsgrad": False, "maximize": False}
    floats = {"beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0, "eps": 1e-8}
    torch._fused_adam_(*lists, [], steps, lr=0.1, **floats, **more)
    torch._fused_sgd_(
        *lists[:2],
        [],
        weight_decay=0.0,
        momentum=0.0,
        lr=0.1,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=True,
    )
    torch._foreach_addcdiv_(lists[0], lists[1], lists[2], [0.1, 0.2])
    assert [tuple(one.shape) for one in lists[0]] == [(2, 3), (4,)]
    assert [one._version for one in lists[0]] == [1, 1]
    torch._amp_foreach_non_finite_check_and_unscale_(lists[1], bare(1), bare(1))
    assert [one._version for one in lists[1]] == [0, 0]


# --- errors -----------------------------------------------------------------------


def test_a_write_between_forward_and_backward_is_noticed():
    """Versions are counted, of lists too: the error is PyTorch's."""
    for write in (
        lambda x: x.mul_(2),
        lambda x: torch._foreach_mul_([x], 2.0),
        lambda x: torch.mul(real(2), 2, out=x),
        lambda x: x.view(2).zero_(),
    ):
        leaf = bare(2, grad=True)
        middle = leaf.exp()
        result = middle.sum()
        with torch.no_grad():
            write(middle)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            result.backward()


def test_a_second_backward_is_refused():
    """The error is PyTorch's, unless the graph was to stay."""
    leaf = bare(2, grad=True)
    kept, freed = leaf.exp().sum(), leaf.exp().sum()
    kept.backward(retain_graph=True)
    kept.backward()
    freed.backward()
    with pytest.raises(RuntimeError, match="second time"):
        freed.backward()


def test_leaves_are_not_written():
    """The error is PyTorch's."""
    leaf = bare(2, grad=True)
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        leaf.add_(1)
    with pytest.raises(RuntimeError, match="a view of a leaf Variable"):
        leaf[:1].add_(1)


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "matrix sizes": (lambda: bare(2, 3) @ bare(2, 3), "cannot be multiplied"),
    "broadcast": (lambda: bare(2, 3) + bare(2), "must match"),
    "target in place": (lambda: bare(3).add_(bare(2, 3)), "output with shape"),
    "one memory": (
        lambda: [x[1:].add_(x[:-1]) for x in [bare(4)]],
        "single memory location",
    ),
    "expanded": (lambda: bare(1).expand(3).add_(1), "single memory location"),
    "a view": (lambda: bare(2, 3).t().view(6), "not compatible"),
    "a layer's dtype": (
        lambda: F.linear(bare(2, 3, dtype=torch.float64), bare(4, 3)),
        "dtype",
    ),
    "matrices' dtypes": (
        lambda: bare(9999, 99) @ bare(99, 2, dtype=torch.float64),
        "dtype",
    ),
    "targets": (
        lambda: F.cross_entropy(bare(8, 3), bare(8, dtype=torch.int32)),
        "Long",
    ),
    "many targets": (
        lambda: F.nll_loss(bare(80000, 30), bare(80000, dtype=torch.int32)),
        "Long",
    ),
    "indices": (
        lambda: bare(3, 3).gather(0, bare(1, 3)),
        "int64",
    ),
    "embedding": (lambda: F.embedding(bare(4), bare(9, 2)), "Long"),
    "convolution": (
        lambda: F.conv2d(bare(1, 1, 8, 8, dtype=torch.float64), bare(1, 1, 3, 3)),
        "type",
    ),
    "integers": (lambda: bare(3, dtype=torch.int64).softmax(0), "not implemented"),
    "a result's dtype": (lambda: bare(3, dtype=torch.int64).add_(1.5), "can't be cast"),
    "not boolean": (lambda: torch.where(bare(3), bare(3), bare(3)), "bool"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_publicly_wrong_is_told_in_pytorchs_words(name):
    """Sizes, shared memory and dtypes that do not fit are errors without values too."""
    call, words = WRONG[name]
    with pytest.raises((RuntimeError, IndexError), match=words) as raised:
        call()
    assert not isinstance(raised.value, OpNotAdmittedError)


NEEDING: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "item": (lambda x: x.sum().item(), "_local_scalar_dense"),
    "bool": (lambda x: bool((x > 0).any()), "_local_scalar_dense"),
    "float": (lambda x: float(x[0]), "_local_scalar_dense"),
    "equal": (lambda x: torch.equal(x, x), "equal"),
    "allclose": (lambda x: torch.allclose(x, x), "allclose"),
    "nonzero": (lambda x: x.nonzero(), "nonzero"),
    "masked_select": (lambda x: x.masked_select(x > 0), "masked_select"),
    "a mask": (lambda x: x[x > 0], "index.Tensor"),
    "unique": (lambda x: x.unique(), "_unique2"),
    "bincount": (lambda x: x.long().bincount(), "bincount"),
    "repeats": (lambda x: x.repeat_interleave(x.long()), "repeat_interleave"),
    "lstsq": (lambda x: torch.linalg.lstsq(x.view(2, 2), x.view(2, 2)), "lstsq"),
    "histogram": (lambda x: torch.histogram(x, 3), "histogram"),
    "histc": (lambda x: torch.linalg.cond(x.view(2, 2), float(x[0])), "_local_scalar"),
    "sections": (lambda x: x.tensor_split(x.long()), "a kernel of its own"),
    "in a derivative": (
        lambda x: x.index_fill(0, x.long(), x.sum().requires_grad_()).sum().backward(),
        "_unique",
    ),
    "sparse": (lambda x: x.to_sparse(), "_to_sparse"),
}


@pytest.mark.parametrize("name", NEEDING)
def test_what_needs_a_value_is_refused_by_name(name):
    """Wherever it happens, the error names the operator; the second time too."""
    call, operator = NEEDING[name]
    for _ in range(2):
        with pytest.raises(OpNotAdmittedError) as raised, shape_only_mode():
            call(bare(4))
        assert operator in raised.value.op
        assert "values" in raised.value.reason


# --- numbers that were written down -----------------------------------------------


def test_a_written_number_takes_part():
    """As a number it decides dtypes as PyTorch says, and as an index sizes."""
    three = real(dtype=torch.int64) + 3
    with torch.utils._python_dispatch._disable_current_modes():
        three = torch.tensor(3)
        half = torch.tensor(0.5, dtype=torch.float64)
    assert (bare(2) * half).dtype is torch.float32
    assert type(half * half) is ShapeOnly
    assert bare(5).index_fill(0, bare(1, dtype=torch.int64), half).shape == (5,)
    assert bare(5).narrow(0, three, 1).shape == (1,)
    with pytest.raises(OpNotAdmittedError):
        bare(5).narrow(0, like(three), 1)
    assert bare(5).narrow(0, three, 1).shape == (1,)


def test_a_written_number_never_becomes_another_unseen():
    """What is written to it is either known, or refused."""
    number = torch.tensor(3.0)
    assert type(number) is Tensor
    number += 1
    assert number.item() == 4
    for write in (
        lambda: number.add_(bare()),
        lambda: number.resize_(10**15),
        lambda: torch.add(bare(), 1, out=number),
    ):
        with pytest.raises(OpNotAdmittedError, match="stays as it is"):
            write()
    assert number.item() == 4


# --- the mode, and what is remembered ---------------------------------------------


def test_factories_without_a_tensor_make_nothing():
    """However large: no memory is taken."""
    huge = torch.zeros(10**6, 10**9)
    assert type(huge) is ShapeOnly
    assert huge.untyped_storage().nbytes() == 4 * 10**15
    assert type(torch.arange(10**12)) is ShapeOnly
    assert huge.to(torch.float64).sum(1).shape == (10**6,)
    with pytest.raises(RuntimeError, match="dtype"):
        huge @ bare(10**9, 10**6, dtype=torch.float64)


def test_the_mode_is_entered_again_and_left():
    """Inside itself too; outside real tensors are made."""
    with shape_only_mode():
        assert type(torch.ones(2)) is ShapeOnly
    assert type(torch.ones(2)) is ShapeOnly
    with torch.utils._python_dispatch._disable_current_modes():
        assert type(torch.ones(2)) is Tensor


def test_it_works_inside_a_clients_dispatch():
    """A worker in the client's process is called while the client dispatches."""
    steps: list[object] = []

    def step() -> None:
        with alone(), torch.enable_grad(), shape_only_mode():
            leaf = bare(2, 3, grad=True)
            loss = F.linear(bare(4, 3), leaf).exp().sum()
            loss.backward()
            steps.append((loss.grad_fn.name(), spec_of(leaf.grad), leaf.t()._is_view()))

    class Client(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any, kwargs: Any = None
        ):
            step()
            return args[0]

    class Remote(Tensor):
        @classmethod
        def __torch_dispatch__(
            cls, func: Any, types: Any, args: Any, kwargs: Any = None
        ):
            step()
            return args[0]

    with torch.utils._python_dispatch._disable_current_modes():
        remote = Tensor._make_wrapper_subclass(Remote, (2,))
        remote.abs()
        with torch.no_grad():
            remote.abs()
        with Client():
            real(2).abs()
            torch.abs(torch.utils._pytree.tree_leaves([remote])[0])
    assert len(steps) >= 3
    assert set(steps) == {("SumBackward0", dense((2, 3), torch.float32), True)}


def test_a_learning_rate_is_no_new_key():
    """Floats that decide no shape are learnt once, integers and types each time."""
    weight, grad = bare(3, 7), bare(3, 7)
    known = len(shape_only_calls._known)
    for step in range(5):
        weight.add_(grad, alpha=0.1 / (step + 1))
    assert len(shape_only_calls._known) == known + 1
    weight.add_(grad, alpha=1)
    assert len(shape_only_calls._known) == known + 2
    assert torch.arange(0, 1.0, 0.25).shape == (4,)
    assert torch.arange(0, 1.0, 0.5).shape == (2,)


def test_what_is_remembered_does_not_grow_without_end():
    """After very many looks the table begins anew."""
    table: looks.Remembered[int] = looks.Remembered()
    for number in range(looks.AT_MOST + 3):
        table[number,] = number
    assert len(table) == 3
    assert table.get((0,)) is None


def test_the_default_dtype_decides():
    """Integers are divided to it; it is part of what is learnt."""
    number = bare(3, dtype=torch.int64)
    assert (number / number).dtype is torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert (number / number).dtype is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_no_random_number_is_drawn():
    """Neither for looks, nor to ask about dtypes."""
    state = torch.get_rng_state()
    with torch.utils._python_dispatch._disable_current_modes():
        before = torch.get_rng_state()
    F.dropout(bare(3, dtype=torch.bfloat16))
    torch.randn(3), torch.randperm(4), bare(3, dtype=torch.float64).normal_()
    F.rrelu(bare(3), training=True)
    with torch.utils._python_dispatch._disable_current_modes():
        assert torch.equal(torch.get_rng_state(), before)
    assert type(state) is not ShapeOnly or state.shape == before.shape


# --- dtypes -----------------------------------------------------------------------


def test_statistics_have_the_dtype_of_the_real_kernel():
    """Meta kernels say float32 of bfloat16; the real one is asked."""
    data = bare(2, 3, 4, dtype=torch.bfloat16)
    weight = bare(4, dtype=torch.bfloat16)
    mean = torch.native_layer_norm(data, [4], weight, weight, 1e-5)[1]
    assert mean.dtype is torch.bfloat16


def test_a_convolution_is_laid_out_as_by_the_real_kernel():
    """Channels last where an argument is; a meta kernel says otherwise."""
    last = torch.channels_last
    for shape in ((2, 3, 5, 5), (2, 3, 4, 5, 5)):
        where = last if len(shape) == 4 else torch.channels_last_3d
        convolve = torch.conv2d if len(shape) == 4 else torch.conv3d
        weight = torch.ones(4, 3, *[2] * (len(shape) - 2))
        for order in (torch.contiguous_format, where):
            data = torch.ones(shape).contiguous(memory_format=order)
            for given in (data, torch.ones(shape)):
                for other in (weight, weight.contiguous(memory_format=order)):
                    with shape_only_mode():
                        found = convolve(like(given), like(other))
                    assert found.stride() == convolve(given, other).stride()


def test_integers_that_are_zero_are_no_wrong_dtype():
    """What real kernels say of zeros, or of small sizes, is not believed."""
    number = bare(3, dtype=torch.int64)
    assert (number // number).dtype is torch.int64
    assert (number % number).dtype is torch.int64
    big = bare(70_000, dtype=torch.int64)
    assert F.one_hot(big, 5).shape == (70_000, 5)
    assert bare(50_000, 3).gather(0, bare(70_000, 3, dtype=torch.int64)).shape == (
        70_000,
        3,
    )
    assert big.view(7, 10_000).dtype is torch.int64
