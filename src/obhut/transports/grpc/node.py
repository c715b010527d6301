"""A served worker's sessions: routes parcels to children, carries deliveries.

Rules:

- The sender of a message is who the certificate says; no field names it.
- This process executes no operator and loads no torch: each session has a child.
- What a session's batch delivers is carried to the other worker under this
  worker's own identity, before the batch is answered.
- A child's end ends its session, with words; the others go on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from obhut.errors import (
    AccessDeniedError,
    LimitError,
    ObhutError,
    RemoteProtocolError,
    SessionLostError,
    WorkerNotFoundError,
)
from obhut.protocol import codec, limits
from obhut.protocol.codec import Frame
from obhut.protocol.messages import (
    AnyMessage,
    Batch,
    Close,
    Deliver,
    Done,
    Open,
    Refused,
)
from obhut.transports import Transport

DELIVERY_SECONDS = 600.0
"""How long a delivery to another worker may take."""

Envelope: TypeAlias = tuple[bytes, Sequence[Frame]]
"""An encoded message with its frames."""


class Departing(Protocol):
    """A delivery that a child wants carried."""

    @property
    def to(self) -> str:
        """The other worker's id."""

    @property
    def header(self) -> bytes:
        """The encoded message."""

    @property
    def frames(self) -> Sequence[Frame]:
        """Its frames."""


class Exchanged(Protocol):
    """What a child answered."""

    @property
    def header(self) -> bytes:
        """The reply."""

    @property
    def frames(self) -> Sequence[Frame]:
        """The reply's frames."""

    @property
    def deliveries(self) -> Sequence[Departing]:
        """What must be delivered and settled before the reply is final."""


class Child(Protocol):
    """The process that runs one session's operators."""

    def exchange(
        self, sender: str, header: bytes, frames: Sequence[Frame], now: float
    ) -> Exchanged:
        """Take a message to the core and return its answer.

        Raises:
            SessionLostError: if the child is gone.
        """

    def settle(
        self, sender: str, session: str, outcomes: Sequence[Refused | None]
    ) -> Exchanged:
        """Tell the core how the deliveries ended; return the final answer."""

    def close(self) -> None:
        """End the child."""


