"""What an operator's results look like, found without running it on values.

The overload runs on meta tensors, which have sizes and no memory. Clients use
it so that a shape needs no answer from the worker, workers to hold a result to
a limit before it is allocated.

Rules:

- Specifications are interned: the same description is the same object, so that
  caches can compare them by identity.
- A storage offset is no part of a specification: it decides no shape, and
  slices of a loop would each look new.
"""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

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
    """

    __slots__ = ("_tracked", "dtype", "plain", "requires_grad", "shape", "stride")

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool
    plain: Spec

    def __init__(
        self,
        shape: tuple[int, ...],
        stride: tuple[int, ...],
        dtype: torch.dtype,
        plain: Spec | None,
    ) -> None:
        self.shape, self.stride, self.dtype = shape, stride, dtype
        self.requires_grad = plain is not None
        self.plain = plain or self
        self._tracked = self if plain is not None else None

    @property
    def tracked(self) -> Spec:
        """The same with requires_grad."""
        if self._tracked is None:
            self._tracked = Spec(self.shape, self.stride, self.dtype, self)
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
        return torch.empty_strided(
            self.shape,
            self.stride,
            dtype=self.dtype,
            device="meta",
            requires_grad=self.requires_grad,
        )


_interned: dict[tuple[tuple[int, ...], tuple[int, ...], torch.dtype], Spec] = {}
_INTERNED_AT_MOST = 1 << 17


def spec(
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    dtype: torch.dtype,
    requires_grad: bool = False,
) -> Spec:
    """Return the one specification with these properties."""
    key = (shape, stride, dtype)
    found = _interned.get(key)
    if found is None:
        if len(_interned) >= _INTERNED_AT_MOST:
            _interned.clear()
        found = _interned[key] = Spec(shape, stride, dtype, None)
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
    try:
        return _infer(func, args, kwargs, grad, moves=False)
    except RuntimeError:
        leaves = pytree.tree_leaves((args, kwargs))
        if not any(isinstance(leaf, torch.Tensor) for leaf in leaves):
            raise
        # Some kernels take no number from the CPU beside meta tensors.
        return _infer(func, args, kwargs, grad, moves=True)


def _infer(
    func: Callable[..., Any],  # Any: as above
    args: Sequence[object],
    kwargs: Mapping[str, object],
    grad: bool,
    moves: bool,
) -> Inferred:
    """Infer, with the tensors among the arguments as they are or as meta tensors."""
    given: list[torch.Tensor] = []

    def meta(value: object) -> object:
        if isinstance(value, Spec):
            given.append(value.meta())
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
        before = sum(_storages(given).values())
        try:
            result = func(*metas, **named)
        except NotImplementedError as error:
            raise UnknownShapeError(str(error)) from error
        except RuntimeError as error:
            if type(error) is not RuntimeError:
                raise UnknownShapeError(str(error)) from error
            raise
    flat = [result] if isinstance(result, torch.Tensor) else pytree.tree_leaves(result)
    made = [leaf for leaf in flat if isinstance(leaf, torch.Tensor)]
    return Inferred(
        tuple(spec_of(t) if isinstance(t, torch.Tensor) else None for t in flat),
        spec_of(given[0]) if given else None,
        sum(_storages([*given, *made]).values()) - before,
    )


def _storages(tensors: Sequence[torch.Tensor]) -> dict[int, int]:
    """Return the bytes of each storage behind the tensors, each once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage._cdata: storage.nbytes() for storage in storages}
