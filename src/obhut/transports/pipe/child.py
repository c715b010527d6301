"""A child: a worker's core behind a pipe.

Rules:

- It takes one message after the other and ends when the pipe does.
- What goes wrong with one message is answered; only what keeps an answer from
  leaving ends the child.
- An error that is not obhut's own is answered without its text: it may hold data.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from typing import TypeAlias, assert_never

import torch

from obhut.errors import InternalError, LimitError, RemoteProtocolError
from obhut.guard.policy import Quorum, decode
from obhut.host.data.arrays import map_private
from obhut.protocol import codec, limits
from obhut.protocol.codec import Frame
from obhut.protocol.dtypes import nbytes
from obhut.protocol.messages import Batch, Deliver, Done, Refused, StateAnswer
from obhut.worker.core import Worker
from obhut.worker.effects import Delivery, Effect, Keeping, Leaving, Parcel
from obhut.worker.high import High
from obhut.worker.roles import Aggregator, Owner, Role
from obhut.worker.shape_only import shape_only
from obhut.worker.shapes import dense
from obhut.worker.tensors import DTYPES

from .control import (
    LINES,
    Borrow,
    Cancel,
    Control,
    Departure,
    Down,
    Handle,
    Handled,
    Lend,
    Settings,
    Settle,
    Sizes,
    Told,
    Unanswered,
)
from .link import INLINE_BYTES, Link, Received
from .mappings import Mappings
from .segment import split
from .shared_memory import view

_Link: TypeAlias = Link[Down]


_LOOK_SECONDS = 0.01
"""How often is looked whether a batch was cancelled."""

_TELL_SECONDS = 0.25
"""How often is told at most how much of it is done."""

LINES_FOR_OWNER = 1_000
"""Lines that one session may write for the worker's owner."""


Datasets: TypeAlias = dict[str, dict[str, torch.Tensor]]
"""A worker's data, by name and part."""


def map_datasets(settings: Settings) -> Datasets:
    """Map the worker's data for the children that are forked from this process.

    A page stays shared until a child writes into it, which then has its own.
    """
    found: Datasets = {}
    for one in settings.datasets:
        if one.fd is None:
            look = dense(one.shape, DTYPES[one.dtype])
            found.setdefault(one.dataset, {})[one.part] = shape_only(look)
            continue
        size = nbytes(one.dtype, one.shape)
        flat = torch.frombuffer(map_private(one.fd, size), dtype=DTYPES[one.dtype])
        found.setdefault(one.dataset, {})[one.part] = flat.reshape(one.shape)
    return found


def unmap_others(datasets: Datasets, settings: Settings) -> None:
    """Let go of the data sets that a child may not use.

    Args:
        datasets: what was mapped for all; those that are left stay.
        settings: the child's.
    """
    for name in datasets.keys() - {one.dataset for one in settings.datasets}:
        del datasets[name]


def main(link: _Link, settings: Settings, datasets: Datasets | None = None) -> None:
    """Serve one session, until the parent closes the pipe.

    Args:
        link: the pipe.
        settings: what holds for the child.
        datasets: the worker's data, as ``map_datasets`` mapped it.
    """
    torch.set_num_threads(settings.threads)
    torch.set_num_interop_threads(1)
    # Else all children would draw the numbers that the fork server would draw next.
    torch.manual_seed(int.from_bytes(os.urandom(8), "little"))
    mappings, lines, cancels = Mappings(), _ForOwner(), Cancels(link)
    policy = decode(settings.policy) if settings.policy else None
    core: Worker | Follower
    role: Role | None = None
    if isinstance(policy, Quorum):
        aggregates = settings.aggregates
        role = Aggregator(policy, mappings.passed) if aggregates else Owner(policy)
    if isinstance(policy, Quorum) and settings.execution == "high":
        core = Follower(
            High(
                settings.id,
                policy,
                datasets=datasets,
                hidden=settings.hidden,
                columns=settings.columns,
                log=lines,
                cancelled=cancels,
            )
        )
    else:
        core = Worker(
            settings.id,
            memory_limit=settings.memory,
            datasets=datasets or {},
            role=role,
            hidden=settings.hidden,
            columns=settings.columns,
            cancelled=cancels,
            progress=None if policy else Tells(link),
        )
    serve(cancels, core, mappings, lines.take)