class _Session:
    """One client's session, with its child."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.started: Child | None = None
        self.lock = threading.Lock()
        self.seen = time.monotonic()

    @property
    def child(self) -> Child:
        """The process.

        Raises:
            SessionLostError: if it is not there yet.
        """
        if self.started is None:
            raise SessionLostError("the worker", _GONE)
        return self.started


class Node:
    """A served worker's sessions and what may be done with them.

    Args:
        name: the worker's name.
        id: the hash of its key.
        start: starts a child for a session of that name.
        peers: the ways to other workers, by id.
        may_open: tells whether a principal may open sessions.
        may_deliver: tells whether a principal may deliver into sessions.
        sessions_each: sessions that one principal may have.
        session_seconds: how long a session outlives its last message.
        log: takes a line for the operator.
    """

    def __init__(
        self,
        name: str,
        id: str,
        start: Callable[[str], Child],
        peers: Callable[[str], Transport | None],
        *,
        may_open: Callable[[str], bool],
        may_deliver: Callable[[str], bool],
        sessions_each: int = limits.SESSIONS_PER_SENDER,
        session_seconds: float = 600.0,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.name = name
        self._id = id
        self._start = start
        self._peers = peers
        self._may_open = may_open
        self._may_deliver = may_deliver
        self._sessions_each = sessions_each
        self._session_seconds = session_seconds
        self._log = log
        self._lock = threading.Lock()
        self._sessions: dict[str, _Session] = {}

    def exchange(self, sender: str, header: bytes, frames: Sequence[Frame]) -> Envelope:
        """Take in one parcel and return the reply.

        Args:
            sender: who the certificate says sent it.
            header: the encoded message.
            frames: its frames.

        """
        try:
            message = codec.decode(header, frames)
            return self._routed(sender, message, header, frames)
        except ObhutError as error:
            self._log(f"{sender}: {type(error).__name__}: {error}")
            return refusal(error), ()

    def expire(self) -> None:
        """End the sessions whose owners were not heard of for too long."""
        before = time.monotonic() - self._session_seconds
        with self._lock:
            # One that is computing was heard of, however long it takes.
            names = [
                name
                for name, session in self._sessions.items()
                if session.seen < before and not session.lock.locked()
            ]
        for name in names:
            self._log(f"session {name[:8]} expired")
            self._end(name)

    def close(self) -> None:
        """End all sessions."""
        with self._lock:
            names = list(self._sessions)
        for name in names:
            self._end(name)

    def admits(self, sender: str) -> bool:
        """Tell whether a principal may open sessions."""
        return self._may_open(sender)

    def knows(self, sender: str) -> bool:
        """Tell whether a principal may do anything here."""
        return self._may_open(sender) or self._may_deliver(sender)

    def busy(self) -> int:
        """Return how many sessions there are."""
        return len(self._sessions)

    def _routed(
        self, sender: str, message: AnyMessage, header: bytes, frames: Sequence[Frame]
    ) -> Envelope:
        match message:
            case Open(session=name):
                if not self._may_open(sender):
                    raise AccessDeniedError(
                        f"{self.name} opens no session for {sender}"
                    )
                session = self._opened(sender, name)
            case Batch(session=name) | Close(session=name):
                session = self._owned(sender, name)
            case Deliver(session=name):
                if sender != self._id and not self._may_deliver(sender):
                    raise AccessDeniedError(f"{self.name} takes nothing from {sender}")
                session = self._named(name)
            case _:
                kind = type(message).__name__
                raise RemoteProtocolError(f"a worker takes no {kind} message")
        if isinstance(message, Close):
            self._end(name)
            return codec.encode(Done()), ()
        try:
            if isinstance(message, Deliver):
                # Not in line with the owner's batches: one of them may be waiting
                # for a delivery of its own that comes back here.
                said = session.child.exchange(sender, header, frames, _now())
                return said.header, said.frames
            with session.lock:
                session.seen = _now()
                said = session.child.exchange(sender, header, frames, _now())
                if said.deliveries:
                    outcomes = [self._deliver(one) for one in said.deliveries]
                    said = session.child.settle(sender, name, outcomes)
                session.seen = _now()
            if isinstance(message, Open) and _refuses(said.header):
                self._end(name)
            return said.header, said.frames
        except SessionLostError:
            self._end(name, session)
            raise

    def _opened(self, sender: str, name: str) -> _Session:
        with self._lock:
            known = self._sessions.get(name)
            if known is not None and known.owner == sender:
                return known
            if known is not None:
                raise SessionLostError(self.name, _GONE)
            theirs = sum(s.owner == sender for s in self._sessions.values())
            if theirs >= self._sessions_each:
                raise LimitError(
                    f"{self.name} keeps at most {self._sessions_each} sessions for one "
                    "client; close some"
                )
            session = self._sessions[name] = _Session(sender)
            session.lock.acquire()
        # Without the node's lock: a process may take long to start.
        try:
            session.started = self._start(name)
        except BaseException:
            self._end(name, session)
            raise
        finally:
            session.lock.release()
        self._log(f"session {name[:8]} opened for {sender}")
        return session

    def _owned(self, sender: str, name: str) -> _Session:
        session = self._named(name)
        if session.owner != sender:
            raise SessionLostError(self.name, _GONE)
        return session

    def _named(self, name: str) -> _Session:
        with self._lock:
            session = self._sessions.get(name)
        if session is None:
            raise SessionLostError(self.name, _GONE)
        return session

    def _end(self, name: str, only: _Session | None = None) -> None:
        """End a session, if it is there and is that one."""
        with self._lock:
            session = self._sessions.get(name)
            if session is None or (only is not None and session is not only):
                return
            del self._sessions[name]
        if session.started is not None:
            session.started.close()
        self._log(f"session {name[:8]} ended")

    def _deliver(self, delivery: Departing) -> Refused | None:
        """Carry a delivery to its worker; return why it was refused, or None."""
        to, frames = delivery.to, delivery.frames
        try:
            message = codec.decode(delivery.header, frames)
            if not isinstance(message, Deliver):
                # A child is not trusted: what it says goes out in this worker's name.
                raise RemoteProtocolError("a session may send deliveries only")
            if to == self._id:
                header, _ = self.exchange(to, delivery.header, frames)
                answer = codec.decode(header)
                return answer if isinstance(answer, Refused) else None
            transport = self._peers(to)
            if transport is None:
                raise WorkerNotFoundError(to, ())
            reply = transport.submit(message, frames).result(DELIVERY_SECONDS).message
        except (ObhutError, TimeoutError) as error:
            self._log(f"delivery to {to}: {error}")
            return Refused(type(error).__name__, str(error))
        return reply if isinstance(reply, Refused) else None


def refusal(error: ObhutError) -> bytes:
    """Return the reply that says why a message was refused."""
    text = error.why if isinstance(error, SessionLostError) else str(error)
    return codec.encode(Refused(type(error).__name__, text))


def _refuses(header: bytes) -> bool:
    """Tell whether a child's reply, which carries no frames, is a refusal."""
    try:
        return isinstance(codec.decode(header), Refused)
    except RemoteProtocolError:
        return True


_GONE = "it is not known here: it ended, expired or never began"
"""The same words whether a session is somebody else's or nobody's."""


def _now() -> float:
    return time.monotonic()
