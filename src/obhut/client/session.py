"""A client's session with one worker: ids, batches, answers, ids to forget.

::

    session = Session(transport)
    id = session.new_id()
    session.post(Run("aten.neg.default", [Ref(x)], {}, id, 1, True))  # asks nothing
    value = session.ask(Fetch(id))               # waits for all before it
    session.close()

Rules:

- Requests wait in a batch until a value is asked for, the batch is full, or the
  worker has run dry; a loop that asks for nothing waits for nothing, unless it is
  ahead of the worker by too many requests, or by too many bytes.
- One batch is under way at a time; what is made meanwhile is the next one. Batches
  are numbered and sent again under the same number when an exchange was cut
  short; the worker applies each request once.
- When a hold on an object goes no code of Python runs, in which Ctrl-C would be lost:
  its id is left, and freed before the next request, so that the worker never holds
  more than the program does.
- A failure shows where a value is asked for, with the line that caused it. No
  failure passes unseen: if the value itself is sound, the oldest failure that
  nobody has seen is raised instead, once.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import os
import secrets
import threading
import warnings
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from msgspec import structs
from torch.utils import _python_dispatch as python_dispatch

from obhut.errors import (
    CancelledError,
    InternalError,
    ObhutError,
    ObjectNotFoundError,
    ReleaseRefusedError,
    RemoteProtocolError,
    SessionLostError,
    TransportError,
    WorkerClosedError,
)
from obhut.protocol.codec import Frame
from obhut.protocol.messages import (
    PROTOCOL_VERSION,
    AnyAnswer,
    AnyRequest,
    Batch,
    Close,
    Count,
    Failed,
    Fetched,
    Free,
    Open,
    Put,
    Ref,
    Refused,
    Results,
    Welcome,
)
from obhut.transports import Pending, Transport
from obhut.transports.grpc import allocator
from obhut.worker.tensors import DTYPE_NAMES, from_frame

from .call_site import CallSite, current_call_site
from .cancelling import RANGES_REMEMBERED, SESSIONS, give_up, interrupted, interruptible
from .computations import Computations, first_difference
from .failures import to_exception, to_refusal
from .flights import Flight, Reply
from .unseen import Unseen

REQUESTS_IN_BATCH = 128
"""A batch with so many requests leaves without being asked. Half of them free."""

REQUESTS_EAGER = 32
"""With so many, a batch leaves when the worker has run dry, where an exchange takes
time: fewer cost an exchange more than the worker gains by beginning early."""

BYTES_TRIMMED = 256 << 20
"""When a worker in this process has made so many bytes, what is free goes back to the
system: the allocator's heap would grow by holes that no large tensor fits into."""

BATCHES_WAITING = 8
"""And when so many batches wait, each of which ends with a large tensor that leaves."""

COPIED_BYTES = 1 << 16
"""A frame of at most so many bytes waits for its batch, as a copy; a larger one
leaves at once, since its tensor could change meanwhile."""

BYTES_TOGETHER = 256 << 20
"""Larger frames that are sent together leave when they have so many bytes; what comes
after waits for the answer, and so does a loop that sends a model to each worker."""

_CLOSE_SECONDS = 5.0

_WHOLE_BATCH = -1
"""Stands for the index of a request where all of a batch was refused."""


class _WeakHold(weakref.ref[Any]):
    """A weak reference to a hold, which is left when that goes.

    Attributes:
        id: the object's id.
    """

    __slots__ = ("id",)

    id: int


class Asked:
    """An answer that may still be under way; a future."""

    def __init__(self, session: Session, flight: Flight, index: int) -> None:
        self._session = session
        self._flight = flight
        self._index = index

    def done(self) -> bool:
        """Tell whether ``result`` would return at once."""
        return self._session._is_in(self._flight)

    @interruptible
    def wait(self) -> bool:
        """Wait until the request was carried out; tell whether it was.

        Raises:
            TransportError: if the worker can not be reached.
        """
        return self._session._carried_out(self._flight, self._index)

    def overlook(self) -> None:
        """Take its failure for seen, if it is known to have failed."""
        self._session._overlook(self._flight, self._index)

    @interruptible
    def result(self, timeout: float | None = None) -> Reply:
        """Wait for the answer, for ``timeout`` seconds at most.

        Raises:
            ObhutError: what went wrong with this or an earlier request.
            TimeoutError: if the answer has not come in time.
        """
        reply = self._session._result(self._flight, self._index, timeout)
        self._session.warn_of_nonfinite()
        return reply


