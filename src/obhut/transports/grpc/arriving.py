"""Frames that are written into a child's shared memory as they come.

Rules:

- The header has come before, and was checked: who sends it may, and the session is
  there. It is asked again when all is there.
- Memory that was taken for a session goes to that session's child, or back.
- A long header costs many times its size once it is decoded: the message is not kept
  while frames come, but read again.
- Where there is no memory, what comes is thrown away and refused once all of it has
  come: the stream goes on.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from typing import Protocol

from obhut.errors import InternalError, ObhutError, SessionLostError
from obhut.protocol.codec import Frame
from obhut.protocol.messages import AnyMessage
from obhut.transports.pipe.parent import InSegment
from obhut.transports.pipe.segment import Segment, places

from .wire import Extents


class Lender(Protocol):
    """Who has memory for frames that come: a child, seen from outside."""

    def segment(self, size: int) -> Segment:
        """Return memory, to be handed to the child or given back.

        Raises:
            LimitError: if there is none.
        """

    def write(self, segment: Segment, offset: int, data: Frame) -> None:
        """Copy bytes into it.

        Raises:
            ObhutError: if that is not possible.
        """

    def give_back(self, segment: Segment) -> None:
        """Take back memory that the child does not get."""


class Arriving:
    """Frames under way to a child, or to nowhere.

    Duty: ``drop`` it in the end.

    Args:
        message: what came before them, None if it is to be read again, or the error
            that keeps them from going anywhere.
        lender: the child.
        lengths: the bytes of each frame.
        heard: called when some of them come.
        hashed: whether they are hashed on their way.

    Attributes:
        lengths: the bytes of each frame.
    """

    def __init__(
        self,
        message: AnyMessage | ObhutError | None,
        lender: Lender | None,
        lengths: Sequence[int],
        heard: Callable[[], None] = lambda: None,
        hashed: bool = False,
    ) -> None:
        self._message = message
        self._lender = lender
        self._heard = heard
        self.lengths = tuple(lengths)
        self._segment: Segment | None = None
        offsets, self._end = places(self.lengths)
        starts = (0, *itertools.accumulate(self.lengths))[:-1]
        # A room for each run without a gap.
        self._bases: list[int] = []
        rooms: list[int] = []
        for offset, start in zip(offsets, starts, strict=True):
            if not rooms or offset - start != self._bases[-1] - rooms[-1]:
                rooms.append(start)
                self._bases.append(offset)
        self._extents = Extents(rooms)
        self._hashes = [hashlib.sha256() for _ in self.lengths if hashed]
        self._frames = Extents(starts) if self._hashes else None
        self._hashed = 0

    @property
    def message(self) -> AnyMessage | None:
        """What came before the frames, None if it was not kept.

        Raises:
            ObhutError: if it or they were refused.
        """
        if isinstance(self._message, ObhutError):
            raise self._message
        return self._message

    def write(self, offset: int, data: memoryview) -> None:
        """Take bytes in that begin at ``offset`` in the run of all frames."""
        if self._lender is None:
            return
        self._heard()
        try:
            self._hash(offset, data)
            if self._segment is None:
                self._segment = self._lender.segment(self._end)
            for room, start, part in self._extents.parts(offset, data):
                self._lender.write(self._segment, self._bases[room] + start, part)
        except ObhutError as error:
            self.drop()
            self._message = error

    @property
    def digests(self) -> tuple[bytes, ...]:
        """The SHA-256 of each frame, if they are hashed."""
        return tuple(one.digest() for one in self._hashes)

    def _hash(self, offset: int, data: memoryview) -> None:
        """Hash bytes, which come in order."""
        if self._frames is None:
            return
        if offset != self._hashed:
            raise InternalError("bytes of frames came out of order")
        self._hashed += len(data)
        for number, _, part in self._frames.parts(offset, data):
            self._hashes[number].update(part)

    def frames(self) -> Arriving:
        """Return itself: all has come."""
        return self

    def check(self, lender: Lender) -> None:
        """Check that the frames went to that child.

        Raises:
            SessionLostError: if they went to one that the session had before.
        """
        if lender is not self._lender or self._segment is None:
            raise SessionLostError("the worker", "it began anew meanwhile")

    def stored(self) -> InSegment:
        """Return the memory, which who asks hands to the child.

        Raises:
            SessionLostError: if it was dropped.
        """
        segment, self._segment = self._segment, None
        if segment is None:
            raise SessionLostError("the worker", "what was sent is gone")
        return InSegment(segment, self.lengths)

    def drop(self) -> None:
        """Give the memory back, if no child has it."""
        segment, self._segment = self._segment, None
        if segment is not None and self._lender is not None:
            self._lender.give_back(segment)
        self._lender = None
