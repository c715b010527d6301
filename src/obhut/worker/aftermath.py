"""What an operator leaves behind: what results look like, and whose memory they are.

::

    overload = Overload(torch.ops.aten.t.default)
    look = spec_of(tensor)
    known = learn(overload, [look], {}, [(0, look)])
    known.result      # Made(look, offset=0, source=0, same=False): a view of the first

Rules:

- It is learnt on meta tensors, which have no values, so it depends on none.
- A result is one of the arguments, or lies in the memory of one, or of an earlier
  result, or in memory of its own: as it was among the meta tensors.
- What meta tensors can not tell is refused by the operator's name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from obhut.errors import OpNotAdmittedError

from .overloads import NEEDS_VALUES, Overload
from .shape_only import new
from .shapes import (
    Part,
    Ran,
    Spec,
    UnknownShapeError,
    dense,
    extent,
    look_of,
    run_on_meta,
)

# Any below: operators take and return whatever their schema says.

FILLED = frozenset(
    f"aten.{name}"
    for name in (
        *("arange.out", "arange.start_out", "range.out", "range.out_"),
        *("linspace.out", "linspace.Tensor_Tensor_out"),
        *("linspace.Tensor_Scalar_out", "linspace.Scalar_Tensor_out"),
        *("logspace.out", "logspace.Tensor_Tensor_out"),
        *("logspace.Tensor_Scalar_out", "logspace.Scalar_Tensor_out"),
    )
)
"""Overloads that resize ``out`` only where it has another number of elements."""

LIKE: Mapping[str, int] = {
    "aten.fractional_max_pool3d_backward.default": 1,
    "aten.multi_margin_loss_backward.default": 1,
    "aten.multilabel_margin_loss_backward.default": 1,
}
"""Derivatives without a meta kernel: row-major results, sized as this argument."""


def _statistics(args: Sequence[object], result: Any) -> Any:
    """Return a normalisation's results, with the statistics that the kernel saves.

    They have the data's dtype, unless a parameter has another; none are saved but in
    training. Source: batch_norm_cpu in Normalization.cpp.
    """
    data, *params = (one for one in args[:5] if isinstance(one, Spec))
    others = [one.dtype for one in params if one.dtype is not data.dtype]
    dtype = others[0] if others else data.dtype
    saved = (one.look.shape if args[5] else (0,) for one in result[1:])
    return (result[0], *(Made(dense(shape, dtype)) for shape in saved))


def _convolved(args: Sequence[object], result: Any) -> Any:
    """Return a convolution's result, laid out as the kernel does that the CPU takes.

    That is channels last where an argument is. Source: Convolution.cpp.
    """
    data, weight = (new(one) for one in args[:2] if isinstance(one, Spec))
    kernel = torch._C._select_conv_backend(data, weight, None, *args[3:9], None)
    order = torch._C._conv_determine_backend_memory_format(data, weight, kernel)
    if order is torch.contiguous_format:
        return result
    shape, dtype = result.look.shape, result.look.dtype
    made = torch.empty(shape, dtype=dtype, device="meta", memory_format=order)
    return Made(look_of(made))


CORRECTED: Mapping[str, Callable[[Sequence[object], Any], Any]] = {
    "aten.convolution.default": _convolved,
    "aten.native_batch_norm.default": _statistics,
    "aten._native_batch_norm_legit.default": _statistics,
}
"""Overloads whose meta kernel is wrong about looks, and what is right."""


class Made(NamedTuple):
    """One result.

    Attributes:
        look: what it looks like.
        offset: where it begins in its memory, in elements: from where the tensor
            begins whose memory it is, unless the overload reads offsets.
        source: which of the tensors given it is or shares its memory with; -1 for
            memory of its own.
        same: whether it is that tensor itself.
        sibling: which earlier result it shares its memory with; -1 for none.
        nbytes: bytes of its own memory, where that is more than it needs; else None.
    """

    look: Spec
    offset: int = 0
    source: int = -1
    same: bool = False
    sibling: int = -1
    nbytes: int | None = None


KEPT, NEW = -1, -2
"""In place of a tensor's position: the memory that it had; one of its own."""


class Changed(NamedTuple):
    """What becomes of a tensor given.

    Attributes:
        position: which one it is.
        look: what it looks like afterwards.
        offset: where it begins in its memory, as of ``Made``.
        source: which tensor's memory it has now; else ``KEPT`` or ``NEW``.
    """

    position: int
    look: Spec
    offset: int
    source: int


class Aftermath(NamedTuple):
    """What an operator leaves behind.

    Attributes:
        result: what it returns, with a ``Made`` for each tensor.
        single: the same, if that is a new tensor in memory of its own; else None.
        changes: the arguments that have other sizes, strides or memory afterwards.
    """

    result: Any
    single: Spec | None
    changes: tuple[Changed, ...]


