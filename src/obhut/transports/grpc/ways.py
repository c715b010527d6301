"""A worker's ways to its peers, for what its sessions deliver.

Rules:

- A way carries one delivery at a time, so that a session whose target is busy holds
  up no other; one that is free is used again.
- A way on which a delivery was not answered, in time or at all, is not used again,
  nor is one whose session ended meanwhile: what is under way on it is given up.
- Those of one peer are fewer than the connections that a worker serves for one
  principal. Who finds none free waits.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from obhut.errors import TransportError, WorkerNotFoundError
from obhut.protocol.codec import Frame
from obhut.protocol.messages import AnyMessage
from obhut.transports import Pending, Transport

SECONDS = 600.0
"""How long a delivery to another worker may take."""

WAYS_EACH = 24
"""Ways to one peer; a worker serves 32 connections of one principal."""


class Way(Transport, Protocol):
    """A way to one worker, that may be beyond mending."""

    def submit(
        self,
        message: AnyMessage,
        frames: Sequence[Frame] = (),
        *,
        steady: bool = False,
    ) -> Pending:
        """Send a message, without a copy where the frames' memory is ``steady``."""

    @property
    def given_up(self) -> bool:
        """Whether something went wrong that a retry does not mend."""


class Ways:
    """Ways to other workers, made as they are needed.

    Duty: close it.

    Args:
        make: returns a new way to a worker, by its id; None where there is none.
        usable: tells whether a free way to a worker may still be used.
        seconds: how long a delivery may take.
        each: ways to one peer.
    """

    def __init__(
        self,
        make: Callable[[str], Way | None],
        usable: Callable[[str], bool] = lambda to: True,
        *,
        seconds: float = SECONDS,
        each: int = WAYS_EACH,
    ) -> None:
        self._make = make
        self._usable = usable
        self._seconds = seconds
        self._each = each
        self._changed = threading.Condition()
        self._free: dict[str, list[Way]] = {}
        self._taken: list[tuple[str, str, Way | None]] = []
        self._closed = False

    def carry(
        self, session: str, to: str, message: AnyMessage, frames: Sequence[Frame] = ()
    ) -> AnyMessage:
        """Deliver something and return the answer.

        Leak: what it raises may name addresses; it is for the worker's owner.

        Args:
            session: the session that delivers.
            to: the other worker's id.
            message: the delivery.
            frames: its frames.

        Raises:
            WorkerNotFoundError: if there is no way to such a worker.
            ObhutError: if the worker could not be reached, or not in time.
        """
        end = time.monotonic() + self._seconds
        way = self._take(session, to, end)
        answered = False
        try:
            # Memory of a child's answer is used again once nobody refers to it.
            pending = way.submit(message, frames, steady=True)
            reply = pending.result(max(0.0, end - time.monotonic())).message
            answered = True
        except TimeoutError as error:
            raise TransportError(
                f"no answer within {self._seconds:g} seconds"
            ) from error
        finally:
            self._give(session, to, way, answered)
        return reply

    def drop(self, session: str) -> None:
        """Give up what a session that ended has under way."""
        with self._changed:
            ways = [way for name, _, way in self._taken if name == session]
        for way in ways:
            if way is not None:
                way.close()

    def close(self) -> None:
        """Close all ways."""
        with self._changed:
            self._closed = True
            ways = [way for free in self._free.values() for way in free]
            ways += [way for _, _, way in self._taken if way is not None]
            self._free.clear()
            self._changed.notify_all()
        for way in ways:
            way.close()

    def _take(self, session: str, to: str, end: float) -> Way:
        """Return a way that nobody else uses."""
        place: tuple[str, str, Way | None] = (session, to, None)
        usable = self._usable(to)
        with self._changed:
            free = self._free.get(to, [])
            stale = [way for way in free if way.given_up or not usable]
            free[:] = [way for way in free if way not in stale]
        for one in stale:
            one.close()
        with self._changed:
            while self._full(to):
                if not self._changed.wait(end - time.monotonic()):
                    raise TransportError("all ways to that worker are busy")
            if self._closed:
                raise TransportError("the worker stops")
            if self._free.get(to):
                way = self._free[to].pop()
                self._taken.append((session, to, way))
                return way
            self._taken.append(place)
        # Without the lock: who makes it looks at files.
        made: Way | None = None
        try:
            made = self._make(to)
        finally:
            with self._changed:
                self._taken.remove(place)
                if made is not None:
                    self._taken.append((session, to, made))
                self._changed.notify_all()
        if made is None:
            raise WorkerNotFoundError(to, ())
        return made

    def _full(self, to: str) -> bool:
        return not self._closed and self._each <= sum(
            there == to for _, there, _ in self._taken
        )

    def _give(self, session: str, to: str, way: Way, sound: bool) -> None:
        """Take a way back, for later if it is sound."""
        with self._changed:
            self._taken.remove((session, to, way))
            kept = sound and not self._closed
            if kept:
                self._free.setdefault(to, []).append(way)
            self._changed.notify_all()
        if not kept:
            with contextlib.suppress(OSError):
                way.close()
