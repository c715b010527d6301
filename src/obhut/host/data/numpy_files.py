"""NumPy's files: ``.npy`` with one array, ``.npz`` with arrays by name.

Source: ``numpy.lib.format``, versions 1.0 to 3.0. An array of Python objects is a
pickle, which is a program: it is refused, as are records, texts and dates.
"""

from __future__ import annotations

import io
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
from typing import IO, TYPE_CHECKING

import numpy as np

from obhut.errors import DatasetError
from obhut.host.wording import quote
from obhut.protocol import limits
from obhut.protocol.dtypes import ITEM_BYTES

from .archive import Archive
from .stored import Readable, Stored

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer as Buffer

_MAGIC = b"\x93NUMPY"

_LOCAL = 30
"""Bytes of what stands before a member and its name."""

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


@contextmanager
def open_npy(path: Path) -> Iterator[Archive]:
    """Open a file of one array, as ``features``.

    Raises:
        DatasetError: as ``Archive``.
        OSError: likewise.
    """
    with path.open("rb", buffering=0) as stream:
        yield _One(stream, str(path))


class _One:
    """An .npy file."""

    names = ("features",)

    def __init__(self, stream: io.FileIO, file: str) -> None:
        self._stream = stream
        self._file = file

    @contextmanager
    def opened(self, name: str) -> Iterator[tuple[Stored, Readable]]:
        stored, start = _header(self._stream, self._file, "")
        size = os.fstat(self._stream.fileno()).st_size
        stored.check(self._file, size - start)
        yield stored, self._stream


@contextmanager
def open_npz(path: Path) -> Iterator[Archive]:
    """Open a file of arrays by name.

    Raises:
        DatasetError: as ``Archive``.
        OSError: likewise.
    """
    with _readable(path) as archive, path.open("rb", buffering=0) as raw:
        yield _Many(archive, raw, str(path))


class _Many:
    """An .npz file."""

    def __init__(self, archive: zipfile.ZipFile, raw: io.FileIO, file: str) -> None:
        self._archive = archive
        self._raw = raw
        self._file = file
        self._members = {_name(file, one): one for one in archive.infolist()}
        if len(self._members) != len(archive.infolist()):
            raise DatasetError(file, "has two arrays of one name", "save it anew")
        self.names = tuple(self._members)

    @contextmanager
    def opened(self, name: str) -> Iterator[tuple[Stored, Readable]]:
        member = self._members[name]
        with self._archive.open(member) as packed:
            stream: io.RawIOBase | IO[bytes] = packed
            if member.compress_type == zipfile.ZIP_STORED:
                stream = _Plain(self._raw, member)
            stored, start = _header(stream, self._file, name)
            stored.check(self._file, member.file_size - start)
            # In this order of axes it is not read from the beginning to the end.
            data = io.BytesIO(stream.read() or b"") if stored.fortran else stream
            yield stored, data
            stream.read(1)  # at the end the checksum is compared


class _Plain(io.RawIOBase):
    """A member of an archive that is not packed: its bytes as they come.

    ``zipfile`` would copy them twice.
    """

    def __init__(self, raw: io.FileIO, member: zipfile.ZipInfo) -> None:
        self._raw = raw
        self._left = member.file_size
        self._expected = member.CRC
        self._checksum = 0
        # zipfile has compared this header with its directory.
        raw.seek(member.header_offset + _LOCAL - 4)
        raw.seek(sum(struct.unpack("<HH", raw.read(4))), os.SEEK_CUR)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer)[: self._left]
        size = self._raw.readinto(view)
        self._left -= size
        self._checksum = zlib.crc32(view[:size], self._checksum)
        if not self._left and self._checksum != self._expected:
            raise zipfile.BadZipFile("Bad CRC-32")
        return size


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


def _header(
    stream: io.RawIOBase | IO[bytes], file: str, name: str
) -> tuple[Stored, int]:
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