class Follower:
    """The execution that has the rows, as one that takes messages.

    Args:
        high: the execution.
    """

    def __init__(self, high: High) -> None:
        self._high = high

    def handle(
        self, sender: str, parcel: Parcel, undone: Collection[int]
    ) -> tuple[Parcel, Sequence[Effect]]:
        """Do what was answered already; return what is delivered."""
        message, effects = parcel.message, list[Leaving]()
        match message:
            case Batch():
                effects = self._high.follow(message, parcel.frames, undone)
            case Deliver():
                self._high.take(sender, message, parcel.frames)
            case StateAnswer():
                self._high.recall(message, parcel.frames)
            case _:
                raise RemoteProtocolError("nothing follows on such a message")
        return Parcel(Done()), effects


class Cancels:
    """Tells whether the parent has cancelled a batch, while the child computes.

    Args:
        link: the pipe.

    Attributes:
        link: the pipe.
    """

    def __init__(self, link: _Link) -> None:
        self.link = link
        self._number = 0
        self._next = 0.0

    def __call__(self, number: int) -> bool:
        """Tell whether a batch is cancelled. Looks from time to time only."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _LOOK_SECONDS
            self._look()
        return number <= self._number

    def _look(self) -> None:
        """Take in what the parent says.

        Raises:
            SystemExit: if it is gone, or says anything else.
        """
        while self.link.waits():
            try:
                said = self.link.receive().control
            except EOFError:
                raise SystemExit from None
            if not isinstance(said, Cancel):
                raise SystemExit("the parent spoke out of turn")
            self._number = max(self._number, said.number)

    def receive(self) -> Received[Down]:
        """Wait for the next message that cancels nothing."""
        while True:
            received = self.link.receive()
            if not isinstance(received.control, Cancel):
                return received
            self._number = max(self._number, received.control.number)


class Tells:
    """Tells the parent what share of a batch is done, from time to time.

    Args:
        link: the pipe.
    """

    def __init__(self, link: _Link) -> None:
        self._link = link
        self._next = 0.0

    def __call__(self, done: float) -> None:
        """Take a share, from 0 to 1."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _TELL_SECONDS
            self._link.send(Told(int(1000 * done)))


class _ForOwner:
    """Lines that only the worker's owner may read, until the parent takes them.

    So many: whoever runs operators here shall not fill the owner's disk.
    """

    def __init__(self) -> None:
        self._left = LINES_FOR_OWNER
        self._lines: list[str] = []

    def __call__(self, line: str) -> None:
        """Add a line."""
        self._left -= 1
        if self._left > 0:
            self._lines.append(line[:400])
        elif self._left == 0:
            self._lines.append("it has more to tell, which is left out")

    def take(self) -> tuple[str, ...]:
        """Return the oldest lines, which are then gone."""
        lines, self._lines = self._lines[:LINES], self._lines[LINES:]
        return tuple(lines)


def serve(
    cancels: Cancels,
    core: Worker | Follower,
    mappings: Mappings,
    told: Callable[[], tuple[str, ...]] = tuple,
) -> None:
    """Take messages to a core and its answers back, until the pipe ends.

    Args:
        cancels: the pipe, and what is cancelled meanwhile.
        core: the core.
        mappings: what comes in segments.
        told: returns what is to be told to the worker's owner.
    """
    link = cancels.link
    while True:
        try:
            received = cancels.receive()
        except EOFError:
            return
        try:
            _answer(cancels, core, mappings, received, told)
        except EOFError:
            return
        except (LimitError, RemoteProtocolError) as error:
            link.send(_failed(error))
        except MemoryError:
            link.send(_failed(LimitError("no memory is left for an answer")))
        except Exception as error:
            link.send(_failed(InternalError(f"the worker met {type(error).__name__}")))


def _failed(error: InternalError | LimitError | RemoteProtocolError) -> Unanswered:
    kinds = (InternalError, LimitError, RemoteProtocolError)
    kind = next(k for k in kinds if isinstance(error, k)).__name__
    return Unanswered(kind, str(error)[: limits.TEXT_CHARACTERS])  # type: ignore[arg-type] # one of three


