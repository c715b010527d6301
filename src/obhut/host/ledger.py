"""A ledger on disk: what was decided, and nothing that was released.

Rules:

- An entry is on the disk, with the head that it makes signed, before ``append``
  returns: SQLite, write-ahead log, ``synchronous=FULL``. So is the mark beside it.
- At opening all of it is verified; a ledger that was cut, changed, reordered or put
  back is not used, nor one with a table, trigger or view of somebody else's.
- It begins once: where the mark says that there was one, another is begun only for a
  reason, which it holds from then on. What was there is set aside, not removed.
- Only the owner of the file may read or change it, and one process writes to it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import threading
import time as clock
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from msgspec import UNSET

from obhut.errors import LedgerError, ObhutError, RemoteProtocolError
from obhut.guard import ledger as chain
from obhut.guard import policy as policies
from obhut.guard.audit import Auditor
from obhut.guard.ledger import Beginning, Entry, Head
from obhut.guard.policy import Policy
from obhut.guard.release import Decision, Release

from . import ledger_file, mark
from .mark import Mark, Signer

FILE = "ledger.sqlite"
"""The ledger's name in a worker's folder."""

REPEATABLE = 65_536
"""The latest permits, whose repeats refer to them in place of all their terms."""

_ADVICE = (
    "releases can not be audited without it; put back the last one that there was, "
    f"with its {mark.FILE}, or, once the owners have agreed to begin anew, start once "
    "with: obhut aggregator --begin-anew REASON"
)


class Ledger:
    """A worker's ledger; it may be used by several threads of one process.

    Duty: close it.

    Args:
        path: the file, which is made if there never was one.
        signer: the worker.
        reading: whether it is only read, as it is now; then nothing is made or changed,
            and another process may be writing to it.
        beginning: what a new file begins with that takes another one's place.

    Attributes:
        beginning: how it began.
        head: where it ends.

    Raises:
        LedgerError: if it is not what was written.
        UnsafeFileError: if others could read or change it.
    """

    def __init__(
        self,
        path: Path,
        signer: Signer,
        *,
        reading: bool = False,
        beginning: Beginning | None = None,
    ) -> None:
        self._path = path
        self._signer = signer
        self._lock = threading.Lock()
        self._mark = Mark(path.with_name(mark.FILE), signer)
        self._permits: dict[bytes, int] = {}
        with contextlib.ExitStack() as stack, self._translated():
            # Before the ledger, which may grow meanwhile if it is only read.
            marked = None if beginning is not None else self._mark.read()
            if not os.path.lexists(path) and (reading or marked is not None):
                raise ValueError(f"it is missing{mark.known(marked)}")
            if not reading:
                stack.callback(os.close, ledger_file.hold(path))
            self._database = stack.enter_context(
                contextlib.closing(ledger_file.connect(path, reading))
            )
            fresh = marked is None and not ledger_file.schema(self._database)
            if reading or not fresh:
                self._check_schema(marked)
            if not reading:
                self._database.execute("PRAGMA journal_mode = WAL")
                self._database.execute("PRAGMA synchronous = FULL")
                if fresh:
                    self._make(beginning or _beginning(signer.id))
            self.beginning = self._read_beginning()
            self.head = self._read_head()
            self._policies = self._read_policies()
            found = chain.start(self.beginning).hash
            for entry in self.entries():
                self._check_policies(entry)
                if entry.number > self.head.number - REPEATABLE:
                    self._remember(entry)
                if marked is not None and entry.number == marked.number:
                    found = entry.hash
            if beginning is None:
                mark.check(marked, self.head, found)
            elif self.beginning != beginning:
                raise ValueError("another process began it meanwhile")
            if not reading and marked != self.head:
                self._mark.write(self.head)
            self._closing = stack.pop_all()

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

        The disk is waited for once for all of them.

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
            self._mark.write(head)

    def recall(self, number: int) -> tuple[Head, str]:
        """Return where it ends, and the hash that it had with so many entries.

        The hash is empty if it has fewer.

        Raises:
            LedgerError: if it is not what was written.
        """
        with self._lock, self._translated():
            if not 0 <= number <= self.head.number:
                return self.head, ""
            if number == 0:
                return self.head, chain.start(self.beginning).hash
            row = self._database.execute(
                "SELECT body FROM entries WHERE number = ?", (number,)
            ).fetchone()
            if row is None:
                raise ValueError(f"entry {number:,} is missing")
            return self.head, chain.decode(bytes(row[0])).hash

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
                self.beginning,
                (chain.decode(bytes(body)) for _, body in rows),
                self.head,
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
        self._closing.close()

    def _remember(self, entry: Entry) -> None:
        """Keep where something was permitted, so that a repeat can refer to it."""
        if entry.permits and entry.repeats is UNSET:
            self._permits[chain.subject(entry)] = entry.number
            self._forget()

    def _forget(self) -> None:
        while len(self._permits) > REPEATABLE:
            del self._permits[next(iter(self._permits))]

    # --- the file ---

    def _make(self, beginning: Beginning) -> None:
        """Make the tables of a new file."""
        with self._database:
            self._database.execute("BEGIN IMMEDIATE")
            for table in ledger_file.TABLES:
                self._database.execute(table)
            self._database.execute(
                "INSERT INTO beginning VALUES (1, ?)", (chain.encode(beginning),)
            )
            self._write_head(chain.start(beginning))

    def _check_schema(self, marked: Head | None) -> None:
        """Refuse what obhut did not make: a trigger or a view could do anything."""
        found, expected = ledger_file.schema(self._database), ledger_file.expected()
        if not found:
            raise ValueError(f"it is empty{mark.known(marked)}")
        odd = sorted(f"{kind} {name}" for kind, name, _, _ in found ^ expected)
        if odd:
            raise ValueError(
                f"it has another form than obhut gives a ledger: {', '.join(odd[:3])}"
            )

    def _read_beginning(self) -> Beginning:
        row = self._database.execute("SELECT body FROM beginning").fetchone()
        if row is None:
            raise ValueError("its beginning is missing")
        return msgspec.json.decode(row[0], type=Beginning)

    def _write_head(self, head: Head) -> None:
        self._database.execute(
            "INSERT OR REPLACE INTO head VALUES (1, ?, ?)",
            (chain.encode(head), self._signer.sign(head.signed_bytes())),
        )

    def _read_head(self) -> Head:
        row = self._database.execute("SELECT body, signature FROM head").fetchone()
        if row is None:
            raise ValueError("its head is missing")
        head = msgspec.json.decode(row[0], type=Head)
        if head.ledger != self._signer.id:
            raise ValueError("it is another worker's")
        if not self._signer.verify(head.signed_bytes(), row[1]):
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
        except (sqlite3.Error, ValueError, OSError, RemoteProtocolError) as error:
            if isinstance(error, ObhutError) and not isinstance(
                error, RemoteProtocolError
            ):
                raise
            raise LedgerError(str(self._path), str(error), _ADVICE) from error


def begin_anew(path: Path, signer: Signer, reason: str) -> Ledger:
    """Begin another ledger in the place of one that can not be used.

    What is there is kept beside it, under another name. Duty: close the ledger.

    Args:
        path: the file.
        signer: the worker.
        reason: why, for whoever reads the ledger later.

    Raises:
        LedgerError: if there is nothing wrong with the one that is there, another
            process holds it, or the reason is none.
        UnsafeFileError: if others could read or change it.
    """
    file = str(path)
    if not reason.strip() or len(reason) > _REASON or not reason.isprintable():
        raise LedgerError(
            file,
            f"expected a reason of one line and at most {_REASON} characters",
            "say what became of the former record of releases, and who agreed",
        )
    known = None
    with contextlib.suppress(ValueError):
        known = Mark(path.with_name(mark.FILE), signer).read()
    if os.path.lexists(path):
        os.close(ledger_file.hold(path))
        try:
            Ledger(path, signer, reading=True).close()
        except LedgerError:
            pass
        else:
            why = "it is whole, and goes on"
            raise LedgerError(file, why, "start without --begin-anew")
    ledger_file.set_aside(path)
    beginning = _beginning(signer.id, reason, known.number if known else None)
    return Ledger(path, signer, beginning=beginning)


_REASON = 500
"""Characters of a reason."""


def _beginning(whose: str, reason: str = "", entries: int | None = None) -> Beginning:
    return Beginning(
        ledger=whose,
        token=secrets.token_hex(16),
        time=int(clock.time()),
        reason=reason,
        entries=entries,
    )
