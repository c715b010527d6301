"""What an operator's results look like, found without running it on values.

The overload runs on meta tensors, which have sizes and no memory. Clients use
it so that a shape needs no answer from the worker, workers to hold a result to
a limit before it is allocated.

Rules:

- Specifications are interned: the same description is the same object, so that
  caches can compare them by identity.
- A storage offset is no part of a specification: it decides no shape, and
  slices of a loop would each look new. Where an operator reads it, a ``Part`` says
  what part of which memory a tensor is.
"""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree


class Spec:
    """Sizes, strides, dtype and requires_grad of a tensor; interned.

    Attributes:
        shape: the sizes.
        stride: the strides, in elements.
        dtype: the element type.
        requires_grad: whether autograd records what is done with it.
        plain: the same without requires_grad.
        bits: what is put off until its elements are read: conjugation, negation.
    """

    __slots__ = (
        "_tracked",
        "bits",
        "dtype",
        "plain",
        "requires_grad",
        "shape",
        "stride",
    )

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool
    plain: Spec
    bits: int

    def __init__(
        self,
        shape: tuple[int, ...],
        stride: tuple[int, ...],
        dtype: torch.dtype,
        plain: Spec | None,
        bits: int = 0,
    ) -> None:
        self.shape, self.stride, self.dtype = shape, stride, dtype
        self.bits = bits
        self.requires_grad = plain is not None
        self.plain = plain or self
        self._tracked = self if plain is not None else None

    @property
    def tracked(self) -> Spec:
        """The same with requires_grad."""
        if self._tracked is None:
            self._tracked = Spec(self.shape, self.stride, self.dtype, self, self.bits)
        return self._tracked

    @property
    def nbytes(self) -> int:
        """Bytes of a dense tensor of these sizes."""
        size = self.dtype.itemsize
        for n in self.shape:
            size *= n
        return size

    @property
    def row_major(self) -> bool:
        """Whether the strides are those of a new tensor, of sizes of 1 as well."""
        return self.stride == dense(self.shape, self.dtype).stride

    @property
    def differentiable(self) -> bool:
        """Whether the dtype can require a gradient."""
        return self.dtype.is_floating_point or self.dtype.is_complex

    def meta(self) -> torch.Tensor:
        """Return a new meta tensor of this specification, a leaf."""
        made = torch.empty_strided(
            self.shape,
            self.stride,
            dtype=self.dtype,
            device="meta",
            requires_grad=self.requires_grad,
        )
        if self.bits:
            set_bits(made, self.bits)
        return made


CONJUGATED, NEGATED = 1, 2
"""A specification's bits."""


def set_bits(tensor: torch.Tensor, bits: int) -> None:
    """Let a new tensor claim that its elements are to be conjugated or negated."""
    if bits & CONJUGATED:
        torch._C._set_conj(tensor, True)
    if bits & NEGATED:
        torch._C._set_neg(tensor, True)


def extent(look: Spec, offset: int) -> int:
    """Return how many bytes of memory a tensor needs that begins there.

    Args:
        look: its specification.
        offset: where it begins, in elements.
    """
    if 0 in look.shape:
        return 0
    last = sum((n - 1) * step for n, step in zip(look.shape, look.stride, strict=True))
    return (offset + last + 1) * look.dtype.itemsize


class Part(NamedTuple):
    """Which part of which memory a tensor is.

    Attributes:
        spec: what it looks like.
        storage: a number for its memory; two tensors in the same have the same.
        nbytes: the size of that memory.
        offset: where it begins there, in elements.
    """

    spec: Spec
    storage: int
    nbytes: int
    offset: int


_interned: dict[tuple[object, ...], Spec] = {}
_INTERNED_AT_MOST = 1 << 17


def spec(
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    dtype: torch.dtype,
    requires_grad: bool = False,
    bits: int = 0,
) -> Spec:
    """Return the one specification with these properties."""
    key = (shape, stride, dtype, bits) if bits else (shape, stride, dtype)
    found = _interned.get(key)
    if found is None:
        if len(_interned) >= _INTERNED_AT_MOST:
            _interned.clear()
        found = _interned[key] = Spec(shape, stride, dtype, None, bits)
    return found.tracked if requires_grad else found


