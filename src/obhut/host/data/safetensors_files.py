"""Safetensors files: a header in JSON, then the bytes of all tensors.

Source: the format's specification, https://github.com/huggingface/safetensors,
section "Format". As it asks, duplicate names, holes and overlaps are refused.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import IO, Annotated

import msgspec
from msgspec import Meta, Struct

from obhut.errors import DatasetError
from obhut.host.wording import quote
from obhut.protocol import limits

from .arrays import Array
from .declaration import DatasetDeclaration
from .selection import Choice, choose
from .stored import Stored, load

_HEADER_BYTES = 100_000_000
"""The specification's own bound."""

_METADATA = "__metadata__"

_DTYPES: Mapping[str, str] = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}

_Size = Annotated[int, Meta(ge=0)]


class _TensorInfo(Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: Annotated[tuple[_Size, ...], Meta(max_length=limits.DIMENSIONS)]
    data_offsets: tuple[_Size, _Size]


def read(declaration: DatasetDeclaration) -> tuple[tuple[Choice, Array], ...]:
    """Read the declared tensors, or all of them.

    Raises:
        DatasetError: naming the tensor, and the row where it is one.
        OSError: if the file can not be read.
    """
    file = declaration.file
    found = []
    with declaration.path.open("rb") as stream:
        entries, start = _header(stream, file)
        for choice in choose(declaration, tuple(entries)):
            entry = entries[choice.stored]
            dtype = _DTYPES.get(entry.dtype)
            if dtype is None:
                raise DatasetError(
                    file,
                    f"expected a type that travels, got {quote(entry.dtype)}",
                    "save it as F32",
                    column=quote(choice.stored)[1:-1],
                )
            # The format is little-endian throughout.
            swapped = sys.byteorder == "big"
            stored = Stored(choice.stored, dtype, entry.shape, swapped)
            begin, end = entry.data_offsets
            stored.check(file, end - begin)
            stream.seek(start + begin)
            nan = declaration.missing == "nan"
            found.append((choice, load(stored, stream, file, choice.dtype, nan)))
    return tuple(found)


def _header(stream: IO[bytes], file: str) -> tuple[dict[str, _TensorInfo], int]:
    """Read the header; return its entries, and where the tensors' bytes begin."""

    def damaged(problem: str) -> DatasetError:
        return DatasetError(
            file, problem, "the file is cut off, damaged or something else: get it anew"
        )

    size = os.fstat(stream.fileno()).st_size
    length = int.from_bytes(stream.read(8), "little")
    if size < 8 or length > min(size - 8, _HEADER_BYTES):
        raise damaged("is shorter than it says, or no safetensors file")
    try:
        raw = json.loads(stream.read(length).decode(), object_pairs_hook=_unique)
        if not isinstance(raw, dict):
            raise damaged("expected a table of tensors in its header")
        raw.pop(_METADATA, None)
        entries = msgspec.convert(raw, dict[str, _TensorInfo])
    except (ValueError, RecursionError) as error:
        if isinstance(error, DatasetError):
            raise
        raise damaged("has a header that can not be read") from error
    expected = 0
    for begin, end in sorted(entry.data_offsets for entry in entries.values()):
        if begin != expected or end < begin:
            raise damaged("has holes or overlaps between tensors")
        expected = end
    if expected != size - 8 - length:
        raise damaged(
            f"expected {expected:,} bytes of tensors, got {size - 8 - length:,}"
        )
    return entries, 8 + length


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice")
    return found
