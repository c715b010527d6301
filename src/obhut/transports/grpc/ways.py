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
from dataclasses import dataclass
from typing import Protocol

from obhut.errors import TransportError, WorkerNotFoundError
from obhut.protocol.codec import Frame
from obhut.protocol.messages import AnyMessage
from obhut.transports import Transport

SECONDS = 600.0
"""How long a delivery to another worker may take."""

WAYS_EACH = 24
"""Ways to one peer; a worker serves 32 connections of one principal."""


class Way(Transport, Protocol):
    """A way to one worker, that may be beyond mending."""

    @property
    def given_up(self) -> bool:
        """Whether something went wrong that a retry does not mend."""


@dataclass(eq=False, slots=True)
class _Delivery:
    """What a session has under way.

    Attributes:
        session: the session.
        to: the other worker's id.
        way: the way that it takes, None if it has none yet.
        counted: whether it counts among the ways to that worker.
        dropped: whether the session ended, or gave it up.
    """

    session: str
    to: str
    way: Way | None = None
    counted: bool = False
    dropped: bool = False


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
        self._under_way: list[_Delivery] = []
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
        delivery = _Delivery(session, to)
        with self._changed:
            self._under_way.append(delivery)
        answered = False
        try:
            way = self._take(delivery, end)
            # Memory of a child's answer is used again once nobody refers to it.
            steady = [memoryview(frame).toreadonly() for frame in frames]
            pending = way.submit(message, steady)
            reply = pending.result(max(0.0, end - time.monotonic())).message
            answered = True
        except TimeoutError as error:
            raise TransportError(
                f"no answer within {self._seconds:g} seconds"
            ) from error
        finally:
            self._give(delivery, answered)
        return reply

    def drop(self, session: str) -> None:
        """Give up what a session has under way: it ended, or was cancelled."""
        with self._changed:
            dropped = [one for one in self._under_way if one.session == session]
            for one in dropped:
                one.dropped = True
            # Who waits for a way, or makes one, finds it said.
            self._changed.notify_all()
        for one in dropped:
            if one.way is not None:
                one.way.close()

    def close(self) -> None:
        """Close all ways."""
        with self._changed:
            self._closed = True
            ways = [way for free in self._free.values() for way in free]
            ways += [one.way for one in self._under_way if one.way is not None]
            self._free.clear()
            self._changed.notify_all()
        for way in ways:
            way.close()

    def _take(self, delivery: _Delivery, end: float) -> Way:
        """Give a delivery a way that nobody else uses; return it."""
        to = delivery.to
        usable = self._usable(to)
        with self._changed:
            free = self._free.get(to, [])
            stale = [way for way in free if way.given_up or not usable]
            free[:] = [way for way in free if way not in stale]
        for one in stale:
            one.close()
        with self._changed:
            while self._full(to) and not delivery.dropped:
                if not self._changed.wait(end - time.monotonic()):
                    raise TransportError("all ways to that worker are busy")
            self._check(delivery)
            delivery.counted = True
            if self._free.get(to):
                delivery.way = self._free[to].pop()
                return delivery.way
        # Without the lock: who makes it looks at files.
        made = self._make(to)
        if made is None:
            raise WorkerNotFoundError(to, ())
        with self._changed:
            delivery.way = made
            self._check(delivery)
        return made

    def _check(self, delivery: _Delivery) -> None:
        """Go on only for a session that is there. The lock is held.

        Raises:
            TransportError: if it, or the worker, ended meanwhile.
        """
        if self._closed:
            raise TransportError("the worker stops")
        if delivery.dropped:
            raise TransportError("its session ended, or gave it up")

    def _full(self, to: str) -> bool:
        return not self._closed and self._each <= sum(
            one.counted and one.to == to for one in self._under_way
        )

    def _give(self, delivery: _Delivery, sound: bool) -> None:
        """Take a delivery's way back, if it has one, for later if it is sound."""
        way = delivery.way
        with self._changed:
            self._under_way.remove(delivery)
            kept = sound and not self._closed and not delivery.dropped
            if kept and way is not None:
                self._free.setdefault(delivery.to, []).append(way)
            self._changed.notify_all()
        if not kept and way is not None:
            with contextlib.suppress(OSError):
                way.close()
