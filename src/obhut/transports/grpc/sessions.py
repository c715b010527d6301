"""One client's session at a served worker, with the processes that run it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

from obhut.errors import SessionLostError
from obhut.host.conductor import Said
from obhut.protocol.codec import Frame
from obhut.protocol.messages import Refused
from obhut.transports.pipe.parent import Absent, Frames

from .arriving import Arriving, Lender
from .awaited import Awaited
from .following import Following, HighProcess

ANSWERS = 2
"""Answers of one session that may be on their way to its owner."""

GONE = "it is not known here: it ended, expired or never began"
"""The same words whether a session is somebody else's or nobody's."""


class ChildSaid(Said, Protocol):
    """What a child answered."""

    @property
    def header(self) -> bytes:
        """The reply, encoded."""

    @property
    def undone(self) -> Sequence[int]:
        """The places of the batch's requests that were not carried out."""


class SessionProcess(Lender, Protocol):
    """The process that runs one session's operators."""

    def exchange(
        self, sender: str, header: bytes, frames: Frames, now: float
    ) -> ChildSaid:
        """Take a message to the core and return its answer.

        Raises:
            SessionLostError: if the child is gone.
        """

    def settle(
        self, sender: str, session: str, outcomes: Sequence[Refused | None]
    ) -> ChildSaid:
        """Tell the core how the deliveries ended; return the final answer."""

    def used(self) -> float:
        """Return the processor time that it has used so far, in seconds."""

    @property
    def blameless(self) -> bool:
        """Whether it ended by what this worker's other processes did."""

    def cancel(self, number: int) -> None:
        """Let it compute no more of a batch. May be called during an exchange."""

    def progress(self) -> int | None:
        """Return how many thousandths are done, None if nobody is to know that.

        May be called during an exchange.
        """

    def close(self) -> None:
        """End the child."""


class Starting:
    """How the processes of one session start, all of them on the same data.

    A session keeps it: whoever made it sees from that that it may be used.

    Args:
        answers: starts what answers, for a session of that name, which may hold so many
            bytes.
        follows: at an owner under a policy, starts likewise what has the rows; None
            elsewhere.
    """

    __slots__ = ("__weakref__", "answers", "follows")

    def __init__(
        self,
        answers: Callable[[str, int | None], SessionProcess],
        follows: Callable[[str, int | None], HighProcess] | None = None,
    ) -> None:
        self.answers = answers
        self.follows = follows


class ServedSession:
    """One client's session, with its child.

    Attributes:
        memory: bytes that were reserved for it.
        starting: what starts its processes; None before.
        seen: when something was last heard of its owner.
        lines: the connections over which its owner used it, while they last; None if
            there never was one.
        charged: the processor time that its owner was charged with.
        looked_at: how much of it that was at the last look of ``expire``.
        batch: the number of the batch that is being computed, 0 if none is.
        done: the number of the last one that was.
        cancelled: the last batch that was cancelled.
        answers: room for answers on their way.
        following: what has the rows, of an owner under a policy; None elsewhere.
        awaited: what other workers have still to deliver.
    """

    def __init__(self, owner: str, memory: int | None, now: float) -> None:
        self.owner = owner
        self.memory = memory
        self.starting: Starting | None = None
        self.started: SessionProcess | None = None
        self.following: Following | None = None
        self.lock = threading.Lock()
        self.seen = now
        self.lines: frozenset[Hashable] | None = None
        self.charged = 0.0
        self.looked_at = 0.0
        self.batch = self.done = self.cancelled = 0
        self.answers = threading.Semaphore(ANSWERS)
        self.awaited = Awaited()

    @property
    def child(self) -> SessionProcess:
        """The process.

        Raises:
            SessionLostError: if it is not there yet.
        """
        if self.started is None:
            raise SessionLostError("the worker", GONE)
        return self.started

    @property
    def lender(self) -> Lender:
        """Who gets frames that come.

        Raises:
            SessionLostError: as ``child``.
        """
        return self.child if self.following is None else self.following


class ChildRunner:
    """Runs a session's child for one message."""

    def __init__(
        self,
        child: SessionProcess,
        sender: str,
        session: str,
        header: bytes,
        frames: Sequence[Frame] | Arriving | Absent,
        clock: Callable[[], float],
    ) -> None:
        self._child = child
        self._sender = sender
        self._session = session
        self._message = header, frames
        self._clock = clock

    def handle(self) -> ChildSaid:
        """Take the message to the child."""
        header, frames = self._message
        return self._child.exchange(self._sender, header, body(frames), self._clock())

    def settle(self, outcomes: Sequence[Refused | None]) -> ChildSaid:
        """Tell the child how what it wanted done ended."""
        return self._child.settle(self._sender, self._session, outcomes)


def body(frames: Sequence[Frame] | Arriving | Absent) -> Frames:
    """Return frames as a process gets them."""
    return frames.stored() if isinstance(frames, Arriving) else frames
