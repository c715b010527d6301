"""Files without a name that a parent writes for a child to read, to spare memory.

Rules:

- A child gets another descriptor than the parent's, for reading only. With it, it can
  neither write nor change the size, and shares no position.
- Nobody shortens a file, so that reading it never ends in ``SIGBUS``. Its room on the
  disk is free when nobody has it open or mapped.
- What was written does not stay in memory: the disk gets it piece by piece, and whoever
  writes waits for it.

Leak: what was in a file stays on the disk until something else is written there.

Source: sync_file_range(2).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from obhut.host.unnamed import read_only, unnamed

from .libc import call

PIECE = 2**22
"""Bytes that are written before the disk is to have them; twice that may wait."""

_START, _DONE = 2, 1 | 2 | 4


class SpoolFile:
    """A file without a name, of a fixed size.

    Duty: close it.

    Args:
        folder: the folder on whose disk it is.
        size: bytes that it has; they take room as they are written.

    Attributes:
        fd: what the parent writes through.
        reader: what a child gets.

    Raises:
        OSError: if it can not be made.
    """

    __slots__ = ("_end", "_fresh", "_start", "_under_way", "fd", "reader")

    def __init__(self, folder: Path, size: int) -> None:
        self.reader = -1
        self.fd = unnamed(folder)
        try:
            os.ftruncate(self.fd, size)
            self.reader = read_only(self.fd)
        except BaseException:
            self.close()
            raise
        self._under_way: tuple[int, int] | None = None
        self._fresh = 0
        self._start, self._end = 2**62, 0

    def wrote(self, start: int, end: int) -> None:
        """Note that bytes were written, and let the disk have them.

        Raises:
            OSError: if the disk does not take them.
        """
        self._fresh += end - start
        # One range from the first fresh byte to the last.
        self._start, self._end = min(self._start, start), max(self._end, end)
        if self._fresh >= PIECE:
            self._wait()
            self._begin()

    def finish(self) -> None:
        """Wait until the disk has all of it, and memory none.

        Raises:
            OSError: if the disk does not take it.
        """
        self._wait()
        if self._fresh:
            self._begin()
            self._wait()
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        # The C library keeps what the pieces were in on their way here.
        with contextlib.suppress(AttributeError):  # only glibc has it, and needs it
            call("malloc_trim", 0)

    def close(self) -> None:
        """Let go of it."""
        for fd in (self.fd, self.reader):
            if fd >= 0:
                os.close(fd)
        self.fd = self.reader = -1

    def _begin(self) -> None:
        """Let the disk write what it does not have yet."""
        self._under_way = self._start, self._end - self._start
        self._fresh, self._start, self._end = 0, 2**62, 0
        call("sync_file_range", self.fd, *self._under_way, _START)

    def _wait(self) -> None:
        """Wait for what is under way, and keep no copy in memory."""
        if self._under_way is not None:
            call("sync_file_range", self.fd, *self._under_way, _DONE)
            os.posix_fadvise(self.fd, *self._under_way, os.POSIX_FADV_DONTNEED)
            self._under_way = None
