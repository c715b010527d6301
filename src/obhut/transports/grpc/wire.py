"""Parcels as a stream of gRPC messages.

A parcel begins with a prefix: the lengths of its header and of each of its
frames. Header and frames follow as one run of bytes, cut into chunks without
regard to where they end.

Rules:

- A receiver holds the lengths to its limits before it makes room for anything,
  and makes room for frames when their first byte comes.
- Chunks are cut when it is their turn to be sent, and are bytes of their own then.
- A chunk is copied once, to where its frames are wanted: the header, which comes
  first, tells where that is.
"""

from __future__ import annotations

import bisect
import ctypes
import itertools
import mmap
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Protocol, TypeAlias, TypeVar

from obhut.errors import LimitError, RemoteProtocolError
from obhut.protocol import limits
from obhut.protocol.codec import Frame

CHUNK_BYTES = 1 << 20
"""Bytes of one gRPC message. Measured as best are 512 KiB to 2 MiB."""

MESSAGE_BYTES = (1 << 21) + (1 << 16)
"""What a receiver accepts as one gRPC message."""

FRAMES_AT_MOST = limits.REQUESTS_PER_BATCH
"""Frames of one parcel."""

FRAME_BYTES_AT_MOST = 1 << 40
"""Bytes of one parcel's frames; what a receiver keeps of them is its own limit."""

PLACED_BYTES = 64 << 10
"""A receiver looks for a place for frames that have more bytes together."""

_PREFIX = struct.Struct("<IIQ")
_LENGTH = struct.Struct("<Q")
_LARGE_PAGES = getattr(mmap, "MADV_HUGEPAGE", None)
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}

Slices: TypeAlias = tuple[Frame, ...]
"""What one chunk is made of, in order."""

Memory: TypeAlias = Callable[[int], memoryview]
"""Makes room for so many bytes, which are taken as they are filled."""


def length(header: bytes, frames: Sequence[Frame]) -> int:
    """Return the bytes of all chunks of a parcel."""
    return (
        _PREFIX.size
        + len(frames) * _LENGTH.size
        + len(header)
        + sum(len(frame) for frame in frames)
    )


def cut(header: bytes, frames: Sequence[Frame] = ()) -> Iterator[bytes]:
    """Yield the chunks of a parcel.

    Args:
        header: the encoded message.
        frames: its frames, in order.
    """
    return map(joined, slices(header, frames))


def joined(parts: Slices) -> bytes:
    """Return a chunk."""
    return b"".join(parts)


def slices(header: bytes, frames: Sequence[Frame] = ()) -> Iterator[Slices]:
    """Yield what each chunk of a parcel is made of, without a copy.

    Args:
        header: the encoded message.
        frames: its frames, in order.
    """
    lengths = [len(frame) for frame in frames]
    prefix = _PREFIX.pack(len(header), len(frames), sum(lengths))
    begin = prefix + b"".join(map(_LENGTH.pack, lengths)) + header
    if len(begin) + sum(lengths) <= CHUNK_BYTES:
        yield (begin, *frames)
        return
    waiting: list[Frame] = []
    size = 0
    for piece in (begin, *frames):
        view = memoryview(piece)
        while view:
            part = view[: CHUNK_BYTES - size]
            view = view[len(part) :]
            waiting.append(part)
            size += len(part)
            if size == CHUNK_BYTES:
                yield tuple(waiting)
                waiting, size = [], 0
    if waiting:
        yield tuple(waiting)


def fresh(size: int) -> memoryview:
    """Return memory of its own, which is taken from the system as it is filled.

    Args:
        size: bytes, one at least.

    Raises:
        MemoryError: if there is not so much.
    """
    try:
        room = mmap.mmap(-1, size, **_PRIVATE)
    except (OSError, ValueError, OverflowError) as error:
        raise MemoryError(f"no {size:,} bytes") from error
    if _LARGE_PAGES is not None and size >= 2 * mmap.PAGESIZE:
        room.madvise(_LARGE_PAGES)
    return memoryview(room)


