"""Arrays as files hold them: bytes of one type, in some order of bytes and axes.

Rules:

- Bytes are copied as they are unless the declaration asks for another type;
  then every element is converted and checked.
- A boolean is 0 or 1. NaN is refused unless declared, infinity always.
- What is declared and what comes must be the same number of bytes.
"""

from __future__ import annotations

import math
import struct
import sys
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Literal

from obhut.errors import DatasetError
from obhut.protocol import limits
from obhut.protocol.dtypes import ITEM_BYTES

from .arrays import Array, ArrayWriter
from .numbers import CODES, NAN, MisfitError, check_finite, pack
from .wording import quote

_CHUNK = 2**20
"""Bytes that are read at a time: a multiple of every element's size."""

_INTEGERS: Mapping[int, Literal["B", "H", "I", "Q"]] = {
    1: "B",
    2: "H",
    4: "I",
    8: "Q",
}
"""Codes of integers, by their bytes."""

_COMPONENTS: Mapping[str, str] = {
    "complex32": "float16",
    "complex64": "float32",
    "complex128": "float64",
}

_SUSPICIOUS: Mapping[str, bytes] = {
    "float8_e4m3fn": b"\x7f\xff",
    "float8_e5m2": b"\x7c\x7d\x7e\x7f\xfc\xfd\xfe\xff",
    "float8_e4m3fnuz": b"\x80",
    "float8_e5m2fnuz": b"\x80",
    "float16": b"\x7c\x7d\x7e\x7f\xfc\xfd\xfe\xff",
    "bfloat16": b"\x7f\xff",
    "float32": b"\x7f\xff",
    "float64": b"\x7f\xff",
}
"""By type, the first bytes, sign and exponent, of what may be NaN or infinity. In
eight bits (arXiv 2209.05433, 2206.02915) it is so, in more it is looked at."""

