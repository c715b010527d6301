"""Memory, or a file, that a parent shares with a child for frames of large tensors.

Rules:

- Only the parent makes it. Its size can not grow afterwards; where the parent maps
  it, it can not shrink either, so that reading it never ends in ``SIGBUS``.
- A child's memory never comes to another child.
- It is used again rather than made anew: the kernel needs three times as long to
  find fresh pages as to fill old ones. Both sides keep their mappings of it.
- A child may keep what it was lent for reading, as the memory of its tensors: for
  as long as it says, within the limits of its pool.
- Bytes count against a pool's limit as they are written, not as they are announced.
- With a folder to spool into, what is large on its way to a child is a file there
  (``spool``). It is used once: a child's own changes would hide what came next.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from obhut.errors import LimitError, RemoteProtocolError
from obhut.protocol.codec import Frame

from . import shared_memory
from .spool import PIECE, SpoolFile

LENT_AT_MOST = 24
"""Segments that a child may keep; each is an open file of its parent."""

SPOOLED_FROM = 2**24
"""A segment of so many bytes is a file, where there is a folder for it."""

_GRANULE = 2**20

_ALIGNED_FROM = 2**16
"""Frames of so many bytes begin where tensors would, the others anywhere."""

_ALIGNMENT = 64
"""Bytes; PyTorch's own alignment, on which a kernel's last digit may depend."""


class Segment:
    """Shared memory of a fixed size, in bytes.

    Args:
        size: how many bytes it has.
        mapped: whether the parent will map it, and a child write to it; else the
            parent writes and a child maps it.
        number: what parent and child call it.
        spool: the folder whose disk it is on, instead of in memory.

    Attributes:
        fd: the file that the child gets.
        known: whether the child has it mapped, as far as is known.
        told: whether the child ever got its file.
        written: bytes from the beginning that were ever written or lent.
    """

    __slots__ = (
        "_file",
        "_map",
        "_mapped",
        "fd",
        "known",
        "number",
        "size",
        "told",
        "written",
    )

    def __init__(
        self, size: int, mapped: bool, number: int, spool: Path | None = None
    ) -> None:
        self.size = size
        self.number = number
        self.known = False
        self.told = False
        self.written = 0
        self._mapped = mapped
        self._map: shared_memory.Memory | None = None
        self._file: SpoolFile | None = None
        self.fd = -1
        try:
            if spool is not None:
                self._file = SpoolFile(spool, size)
                self.fd = self._file.reader
                return
            self.fd = os.memfd_create("obhut", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self.fd, size)
            seals = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            if mapped:
                seals |= fcntl.F_SEAL_SHRINK
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
        except OSError as error:
            self.close()
            raise LimitError(f"no room for {size:,} bytes: {error.strerror}") from error

    @property
    def spooled(self) -> bool:
        """Whether it is a file, to be used once."""
        return self._file is not None

    def write(self, offset: int, data: Frame) -> None:
        """Copy bytes into it, from ``offset`` on.

        Raises:
            OSError: if there is no room, or the child made it impossible.
        """
        if self._file is None:
            write_all(self.fd, offset, (data,))
            return
        with memoryview(data) as whole:
            for start in range(0, len(whole), PIECE):
                piece = whole[start : start + PIECE]
                write_all(self._file.fd, offset + start, (piece,))
                self._file.wrote(offset + start, offset + start + len(piece))

    def finish(self) -> None:
        """Keep nothing in memory of what was written to a file.

        Raises:
            OSError: if the disk does not take it.
        """
        if self._file is not None:
            self._file.finish()

    def map(self) -> shared_memory.Memory:
        """Return the memory as the parent maps it, the same mapping each time."""
        if self._map is None:
            self._map = shared_memory.map_shared(self.fd, self.size)
        return self._map

    def close(self) -> None:
        """Give the memory back, also where a child holds on to it.

        What a child holds on to of a file is on the disk until the child ends.
        """
        if self._file is not None:
            self._file.close()
            self.fd = -1
        if self.fd >= 0:
            if not self._mapped:
                os.ftruncate(self.fd, 0)
            os.close(self.fd)
            self.fd = -1
        self._map = None


class Pool:
    """The segments of one child in one direction.

    Args:
        kept: bytes that are kept for later while nobody uses them.
        mapped: as for ``Segment``.
        most: bytes that all segments together may have had written, None for any.
        numbers: where their numbers come from.
        spool: the folder for what is large, instead of memory.
    """

    def __init__(
        self,
        kept: int,
        mapped: bool,
        *,
        most: int | None = None,
        numbers: Iterator[int] | None = None,
        spool: Path | None = None,
    ) -> None:
        self._kept = kept
        self._mapped = mapped
        self._most = most
        self._spool = spool
        self._numbers = itertools.count(1) if numbers is None else numbers
        self._free: list[Segment] = []
        self._lent: dict[int, Segment] = {}
        self._gone: list[int] = []
        self._written = 0
        # A view may be let go of by the garbage collector, on any thread, inside
        # `take` or `give` as well.
        self._lock = threading.RLock()
        self._closed = False

    def take(self, size: int) -> Segment:
        """Return a segment of at least ``size`` bytes.

        Duty: give it back, or lend it.

        Raises:
            LimitError: if the system has none.
        """
        whole = -(-size // _GRANULE) * _GRANULE
        if self._spool is not None and size >= SPOOLED_FROM:
            return Segment(whole, self._mapped, next(self._numbers), self._spool)
        with self._lock:
            fits = [s for s in self._free if s.size >= size]
            if fits:
                found = min(fits, key=lambda s: s.size)
                self._free.remove(found)
                return found
            # What is too small now was outgrown.
            for outgrown in self._free:
                self._drop(outgrown)
            self._free.clear()
            number = next(self._numbers)
        return Segment(whole, self._mapped, number)

    def write(self, segment: Segment, offset: int, data: Frame) -> None:
        """Copy bytes into a segment, from ``offset`` on.

        Raises:
            LimitError: if the pool has had enough, or the system has no more.
            RemoteProtocolError: if the child that has it made that impossible.
        """
        self.charge(segment, offset + len(data))
        try:
            segment.write(offset, data)
        except OSError as error:
            if segment.spooled:
                raise _no_room(error) from error
            if isinstance(error, PermissionError):
                words = "the child shrank what it was lent"
                raise RemoteProtocolError(words) from error
            raise LimitError(f"no memory for more: {error.strerror}") from error

    def finish(self, segment: Segment) -> None:
        """Count a segment as all written, before the child gets it.

        Raises:
            LimitError: if the pool has had enough, or the system has no more.
        """
        # The child can write all of memory, also what nothing came for.
        self.charge(segment, segment.size)
        try:
            segment.finish()
        except OSError as error:
            raise _no_room(error) from error

    def give(self, segment: Segment) -> None:
        """Take a segment back, for later or for good."""
        with self._lock:
            held = sum(s.size for s in self._free)
            once = segment.spooled
            if self._closed or once or held + segment.size > self._kept:
                self._drop(segment)
            else:
                self._free.append(segment)

    def lend(self, segment: Segment) -> None:
        """Let the child have a segment until it says that it needs it no more."""
        with self._lock:
            if self._closed:
                self._drop(segment)
            else:
                self._lent[segment.number] = segment

    def returned(self, numbers: Iterable[int]) -> None:
        """Take in which segments the child needs no more.

        Raises:
            RemoteProtocolError: if it was not lent one of them, or keeps too many.
        """
        with self._lock:
            for number in numbers:
                segment = self._lent.pop(number, None)
                if segment is None:
                    raise RemoteProtocolError("the child returns what it never had")
                self.give(segment)
            if len(self._lent) > LENT_AT_MOST:
                raise RemoteProtocolError("the child keeps all that it is lent")

    def gone(self) -> tuple[int, ...]:
        """Return which segments the child should unmap; each is said once."""
        with self._lock:
            gone = tuple(self._gone)
            self._gone.clear()
            return gone

    def view(self, segment: Segment, size: int) -> memoryview:
        """Return the first bytes of a segment; it is given back when they go.

        Raises:
            LimitError: if it can not be mapped. It is not given back then.
        """
        try:
            part = shared_memory.part(segment.map(), 0, size)
        except MemoryError as error:
            raise LimitError(f"no room to read {size:,} bytes") from error
        weakref.finalize(part, self.give, segment).atexit = False
        return shared_memory.view(part).toreadonly()

    def close(self) -> None:
        """Keep nothing any more."""
        with self._lock:
            self._closed = True
            for segment in (*self._free, *self._lent.values()):
                self._drop(segment)
            self._free.clear()
            self._lent.clear()

    def charge(self, segment: Segment, end: int) -> None:
        """Count a segment's first bytes as written.

        Raises:
            LimitError: if the pool has had enough.
        """
        with self._lock:
            more = max(0, end - segment.written)
            if self._most is not None and self._written + more > self._most:
                raise LimitError(
                    f"a session may have {self._most:,} bytes of tensors here, with "
                    "what is on its way; let go of some, or send less at once"
                )
            self._written += more
            segment.written += more

    def _drop(self, segment: Segment) -> None:
        """Close a segment for good. The lock is held."""
        segment.close()
        self._written -= segment.written
        segment.written = 0
        if segment.told:
            self._gone.append(segment.number)


def _no_room(error: OSError) -> LimitError:
    """Return what is said when a file can not be written."""
    return LimitError(f"no room for more on the worker's disk: {error.strerror}")


def places(sizes: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """Return where frames of these sizes begin in a segment, and where they end.

    Both sides ask this. Large ones are aligned as tensors are.
    """
    offsets: list[int] = []
    end = 0
    for size in sizes:
        if size >= _ALIGNED_FROM:
            end = -(-end // _ALIGNMENT) * _ALIGNMENT
        offsets.append(end)
        end += size
    return tuple(offsets), end


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
