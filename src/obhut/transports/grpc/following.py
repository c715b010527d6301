"""The process that has a session's rows: it follows the one that answers.

::

    following = Following(start, deliver, log, clock)
    segment = following.segment(size)            # for frames that come
    following.put(Followed(sender, header, frames, undone, accepted))
    following.end()                              # after what it has still to do

Rules:

- One thing after the other, by a thread of its own: nobody who is answered waits for
  it, but for room. Room is waited for, and never refused.
- What goes wrong is told to the worker's owner. A process that ends is replaced by an
  empty one, and what it had still to deliver is spoilt.
- It ends after what it has to do: what was declared is delivered.
- A requester may cancel what it has to do, which is public: so far as it was not done,
  that is missing, and what was declared of it is delivered as spoilt.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from obhut.errors import LimitError
from obhut.host.conductor import covered
from obhut.protocol.codec import Frame
from obhut.transports.pipe.parent import Frames
from obhut.transports.pipe.segment import Segment
from obhut.worker.effects import Delivery, Effect, Keeping, Leaving

_T = TypeVar("_T")

QUEUED = 64
"""Messages that wait for it at most."""


class Said(Protocol):
    """What it returned."""

    @property
    def effects(self) -> Sequence[Effect]:
        """What it delivers."""


class HighProcess(Protocol):
    """The process."""

    def exchange(
        self,
        sender: str,
        header: bytes,
        frames: Frames,
        now: float,
        *,
        undone: tuple[int, ...] = (),
    ) -> Said:
        """Let it do what was answered.

        Raises:
            ObhutError: if it is gone, or could not.
        """

    def cancel(self, number: int) -> None:
        """Let it compute no more of a batch, nor of those before it."""

    def segment(self, size: int) -> Segment:
        """Return memory for frames that come."""

    def write(self, segment: Segment, offset: int, data: Frame) -> None:
        """Copy bytes into it."""

    def give_back(self, segment: Segment) -> None:
        """Take back memory that it does not get."""

    @property
    def alive(self) -> bool:
        """Whether it is there."""

    def close(self) -> None:
        """End it."""


class Followed(NamedTuple):
    """A message that was answered.

    Attributes:
        sender: who sent it.
        header: the message.
        frames: its frames.
        undone: of a batch, the places of what was not carried out.
        accepted: headers of its deliveries that were accepted, to itself among them.
    """

    sender: str
    header: bytes
    frames: Frames = ()
    undone: tuple[int, ...] = ()
    accepted: Sequence[Leaving] = ()


class Following:
    """What follows one session's answers.

    Duty: end it.

    Args:
        start: starts a process, which has nothing.
        deliver: takes what is to be delivered, in order.
        log: takes a line for the worker's owner.
        clock: the time in seconds.
        ended: called once it has ended.
    """

    def __init__(
        self,
        start: Callable[[], HighProcess],
        deliver: Callable[[Iterable[Leaving]], None],
        log: Callable[[str], None],
        clock: Callable[[], float],
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self._start = start
        self._deliver = deliver
        self._log = log
        self._clock = clock
        self._ended = ended
        self._changed = threading.Condition()
        self._starting = threading.Lock()
        self._queue: collections.deque[Followed] = collections.deque()
        self._busy = False
        self._ending = self._over = False
        self._cancelled = 0
        self._process: HighProcess | None = None
        self._thread = threading.Thread(
            target=self._run, name="obhut-follows", daemon=True
        )
        self._thread.start()

    def put(self, message: Followed) -> None:
        """Let it do what was answered, after all that it has to do.

        If it has ended, what was declared is spoilt.
        """
        with self._changed:
            self._changed.wait_for(lambda: len(self._queue) < QUEUED or self._ending)
            if not self._over:
                self._queue.append(message)
                self._changed.notify_all()
                return
        self._deliver(covered(message.accepted, ()))

    def cancel(self, number: int) -> None:
        """Let it compute no more of a batch, nor of those before it. Does not wait."""
        self._cancelled = max(self._cancelled, number)
        process = self._process
        if process is not None:
            process.cancel(number)

    def end(self) -> None:
        """Let it end, after all that it has to do. Returns at once."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()

    def segment(self, size: int) -> Segment:
        """Return memory for frames that come, once there is room."""
        return self._when_there_is_room(lambda: self._there().segment(size))

    def write(self, segment: Segment, offset: int, data: Frame) -> None:
        """Copy bytes into it, once there is room."""
        self._when_there_is_room(lambda: self._there().write(segment, offset, data))

    def give_back(self, segment: Segment) -> None:
        """Take back memory that it does not get."""
        if self._process is not None:
            self._process.give_back(segment)

    def _when_there_is_room(self, take: Callable[[], _T]) -> _T:
        """Take room, as soon as there is as much as there ever will be.

        Raises:
            LimitError: if that is not enough.
        """
        while True:
            with self._changed:
                idle = not self._queue and not self._busy
            try:
                return take()
            except LimitError:
                if idle:
                    raise
            with self._changed:
                if self._queue or self._busy:
                    self._changed.wait()  # until something was done, or begun

    def _there(self) -> HighProcess:
        """Return the process, a new one if there is none.

        Raises:
            ObhutError: if it does not start.
        """
        with self._starting:
            if self._process is not None and not self._process.alive:
                self._log("what has the rows ended; an empty one takes its place")
                self._process.close()
                self._process = None
            if self._process is None:
                self._process = self._start()
                if self._cancelled:  # it may wait still, for this process
                    self._process.cancel(self._cancelled)
            return self._process

    def _run(self) -> None:
        try:
            self._there()
        except Exception as error:
            self._log(f"no process that has the rows: {type(error).__name__}: {error}")
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._queue or self._ending)
                if not self._queue:
                    self._over = True
                    break
                message = self._queue.popleft()
                self._busy = True
                self._changed.notify_all()
            returned = self._followed(message)
            self._deliver(covered(message.accepted, returned))
            del message, returned  # memory that is used again once it is let go of
        self._stop()
        self._ended()

    def _followed(self, message: Followed) -> Sequence[Leaving]:
        """Let the process do what was answered; return what it delivers."""
        try:
            said = self._there().exchange(
                message.sender,
                message.header,
                message.frames,
                self._clock(),
                undone=message.undone,
            )
            return [one for one in said.effects if isinstance(one, Delivery | Keeping)]
        except Exception as error:
            # Any: whoever waits for what was declared must get it, if only as spoilt.
            self._log(f"what has the rows failed: {type(error).__name__}: {error}")
            self._stop()
            return ()

    def _stop(self) -> None:
        with self._starting:
            process, self._process = self._process, None
        if process is not None:
            process.close()
