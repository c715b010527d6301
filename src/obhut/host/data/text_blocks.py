"""A text file as blocks of whole rows in UTF-8, whatever it is stored as.

::

    text = TextBlocks(declaration, delimiter=b",")
    for block in text.blocks():
        block.data, block.line
        list(text.rows(block))   # the line, and where each row begins and ends

Rules:

- A block ends where a row ends, and never within quotes.
- Lines stay lines: what is a comment becomes a blank line.
- A cell that begins with a quote ends with one. Quotes within a cell that does not
  begin with one are text.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from obhut.errors import DatasetError

from .arrow import pa
from .declaration import DatasetDeclaration

BLOCK = 4 * 2**20
"""Bytes of a block, unless a row is longer."""

ROW = 2**30
"""Bytes of the longest row."""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""What a file begins with that says its encoding itself."""

_OTHERS = (
    (b"PK\x03\x04", "a zip archive, as .xlsx and .ods are"),
    (b"\xd0\xcf\x11\xe0", "an old workbook, as .xls is"),
    (b"\x1f\x8b", "a .gz file"),
    (b"PAR1", "a .parquet file"),
    (b"SQLite format 3", "a database of SQLite's"),
)
"""What other files begin with that are called CSV."""

_QUOTE = 0x22

Places = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Block:
    """Whole rows, one after the other, each with an end of line.

    Attributes:
        data: UTF-8.
        line: the number of its first line.
        quotes: places of the quotes around cells, beginning and end by turns.
    """

    data: bytes
    line: int
    quotes: Places

    def after(self, begin: int) -> Block:
        """Return what is behind this place, at which a row ends."""
        return Block(
            self.data[begin:],
            self.line + _breaks(self.data[:begin]),
            self.quotes[np.searchsorted(self.quotes, begin) :] - begin,
        )