def _answer(
    cancels: Cancels,
    core: Worker | Follower,
    mappings: Mappings,
    received: Received[Down],
    told: Callable[[], tuple[str, ...]],
) -> None:
    """Let the core answer one message and send what it says."""
    control = received.control
    undone: Collection[int] = ()
    match control:
        case Handle():
            parcel = _parcel(control, mappings, received)
            effects: Sequence[Effect]
            if isinstance(core, Follower):
                reply, effects = core.handle(control.sender, parcel, control.undone)
            else:
                reply, effects = core.handle(control.sender, parcel, control.now)
                if isinstance(parcel.message, Batch):
                    undone = core.undone(parcel.message.session)
            del parcel
            parcels = [reply, *map(_effect, effects)]
            heads = [codec.encode(parcel.message) for parcel in parcels]
            reply_part, *parts = map(_part, heads, parcels)
            departures = tuple(
                Departure(_to(effect), effect.index, part)
                for effect, part in zip(effects, parts, strict=True)
            )
        case Settle():
            if isinstance(core, Follower):
                raise RemoteProtocolError("nobody waits for how a delivery ends")
            outcomes = [None if o is None else Refused(*o) for o in control.outcomes]
            reply = core.settle(control.sender, control.session, outcomes)
            undone = core.undone(control.session)
            parcels, heads = [reply], [codec.encode(reply.message)]
            reply_part, departures = _part(heads[0], reply), ()
        case Lend() | Cancel():
            raise RemoteProtocolError("nothing was to be lent")
        case _:
            assert_never(control)
    link = cancels.link
    frames = [frame for parcel in parcels for frame in parcel.frames]
    returned, places = mappings.returned(), tuple(sorted(undone))
    if sum(map(len, frames)) > INLINE_BYTES:
        _share(cancels, mappings, frames)
        said = Handled(reply_part, departures, True, returned, told(), places)
        link.send(said, heads)
    else:
        said = Handled(reply_part, departures, False, returned, told(), places)
        link.send(said, [*heads, *frames])


def _effect(effect: Effect) -> Parcel:
    if isinstance(effect, Delivery | Keeping):
        return Parcel(effect.message, effect.frames)
    return Parcel(effect.asked)


def _to(effect: Effect) -> str:
    return effect.to if isinstance(effect, Delivery) else ""


def _part(head: bytes, parcel: Parcel) -> Sizes:
    return Sizes(len(head), tuple(map(len, parcel.frames)))


def _parcel(control: Handle, mappings: Mappings, received: Received[Down]) -> Parcel:
    """Return the parcel that came, its frames where they are.

    Raises:
        RemoteProtocolError: if it is none.
    """
    part, body = control.part, received.body
    header, rest = body[: part.header], body[part.header :]
    mappings.forget(control.gone)
    if control.absent:
        # Nothing here reads them.
        sizes = part.frames
        digests = control.digests or (b"",) * len(sizes)
        stand_ins = tuple(map(codec.FrameDigest, digests))
        return Parcel(codec.decode_ahead(header, sizes), stand_ins)
    if control.segment:
        frames = mappings.frames(control.segment, received.fd, part.frames)
    else:
        frames = split(rest, part.frames)
    return Parcel(codec.decode(header, frames), frames)


def _share(cancels: Cancels, mappings: Mappings, frames: Sequence[Frame]) -> None:
    """Copy frames into memory that the parent lends for them.

    Raises:
        LimitError: if it does not lend so much.
    """
    size = sum(map(len, frames))
    cancels.link.send(_borrow(size))
    lent = cancels.receive()
    if not isinstance(lent.control, Lend):
        raise RemoteProtocolError("expected what was to be borrowed")
    mappings.forget(lent.control.gone)
    if not lent.control.segment:
        raise LimitError(f"an answer of {size:,} bytes is too large; ask for less")
    with view(mappings.take(lent.control.segment, lent.fd)) as room:
        offset = 0
        for frame in frames:
            room[offset : offset + len(frame)] = frame
            offset += len(frame)


def _borrow(size: int) -> Control:
    return Borrow(size)
