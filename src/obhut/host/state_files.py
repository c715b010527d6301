"""Files with values that stay at an owner between sessions.

::

    states = StatesOnDisk(folder / FOLDER, quota, guarded=True)
    states.delete(one for one in states.listed() if one.stored.state.name == "run 7")

Rules:

- A file is whole or not there, and only the worker's user may read it.
- A requester's files are in a folder of their own. A name that a requester chose is no
  part of a path: its hash is.
- What is deleted is gone for a worker that serves meanwhile, too. What it has begun to
  read it reads to the end.
"""

from __future__ import annotations

import logging
import mmap
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from obhut.errors import InternalError, UnsafeFileError
from obhut.protocol.codec import Frame

from . import files
from .states import Entry, States, Stored, blocks, opened

FOLDER = "state"
"""The folder's name in a worker's own."""

_LOG = logging.getLogger("obhut.worker")

_UNSEEN = (
    "what is stored can not be looked up; the worker's owner learns why from its log"
)

_FILE = re.compile(r"([0-9a-f]{32})-([0-9a-f]{16})-([0-9]{1,20})")


class Listed(NamedTuple):
    """A version as its owner sees it: no values.

    Attributes:
        path: its file.
        stored: what is written before the values.
        size: bytes of the file.
    """

    path: Path
    stored: Stored
    size: int


class StatesOnDisk(States):
    """What is stored in files that only the worker's user may read.

    Args:
        folder: where they are; made when something is stored.
        quota: as for ``States``.
        guarded: likewise.
        clock: likewise.
    """

    def __init__(
        self,
        folder: Path,
        quota: int | None = None,
        *,
        guarded: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(quota, guarded=guarded, clock=clock)
        self._folder = folder

    def listed(self) -> list[Listed]:
        """Return all that is there, by requester, name and age.

        Raises:
            UnsafeFileError: if others could read or change a file, or it is none.
        """
        found = []
        for path in sorted(self._folder.glob("*/*")):
            if _FILE.fullmatch(path.name):
                try:
                    stored, _ = opened(_mapped(path))
                except InternalError as error:
                    raise UnsafeFileError(str(path), f"{error}; remove it") from error
                found.append(Listed(path, stored, path.stat().st_size))
        return sorted(
            found,
            key=lambda one: (
                one.stored.requester,
                one.stored.state.name,
                one.path.name,
            ),
        )

    def delete(self, listed: Iterable[Listed]) -> None:
        """Delete versions. A worker that serves meanwhile takes it in."""
        for one in listed:
            one.path.unlink(missing_ok=True)

    def _entries(self, requester: str) -> list[Entry]:
        found = []
        try:
            with os.scandir(self._of(requester)) as there:
                for one in there:
                    named = _FILE.fullmatch(one.name)
                    if named is None:
                        continue
                    try:
                        size = blocks(one.stat(follow_symlinks=False).st_size)
                    except FileNotFoundError:
                        continue  # deleted just now
                    key, order, version = named.groups()
                    found.append(Entry(key, int(order, 16), int(version), size))
        except FileNotFoundError:
            pass
        except OSError as error:
            _LOG.error("what is stored can not be looked up: %s", error)
            raise InternalError(_UNSEEN) from error
        return found

    def _put(
        self, requester: str, entry: Entry, header: bytes, frames: Sequence[Frame]
    ) -> None:
        path = self._path(requester, entry)
        files.make_folder(path.parent)
        files.write(path, (header, *frames), replace=True)

    def _get(self, requester: str, entry: Entry) -> memoryview:
        return _mapped(self._path(requester, entry))

    def _remove(self, requester: str, entry: Entry) -> None:
        self._path(requester, entry).unlink(missing_ok=True)

    def _path(self, requester: str, entry: Entry) -> Path:
        name = f"{entry.key}-{entry.order:016x}-{entry.version}"
        return self._of(requester) / name

    def _of(self, requester: str) -> Path:
        if not requester.isalnum():
            raise InternalError("no requester has such an id")
        return self._folder / requester


def _mapped(path: Path) -> memoryview:
    """Return a file's content, whose pages are read when they are looked at.

    Raises:
        FileNotFoundError: if it is gone.
        UnsafeFileError: if others could read or change it.
    """
    with files.opened(path, secret=True) as handle:
        if not os.fstat(handle).st_size:
            raise UnsafeFileError(str(path), "it is empty")
        return memoryview(mmap.mmap(handle, 0, access=mmap.ACCESS_READ))