class TextBlocks:
    """A text file. Each call of ``blocks`` reads it anew."""

    def __init__(self, declaration: DatasetDeclaration, delimiter: str) -> None:
        self._declared = declaration
        self._file = declaration.file
        self.delimiter = delimiter.encode()
        mark = re.escape(self.delimiter)
        self._cell = rb'(?:(?<=[%s\n\r])|\A)"[^"]*(?:""[^"]*)*' % mark
        self._cells = re.compile(self._cell + rb'("|\Z)')
        self._blank = b" \r\n" if delimiter == "\t" else b" \t\r\n"
        spaces = b"[ ]*" if delimiter == "\t" else b"[ \t]*"
        self._spaces = re.compile(rb"(?:\A|(?<=\n))" + spaces + rb"(?=\r?\n)")
        self._comment = None
        if declaration.comment:
            comment = re.escape(declaration.comment.encode())
            self._comment = re.compile(
                rb"(%s(?:\"|\Z))|%s%s[^\r\n]*" % (self._cell, spaces, comment)
            )

    def blocks(self) -> Iterator[Block]:
        """Yield blocks in order; none if the file is empty.

        Raises:
            DatasetError: naming the line.
            OSError: if the file can not be read.
        """
        line, rest = 1 + self._declared.skip, b""
        with open_bytes(self._declared.path) as stream:
            for data, last in self._pieces(stream):
                rest += data
                block, rest = self._cut(rest, line, last)
                if block is not None:
                    yield block
                    line += _breaks(block.data)

    def rows(
        self, block: Block, blanks: bool = False
    ) -> Iterator[tuple[int, int, int]]:
        """Yield rows: the line in which each begins, and where it begins and ends.

        Args:
            block: the block.
            blanks: whether blank lines are rows.
        """
        line, begin, data, quotes = block.line, 0, block.data, block.quotes
        while begin < len(data):
            end = data.index(b"\n", begin) + 1
            # An odd number of quotes before the end of a line: it is in a cell.
            while (place := int(np.searchsorted(quotes, end))) % 2:
                end = data.index(b"\n", int(quotes[place])) + 1
            if blanks or data[begin:end].strip(self._blank):
                yield line, begin, end
            line += _breaks(data[begin:end])
            begin = end

    def without_blanks(self, block: Block, one_column: bool) -> bytes:
        """Return a block without spaces in blank lines.

        Args:
            block: the block.
            one_column: whether a blank line is a row with an empty cell.
        """
        data = block.data
        empty = b'""' if one_column else b""
        parts: list[bytes] = []
        begin = 0
        for match in self._spaces.finditer(data):
            if not np.searchsorted(block.quotes, match.start()) % 2:
                parts += (data[begin : match.start()], empty)
                begin = match.end()
        return b"".join((*parts, data[begin:]))

    def cells(self, row: bytes) -> int:
        """Return how many cells a row has."""
        if b'"' in row:
            row = self._cells.sub(b"", row)
        return row.count(self.delimiter) + 1

    def _pieces(self, stream: IO[bytes]) -> Iterator[tuple[bytes, bool]]:
        """Yield the file in UTF-8 without what is skipped, and whether it ends."""
        data = stream.read(BLOCK)
        encoding = self._declared.encoding or "utf-8"
        for mark, name in _MARKS:
            if data.startswith(mark):
                encoding = name
                break
        else:
            encoding = codecs.lookup(encoding).name
            if encoding in ("utf-16", "utf-32"):
                encoding += byte_order(data)
        plain = encoding in ("utf-8", "utf-8-sig")
        if plain:
            data = data.removeprefix(codecs.BOM_UTF8)
            what = next((one for head, one in _OTHERS if data.startswith(head)), "")
            if what:
                raise DatasetError(
                    self._file,
                    f"expected text, got {what}",
                    "save the table as CSV, or name the file as what it is",
                )
            if b"\0" in data:
                raise DatasetError(
                    self._file,
                    "expected text, got bytes of zero",
                    'write encoding = "utf-16", if it is that',
                )
        decoder = codecs.getincrementaldecoder(encoding)()
        skip, line, first, mac = self._declared.skip, 1, True, False
        while True:
            following = stream.read(BLOCK)
            if not plain:
                try:
                    text = decoder.decode(data, not following)
                except UnicodeDecodeError as error:
                    at = line + _breaks(error.object[: error.start])
                    raise DatasetError(
                        self._file,
                        f"is not {encoding}, as encoding says",
                        "correct encoding",
                        line=at,
                    ) from None
                data = (text.removeprefix("\ufeff") if first else text).encode()
            first, mac = False, mac or (first and b"\r" in data and b"\n" not in data)
            line += 0 if plain else _breaks(data)
            if mac:
                data = data.replace(b"\r", b"\n")
            while skip and data:
                found = re.search(rb"\n|\r(?!\n)", data)
                data = data[found.end() :] if found else b""
                skip -= bool(found)
            if not following and data and not data.endswith(b"\n"):
                data += b"\n"
            yield data, not following
            if not following:
                return
            data = following

    def _cut(self, data: bytes, line: int, last: bool) -> tuple[Block | None, bytes]:
        """Return the rows that end in some bytes, and what is left of those."""
        tail = b""
        if self._comment is not None and self._declared.comment:
            end = data.rfind(b"\n") + 1
            data, tail = data[:end], data[end:]
            if self._declared.comment.encode() in data:
                data = self._comment.sub(lambda match: match[1] or b"", data)
        quotes = self._quotes(data, line, last)
        end = data.rfind(b"\n") + 1
        while (place := int(np.searchsorted(quotes, end))) % 2:
            end = data.rfind(b"\n", 0, int(quotes[place - 1])) + 1
        if last and end < len(data):
            broken = int(quotes[-1])
            raise self._unquoted(line + _breaks(data[:broken]))
        if len(data) - end > ROW:
            raise DatasetError(
                self._file,
                f"has a row of more than {ROW:,} bytes",
                "correct the quotes at that line",
                line=line + _breaks(data[:end]),
            )
        block = Block(data[:end], line, quotes[: np.searchsorted(quotes, end)])
        return block if end else None, data[end:] + tail

    def _quotes(self, data: bytes, line: int, last: bool) -> Places:
        """Return where cells in quotes begin and end, by turns."""
        if b'"' not in data:
            return np.empty(0, np.int64)
        view = np.frombuffer(data, np.uint8)
        quotes = np.flatnonzero(view == _QUOTE)
        ends = np.zeros(256, np.bool_)
        ends[[_QUOTE, self.delimiter[0], 0x0A, 0x0D]] = True
        opening, closing = quotes[::2], quotes[1::2]
        opening = opening[1:] if opening[0] == 0 else opening
        if closing.size and closing[-1] + 1 == len(data):
            closing = closing[:-1]
        if ends[view[opening - 1]].all() and ends[view[closing + 1]].all():
            return quotes
        # A quote within a cell: so each cell is gone through.
        found: list[int] = []
        for match in self._cells.finditer(data):
            found.append(match.start())
            if match[1]:
                end = match.end()
                if end < len(data) and not ends[data[end]]:
                    raise self._unquoted(line + _breaks(data[: end - 1]))
                found.append(end - 1)
        return np.array(found, np.int64)

    def _unquoted(self, line: int) -> DatasetError:
        return DatasetError(
            self._file,
            "expected cells, quoted where they need it, got a quote without another",
            "correct the quotes at that line, or in lines above it",
            line=line,
        )


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, decompressed as the end of its name says.

    Raises:
        DatasetError: if it is damaged, or an archive of several files.
        OSError: if it can not be read.
    """
    file, suffix = str(path), path.suffix.lower()
    try:
        with ExitStack() as stack:
            stream: Any = stack.enter_context(path.open("rb"))  # no common type
            match suffix:
                case ".gz":
                    stream = stack.enter_context(gzip.open(stream))
                case ".bz2":
                    stream = stack.enter_context(bz2.open(stream))
                case ".xz":
                    stream = stack.enter_context(lzma.open(stream))
                case ".zst":
                    stream = stack.enter_context(
                        pa.CompressedInputStream(pa.PythonFile(stream), "zstd")
                    )
                case ".zip":
                    archive = stack.enter_context(zipfile.ZipFile(stream))
                    stream = stack.enter_context(archive.open(_only(file, archive)))
                case _:
                    pass
            yield stream
    except DatasetError:
        raise
    except (
        EOFError,
        RuntimeError,
        NotImplementedError,
        gzip.BadGzipFile,
        lzma.LZMAError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise _damaged(file, suffix) from error
    except OSError as error:
        if error.errno is None:  # a library's word for damage
            raise _damaged(file, suffix) from error
        raise


def _damaged(file: str, suffix: str) -> DatasetError:
    return DatasetError(
        file,
        f"is not a {suffix} file that can be read",
        "it is cut off, damaged or encrypted: get it anew",
    )


def _only(file: str, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    members = [
        one
        for one in archive.infolist()
        if not one.is_dir() and not one.filename.startswith("__MACOSX/")
    ]
    if len(members) != 1:
        raise DatasetError(
            file,
            f"expected one file in the archive, got {len(members)}",
            "unpack it, and name one of its files",
        )
    return members[0]


def byte_order(data: bytes) -> str:
    """Return which byte of a character comes first, by where the zeros are."""
    return "-le" if data[1::2].count(0) > data[::2].count(0) else "-be"


def _breaks(data: bytes) -> int:
    """Return how many lines end in some bytes."""
    returns = data.count(b"\r")
    lone = returns - data.count(b"\r\n") if returns else 0
    return data.count(b"\n") + lone