class Session:
    """What one client has open with one worker.

    Args:
        transport: the way to the worker.
        blocking: wait after each request, so that a failure shows at the line
            that caused it; by default what ``OBHUT_BLOCKING`` says.

    Attributes:
        worker: the worker's id.
        address: the name under which other workers reach it.
        name: the session's name, which other workers need to deliver into it.
        closed: whether it has ended.
        place: the worker as the client sees it, once there is one.
        shared: whether the worker draws from this process's generator.
        labelled: the holds on tagged objects by id, while there are names for them.
        cancels: how often something was cancelled.
        asked: what was asked of an owner's worker.
    """

    def __init__(self, transport: Transport, *, blocking: bool | None = None) -> None:
        if blocking is None:
            blocking = os.environ.get("OBHUT_BLOCKING", "") not in ("", "0")
        self.worker = transport.worker
        self.address = transport.address
        self.name = secrets.token_hex(16)
        self.closed = False
        self.shared = transport.shared
        # Any: the worker as the client sees it, whose class is defined above.
        self.place: Any = None
        # Any: holds by id, whose class is defined above.
        self.labelled: weakref.WeakValueDictionary[int, Any] = (
            weakref.WeakValueDictionary()
        )
        self.cancels = 0
        self.asked = Computations()
        self._transport = transport
        self._blocking = blocking
        self._lock = threading.RLock()
        self._next_id = 1
        self._opened = False
        self._guarded = False
        self._garbage: collections.deque[_WeakHold | Ref] = collections.deque()
        self._names: dict[int, _WeakHold] = {}
        self._flights: collections.deque[Flight] = collections.deque((Flight(1),))
        self._unseen = Unseen()
        self._enough = REQUESTS_EAGER if transport.eager else REQUESTS_IN_BATCH
        self._hurry = False
        self._together = 0
        self._waiting_bytes = 0
        self._nonfinite = 0
        self._made = 0
        self._lost: SessionLostError | WorkerClosedError | None = None
        self._missing: int | None = None
        self._made_up: Pending | None = None
        self._answered: Pending | None = None
        self._counts: list[int] | None = None
        self._unmade = collections.deque[range](maxlen=RANGES_REMEMBERED)
        self._stopped = False
        SESSIONS.add(self)

    def __repr__(self) -> str:
        return f"<Session with {self.worker}{', closed' if self.closed else ''}>"

    def new_id(self) -> int:
        """Return an id that names nothing yet."""
        return self.new_ids(1)

    def new_ids(self, count: int) -> int:
        """Return the first of so many consecutive ids that name nothing yet."""
        with self._lock:
            first = self._next_id
            self._next_id = first + count
            return first

    def watch(self, held: object, id: int) -> None:
        """Free an object before the next request, once the hold on it is gone."""
        name = _WeakHold(held, self._garbage.append)
        name.id = id
        self._names[id] = name

    def unwatch(self, id: int) -> None:
        """Free an object no more when the hold on it goes."""
        self._names.pop(id, None)

    def forget(self, id: int) -> None:
        """Free an object before the next request."""
        self._names.pop(id, None)
        self._garbage.append(Ref(id))

    def post(
        self,
        request: AnyRequest,
        frame: Frame | None = None,
        *,
        carried: int = 0,
        made: int = 0,
    ) -> None:
        """Make a request that is asked nothing.

        Args:
            request: the request; the index of a frame in it does not matter.
            frame: the bytes that belong to it.
            carried: about how many bytes it has beyond those of any request.
            made: about how many bytes of memory its results take.

        Raises:
            WorkerClosedError: if the session is closed.
            ObhutError: what went wrong, in blocking mode.
        """
        try:
            with self._lock:
                flight = self._add(request, frame, carried, made)
                if self._blocking:
                    self._settle(flight, None)
                    self.raise_unseen()
        except KeyboardInterrupt as stop:
            interrupted(stop)
            raise

    def ask(self, request: AnyRequest) -> Reply:
        """Make a request and wait for its answer.

        Raises:
            ObhutError: what went wrong with this or an earlier request.
        """
        return self.ask_later(request).result()

    def ask_later(self, request: AnyRequest, leaving: int = 0) -> Asked:
        """Make a request that leaves at once, and return a future of its answer.

        Args:
            request: the request.
            leaving: bytes of the tensors that leave the worker with it.
        """
        return self.ask_all_later([request], leaving)[0]

    @interruptible
    def ask_all_later(
        self, requests: Sequence[AnyRequest], leaving: int = 0
    ) -> list[Asked]:
        """Make several requests that leave at once, in one batch.

        Args:
            requests: one or more.
            leaving: bytes of the tensors that leave the worker with them.
        """
        with self._lock:
            places = [self._queue(request, None) for request in requests]
            if leaving > COPIED_BYTES:
                # What came after it in its batch could change what leaves, so that
                # the worker would copy it.
                self._seal()
            self._relieve()
            self.flush()
        return [Asked(self, flight, index) for flight, index in places]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Let large frames that are posted inside leave together, at the end.

        Duty: do not change their tensors inside.
        """
        with self._lock:
            self._together += 1
            try:
                yield
            finally:
                self._together -= 1
                if self._waiting_bytes:
                    self._let_frames_leave()

    @interruptible
    def flush(self) -> None:
        """Let what waits leave, as soon as the batch before it was answered.

        Raises:
            TransportError: if the worker can not be reached; what waits stays.
        """
        with self._lock:
            self._hurry = True
            self._pump()

    @interruptible
    def drain(self) -> None:
        """Let what waits leave, and wait until all of it was answered.

        Raises:
            ObhutError: what went wrong, if nobody has seen it yet.
        """
        with self._lock:
            last = self._flights[-1]
            if self._garbage:
                self._free(last)
            if last.items or len(self._flights) > 1:
                self._settle(last if last.items else self._flights[-2], None)
            self.raise_unseen()

    def progress(self) -> float | None:
        """Return what share is done of the next batch with programs, from 0 to 1.

        What waits leaves first, where that takes no computing here. May be called from
        any thread, and waits for no answer but this one.

        Returns:
            None if no program is under way, or the worker keeps it.

        Raises:
            TransportError: if the worker can not be reached; what waits stays.
        """
        if not self.shared and self._lock.acquire(blocking=False):
            # Else who holds it waits for an answer, or adds a request.
            try:
                self._hurry = True
                self._pump()
            finally:
                self._lock.release()
        share: float | None = None
        for flight in tuple(self._flights):
            if flight.runs and not flight.results:
                share = self._transport.progress(self.name, flight.number)
                if share != 1.0:  # else it is done, and its answer is under way
                    break
        return share

    def cancel(self) -> str:
        """Give up what was asked and is not done.

        Names of what was not made raise ``CancelledError`` when they are used. What
        would have been changed stays as it was. What failed and was not seen is not
        raised any more.

        Returns:
            What was given up, in words; empty if nothing was.
        """
        if not self._lock.acquire(blocking=False):
            # Who holds it waits for an answer, or adds a request.
            self._stopped = True
            pending = self._flights[0].pending
            if pending is not None:
                pending.cancel()
            return f"{self.worker}: what another thread asked for was cancelled"
        try:
            return self._cancel()
        finally:
            self._lock.release()

    def overlook(self) -> None:
        """Take all failures for seen that are known."""
        with self._lock:
            self._unseen.dropped()

    def reshaped(self, held: object) -> None:
        """Take in that a request gives other looks to what a hold names."""
        self._flights[-1].reshaped.append(weakref.ref(held))

    def look(self, timeout: float) -> SessionLostError | WorkerClosedError | None:
        """Ask the worker whether the session is there; return why it is not.

        Args:
            timeout: seconds to wait. A worker that says nothing meanwhile has it.
        """
        with self._lock, contextlib.suppress(ObhutError, TimeoutError):
            if self._opened and not self.closed:
                # What failed before is for whoever asks for a value.
                flight, _ = self._queue(Count(), None)
                self._settle(flight, timeout)
        return self._lost

    def close(self) -> None:
        """End the session; the worker forgets what it holds for it.

        A worker that does not answer within a few seconds forgets it by itself.
        """
        with self._lock:
            if not self.closed and self._opened:
                with contextlib.suppress(ObhutError, TimeoutError):
                    self._transport.submit(Close(self.name)).result(_CLOSE_SECONDS)
            self.closed = True
            self._transport.close()

    # --- batches ------------------------------------------------------------------

    def _add(
        self, request: AnyRequest, frame: Frame | None, carried: int, made: int
    ) -> Flight:
        large = frame is not None and len(frame) > COPIED_BYTES
        if large and not self._together and self._flights[-1].items:
            # If it is refused, nothing else shall be.
            with contextlib.suppress(TransportError):
                self._settle(self._flights[-1], None)
        flight, _ = self._queue(request, frame)
        flight.made += made
        if frame is not None:
            if large or self._together:
                self._waiting_bytes += len(frame)
            else:
                carried += len(frame)
        flight.carried += carried
        try:
            if self._waiting_bytes:
                if not self._together or self._waiting_bytes >= BYTES_TOGETHER:
                    self._let_frames_leave()
            elif flight.full:
                self._relieve()
                self._hurry = True
                self._pump()
            elif len(flight.items) >= self._enough:
                self._pump()
        except (SessionLostError, WorkerClosedError):
            raise
        except TransportError:
            pass  # what waits stays; whoever asks for a value will hear of it
        return flight

    def _relieve(self) -> None:
        """Wait while too much waits."""
        while len(self._flights) > 1 and (
            len(self._flights) > BATCHES_WAITING or self._flights[-1].full
        ):
            self._settle(self._flights[0], None)

    def _let_frames_leave(self) -> None:
        """Send the open batch now: its tensors may change afterwards."""
        flight = self._flights[-1]
        try:
            while len(self._flights) > 1:
                self._settle(self._flights[0], None)
            if self._seal():  # else all has left already, as it does in blocking mode
                self._submit(flight)
                self._collect()
        except KeyboardInterrupt as stop:
            interrupted(stop)  # before what waits is copied
            raise
        finally:
            self._waiting_bytes = 0
            if not flight.results and not (flight.pending and self._transport.mends):
                flight.items[:] = [
                    (request, site, None if frame is None else bytes(frame))
                    for request, site, frame in flight.items
                ]

    def _cancel(self) -> str:
        self.cancels += 1
        if self.closed:
            return ""
        if self._answered is not None:
            # What has the rows comes after who answers.
            self._answered.cancel()
        said = give_up(self._flights, self._unmade, self._unseen, self.worker)
        if said:
            self._waiting_bytes, self._hurry, self._stopped = 0, False, False
        return said

    def _free(self, flight: Flight) -> None:
        """Let a batch free what names have let go of.

        An id is let go of after the last request that names it was made.
        """
        ids = tuple(self._garbage.popleft().id for _ in range(len(self._garbage)))
        for id in ids:
            self._names.pop(id, None)
        flight.items.append((Free(ids), None, None))

    def _seal(self) -> bool:
        """Close the open batch and begin the next; tell whether it holds anything."""
        flight = self._flights[-1]
        if self._garbage:
            self._free(flight)
        if not flight.items:
            return False
        self._flights.append(Flight(flight.number + 1))
        self._hurry = False
        return True

    def _pump(self) -> None:
        """Send the next batch if none is under way and there is reason to."""
        while True:
            self._collect()
            first = self._flights[0]
            if len(self._flights) == 1:
                if not (self._hurry or len(first.items) >= self._enough):
                    return
                if not self._seal():
                    return
            elif first.pending is not None:
                return
            self._submit(first)

    def _landed(self) -> None:
        """Send the next batch, called when the one before it was answered.

        Must not wait, since the thread that calls it brings the answers. Whoever
        holds the lock sends it in the end: waiting for it, or adding to it.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            self._pump()
        except ObhutError:
            pass  # whoever asks for a value will hear of it
        finally:
            self._lock.release()

    def _queue(self, request: AnyRequest, frame: Frame | None) -> tuple[Flight, int]:
        if self.closed:
            raise (
                copy.copy(self._lost) if self._lost else WorkerClosedError(self.worker)
            )
        if frame is not None and len(frame) <= COPIED_BYTES:
            frame = bytes(frame)
        flight, dtype = self._flights[-1], torch.get_default_dtype()
        if flight.dtype is not dtype:
            if flight.items:
                self._seal()
                flight = self._flights[-1]
            flight.dtype = dtype
        if self._garbage:
            self._free(flight)
        site = current_call_site()
        flight.items.append((request, site, frame))
        if self._guarded or not self._opened:
            self.asked.note(request, site)
        return flight, len(flight.items) - 1

    def guarded(self) -> bool:
        """Tell whether the worker's data is behind a guard; the first time, ask it."""
        if not self._opened and not self.closed:
            with self._lock:
                self._open()
        return self._guarded

    def _open(self) -> None:
        if self._opened:
            return
        hello = Open(self.name, PROTOCOL_VERSION, str(torch.__version__))
        reply = self._transport.submit(hello).result().message
        if isinstance(reply, Refused):
            raise to_refusal(reply, self.worker)
        if not isinstance(reply, Welcome):
            raise RemoteProtocolError(f"{self.worker} did not open the session")
        self._opened, self._guarded = True, reply.guarded

    def _submit(self, flight: Flight) -> None:
        self._open()
        frames: list[Frame] = []
        requests: list[AnyRequest] = []
        for request, _, frame in flight.items:
            if frame is not None and isinstance(request, Put):
                data = structs.replace(request.data, frame=len(frames))
                requests.append(structs.replace(request, data=data))
                frames.append(frame)
            else:
                requests.append(request)
        dtype = DTYPE_NAMES[flight.dtype]
        batch = Batch(
            self.name, flight.number, tuple(requests), dtype, flight.cancelled
        )
        self._made_up = None
        try:
            if self._missing is not None:
                empty = Batch(self.name, self._missing, ())
                self._made_up = self._transport.submit(empty)
            flight.pending = self._transport.submit(batch, frames)
        except TransportError:
            raise
        except ObhutError as error:
            self._refuse(flight, error)
        else:
            if not flight.pending.done():
                flight.pending.when_done(self._landed)
        self._made += flight.made
        if self._made > BYTES_TRIMMED:
            self._made = 0
            if self._transport.shared:
                allocator.trim()

    def _refuse(self, flight: Flight, error: ObhutError) -> None:
        """Take in that a whole batch was not accepted.

        Its number must not be missing at the worker: an empty batch makes up for it,
        just before the next one. If that is not accepted either, the next one was not
        begun, and its number is free again.
        """
        flight.refused, flight.results = error, True
        if not flight.cancelled:
            self._unseen.remember((flight.number, _WHOLE_BATCH), error)
        made_up, self._made_up = self._made_up, None
        if self._missing is not None and (
            made_up is None
            or not made_up.done()
            or isinstance(made_up.result().message, Refused)
        ):
            for number, later in enumerate([*self._flights][1:], flight.number):
                later.number = number
        else:
            self._missing = flight.number

    def _collect(self) -> None:
        """Take in the answers that have come, in order."""
        while len(self._flights) > 1:
            first = self._flights[0]
            if not first.results:
                if first.pending is None or not first.pending.done():
                    return
                self._receive(first, None)
            self._flights.popleft()

    def _settle(self, flight: Flight, timeout: float | None) -> None:
        """Wait until a flight's answers are in."""
        with self._lock:
            while not flight.results:
                first = self._flights[0]
                if len(self._flights) == 1:
                    self._seal()
                if first.pending is None and not first.results:
                    self._submit(first)
                self._receive(first, timeout)
                if self._flights[0] is first:
                    self._flights.popleft()
                if self._stopped:
                    self._cancel()

    def _receive(self, flight: Flight, timeout: float | None) -> None:
        if flight.pending is None or flight.results:
            return
        try:
            message, frames = flight.pending.result(timeout)
        except TransportError as lost:
            if self._transport.mends:
                self.closed = True
                self._lost = SessionLostError(self.worker, str(lost))
                raise copy.copy(self._lost) from lost
            flight.pending = None  # to be sent again
            raise
        if isinstance(message, Results) and message.number == flight.number:
            self._missing = self._made_up = None
            self._answered = flight.pending if self._guarded else None
            flight.cut = message.cut
            for answer in message.answers:
                self._take(flight, answer, frames)
            flight.results = True
        elif isinstance(message, Refused):
            error = to_refusal(message, self.worker)
            if isinstance(error, SessionLostError | WorkerClosedError):
                self.closed, self._lost = True, error
            self._refuse(flight, error)
        else:
            words = f"{self.worker} answered a batch with something else"
            self._refuse(flight, RemoteProtocolError(words))

    @contextlib.contextmanager
    def counting(self) -> Iterator[list[int]]:
        """Collect what would be warned of: contributions that can not be used."""
        before, self._counts = self._counts, []
        try:
            yield self._counts
        finally:
            self._counts = before

    def warn_of_nonfinite(self) -> None:
        """Say that contributions could not be used, in part or at all."""
        count, self._nonfinite = self._nonfinite, 0
        if count and self._counts is not None:
            self._counts.append(count)
        elif count:
            site = current_call_site() or CallSite("<unknown>", 1)
            # Not once for each line of code: each release is another one.
            warnings.warn_explicit(
                f"{self.worker} released a sum in which {count} contribution"
                f"{'s' if count > 1 else ''} could not be used: a value was NaN or "
                "infinite, or its computation failed; that counted as 0",
                UserWarning,
                site.file,
                site.line,
            )

    def _take(self, flight: Flight, answer: AnyAnswer, frames: Sequence[Frame]) -> None:
        if isinstance(answer, Fetched):
            data = answer.data
            with _no_modes():
                flight.replies[answer.index] = from_frame(
                    frames[data.frame], data.dtype, data.shape
                )
            if answer.nonfinite:
                self._nonfinite = max(self._nonfinite, answer.nonfinite)
        elif isinstance(answer, Failed):
            flight.failures[answer.index] = answer
            origin = (answer.batch, answer.origin)
            if origin not in self._unseen:
                site = None
                if answer.batch == flight.number and answer.origin < len(flight.items):
                    site = flight.items[answer.origin][1]
                error = self._to_error(answer, site)
                self._unseen.remember(origin, error, seen=flight.cancelled)
        else:
            flight.replies[answer.index] = answer

    def _to_error(self, answer: Failed, site: CallSite | None) -> ObhutError:
        error = to_exception(answer, self.worker, site)
        if isinstance(error, ObjectNotFoundError) and any(
            error.id in ids for ids in self._unmade
        ):
            return CancelledError(
                answer.op, self.worker, site=str(site) if site else ""
            )
        if isinstance(error, ReleaseRefusedError) and error.rule == "program":
            owners = [one for one in SESSIONS if self.name in one.asked.went]
            asked = {one.worker: one.asked for one in owners}
            found = first_difference(dict(sorted(asked.items())))
            if found:
                error.add_note(found)
        return error

    def _carried_out(self, flight: Flight, index: int) -> bool:
        with self._lock:
            self._settle(flight, None)
            return (
                flight.refused is None
                and index not in flight.failures
                and (flight.cut is None or index < flight.cut)
            )

    def _is_in(self, flight: Flight) -> bool:
        with self._lock:
            with contextlib.suppress(ObhutError):
                self._pump()
            return flight.results

    def _result(self, flight: Flight, index: int, timeout: float | None) -> Reply:
        with self._lock:
            self._settle(flight, timeout)
            if flight.refused is not None:
                self.raise_unseen()  # with it, unless it was seen
                raise copy.copy(flight.refused)
            failed = flight.failures.get(index)
            if failed is not None:
                origin = (failed.batch, failed.origin)
                if self._unseen.came_before(origin):
                    self.raise_unseen()  # it may be why
                self._unseen.see(origin)
                raise self._unseen.known(origin) or self._to_error(failed, None)
            self.raise_unseen()
            reply = flight.replies.get(index)
            if reply is None and flight.cut is not None:
                raise CancelledError("what was asked for", self.worker)
            if reply is None:
                raise InternalError(f"{self.worker} left a request unanswered")
            return reply

    def _overlook(self, flight: Flight, index: int) -> None:
        with self._lock:
            failed = flight.failures.get(index)
            if failed is not None:
                self._unseen.see((failed.batch, failed.origin))

    def raise_unseen(self) -> None:
        """Raise the oldest failure that nobody has seen, if there is one, once."""
        self._unseen.raise_all()


@contextlib.contextmanager
def _no_modes() -> Iterator[None]:
    """Make what is fetched here, whatever modes the caller has entered."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch._C.DisableTorchFunction())
        if torch._C._len_torch_dispatch_stack():
            stack.enter_context(python_dispatch._disable_current_modes())
        yield
