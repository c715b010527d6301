"""A client's worker in an actor, as a transport reaches it.

::

    transport = RayTransport(crew, "ann")
    transport.submit(message, frames).result()

Rules:

- Everything passes through the codec.
- An actor takes messages in the order in which they were submitted.
- If the actor is lost, a reply never comes, and that is a ``TransportError``. The next
  message goes to the one that takes its place, which has no session.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import ray

from obhut.errors import ObhutError, TransportError
from obhut.protocol import codec
from obhut.protocol.codec import Frame
from obhut.protocol.messages import AnyMessage, Batch
from obhut.transports.local import ME
from obhut.worker.effects import Parcel

from .actor import address_of
from .member import PULSE_SECONDS, Member, reason
from .packing import Packed

_ASK_SECONDS = 2.0
"""How long a question after progress may wait for its answer."""


class Homes(Protocol):
    """Where clients' workers are."""

    def home(self, name: str) -> Member:
        """Return the actor that has a client's worker.

        Raises:
            TransportError: if there is none.
        """


class RayTransport:
    """A way to one worker in an actor.

    Args:
        homes: where workers are.
        worker: the worker's id.
        principal: who the client is.

    Attributes:
        worker, eager, mends, shared: as of a ``Transport``.
    """

    def __init__(self, homes: Homes, worker: str, principal: str = ME) -> None:
        self.worker = worker
        self.eager = True
        self.mends = False
        self.shared = False
        self._homes = homes
        self._principal = principal

    @property
    def address(self) -> str:
        """The address by which other workers reach it."""
        return address_of(self._homes.home(self.worker).name, self.worker)

    def submit(self, message: AnyMessage, frames: Sequence[Frame] = ()) -> RayPending:
        """Send a message.

        Raises:
            TransportError: if there is no actor for it.
        """
        parcel = Packed(
            (codec.encode(message), tuple(memoryview(one) for one in frames))
        )
        member = self._homes.home(self.worker)
        member.begin()
        reference = member.handle.exchange.remote(self.worker, self._principal, parcel)
        batch = None
        if isinstance(message, Batch):
            batch = self.worker, message.session, message.number
        return RayPending(reference, member, batch)

    def progress(self, session: str, number: int) -> float | None:
        """Return what share of a batch is done, None if it is not being computed."""
        try:
            member = self._homes.home(self.worker)
            asked = member.handle.progress.remote(self.worker, session, number)
            came, _ = ray.wait([asked], timeout=_ASK_SECONDS)
            share: float | None = ray.get(came[0]) if came else None
        except (ObhutError, ray.exceptions.RayError):
            return None
        return share

    def close(self) -> None:
        """Give the way up; it keeps nothing open."""


class RayPending:
    """A reply that an actor sends.

    Args:
        reference: what will be the reply.
        member: the actor.
        batch: whose batch was sent, in which session, and its number.
    """

    def __init__(
        self,
        reference: ray.ObjectRef[Any],
        member: Member,
        batch: tuple[str, str, int] | None,
    ) -> None:
        self._reference = reference
        self._member = member
        self._batch = batch

    def done(self) -> bool:
        """Tell whether ``result`` would return at once."""
        return bool(self._member.lost) or self._waited(0)

    def result(self, timeout: float | None = None) -> Parcel:
        """Wait for the reply, for ``timeout`` seconds at most.

        Raises:
            TransportError: if the actor is lost.
            ObhutError: why the worker has no reply.
            TimeoutError: if it has not come in time.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while not self._waited(_left(end)):
            self._member.listen()
            if self._member.lost:
                raise self._lost()
            if end is not None and time.monotonic() >= end:
                raise TimeoutError(f"no reply within {timeout} s")
        try:
            answer = ray.get(self._reference, timeout=PULSE_SECONDS)
        except ray.exceptions.RayTaskError as error:
            raise TransportError(
                f"an actor could not take a message in: {error.cause!r}"
            ) from error
        except (ray.exceptions.RayError, TimeoutError) as error:
            self._member.lost = self._member.lost or reason(error)
            raise self._lost() from error
        if isinstance(answer, ObhutError):
            raise answer
        header, frames = answer
        return Parcel(codec.decode(header, frames), frames)

    def when_done(self, call: Callable[[], None]) -> None:
        """Call a function when the reply is there, from whichever thread."""
        self._reference.future().add_done_callback(lambda _: call())

    def cancel(self) -> None:
        """Let the worker do no more of the batch that was sent; returns at once."""
        if self._batch is not None and not self._member.lost:
            self._member.handle.cancel.remote(*self._batch)

    def _waited(self, seconds: float) -> bool:
        came, _ = ray.wait([self._reference], timeout=seconds)
        return bool(came)

    def _lost(self) -> TransportError:
        return TransportError(
            f"the actor that had this session is lost: {self._member.lost}; its "
            "tensors are gone, open a new session"
        )


def _left(end: float | None) -> float:
    """Return how many seconds to wait before the actor is listened to again."""
    if end is None:
        return PULSE_SECONDS
    return min(PULSE_SECONDS, max(end - time.monotonic(), 0.0))
