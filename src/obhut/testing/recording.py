"""Keeps what passes between requesters and owners' workers.

::

    with recording() as transcripts:
        ...                                      # whatever asks owners' workers
    for transcript in transcripts:
        assert not list(differences(transcript))

Rules:

- Of a worker in this process is kept what it is told and says, and of a served one
  whose parent is this process what its process that answers is told and says.
- A worker that had a session before is left out: its transcript has no beginning.
- What a gate refused before the worker was asked is in no transcript.
- Ctrl-C in the middle of a worker of this process is no message: what follows it can
  not be reproduced.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from obhut.errors import ObhutError
from obhut.guard.policy import encode
from obhut.protocol import codec
from obhut.protocol.codec import Frame
from obhut.protocol.dtypes import nbytes
from obhut.protocol.messages import (
    AnyMessage,
    Batch,
    Close,
    Open,
    Put,
    Refused,
    Results,
    StateAnswer,
    TensorSpec,
)
from obhut.transports import Pending, Transport
from obhut.transports.local import LocalShell
from obhut.transports.pipe.parent import Absent, Child, Exchanged, Frames
from obhut.worker.core import Worker
from obhut.worker.effects import Effect, Parcel
from obhut.worker.owners import OwnersWorker
from obhut.worker.roles import Owner
from obhut.worker.shape_only import shape_only
from obhut.worker.shapes import dense
from obhut.worker.tensors import DTYPES, spec_of

from .transcripts import Exchange, Transcript, headers
from .wrapping import WrappingTransport


@contextlib.contextmanager
def recording() -> Iterator[list[Transcript]]:
    """Keep a transcript of each owner's worker while inside."""
    recorder = _Recorder()
    exchange, handle, settle = LocalShell.exchange, Worker.handle, Worker.settle
    told, ended = Child.exchange, Child.settle

    def exchanged(
        shell: LocalShell, sender: str, message: AnyMessage, frames: Sequence[Frame]
    ) -> Parcel:
        if not isinstance(shell._core, OwnersWorker):
            return exchange(shell, sender, message, frames)
        with recorder.open(sender, message, frames) as one:
            reply = exchange(shell, sender, message, frames)
            one.receive(reply)
            return reply

    def handled(
        worker: Worker, sender: str, parcel: Parcel, now: float
    ) -> tuple[Parcel, tuple[Effect, ...]]:
        kept = recorder.of(worker, parcel.message)
        if kept is None:
            return handle(worker, sender, parcel, now)
        one = recorder.begun(sender, parcel)
        one.now = now
        place = kept.begin(one)
        reply, effects = handle(worker, sender, parcel, now)
        kept.answer(place, parcel.message, effects)
        told = isinstance(parcel.message, StateAnswer)
        if not effects and (told or not recorder.under_way):
            one.receive(reply)
        return reply, effects

    def settled(
        worker: Worker,
        sender: str,
        session: str,
        outcomes: Sequence[Refused | None],
    ) -> Parcel:
        kept = recorder.of(worker)
        if kept is None:
            return settle(worker, sender, session, outcomes)
        one = kept.settle(session, outcomes)
        reply = settle(worker, sender, session, outcomes)
        if one is not None and not recorder.under_way:
            one.receive(reply)
        return reply

    # Any: what else is passed to a child.
    def child_told(
        child: Child,
        sender: str,
        header: bytes,
        frames: Frames,
        now: float,
        **options: Any,
    ) -> Exchanged:
        if not isinstance(frames, Absent):
            return told(child, sender, header, frames, now, **options)
        message = codec.decode_ahead(header, frames.sizes)
        kept = recorder.of(child, message)
        if kept is None:
            return told(child, sender, header, frames, now, **options)
        with kept.in_line:
            sizes, digests = frames
            one = Exchange(sender, header, absent=sizes, digests=digests, now=now)
            place = kept.begin(one)
            said = told(child, sender, header, frames, now, **options)
            kept.answer(place, message, said.effects)
            reply = said.message
            if isinstance(reply, Results):
                one.cut = reply.cut
            if not said.effects:
                one.receive(Parcel(reply, said.frames))
            return said

    def child_ended(
        child: Child,
        sender: str,
        session: str,
        outcomes: Sequence[Refused | None],
        **options: Any,
    ) -> Exchanged:
        kept = recorder.of(child)
        if kept is None:
            return ended(child, sender, session, outcomes, **options)
        with kept.in_line:
            one = kept.settle(session, outcomes)
            said = ended(child, sender, session, outcomes, **options)
            if one is not None:
                one.receive(Parcel(said.message, said.frames))
            return said

    with (
        mock.patch.object(LocalShell, "exchange", exchanged),
        mock.patch.object(Worker, "handle", handled),
        mock.patch.object(Worker, "settle", settled),
        mock.patch.object(Child, "exchange", child_told),
        mock.patch.object(Child, "settle", child_ended),
    ):
        yield recorder.transcripts


