"""Memory that a parent shares with a child, for the frames of large tensors.

Rules:

- Only the parent makes it. Its size can not grow afterwards; where the parent maps
  it, it can not shrink either, so that reading it never ends in ``SIGBUS``.
- A child's memory never comes to another child.
- It is used again rather than made anew: the kernel needs three times as long to
  find fresh pages as to fill old ones.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
import weakref
from collections.abc import Iterable, Sequence

from obhut.errors import RemoteProtocolError
from obhut.protocol.codec import Frame

_GRANULE = 2**20


class Segment:
    """Shared memory of a fixed size, in bytes.

    Args:
        size: how many bytes it has.
        mapped: whether the parent will map it, and a child write to it; else the
            parent writes and a child maps it.
    """

    __slots__ = ("_mapped", "fd", "size")

    def __init__(self, size: int, mapped: bool) -> None:
        self.size = size
        self._mapped = mapped
        self.fd = os.memfd_create("obhut", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, size)
            seals = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            if mapped:
                seals |= fcntl.F_SEAL_SHRINK
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
        except BaseException:
            self.close()
            raise

    def write(self, offset: int, data: Frame) -> None:
        """Copy bytes in, from ``offset`` on.

        Raises:
            RemoteProtocolError: if the child that has it made that impossible.
        """
        try:
            write_all(self.fd, offset, (data,))
        except PermissionError as error:
            raise RemoteProtocolError("the child shrank what it was lent") from error

    def close(self) -> None:
        """Give the memory back, also where a child holds on to it unmapped."""
        if self.fd >= 0:
            if not self._mapped:
                os.ftruncate(self.fd, 0)
            os.close(self.fd)
            self.fd = -1


class Pool:
    """The segments of one child in one direction.

    Args:
        kept: bytes that are kept for later while nobody uses them.
        mapped: as for ``Segment``.
    """

    def __init__(self, kept: int, mapped: bool) -> None:
        self._kept = kept
        self._mapped = mapped
        self._free: list[Segment] = []
        # A view may be let go of by the garbage collector, on any thread, inside
        # `take` or `give` as well.
        self._lock = threading.RLock()
        self._closed = False

    def take(self, size: int) -> Segment:
        """Return a segment of at least ``size`` bytes.

        Duty: give it back.
        """
        with self._lock:
            fits = [s for s in self._free if s.size >= size]
            if fits:
                found = min(fits, key=lambda s: s.size)
                self._free.remove(found)
                return found
            # What is too small now was outgrown.
            for outgrown in self._free:
                outgrown.close()
            self._free.clear()
        return Segment(-(-size // _GRANULE) * _GRANULE, self._mapped)

    def give(self, segment: Segment) -> None:
        """Take a segment back, for later or for good."""
        with self._lock:
            held = sum(s.size for s in self._free)
            if self._closed or held + segment.size > self._kept:
                segment.close()
            else:
                self._free.append(segment)

    def view(self, segment: Segment, size: int) -> memoryview:
        """Return the first bytes of a segment; it is given back when they go."""
        try:
            mapped = mmap.mmap(
                segment.fd, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ
            )
        except BaseException:
            self.give(segment)
            raise
        weakref.finalize(mapped, self.give, segment).atexit = False
        return memoryview(mapped)

    def close(self) -> None:
        """Keep nothing any more."""
        with self._lock:
            self._closed = True
            for segment in self._free:
                segment.close()
            self._free.clear()


def borrowed(fd: int, size: int) -> memoryview:
    """Return the first bytes of what a parent lent, and close the file."""
    try:
        if not size:
            return memoryview(b"")
        return memoryview(
            mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        )
    finally:
        os.close(fd)


def write_all(fd: int, offset: int, buffers: Iterable[Frame]) -> None:
    """Write buffers one after the other, from ``offset`` on."""
    for buffer in buffers:
        with memoryview(buffer) as view:
            done = 0
            while done < len(view):
                done += os.pwrite(fd, view[done:], offset + done)
        offset += done


def split(data: memoryview, sizes: Sequence[int]) -> tuple[memoryview, ...]:
    """Return views of consecutive pieces of ``data``."""
    pieces = []
    start = 0
    for size in sizes:
        pieces.append(data[start : start + size])
        start += size
    return tuple(pieces)
