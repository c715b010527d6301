"""Streams that no honest client sends, made from parcels that one did.

Rules:

- The same seed makes the same streams.
- Each row of ``KINDS`` is one way to spoil a stream. Some spoil bytes, so that few get
  past the first check; others spoil what they mean, so that many get to the core.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import NamedTuple, TypeAlias

import msgspec
from msgspec import structs

from obhut.ops.aten import OVERLOADS
from obhut.protocol import codec
from obhut.protocol.codec import Frame
from obhut.protocol.messages import (
    NOWHERE,
    AnyMessage,
    AnyRequest,
    Backward,
    Batch,
    Close,
    Deliver,
    Describe,
    Expect,
    Fetch,
    Find,
    Free,
    Label,
    ListState,
    Load,
    Move,
    Open,
    Put,
    ReadGrad,
    RecallState,
    Ref,
    Run,
    StoreState,
    TensorData,
    Value,
    WriteData,
)
from obhut.transports import Pending, Transport
from obhut.transports.grpc import wire

from .traces import TracingTransport

_PREFIX = struct.Struct("<IIQ")
_LARGE = (0, 1, 255, 2**16, 2**31 - 1, 2**32 - 1)
_ENDLESS = (
    b"\xdd\xff\xff\xff\xff",  # an array of 2**32 - 1
    b"\xdf\xff\xff\xff\xff",  # a map
    b"\xdb\xff\xff\xff\xff",  # a text
    b"\xc6\xff\xff\xff\xff",  # bytes
    b"\xc9\xff\xff\xff\xff\x01",  # an extension
)


class Sent(NamedTuple):
    """A message that was sent, with its frames.

    Attributes:
        message: the message.
        frames: their bytes.
    """

    message: AnyMessage
    frames: tuple[bytes, ...]

    @property
    def header(self) -> bytes:
        """The message as it travels."""
        return codec.encode(self.message)


class RecordingTransport(TracingTransport):
    """A transport that keeps what is sent through it, with its frames.

    Args:
        inner: the transport that carries the messages.

    Attributes:
        parcels: what was sent, in order.
    """

    def __init__(self, inner: Transport) -> None:
        super().__init__(inner)
        self.parcels: list[Sent] = []

    def submit(self, message: AnyMessage, frames: Sequence[Frame] = ()) -> Pending:
        """Send a message and keep it."""
        self.parcels.append(Sent(message, tuple(bytes(frame) for frame in frames)))
        return super().submit(message, frames)


class Target(NamedTuple):
    """What a stream is made for.

    Attributes:
        session: an open session of whoever sends it.
        applied: the number of the last batch that it has applied.
        others: names of sessions that are somebody else's.
        workers: ids of workers.
    """

    session: str
    applied: int
    others: Sequence[str]
    workers: Sequence[str]


def stream(random: Random, recorded: Sequence[Sent], to: Target) -> list[bytes]:
    """Return the chunks of one stream.

    Args:
        random: what it is made from.
        recorded: parcels that an honest client sent.
        to: where it goes.
    """
    kind = random.choice(list(KINDS.values()))
    return kind(random, [_readdressed(one, to) for one in recorded], to)


def _readdressed(parcel: Sent, to: Target) -> Sent:
    """Return a parcel for that session, as the next that it takes."""
    message = parcel.message
    if isinstance(message, Batch):
        number = to.applied + 1
        message = structs.replace(message, session=to.session, number=number)
    elif isinstance(message, Open | Close | Deliver):
        message = structs.replace(message, session=to.session)
    return Sent(message, parcel.frames)


def _whole(parcel: Sent) -> bytes:
    return b"".join(wire.cut(parcel.header, parcel.frames))


def _pieces(random: Random, data: bytes) -> list[bytes]:
    """Return bytes in a few pieces."""
    cuts = sorted(random.randrange(len(data) + 1) for _ in range(random.randrange(4)))
    ends = [0, *cuts, len(data)]
    return [data[a:b] for a, b in itertools.pairwise(ends)]


Recorded: TypeAlias = Sequence[Sent]


def _flipped(random: Random, recorded: Recorded, to: Target) -> list[bytes]:
    """Some bits are others."""
    data = bytearray(_whole(random.choice(recorded)))
    for _ in range(random.choice((1, 1, 2, 20))):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return _pieces(random, bytes(data))


def _truncated(random: Random, recorded: Recorded, to: Target) -> list[bytes]:
    """It ends before its end, or goes on after it."""
    data = _whole(random.choice(recorded))
    if random.randrange(3):
        return _pieces(random, data[: random.randrange(len(data))])
    return [data, random.randbytes(random.randrange(1, 100))]


def _shuffled(random: Random, recorded: Recorded, to: Target) -> list[bytes]:
    """Pieces come twice, not at all, or in another order."""
    data = b"".join(_whole(random.choice(recorded)) for _ in range(2))
    pieces = [p for _ in range(2) for p in _pieces(random, data)]
    random.shuffle(pieces)
    return pieces[: random.randrange(1, len(pieces) + 1)]


def _mismeasured(random: Random, recorded: Recorded, to: Target) -> list[bytes]:
    """Lengths are not what comes."""
    parcel = random.choice(recorded)
    data = bytearray(_whole(parcel))
    words = _PREFIX.size // 4 + 2 * len(parcel.frames)
    at = 4 * random.randrange(words)
    value = int.from_bytes(data[at : at + 4], "little")
    changed = random.choice((value + 1, value - 1, value * 2, *_LARGE)) % 2**32
    data[at : at + 4] = changed.to_bytes(4, "little")
    return _pieces(random, bytes(data))


def _swapped(random: Random, recorded: Recorded, to: Target) -> list[bytes]:
    """A header comes with another's frames."""
    header = random.choice(recorded).header
    frames = [*random.choice(recorded).frames, random.randbytes(random.randrange(50))]
    return list(wire.cut(header, frames[random.randrange(2) :]))


