"""Transports that fail where a test says so.

Rules:

- Nothing is random: a fault happens at a submission that is named by its number,
  counted from 1 over all messages.
- A lost request never reached the worker; for a lost reply the worker has done
  all that was asked. A client can not tell the two apart.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from obhut.errors import TransportError
from obhut.protocol.codec import Frame
from obhut.protocol.messages import AnyMessage
from obhut.transports import Pending, Transport
from obhut.worker.effects import Parcel

from .wrapping import WrappingTransport


class Fault(enum.Enum):
    """What is lost, and when the client hears of it.

    Attributes:
        REQUEST: the request; ``submit`` raises.
        REPLY: the reply; ``submit`` raises.
        REQUEST_LATE: the request; the pending reply raises.
        REPLY_LATE: the reply; the pending reply raises.
    """

    REQUEST = enum.auto()
    REPLY = enum.auto()
    REQUEST_LATE = enum.auto()
    REPLY_LATE = enum.auto()


class Lost:
    """A pending reply that can not come any more."""

    def done(self) -> bool:
        """Return True: ``result`` raises at once."""
        return True

    def result(self, timeout: float | None = None) -> Parcel:
        """Raise.

        Raises:
            TransportError: always.
        """
        raise TransportError("the connection was lost")

    def when_done(self, call: Callable[[], None]) -> None:
        """Call the function at once."""
        call()

    def cancel(self) -> None:
        """Do nothing: nobody has it."""


class FaultyTransport(WrappingTransport):
    """A transport whose connection is lost at chosen submissions.

    Args:
        inner: the transport that carries what is not lost.
        faults: what happens, by the submission's number; or a function of it.

    Attributes:
        submissions: how many messages were submitted so far.
    """

    def __init__(
        self,
        inner: Transport,
        faults: Mapping[int, Fault] | Callable[[int], Fault | None],
    ) -> None:
        super().__init__(inner)
        self.mends = False
        self.submissions = 0
        self._fault = faults.get if isinstance(faults, Mapping) else faults

    def submit(self, message: AnyMessage, frames: Sequence[Frame] = ()) -> Pending:
        """Send a message, unless it is this one's turn to be lost.

        Raises:
            TransportError: if it is.
        """
        self.submissions += 1
        fault = self._fault(self.submissions)
        if fault is None:
            return self._inner.submit(message, frames)
        if fault in (Fault.REPLY, Fault.REPLY_LATE):
            self._inner.submit(message, frames).result()
        if fault in (Fault.REQUEST_LATE, Fault.REPLY_LATE):
            return Lost()
        raise TransportError(f"{self.worker} could not be reached")


class Late:
    """A pending reply that comes when the gate is opened.

    Args:
        reply: what comes.
    """

    def __init__(self, reply: Future[Parcel]) -> None:
        self._reply = reply

    def done(self) -> bool:
        """Tell whether the reply has come."""
        return self._reply.done()

    def result(self, timeout: float | None = None) -> Parcel:
        """Wait for the reply.

        Raises:
            TimeoutError: if it has not come in time.
        """
        return self._reply.result(timeout)

    def when_done(self, call: Callable[[], None]) -> None:
        """Call the function when the reply comes, from another thread."""
        self._reply.add_done_callback(lambda _: call())

    def cancel(self) -> None:
        """Do nothing: the worker has done it."""


class LateTransport(WrappingTransport):
    """A transport whose replies come from another thread, behind a gate.

    Duty: open the gate and close the transport in the end.

    Args:
        inner: the transport that carries the messages.

    Attributes:
        gate: replies pass while it is set; it is at first.
    """

    def __init__(self, inner: Transport) -> None:
        super().__init__(inner)
        self.mends = False
        self.gate = threading.Event()
        self.gate.set()
        self._thread = ThreadPoolExecutor(1)

    def submit(self, message: AnyMessage, frames: Sequence[Frame] = ()) -> Pending:
        """Send a message; frames are copied, the reply comes later."""
        copies = [bytes(frame) for frame in frames]

        def carry() -> Parcel:
            parcel = self._inner.submit(message, copies).result()
            kept = Parcel(parcel.message, tuple(bytes(f) for f in parcel.frames))
            self.gate.wait()
            return kept

        return Late(self._thread.submit(carry))

    def close(self) -> None:
        """Give the way up."""
        self._thread.shutdown()
        super().close()


class InterruptingTransport(WrappingTransport):
    """A transport during whose use the user presses Ctrl-C.

    Args:
        inner: the transport that carries the messages.
        before: numbers of the submissions that are interrupted before the worker
            has seen them.
        after: those that are interrupted after the worker has applied them.

    Attributes:
        submissions: how many messages were submitted so far.
    """

    def __init__(
        self,
        inner: Transport,
        *,
        before: Collection[int] = (),
        after: Collection[int] = (),
    ) -> None:
        super().__init__(inner)
        self.mends = False
        self.submissions = 0
        self._before = frozenset(before)
        self._after = frozenset(after)

    def submit(self, message: AnyMessage, frames: Sequence[Frame] = ()) -> Pending:
        """Send a message, unless this one is interrupted.

        Raises:
            KeyboardInterrupt: if it is.
        """
        self.submissions += 1
        if self.submissions in self._before:
            raise KeyboardInterrupt
        pending = self._inner.submit(message, frames)
        if self.submissions in self._after:
            raise KeyboardInterrupt
        return pending
