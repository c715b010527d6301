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

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

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


_INCLUDED = torch._C._dispatch_tls_local_include_set()
_EXCLUDED = torch._C._dispatch_tls_local_exclude_set()


# Any: a guard of PyTorch's that has no usable type.
def outside_dispatch() -> Any:
    """Return a context in which operators run as if called from the outside.

    Inside ``__torch_dispatch__`` PyTorch has autograd switched off; a caller's
    autocast is switched on. Neither may decide what a worker does.
    """
    return torch._C._ForceDispatchKeyGuard(_INCLUDED, _EXCLUDED)


Inferred: TypeAlias = tuple[Spec | None, ...]
"""What the positions of a flattened result look like; None where no tensor is."""


class UnknownShapeError(Exception):
    """Meta tensors can not tell; only the worker can."""


_META = torch.device("meta")


def infer(
    func: Callable[..., Any],  # Any: what an operator returns
    args: Sequence[object],
    kwargs: Mapping[str, object],
    grad: bool,
    reshapes: bool = False,
) -> tuple[Inferred, Spec | None]:
    """Return what an operator's results look like.

    Args:
        func: the overload.
        args: its arguments, with a ``Spec`` for each tensor.
        kwargs: likewise.
        grad: the grad mode.
        reshapes: also tell what becomes of the first argument.

    Returns:
        The flattened results, and the first argument's new specification.

    Raises:
        UnknownShapeError: if the shape depends on values or there is no meta kernel.
        Exception: whatever the operator itself says of such arguments.
    """
    made: list[torch.Tensor] = []

    def meta(value: object) -> object:
        if isinstance(value, Spec):
            made.append(value.meta())
            return made[-1]
        if isinstance(value, list | tuple):
            return [meta(v) for v in value]
        if isinstance(value, torch.device):
            return _META
        return value

    with outside_dispatch(), torch.set_grad_enabled(grad):
        metas = [meta(a) for a in args]
        try:
            result = func(*metas, **{k: meta(v) for k, v in kwargs.items()})
        except NotImplementedError as error:
            raise UnknownShapeError(str(error)) from error
        except RuntimeError as error:
            if type(error) is not RuntimeError:
                raise UnknownShapeError(str(error)) from error
            raise
    flat = [result] if isinstance(result, torch.Tensor) else pytree.tree_leaves(result)
    return (
        tuple(spec_of(t) if isinstance(t, torch.Tensor) else None for t in flat),
        spec_of(made[0]) if reshapes and made else None,
    )
