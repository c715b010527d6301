"""Safetensors files: a header in JSON, then the bytes of all tensors.

Source: the format's specification, https://github.com/huggingface/safetensors,
section "Format". As it asks, duplicate names, holes and overlaps are refused.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated

import msgspec
from msgspec import Meta, Struct

from obhut.errors import DatasetError
from obhut.host.wording import quote
from obhut.protocol import limits

from .archive import Archive
from .declaration import INDEX
from .stored import Readable, Stored

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


class _Index(Struct, frozen=True):
    weight_map: dict[str, str]


class _TensorInfo(Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: Annotated[tuple[_Size, ...], Meta(max_length=limits.DIMENSIONS)]
    data_offsets: tuple[_Size, _Size]


@contextmanager
def open(path: Path) -> Iterator[Archive]:
    """Open a file of tensors by name.

    Raises:
        DatasetError: as ``Archive``.
        OSError: likewise.
    """
    with path.open("rb", buffering=0) as stream:
        yield _Tensors(stream, str(path))


class _Tensors:
    """A safetensors file."""

    def __init__(self, stream: io.FileIO, file: str) -> None:
        self._stream = stream
        self._file = file
        self._entries, self._start = _header(stream, file)
        self.names = tuple(self._entries)

    @contextmanager
    def opened(self, name: str) -> Iterator[tuple[Stored, Readable]]:
        entry = self._entries[name]
        dtype = _DTYPES.get(entry.dtype)
        if dtype is None:
            raise DatasetError(
                self._file,
                f"expected a type that travels, got {quote(entry.dtype)}",
                "save it as F32",
                column=quote(name)[1:-1],
            )
        # The format is little-endian throughout.
        stored = Stored(name, dtype, entry.shape, swapped=sys.byteorder == "big")
        begin, end = entry.data_offsets
        stored.check(self._file, end - begin)
        self._stream.seek(self._start + begin)
        yield stored, self._stream


def is_index(path: Path) -> bool:
    """Tell whether a file says which tensors are in which others."""
    return path.name.lower().endswith(INDEX)


def read_index(path: Path) -> Mapping[str, Path]:
    """Return in which file each tensor is.

    Raises:
        DatasetError: if it is no index, or names files in other folders.
        OSError: if it can not be read.
    """
    with path.open("rb") as stream:
        raw = stream.read(_HEADER_BYTES + 1)
    try:
        if len(raw) > _HEADER_BYTES:
            raise ValueError("it is too long")
        index = msgspec.json.decode(raw, type=_Index)
        for name in index.weight_map.values():
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise ValueError("it names other files")
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            str(path),
            "is no index of safetensors files in its own folder",
            "get it anew, together with the files",
        ) from error
    found = {name: path.parent / file for name, file in index.weight_map.items()}
    for one in found.values():
        if not one.exists():
            raise DatasetError(
                str(one),
                f"there is no such file, and {path.name} names it",
                "get index and files anew",
            )
    return found


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
