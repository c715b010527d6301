"""Ways to a worker: shells that authenticate, carry bytes and effects.

Rule: a transport knows messages and frames, and nothing of what they mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from obhut.protocol.codec import Frame
from obhut.protocol.messages import AnyMessage
from obhut.worker.effects import Parcel


class Pending(Protocol):
    """A reply that may still be under way."""

    def done(self) -> bool:
        """Tell whether ``result`` would return at once."""

    def result(self, timeout: float | None = None) -> Parcel:
        """Wait for the reply, for ``timeout`` seconds at most.

        Duty: use the frames before the next message is submitted; they may alias
        what that changes.

        Raises:
            TransportError: if it can not come any more.
            TimeoutError: if it has not come in time.
        """

    def when_done(self, call: Callable[[], None]) -> None:
        """Call a function when the reply is there, from whichever thread.

        Duty: it must not wait for another reply.
        """

    def cancel(self) -> None:
        """Let the worker do no more of the batch that was sent; returns at once.

        The reply comes all the same, or has come: an owner's worker goes on after it.
        """


class Transport(Protocol):
    """A way to one worker, for one client.

    Messages arrive in the order in which they were submitted.

    Attributes:
        worker: the worker's id.
        address: the name under which other workers reach it.
        eager: whether a request should leave as soon as none is under way. Where
            an exchange costs nothing but time of this process, it should not.
        mends: whether it sends again by itself what was not answered, as it was
            when it was submitted. Its ``TransportError`` is final then.
        shared: whether the worker draws from this process's generator of random
            numbers, and has done what was submitted when ``submit`` returns.
    """

    worker: str
    address: str
    eager: bool
    mends: bool
    shared: bool

    def submit(self, message: AnyMessage, frames: Sequence[Frame] = ()) -> Pending:
        """Send a message.

        Memory of frames that can be written to may change as soon as this returns;
        that of the others may not, for as long as anybody refers to it.

        Raises:
            TransportError: if the worker can not be reached.
        """

    def progress(self, session: str, number: int) -> float | None:
        """Return what share of a batch that was submitted is done, from 0 to 1.

        It does not wait for the batch, may be called from any thread, and raises
        nothing: what is not known, or is kept by the worker, is None.
        """

    def close(self) -> None:
        """Give the way up. The session at the worker is not closed by it."""
