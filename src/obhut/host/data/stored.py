"""Arrays as files hold them: bytes of one type, in some order of bytes and axes.

::

    with TensorMaker(None, nan=False) as maker:
        maker.append(stored, stream, file)           # once, or for each part
        array, report = maker.finish()

Rules:

- Bytes are copied as they are unless the declaration asks for another type;
  then every element is converted. Either way every element is checked.
- A boolean is 0 or 1. NaN is refused unless declared, infinity always.
- What is declared and what comes must be the same number of bytes.
- Parts that are appended are of one type, with rows of one shape.
- Little more is in memory than the tensor that is made.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, TypeAlias

import numpy as np

from obhut.errors import DatasetError
from obhut.host.closing import Closing
from obhut.host.wording import quote
from obhut.protocol import limits
from obhut.protocol.dtypes import ITEM_BYTES, nbytes

from .arrays import Array, ArrayWriter
from .numbers import (
    DIGITS,
    NAN,
    Elements,
    Extent,
    MisfitError,
    WholeColumns,
    fit,
    widened,
)
from .report import ColumnReport

_PIECE = 2**20
"""Bytes that are read at a time: what a processor's cache holds."""

_BLOCK = 2**26
"""Bytes of the rows that are gathered at a time from an array in Fortran's order."""

_HELD: Mapping[str, str] = {
    "bool": "uint8",
    "float8_e4m3fn": "uint8",
    "float8_e5m2": "uint8",
    "bfloat16": "uint16",
}
"""What NumPy reads types as that it does not have, or does not check."""

READ = frozenset(name for name in ITEM_BYTES if hasattr(np, name)) | _HELD.keys()
"""Types of which arrays are read."""

_NAN_8: Mapping[str, bytes] = {
    "float8_e4m3fn": b"\x7f\xff",
    "float8_e5m2": b"\x7d\x7e\x7f\xfd\xfe\xff",
}
"""What is NaN in eight bits (arXiv 2209.05433)."""

_INFINITE_8: Mapping[str, bytes] = {"float8_e4m3fn": b"", "float8_e5m2": b"\x7c\xfc"}


