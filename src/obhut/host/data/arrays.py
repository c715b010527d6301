"""Tensors of a data set, where nobody can change them.

::

    with ArrayWriter("float32") as writer:
        writer.expect(nbytes)                    # if that is known
        writer.write(data)
        array = writer.finish(shape)

Rules:

- The bytes lie in a sealed memfd (memfd_create(2), fcntl(2) F_ADD_SEALS): no
  process that gets its descriptor can write, grow or shrink it. Or, where ``room`` has
  no more memory, in a file without a name, which keeps no seals: nobody but its writer
  ever has a descriptor to write through, and that is closed when all is written.
- A session's process maps it privately: pages are shared until the session writes
  one, which then is its own copy.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from obhut.host.closing import Closing
from obhut.host.unnamed import read_only
from obhut.protocol.codec import Frame
from obhut.protocol.dtypes import nbytes

from .room import present

_NO_RESERVE = 0x4000  # linux/mman.h: MAP_NORESERVE, which Python does not name

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
        """The memory's or the file's descriptor, open as long as this array lives.

        A process that was handed a copy maps it with ``map_private``.
        """
        return self._descriptor.number


class ArrayWriter(Closing):
    """Puts a tensor's bytes, in order, where the data set's room is, and seals them.

    Use it as a context manager: what was not finished is given up.
    """

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype
        self._written = 0
        self._room = present()
        self._taken = 0
        self._on_disk = False
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        self._descriptor = _Descriptor(os.memfd_create("obhut-data", flags))
        self._finished = False

    def close(self) -> None:
        """Give up what was not finished."""
        if not self._finished:
            self._descriptor.close()

    def expect(self, size: int) -> None:
        """Say how many bytes there will be; those before the last may come later.

        Raises:
            DiskError: if they do not fit into memory, and the disk takes none.
        """
        if self._on_disk or size <= self._taken:
            return
        if self._room.take(size - self._taken):
            self._taken = size
            return
        self._room.give_back(self._taken)
        self._to_disk()

    def write(self, data: Frame) -> None:
        """Append bytes.

        Raises:
            DiskError: if the disk takes no more.
            OSError: if there is no memory for them.
        """
        with memoryview(data) as view, view.cast("B") as left:
            self.expect(self._written + len(left))
            done = 0
            with self._room.named() if self._on_disk else contextlib.nullcontext():
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
        if self._on_disk:
            self._replace(read_only(self._descriptor.number))
        else:
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

    def _to_disk(self) -> None:
        """Go on in a file, with what is there."""
        memory, file = self._descriptor.number, self._room.file()
        place, done = os.lseek(memory, 0, os.SEEK_CUR), 0
        size = os.fstat(memory).st_size
        try:
            with self._room.named():
                while done < size:
                    done += os.sendfile(file, memory, done, size - done)
                os.lseek(file, place, os.SEEK_SET)
        except BaseException:
            os.close(file)
            raise
        self._replace(file)
        self._on_disk = True

    def _replace(self, number: int) -> None:
        self._descriptor.close()
        self._descriptor.number = number


def first_rows(array: Array, rows: int) -> Array:
    """Return an array's first rows, in memory or a file that holds no others.

    Raises:
        OSError: if there is no room for them.
    """
    shape = (rows, *array.shape[1:])
    with ArrayWriter(array.dtype) as writer:
        writer.expect(nbytes(array.dtype, shape))
        writer.write(array.data[: nbytes(array.dtype, shape)])
        return writer.finish(shape)


def map_private(fd: int, size: int) -> memoryview:
    """Map a tensor's bytes, copy-on-write: what is written stays with this process.

    Args:
        fd: their descriptor, which may be closed afterwards.
        size: their number.

    Raises:
        ValueError: if there are other than ``size`` bytes, or they can still be
            changed through the descriptor.
    """
    found = os.fstat(fd)
    if not (_is_sealed(fd) or _is_read_only(fd, found)):
        raise ValueError("expected sealed memory, or a file to read without a name")
    if found.st_size != size:
        raise ValueError(f"expected {size:,} bytes, got {found.st_size:,}")
    prot = mmap.PROT_READ | mmap.PROT_WRITE
    # Else a system could ask for as much memory as if all of it were to be written.
    flags = mmap.MAP_PRIVATE | _NO_RESERVE
    return memoryview(mmap.mmap(fd, size, flags=flags, prot=prot))


def _is_sealed(fd: int) -> bool:
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS
    except OSError:  # a file on a disk has none
        return False


def _is_read_only(fd: int, found: os.stat_result) -> bool:
    """Tell whether a descriptor is for reading, of a file that can't be opened anew."""
    way = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    plain = stat.S_ISREG(found.st_mode) and not found.st_nlink
    return way == os.O_RDONLY and plain and not found.st_mode & 0o222