def dense(shape: tuple[int, ...], dtype: torch.dtype) -> Spec:
    """Return the specification of a row-major tensor."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return spec(shape, tuple(reversed(strides)), dtype)


def spec_of(tensor: torch.Tensor) -> Spec:
    """Return a tensor's specification."""
    return spec(
        tuple(tensor.shape),
        tuple(tensor.stride()),
        tensor.dtype,
        tensor.requires_grad,
    )


def look_of(tensor: torch.Tensor) -> Spec:
    """Return a tensor's specification, its bits too, without requires_grad."""
    return spec(
        tuple(tensor.shape),
        tuple(tensor.stride()),
        tensor.dtype,
        bits=CONJUGATED * tensor.is_conj() + NEGATED * tensor.is_neg(),
    )


def _keys(names: Iterable[str]) -> torch._C.DispatchKeySet:
    """Return the set of the dispatch keys of these names."""
    keys = (torch._C._parse_dispatch_key(name) for name in names)
    sets = (torch._C.DispatchKeySet(key) for key in keys if key is not None)
    return functools.reduce(operator.or_, sets)


# What PyTorch itself begins with in each thread. Source: LocalDispatchKeySet.h and
# autocast_dispatch_keyset in DispatchKeySet.h.
_INCLUDED = _keys(("BackendSelect", "ADInplaceOrView"))
_AUTOCAST_CPU = _keys(("AutocastCPU",))
_AUTOCAST_ELSEWHERE = _keys(
    f"Autocast{device}"
    for device in (
        *("MPS", "CUDA", "XPU", "IPU"),
        *("HPU", "XLA", "MTIA", "MAIA", "PrivateUse1"),
    )
)


# Any: a guard of PyTorch's that has no usable type.
def outside_dispatch(*, autocast: bool = False) -> Any:
    """Return a context in which operators run as if called from the outside.

    Inside ``__torch_dispatch__`` PyTorch has autograd switched off; a caller's
    autocast is switched on. Neither may decide what a worker does.

    Args:
        autocast: whether operators on the CPU are to be cast as autocast does.
    """
    excluded = _AUTOCAST_ELSEWHERE if autocast else _AUTOCAST_CPU | _AUTOCAST_ELSEWHERE
    return torch._C._ForceDispatchKeyGuard(_INCLUDED, excluded)


class Inferred:
    """What is known of an operator's results before it runs.

    Attributes:
        results: what the positions of the flattened result look like; None where
            no tensor is.
        first: what becomes of the first tensor argument; None if there is none.
        growth: bytes of memory that are there afterwards and were not before.
        count: how many results there are.
        single: what the only result looks like; None if there is none or several.
    """

    __slots__ = ("count", "first", "growth", "results", "single")

    def __init__(
        self, results: tuple[Spec | None, ...], first: Spec | None, growth: int
    ) -> None:
        self.results, self.first, self.growth = results, first, growth
        self.count = len(results)
        self.single = results[0] if self.count == 1 else None


class UnknownShapeError(Exception):
    """Meta tensors can not tell; only the worker can."""


_META = torch.device("meta")


def infer(
    func: Callable[..., Any],  # Any: what an operator returns
    args: Sequence[object],
    kwargs: Mapping[str, object],
    grad: bool,
) -> Inferred:
    """Return what an operator's results look like.

    Args:
        func: the overload.
        args: its arguments, with a ``Spec`` for each tensor but local numbers.
        kwargs: likewise.
        grad: the grad mode.

    Raises:
        UnknownShapeError: if the shape depends on values or there is no meta kernel.
        Exception: whatever the operator itself says of such arguments.
    """
    given, memory, result = run_on_meta(func, args, kwargs, grad)
    flat = [result] if isinstance(result, torch.Tensor) else pytree.tree_leaves(result)
    made = [leaf for leaf in flat if isinstance(leaf, torch.Tensor)]
    return Inferred(
        tuple(spec_of(t) if isinstance(t, torch.Tensor) else None for t in flat),
        spec_of(given[0]) if given else None,
        _bytes(t.untyped_storage() for t in (*given, *made)) - memory.nbytes,
    )


