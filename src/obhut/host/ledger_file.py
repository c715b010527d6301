"""A ledger's file: opened by one process, for its owner, in the form that it was made.

Rules:

- One process writes to it, and holds it as long as it may. Others may read meanwhile,
  and see it as it was when they began.
- What obhut did not make is refused before anything is read: a view or a trigger could
  answer in a table's place, or do more than was asked.
- Nobody but its owner may read or change it; no link is followed.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import itertools
import os
import sqlite3
import stat
from pathlib import Path

from obhut.errors import LedgerError, UnsafeFileError

TABLES = (
    "CREATE TABLE entries (number INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT",
    "CREATE TABLE beginning (one INTEGER PRIMARY KEY CHECK (one = 1), body BLOB NOT "
    "NULL) STRICT",
    "CREATE TABLE policies (digest TEXT PRIMARY KEY, body BLOB NOT NULL) STRICT",
    "CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), body BLOB NOT NULL, "
    "signature BLOB NOT NULL) STRICT",
)
"""What makes an empty ledger."""

_ONE = (
    "one aggregator serves from a folder; stop the other one, or give this one a "
    "folder and an identity of its own"
)
"""What to do about two."""


def set_aside(path: Path) -> None:
    """Give a ledger that can not be used another name, with what SQLite has of it."""
    for number in itertools.count(1):
        aside = path.with_name(f"{path.stem}-before-{number}{path.suffix}")
        if not any(os.path.lexists(f"{aside}{end}") for end in _ENDS):
            break
    for end in _ENDS:
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{path}{end}", f"{aside}{end}")


_ENDS = ("", "-wal", "-shm")
"""What the names of a database's files end with."""


def hold(path: Path) -> int:
    """Return the handle of a ledger that no other process holds meanwhile.

    The file is made if there is none.

    Raises:
        LedgerError: if another holds it.
        UnsafeFileError: if others could read or change it.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        handle = os.open(path, flags, 0o600)
    except OSError as error:
        why = "it is a link" if path.is_symlink() else error.strerror
        raise UnsafeFileError(str(path), why or "it can not be opened") from error
    try:
        _check(path, os.fstat(handle))
        # SQLite's own locks are of another kind, and last for a step only.
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            why = "another process holds it"
            raise LedgerError(str(path), why, _ONE) from error
        raise
    return handle


def _check(path: Path, status: os.stat_result) -> None:
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        raise UnsafeFileError(str(path), "it is not a file of yours")
    if mode & 0o077:
        raise UnsafeFileError(
            str(path),
            f"others may read or change it (mode {mode:04o}); run: chmod 0600 {path}",
        )


def connect(path: Path, reading: bool) -> sqlite3.Connection:
    """Return a connection; of a ledger that is only read, as it is at this moment."""
    name = path.absolute().as_uri()
    if reading:
        _check(path, path.lstat())
        # Without a log nobody writes to it, and none has to be made.
        held = os.path.lexists(f"{path}-wal")
        name += "?mode=ro" if held else "?mode=ro&immutable=1"
    database = sqlite3.connect(
        name, isolation_level=None, check_same_thread=False, uri=True
    )
    try:
        database.execute("PRAGMA trusted_schema = OFF")
        if reading:
            database.execute("BEGIN")
            schema(database)  # from the first read on it stays as it is
    except BaseException:
        database.close()
        raise
    return database


def schema(database: sqlite3.Connection) -> set[tuple[str, str, str, str | None]]:
    """Return all that a database holds: kind, name, table and what made it."""
    rows = database.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema")
    return set(rows.fetchall())


@functools.cache
def expected() -> frozenset[tuple[str, str, str, str | None]]:
    """Return what a ledger holds, as SQLite itself says it of one that is made anew."""
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        for table in TABLES:
            database.execute(table)
        return frozenset(schema(database))
