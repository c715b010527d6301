"""Tensors without values, for the execution that answers: low.

::

    weight = shape_only(spec((2, 3), (3, 1), torch.float32, requires_grad=True))
    data = like(tensor)              # (rows, 3), and nothing of its values is kept
    data.shape, data.untyped_storage().nbytes()

What operators do to them is told by ``shape_only_calls``.

Rules:

- Such a tensor has sizes, strides, a dtype, and a storage of a size: no memory. Views
  share their base's storage.
- It lies below PyTorch's own autograd, to which leaves, graphs, versions and views
  belong as ever.
- What it looks like is read from its ``look``, never from PyTorch, which takes longer:
  whoever changes one changes the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import torch

from .shapes import Spec, extent, look_of, set_bits

# Any below: operators take and return whatever their schema says.

Func: TypeAlias = "torch._ops.OpOverload[..., Any]"
Answer: TypeAlias = Callable[[Func, Sequence[Any], Mapping[str, Any] | None], Any]


# Any: what ``provenance`` keeps, which is none of this module's business.
Made: TypeAlias = Any


class Memory:
    """The storage of tensors without values, and what became of it.

    It compares by identity.

    Attributes:
        written: the last write, for ``provenance``; None if there was none.
        rows: whether it is a data set's.
        unseen: whether it may be written without autograd's notice.
        used: when autograd last recorded what is done with it, by its own count.
        gradient: whether a backward pass has made it.
        foreign: whether what no backward pass has made may be the same memory.
        joined: what stands for it since others may be the same memory.
    """

    # Most memory is never asked for anything: so it costs nothing to make.
    written: Made = None
    rows: bool = False
    unseen: bool = False
    used: int = -1
    gradient: bool = False
    foreign: bool = False
    joined: Memory | None = None


class ShapeOnly(torch.Tensor):
    """A tensor that looks like one and has no memory.

    Make it with ``shape_only`` or ``like``.

    Attributes:
        look: its specification, without requires_grad.
        memory: stands for its storage; what shares it has the same.
        made: how it was made, for ``provenance``; None if nobody keeps that.
        answer: returns what an operator returns, of all such tensors.
    """

    __slots__ = ("look", "made", "memory")

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment] # as torch does

    look: Spec
    memory: Memory
    made: Made
    answer: ClassVar[Answer]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override] # torch's own says less
        cls,
        func: Func,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return cls.answer(func, args, kwargs)

    @property
    def data(self) -> torch.Tensor:
        """The same memory, of which autograd knows nothing."""
        return _DATA.__get__(self)  # type: ignore[no-any-return]

    @data.setter
    def data(self, other: torch.Tensor) -> None:
        lent = other if isinstance(other, ShapeOnly) else new(look_of(other))
        _DATA.__set__(self, lent)
        self.look, self.memory = lent.look, lent.memory

    def __repr__(self) -> str:  # type: ignore[override] # torch's own takes contents
        return f"ShapeOnly({tuple(self.shape)}, {self.dtype})"


# Any: a slot, which its stub calls a tensor.
_DATA: Any = torch._C.TensorBase.data
_CPU = torch.device("cpu")


def shape_only(look: Spec) -> torch.Tensor:
    """Return a new tensor without values, a leaf.

    Args:
        look: its specification, with requires_grad.
    """
    made = new(look.plain)
    return made.requires_grad_() if look.requires_grad else made


def like(tensor: torch.Tensor) -> torch.Tensor:
    """Return a new leaf that looks like a tensor, and keeps nothing of it."""
    return shape_only(look_of(tensor)).requires_grad_(tensor.requires_grad)


def new(look: Spec, offset: int = 0, nbytes: int | None = None) -> ShapeOnly:
    """Return a new tensor in a storage of its own."""
    made: ShapeOnly = _wrapper(
        ShapeOnly,
        look.shape,
        look.stride,
        offset,
        None,
        look.dtype,
        torch.strided,
        _CPU,
        False,
        False,
        None,
        False,
        False,
        None,
        nbytes,
    )
    made.look = look
    made.memory = Memory()
    made.made = None
    if look.bits:
        set_bits(made, look.bits)
    return made


_wrapper = torch.Tensor._make_wrapper_subclass
_share = torch._functionalize_unsafe_set


def view(look: Spec, offset: int, source: ShapeOnly) -> ShapeOnly:
    """Return a new tensor in the storage of another."""
    made = new(look, offset)
    join(made, source)
    return made


def join(tensor: ShapeOnly, other: ShapeOnly) -> None:
    """Let a tensor have another one's storage, and keep sizes and strides."""
    tensor.memory = other.memory
    try:
        _share(tensor, other)
    except RuntimeError:
        # A storage that has grown is on the device of meta tensors, for which only
        # this asks.
        look, offset = tensor.look, int(tensor.storage_offset())
        if look.dtype is not other.dtype:
            raise
        with torch._C._DisableTorchDispatch():
            _DATA.__set__(tensor, other)
            torch.ops.aten.as_strided_(tensor, look.shape, look.stride, offset)


def reform(tensor: ShapeOnly, look: Spec, offset: int) -> None:
    """Give a tensor other sizes and strides; its storage grows if it has to.

    Args:
        tensor: the tensor.
        look: what it is to look like, of the same dtype.
        offset: where it begins in its storage, in elements.
    """
    before = torch._C._meta_in_tls_dispatch_include()
    with torch._C._DisableTorchDispatch():
        torch._C._set_meta_in_tls_dispatch_include(True)
        try:
            needed = extent(look, offset)
            if needed > tensor.untyped_storage().nbytes():
                torch.ops.aten.resize_(tensor, (-(-needed // look.dtype.itemsize),))
            torch.ops.aten.as_strided_(tensor, look.shape, look.stride, offset)
        finally:
            torch._C._set_meta_in_tls_dispatch_include(before)
    tensor.look = look
