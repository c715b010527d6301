"""The parent's end of the pipe to one child.

::

    child.ready()                                # it is behind its walls
    said = child.exchange(sender, header, frames, now)
    said = child.settle(sender, session, outcomes)      # if it wanted something done
    child.close()

Rules:

- A child that breaks the protocol, answers too late or ends costs its session and
  nothing else.
- One exchange at a time. Only that a batch is cancelled is said meanwhile, and by an
  open worker's child how much of it is done.
- Answers that nobody has taken yet are bounded, as what goes to the child is.
- What a child says is used once its sizes agree with what came.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from obhut.errors import (
    InternalError,
    LimitError,
    ObhutError,
    RemoteProtocolError,
    SandboxError,
    SessionLostError,
)
from obhut.host.wording import printable
from obhut.protocol import codec
from obhut.protocol.codec import Frame
from obhut.protocol.messages import (
    AnyMessage,
    Deliver,
    Refused,
    ReleaseQuestion,
    State,
    StateQuestion,
)
from obhut.worker.effects import AskRelease, Delivery, Effect, Keeping, Seeking

from .control import (
    Borrow,
    Cancel,
    Control,
    Departure,
    Handle,
    Handled,
    Lend,
    Ready,
    Settings,
    Settle,
    Sizes,
    Told,
    Unanswered,
    Up,
    Walled,
)
from .link import INLINE_BYTES, Link, Received
from .meter import Meter
from .segment import Pool, Segment, places, split

CLOSED = "it was closed"
ENDED = "its process ended"

_READY_SECONDS = 30.0
_CANCEL_SECONDS = 10.0
_TOLD, _TOLD_A_SECOND = 16, 16
"""How often a child may tell how much is done: so often, and more with time."""

_LOG = logging.getLogger("obhut.worker")
_SLACK = 2**20

_FAILURES: dict[str, type[ObhutError]] = {
    kind.__name__: kind for kind in (InternalError, LimitError, RemoteProtocolError)
}


class InSegment(NamedTuple):
    """Frames that were written into shared memory as they came.

    Attributes:
        segment: the memory, from ``Child.segment``.
        sizes: the bytes of each frame; where they begin, ``segment.places`` says.
    """

    segment: Segment
    sizes: tuple[int, ...]


class Absent(NamedTuple):
    """Frames that a child does not get.

    Attributes:
        sizes: the bytes of each.
        digests: the SHA-256 of each, where it is asked for; else none.
    """

    sizes: tuple[int, ...]
    digests: tuple[bytes, ...] = ()


Frames: TypeAlias = Sequence[Frame] | InSegment | Absent
"""Frames on their way to a child."""


class Exchanged(NamedTuple):
    """What a child answered.

    Leak: all of it may leave the worker, and none of it was checked but for sizes.

    Attributes:
        header: the reply's bytes.
        frames: the reply's frames; their memory is used again once they are gone.
        effects: what must be done, and settled, before the reply is final.
        undone: the places of the batch's requests that were not carried out.
    """

    header: bytes
    frames: tuple[memoryview, ...]
    effects: tuple[Effect, ...]
    undone: tuple[int, ...] = ()

    @property
    def message(self) -> AnyMessage:
        """The reply.

        Raises:
            RemoteProtocolError: if it is none.
        """
        return codec.decode(self.header, self.frames)


class Child:
    """The process that holds one session.

    Duty: close it.

    Args:
        session: the session's name.
        pid: the process.
        sock: the parent's end of its pipe.
        settings: what holds for it.
        end: ends the process; returns how it ended, None if nobody knows.

    Attributes:
        session: the session's name.
        pid: the process.
        walls: the walls that it is behind.
        blameless: whether it ended with its fork server, or nobody knows how: that is
            no doing of its session's.
    """

    def __init__(
        self,
        session: str,
        pid: int,
        sock: socket.socket,
        settings: Settings,
        end: Callable[[int], int | None],
    ) -> None:
        self.session = session
        self.pid = pid
        self.walls: frozenset[str] = frozenset()
        self.blameless = False
        self._settings = settings
        self._end = end
        self._meter = Meter(pid)
        self._link: Link[Up] = Link(sock, Up, takes_files=False)
        kept, numbers = settings.kept, itertools.count(1)
        most = answers = None
        if settings.memory is not None:
            # What the child holds, and as much again that is on its way.
            kept, most = min(kept, settings.memory), 2 * settings.memory + _SLACK
            # Two answers on their way, and what is being delivered.
            answers = 3 * (settings.memory + _SLACK)
        spool = Path(settings.spool) if settings.spool else None
        self._down = Pool(kept, mapped=False, most=most, numbers=numbers, spool=spool)
        self._up = Pool(kept, mapped=True, most=answers, numbers=numbers)
        self._lock = threading.Lock()
        self._ending = threading.Lock()
        self._sending = threading.Lock()
        self._cancelled = 0
        self._done = 0
        self._why: str | None = None

    def ready(self) -> None:
        """Wait until it is behind its walls.

        Raises:
            SandboxError: if it can not be walled in.
            SessionLostError: if it ended.
        """
        with self._lock:
            said = self._receive(time.monotonic() + _READY_SECONDS).control
            if isinstance(said, Walled):
                self.lose("it could not be walled in")
                raise SandboxError(said.wall, said.why, said.advice)
            if not isinstance(said, Ready):
                raise self.lose("its process broke the protocol")
            self.walls = frozenset(said.walls)

    @property
    def alive(self) -> bool:
        """Whether its process is there and was not given up."""
        if self._why is None and self._hung_up():
            self.lose(ENDED)
        return self._why is None

    def used(self) -> float:
        """Return the processor time that it has used so far, in seconds."""
        return self._meter.read()

    def segment(self, size: int) -> Segment:
        """Return shared memory for frames that are still to come.

        Duty: ``write`` to it, then hand it to ``exchange``, as ``InSegment``, or to
        ``give_back``.

        Args:
            size: where all frames end, as ``segment.places`` says.

        Raises:
            LimitError: if the system has none.
        """
        return self._down.take(size)

    def write(self, segment: Segment, offset: int, data: Frame) -> None:
        """Copy bytes into shared memory, from ``offset`` on.

        Raises:
            LimitError: if the session has too much, with what is on its way.
            RemoteProtocolError: if the child made it impossible.
        """
        self._down.write(segment, offset, data)

    def give_back(self, segment: Segment) -> None:
        """Take back memory that no exchange needs."""
        self._down.give(segment)

    def exchange(
        self,
        sender: str,
        header: Frame,
        frames: Frames,
        now: float,
        *,
        seconds: float | None = None,
        undone: tuple[int, ...] = (),
    ) -> Exchanged:
        """Take a message to the child and return its answer.

        Shared memory that comes with it is the child's from then on, or kept for
        its next one.

        Duty: do what it wants done, then call ``settle``.

        Args:
            sender: the authenticated identity of who sent it.
            header: the message's bytes, as ``codec.encode`` made them.
            frames: its frames; they may change as soon as this returns.
            now: the time in seconds, of a clock that does not go back.
            seconds: how long the answer may take; None for what the settings say.
            undone: for a child that follows another, what that did not carry out.

        Raises:
            RemoteProtocolError: if the message is none.
            LimitError: if it or its answer is too large.
            SessionLostError: if the child is gone, or had to be ended.
        """
        inline: tuple[Frame, ...] = ()
        digests: tuple[bytes, ...] = ()
        segment: Segment | None = None
        absent = isinstance(frames, Absent)
        if isinstance(frames, InSegment):
            segment, sizes = frames
        elif isinstance(frames, Absent):
            sizes, digests = frames
        else:
            inline = tuple(frames)
            sizes = tuple(map(len, inline))
        try:
            if segment is not None:
                self._down.finish(segment)
            with self._lock:
                if segment is None and not absent and sum(sizes) > INLINE_BYTES:
                    segment = self._filled(inline, sum(sizes))
                part = Sizes(len(header), sizes)
                number = 0 if segment is None else segment.number
                gone = self._gone()
                control = Handle(
                    sender, now, part, number, gone, absent, digests, undone
                )
                body = (header,) if segment is not None else (header, *inline)
                deadline = self._deadline(seconds)
                self._send(control, body, segment, deadline)
                lent, segment = segment, None
                if lent is not None:
                    self._down.lend(lent)
                return self._answered(lent, deadline)
        finally:
            if segment is not None:
                self._down.give(segment)

    def settle(
        self,
        sender: str,
        session: str,
        outcomes: Sequence[Refused | None],
        *,
        seconds: float | None = None,
    ) -> Exchanged:
        """Tell the child how its deliveries ended and return its final answer.

        Args:
            sender: as in the exchange.
            session: the session, as the message named it.
            outcomes: for each delivery in order, None or why it was refused.
            seconds: as for ``exchange``.

        Raises:
            SessionLostError: as ``exchange``.
        """
        said = tuple(None if o is None else (o.kind, o.text) for o in outcomes)
        with self._lock:
            deadline = self._deadline(seconds)
            self._send(Settle(sender, session, said), (), None, deadline)
            return self._answered(None, deadline)

    def cancel(self, number: int) -> None:
        """Let the child compute no more of a batch, if it has not been told so.

        Args:
            number: the batch that it has, or gets next.
        """
        if number > self._cancelled and self._why is None:
            self._cancelled = number
            with contextlib.suppress(ObhutError):
                deadline = time.monotonic() + _CANCEL_SECONDS
                self._send(Cancel(number), (), None, deadline)

    def progress(self) -> int | None:
        """Return how many thousandths are done of what is computed.

        Of a worker under a policy that is nobody's to know: None.
        """
        return None if self._settings.policy else self._done

    def close(self) -> None:
        """End the process. An exchange that is under way raises."""
        self.lose(CLOSED)

    def lose(self, why: str) -> SessionLostError:
        """Give the child up and return the error that says so.

        The first reason stays.
        """
        with self._ending:
            if self._why is None:
                # Wakes whoever waits for it, the watcher too, which closes the socket.
                with contextlib.suppress(OSError):
                    self._link.sock.shutdown(socket.SHUT_RDWR)
                self._why = why  # stands, whatever goes wrong from here on
                self._meter.stop()
                code = self._end(self.pid)
                if why == ENDED:
                    self.blameless = code is None
                    self._why = f"{why} ({ending(code)})"
                self._down.close()
                self._up.close()
            return SessionLostError(self._settings.id, self._why)

    @property
    def unasked(self) -> bool:
        """Whether it ended, and not because it was closed."""
        return self._why not in {None, CLOSED}

    def dispose(self) -> None:
        """Close the socket of a child that was given up, once nobody reads it."""
        with self._lock:
            self._link.close()

    def fileno(self) -> int:
        """Return the socket's number, which shows an end-of-file when it ends."""
        return self._link.sock.fileno()

    def _hung_up(self) -> bool:
        """Tell whether the other end of the pipe is closed."""
        poll = select.poll()
        try:
            poll.register(self._link.sock, select.POLLRDHUP)
        except ValueError:  # it was disposed of
            return True
        return bool(poll.poll(0))

    def _filled(self, frames: Sequence[Frame], size: int) -> Segment:
        """Return shared memory with these frames."""
        offsets, end = places(tuple(map(len, frames)))
        segment = self._down.take(end)
        try:
            for offset, frame in zip(offsets, frames, strict=True):
                self._down.write(segment, offset, frame)
            self._down.finish(segment)
        except RemoteProtocolError as error:
            self._down.give(segment)
            raise self.lose("its process broke the protocol") from error
        except BaseException:
            self._down.give(segment)
            raise
        return segment

    def _gone(self) -> tuple[int, ...]:
        return (*self._down.gone(), *self._up.gone())

    def _deadline(self, seconds: float | None) -> float | None:
        """Return until when an answer may take, if the child is there."""
        if self._why is not None:
            raise self.lose("")
        if seconds is None:
            seconds = self._settings.seconds
        return None if seconds is None else time.monotonic() + seconds

    def _answered(self, segment: Segment | None, deadline: float | None) -> Exchanged:
        """Wait for the answer to what was sent. Duty: hold the lock."""
        received = self._told(deadline)
        lent: Segment | None = None
        try:
            if isinstance(received.control, Borrow):
                lent = self._lend(received.control.size, deadline)
                received = self._receive(deadline)
            said = received.control
            if isinstance(said, Unanswered):
                # It may have been the mapping that failed: the file is sent again.
                for one in (segment, lent):
                    if one is not None:
                        one.known = False
                raise _FAILURES[said.kind](said.text)
            if not isinstance(said, Handled):
                raise self.lose("its process broke the protocol")
            try:
                self._down.returned(said.returned)
                for line in said.told:
                    # A child is not trusted: it forges no lines of others.
                    _LOG.info(
                        "session %s: %s", printable(self.session[:8]), printable(line)
                    )
            except RemoteProtocolError as error:
                raise self.lose("its process broke the protocol") from error
            frames = self._frames(said, received.body, lent)
            lent = None
        finally:
            if lent is not None:
                self._up.give(lent)
        return self._exchanged(said, received.body, frames)

    def _told(self, deadline: float | None) -> Received[Up]:
        """Take in how much is done, and return what comes after that."""
        began, count = time.monotonic(), 0
        self._done = 0
        while True:
            received = self._receive(deadline)
            if not isinstance(received.control, Told):
                return received
            count += 1
            allowed = _TOLD + _TOLD_A_SECOND * (time.monotonic() - began)
            if self._settings.policy or count > allowed:
                raise self.lose("its process broke the protocol")
            self._done = received.control.thousandths

    def _lend(self, size: int, deadline: float | None) -> Segment | None:
        """Lend the child memory for an answer, or refuse to."""
        limit = self._settings.memory
        lent = None
        if limit is None or size <= limit:
            with contextlib.suppress(LimitError):
                lent = self._counted(size)
        if lent is None:
            self._send(Lend(0), (), None, deadline)
            return None
        try:
            self._send(Lend(lent.number, self._gone()), (), lent, deadline)
        except BaseException:
            self._up.give(lent)
            raise
        return lent

    def _counted(self, size: int) -> Segment:
        """Return memory for an answer, counted as if it were full.

        Raises:
            LimitError: if answers before it, which nobody has taken yet, are too
                large, or the system has none.
        """
        segment = self._up.take(size)
        try:
            self._up.finish(segment)
        except BaseException:
            self._up.give(segment)
            raise
        return segment

    def _frames(
        self, said: Handled, body: memoryview, lent: Segment | None
    ) -> memoryview:
        """Return all frames in a row, once all sizes agree with what came."""
        parts = (said.reply, *(departure.part for departure in said.departures))
        heads = sum(part.header for part in parts)
        size = sum(sum(part.frames) for part in parts)
        if said.shared:
            fits = lent is not None and 0 < size <= lent.size and heads == len(body)
        else:
            fits = heads + size == len(body)
        if not fits:
            raise self.lose("its process broke the protocol")
        if said.shared and lent is not None:
            return self._up.view(lent, size)
        if lent is not None:
            self._up.give(lent)
        return body[heads:]

    def _exchanged(
        self, said: Handled, body: memoryview, frames: memoryview
    ) -> Exchanged:
        """Cut headers and frames apart."""
        parts = (said.reply, *(departure.part for departure in said.departures))
        heads = split(body, [part.header for part in parts])
        groups = split(frames, [sum(part.frames) for part in parts])
        cut = [split(g, part.frames) for g, part in zip(groups, parts, strict=True)]
        try:
            effects = [
                _effect(departure, head, group)
                for departure, head, group in zip(
                    said.departures, heads[1:], cut[1:], strict=True
                )
            ]
        except RemoteProtocolError as error:
            raise self.lose("its process broke the protocol") from error
        return Exchanged(bytes(heads[0]), cut[0], tuple(effects), said.undone)

    def _send(
        self,
        control: Control,
        body: Sequence[Frame],
        segment: Segment | None,
        deadline: float | None,
    ) -> None:
        fd = None if segment is None or segment.known else segment.fd
        try:
            with self._sending:
                self._link.send(control, body, fd=fd, deadline=deadline)
        except LimitError:
            raise  # nothing was sent
        except BaseException as error:
            raise self._lost_by(error) from error
        if segment is not None:
            segment.known = segment.told = True

    def _receive(self, deadline: float | None) -> Received[Up]:
        try:
            return self._link.receive(deadline)
        except BaseException as error:
            raise self._lost_by(error) from error

    def _lost_by(self, error: BaseException) -> BaseException:
        """Give the child up for an error of the link; return what to raise."""
        match error:
            case EOFError():
                return self.lose(ENDED)
            case TimeoutError():
                return self.lose(self._late())
            case RemoteProtocolError():
                return self.lose("its process broke the protocol and was ended")
            case _:
                # The pipe is in the middle of a message and can't be used again.
                self.lose("an exchange with its process was broken off")
                return error

    def _late(self) -> str:
        """Say that it was ended for not answering in time."""
        allowed = self._settings.seconds
        words = "its process did not answer in time and was ended"
        if allowed is None:
            return words
        return (
            f"{words}: one message may take {allowed:,g} seconds here; send less at "
            "once, or ask the worker's owner for more (batch_seconds)"
        )


def _effect(
    departure: Departure, head: memoryview, frames: tuple[memoryview, ...]
) -> Effect:
    """Return what a child wants done.

    Raises:
        RemoteProtocolError: if it may not want that: what it says goes out in the
            worker's name.
    """
    match codec.decode(head, frames):
        case Deliver() as message:
            return Delivery(departure.to, message, frames, departure.index)
        case ReleaseQuestion() as asked:
            return AskRelease(asked, departure.index)
        case State() as state:
            return Keeping(state, frames, departure.index)
        case StateQuestion() as sought:
            return Seeking(sought, departure.index)
        case _:
            raise RemoteProtocolError("a session may deliver and ask, and no more")


def ending(code: int | None) -> str:
    """Say how a process ended."""
    if code is None:
        return "with the worker's own that it came from, and not by what you asked"
    if code >= 0:
        return f"it exited with {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a real-time signal, which a child can send itself
        return f"signal {-code}"
    if -code == signal.SIGKILL:
        return f"{name}: the system was out of memory, or somebody ended it"
    return name
