"""The aggregator as a relay: workers attach to it, and are reached through it.

Rules:

- A worker is attached under the id that its certificate proved, and under no other.
- Who is not named may not attach. Who has nothing to do here may not connect.
- A connection's number is a secret of the relay and the worker that was called, and
  holds once.
- What goes through is not looked at. A piece is taken from one side when the other
  has taken the one before: a slow side slows the other down, and nothing piles up.
- A connection ends, both ways, when one of its sides does, when a side is no longer a
  peer, and when nothing has come for ``IDLE_SECONDS``.

Leak: the relay learns who reaches whom, when, and how many bytes. The bytes are TLS
between the two.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TypeAlias

import grpc

from obhut.errors import AccessDeniedError, LimitError, ObhutError, TransportError

from . import messages as relay_messages
from .messages import (
    ACCEPT,
    ATTACH,
    CONNECT,
    NUMBER_KEY,
    WORKER_KEY,
    Attached,
    Called,
    Carried,
)

CONNECTIONS_EACH = 32
"""Connections that one principal may have through the relay at a time."""

CONNECTIONS = 256
"""Connections through the relay at a time. Each takes two of the server's threads."""

ACCEPT_SECONDS = 10.0
"""How long a worker may take to accept a connection."""

IDLE_SECONDS = 120.0
"""How long a connection may be still. Both ends ping each other every 20 seconds."""

Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"
"""What serves one method."""

End: TypeAlias = Callable[[], object]
"""Ends something, from whichever thread, and more than once."""

_CODES: Mapping[type[ObhutError], grpc.StatusCode] = {
    AccessDeniedError: grpc.StatusCode.PERMISSION_DENIED,
    LimitError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TransportError: grpc.StatusCode.UNAVAILABLE,
}
"""How errors are told; of these only the first is lasting."""


