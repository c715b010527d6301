"""Parcels as a stream of gRPC messages.

A parcel begins with a prefix: the lengths of its header and of each of its
frames. Header and frames follow as one run of bytes, cut into chunks without
regard to where they end.

Rules:

- A receiver holds the lengths to its limits before it makes room for anything,
  and makes room for a frame when its first byte comes.
- Chunks are bytes of their own: once a parcel was cut up, its frames' memory may
  change.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence

from obhut.errors import RemoteProtocolError
from obhut.protocol import limits
from obhut.protocol.codec import Frame

CHUNK_BYTES = 1 << 21
"""Bytes of one gRPC message: DESIGN section 7 measured 1 to 4 MiB as best."""

MESSAGE_BYTES = CHUNK_BYTES + (1 << 16)
"""What a receiver accepts as one gRPC message."""

FRAMES_AT_MOST = limits.REQUESTS_PER_BATCH
"""Frames of one parcel."""

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
        allocate: makes room for a frame of so many bytes.
    """

    def __init__(
        self,
        frame_bytes: int,
        allocate: Callable[[int], memoryview] = lambda n: memoryview(bytearray(n)),
    ) -> None:
        self._frame_bytes = frame_bytes
        self._allocate = allocate
        self._begin = bytearray()
        self._lengths: tuple[int, ...] | None = None
        self._header = b""
        self._frames: list[memoryview] = []
        self._filled = 0

    @property
    def idle(self) -> bool:
        """Whether no parcel is under way."""
        return self._lengths is None and not self._begin

    def feed(self, chunk: bytes) -> tuple[bytes, tuple[memoryview, ...]] | None:
        """Take in one chunk; return header and frames if they are complete.

        Raises:
            RemoteProtocolError: if the peer does not keep to the format.
        """
        view = memoryview(chunk)
        if self._lengths is None:
            self._begin += view
            view = self._try_begin()
            if self._lengths is None:
                return None
        while True:
            if self._frames and self._filled < len(self._frames[-1]):
                if not view:
                    return None
                frame = self._frames[-1]
                part = view[: len(frame) - self._filled]
                frame[self._filled : self._filled + len(part)] = part
                self._filled += len(part)
                view = view[len(part) :]
            elif len(self._frames) < len(self._lengths):
                length = self._lengths[len(self._frames)]
                if length and not view:
                    return None
                self._frames.append(self._allocate(length))
                self._filled = 0
            else:
                break
        if view:
            raise RemoteProtocolError("a chunk goes on after the end of its parcel")
        parcel = self._header, tuple(self._frames)
        self._begin, self._lengths = bytearray(), None
        self._frames, self._filled = [], 0
        return parcel

    def _try_begin(self) -> memoryview:
        """Read prefix, lengths and header if they are there; return what follows."""
        begin = self._begin
        if len(begin) < _PREFIX.size:
            return memoryview(b"")
        header, count, total = _PREFIX.unpack_from(begin)
        if header > limits.HEADER_BYTES or count > FRAMES_AT_MOST:
            raise RemoteProtocolError("a parcel's header is longer than allowed")
        if total > self._frame_bytes:
            raise RemoteProtocolError(
                f"a parcel has at most {self._frame_bytes:,} bytes of tensors here, "
                f"{total:,} were announced"
            )
        start = _PREFIX.size + count * _LENGTH.size
        if len(begin) < start + header:
            return memoryview(b"")
        lengths = struct.unpack_from(f"<{count}Q", begin, _PREFIX.size)
        if sum(lengths) != total:
            raise RemoteProtocolError("a parcel's lengths contradict each other")
        self._lengths = lengths
        self._header = bytes(begin[start : start + header])
        return memoryview(bytes(begin[start + header :]))
