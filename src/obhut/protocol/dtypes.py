"""The element types that travel, with their sizes.

Rule: the names are PyTorch's own without the prefix ``torch.``; a name that is
not in the table does not exist for the protocol.
"""

import math
from collections.abc import Mapping, Sequence

from obhut.errors import RemoteProtocolError

from . import limits

ITEM_BYTES: Mapping[str, int] = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "uint16": 2,
    "int16": 2,
    "uint32": 4,
    "int32": 4,
    "uint64": 8,
    "int64": 8,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2fnuz": 1,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "complex32": 4,
    "complex64": 8,
    "complex128": 16,
}
"""Bytes per element, by the name of the type."""


def nbytes(dtype: str, shape: Sequence[int]) -> int:
    """Return the bytes of a dense tensor, exactly.

    Raises:
        RemoteProtocolError: if the dtype does not travel or the shape is none.
    """
    size = ITEM_BYTES.get(dtype)
    if size is None:
        raise RemoteProtocolError(f"expected a dtype that travels, got {dtype[:80]!r}")
    if len(shape) > limits.DIMENSIONS or any(n < 0 for n in shape):
        raise RemoteProtocolError(
            f"expected at most {limits.DIMENSIONS} sizes, none negative"
        )
    # Also an empty tensor must have strides that fit.
    if size * math.prod(n for n in shape if n) >= 2**63:
        raise RemoteProtocolError("a tensor has less than 2**63 bytes")
    return size * math.prod(shape)
