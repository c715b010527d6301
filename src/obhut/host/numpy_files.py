"""NumPy's files: ``.npy`` with one array, ``.npz`` with arrays by name.

Source: ``numpy.lib.format``, versions 1.0 to 3.0. An array of Python objects is a
pickle, which is a program: it is refused, as are records, texts and dates.
"""

from __future__ import annotations

import lzma
import math
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from obhut.errors import DatasetError

from .arrays import Array
from .declaration import DatasetDeclaration
from .selection import Choice, choose
from .stored import Stored, load
from .wording import quote

_MAGIC = b"\x93NUMPY"

_HEADER_BYTES = 2**16
"""Bytes of a header; what an array of plain numbers needs is below 2 KiB."""

_HEADER = re.compile(
    r"\{\s*'descr'\s*:\s*(?P<descr>'[^'\\]*'|\[.*\])\s*,"
    r"\s*'fortran_order'\s*:\s*(?P<fortran>True|False)\s*,"
    r"\s*'shape'\s*:\s*\((?P<shape>[0-9 ,]*)\)\s*,?\s*\}\s*",
    re.DOTALL,
)

_DTYPES: Mapping[str, str] = {
    "b1": "bool",
    "u1": "uint8",
    "i1": "int8",
    "u2": "uint16",
    "i2": "int16",
    "u4": "uint32",
    "i4": "int32",
    "u8": "uint64",
    "i8": "int64",
    "f2": "float16",
    "f4": "float32",
    "f8": "float64",
    "c8": "complex64",
    "c16": "complex128",
}

_OTHERS: Mapping[str, str] = {
    "O": "Python objects, which are pickled programs",
    "S": "bytes of text",
    "U": "text",
    "M": "dates",
    "m": "durations",
    "V": "records, or a type that NumPy itself does not know",
    "[": "records",
}
"""What is refused, by the first letter of its type."""


def read_npy(declaration: DatasetDeclaration) -> tuple[tuple[Choice, Array], ...]:
    """Read the one array, as ``features``.

    Raises:
        DatasetError: naming the row at fault, where it is one.
        OSError: if the file can not be read.
    """
    file = str(declaration.path)
    choice = Choice("features", "", declaration.dtype)
    with declaration.path.open("rb") as stream:
        stored = _header(stream, file, "")
        size = declaration.path.stat().st_size - stream.tell()
        stored.check(file, size)
        nan = declaration.missing == "nan"
        return ((choice, load(stored, stream, file, choice.dtype, nan)),)


def read_npz(declaration: DatasetDeclaration) -> tuple[tuple[Choice, Array], ...]:
    """Read the declared arrays, or all of them.

    Raises:
        DatasetError: naming the array, and the row where it is one.
        OSError: if the file can not be read.
    """
    file = str(declaration.path)
    nan = declaration.missing == "nan"
    with _readable(declaration.path) as archive:
        members = {_name(file, one): one for one in archive.infolist()}
        if len(members) != len(archive.infolist()):
            raise DatasetError(file, "has two arrays of one name", "save it anew")
        found = []
        for choice in choose(declaration, tuple(members)):
            member = members[choice.stored]
            with archive.open(member) as stream:
                counted = _Counted(stream)
                stored = _header(counted, file, choice.stored)
                stored.check(file, member.file_size - counted.count)
                array = load(stored, counted, file, choice.dtype, nan)
                # Reading to the end has the checksum compared.
                if stream.read(1):
                    raise stored.error(file, "is longer than it says", "save it anew")
            found.append((choice, array))
        return tuple(found)


@contextmanager
def _readable(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive, and translate whatever the library makes of damage."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        struct.error,
        EOFError,
        LookupError,
        NotImplementedError,
        OverflowError,
        RuntimeError,
        UnicodeDecodeError,
    ) as error:
        raise DatasetError(
            str(path),
            f"is not an .npz file that can be read: {quote(str(error))}",
            "save it anew with numpy.savez",
        ) from error


def _name(file: str, member: zipfile.ZipInfo) -> str:
    if not member.filename.endswith(".npy"):
        raise DatasetError(
            file,
            f"expected arrays only, got {quote(member.filename)}",
            "save it anew with numpy.savez",
        )
    return member.filename.removesuffix(".npy")


class _Counted(BinaryIO if False else object):  # type: ignore[misc]
    pass
