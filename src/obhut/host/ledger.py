"""A ledger on disk: what was decided, and nothing that was released.

Rules:

- An entry is on the disk, with the head that it makes signed, before ``append``
  returns: SQLite, write-ahead log, ``synchronous=FULL``.
- At opening all of it is verified; a ledger that was cut, changed or reordered is not
  used.
- Only the owner of the file may read or change it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
from msgspec import UNSET

from obhut.errors import LedgerError, RemoteProtocolError, UnsafeFileError
from obhut.guard import ledger as chain
from obhut.guard import policy as policies
from obhut.guard.audit import Auditor
from obhut.guard.ledger import Entry, Head
from obhut.guard.policy import Policy
from obhut.guard.release import Decision, Release

FILE = "ledger.sqlite"
"""The ledger's name in a worker's folder."""

REPEATABLE = 65_536
"""The latest permits, whose repeats refer to them in place of all their terms."""

_ADVICE = (
    "releases can not be audited without it; put back the file as it was, or ask the "
    "owners before you begin a new one"
)

_TABLES = (
    "CREATE TABLE entries (number INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT",
    "CREATE TABLE policies (digest TEXT PRIMARY KEY, body BLOB NOT NULL) STRICT",
    "CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), body BLOB NOT NULL, "
    "signature BLOB NOT NULL) STRICT",
)


class Ledger:
    """A worker's ledger; it may be used by several threads of one process.

    Duty: close it.

    Args:
        path: the file, which is made if there is none.
        whose: the id of the worker.
        sign: signs bytes with the worker's key.
        verify: tells whether a signature of bytes is the worker's.

    Raises:
        LedgerError: if it is not what was written.
        UnsafeFileError: if others could read or change it.
    """

    def __init__(
        self,
        path: Path,
        whose: str,
        sign: Callable[[bytes], bytes],
        verify: Callable[[bytes, bytes], bool],
    ) -> None:
        self._path = path
        self._whose = whose
        self._sign = sign
        self._verify = verify
        self._lock = threading.Lock()
        self._open()
        try:
            with self._translated():
                self._prepare()
                self.head = self._read_head()
                self._policies = self._read_policies()
                self._permits: dict[bytes, int] = {}
                for entry in self.entries():
                    self._check_policies(entry)
                    if entry.number > self.head.number - REPEATABLE:
                        self._remember(entry)
        except BaseException:
            self.close()
            raise

    def append(self, release: Release, decision: Decision, time: int) -> None:
        """Write a decision down; when this returns, it will not be lost.

        Args:
            release: what was asked for, with the policies that came with it.
            decision: what was decided.
            time: the present, in seconds since 1970.

        Raises:
            LedgerError: if it could not be written; then nothing may leave.
        """
        self.extend([(release, decision)], time)

    def extend(self, decided: Sequence[tuple[Release, Decision]], time: int) -> None:
        """Write decisions down in order, all or none, as ``append`` does one.

        The disk is waited for once.

        Raises:
            LedgerError: if they could not be written; then nothing may leave.
        """
        drafts = [chain.draft(*one, time) for one in decided]
        subjects = [chain.subject(one) if one.permits else b"" for one in drafts]
        with self._lock, self._translated():
            if self._read_head() != self.head:
                raise ValueError("another process has written to it")
            head, fresh = self.head, {}
            permits: dict[bytes, int] = {}
            entries = []
            for (release, _), draft, subject in zip(
                decided, drafts, subjects, strict=True
            ):
                before = permits.get(subject) or self._permits.get(subject)
                entry = chain.placed(head, draft, before)
                head = chain.advanced(head, entry)
                if entry.permits and before is None:
                    permits[subject] = entry.number
                entries.append((entry.number, chain.encode(entry)))
                for whose, digest in entry.policies.items():
                    if digest not in self._policies:
                        fresh[digest] = release.policies[whose]
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")
                self._database.executemany(
                    "INSERT INTO policies VALUES (?, ?)",
                    [(digest, policies.encode(one)) for digest, one in fresh.items()],
                )
                self._database.executemany("INSERT INTO entries VALUES (?, ?)", entries)
                self._write_head(head)
            self.head = head
            self._policies.update(fresh)
            self._permits.update(permits)
            self._forget()

    def entries(self) -> Iterator[Entry]:
        """Yield all entries, verified.

        Raises:
            LedgerError: at the first that is not what was written.
        """
        with self._translated():
            rows = self._database.execute(
                "SELECT number, body FROM entries WHERE number <= ? ORDER BY number",
                (2**63 - 1,),
            )
            yield from chain.verified(
                (chain.decode(bytes(body)) for _, body in rows), self.head
            )

    def replay(self, auditor: Auditor) -> None:
        """Tell an auditor all that was decided.

        Raises:
            LedgerError: if it is not what was written.
        """
        for entry in self.entries():
            if entry.repeats is UNSET:  # what was said before tells nothing more
                auditor.record(entry.release(self._policies), entry.decision())

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _remember(self, entry: Entry) -> None:
        """Keep where something was permitted, so that a repeat can refer to it."""
        if entry.permits and entry.repeats is UNSET:
            self._permits[chain.subject(entry)] = entry.number
            self._forget()

    def _forget(self) -> None:
        while len(self._permits) > REPEATABLE:
            del self._permits[next(iter(self._permits))]

    # --- the file ---

    def _open(self) -> None:
        """Open the file, which nobody else may read or change."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            handle = os.open(self._path, flags, 0o600)
        except OSError as error:
            why = "it is a link" if self._path.is_symlink() else error.strerror
            raise UnsafeFileError(
                str(self._path), why or "it can not be opened"
            ) from error
        try:
            status = os.fstat(handle)
        finally:
            os.close(handle)
        mode = stat.S_IMODE(status.st_mode)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise UnsafeFileError(str(self._path), "it is not a file of yours")
        if mode & 0o077:
            raise UnsafeFileError(
                str(self._path),
                f"others may read or change it (mode {mode:04o}); "
                f"run: chmod 0600 {self._path}",
            )
        self._database = sqlite3.connect(
            self._path, isolation_level=None, check_same_thread=False
        )

    def _prepare(self) -> None:
        """Make the tables of a new file, and have every commit reach the disk."""
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute("PRAGMA trusted_schema = OFF")
        (count,) = self._database.execute(
            "SELECT count(*) FROM sqlite_schema"
        ).fetchone()
        if count:
            return
        with self._database:
            self._database.execute("BEGIN IMMEDIATE")
            for table in _TABLES:
                self._database.execute(table)
            self._write_head(chain.start(self._whose))

    def _write_head(self, head: Head) -> None:
        self._database.execute(
            "INSERT OR REPLACE INTO head VALUES (1, ?, ?)",
            (chain.encode(head), self._sign(head.signed_bytes())),
        )

    def _read_head(self) -> Head:
        row = self._database.execute("SELECT body, signature FROM head").fetchone()
        if row is None:
            raise ValueError("its head is missing")
        head = msgspec.json.decode(row[0], type=Head)
        if head.ledger != self._whose:
            raise ValueError("it is another worker's")
        if not self._verify(head.signed_bytes(), row[1]):
            raise ValueError("the signature of its head is not this worker's")
        return head

    def _read_policies(self) -> dict[str, Policy]:
        known: dict[str, Policy] = {}
        for digest, body in self._database.execute("SELECT digest, body FROM policies"):
            policy = policies.decode(body)
            if policies.digest(policy) != digest:
                raise ValueError("a policy was changed")
            known[digest] = policy
        return known

    def _check_policies(self, entry: Entry) -> None:
        if not self._policies.keys() >= set(entry.policies.values()):
            raise ValueError(f"a policy of entry {entry.number:,} is missing")

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError, RemoteProtocolError) as error:
            if isinstance(error, LedgerError):
                raise
            raise LedgerError(str(self._path), str(error), _ADVICE) from error
