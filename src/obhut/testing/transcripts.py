"""What passed between requesters and owners' workers, and whether low alone says it.

::

    assert not list(differences(transcript))     # as ``recording`` kept it
    write([transcript], path)

Who answers for an owner has never seen a value (``worker/owners.py``). So a worker that
has no data, but knows how they look, says the same to the byte when it is told the same
requests, times and outcomes of headers.

Rules:

- A transcript holds all bytes that came and went, and no data of the owner's.
- It can be written to a file and reproduced in a process that never had the data:
  ``python -m obhut.testing.transcripts FILE``.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch

from obhut.guard.policy import Quorum, decode
from obhut.protocol import codec
from obhut.protocol.messages import AnyMessage, Batch, Refused, TensorSpec
from obhut.worker.core import Worker
from obhut.worker.effects import Delivery, Effect, Keeping, Parcel
from obhut.worker.roles import Owner
from obhut.worker.shape_only import shape_only
from obhut.worker.shapes import spec
from obhut.worker.tensors import DTYPES


class Header(NamedTuple):
    """The header of a delivery, or what a worker's own process is told or asked.

    Attributes:
        to: for whom it is; empty for that process.
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
        absent: where the worker got no frames, the bytes of each.
        digests: and what it got for them, if anything.
        now: the worker's time.
        cut: of a batch that was cancelled while it was carried out, the first request
            that was not.
        headers: what the worker declared that it delivers; None if that was not seen.
        outcomes: why each was refused, encoded; nothing for what was accepted.
        received: the reply, encoded, or an error; None if nobody looked.
        brought: its frames.
    """

    sender: str
    sent: bytes
    frames: tuple[bytes, ...] = ()
    absent: tuple[int, ...] = ()
    digests: tuple[bytes, ...] = ()
    now: float = 0.0
    cut: int | None = None
    headers: list[Header] | None = None
    outcomes: list[bytes] = []
    received: bytes | None = None
    brought: tuple[bytes, ...] = ()

    def parcel(self) -> Parcel:
        """Return the message with what the worker gets for its frames."""
        digests = self.digests or (b"",) * len(self.absent)
        frames = self.frames or tuple(map(codec.FrameDigest, digests))
        sizes = self.absent or tuple(map(len, frames))
        return Parcel(codec.decode_ahead(self.sent, sizes), frames)

    def receive(self, reply: Parcel) -> None:
        """Take in the reply."""
        self.received = codec.encode(reply.message)
        self.brought = tuple(map(bytes, reply.frames))


class Transcript(msgspec.Struct):
    """All that passed at one owner's worker.

    Attributes:
        worker: its name.
        policy: the owner's, encoded.
        looks: what the data look like, by data set and part.
        memory_limit: as for ``Worker``.
        session_seconds: likewise.
        hidden: the names of data sets whose number of rows is hidden.
        columns: the public names of columns, by data set and part.
        exchanges: the messages, in the order in which they were taken in.
        order: places in ``exchanges``: for the first time where a message was taken in,
            for the second where the worker was told how what it delivers had ended.
    """

    worker: str
    policy: bytes
    looks: dict[str, dict[str, TensorSpec]]
    memory_limit: int | None = None
    session_seconds: float | None = None
    hidden: tuple[str, ...] = ()
    columns: dict[str, dict[str, tuple[str, ...]]] = {}
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
        hidden=transcript.hidden,
        columns=transcript.columns,
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
        parcel = one.parcel()
        if place in said:
            said[place] = _settled(worker, one, parcel.message, len(one.outcomes))
            continue
        worker._cancelled = _cutting(one.cut)
        said[place], effects = worker.handle(one.sender, parcel, one.now)
        if one.headers is None:
            if effects:
                said[place] = _settled(worker, one, parcel.message, len(effects))
        elif headers(effects) != one.headers:
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


def _cutting(cut: int | None) -> Callable[[int], bool]:
    """Return what tells that a batch is cancelled, when it is asked so many times."""
    asked = itertools.count()
    return lambda number: next(asked) == cut


def _settled(worker: Worker, one: Exchange, message: AnyMessage, count: int) -> Parcel:
    if not isinstance(message, Batch):
        raise ValueError("only a batch delivers")
    outcomes: list[Refused | None] = [None] * count
    for place, outcome in enumerate(one.outcomes):
        refused = codec.decode(outcome) if outcome else None
        if isinstance(refused, Refused):
            outcomes[place] = refused
    return worker.settle(one.sender, message.session, outcomes)


def headers(effects: Sequence[Effect]) -> list[Header]:
    """Return the headers of what is delivered, stored and asked for."""
    found = []
    for one in effects:
        if isinstance(one, Delivery | Keeping):
            to = one.to if isinstance(one, Delivery) else ""
            sent = codec.encode(one.message)
            found.append(Header(to, one.index, sent, len(one.frames)))
        else:
            found.append(Header("", one.index, codec.encode(one.asked), 0))
    return found


def _shown(header: bytes) -> str:
    return ascii(header.decode(errors="replace"))[:200]


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
