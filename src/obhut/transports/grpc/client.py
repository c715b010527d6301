"""A way to a served worker: one gRPC stream that mends itself.

Rules:

- Replies come in the order of the messages; what was not answered when a stream
  broke is sent again on the next one, in order. The worker applies it once.
- A message is copied when it is submitted: its tensors may change afterwards, and it
  can be sent again as it was. What has been copied leaves while the rest is.
- What a retry can not mend (no access, a broken protocol) is raised at once.
- A session's stream that breaks while nobody waits is opened again, so that the worker
  knows that its client is there.
- Time in which this process did not run, on a laptop that sleeps, is no time of trying.
"""

from __future__ import annotations

import collections
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import grpc

from obhut.errors import (
    AccessDeniedError,
    LimitError,
    ObhutError,
    RemoteProtocolError,
    TransportError,
)
from obhut.host.waiting import wait_for
from obhut.protocol import codec
from obhut.protocol.codec import Frame
from obhut.protocol.messages import AnyMessage, Batch, Cancel, Close, Open, Watch
from obhut.worker.effects import Parcel

from . import proxies, wire
from .watching import Watching, read

EXCHANGE = "/obhut.Worker/Exchange"
"""The stream over which parcels go both ways."""

CANCEL = "/obhut.Worker/Cancel"
"""What cancels a batch that such a stream has brought."""

CANCELS = "obhut-cancels-bin"
"""The metadata that say which batch: nobody has to wait for a message."""

WATCH = "/obhut.Worker/Watch"
"""What asks how much of such a batch is done."""

WATCHES = "obhut-watches-bin"
"""The metadata that say of which."""