class Memory(NamedTuple):
    """The memory of tensors before something ran.

    Attributes:
        storages: of each tensor; kept, so that their addresses name no other.
        nbytes: bytes of all of them, each once.
    """

    storages: list[torch.UntypedStorage]
    nbytes: int


class Ran(NamedTuple):
    """What ran on meta tensors.

    Attributes:
        given: the meta tensors for the specifications, in order.
        memory: what they were in before.
        result: what the operator returned.
    """

    given: list[torch.Tensor]
    memory: Memory
    result: Any


def run_on_meta(
    func: Callable[..., Any],  # Any: what an operator returns
    args: Sequence[object],
    kwargs: Mapping[str, object],
    grad: bool,
) -> Ran:
    """Run an operator on meta tensors.

    Args:
        func: the overload.
        args: its arguments, with a ``Spec`` or a ``Part`` for each tensor but local
            numbers.
        kwargs: likewise.
        grad: the grad mode.

    Raises:
        UnknownShapeError: if the shape depends on values or there is no meta kernel.
        Exception: whatever the operator itself says of such arguments.
    """
    try:
        return _run_on_meta(func, args, kwargs, grad, moves=False)
    except RuntimeError:
        leaves = pytree.tree_leaves((args, kwargs), is_leaf=_is_part)
        if not any(isinstance(leaf, torch.Tensor) for leaf in leaves):
            raise
        # Some kernels take no number from the CPU beside meta tensors.
        return _run_on_meta(func, args, kwargs, grad, moves=True)


def _is_part(value: object) -> bool:
    return value.__class__ is Part


def _run_on_meta(
    func: Callable[..., Any],  # Any: as above
    args: Sequence[object],
    kwargs: Mapping[str, object],
    grad: bool,
    moves: bool,
) -> Ran:
    """Run, with the tensors among the arguments as they are or as meta tensors."""
    given: list[torch.Tensor] = []
    memory: dict[int, torch.UntypedStorage] = {}

    def meta(value: object) -> object:
        if isinstance(value, Spec):
            given.append(value.meta())
            return given[-1]
        if isinstance(value, Part):
            given.append(_in_memory(value, memory))
            return given[-1]
        if isinstance(value, list | tuple):
            return [meta(v) for v in value]
        if moves and isinstance(value, torch.Tensor):
            return value.to(_META)
        if isinstance(value, torch.device):
            return _META
        return value

    inference = torch.is_inference_mode_enabled()
    with (
        torch.inference_mode(False) if inference else contextlib.nullcontext(),
        torch._C.DisableTorchFunction(),  # `with worker:` places what is made here
        outside_dispatch(),
        torch.set_grad_enabled(grad),
    ):
        metas = [meta(a) for a in args]
        named = {name: meta(value) for name, value in kwargs.items()}
        storages = [tensor.untyped_storage() for tensor in given]
        before = Memory(storages, _bytes(storages))
        try:
            result = func(*metas, **named)
        except NotImplementedError as error:
            raise UnknownShapeError(str(error)) from error
        except RuntimeError as error:
            if type(error) is not RuntimeError:
                raise UnknownShapeError(str(error)) from error
            raise
    return Ran(given, before, result)


def _in_memory(part: Part, memory: dict[int, torch.UntypedStorage]) -> torch.Tensor:
    """Return a meta tensor that is part of memory which others may be part of too."""
    found = memory.get(part.storage)
    if found is None:
        whole = torch.empty(part.nbytes, dtype=torch.uint8, device=_META)
        found = memory[part.storage] = whole.untyped_storage()
    look = part.spec
    made = torch.empty(0, dtype=look.dtype, device=_META)
    made.set_(found, part.offset, look.shape, look.stride)
    if look.bits:
        set_bits(made, look.bits)
    return made


def _bytes(storages: Iterable[torch.UntypedStorage]) -> int:
    """Return the bytes of storages, each once."""
    return sum({one._cdata: one.nbytes() for one in storages}.values())
