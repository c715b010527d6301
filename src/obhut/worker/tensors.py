"""Tensors to bytes and back, and torch constants by name.

Rules:

- Only dense tensors travel, row-major; a view ships its own elements and not
  its base's.
- Reading bytes copies them: no tensor keeps a frame alive or shares its memory. But a
  frame whose memory is a tensor's own already, and nobody else's, becomes that tensor,
  the first time it is read.
- Constants are decoded by table only.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from typing import Any

import torch

from obhut.errors import NotSendableError, RemoteProtocolError
from obhut.protocol.codec import Frame
from obhut.protocol.dtypes import ITEM_BYTES
from obhut.protocol.messages import Inline, TensorSpec

from .pages import in_large_pages

DTYPES: Mapping[str, torch.dtype] = {
    name: getattr(torch, name) for name in ITEM_BYTES if hasattr(torch, name)
}
"""The element types that travel, by name."""

DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}
"""Their names."""

SYMBOLS: Mapping[str, object] = {
    **DTYPES,
    **{
        name: getattr(torch, name)
        for name in (
            "strided",
            "contiguous_format",
            "preserve_format",
            "channels_last",
            "channels_last_3d",
        )
    },
}
"""The constants that may stand among an operator's arguments, by name."""

SYMBOL_NAMES: Mapping[object, str] = {value: name for name, value in SYMBOLS.items()}
"""Their names."""


def to_frame(tensor: torch.Tensor) -> memoryview:
    """Return a tensor's elements as bytes, row-major.

    Duty: the bytes may alias the tensor's memory. Use them before it changes.

    Args:
        tensor: (any shape) of a dtype that travels, dense, on any device.

    Raises:
        NotSendableError: if the layout or the dtype does not travel.
    """
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise NotSendableError(
            f"a tensor of layout {tensor.layout}", "send tensor.to_dense() instead"
        )
    if tensor.dtype not in DTYPE_NAMES:
        raise NotSendableError(
            f"a tensor of {tensor.dtype}", "convert it to another dtype first"
        )
    plain = tensor.detach().resolve_conj().resolve_neg().cpu()
    if torch._is_zerotensor(plain):
        plain = plain.clone()  # autograd's zeros, which have no memory
    plain = plain.contiguous()
    if plain.numel() == 0:
        return memoryview(b"")
    # Not reshape: the stride of a size of 1 may be anything.
    return _bytes_of(plain.as_strided((plain.numel(),), (1,)))


def from_frame(frame: Frame, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a new tensor with the elements of a frame.

    Duty: call it where no mode makes factory functions create elsewhere.

    Args:
        frame: the bytes, row-major, as many as dtype and shape ask for.
        dtype: the element type's name.
        shape: the tensor's sizes.

    Returns:
        (shape) of dtype, with memory of its own.

    Raises:
        RemoteProtocolError: if this version of torch lacks the dtype.
    """
    kind = DTYPES.get(dtype)
    if kind is None:
        raise RemoteProtocolError(f"this torch has no dtype {dtype!r}")
    given = _given(frame)
    if given is not None:
        tensor = given.view(kind).reshape(shape)
    else:
        tensor = torch.empty(shape, dtype=kind, device="cpu")
        if tensor.numel():
            in_large_pages(tensor.data_ptr(), tensor.nbytes)
            _bytes_of(tensor)[:] = frame
    if kind is torch.bool and tensor.numel():
        # Kernels may take it for granted that a bool is 0 or 1.
        tensor.view(torch.uint8).clamp_(max=1)
    return tensor


def empty_frame(size: int) -> memoryview:
    """Return memory to be filled, of which ``from_frame`` can make a tensor.

    Memory is taken as it is filled.

    Args:
        size: bytes, one at least.

    Raises:
        MemoryError: if there is not so much.
    """
    try:
        flat = torch.empty(size, dtype=torch.uint8, device="cpu")
    except RuntimeError as error:
        raise MemoryError(f"no {size:,} bytes for a tensor") from error
    in_large_pages(flat.data_ptr(), size)
    return frame_of(flat)


def frame_of(flat: torch.Tensor) -> memoryview:
    """Return a frame whose memory ``from_frame`` may make a tensor's, without a copy.

    Args:
        flat: (bytes) uint8, all of its storage, which nobody else has.
    """
    frame = _bytes_of(flat)
    _owner_of(frame).given = True
    return frame


def _given(frame: Frame) -> torch.Tensor | None:
    """Return the flat tensor that a frame may become, once."""
    if not isinstance(frame, memoryview) or not isinstance(frame.obj, ctypes.Array):
        return None
    owner = _owner_of(frame)
    # A frame of an address that no allocator gives would decide a kernel's last digit.
    whole = len(owner) == len(frame) and not ctypes.addressof(owner) % _ALIGNMENT
    if not whole or not getattr(owner, "given", False):
        return None
    owner.given = False
    tensor: torch.Tensor = owner.tensor
    return tensor


def _owner_of(frame: memoryview) -> Any:
    # Any: an array of a type made for its length, with attributes of ours.
    return frame.obj


_ALIGNMENT = 64
"""Bytes, of memory that PyTorch allocates."""


def _bytes_of(flat: torch.Tensor) -> memoryview:
    """Return the memory of a dense tensor on the CPU, which it keeps alive."""
    memory = _array(flat.nbytes).from_address(flat.data_ptr())
    memory.tensor = flat  # type: ignore[attr-defined] # to keep it alive
    return memoryview(memory).cast("B")


@functools.lru_cache(256)
def _array(size: int) -> type[ctypes.Array[ctypes.c_ubyte]]:
    """Return a type of so many bytes, which takes longer to make than to use."""
    return ctypes.c_ubyte * size


def to_inline(tensor: torch.Tensor) -> Inline:
    """Return a small tensor as an argument that travels inside the header."""
    return Inline(
        DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), bytes(to_frame(tensor))
    )


def spec_of(tensor: torch.Tensor) -> TensorSpec:
    """Return what a tensor looks like, without its values.

    Raises:
        NotSendableError: if the layout or the dtype has no name in the protocol.
    """
    if tensor.layout is not torch.strided or tensor.dtype not in DTYPE_NAMES:
        raise NotSendableError(
            f"a result of layout {tensor.layout} and {tensor.dtype}",
            "use a dense layout and a dtype that travels",
        )
    return TensorSpec(
        DTYPE_NAMES[tensor.dtype],
        tuple(tensor.shape),
        tuple(tensor.stride()),
        int(tensor.storage_offset()),
        tensor.requires_grad,
    )