def fill(room: memoryview, data: memoryview) -> None:
    """Copy bytes to where there is room for as many.

    Other threads go on meanwhile, where what is copied can be addressed: all of a
    chunk, or memory that can be written to.
    """
    size = len(data)
    if size >= PLACED_BYTES and len(room) == size:
        source: object = None
        if not data.readonly:
            source = ctypes.addressof(ctypes.c_ubyte.from_buffer(data))
        elif isinstance(data.obj, bytes) and len(data.obj) == size:
            source = data.obj
        if source is not None:
            into = ctypes.addressof(ctypes.c_ubyte.from_buffer(room))
            ctypes.memmove(into, source, size)  # type: ignore[arg-type] # address or bytes
            return
    room[:] = data


_T_co = TypeVar("_T_co", covariant=True)
_T = TypeVar("_T")


class Destination(Protocol[_T_co]):
    """Where the frames of one parcel go, as they come."""

    def write(self, offset: int, data: memoryview) -> None:
        """Take bytes in that begin at ``offset`` in the run of all frames."""

    def frames(self) -> _T_co:
        """Return what became of them, once all are there."""

    def drop(self) -> None:
        """Give the room back: not all frames come. May be called more than once."""


class Extents:
    """A run of frames in several rooms.

    Args:
        starts: where in the run each room begins, ascending, from 0 on.
    """

    def __init__(self, starts: Sequence[int]) -> None:
        self._starts = starts

    def parts(
        self, offset: int, data: memoryview
    ) -> Iterator[tuple[int, int, memoryview]]:
        """Yield room, offset in it and bytes, for bytes at ``offset`` in the run."""
        while data:
            room = bisect.bisect_right(self._starts, offset) - 1
            last = room + 1 == len(self._starts)
            size = len(data) if last else self._starts[room + 1] - offset
            part = data[:size]
            yield room, offset - self._starts[room], part
            data, offset = data[len(part) :], offset + len(part)


class Apart:
    """A place where each large frame has memory of its own.

    Args:
        lengths: the bytes of each frame.
        memory: makes room for a large frame; others lie together.
    """

    def __init__(self, lengths: Sequence[int], memory: Memory) -> None:
        self._memory = memory
        self._lengths = lengths
        self._sizes: list[int] = []
        starts: list[int] = []
        self._homes: list[tuple[int, int]] = []
        end, open_room = 0, False
        for length in lengths:
            large = length >= PLACED_BYTES
            if large or not open_room:
                starts.append(end)
                self._sizes.append(0)
            self._homes.append((len(starts) - 1, self._sizes[-1]))
            self._sizes[-1] += length
            open_room = not large
            end += length
        homes = zip(self._homes, lengths, strict=True)
        self._large = {room for (room, _), size in homes if size >= PLACED_BYTES}
        self._extents = Extents(starts)
        self._rooms: list[memoryview | None] = [None] * len(starts)

    def write(self, offset: int, data: memoryview) -> None:
        """Take bytes in.

        Raises:
            MemoryError: if there is no room for them.
        """
        for room, start, part in self._extents.parts(offset, data):
            fill(self._room(room)[start : start + len(part)], part)

    def frames(self) -> tuple[memoryview, ...]:
        """Return the frames; a large one is all of what ``memory`` made."""
        found: list[memoryview] = []
        for (room, start), length in zip(self._homes, self._lengths, strict=True):
            whole = self._room(room)
            large = room in self._large
            found.append(whole if large else whole[start : start + length])
        return tuple(found)

    def drop(self) -> None:
        """Give the room back."""
        self._rooms = [None] * len(self._rooms)

    def _room(self, number: int) -> memoryview:
        room = self._rooms[number]
        if room is None:
            size = self._sizes[number]
            make = self._memory if number in self._large else _small
            room = self._rooms[number] = make(size)
        return room


def _small(size: int) -> memoryview:
    return fresh(size) if size > PLACED_BYTES else memoryview(bytearray(size))


