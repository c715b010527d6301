"""What other workers have announced to a session and not delivered yet.

::

    awaited.announce(sender, header, now)        # a header was accepted
    awaited.hear(header.ids, now)                # some of its bytes came
    awaited.came(header.ids)                     # all of them, or none will
    overdue = awaited.wait(batch, ended, clock)  # until a batch may go on

Rule: by a sender's word nobody waits for ever.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from obhut.protocol.messages import Batch, Deliver

COMING_SECONDS = 90.0
"""How long is waited for what was announced, once nothing is heard of it any more."""


class Announced(NamedTuple):
    """A delivery that is to come.

    Attributes:
        sender: who announced it.
        header: its header.
        heard: when something was last heard of it, in seconds.
    """

    sender: str
    header: Deliver
    heard: float


class Awaited:
    """The deliveries that one session waits for."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._announced: dict[tuple[int, ...], Announced] = {}

    def announce(self, sender: str, header: Deliver, now: float) -> None:
        """Take in that a header was accepted, or came again."""
        with self._news:
            self._announced[header.ids] = Announced(sender, header, now)

    def hear(self, ids: tuple[int, ...], now: float) -> None:
        """Take in that some of a delivery came."""
        with self._news:
            if ids in self._announced:
                self._announced[ids] = self._announced[ids]._replace(heard=now)

    def came(self, ids: tuple[int, ...]) -> None:
        """Take in that all of a delivery came, or that it will not."""
        with self._news:
            self._announced.pop(ids, None)
            self._news.notify_all()

    def wake(self) -> None:
        """Let those who wait look again whether they have to."""
        with self._news:
            self._news.notify_all()

    def wait(
        self, batch: Batch, ended: Callable[[], bool], clock: Callable[[], float]
    ) -> list[Announced]:
        """Wait until what a batch reads has come, or until something else.

        Args:
            batch: the batch.
            ended: tells whether there is no use in waiting. Duty: ``wake`` when that
                changes.
            clock: the time in seconds.

        Returns:
            What it reads and nothing was heard of for too long; none if it may go on.
        """
        if not self._announced:
            return []
        reads = {id for request in batch.requests for id in request.reads()}
        surveys = any(request.surveys for request in batch.requests)
        with self._news:
            while not ended():
                wanted = [
                    one
                    for ids, one in self._announced.items()
                    if surveys or not reads.isdisjoint(ids)
                ]
                if not wanted:
                    break
                before = clock() - COMING_SECONDS
                overdue = [one for one in wanted if one.heard <= before]
                if overdue:
                    return overdue
                self._news.wait(min(one.heard for one in wanted) - before)
        return []
