"""What passed between requesters and owners' workers, and whether low alone says it.

::

    with recording() as transcripts:
        ...                                      # whatever asks workers of this process
    for transcript in transcripts:
        assert not list(differences(transcript))

Who answers for an owner has never seen a value (``worker/owners.py``). So a worker that
has no data, but knows how they look, says the same to the byte when it is told the same
requests, times and outcomes of headers.

Rules:

- A transcript holds all bytes that came and went, and no data of the owner's.
- It can be written to a file and reproduced in a process that never had the data:
  ``python -m obhut.testing.transcripts FILE``.
- What a gate refused before the worker was asked is in no transcript.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import msgspec
import torch

from obhut.errors import ObhutError
from obhut.guard.policy import Quorum, decode, encode
from obhut.protocol import codec
from obhut.protocol.codec import Frame
from obhut.protocol.messages import (
    AnyMessage,
    Batch,
    Close,
    Open,
    Refused,
    TensorSpec,
)
from obhut.transports import Pending, Transport
from obhut.transports.local import LocalShell
from obhut.worker.core import Worker
from obhut.worker.effects import Delivery, Effect, Parcel
from obhut.worker.owners import OwnersWorker
from obhut.worker.roles import Owner
from obhut.worker.shape_only import shape_only
from obhut.worker.shapes import spec
from obhut.worker.tensors import DTYPES, spec_of


class Header(NamedTuple):
    """The header of a delivery.

    Attributes:
        to: for whom it is.
        request: the place of its request.
        sent: the message, encoded.
        frames: how many frames went with it.
    """

    to: str
    request: int
    sent: bytes
    frames: int


class Exchange(msgspec.Struct):
    """One message to an owner's worker, and what became of it.

    Attributes:
        sender: who sent it.
        sent: the message, encoded.
        frames: its frames.
        now: the worker's time.
        headers: what the worker declared that it delivers; None if that was not seen.
        outcomes: why each was refused, encoded; nothing for what was accepted.
        received: the reply, encoded, or an error; None if nobody looked.
        brought: its frames.
    """

    sender: str
    sent: bytes
    frames: tuple[bytes, ...]
    now: float = 0.0
    headers: list[Header] | None = None
    outcomes: list[bytes] = []
    received: bytes | None = None
    brought: tuple[bytes, ...] = ()


class Transcript(msgspec.Struct):
    """All that passed at one owner's worker.

    Attributes:
        worker: its name.
        policy: the owner's, encoded.
        looks: what the data look like, by data set and part.
        memory_limit: as for ``Worker``.
        session_seconds: likewise.
        exchanges: the messages, in the order in which they were taken in.
        order: places in ``exchanges``: for the first time where a message was taken in,
            for the second where the worker was told how what it delivers had ended.
    """

    worker: str
    policy: bytes
    looks: dict[str, dict[str, TensorSpec]]
    memory_limit: int | None = None
    session_seconds: float | None = None
    exchanges: list[Exchange] = []
    order: list[int] = []

    def begin(self, exchange: Exchange) -> None:
        """Take in that a message was taken in."""
        self.order.append(len(self.exchanges))
        self.exchanges.append(exchange)


# --- low alone --------------------------------------------------------------------


def alone(transcript: Transcript) -> Worker:
    """Return a worker that answers as the transcript's, and has no data."""
    policy = decode(transcript.policy)
    if not isinstance(policy, Quorum):
        raise ValueError("only an owner's worker has a transcript")
    return Worker(
        transcript.worker,
        memory_limit=transcript.memory_limit,
        session_seconds=transcript.session_seconds,
        datasets={
            name: {part: _looking(one) for part, one in parts.items()}
            for name, parts in transcript.looks.items()
        },
        role=Owner(policy),
    )


def differences(
    transcript: Transcript, make: Callable[[Transcript], Worker] = alone
) -> Iterator[str]:
    """Yield where a worker without data says something else.

    Args:
        transcript: what was said.
        make: returns the worker.
    """
    worker = make(transcript)
    said: dict[int, Parcel] = {}
    for place in transcript.order:
        one = transcript.exchanges[place]
        message = codec.decode(one.sent, one.frames)
        if place in said:
            said[place] = _settled(worker, one, message, len(one.outcomes))
            continue
        parcel = Parcel(message, one.frames)
        said[place], effects = worker.handle(one.sender, parcel, one.now)
        if one.headers is None:
            if effects:
                said[place] = _settled(worker, one, message, len(effects))
        elif _headers(effects) != one.headers:
            yield f"message {place + 1} has other headers: {_shown(one.sent)}"
    for place, parcel in said.items():
        one = transcript.exchanges[place]
        told = (codec.encode(parcel.message), tuple(map(bytes, parcel.frames)))
        if one.received is not None and told != (one.received, one.brought):
            yield (
                f"message {place + 1}, {_shown(one.sent)}, was answered with "
                f"{_shown(one.received)} and alone with {_shown(told[0])}"
            )


def _looking(look: TensorSpec) -> torch.Tensor:
    strided = spec(look.shape, look.stride, DTYPES[look.dtype])
    return shape_only(strided).requires_grad_(look.requires_grad)


def _settled(worker: Worker, one: Exchange, message: AnyMessage, count: int) -> Parcel:
    if not isinstance(message, Batch):
        raise ValueError("only a batch delivers")
    outcomes: list[Refused | None] = [None] * count
    for place, outcome in enumerate(one.outcomes):
        refused = codec.decode(outcome) if outcome else None
        if isinstance(refused, Refused):
            outcomes[place] = refused
    return worker.settle(one.sender, message.session, outcomes)


