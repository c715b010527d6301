"""Tensors of a data set, in memory that nobody can change.

Rules:

- The bytes lie in a sealed memfd (memfd_create(2), fcntl(2) F_ADD_SEALS): no
  process that gets its descriptor can write, grow or shrink it.
- A session's process maps it privately: pages are shared until the session writes
  one, which then is its own copy.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from obhut.host.closing import Closing
from obhut.protocol.codec import Frame
from obhut.protocol.dtypes import nbytes

_SEALS = (
    fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
)


class _Descriptor:
    """A file descriptor, closed when nobody holds it any more."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def close(self) -> None:
        number, self.number = self.number, -1
        if number >= 0:
            os.close(number)

    def __del__(self) -> None:
        self.close()


@dataclass(frozen=True, slots=True, eq=False)
class Array:
    """A dense tensor, row-major, in native byte order.

    Attributes:
        dtype: the element type, by its name in ``protocol.dtypes``.
        shape: elements along each dimension; there is at least one element.
        data: the bytes, read-only.
    """

    dtype: str
    shape: tuple[int, ...]
    data: memoryview
    _descriptor: _Descriptor

    @property
    def fd(self) -> int:
        """The sealed memory's descriptor, open as long as this array lives.

        A process that was handed a copy maps it with ``map_private``.
        """
        return self._descriptor.number


class ArrayWriter(Closing):
    """Puts a tensor's bytes into memory, in order, and seals it.

    Use it as a context manager: what was not finished is given up.
    """

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype
        self._written = 0
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        self._descriptor = _Descriptor(os.memfd_create("obhut-data", flags))
        self._finished = False

    def close(self) -> None:
        """Give up what was not finished."""
        if not self._finished:
            self._descriptor.close()

    def write(self, data: Frame) -> None:
        """Append bytes.

        Raises:
            OSError: if there is no memory for them.
        """
        with memoryview(data) as view, view.cast("B") as left:
            done = 0
            while done < len(left):
                done += os.write(self._descriptor.number, left[done:])
        self._written += done

    @contextmanager
    def edit(self) -> Iterator[memoryview]:
        """Yield what was written, to be changed where it is.

        Duty: hold nothing of it afterwards, since memory that is mapped for writing
        can not be sealed.
        """
        with (
            mmap.mmap(self._descriptor.number, self._written) as mapped,
            memoryview(mapped) as view,
        ):
            yield view

    def finish(self, shape: Sequence[int]) -> Array:
        """Seal what was written and return it as a tensor of this shape.

        Raises:
            ValueError: if that is not as many bytes as were written, or none.
        """
        if self._written != nbytes(self._dtype, shape) or not self._written:
            raise ValueError(
                f"expected {nbytes(self._dtype, shape):,} bytes and more than none, "
                f"got {self._written:,}"
            )
        fcntl.fcntl(self._descriptor.number, fcntl.F_ADD_SEALS, _SEALS)
        data = memoryview(
            mmap.mmap(
                self._descriptor.number,
                self._written,
                flags=mmap.MAP_PRIVATE,
                prot=mmap.PROT_READ,
            )
        )
        self._finished = True
        return Array(self._dtype, tuple(shape), data, self._descriptor)


def first_rows(array: Array, rows: int) -> Array:
    """Return an array's first rows, in memory of their own that holds no others.

    Raises:
        OSError: if there is no memory for them.
    """
    shape = (rows, *array.shape[1:])
    with ArrayWriter(array.dtype) as writer:
        writer.write(array.data[: nbytes(array.dtype, shape)])
        return writer.finish(shape)


def map_private(fd: int, size: int) -> memoryview:
    """Map sealed memory, copy-on-write: what is written stays with this process.

    Args:
        fd: its descriptor, which may be closed afterwards.
        size: its bytes.

    Raises:
        ValueError: if it has other than ``size`` bytes, or can still be changed.
    """
    if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
        raise ValueError("expected sealed memory")
    if os.fstat(fd).st_size != size:
        raise ValueError(f"expected {size:,} bytes, got {os.fstat(fd).st_size:,}")
    prot = mmap.PROT_READ | mmap.PROT_WRITE
    return memoryview(mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=prot))
