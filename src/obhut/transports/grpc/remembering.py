"""Ways to aggregators that are asked first whether their record of releases goes on.

Rules:

- The header of a delivery asks; where the record does not go on from what was seen, no
  byte follows. ``Heads`` says what that shows.
- When a session ends that delivered, its aggregators are asked once more, by a thread
  of its own; that nobody answers then is no fault.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence

from msgspec import structs

from obhut.errors import LedgerError, ObhutError, RemoteProtocolError
from obhut.host.heads import Heads, Seen
from obhut.protocol.codec import Frame
from obhut.protocol.messages import AnyMessage, Deliver, Done, Recall, Recalled, Refused

from .node import Ways

LOOKING = "obhut-heads"
"""The name of the threads that ask once more."""


class Remembering:
    """An owner's ways to the aggregators that its policy names.

    Args:
        ways: the ways themselves.
        heads: what was seen of their records.
        called: returns what the owner calls somebody, by id.
        log: takes a line for the owner.
    """

    def __init__(
        self,
        ways: Ways,
        heads: Heads,
        called: Callable[[str], str],
        log: Callable[[str], None],
    ) -> None:
        self._ways = ways
        self._heads = heads
        self._called = called
        self._log = log
        self._lock = threading.Lock()
        self._delivered: dict[str, set[str]] = {}

    def carry(
        self, session: str, to: str, message: AnyMessage, frames: Sequence[Frame]
    ) -> AnyMessage:
        """Deliver something to an aggregator and return the answer.

        Raises:
            LedgerError: if its record does not go on from what was seen.
            ObhutError: if it is not known or could not be reached.
        """
        if not isinstance(message, Deliver) or frames or message.spoilt:
            return self._ways.carry(session, to, message, frames)
        seen = self._heads.read(to)
        header = structs.replace(message, seen=seen.number if seen else 0)
        told = self._ways.carry(session, to, header, ())
        if isinstance(told, Refused):
            return told
        try:
            self._follow(to, seen, told)
        except ObhutError:
            with contextlib.suppress(ObhutError):
                self._ways.carry("", to, structs.replace(message, spoilt=True), ())
            raise
        with self._lock:
            self._delivered.setdefault(session, set()).add(to)
        return Done()

    def drop(self, session: str) -> None:
        """Give up what a session has under way, and look what became of the rest."""
        self._ways.drop(session)
        with self._lock:
            left = self._delivered.pop(session, set())
        for to in left:
            threading.Thread(
                target=self._look_again, args=(to,), name=LOOKING, daemon=True
            ).start()

    def _follow(self, to: str, seen: Seen | None, told: AnyMessage) -> None:
        """Take in how far an aggregator's record came.

        Raises:
            LedgerError: if it does not go on from what was seen.
            RemoteProtocolError: if that is not what it told.
        """
        if not isinstance(told, Recalled):
            raise RemoteProtocolError("expected to be told of a record of releases")
        self._heads.follow(to, seen, told)
        if seen is None:
            self._log(
                f"{self._called(to)}: nothing was seen of its record of releases "
                f"before; it has {told.number:,} entries, and has to go on from there"
            )

    def _look_again(self, to: str) -> None:
        try:
            seen = self._heads.read(to)
            told = self._ways.carry("", to, Recall(seen.number if seen else 0), ())
            self._follow(to, seen, told)
        except LedgerError as error:
            self._log(f"{self._called(to)}: {error}")
        except (ObhutError, OSError):
            pass  # it is asked before the next delivery