class Relay:
    """Who is attached, and which connections there are.

    Duty: close it before its server.

    Args:
        knows: tells whether an id is still a peer's, or this node's own.
        name: returns what this node calls somebody.
        may_attach: tells whether a worker of that id may attach.
        may_connect: tells whether a principal may connect to attached workers.
        file: the configuration, for the log.
        log: takes a line for the operator.
    """

    def __init__(
        self,
        knows: Callable[[str], bool],
        name: Callable[[str], str],
        *,
        may_attach: Callable[[str], bool],
        may_connect: Callable[[str], bool],
        file: str = "its configuration",
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._knows = knows
        self._called = name
        self._may_attach = may_attach
        self._may_connect = may_connect
        self._file = file
        self._log = log
        self._lock = threading.Lock()
        self._seats: dict[str, _Seat] = {}
        self._links: dict[str, _Link] = {}
        self._closed = False

    # --- what the three sides do --------------------------------------------------

    def attach(self, worker: str, end: End = lambda: None) -> Carried:
        """Attach a worker.

        Args:
            worker: its id, as its certificate says.
            end: ends the call, whether or not it takes its notices.

        Returns:
            Its notices. They end with ``TransportError`` if another call of its own
            takes its place, if it is no longer a peer, or if the relay stops.

        Raises:
            AccessDeniedError: if it is not named.
            TransportError: if the relay stops.
        """
        if not self._may_attach(worker):
            name = self._called(worker)
            key = "attach under [access]"
            self._log(f'{name} may not attach: add "{name}" to {key} in {self._file}')
            raise AccessDeniedError(
                f'this relay does not let you attach: ask its operator to add "{name}" '
                f"to {key} in its configuration"
            )
        name = self._called(worker)
        with self._lock:
            if self._closed:
                raise TransportError("the relay stops")
            before = self._seats.get(worker)
            seat = self._seats[worker] = _Seat(end, before)
        if before is not None:
            before.end_former()
            self._leave(
                worker, before, "another call of the same worker took its place"
            )
        self._log(f"{name} is attached")
        seat.notices.put(relay_messages.encode(Attached(name)))
        return _Out(seat.told(), lambda: self._leave(worker, seat, "it went"))

    def connect(
        self, sender: str, worker: str, chunks: Iterator[bytes], end: End
    ) -> Carried:
        """Connect somebody to an attached worker.

        Args:
            sender: who wants that.
            worker: the worker's id.
            chunks: what the sender sends.
            end: lets ``chunks`` end.

        Returns:
            What the worker sends. When it is read first, it waits for the worker, and
            raises ``TransportError`` if that is not attached or does not accept.

        Raises:
            AccessDeniedError: if the sender may not.
            LimitError: if there are too many connections.
        """
        if not self._may_connect(sender):
            raise AccessDeniedError("this relay has nothing for you")
        link = _Link(sender, worker, chunks, end)
        with self._lock:
            theirs = sum(one.sender == sender for one in self._links.values())
            if theirs >= CONNECTIONS_EACH:
                raise LimitError(
                    f"at most {CONNECTIONS_EACH} connections of one principal are "
                    "relayed; close some"
                )
            if len(self._links) >= CONNECTIONS:
                raise LimitError(f"at most {CONNECTIONS} connections are relayed")
            self._links[link.number] = link
        return _Out(self._answered(link), lambda: self._drop(link))

    def accept(
        self, worker: str, number: str, chunks: Iterator[bytes], end: End
    ) -> Carried:
        """Accept a connection.

        Args:
            worker: who accepts, as its certificate says.
            number: the connection's.
            chunks: what the worker sends.
            end: lets ``chunks`` end.

        Returns:
            What the other side sends.

        Raises:
            AccessDeniedError: if there is no such connection for this worker, or it
                was accepted before; in the same words.
        """
        with self._lock:
            link = self._links.get(number)
            # In one step: a number holds once.
            if link is None or link.worker != worker or link.taken:
                raise AccessDeniedError("there is no such connection for you")
            link.taken = True
        link.answer(chunks, end)
        return _Out(self._carried(link, link.chunks), lambda: self._drop(link))

    # --- for the node -------------------------------------------------------------

    def attached(self, sender: str) -> tuple[str, ...]:
        """Return the ids of attached workers, for who may connect to them."""
        if not self._may_connect(sender):
            return ()
        with self._lock:
            workers = tuple(self._seats)
        return tuple(one for one in workers if one != sender and self._knows(one))

    def expire(self) -> None:
        """End what is idle, and what belongs to somebody who is no longer a peer."""
        before = time.monotonic() - IDLE_SECONDS
        with self._lock:
            links, seats = list(self._links.values()), list(self._seats.items())
        for link in links:
            if link.seen < before or not self._ends_known(link):
                link.cut()
        for worker, seat in seats:
            if not self._knows(worker):
                self._leave(worker, seat, "you are no longer a peer")

    def close(self) -> None:
        """Let all workers go, cut all connections, and take no more."""
        with self._lock:
            self._closed = True
            links, seats = list(self._links.values()), list(self._seats.items())
        for worker, seat in seats:
            self._leave(worker, seat, "the relay stops")
        for link in links:
            link.cut()

    def methods(
        self, principal: Callable[[grpc.ServicerContext], str]
    ) -> Mapping[str, Handler]:
        """Return the methods by which others use the relay.

        Args:
            principal: tells who a call is from, or ends it.
        """

        def attach(
            _: Iterator[bytes], context: grpc.ServicerContext
        ) -> Iterator[bytes]:
            worker = principal(context)
            yield from _streamed(context, partial(self.attach, worker))

        def connect(
            chunks: Iterator[bytes], context: grpc.ServicerContext
        ) -> Iterator[bytes]:
            sender, worker = principal(context), _metadata(context, WORKER_KEY)
            yield from _streamed(context, partial(self.connect, sender, worker, chunks))

        def accept(
            chunks: Iterator[bytes], context: grpc.ServicerContext
        ) -> Iterator[bytes]:
            worker, number = principal(context), _metadata(context, NUMBER_KEY)
            yield from _streamed(context, partial(self.accept, worker, number, chunks))

        return {
            ATTACH: grpc.stream_stream_rpc_method_handler(attach),
            CONNECT: grpc.stream_stream_rpc_method_handler(connect),
            ACCEPT: grpc.stream_stream_rpc_method_handler(accept),
        }

    # --- inside -------------------------------------------------------------------

    def _answered(self, link: _Link) -> Iterator[bytes]:
        """Call the worker, and yield what it sends."""
        with self._lock:
            seat = None if self._closed else self._seats.get(link.worker)
            if seat is not None and self._knows(link.worker):
                link.seat = seat
                seat.notices.put(relay_messages.encode(Called(link.number)))
        if link.seat is None:
            raise TransportError("that worker is not attached here at present")
        chunks = link.wait(ACCEPT_SECONDS)
        if chunks is None:
            raise TransportError("that worker is attached, but does not answer")
        yield from self._carried(link, chunks)

    def _carried(self, link: _Link, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Yield what one side sends, until it or the connection ends.

        It does not cut the connection: what was yielded last has yet to go out.
        """
        try:
            for chunk in chunks:
                link.seen = time.monotonic()
                # Asked again for each: a peer can be removed meanwhile.
                if not self._ends_known(link):
                    return
                yield chunk
        except grpc.RpcError:
            return  # that side has gone

    def _ends_known(self, link: _Link) -> bool:
        return self._knows(link.sender) and self._knows(link.worker)

    def _drop(self, link: _Link) -> None:
        with self._lock:
            self._links.pop(link.number, None)
        link.cut()

    def _leave(self, worker: str, seat: _Seat, why: str) -> None:
        """Let a worker go, with the connections that were made while it was there."""
        with self._lock:
            if self._seats.get(worker) is seat:
                del self._seats[worker]
            links = [one for one in self._links.values() if one.seat is seat]
        if seat.leave(why):
            self._log(f"{self._called(worker)} is no longer attached: {why}")
        for link in links:
            link.cut()


class _Seat:
    """An attached worker.

    Args:
        end: ends its call.
        former: where it was attached before.

    Attributes:
        notices: what it is to be told; None at the end.
        why: why it had to go.
    """

    def __init__(self, end: End, former: _Seat | None) -> None:
        self._end = end
        self._former = former
        self.notices: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.why = ""
        self._lock = threading.Lock()

    def told(self) -> Iterator[bytes]:
        """Yield the notices, until it has to go.

        Raises:
            TransportError: when it has to.
        """
        while (notice := self.notices.get()) is not None:
            yield notice
        raise TransportError(self.why)

    def end_former(self) -> None:
        """End the call before this one: it had its time to take why it has to go."""
        former, self._former = self._former, None
        if former is not None:
            former._end()

    def leave(self, why: str) -> bool:
        """End it; return whether this was the first time."""
        with self._lock:
            if self.why:
                return False
            self.why = why
        self.notices.put(None)
        return True


class _Link:
    """A connection.

    Attributes:
        number: what the worker accepts it by.
        sender: who wanted it.
        worker: to whom.
        chunks: what the sender sends.
        seat: over which the worker was called.
        taken: whether the worker has accepted.
        seen: when a piece came last; seconds of the monotonic clock.
    """

    def __init__(
        self, sender: str, worker: str, chunks: Iterator[bytes], end: End
    ) -> None:
        self.number = secrets.token_hex(16)
        self.sender = sender
        self.worker = worker
        self.chunks = chunks
        self.seat: _Seat | None = None
        self.taken = False
        self.seen = time.monotonic()
        self._answer: Iterator[bytes] | None = None
        self._lock = threading.Lock()
        self._ends: list[End] = [end]
        self._over = False
        self._ready = threading.Event()

    def answer(self, chunks: Iterator[bytes], end: End) -> None:
        """Say what the worker sends, and what ends that."""
        with self._lock:
            over = self._over
            self._answer = chunks
            self._ends.append(end)
        if over:
            end()
        self._ready.set()

    def wait(self, seconds: float) -> Iterator[bytes] | None:
        """Wait for the worker; return what it sends, or None if it won't any more."""
        self._ready.wait(seconds)
        with self._lock:
            return None if self._over else self._answer

    def cut(self) -> None:
        """End both ways."""
        with self._lock:
            if self._over:
                return
            self._over = True
            ends = tuple(self._ends)
        self._ready.set()
        for end in ends:
            end()


class _Out:
    """One way of a connection, which also can be ended."""

    def __init__(self, chunks: Iterator[bytes], cut: Callable[[], None]) -> None:
        self._chunks = chunks
        self.cancel = cut

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks


def _streamed(
    context: grpc.ServicerContext, begin: Callable[[End], Carried]
) -> Iterator[bytes]:
    """Yield what one side gets, and end that with the call; tell errors by codes."""
    try:
        out = begin(context.cancel)

        def over() -> None:
            out.cancel()

        if not context.add_callback(over):
            over()
        yield from out
    except ObhutError as error:
        code = _CODES.get(type(error), grpc.StatusCode.INTERNAL)
        context.abort(code, str(error))


def _metadata(context: grpc.ServicerContext, key: str) -> str:
    """Return what a call says under a key; nothing, if it says nothing."""
    found = [value for name, value in context.invocation_metadata() if name == key]
    return found[0] if len(found) == 1 and isinstance(found[0], str) else ""