@dataclass
class _Kept:
    """What is kept of one worker.

    Attributes:
        transcript: what passed.
        waiting: by session, the place of the batch that waits for its effects.
        in_line: held while a process is asked, so that what is kept has its order.
        changing: held while something is added.
    """

    transcript: Transcript
    waiting: dict[str, int] = field(default_factory=dict)
    in_line: threading.Lock = field(default_factory=threading.Lock)
    changing: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, one: Exchange) -> int:
        """Take in that a message was taken in; return its place."""
        with self.changing:
            self.transcript.begin(one)
            return len(self.transcript.exchanges) - 1

    def answer(
        self, place: int, message: AnyMessage, effects: Sequence[Effect]
    ) -> None:
        """Take in what has to be done before a message's answer is final."""
        self.transcript.exchanges[place].headers = headers(effects)
        if effects and isinstance(message, Batch):
            self.waiting[message.session] = place

    def settle(
        self, session: str, outcomes: Sequence[Refused | None]
    ) -> Exchange | None:
        """Take in how effects ended; return of which message, None if of none."""
        place = self.waiting.get(session)
        if place is None:
            return None
        one = self.transcript.exchanges[place]
        one.outcomes = [codec.encode(o) if o is not None else b"" for o in outcomes]
        with self.changing:
            self.transcript.order.append(place)
        return one


class _Recorder:
    """Takes in what workers are told and say.

    Attributes:
        transcripts: one for each worker.
    """

    def __init__(self) -> None:
        self.transcripts: list[Transcript] = []
        self._kept: weakref.WeakKeyDictionary[Worker | Child, _Kept | None] = (
            weakref.WeakKeyDictionary()
        )
        self._lock = threading.Lock()
        self._thread = threading.local()

    def of(
        self, source: Worker | Child, message: AnyMessage | None = None
    ) -> _Kept | None:
        """Return what is kept of a worker, None if nothing is.

        Args:
            source: the worker, or the process of a served one.
            message: what it is told now, if it is told something.
        """
        with self._lock:
            if source not in self._kept and message is not None:
                transcript = _begun(source, message)
                self._kept[source] = None
                if transcript is not None:
                    self._kept[source] = _Kept(transcript)
                    self.transcripts.append(transcript)
            return self._kept.get(source)

    @contextlib.contextmanager
    def open(
        self, sender: str, message: AnyMessage, frames: Sequence[Frame]
    ) -> Iterator[Exchange]:
        """Take a message in; others may come while its effects are carried out."""
        one = Exchange(sender, codec.encode(message), tuple(map(bytes, frames)))
        self.under_way.append(one)
        try:
            yield one
        except Exception as error:
            one.received = f"{type(error).__name__}: {error}".encode()
            raise
        finally:
            self.under_way.pop()

    def begun(self, sender: str, parcel: Parcel) -> Exchange:
        """Return the message that this thread has under way, a new one if it has none.

        It has none where no shell is between the requester and the worker, or where
        the shell itself tells the worker something.
        """
        if self.under_way and not isinstance(parcel.message, StateAnswer):
            return self.under_way[-1]
        header, frames = codec.encode(parcel.message), tuple(map(bytes, parcel.frames))
        if any(isinstance(one, codec.FrameDigest) for one in parcel.frames):
            sizes = _sizes(parcel.message)
            return Exchange(sender, header, absent=sizes, digests=frames)
        return Exchange(sender, header, frames)

    @property
    def under_way(self) -> list[Exchange]:
        """The messages that this thread has under way, the innermost last."""
        if not hasattr(self._thread, "open"):
            self._thread.open = []
        found: list[Exchange] = self._thread.open
        return found


