"""The same call of an operator in worlds that differ in tensors' values only.

Calls are recorded from PyTorch's own samples: each overload that a sample reaches,
with each of a few looks of its arguments.

Rule: a world changes no size, stride, dtype or number among the arguments.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from obhut.errors import ObhutError
from obhut.protocol.messages import Backward, Complex, Here, Ref, Run, Symbol
from obhut.worker.executor import Executor
from obhut.worker.store import Store
from obhut.worker.tensors import SYMBOL_NAMES

from .pairs import seeded

# Any below: operators take and return whatever their schema says.


class OpCall(NamedTuple):
    """One call of an overload.

    Attributes:
        op: the overload's name, such as ``aten.add.Tensor``.
        args: its arguments.
        kwargs: likewise.
    """

    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def tensors(self) -> list[torch.Tensor]:
        """Return the tensors among the arguments."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


class _CallRecorder(TorchDispatchMode):
    """Notes the calls of each overload, a few with different looks."""

    def __init__(self, each: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.each = each
        self.calls: dict[str, dict[str, OpCall]] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        schema = func._schema
        name = f"{schema.name.replace('::', '.')}.{func._overloadname}"
        calls = self.calls.setdefault(name, {})
        if len(calls) < self.each:
            look = repr(pytree.tree_map(_look, (args, kwargs)))
            if look not in calls:
                args_, kwargs_ = pytree.tree_map(_copy, (args, kwargs))
                calls[look] = OpCall(name, tuple(args_), kwargs_)
        return func(*args, **kwargs)


def _look(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if value.layout is not torch.strided:
        return str(value.layout)
    return (tuple(value.shape), tuple(value.stride()), value.dtype)


def _copy(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return value
    with torch.no_grad():
        return value.detach().clone(memory_format=torch.preserve_format)


DTYPES = (torch.float32, torch.int64, torch.complex64, torch.bool)
"""The dtypes of the samples that are recorded."""


def record(
    names: Iterable[str] | None = None, samples: int = 8, each: int = 4
) -> dict[str, list[OpCall]]:
    """Return calls of each overload that PyTorch's samples reach, by overload.

    Args:
        names: entries of ``op_db``; None for all.
        samples: how many samples of each entry and dtype are run at most.
        each: how many calls of an overload are kept at most.
    """
    module = importlib.import_module(
        "torch.testing._internal.common_methods_invocations"
    )
    wanted = None if names is None else set(names)
    found: dict[str, dict[str, OpCall]] = {}
    for whole in (False, True):
        recorder = _CallRecorder(each)
        for op in module.op_db:
            if wanted is not None and op.full_name not in wanted:
                continue
            for dtype in DTYPES:
                if op.supports_dtype(dtype, "cpu"):
                    _run(recorder, op, dtype, samples, whole)
        for name, calls in recorder.calls.items():
            found.setdefault(name, calls)
    return {name: list(calls.values()) for name, calls in sorted(found.items())}


def _run(
    recorder: _CallRecorder, op: Any, dtype: torch.dtype, samples: int, whole: bool
) -> None:
    """Run samples of an entry, in each form that it has."""
    with contextlib.suppress(Exception), seeded(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = op.sample_inputs_func(op, "cpu", dtype, requires_grad=False)
        for sample in itertools.islice(made, samples):
            for form in (op.op, op.inplace_variant):
                if form is None:
                    continue
                # What a sample raises by itself shows nothing.
                with contextlib.suppress(Exception):
                    first, args, kwargs = pytree.tree_map(
                        _copy, (sample.input, tuple(sample.args), dict(sample.kwargs))
                    )
                    # In inference mode composites reach a recorder undecomposed.
                    with torch.inference_mode(whole), recorder:
                        form(first, *args, **kwargs)
            if op.supports_out and not whole:
                with contextlib.suppress(Exception):
                    result = op.op(sample.input, *sample.args, **sample.kwargs)
                    out = pytree.tree_map(torch.zeros_like, result)
                    with recorder:
                        op.op(sample.input, *sample.args, **sample.kwargs, out=out)


def _floats(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: torch.full_like(tensor, value)


def _mixed(tensor: torch.Tensor) -> torch.Tensor:
    made = torch.rand(tensor.shape).to(tensor.dtype)
    return torch.empty_like(tensor).copy_(made)


def _ramp(low: int, high: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what fills an integer tensor with numbers of that range, in turns."""

    def fill(tensor: torch.Tensor) -> torch.Tensor:
        span = torch.arange(tensor.numel()) % (high - low + 1) + low
        made = span.reshape(tensor.shape)
        return torch.empty_like(tensor).copy_(made.to(tensor.dtype))

    return fill


FLOATS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "random": _mixed,
    "zeros": _floats(0.0),
    "ones": _floats(1.0),
    "nan": _floats(float("nan")),
    "infinite": _floats(float("inf")),
    "huge": _floats(1e30),
    "negative": _floats(-2.5),
}
"""What floating-point and complex tensors hold in a world."""


def _limits(tensor: torch.Tensor) -> torch.Tensor:
    info = torch.iinfo(tensor.dtype)
    made = torch.full_like(tensor, info.min)
    made.view(-1)[1::2] = info.max
    return made


INTEGERS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "kept": lambda tensor: tensor.clone(),
    "zeros": torch.zeros_like,
    "small": _ramp(0, 2),
    "minus one": lambda tensor: torch.full_like(tensor, -1),
    "large": lambda tensor: torch.full_like(tensor, 100),
    "far": lambda tensor: (
        torch.full_like(tensor, 1 << 40)
        if tensor.dtype is torch.int64
        else torch.full_like(tensor, torch.iinfo(tensor.dtype).max)
    ),
    "least": lambda tensor: torch.full_like(tensor, torch.iinfo(tensor.dtype).min),
    "near": _ramp(-3, 9),
}
"""What integer tensors hold in a world."""

BOOLEANS: Sequence[Callable[[torch.Tensor], torch.Tensor]] = (
    torch.zeros_like,
    torch.ones_like,
    lambda tensor: torch.rand(tensor.shape) > 0.5,
)
"""What tensors of truths hold, in turns."""


def worlds(call: OpCall) -> Iterator[tuple[str, OpCall]]:
    """Yield a call in each of the worlds, with the world's name."""
    has_integers = any(
        not (t.is_floating_point() or t.is_complex() or t.dtype is torch.bool)
        for t in call.tensors()
    )
    has_floats = any(t.is_floating_point() or t.is_complex() for t in call.tensors())
    pairs = [("as recorded", "kept")]
    if has_floats:
        pairs += [(name, "kept") for name in FLOATS]
    if has_integers:
        pairs += [("as recorded", name) for name in INTEGERS]
    for turn, (floats, integers) in enumerate(dict.fromkeys(pairs)):
        known: dict[int, torch.Tensor] = {}

        def change(
            value: Any,
            floats: str = floats,
            integers: str = integers,
            turn: int = turn,
            known: dict[int, torch.Tensor] = known,
        ) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            if id(value) not in known:
                known[id(value)] = _changed(value, floats, integers, turn)
            return known[id(value)]

        with seeded():
            args, kwargs = pytree.tree_map(change, (call.args, call.kwargs))
        yield f"{floats}, {integers}", OpCall(call.op, tuple(args), kwargs)


def _changed(
    tensor: torch.Tensor, floats: str, integers: str, turn: int
) -> torch.Tensor:
    """Return a tensor of the same look with a world's values."""
    if tensor.layout is not torch.strided:
        return tensor  # no message carries it
    if tensor.is_floating_point() or tensor.is_complex():
        made = FLOATS[floats](tensor) if floats in FLOATS else tensor.clone()
    elif tensor.dtype is torch.bool:
        made = BOOLEANS[turn % 3](tensor) if turn else tensor.clone()
    else:
        made = INTEGERS[integers](tensor)
    if made.stride() != tensor.stride() or made.shape != tensor.shape:
        made = torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype
        ).copy_(made)
    return made


class _NoFormError(Exception):
    """An argument that no message carries."""


def _value(value: Any, store: Store, ids: dict[int, int], grad: bool) -> Any:
    """Return an argument as a message carries it; tensors are held under new ids."""
    if isinstance(value, torch.Tensor):
        if id(value) not in ids:
            ids[id(value)] = 1 + len(ids)
            differentiable = value.is_floating_point() or value.is_complex()
            if value.layout is not torch.strided:
                raise _NoFormError
            # Not a leaf, so that it can be changed in place.
            held = value.requires_grad_().clone() if grad and differentiable else value
            store[ids[id(value)]] = held
        return Ref(ids[id(value)])
    if isinstance(value, list | tuple):
        return [_value(item, store, ids, grad) for item in value]
    if isinstance(value, torch.device):
        return Here()
    if isinstance(value, complex):
        return Complex(value.real, value.imag)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.dtype | torch.layout | torch.memory_format) and (
        value in SYMBOL_NAMES
    ):
        return Symbol(SYMBOL_NAMES[value])
    raise _NoFormError


_OUT = 1 << 20
_GRADS = 1 << 21


def answers(call: OpCall, *, grad: bool, guarded: bool = True) -> list[object] | None:
    """Return all that a requester can learn of a call, at a worker of its own.

    Args:
        call: the call.
        grad: whether its arguments require gradients; then a backward pass follows.
        guarded: whether the worker's data is behind a guard.

    Returns:
        Errors, and of each object its look, whether it is a leaf, and which other
        objects share its memory; None for a call that no message carries.
    """
    store = Store("bob", None)
    log: list[str] = []
    executor = Executor(store, torch.device("cpu"), log=log.append if guarded else None)
    ids: dict[int, int] = {}
    try:
        args = [_value(value, store, ids, grad) for value in call.args]
        kwargs = {k: _value(v, store, ids, grad) for k, v in call.kwargs.items()}
    except _NoFormError:
        return None
    leaves = [t for t in call.tensors() if t.requires_grad]
    told: list[object] = []
    with torch.set_grad_enabled(grad), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = executor.run(
                Run(call.op, args, kwargs, out=_OUT, count=0, grad=grad, describe=True)
            )
        except Exception as error:
            return [(type(error).__name__, str(error))]
        told.append(_shown(result, store))
        roots = [
            key
            for key, t in _items(store)
            if t.requires_grad and not t.is_leaf and (key >= _OUT or key == 1)
        ][:3]
        if grad and roots:
            told += _gradients(executor, store, roots, leaves)
        told.append(_shown(None, store))
    return told


def _gradients(
    executor: Executor,
    store: Store,
    roots: Sequence[int],
    leaves: Sequence[torch.Tensor],
) -> list[object]:
    """Return what two backward passes show, the second of a graph that is freed."""
    told: list[object] = []
    for number, root in enumerate(roots):
        store[_GRADS + number] = torch.ones_like(store[root]).detach()
    seeds = tuple(_GRADS + number for number in range(len(roots)))
    for _ in range(2):
        try:
            executor.backward(Backward(tuple(roots), seeds, None, False, False))
        except Exception as error:
            told.append((type(error).__name__, str(error)))
        told.append(
            [
                None if leaf.grad is None else (tuple(leaf.grad.shape), leaf.grad.dtype)
                for leaf in leaves
            ]
        )
    return told


def _items(store: Store) -> list[tuple[int, torch.Tensor]]:
    found = []
    for key in (*range(1, 64), *range(_OUT, _OUT + 64)):
        with contextlib.suppress(ObhutError):
            found.append((key, store[key]))
    return found


def _shown(result: object, store: Store) -> object:
    """Return what can be learned of a result and of what is held."""
    items = _items(store)
    memory: dict[int, int] = {}
    held = [
        (
            key,
            tuple(t.shape),
            t.stride(),
            t.dtype,
            t.requires_grad,
            t.is_leaf,
            memory.setdefault(t.untyped_storage()._cdata, key),
        )
        for key, t in items
    ]
    value = (
        result
        if not any(isinstance(x, torch.Tensor) for x in pytree.tree_leaves(result))
        else None
    )
    return (held, value)
