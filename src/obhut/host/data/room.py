"""Where the bytes of a data set go: into memory, or onto the worker's disk.

::

    space = Space(memory=2**30, folder=folder)   # of a worker
    with space.entered(declaration.keep):        # one data set
        room = present()                         # whoever writes its bytes
        room.take(size)                          # False: there is no more memory
        room.file()                              # a file on the disk instead

Rules:

- By default a data set takes as much memory as a session may hold; what is larger goes
  to the disk, also if that shows only while it is read.
- On the disk it lies in files without a name. They are read through the system's own
  copies of their pages, which it lets go of when memory is short.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from obhut.host.unnamed import unnamed

Keep: TypeAlias = Literal["memory", "disk"] | None

FOLDER = "data"
"""A folder, or another disk that is mounted there, in the worker's own."""


class DiskError(OSError):
    """What a data set needs of a disk is not there.

    Attributes:
        folder: on whose disk.
        why: the system's words.
    """

    def __init__(self, folder: Path, error: OSError) -> None:
        super().__init__(error.errno, error.strerror)
        self.folder = folder
        self.why = error.strerror or "unknown"


class Room:
    """What one data set takes.

    Args:
        memory: bytes of memory that it may take; None for no limit.
        folder: the worker's.
    """

    def __init__(self, memory: int | None, folder: Path) -> None:
        self._left = memory
        self._folder = folder

    def take(self, size: int) -> bool:
        """Take so many bytes of memory, if they are left; tell whether they were."""
        if self._left is None:
            return True
        if size > self._left:
            return False
        self._left -= size
        return True

    def give_back(self, size: int) -> None:
        """Let others have so many bytes of memory."""
        if self._left is not None:
            self._left += size

    def file(self) -> int:
        """Return a new file on the disk, to read and write.

        Raises:
            DiskError: if it can not be made.
        """
        with self.named():
            return unnamed(self._place)

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Let errors say which disk it is.

        Raises:
            DiskError: for any error of the system's.
        """
        try:
            yield
        except OSError as error:
            raise DiskError(self._folder, error) from error

    @property
    def _place(self) -> Path:
        """The folder that is there: nothing is made for files without a name."""
        own = self._folder.absolute()
        ways = (own / FOLDER, own, *own.parents)
        return next(one for one in ways if one.is_dir())


@dataclass(frozen=True, slots=True)
class Space:
    """What a worker has for each of its data sets.

    Attributes:
        memory: bytes of memory; None for no limit.
        folder: the worker's, on whose disk the rest goes.
    """

    memory: int | None = None
    folder: Path = Path()

    @contextlib.contextmanager
    def entered(self, keep: Keep = None) -> Iterator[None]:
        """Let what is written within go where its owner wants it."""
        memory = {"memory": None, "disk": 0, None: self.memory}[keep]
        token = _PRESENT.set(Room(memory, self.folder))
        try:
            yield
        finally:
            _PRESENT.reset(token)


IN_MEMORY = Space()
"""All of it in memory."""

_PRESENT: ContextVar[Room | None] = ContextVar("obhut-room", default=None)


def present() -> Room:
    """Return the room of the data set that is being read; outside of any, memory."""
    return _PRESENT.get() or Room(None, Path())