SESSION = "obhut-session"
"""Metadata of a stream on which nothing need be asked: the session that it is for. It
ends with ``NOT_FOUND`` if that is not there."""

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", wire.MESSAGE_BYTES),
    ("grpc.max_send_message_length", wire.MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # else a minute, whatever stands above
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
"""Options of every channel. A peer that stops answering is noticed in 30 s."""

FRAME_BYTES_AT_MOST = 1 << 36
"""Bytes of tensors that a client takes in one reply."""

_BESIDE_SECONDS = 10.0

_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 2.0

_LONGEST_IDLE_PAUSE = 20.0
"""Likewise, where nobody waits."""

_TRY_SECONDS = 50.0
"""What one try takes at most, 20 s to connect and 30 s to notice that nobody is there:
in a longer time the worker was there, or this process did not run."""

LASTING: Mapping[grpc.StatusCode, type[ObhutError]] = {
    grpc.StatusCode.UNAUTHENTICATED: AccessDeniedError,
    grpc.StatusCode.PERMISSION_DENIED: AccessDeniedError,
    grpc.StatusCode.INVALID_ARGUMENT: RemoteProtocolError,
    grpc.StatusCode.UNIMPLEMENTED: RemoteProtocolError,
}
"""What a retry does not mend."""


def channel(
    target: str,
    credentials: grpc.ChannelCredentials,
    options: Sequence[tuple[str, str | int]] = (),
) -> grpc.Channel:
    """Return a channel to a peer; every one is made here.

    Args:
        target: ``host:port``, or ``unix:`` and a socket's path.
        credentials: pinned to the peer's certificate.
        options: what belongs to the credentials.
    """
    # gRPC takes the first of two.
    chosen = (*options, *CHANNEL_OPTIONS, *proxies.options(target))
    return grpc.secure_channel(target, credentials, chosen)


class GrpcPending:
    """A reply that is on its way.

    Args:
        waiting: returns what is to be said of a long wait for it.
        cancel: lets the worker do no more of it.
        done: returns what share of it is done, as far as that is known.

    Attributes:
        cancelled: whether it was cancelled.
        slices: what the message's chunks are made of, for sending it again.
    """

    def __init__(
        self,
        waiting: Callable[[], str],
        cancel: Callable[[], None],
        done: Callable[[], float | None],
    ) -> None:
        self._waiting = waiting
        self._share = done
        self._cancel = cancel
        self.cancelled = False
        self.slices: list[wire.Slices] = []
        self._done = threading.Event()
        self._parcel: Parcel | None = None
        self._error: ObhutError | None = None
        self._calls: list[Callable[[], None]] = []

    def done(self) -> bool:
        """Tell whether ``result`` would return at once."""
        return self._done.is_set()

    def result(self, timeout: float | None = None) -> Parcel:
        """Wait for the reply, for ``timeout`` seconds at most.

        Raises:
            TransportError: if it can not come any more.
            TimeoutError: if it has not come in time.
        """
        if not wait_for(self._done, self._waiting, timeout, self._share):
            raise TimeoutError(f"no answer within {timeout} s; it may still come")
        if self._parcel is None:
            raise self._error or TransportError("the reply was lost")
        return self._parcel

    def when_done(self, call: Callable[[], None]) -> None:
        """Call a function when the reply is there, from whichever thread."""
        self._calls.append(call)
        if self._done.is_set():
            self._call()

    def cancel(self) -> None:
        """Let the worker do no more of it; the reply comes all the same.

        It may have come already: an owner's worker goes on after it.
        """
        self.cancelled = True
        self._cancel()

    def settle(self, parcel: Parcel | None, error: ObhutError | None) -> None:
        """Let the reply be there, or never come."""
        self._parcel, self._error, self.slices = parcel, error, []
        self._done.set()
        self._call()

    def _call(self) -> None:
        while True:
            try:
                call = self._calls.pop()
            except IndexError:
                return  # the other thread has taken the last one
            call()


class GrpcTransport:
    """A client's way to a served worker.

    Args:
        target: ``host:port``.
        credentials: pinned to that worker's certificate.
        options: channel options that belong to the credentials.
        worker: the worker's name.
        address: the worker's id, by which its peers know it.
        reconnect_seconds: how long to try to mend a broken stream.
        reply_bytes: bytes of tensors that one reply may bring.
        memory: makes room for a large tensor's bytes in a reply.
    """

    eager = True
    mends = True
    shared = False

    def __init__(
        self,
        target: str,
        credentials: grpc.ChannelCredentials,
        options: Sequence[tuple[str, str | int]] = (),
        *,
        worker: str,
        address: str,
        reconnect_seconds: float = 60.0,
        reply_bytes: int = FRAME_BYTES_AT_MOST,
        memory: wire.Memory = wire.fresh,
    ) -> None:
        self.worker = worker
        self.address = address
        self._target = target
        self._credentials = credentials
        self._options = options
        self._reconnect_seconds = reconnect_seconds
        self._reply_bytes = reply_bytes
        self._memory = memory
        self._lock = threading.Lock()
        self._waiting: collections.deque[GrpcPending] = collections.deque()
        self._outbox: queue.SimpleQueue[wire.Slices | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._call: grpc.Call | None = None
        self._opened: grpc.Channel | None = None
        self._cancelling: grpc.Future[bytes] | None = None
        self._closing = threading.Event()
        self._session: str | None = None
        """The session that it is for, from when it is opened until it is closed."""
        self._idle_pause = _FIRST_PAUSE
        self._again: threading.Timer | None = None
        self._lasting: ObhutError | None = None
        self._trouble: ObhutError | None = None
        """Why the last stream broke; None when something came on a later one."""

    def submit(
        self,
        message: AnyMessage,
        frames: Sequence[Frame] = (),
    ) -> GrpcPending:
        """Send a message.

        Args:
            message: the message.
            frames: its frames; those that can be written to are copied.

        Raises:
            TransportError: if the way was given up or closed.
            LimitError: if there is no room for a copy. Nothing was sent.
            ObhutError: what a retry does not mend.
        """
        header = codec.encode(message)
        try:
            slices = _slices(header, frames)
        except MemoryError as error:
            raise LimitError("no memory is left to send so much") from error
        done = Watching(partial(self._ask_about, message))
        pending = GrpcPending(self._said, partial(self._cancel, message), done)
        with self._lock:
            if self._lasting is not None:
                raise self._lasting
            if self._closing.is_set():
                raise TransportError(f"the way to {self.worker} is closed")
            self._waiting.append(pending)
            if isinstance(message, Open | Close):
                self._session = message.session if isinstance(message, Open) else None
            self._begin()
            try:
                for chunk in slices:
                    pending.slices.append(chunk)
                    self._outbox.put(chunk)
            except BaseException:
                # Ctrl-C: a part of a message must not be followed by another one.
                self._waiting.remove(pending)
                self._renew()
                raise
        return pending

    def _cancel(self, message: AnyMessage) -> None:
        """Let the worker do no more of a batch."""
        if isinstance(message, Batch):
            said = Cancel(message.session, message.number)
            # Kept, since gRPC cancels a call that nobody refers to. Where there is no
            # way, it is said on the next stream.
            self._cancelling = self._beside(CANCEL, CANCELS, said)

    def progress(self, session: str, number: int) -> float | None:
        """Return what share of a batch is done; it does not wait for the batch."""
        return read(self._beside(WATCH, WATCHES, Watch(session, number)))

    def _ask_about(self, message: AnyMessage) -> grpc.Future[bytes] | None:
        if not isinstance(message, Batch):
            return None
        said = Watch(message.session, message.number)
        return self._beside(WATCH, WATCHES, said)

    def _beside(
        self, path: str, key: str, message: Cancel | Watch
    ) -> grpc.Future[bytes] | None:
        """Say something beside the stream; return None if there is no way."""
        with self._lock:
            opened = self._opened
        if opened is None:
            return None
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes]
        method = opened.unary_unary(path)
        said = codec.encode(message)
        try:
            return method.future(b"", timeout=_BESIDE_SECONDS, metadata=((key, said),))
        except ValueError:  # it was closed meanwhile
            return None

    @property
    def given_up(self) -> bool:
        """Whether something went wrong that a retry does not mend."""
        return self._lasting is not None

    def close(self) -> None:
        """Give the way up; replies that are under way do not come any more."""
        with self._lock:
            self._closing.set()
            self._outbox.put(None)
            if self._again is not None:
                self._again.cancel()
            call = self._call
        if call is not None:
            call.cancel()

    # --- the stream's thread ------------------------------------------------------

    def _begin(self) -> None:
        """See to it that there is a stream. The lock is held."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name=f"obhut-{self.worker}", daemon=True
            )
            self._thread.start()

    def _attend(self) -> None:
        """Have a stream, though nobody waits, so that the worker keeps the session."""
        with self._lock:
            if self._session is not None and not self._closing.is_set():
                self._begin()

    def _rest(self, again: bool) -> bool:
        """Tell whether nobody waits; then the next message begins a new stream.

        Args:
            again: whether a stream is to be had before, if it is for a session.
        """
        with self._lock:
            if self._waiting:
                return False
            self._renew()
            self._thread = None
            if again and self._session is not None and not self._closing.is_set():
                self._again = threading.Timer(self._idle_pause, self._attend)
                self._again.daemon = True
                self._again.start()
                self._idle_pause = min(self._idle_pause * 2, _LONGEST_IDLE_PAUSE)
            return True

    def _run(self) -> None:
        failing_since: float | None = None
        last = time.monotonic()
        pause = _FIRST_PAUSE
        while not self._closing.is_set():
            answered = False
            try:
                for parcel in self._stream():
                    answered, self._trouble = True, None
                    self._idle_pause = _FIRST_PAUSE
                    self._answer(parcel)
                error: ObhutError = TransportError(f"{self.worker} ended the stream")
            except grpc.RpcError as failure:
                error, lasting = self._translated(failure)
                if self._rest(not lasting and not _is_gone(failure)):
                    return
                if lasting:
                    self._give_up(error)
                    return
            except ObhutError as failure:
                self._give_up(failure)
                return
            except MemoryError:
                self._give_up(LimitError(f"{self.worker}'s reply does not fit here"))
                return
            self._trouble = error
            now = time.monotonic()
            if answered or failing_since is None or now - last > _TRY_SECONDS:
                failing_since, pause = now, _FIRST_PAUSE
            last = now
            if self._rest(again=True):
                return
            if now - failing_since > self._reconnect_seconds:
                self._fail_waiting(error)
                with self._lock:
                    self._renew()
                    self._thread = None
                return
            self._closing.wait(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
            with self._lock:
                self._renew()
        self._fail_waiting(TransportError(f"the way to {self.worker} is closed"))

    def _renew(self) -> None:
        """Begin a new outbox with all that was not answered. The lock is held."""
        self._outbox.put(None)
        self._outbox = queue.SimpleQueue()
        for pending in self._waiting:
            for chunk in pending.slices:
                self._outbox.put(chunk)

    def _stream(self) -> Iterator[Parcel]:
        """Open a stream and yield what comes."""
        with self._lock:
            outbox = self._outbox
            idle = None if self._waiting else self._session
        metadata = None if idle is None else ((SESSION, idle),)
        with channel(self._target, self._credentials, self._options) as opened:
            method: grpc.StreamStreamMultiCallable[bytes, bytes]
            method = opened.stream_stream(EXCHANGE)
            chunks = map(wire.joined, iter(outbox.get, None))
            call = method(chunks, metadata=metadata, wait_for_ready=False)
            with self._lock:
                self._call, self._opened = call, opened
                cancelled = [one for one in self._waiting if one.cancelled]
            for pending in cancelled:
                pending.cancel()
            assembler = wire.Assembler(
                self._reply_bytes,
                lambda header, lengths: wire.Apart(lengths, self._memory),
            )
            for chunk in call:
                complete = assembler.feed(chunk)
                if complete is not None:
                    header, frames = complete
                    yield Parcel(codec.decode(header, frames), frames)

    def _answer(self, parcel: Parcel) -> None:
        with self._lock:
            if not self._waiting:
                raise RemoteProtocolError(f"{self.worker} answers without being asked")
            pending = self._waiting.popleft()
        pending.settle(parcel, None)

    def _give_up(self, error: ObhutError) -> None:
        with self._lock:
            self._lasting = error
        self._fail_waiting(error)

    def _fail_waiting(self, error: ObhutError) -> None:
        with self._lock:
            waiting = list(self._waiting)
            self._waiting.clear()
        for pending in waiting:
            pending.settle(None, error)

    @property
    def _place(self) -> str:
        """Where the worker is, for texts."""
        return f"at {self._target}"

    def _said(self) -> str:
        """Return what is to be said of a long wait for an answer."""
        if self._trouble is not None:
            return f"trying again to reach {self._trouble}"
        return f"waiting for {self.worker} {self._place}"

    def _translated(self, failure: grpc.RpcError) -> tuple[ObhutError, bool]:
        """Return the error for a failed call, and whether a retry can not mend it."""
        # A failed stream is its own exception, which the stubs do not know.
        call: Any = failure
        text = f"{self.worker} {self._place}: {call.details()}"
        kind = LASTING.get(call.code())
        if kind is not None:
            return kind(text), True
        return TransportError(text + proxies.through(self._target)), False


def _is_gone(failure: grpc.RpcError) -> bool:
    """Tell whether the session that a stream was for is not there."""
    # A failed stream is its own exception, which the stubs do not know.
    call: Any = failure
    return bool(call.code() is grpc.StatusCode.NOT_FOUND)


def _slices(header: bytes, frames: Sequence[Frame]) -> Iterator[wire.Slices]:
    """Return what a parcel's chunks are made of, in memory that stays as it is.

    Where it does not, each is copied when it is asked for.

    Raises:
        MemoryError: at once, if there is no room.
    """
    if all(memoryview(frame).readonly for frame in frames):
        return wire.slices(header, frames)
    size = wire.length(header, frames)
    if size <= wire.CHUNK_BYTES:
        return iter([tuple(wire.cut(header, frames))])
    return _copied_into(wire.fresh(size), wire.slices(header, frames))


def _copied_into(
    room: memoryview, slices: Iterator[wire.Slices]
) -> Iterator[wire.Slices]:
    end = 0
    for parts in slices:
        start = end
        for part in parts:
            end += len(part)
            wire.fill(room[end - len(part) : end], memoryview(part))
        yield (room[start:end],)
