"""The last head that an owner saw of each aggregator's record of releases.

::

    owner                                        aggregator
    Deliver, header only, which saw n entries ──▶
      ◀── Recalled: it has m entries and ends so; with n entries it ended so
    compares with what it saw, keeps m and its hash
    Deliver, with its bytes ────────────────────▶

Rules:

- The header of each delivery asks, and it is asked once more when a session ends that
  delivered, so that what was released of it is seen.
- No byte goes to a record that does not go on from the one that was seen.
- What is seen is kept before anything is delivered. Where nothing was seen yet, or the
  file is lost, what comes first is taken, and the log says so.

What it shows: an aggregator whose record was emptied, begun anew, put back from a copy
(with its mark) or led on in two places with one key is noticed by every owner who saw
more of it, or the other one. What it does not: a copy that is put back and is not older
than what any owner saw last; an aggregator whose program lies, and answers each owner
from a record of its own. An owner does not see what the entries say.
"""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
from msgspec import Struct

from obhut.errors import LedgerError, RemoteProtocolError
from obhut.protocol.messages import Recalled

from . import files

FOLDER = "heads"
"""The folder's name in a worker's own."""

_HASH = 64
"""Letters of a hash: SHA-256 in hexadecimal."""


class Seen(Struct, frozen=True, forbid_unknown_fields=True):
    """Where a record ended.

    Attributes:
        number: how many entries it had.
        hash: the last one's, or that of its beginning.
    """

    number: int
    hash: str


class Heads:
    """What was seen of all aggregators.

    Args:
        folder: where it is kept, in a file each; made when something is.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def read(self, aggregator: str) -> Seen | None:
        """Return what was seen last of an aggregator; None if nothing was.

        Args:
            aggregator: its id. Duty: the caller knows that it is one.

        Raises:
            LedgerError: if the file is none that was written here.
            UnsafeFileError: if others could change it.
        """
        path = self._path(aggregator)
        try:
            return msgspec.json.decode(files.read(path), type=Seen)
        except FileNotFoundError:
            return None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise LedgerError(str(path), "it can not be read", _ADVICE) from error

    def follow(self, aggregator: str, asked: Seen | None, told: Recalled) -> None:
        """Keep what an aggregator says, if it goes on from what was seen.

        Args:
            aggregator: its id.
            asked: what had been seen when it was asked.
            told: what it says, of the number that had been seen.

        Raises:
            LedgerError: if it does not go on from there; nothing may be delivered.
            RemoteProtocolError: if it is no answer.
        """
        if (
            told.number < 0
            or len(told.hash) != _HASH
            or len(told.then) not in (0, _HASH)
        ):
            raise RemoteProtocolError("expected a number of entries and hashes of them")
        path = self._path(aggregator)
        if asked is not None:
            expected = f"expected a record of releases that goes on from {_said(asked)}"
            came = _said(Seen(told.number, told.hash))
            if told.number < asked.number:
                raise LedgerError(
                    str(path), f"{expected}; it ends with {came}", _ADVICE
                )
            at_hand = told.hash if told.number == asked.number else told.then
            if told.then != asked.hash or at_hand != asked.hash:
                raise LedgerError(
                    str(path),
                    f"{expected}; there it is another, and ends with {came}",
                    _ADVICE,
                )
        with self._lock:
            known = self.read(aggregator)
            # Another session may have seen more meanwhile.
            if known is None or known.number < told.number:
                files.make_folder(self._folder)
                content = msgspec.json.encode(Seen(told.number, told.hash))
                files.write(path, content + b"\n", replace=True)

    def _path(self, aggregator: str) -> Path:
        if not aggregator.isalnum():
            raise LedgerError(
                str(self._folder), "no aggregator has such an id", _ADVICE
            )
        return self._folder / f"{aggregator}.json"


def _said(seen: Seen) -> str:
    return f"entry {seen.number:,} ({seen.hash[:16]}…)"


_ADVICE = (
    "nothing is delivered. Ask its operator whether the record was lost and begun "
    "anew, an older copy was put back, or a second one serves with the same key; what "
    "was released before may not be counted there. If all owners agree to go on, "
    "remove this file: what the worker sees next is then taken"
)
