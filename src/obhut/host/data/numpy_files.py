"""NumPy's files: ``.npy`` with one array, ``.npz`` with arrays by name.

Source: ``numpy.lib.format``, versions 1.0 to 3.0. An array of Python objects is a
pickle, which is a program: it is refused, as are records, texts and dates.
"""

from __future__ import annotations

import lzma
import os
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from obhut.errors import DatasetError
from obhut.host.wording import quote
from obhut.protocol import limits
from obhut.protocol.dtypes import ITEM_BYTES

from .arrays import Array
from .declaration import DatasetDeclaration
from .selection import Choice, choose
from .stored import Stored, load

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
    np.dtype(name).str[1:]: name for name in ITEM_BYTES if hasattr(np, name)
}
"""Types that NumPy has and that travel, by what it writes for them."""

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
    file = declaration.file
    choice = Choice("features", "", declaration.dtype_of("features"))
    with declaration.path.open("rb") as stream:
        stored, start = _header(stream, file, "")
        stored.check(file, os.fstat(stream.fileno()).st_size - start)
        nan = declaration.missing == "nan"
        return ((choice, load(stored, stream, file, choice.dtype, nan)),)


def read_npz(declaration: DatasetDeclaration) -> tuple[tuple[Choice, Array], ...]:
    """Read the declared arrays, or all of them.

    Raises:
        DatasetError: naming the array, and the row where it is one.
        OSError: if the file can not be read.
    """
    file = declaration.file
    nan = declaration.missing == "nan"
    with _readable(declaration.path) as archive:
        members = {_name(file, one): one for one in archive.infolist()}
        if len(members) != len(archive.infolist()):
            raise DatasetError(file, "has two arrays of one name", "save it anew")
        found = []
        for choice in choose(declaration, tuple(members)):
            member = members[choice.stored]
            with archive.open(member) as stream:
                stored, start = _header(stream, file, choice.stored)
                stored.check(file, member.file_size - start)
                array = load(stored, stream, file, choice.dtype, nan)
                stream.read(1)  # at the end the checksum is compared
            found.append((choice, array))
        return tuple(found)


@contextmanager
def _readable(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive, and translate whatever the library makes of damage."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except DatasetError:
        raise
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
        ValueError,
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


def _header(stream: IO[bytes], file: str, name: str) -> tuple[Stored, int]:
    """Read what comes before an array's bytes; return that, and its length."""

    def error(problem: str, advice: str) -> DatasetError:
        return DatasetError(file, problem, advice, column=quote(name)[1:-1])

    damaged = "the file is damaged, or no array of NumPy's: save it anew"
    start = stream.read(8)
    if len(start) != 8 or not start.startswith(_MAGIC):
        raise error("does not begin as an array of NumPy's does", damaged)
    version = (start[6], start[7])
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise error(
            f"expected format 1.0, 2.0 or 3.0, got {version[0]}.{version[1]}",
            "save it anew with numpy.save",
        )
    wide = 2 if version == (1, 0) else 4
    size = int.from_bytes(stream.read(wide), "little")
    if size > _HEADER_BYTES:
        raise error(f"expected a header of at most {_HEADER_BYTES:,} bytes", damaged)
    text = stream.read(size).decode(
        "utf-8" if version == (3, 0) else "latin1", "replace"
    )
    match = _HEADER.fullmatch(text)
    if match is None:
        raise error("has a header that can not be read", damaged)
    descr = match["descr"].strip("'")
    order, kind = (descr[0], descr[1:]) if descr[:1] in tuple("<>=|") else ("=", descr)
    dtype = _DTYPES.get(kind)
    if dtype is None:
        what = _OTHERS.get(kind[:1], f"elements of type {quote(descr)}")
        raise error(f"expected numbers, got {what}", "save an array of numbers")
    sizes = [one.strip() for one in match["shape"].split(",")]
    if sizes[-1] == "":
        sizes.pop()
    if len(sizes) > limits.DIMENSIONS or not all(
        re.fullmatch(r"[0-9]{1,19}", one) for one in sizes
    ):
        raise error("has a shape that is none", damaged)
    native = "<" if sys.byteorder == "little" else ">"
    stored = Stored(
        name,
        dtype,
        tuple(map(int, sizes)),
        swapped=order in "<>" and order != native,
        fortran=match["fortran"] == "True",
    )
    return stored, len(start) + wide + size
