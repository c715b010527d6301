"""Parcels as a stream of gRPC messages.

A parcel begins with a prefix: the lengths of its header and of each of its
frames. Header and frames follow as one run of bytes, cut into chunks without
regard to where they end.

Rules:

- A receiver holds the lengths to its limits before it makes room for anything,
  and makes room for frames when their first byte comes.
- Chunks are bytes of their own: once a parcel was cut up, its frames' memory may
  change.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence

from obhut.errors import LimitError, RemoteProtocolError
from obhut.protocol import limits
from obhut.protocol.codec import Frame

CHUNK_BYTES = 1 << 21
"""Bytes of one gRPC message. Measured as best are 1 to 4 MiB."""

MESSAGE_BYTES = CHUNK_BYTES + (1 << 16)
"""What a receiver accepts as one gRPC message."""

FRAMES_AT_MOST = limits.REQUESTS_PER_BATCH
"""Frames of one parcel."""

FRAME_BYTES_AT_MOST = 1 << 40
"""Bytes of one parcel's frames; what a receiver keeps of them is its own limit."""

KEPT_BYTES = 256 << 20
"""A receiver keeps at most so many bytes for the next parcel."""

_PREFIX = struct.Struct("<IIQ")
_LENGTH = struct.Struct("<Q")


def cut(header: bytes, frames: Sequence[Frame] = ()) -> Iterator[bytes]:
    """Yield the chunks of a parcel.

    Args:
        header: the encoded message.
        frames: its frames, in order.
    """
    lengths = [len(frame) for frame in frames]
    prefix = _PREFIX.pack(len(header), len(frames), sum(lengths))
    begin = prefix + b"".join(map(_LENGTH.pack, lengths)) + header
    if len(begin) + sum(lengths) <= CHUNK_BYTES:
        yield b"".join((begin, *frames))
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
                yield b"".join(waiting)
                waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)


class Assembler:
    """Puts parcels together from chunks.

    Args:
        frame_bytes: bytes that the frames of one parcel may have together.
        reuse: use the frames' memory again for the next parcel, since fresh memory
            costs three times as much as copying does. Duty then: be done with a
            parcel's frames before the next chunk is fed.
    """

    def __init__(self, frame_bytes: int, *, reuse: bool = False) -> None:
        self._frame_bytes = frame_bytes
        self._reuse = reuse
        self._begin = bytearray()
        self._lengths: tuple[int, ...] | None = None
        self._header = b""
        self._room = memoryview(b"")
        self._total = 0
        self._filled = 0

    @property
    def idle(self) -> bool:
        """Whether no parcel is under way."""
        return self._lengths is None and not self._begin

    def feed(self, chunk: bytes) -> tuple[bytes, tuple[memoryview, ...]] | None:
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
        if self._total > self._frame_bytes:
            self._filled += len(view)
        elif view:
            if len(self._room) < self._total:
                # Mapped, so that memory is taken as bytes come, not as announced.
                self._room = memoryview(mmap.mmap(-1, self._total))
            end = self._filled + len(view)
            self._room[self._filled : end] = view
            self._filled = end
        if self._filled < self._total:
            return None
        return self._complete(self._lengths)

    def _complete(self, lengths: Sequence[int]) -> tuple[bytes, tuple[memoryview, ...]]:
        if self._total > self._frame_bytes:
            self._begin, self._lengths, self._filled = bytearray(), None, 0
            raise LimitError(
                f"one message may bring {self._frame_bytes:,} bytes of tensors here, "
                f"this one brought {self._total:,}; send less at once"
            )
        room, start = self._room, 0
        frames: list[memoryview] = []
        for length in lengths:
            frames.append(room[start : start + length])
            start += length
        if not self._reuse or self._total > KEPT_BYTES:
            self._room = memoryview(b"")
        self._begin, self._lengths, self._filled = bytearray(), None, 0
        return self._header, tuple(frames)

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
