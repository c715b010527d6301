"""Tensors to bytes and back, and torch constants by name.

Rules:

- Only dense tensors travel, row-major; a view ships its own elements and not
  its base's.
- Reading bytes copies them: no tensor keeps a frame alive or shares its memory.
- Constants are decoded by table only.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import torch

from obhut.errors import NotSendableError, RemoteProtocolError
from obhut.protocol.codec import Frame
from obhut.protocol.dtypes import ITEM_BYTES
from obhut.protocol.messages import Inline, TensorSpec

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
    tensor = torch.empty(shape, dtype=kind, device="cpu")
    if tensor.numel():
        _bytes_of(tensor)[:] = frame
        if kind is torch.bool:
            # Kernels may take it for granted that a bool is 0 or 1.
            tensor.view(torch.uint8).clamp_(max=1)
    return tensor


def _bytes_of(flat: torch.Tensor) -> memoryview:
    """Return the memory of a dense tensor on the CPU, which it keeps alive."""
    memory = (ctypes.c_ubyte * flat.nbytes).from_address(flat.data_ptr())
    memory.tensor = flat  # type: ignore[attr-defined] # to keep it alive
    return memoryview(memory).cast("B")


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