def _sizes(message: AnyMessage) -> tuple[int, ...]:
    """Return the bytes of each frame that a message is sent with."""
    if isinstance(message, StateAnswer):
        return message.sizes
    requests = message.requests if isinstance(message, Batch) else ()
    tensors = [one.data for one in requests if isinstance(one, Put)]
    return tuple(nbytes(data.dtype, data.shape) for data in tensors)


def _begun(source: Worker | Child, message: AnyMessage) -> Transcript | None:
    """Return an empty transcript of an owner's worker that had no session so far."""
    if isinstance(source, OwnersWorker):
        return None if source._sessions else transcript_of(source)
    if isinstance(source, Child) and source._settings.execution == "low":
        return _transcript_of_child(source) if isinstance(message, Open) else None
    return None


def transcript_of(worker: OwnersWorker) -> Transcript:
    """Return an empty transcript of a worker."""
    role = worker._role
    if not isinstance(role, Owner):
        raise ValueError("only an owner's worker has a transcript")
    return Transcript(
        worker.id,
        encode(role.policy),
        {
            name: {part: spec_of(look) for part, look in parts.items()}
            for name, parts in worker._datasets.items()
        },
        worker._memory_limit,
        worker._session_seconds,
        tuple(sorted(worker._hidden)),
        {
            name: {part: tuple(names) for part, names in parts.items()}
            for name, parts in worker._columns.items()
        },
    )


def _transcript_of_child(child: Child) -> Transcript:
    """Return an empty transcript of the process that answers for a served worker."""
    settings = child._settings
    looks: dict[str, dict[str, TensorSpec]] = {}
    for one in settings.datasets:
        look = dense(one.shape, DTYPES[one.dtype])
        looks.setdefault(one.dataset, {})[one.part] = spec_of(shape_only(look))
    return Transcript(
        settings.id,
        settings.policy,
        looks,
        settings.memory,
        hidden=tuple(sorted(settings.hidden)),
        columns=settings.columns,
    )


# --- workers elsewhere ------------------------------------------------------------


class RecordingTransport(WrappingTransport):
    """A requester's way to an owner's worker elsewhere, which keeps what passes.

    The worker's time and the outcomes of headers are not seen from here: nothing may
    expire, and what is delivered must be accepted.

    Args:
        inner: the transport that carries the messages.
        transcript: where they are kept.
        sender: who sends them.
    """

    def __init__(self, inner: Transport, transcript: Transcript, sender: str) -> None:
        super().__init__(inner)
        self._transcript = transcript
        self._sender = sender

    def submit(self, message: AnyMessage, frames: Sequence[Frame] = ()) -> Pending:
        """Send a message and keep it, if it is for the session and not the server."""
        if not isinstance(message, Open | Batch | Close):
            return self._inner.submit(message, frames)
        sent = codec.encode(message)
        one = Exchange(self._sender, sent, tuple(map(bytes, frames)))
        pending = self._inner.submit(message, frames)
        self._transcript.begin(one)
        return _Recorded(pending, one)


class _Recorded:
    """A reply that is kept when it is read."""

    def __init__(self, pending: Pending, one: Exchange) -> None:
        self._pending = pending
        self._one = one

    def done(self) -> bool:
        return self._pending.done()

    def result(self, timeout: float | None = None) -> Parcel:
        try:
            reply = self._pending.result(timeout)
        except ObhutError as error:
            self._one.received = f"{type(error).__name__}: {error}".encode()
            raise
        self._one.receive(reply)
        return reply

    def when_done(self, call: Callable[[], None]) -> None:
        self._pending.when_done(call)

    def cancel(self) -> None:
        self._pending.cancel()