Readable: TypeAlias = io.RawIOBase | io.BufferedIOBase | IO[bytes]
"""Where bytes come from: a file, a member of an archive, a pipe."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What a file says about an array.

    Attributes:
        name: the array's name; empty if the file has only one.
        dtype: the element type, by its name in ``protocol.dtypes``.
        shape: elements along each dimension.
        swapped: whether the bytes of an element come in the other order.
        fortran: whether the first axis is the one that varies fastest. Then the
            stream can be sought.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    swapped: bool = False
    fortran: bool = False

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return ITEM_BYTES[self.dtype] * math.prod(self.shape)

    @property
    def row(self) -> int:
        """Elements of a row."""
        return math.prod(self.shape[1:])

    def check(self, file: str, available: int) -> None:
        """Hold it to what a tensor can be, and to the bytes that are there.

        Raises:
            DatasetError: if it is empty, too large, or not as long as it says.
        """
        if len(self.shape) > limits.DIMENSIONS or any(n >= 2**63 for n in self.shape):
            raise self.error(file, "is larger than a tensor can be", "save it anew")
        if self.nbytes != available:
            raise self.error(
                file,
                f"expected {self.nbytes:,} bytes for its shape, got {available:,}",
                "the file is cut off or damaged: get it anew",
            )
        if not self.nbytes:
            raise self.error(file, "has no elements", "leave it out, or fill it")

    def error(self, file: str, problem: str, advice: str) -> DatasetError:
        """Return the error that names this array."""
        return DatasetError(file, problem, advice, column=quote(self.name)[1:-1])

    def __str__(self) -> str:
        sizes = " x ".join(f"{size:,}" for size in self.shape)
        return f"{self.dtype}, {sizes}" if sizes else self.dtype


class TensorMaker(Closing):
    """Makes a tensor of arrays, each of which gives it rows.

    Use it as a context manager: what was not finished is given up.

    Args:
        dtype: what its elements become; ``None`` for what they are.
        nan: whether NaN is allowed.
    """

    def __init__(self, dtype: str | None, nan: bool) -> None:
        self._asked = dtype
        self._nan = nan
        self._first: Stored | None = None
        self._file = ""
        self._rows = 0
        self._extent = Extent()
        self._whole: WholeColumns | None = None
        self._writer: ArrayWriter | None = None

    def close(self) -> None:
        """Give up what was not finished."""
        if self._writer is not None:
            self._writer.close()

    def append(
        self, stored: Stored, stream: Readable, file: str, *, ahead: bool = True
    ) -> None:
        """Add an array's rows.

        Duty: ``stored.check`` first.

        Args:
            stored: what it is.
            stream: stands at its first byte.
            file: the file's path, for errors.
            ahead: whether all of it is there: then a thread reads on while elements are
                checked. Not so with what another process still writes.

        Raises:
            DatasetError: naming the element's row, of this part.
        """
        writer = self._begun(stored, file)
        if ahead:
            rows = self._rows + (stored.shape[0] if stored.shape else 1)
            writer.expect(nbytes(self._asked or stored.dtype, (rows, stored.row)))
        pieces = _pieces(stored, stream, file)
        if ahead and stored.nbytes > 4 * _PIECE:
            pieces = _ahead(pieces)
        done = 0
        # Whatever happens, the thread that reads is ended by this one.
        with contextlib.closing(pieces):
            for piece in pieces:
                try:
                    made = self._made(stored.dtype, piece, done)
                except MisfitError as error:
                    raise _located(stored, file, error, done + error.index) from None
                writer.write(made.view(np.uint8).data)
                done += piece.size
        self._rows += stored.shape[0] if stored.shape else 0

    @property
    def begun(self) -> bool:
        """Whether there are any elements."""
        return self._first is not None

    def finish(self) -> tuple[Array, ColumnReport]:
        """Return the tensor, and what its owner should know of it.

        Raises:
            DatasetError: if a column of whole numbers was rounded.
            ValueError: if nothing was appended.
        """
        if self._first is None or self._writer is None:
            raise ValueError("expected arrays, got none")
        first = self._first
        if self._whole is not None:
            try:
                self._whole.check()
            except MisfitError as error:
                raise _located(first, self._file, error, error.index) from None
        shape = (self._rows, *first.shape[1:]) if first.shape else ()
        array = self._writer.finish(shape)
        whole = Stored(first.name, first.dtype, shape)
        report = ColumnReport(
            first.name,
            str(whole),
            missing=self._extent.missing,
            least=self._extent.least,
            greatest=self._extent.greatest,
        )
        return array, report

    def _begun(self, stored: Stored, file: str) -> ArrayWriter:
        """Return where the elements go, once they are known to fit the others."""
        first = self._first
        if first is not None and self._writer is not None:
            if (stored.dtype, stored.shape[1:]) != (first.dtype, first.shape[1:]) or (
                not stored.shape or not first.shape
            ):
                raise stored.error(
                    file,
                    f"is {stored}, and in {self._file} it is {first}",
                    "save all parts alike, with rows of one shape",
                )
            return self._writer
        dtype = self._asked = None if self._asked == stored.dtype else self._asked
        if dtype is not None and stored.dtype.startswith(("complex", "float8")):
            raise stored.error(
                file,
                f"{stored.dtype} is not converted to {dtype}",
                "leave dtype out, or convert the file",
            )
        if dtype is not None and {dtype, stored.dtype} <= DIGITS.keys():
            self._whole = WholeColumns(stored.row, dtype)
        self._first, self._file = stored, file
        self._writer = ArrayWriter(dtype or stored.dtype)
        return self._writer

    def _made(self, dtype: str, piece: Elements, done: int) -> Elements:
        """Return elements as they are written.

        Raises:
            MisfitError: at the first one that is none, or can not be converted.
        """
        numbers = widened(piece, dtype)
        if dtype in _NAN_8:
            _check_8(dtype, piece, self._nan)
        elif dtype == "bool":
            fit(piece, dtype, self._nan)
            self._extent.take(piece, self._nan)
        else:
            self._extent.take(numbers, self._nan)
        if self._asked is None:
            return piece
        if self._whole is not None:
            before = self._rows * (self._first.row if self._first is not None else 1)
            self._whole.take(numbers, before + done)
        return fit(numbers, self._asked, self._nan)


def _located(stored: Stored, file: str, error: MisfitError, place: int) -> DatasetError:
    """Return the error for an element, by its place among all."""
    row, place = divmod(place, stored.row)
    column = stored.name
    if len(stored.shape) > 1:
        column = f"{column}[:, {place}]" if column else f"[:, {place}]"
    return DatasetError(file, error.problem, error.advice, column, row + 1)


def _pieces(stored: Stored, stream: Readable, file: str) -> Generator[Elements]:
    """Yield the elements row-major and in native order: whole rows, or some of one.

    What is yielded holds until the next but one.
    """
    native = np.dtype(_HELD.get(stored.dtype, stored.dtype))
    kind = native.newbyteorder() if stored.swapped else native
    row, total = stored.row, math.prod(stored.shape)
    most = max(1, _PIECE // native.itemsize)
    if stored.fortran and len(stored.shape) > 1:
        step = max(1, most // row)
        for block in _gathered(stored, stream, file, kind):
            for begin in range(0, len(block), step):
                yield block[begin : begin + step].ravel().astype(native, copy=False)
        return
    most = most // row * row or most
    buffers = [np.empty(min(most, total), kind) for _ in range(2)]
    done = 0
    for buffer in itertools.cycle(buffers):
        if done == total:
            return
        left = total - done if row <= most else row - done % row
        piece = buffer[: min(most, left)]
        _fill(stored, stream, file, piece)
        done += piece.size
        yield piece.astype(native, copy=False)


def _gathered(
    stored: Stored, stream: Readable, file: str, kind: np.dtype[np.generic]
) -> Iterator[Elements]:
    """Yield rows of an array whose columns lie one after the other."""
    start, rows = stream.tell(), stored.shape[0]
    most = max(1, _BLOCK // (stored.row * kind.itemsize))
    for begin in range(0, rows, most):
        count = min(most, rows - begin)
        block = np.empty((stored.row, count), kind)
        if count == rows:
            _fill(stored, stream, file, block.reshape(-1))
        else:
            for i, column in enumerate(block):
                stream.seek(start + (i * rows + begin) * kind.itemsize)
                _fill(stored, stream, file, column)
        yield block.reshape(*stored.shape[:0:-1], count).transpose()


def _fill(stored: Stored, stream: Readable, file: str, elements: Elements) -> None:
    """Read elements.

    Raises:
        DatasetError: if there are fewer.
    """
    left = elements.view(np.uint8).data
    while len(left):
        size = stream.readinto(left)  # type: ignore[union-attr] # all binary streams do
        if not size:
            raise stored.error(
                file, "ends too early", "the file is cut off or damaged: get it anew"
            )
        left = left[size:]


def _ahead(pieces: Generator[Elements]) -> Generator[Elements]:
    """Yield pieces, the next of which is read meanwhile, by a thread."""
    with ThreadPoolExecutor(1, "obhut-reads") as pool:
        coming = pool.submit(next, pieces, None)
        while (piece := coming.result()) is not None:
            coming = pool.submit(next, pieces, None)
            yield piece


def _check_8(dtype: str, piece: Elements, nan: bool) -> None:
    """Refuse eight bits that are no number.

    Raises:
        MisfitError: at the first one.
    """
    refused = _INFINITE_8[dtype] + (b"" if nan else _NAN_8[dtype])
    bad = np.isin(piece, np.frombuffer(refused, np.uint8))
    if bad.any():
        problem = "expected a number, got NaN or infinity"
        raise MisfitError(int(bad.argmax()), problem, NAN)