def _nested(random: Random, recorded: Recorded, to: Target) -> list[bytes]:
    """Lists in lists in lists, where some message goes on."""
    depth = random.choice((10, 1_000, 100_000))
    lists = random.choice((b"\x91", b"\x81\xa1x", b"\xdc\x00\x01")) * depth
    header = random.choice(recorded).header
    at = random.randrange(len(header))
    return list(wire.cut(header[:at] + lists + random.choice((b"\x90", header[at:]))))


def _countless(random: Random, recorded: Recorded, to: Target) -> list[bytes]:
    """More is announced than there are bytes."""
    header = random.choice(recorded).header
    at = random.randrange(len(header))
    return list(wire.cut(header[:at] + random.choice(_ENDLESS) + header[at:]))


def _spliced(random: Random, recorded: Recorded, to: Target) -> list[bytes]:
    """Values are other values that can be read."""
    value = msgspec.msgpack.decode(random.choice(recorded).header)
    for _ in range(random.choice((1, 2, 5))):
        value = _replaced(random, value)
    return list(wire.cut(msgspec.msgpack.encode(value), random.choice(recorded).frames))


def _replaced(random: Random, value: object) -> object:
    """Return a value of which some part is another."""
    if isinstance(value, list) and value and random.randrange(8):
        at = random.randrange(len(value))
        return [*value[:at], _replaced(random, value[at]), *value[at + 1 :]]
    others: list[object] = [None, True, -1, 0, 2**63, 1e308, "", "x" * 5_000, b"\x00"]
    return random.choice([*others, [], [value], [value] * 100, {}, {"a": value}])


def _meant(random: Random, recorded: Recorded, to: Target) -> list[bytes]:
    """A message in the right form, with any ids and operators."""
    kind = random.randrange(12)
    id = random.randrange(-1, 40)
    other = random.choice([*to.others, to.session, random.randbytes(16).hex()])
    data = TensorData("float32", (2, 2), 0)
    if kind == 0:
        return list(wire.cut(codec.encode(Deliver(other, (id,), (data,))), [bytes(16)]))
    if kind == 1:
        return list(wire.cut(codec.encode(Close(random.choice(to.others)))))
    session = other if kind == 2 else to.session
    number = to.applied + random.choice((0, 1, 1, 1, 1, 1, 2, 2**40))
    requests = tuple(_request(random, to) for _ in range(random.randrange(1, 12)))
    count = sum(isinstance(one, Put) for one in requests)
    message = Batch(session, number, requests)
    return list(wire.cut(codec.encode(message), [random.randbytes(16)] * count))


def _request(random: Random, to: Target) -> AnyRequest:
    """Return any request."""

    def id() -> int:
        return random.choice((random.randrange(40), random.randrange(40), -1, 2**62))

    def ids() -> tuple[int, ...]:
        return tuple(id() for _ in range(random.randrange(1, 4)))

    def value() -> Value:
        refs: list[Value] = [Ref(id()), Ref(id()), Ref(id())]
        lists: list[Value] = [[Ref(id()), Ref(id())], [2, 3]]
        return random.choice([*refs, *lists, random.randrange(-2, 9), 0.5, True, None])

    worker, other = random.choice(to.workers), random.choice(to.others)
    makers: list[Callable[[], AnyRequest]] = [
        lambda: Put(id(), TensorData("float32", (2, 2), 0)),
        lambda: Load(
            "d",
            random.choice(("features", "target", "../d", "")),
            random.choice((id(), NOWHERE)),
            random.choice(((), ("a",), ("a", "a"), ("",))),
        ),
        lambda: Fetch(id()),
        lambda: Describe(id()),
        lambda: Backward(ids(), (None,), None, False, False),
        lambda: ReadGrad(id(), id()),
        lambda: WriteData(id(), id()),
        lambda: Label(id(), ("#x",)),
        lambda: Find(random.choice(((), ("#x",), ("#canary",)))),
        lambda: Free(ids()),
        lambda: Expect(ids(), worker),
        lambda: Move((id(),), worker, other, (id(),)),
        lambda: StoreState("x", random.randrange(3), ids()),
        lambda: RecallState(random.choice(("x", "../x")), random.randrange(4), id()),
        lambda: ListState("x"),
    ]
    if random.randrange(2):
        op = random.choice(_OPERATORS)
        args = [value() for _ in range(random.randrange(4))]
        return Run(op, args, {}, random.randrange(40), 1, bool(random.randrange(2)))
    return random.choice(makers)()


_OPERATORS = [name for name, kind, *_ in OVERLOADS if kind != "refused"]

KINDS: Mapping[str, Callable[[Random, Recorded, Target], list[bytes]]] = {
    "flipped": _flipped,
    "truncated": _truncated,
    "shuffled": _shuffled,
    "mismeasured": _mismeasured,
    "swapped": _swapped,
    "nested": _nested,
    "countless": _countless,
    "spliced": _spliced,
    "meant": _meant,
    "meant again": _meant,
    "meant once more": _meant,
}
"""Ways to spoil a stream, by name."""


def noise(random: Random) -> bytes:
    """Return what a stranger may say to a port that expects TLS."""
    hello = b"\x16\x03\x01" + random.randrange(2**16).to_bytes(2, "big") + b"\x01"
    begin = random.choice(
        (
            b"",
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"SSH-2.0-x\r\n",
            hello,
            b"\x80",
        )
    )
    return begin + random.randbytes(random.choice((0, 1, 100, 5_000)))