def _headers(effects: Sequence[Effect]) -> list[Header]:
    return [
        Header(one.to, one.index, codec.encode(one.message), len(one.frames))
        for one in effects
        if isinstance(one, Delivery)
    ]


def _shown(header: bytes) -> str:
    return ascii(header.decode(errors="replace"))[:200]


# --- workers of this process ------------------------------------------------------


@contextlib.contextmanager
def recording() -> Iterator[list[Transcript]]:
    """Keep a transcript of each owner's worker of this process while inside."""
    recorder = _Recorder()
    exchange, handle, settle = LocalShell.exchange, Worker.handle, Worker.settle

    def exchanged(
        shell: LocalShell, sender: str, message: AnyMessage, frames: Sequence[Frame]
    ) -> Parcel:
        if not isinstance(shell._core, OwnersWorker):
            return exchange(shell, sender, message, frames)
        with recorder.open(sender, message, frames) as one:
            reply = exchange(shell, sender, message, frames)
            one.received = codec.encode(reply.message)
            one.brought = tuple(map(bytes, reply.frames))
            return reply

    def handled(
        worker: Worker, sender: str, parcel: Parcel, now: float
    ) -> tuple[Parcel, tuple[Effect, ...]]:
        if not isinstance(worker, OwnersWorker):
            return handle(worker, sender, parcel, now)
        one = recorder.begin(worker, now)
        reply, effects = handle(worker, sender, parcel, now)
        one.headers = _headers(effects)
        return reply, effects

    def settled(
        worker: Worker,
        sender: str,
        session: str,
        outcomes: Sequence[Refused | None],
    ) -> Parcel:
        if isinstance(worker, OwnersWorker):
            recorder.settle(worker, outcomes)
        return settle(worker, sender, session, outcomes)

    with (
        mock.patch.object(LocalShell, "exchange", exchanged),
        mock.patch.object(Worker, "handle", handled),
        mock.patch.object(Worker, "settle", settled),
    ):
        yield recorder.transcripts


class _Recorder:
    """Takes in what workers of this process are told and say.

    Attributes:
        transcripts: one for each worker.
    """

    def __init__(self) -> None:
        self.transcripts: list[Transcript] = []
        self._of: weakref.WeakKeyDictionary[Worker, Transcript] = (
            weakref.WeakKeyDictionary()
        )
        self._lock = threading.Lock()
        self._thread = threading.local()

    @contextlib.contextmanager
    def open(
        self, sender: str, message: AnyMessage, frames: Sequence[Frame]
    ) -> Iterator[Exchange]:
        """Take a message in; others may come while its effects are carried out."""
        one = Exchange(sender, codec.encode(message), tuple(map(bytes, frames)))
        self._open.append(one)
        try:
            yield one
        except BaseException as error:
            one.received = f"{type(error).__name__}: {error}".encode()
            raise
        finally:
            self._open.pop()

    def begin(self, worker: OwnersWorker, now: float) -> Exchange:
        """Take in that the worker has the message, and when."""
        one = self._open[-1]
        one.now = now
        with self._lock:
            transcript = self._of.get(worker)
            if transcript is None:
                transcript = self._of[worker] = transcript_of(worker)
                self.transcripts.append(transcript)
            transcript.begin(one)
        return one

    def settle(self, worker: OwnersWorker, outcomes: Sequence[Refused | None]) -> None:
        """Take in how a worker's effects ended."""
        one = self._open[-1]
        one.outcomes = [codec.encode(o) if o is not None else b"" for o in outcomes]
        with self._lock:
            transcript = self._of[worker]
            place = next(
                place
                for place, other in enumerate(transcript.exchanges)
                if other is one
            )
            transcript.order.append(place)

    @property
    def _open(self) -> list[Exchange]:
        """The messages that this thread has under way, the innermost last."""
        if not hasattr(self._thread, "open"):
            self._thread.open = []
        found: list[Exchange] = self._thread.open
        return found


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
    )


# --- workers elsewhere ------------------------------------------------------------


class RecordingTransport:
    """A requester's way to an owner's worker elsewhere, which keeps what passes.

    The worker's time and the outcomes of headers are not seen from here: nothing may
    expire, and what is delivered must be accepted.

    Args:
        inner: the transport that carries the messages.
        transcript: where they are kept.
        sender: who sends them.
    """

    def __init__(self, inner: Transport, transcript: Transcript, sender: str) -> None:
        self.worker = inner.worker
        self.address = inner.address
        self.eager = inner.eager
        self.mends = inner.mends
        self.shared = inner.shared
        self._inner = inner
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

    def close(self) -> None:
        """Give the way up."""
        self._inner.close()


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
        self._one.received = codec.encode(reply.message)
        self._one.brought = tuple(map(bytes, reply.frames))
        return reply

    def when_done(self, call: Callable[[], None]) -> None:
        self._pending.when_done(call)

    def cancel(self) -> None:
        self._pending.cancel()


# --- another process --------------------------------------------------------------


def write(transcripts: Sequence[Transcript], path: Path) -> None:
    """Write transcripts to a file."""
    path.write_bytes(msgspec.msgpack.encode(list(transcripts)))


def read(path: Path) -> list[Transcript]:
    """Read transcripts from a file."""
    return msgspec.msgpack.decode(path.read_bytes(), type=list[Transcript])


def main(paths: Sequence[str]) -> int:
    """Reproduce files of transcripts, and print what differs; return how much does."""
    found = 0
    messages = 0
    for path in paths:
        for number, transcript in enumerate(read(Path(path)), start=1):
            messages += len(transcript.exchanges)
            for difference in differences(transcript):
                found += 1
                print(f"{path}, {number}: {difference}")  # noqa: T201
    print(f"{messages:,} messages, {found or 'no'} differences")  # noqa: T201
    return found


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
