"""Ways to aggregators that are asked first whether their record of releases goes on.

Rules:

- Nothing is carried to one whose record does not go on from what was seen: ``Heads``
  says what that shows.
- When a session ends that delivered, its aggregators are asked once more, by a thread
  of its own; that nobody answers then is no fault.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from obhut.errors import LedgerError, ObhutError, RemoteProtocolError
from obhut.host.heads import Heads
from obhut.protocol.codec import Frame
from obhut.protocol.messages import AnyMessage, Recall, Recalled, Refused

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
        refused = self._look(session, to)
        if refused is not None:
            return refused
        with self._lock:
            self._delivered.setdefault(session, set()).add(to)
        return self._ways.carry(session, to, message, frames)

    def drop(self, session: str) -> None:
        """Give up what a session has under way, and look what became of the rest."""
        self._ways.drop(session)
        with self._lock:
            left = self._delivered.pop(session, set())
        for to in left:
            threading.Thread(
                target=self._look_again, args=(to,), name=LOOKING, daemon=True
            ).start()

    def _look(self, session: str, to: str) -> Refused | None:
        """Ask an aggregator how far it came; return its answer if it refuses to say."""
        seen = self._heads.read(to)
        told = self._ways.carry(session, to, Recall(seen.number if seen else 0), ())
        if isinstance(told, Refused):
            return told
        if not isinstance(told, Recalled):
            raise RemoteProtocolError("expected to be told of a record of releases")
        self._heads.follow(to, seen, told)
        if seen is None:
            self._log(
                f"{self._called(to)}: nothing was seen of its record of releases "
                f"before; it has {told.number:,} entries, and has to go on from there"
            )
        return None

    def _look_again(self, to: str) -> None:
        try:
            self._look("", to)
        except LedgerError as error:
            self._log(f"{self._called(to)}: {error}")
        except (ObhutError, OSError):
            pass  # it is asked before the next delivery
