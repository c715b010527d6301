"""The connections that a server keeps, and how long and at what cost.

Rules:

- One principal has so many at a time, and so many bytes of messages and answers that
  are under way on all of them together. All have so many at a time.
- One that stands still where it has to go on is ended: in the middle of a message,
  or of an answer that nobody takes. A client that is sound connects again and sends
  again what was not answered.
- One on which nothing is said is ended after longer, unless it never said anything.
  One that computes is not ended.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable

from obhut.errors import LimitError

EACH = 32
"""Connections of one principal that are served at a time."""

STALLED_SECONDS = 120.0
"""How long a message or an answer may stand still. A piece has 2 MiB: who can't move
17 kB in a second is too slow."""

_PROGRESS = 1 << 16
"""Bytes that a message has to grow by, meanwhile."""


class State(enum.Enum):
    """What a connection is doing."""

    OPENED = "waiting for its first message"
    WAITING = "waiting for a message"
    RECEIVING = "in the middle of a message"
    COMPUTING = "computing an answer"
    SENDING = "in the middle of an answer"


class Stream:
    """One connection.

    Args:
        streams: all of them.
        principal: who it is from.
        end: ends it, from another thread.
    """

    def __init__(
        self, streams: Streams, principal: str, end: Callable[[], object]
    ) -> None:
        self.principal = principal
        self.end = end
        self.state = State.OPENED
        self.since = streams.clock()
        self.held = 0
        self._streams = streams
        self._grown = 0

    @property
    def busy(self) -> bool:
        """Whether a message is being answered."""
        return self.state in (State.COMPUTING, State.SENDING)

    def receive(self, size: int) -> None:
        """Take in that so many bytes of a message came.

        Raises:
            LimitError: if they are too many, with those on the principal's other
                connections. Duty then: end this one.
        """
        self._streams.hold(self, self.held + size)
        self._grown += size
        if self.state is not State.RECEIVING or self._grown >= _PROGRESS:
            self.turn(State.RECEIVING)

    def answer(self, size: int) -> None:
        """Take in that a message was carried out, and how many bytes the answer has.

        Raises:
            LimitError: if they are too many, with those on the principal's other
                connections. Duty then: end this one; who is sound asks again.
        """
        # One that is alone goes out, whatever its size: else it never would.
        self._streams.hold(self, min(size, self._streams.bytes_each))

    def turn(self, state: State) -> None:
        """Take in what it does from now on, or that it got on with that."""
        self.state = state
        self.since = self._streams.clock()
        self._grown = 0

    def finish(self) -> None:
        """Take in that a message was answered, and holds no memory any more."""
        self.turn(State.WAITING)
        self._streams.hold(self, 0)


class Streams:
    """All connections of a server. It may be used by several threads.

    Args:
        bytes_each: bytes that one principal may have on all connections.
        waiting_seconds: how long nothing need be said on one.
        clock: tells the time in seconds, and does not go back.
        at_most: connections of all principals at a time.
        kept: tells whether nothing need be said on one, however long.
    """

    def __init__(
        self,
        bytes_each: int,
        waiting_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        at_most: int = 256,
        kept: Callable[[Stream], bool] = lambda stream: False,
    ) -> None:
        self.clock = clock
        self._kept = kept
        self._at_most = at_most
        self.bytes_each = bytes_each
        self._waiting_seconds = waiting_seconds
        self._lock = threading.Lock()
        self._streams: list[Stream] = []
        self._closed = False

    def admit(self, principal: str, end: Callable[[], object]) -> Stream:
        """Count a connection. Duty: ``remove`` it.

        Raises:
            LimitError: if there are too many, or the server stops.
        """
        with self._lock:
            if self._closed:
                raise LimitError("the worker stops")
            if sum(s.principal == principal for s in self._streams) >= EACH:
                # Dead ones among them will be noticed.
                raise LimitError(f"at most {EACH} connections of one client are served")
            if len(self._streams) >= self._at_most:
                raise LimitError(f"at most {self._at_most} connections are served")
            stream = Stream(self, principal, end)
            self._streams.append(stream)
            return stream

    def remove(self, stream: Stream) -> None:
        """Count a connection no more."""
        with self._lock:
            self._streams.remove(stream)

    def hold(self, stream: Stream, size: int) -> None:
        """Take in how many bytes a connection holds.

        Raises:
            LimitError: if its principal's hold too many.
        """
        with self._lock:
            others = sum(
                other.held
                for other in self._streams
                if other.principal == stream.principal and other is not stream
            )
            if size and others + size > self.bytes_each:
                raise LimitError(
                    f"one client's messages may have {self.bytes_each:,} bytes here "
                    "while they are under way, over all connections; send less at a "
                    "time"
                )
            stream.held = size

    def expire(self) -> int:
        """End the connections that stand still; return how many."""
        now = self.clock()
        with self._lock:
            overdue = [s for s in self._streams if now - s.since > self._patience(s)]
        for stream in overdue:
            stream.end()
        return len(overdue)

    def close(self) -> None:
        """Admit none any more, and end those on which nothing is being answered."""
        with self._lock:
            self._closed = True
            idle = [stream for stream in self._streams if not stream.busy]
        for stream in idle:
            stream.end()

    @property
    def closed(self) -> bool:
        """Whether none is admitted any more."""
        return self._closed

    def _patience(self, stream: Stream) -> float:
        if stream.state is State.COMPUTING:
            return float("inf")
        if stream.state is State.WAITING:
            return float("inf") if self._kept(stream) else self._waiting_seconds
        return STALLED_SECONDS