def learn(
    overload: Overload,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    given: Sequence[tuple[int, Spec | Part]],
) -> Aftermath:
    """Return what an operator leaves behind.

    Args:
        overload: the operator.
        args: its arguments, with a ``Spec`` or a ``Part`` for each tensor.
        kwargs: likewise.
        given: the ``Spec`` and ``Part`` among them, in order, each with the position
            by which the caller knows it.

    Raises:
        OpNotAdmittedError: if it can't be known.
        Exception: whatever the operator says of such arguments.
    """
    if overload.name in LIKE:
        model = args[LIKE[overload.name]]
        if isinstance(model, Spec):
            look = dense(model.shape, model.dtype)
            return Aftermath(Made(look), look, ())
    try:
        ran = run_on_meta(overload.call, args, kwargs, grad=False)
        known = _told(overload, ran, given)
    except UnknownShapeError as error:
        if _NO_KERNEL in str(error):
            raise NotImplementedError(str(error)) from None
        if overload.silent and overload.writes:
            return Aftermath(None, None, ())
        raise OpNotAdmittedError(overload.name, NEEDS_VALUES) from None
    except RuntimeError as error:
        # Words about meta tensors, which nobody has, say that no kernel answers.
        if _META_WORDS.search(str(error)) is None:
            raise
        raise OpNotAdmittedError(overload.name, NEEDS_VALUES) from None
    correct = CORRECTED.get(overload.name)
    if correct is not None:
        return aftermath(correct(args, known.result), known.changes)
    return known


_NO_KERNEL = "not implemented for '"
"""What PyTorch says of a dtype."""

_META_WORDS = re.compile(r"\bmeta\b|Meta tensor", re.ASCII)


def _told(
    overload: Overload, ran: Ran, given: Sequence[tuple[int, Spec | Part]]
) -> Aftermath:
    """Return what has become of meta tensors."""
    found = _Findings(overload, ran, given)
    result = found.template(ran.result)
    return aftermath(result, found.changes() if overload.writes else ())


def aftermath(result: Any, changes: tuple[Changed, ...]) -> Aftermath:
    """Return what an operator leaves behind, and whether that is simple."""
    single = None
    if result.__class__ is Made and not changes and result == Made(result.look):
        single = result.look
    return Aftermath(result, single, changes)


class _Findings:
    """Looks at what ran, one tensor after the other."""

    def __init__(
        self, overload: Overload, ran: Ran, given: Sequence[tuple[int, Spec | Part]]
    ) -> None:
        self._overload = overload
        self._given = ran.given
        self._before = [look for _, look in given]
        self._positions = [position for position, _ in given]
        self._storages = [storage._cdata for storage in ran.memory.storages]
        self._made: list[int] = []

    def template(self, value: Any) -> Any:
        """Return a nested result with a description for each tensor."""
        if isinstance(value, torch.Tensor):
            return self._described(value)
        if isinstance(value, list):
            return [self.template(item) for item in value]
        if isinstance(value, tuple):
            return tuple(self.template(item) for item in value)
        return value

    def _described(self, tensor: torch.Tensor) -> Made:
        if tensor.layout is not torch.strided:
            raise UnknownShapeError(self._overload.name)
        number = len(self._made)
        self._made.append(-1)
        look = look_of(tensor)
        for at, one in enumerate(self._given):
            if one is tensor:
                return Made(look, 0, self._positions[at], same=True)
        if self._overload.in_place:
            # Some kernels return another tensor, as wide as the result would be.
            target = _look(self._before[0])
            if look.shape != target.shape:
                raise _unfit(target, look)
            return Made(target, 0, self._positions[0], same=True)
        storage, offset = tensor.untyped_storage(), int(tensor.storage_offset())
        if storage._cdata in self._storages:
            at = self._storages.index(storage._cdata)
            return Made(look, offset, self._positions[at])
        if storage._cdata in self._made:
            return Made(look, offset, sibling=self._made.index(storage._cdata))
        self._made[number] = storage._cdata
        size = storage.nbytes()
        own = None if size == extent(look, offset) else size
        return Made(look, offset, nbytes=own)

    def changes(self) -> tuple[Changed, ...]:
        """Return what has become of the tensors given, where they are changed.

        Raises:
            RuntimeError: if one would have to change that may not, in PyTorch's words.
        """
        found: list[Changed] = []
        filled = self._overload.name in FILLED
        for at, (tensor, old) in enumerate(zip(self._given, self._before, strict=True)):
            began = old.offset if isinstance(old, Part) else 0
            look, offset = look_of(tensor), int(tensor.storage_offset())
            storage = tensor.untyped_storage()._cdata
            moved = storage != self._storages[at]
            if look is _look(old) and offset == began and not moved:
                continue
            if filled and math.prod(look.shape) == math.prod(_look(old).shape):
                continue
            if not (self._overload.reshapes or self._overload.out):
                raise _unfit(_look(old), look)
            source = KEPT
            if moved:
                known = storage in self._storages
                source = (
                    self._positions[self._storages.index(storage)] if known else NEW
                )
            found.append(Changed(self._positions[at], look, offset, source))
        return tuple(found)


def _look(given: Spec | Part) -> Spec:
    return given.spec if isinstance(given, Part) else given


def _unfit(target: Spec, result: Spec) -> RuntimeError:
    """Return what PyTorch says of a result that does not fit where it is written."""
    return RuntimeError(
        f"output with shape {list(target.shape)} doesn't match the broadcast shape "
        f"{list(result.shape)}"
    )
