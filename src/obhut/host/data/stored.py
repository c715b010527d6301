"""Arrays as files hold them: bytes of one type, in some order of bytes and axes.

Rules:

- Bytes are copied as they are unless the declaration asks for another type;
  then every element is converted. Either way every element is checked.
- A boolean is 0 or 1. NaN is refused unless declared, infinity always.
- What is declared and what comes must be the same number of bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO

import numpy as np

from obhut.errors import DatasetError
from obhut.host.wording import quote
from obhut.protocol import limits
from obhut.protocol.dtypes import ITEM_BYTES, nbytes

from .arrays import Array, ArrayWriter
from .numbers import NAN, Elements, MisfitError, check, fit

_CHUNK = 2**20
"""Bytes that are read at a time: a multiple of every element's size."""

_HELD: Mapping[str, str] = {
    "bool": "uint8",
    "float8_e4m3fn": "uint8",
    "float8_e5m2": "uint8",
    "bfloat16": "uint16",
}
"""What NumPy reads types as that it does not have, or does not check."""

_NAN_8: Mapping[str, bytes] = {
    "float8_e4m3fn": b"\x7f\xff",
    "float8_e5m2": b"\x7d\x7e\x7f\xfd\xfe\xff",
}
"""What is NaN in eight bits (arXiv 2209.05433)."""

_INFINITE_8: Mapping[str, bytes] = {"float8_e4m3fn": b"", "float8_e5m2": b"\x7c\xfc"}


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
    if dtype is not None and stored.dtype.startswith(("complex", "float8")):
        raise stored.error(
            file,
            f"{stored.dtype} is not converted to {dtype}",
            "leave dtype out, or convert the file",
        )
    done = 0
    per_row = math.prod(stored.shape[1:])
    with ArrayWriter(dtype or stored.dtype) as writer:
        writer.expect(nbytes(dtype or stored.dtype, stored.shape))
        for chunk in _chunks(stored, stream, file):
            try:
                if dtype is None:
                    _check(stored.dtype, chunk, nan)
                    made = chunk
                else:
                    made = fit(_numbers(stored.dtype, chunk), dtype, nan)
            except MisfitError as error:
                row, place = divmod(done + error.index, per_row)
                column = stored.name
                if len(stored.shape) > 1:
                    column = f"{column}[:, {place}]" if column else f"[:, {place}]"
                raise DatasetError(
                    file, error.problem, error.advice, column, row + 1
                ) from None
            writer.write(made.view(np.uint8).data)
            done += chunk.size
        return writer.finish(stored.shape)


def _chunks(stored: Stored, stream: IO[bytes], file: str) -> Iterator[Elements]:
    """Yield the elements row-major and in native order, some at a time."""
    native = np.dtype(_HELD.get(stored.dtype, stored.dtype))
    kind = native.newbyteorder() if stored.swapped else native
    if stored.fortran and len(stored.shape) > 1:
        # Deliberately not the widest type, which nobody has asked for in this order.
        if stored.dtype == "complex128":
            raise stored.error(
                file,
                "complex arrays are read in C order only",
                "save numpy.ascontiguousarray of it",
            )
        data = _take(stored, stream, file, stored.nbytes)
        whole = np.frombuffer(data, kind).reshape(stored.shape, order="F")
        rows = max(1, _CHUNK * stored.shape[0] // stored.nbytes)
        for begin in range(0, stored.shape[0], rows):
            yield whole[begin : begin + rows].ravel().astype(native, copy=False)
        return
    left = stored.nbytes
    while left:
        data = _take(stored, stream, file, min(left, _CHUNK))
        left -= len(data)
        yield np.frombuffer(data, kind).astype(native, copy=False)


def _take(stored: Stored, stream: IO[bytes], file: str, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise stored.error(
            file, "ends too early", "the file is cut off or damaged: get it anew"
        )
    return data


def _numbers(dtype: str, chunk: Elements) -> Elements:
    """Return the elements as numbers of a type that NumPy has."""
    if dtype != "bfloat16":
        return chunk
    # It is the first half of a float32.
    return (chunk.astype(np.uint32) << 16).view(np.float32)


def _check(dtype: str, chunk: Elements, nan: bool) -> None:
    """Refuse elements that are none.

    Raises:
        MisfitError: at the first one.
    """
    if dtype in _NAN_8:
        refused = _INFINITE_8[dtype] + (b"" if nan else _NAN_8[dtype])
        bad = np.isin(chunk, np.frombuffer(refused, np.uint8))
        if bad.any():
            problem = "expected a number, got NaN or infinity"
            raise MisfitError(int(bad.argmax()), problem, NAN)
    elif dtype == "bool":
        fit(chunk, dtype, nan)
    elif not dtype.startswith(("int", "uint")):
        check(_numbers(dtype, chunk), nan)
