"""Bytes of deliveries on their way, once the other worker has accepted the header.

::

    departures.promise("session", accepted)      # the bytes are still to be computed
    departures.add("session", deliveries)        # they are there; returns at once
    departures.wait("session", until)            # before it delivers more
    departures.remind()                          # every few seconds
    departures.finish(seconds)                   # before the worker stops

Rules:

- A session's deliveries go in order, by a thread of their own, and outlive the session:
  who was told that something moved need not stay.
- The other worker is told now and then that what was promised, or waits here, is still
  to come.
- What can not be delivered, for whatever reason, is said to be spoilt, if that can be
  said; only this worker's owner is told why.
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from msgspec import structs

from obhut.errors import ObhutError
from obhut.protocol.codec import Frame
from obhut.protocol.messages import Deliver, Refused
from obhut.worker.effects import Delivery

REMIND_SECONDS = 20.0
"""How often another worker is told that something is still to come."""


class Carry(Protocol):
    """Takes a message of a delivery to its worker."""

    def __call__(
        self, to: str, message: Deliver, frames: tuple[Frame, ...]
    ) -> Refused | None:
        """Return why it was refused, or None.

        Raises:
            ObhutError: if the worker could not be reached.
        """


class Departures:
    """What a worker's sessions have still to deliver.

    Args:
        carry: takes a message there.
        log: takes a line for the worker's owner: whom it was for, and what went wrong.
        clock: the time in seconds.
    """

    def __init__(
        self,
        carry: Carry,
        log: Callable[[str, str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._carry = carry
        self._log = log
        self._clock = clock
        self._changed = threading.Condition()
        self._queues: dict[str, collections.deque[Delivery]] = {}
        self._promised: dict[str, list[Delivery]] = {}
        self._reminded: dict[str, float] = {}
        self._reminding: set[str] = set()

    def promise(self, session: str, accepted: Iterable[Delivery]) -> None:
        """Take in headers that were accepted, whose bytes are still to be computed.

        Duty: ``add`` each of them in the end.
        """
        with self._changed:
            self._promised.setdefault(session, []).extend(accepted)
            self._reminded.setdefault(session, self._clock())

    def add(self, session: str, deliveries: Iterable[Delivery]) -> None:
        """Deliver what is there, after what this session had before."""
        added = list(deliveries)
        if not added:
            return
        with self._changed:
            kept = {(one.to, one.message.ids) for one in added}
            promised = [
                one
                for one in self._promised.pop(session, ())
                if (one.to, one.message.ids) not in kept
            ]
            if promised:
                self._promised[session] = promised
            queue = self._queues.get(session)
            if queue is not None:
                queue.extend(added)
                return
            self._queues[session] = collections.deque(added)
            self._reminded.setdefault(session, self._clock())
        threading.Thread(
            target=self._run, args=(session,), name="obhut-delivers", daemon=True
        ).start()

    def has(self, session: str) -> bool:
        """Tell whether something of a session is on its way."""
        return session in self._queues

    def wait(self, session: str, until: Callable[[], bool]) -> None:
        """Wait until nothing of a session is on its way, or until something else.

        Duty: ``look`` when the latter happens.
        """
        with self._changed:
            self._changed.wait_for(lambda: session not in self._queues or until())

    def look(self) -> None:
        """Let those who wait look again."""
        with self._changed:
            self._changed.notify_all()

    def finish(self, seconds: float) -> None:
        """Wait until all has gone, but so long at most."""
        with self._changed:
            self._changed.wait_for(
                lambda: not self._queues and not self._promised, seconds
            )

    def remind(self) -> None:
        """Tell other workers what is still to come, if it is time."""
        before = self._clock() - REMIND_SECONDS
        with self._changed:
            late = [one for one, when in self._reminded.items() if when < before]
            late = [one for one in late if one not in self._reminding]
            self._reminded.update(dict.fromkeys(late, self._clock()))
            self._reminding.update(late)
        for session in late:
            # A thread: one worker that is not there keeps no other waiting.
            threading.Thread(
                target=self._remind, args=(session,), name="obhut-reminds", daemon=True
            ).start()

    def _remind(self, session: str) -> None:
        with self._changed:
            waiting = list(self._queues.get(session, ()))[1:]
            waiting += self._promised.get(session, ())
        try:
            for delivery in waiting:
                self._carry(delivery.to, delivery.message, ())
        except (ObhutError, OSError):
            pass  # it learns when the bytes come, or that they do not
        finally:
            with self._changed:
                self._reminding.discard(session)
                self._changed.notify_all()

    def _run(self, session: str) -> None:
        queue = self._queues[session]
        while True:
            with self._changed:
                # A header that came after its bytes would be waited for in vain.
                self._changed.wait_for(lambda: session not in self._reminding)
                if not queue:
                    del self._queues[session]
                    if session not in self._promised:
                        del self._reminded[session]
                    self._changed.notify_all()
                    return
                delivery = queue[0]
            self._bring(delivery)
            del delivery  # its memory is used again once nobody refers to it
            with self._changed:
                queue.popleft()

    def _bring(self, delivery: Delivery) -> None:
        to, message = delivery.to, delivery.message
        try:
            refused = self._carry(to, message, delivery.frames)
            if refused is None:
                return
            why = f"{refused.kind}: {refused.text}"
        except Exception as error:
            # Any: the other worker waits to hear of it.
            why = f"{type(error).__name__}: {error}"
        self._log(to, why)
        try:
            self._carry(to, structs.replace(message, spoilt=True), ())
        except Exception as error:
            self._log(to, f"nor that it will not come: {type(error).__name__}: {error}")