class Together:
    """A place where all frames lie one after the other.

    Args:
        lengths: the bytes of each frame.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self._lengths = lengths
        self._room = memoryview(b"")

    def write(self, offset: int, data: memoryview) -> None:
        """Take bytes in."""
        if not self._room:
            self._room = _small(sum(self._lengths))
        self._room[offset : offset + len(data)] = data

    def frames(self) -> tuple[memoryview, ...]:
        """Return the frames."""
        ends = list(itertools.accumulate(self._lengths))
        return tuple(
            self._room[end - length : end]
            for end, length in zip(ends, self._lengths, strict=True)
        )

    def drop(self) -> None:
        """Give the room back."""
        self._room = memoryview(b"")


Find: TypeAlias = Callable[[bytes, tuple[int, ...]], Destination[_T]]
"""Finds a place for frames of these lengths, by the header that came before them."""


class Assembler(Generic[_T]):
    """Puts parcels together from chunks.

    Duty: ``drop`` it when no more chunks come.

    Args:
        frame_bytes: bytes that the frames of one parcel may have together.
        find: finds a place for large frames, when their first byte comes.
    """

    def __init__(self, frame_bytes: int, find: Find[_T] | None = None) -> None:
        self._frame_bytes = frame_bytes
        self._find = find
        self._begin = bytearray()
        self._lengths: tuple[int, ...] | None = None
        self._header = b""
        self._place: Destination[_T] | Together | None = None
        self._total = 0
        self._filled = 0

    @property
    def idle(self) -> bool:
        """Whether no parcel is under way."""
        return self._lengths is None and not self._begin

    def feed(self, chunk: bytes) -> tuple[bytes, _T | tuple[memoryview, ...]] | None:
        """Take in one chunk; return header and frames if they are complete.

        Raises:
            RemoteProtocolError: if the peer does not keep to the format.
            LimitError: when the last byte of a parcel has come whose frames are
                larger than allowed; they were thrown away, and the next may come.
        """
        view = memoryview(chunk)
        if self._lengths is None:
            self._begin += view
            view = self._try_begin()
            if self._lengths is None:
                return None
        if len(view) > self._total - self._filled:
            raise RemoteProtocolError("a chunk goes on after the end of its parcel")
        if view and self._total <= self._frame_bytes:
            if self._place is None:
                self._place = self._found(self._lengths)
            self._place.write(self._filled, view)
        self._filled += len(view)
        if self._filled < self._total:
            return None
        return self._complete(self._lengths)

    def drop(self) -> None:
        """Give back the room of a parcel that is under way."""
        place, self._place = self._place, None
        if place is not None:
            place.drop()

    def _found(self, lengths: tuple[int, ...]) -> Destination[_T] | Together:
        if self._find is None or self._total <= PLACED_BYTES:
            return Together(lengths)
        return self._find(self._header, lengths)

    def _complete(
        self, lengths: tuple[int, ...]
    ) -> tuple[bytes, _T | tuple[memoryview, ...]]:
        header, total, place = self._header, self._total, self._place
        self._begin, self._lengths, self._filled = bytearray(), None, 0
        self._header, self._place = b"", None
        if total > self._frame_bytes:
            raise LimitError(
                f"one message may bring {self._frame_bytes:,} bytes of tensors here, "
                f"this one brought {total:,}; send less at once"
            )
        return header, (Together(lengths) if place is None else place).frames()

    def _try_begin(self) -> memoryview:
        """Read prefix, lengths and header if they are there; return what follows."""
        begin = self._begin
        if len(begin) < _PREFIX.size:
            return memoryview(b"")
        header, count, total = _PREFIX.unpack_from(begin)
        if header > limits.HEADER_BYTES or count > FRAMES_AT_MOST:
            raise RemoteProtocolError("a parcel's header is longer than allowed")
        if total > FRAME_BYTES_AT_MOST:
            raise RemoteProtocolError("a parcel's frames are longer than allowed")
        start = _PREFIX.size + count * _LENGTH.size
        if len(begin) < start + header:
            return memoryview(b"")
        lengths = struct.unpack_from(f"<{count}Q", begin, _PREFIX.size)
        if sum(lengths) != total:
            raise RemoteProtocolError("a parcel's lengths contradict each other")
        self._lengths, self._total = lengths, total
        self._header = bytes(begin[start : start + header])
        return memoryview(bytes(begin[start + header :]))