_INFINITE_8: Mapping[str, bytes] = {"float8_e5m2": b"\x7c\xfc"}
"""What is infinite in eight bits."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What a file says about an array.

    Attributes:
        name: the array's name; empty if the file has only one.
        dtype: the element type, by its name in ``protocol.dtypes``.
        shape: elements along each dimension.
        swapped: whether the bytes of an element come in the other order.
        fortran: whether the first axis is the one that varies fastest.
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


def load(
    stored: Stored, stream: IO[bytes], file: str, dtype: str | None, nan: bool
) -> Array:
    """Read an array.

    Duty: ``stored.check`` first.

    Args:
        stored: what it is.
        stream: stands at its first byte.
        file: the file's path, for errors.
        dtype: what its elements become; ``None`` for what they are.
        nan: whether NaN is allowed.

    Raises:
        DatasetError: naming the element's row.
    """
    if dtype == stored.dtype:
        dtype = None
    values = _values(stored.dtype)
    if dtype is not None and values is None:
        raise stored.error(
            file,
            f"{stored.dtype} is not converted to {dtype}",
            "leave dtype out, or convert the file",
        )
    done = 0
    per_row = math.prod(stored.shape[1:])
    with ArrayWriter(dtype or stored.dtype) as writer:
        for chunk in _chunks(stored, stream, file):
            try:
                if dtype is not None and values is not None:
                    writer.write(pack(values(chunk), dtype, nan))
                else:
                    _check(stored.dtype, chunk, nan)
                    writer.write(chunk)
            except MisfitError as error:
                row, place = divmod(done + error.index, per_row)
                column = stored.name
                if len(stored.shape) > 1:
                    column = f"{column}[:, {place}]" if column else f"[:, {place}]"
                raise DatasetError(
                    file, error.problem, error.advice, column, row + 1
                ) from None
            done += len(chunk) // ITEM_BYTES[stored.dtype]
        return writer.finish(stored.shape)


# --- bytes in order ---------------------------------------------------------------


def _chunks(stored: Stored, stream: IO[bytes], file: str) -> Iterator[bytes]:
    """Yield the bytes row-major and in native order, whole elements at a time."""
    if stored.fortran and len(stored.shape) > 1:
        yield from _transposed(stored, stream, file)
        return
    left = stored.nbytes
    while left:
        chunk = _take(stored, stream, file, min(left, _CHUNK))
        left -= len(chunk)
        yield _native(stored, chunk)


def _take(stored: Stored, stream: IO[bytes], file: str, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise stored.error(
            file, "ends too early", "the file is cut off or damaged: get it anew"
        )
    return data


def _transposed(stored: Stored, stream: IO[bytes], file: str) -> Iterator[bytes]:
    """Yield the bytes of an array whose first axis varies fastest, row-major."""
    # Only sizes matter here, so that integers stand for all types.
    code = _INTEGERS.get(ITEM_BYTES[stored.dtype])
    if code is None:
        raise stored.error(
            file,
            "complex arrays are read in C order only",
            "save numpy.ascontiguousarray of it",
        )
    data = memoryview(_take(stored, stream, file, stored.nbytes)).cast(code)
    rows, *rest = stored.shape
    columns = math.prod(rest)
    # Where, in the file, the columns of a row stand, in the order of row-major.
    places = [0]
    step = rows
    for size in rest:
        places = [place + step * index for place in places for index in range(size)]
        step *= size
    some = max(1, _CHUNK // (columns * data.itemsize))
    for begin in range(0, rows, some):
        count = min(some, rows - begin)
        chunk = bytearray(count * columns * data.itemsize)
        with memoryview(chunk) as view, view.cast(code) as elements:
            for column, place in enumerate(places):
                elements[column::columns] = data[place + begin : place + begin + count]
        yield _native(stored, bytes(chunk))


def _native(stored: Stored, data: bytes) -> bytes:
    if not stored.swapped:
        return data
    unit = ITEM_BYTES[_COMPONENTS.get(stored.dtype, stored.dtype)]
    if unit == 1:
        return data
    elements = array(_INTEGERS[unit], data)
    elements.byteswap()
    return elements.tobytes()


# --- elements ---------------------------------------------------------------------


def _values(dtype: str) -> Callable[[bytes], Sequence[float]] | None:
    """Return what makes numbers of bytes, if there is something that does."""
    if dtype == "bfloat16":
        return lambda data: _unpack("float32", _widened(data))
    if dtype in CODES:
        return lambda data: _unpack(dtype, data)
    return None


def _unpack(dtype: str, data: bytes) -> tuple[float, ...]:
    code = CODES[dtype]
    return struct.unpack(f"={len(data) // ITEM_BYTES[dtype]}{code}", data)


def _widened(data: bytes) -> bytes:
    """Return bfloat16 as float32: its first half, in an order of little end first."""
    wide = bytearray(2 * len(data))
    wide[2::4] = data[0::2]
    wide[3::4] = data[1::2]
    return bytes(wide)


def _check(dtype: str, data: bytes, nan: bool) -> None:
    """Refuse elements that are none.

    Raises:
        MisfitError: at the first one.
    """
    if dtype == "bool":
        left = data.translate(None, b"\0\1")
        if left:
            raise MisfitError(
                data.index(left[0]), f"expected 0 or 1, got {left[0]}", "correct it"
            )
        return
    part = _COMPONENTS.get(dtype, dtype)
    size = ITEM_BYTES[part]
    suspicious = _SUSPICIOUS.get(part, b"")
    first = data[size - 1 :: size] if sys.byteorder == "little" else data[::size]
    if len(first.translate(None, suspicious)) == len(first):
        return
    values = _values(part)
    if values is None:
        refused = _INFINITE_8.get(part, b"") if nan else suspicious
        index = next((i for i, byte in enumerate(first) if byte in refused), None)
        if index is None:
            return
        raise MisfitError(index, "expected a number, got NaN or infinity", NAN)
    numbers = values(data)
    try:
        check_finite(numbers, nan)
    except ValueError:
        index, bad_value = next(
            (i, value)
            for i, value in enumerate(numbers)
            if math.isinf(value) or (not nan and math.isnan(value))
        )
        per_element = ITEM_BYTES[dtype] // size
        what = "NaN" if math.isnan(bad_value) else "infinity"
        raise MisfitError(
            index // per_element,
            f"expected a finite number, got {what}",
            NAN if what == "NaN" else "correct it",
        ) from None
