"""A served worker's sessions: routes parcels to children, carries deliveries.

::

    arriving = node.place(sender, header, lengths)      # where frames go as they come
    said, frames = node.exchange(sender, header, arriving, sent, line)
    node.hung_up(line)                           # the connection ended
    node.expire()                                # every few seconds

Rules:

- The sender of a message is who the certificate says; no field names it.
- This process executes no operator and loads no torch: each session has a child.
- What a session's batch delivers goes to the other worker under this worker's own
  identity: its header before the batch is answered, its bytes afterwards. A batch that
  reads what is still to come waits for it. So does one that asks what is stored.
- A child's end ends its session, with words; the others go on.
- A session lives as long as its owner is connected, and for some time after. One whose
  owner is not makes room for the owner's next one.
- Quotas are the principal's: what its sessions use is charged to it after each
  message, once its answer has left, and every few seconds, whoever caused it.
- What a requester is told names nobody but who they named, no address and no path.
- Reading a long message is the sender's time as well.
- Two answers of a session may be on their way: one on a connection that died, and one
  that takes its place. Who sends a message again meanwhile waits.
- Under a policy the gate looks at all that leaves, whatever a child made of it.
"""

from __future__ import annotations

import collections
import contextlib
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from typing import Protocol, TypeAlias, TypeVar

from msgspec import structs

from obhut.errors import (
    AccessDeniedError,
    InternalError,
    LedgerError,
    LimitError,
    ObhutError,
    ReleaseRefusedError,
    RemoteProtocolError,
    SessionLostError,
)
from obhut.guard.ledger import Head
from obhut.guard.policy import SAME
from obhut.host.conductor import Conductor, DistrustedError
from obhut.host.gate import Gate
from obhut.host.quotas import Accounts, Quotas
from obhut.host.states import States
from obhut.protocol import codec, limits
from obhut.protocol.codec import Frame
from obhut.protocol.messages import (
    AnyMessage,
    Batch,
    Cancel,
    Close,
    Deliver,
    Done,
    ListState,
    Move,
    Open,
    Progress,
    Recall,
    Recalled,
    RecallState,
    Refused,
    Watch,
)
from obhut.transports.pipe.parent import Absent
from obhut.worker.effects import Delivery, Keeping, Leaving

from .arriving import Arriving
from .awaited import Announced
from .departures import Departures
from .following import Followed, Following, HighProcess
from .sessions import (
    ANSWERS,
    GONE,
    ChildRunner,
    ChildSaid,
    ServedSession,
    SessionProcess,
    Starting,
    body,
)
from .storing import Storing
from .streams import STALLED_SECONDS
from .undelivered import undelivered

_NO_QUOTAS = Quotas(limits.SESSIONS_PER_SENDER)

_REASONS_KEPT = 256

_PATIENCE = 1.0
"""Seconds of processor time, between two looks, that go unnoticed."""

ANSWER_SECONDS = STALLED_SECONDS + 30.0
"""How long is waited for an answer to be on its way no more; one that nobody takes
is given up before."""

LONG_HEADER = 2**16
"""Bytes from which on it counts what it costs to read a header."""

Envelope: TypeAlias = tuple[bytes, Sequence[Frame]]
"""An encoded message with its frames."""


_Beside = TypeVar("_Beside", Cancel, Watch)


class Ways(Protocol):
    """The ways to other workers."""

    def carry(
        self, session: str, to: str, message: AnyMessage, frames: Sequence[Frame]
    ) -> AnyMessage:
        """Deliver something for a session and return the answer.

        Raises:
            ObhutError: if the worker is not known or could not be reached.
        """

    def drop(self, session: str) -> None:
        """Give up what a session has under way."""


def _started(starting: Starting, name: str, memory: int | None) -> HighProcess:
    """Start what has the rows of a session; keep what starts it."""
    if starting.follows is None:
        raise InternalError("nothing follows at this worker")
    return starting.follows(name, memory)


class Node:
    """A served worker's sessions and what may be done with them.

    Args:
        name: the worker's name.
        id: the hash of its key.
        start: returns what starts the processes of a principal's session.
        ways: the ways to other workers.
        may_open: tells whether a principal may open sessions.
        may_deliver: tells whether a principal may deliver into sessions.
        quotas: what a principal may use.
        session_seconds: how long a session outlives its owner's connection.
        answer_seconds: how long is waited for answers to be on their way no more.
        clock: tells the time in seconds, and does not go back.
        log: takes a line for the operator.
        gate: applies the worker's policy; None for an open worker.
        recall: tells an aggregator's head, and its hash with so many entries before;
            None elsewhere.
        states: what is stored beyond sessions; None at an aggregator, where nothing is.
        called: returns what the owner calls somebody, by id, for the log.
        file: the configuration, for the log.
    """

    def __init__(
        self,
        name: str,
        id: str,
        start: Callable[[str], Starting],
        ways: Ways,
        *,
        may_open: Callable[[str], bool],
        may_deliver: Callable[[str], bool],
        quotas: Quotas = _NO_QUOTAS,
        session_seconds: float = 600.0,
        answer_seconds: float = ANSWER_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        log: Callable[[str], None] = lambda line: None,
        gate: Gate | None = None,
        recall: Callable[[int], tuple[Head, str]] | None = None,
        states: States | None = None,
        called: Callable[[str], str] = str,
        file: str = "its configuration",
    ) -> None:
        self.name = name
        self._gate = gate
        self._conductor = Conductor(name, gate, log=log, called=called)
        policy = gate.policy if gate is not None else None
        self._hashes = policy is not None and policy.programs == SAME
        self._recall = recall
        self._storing = Storing(name, states, clock, log)
        self._id = id
        self._start = start
        self._ways = ways
        self._may_open = may_open
        self._may_deliver = may_deliver
        self._accounts = Accounts(name, quotas, clock)
        self._left = threading.Condition()
        self._most = 2 * quotas.sessions  # those that are there, and those that end
        self._following: collections.Counter[str] = collections.Counter()
        self._session_seconds = session_seconds
        self._answer_seconds = answer_seconds
        self._clock = clock
        self._log = log
        self.called = called
        self._file = file
        self._departures = Departures(self._carry, self._not_delivered)
        self._lock = threading.Lock()
        self._charging = threading.Lock()
        self._sessions: dict[str, ServedSession] = {}
        self._ended: collections.OrderedDict[tuple[str, str], str] = (
            collections.OrderedDict()
        )

    def exchange(
        self,
        sender: str,
        header: bytes,
        frames: Sequence[Frame] | Arriving,
        sent: contextlib.ExitStack | None = None,
        line: Hashable = None,
    ) -> Envelope:
        """Take in one parcel and return the reply.

        Args:
            sender: who the certificate says sent it.
            header: the encoded message.
            frames: its frames, or where they went as they came.
            sent: takes what is to be done once the reply is there or given up; None
                if it is there at once.
            line: the connection that it came over. Duty: ``hung_up`` when it ends.
        """
        try:
            if isinstance(frames, Arriving):
                message = frames.message
                if message is None:
                    message = self._read(sender, header, frames.lengths)
            else:
                message = self._read(sender, header, tuple(map(len, frames)))
            return self._routed(sender, message, header, frames, sent, line)
        except ObhutError as error:
            self._log(f"{self.called(sender)}: {type(error).__name__}: {error}")
            return refusal(error), ()
        except Exception as error:
            # Else the stream would end, and its client would send it all again.
            self._log(f"{self.called(sender)}: {type(error).__name__}: {error}")
            said = f"the worker met {type(error).__name__}"
            return refusal(InternalError(said)), ()
        finally:
            if isinstance(frames, Arriving):
                frames.drop()

    def place(self, sender: str, header: bytes, lengths: tuple[int, ...]) -> Arriving:
        """Return where a parcel's frames go as they come.

        Duty: hand it to ``exchange`` when all are there, else drop it.

        Args:
            sender: who the certificate says sends it.
            header: the encoded message.
            lengths: the bytes of each frame.
        """
        try:
            message = self._read(sender, header, lengths)
            match message:
                case Batch(session=name):
                    session = self._owned(sender, name)
                case Deliver(session=name):
                    session = self._receiving(sender, name)
                case _:
                    kind = type(message).__name__
                    raise RemoteProtocolError(f"a {kind} message brings no tensors")
            kept = None if len(header) > LONG_HEADER else message
            ids = message.ids if isinstance(message, Deliver) else ()
            heard = partial(self._hear, session, ids)
            hashed = self._hashes and session.following is not None
            return Arriving(kept, session.lender, lengths, heard, hashed)
        except ObhutError as error:
            return Arriving(error, None, lengths)

    def cancel(self, sender: str, header: bytes) -> None:
        """Do no more of a batch. Does nothing if it is done, or there is none.

        What has the rows does no more of it either, nor of those before it.

        Args:
            sender: who the certificate says sent it.
            header: the encoded ``Cancel``, which may come before the batch.
        """
        try:
            message, session = self._beside(sender, header, Cancel)
        except ObhutError:
            return
        session.cancelled = max(session.cancelled, message.number)
        self._cancel(message.session, session)
        if session.following is not None:
            session.following.cancel(message.number)
        self._wake(session)

    def watch(self, sender: str, header: bytes) -> bytes:
        """Return how much of a batch is done, or a refusal; wait for nothing.

        Leak: a number to the session's owner, and to nobody else. Under a policy there
        is none.

        Args:
            sender: who the certificate says asks.
            header: the encoded ``Watch``, which may come before the batch.
        """
        try:
            message, session = self._beside(sender, header, Watch)
        except ObhutError as error:
            return refusal(error)
        done = session.child.progress()
        if done is not None and message.number != session.batch:
            done = 1000 if message.number <= session.done else 0
        return codec.encode(Progress(done))

    def _beside(
        self, sender: str, header: bytes, kind: type[_Beside]
    ) -> tuple[_Beside, ServedSession]:
        """Return what was said beside the streams, and the session it is about.

        Raises:
            ObhutError: if it is something else, or the session is not the sender's; it
                is logged.
        """
        try:
            message = codec.decode(header)
            if not isinstance(message, kind):
                raise RemoteProtocolError(f"expected a {kind.__name__} message")
            return message, self._owned(sender, message.session)
        except ObhutError as error:
            self._log(f"{self.called(sender)}: {type(error).__name__}: {error}")
            raise

    def _cancel(self, name: str, session: ServedSession) -> None:
        """Tell a session's child, and let go of what it delivers, if it is meant."""
        if 0 < session.batch <= session.cancelled and session.started is not None:
            session.started.cancel(session.batch)
            self._ways.drop(name)

    def expire(self) -> None:
        """End the sessions whose owners have been away for too long.

        And those that go on computing when their owner's time is used up.
        """
        self._departures.remind()
        before = self._clock() - self._session_seconds
        with self._lock:
            sessions = dict(self._sessions)
        for name, session in sessions.items():
            # In this order: who leaves is heard of before they are away.
            if self._is_left(session) and session.seen < before:
                why = (
                    "it expired: you were not connected for more than "
                    f"{self._session_seconds:,.0f} seconds (session_seconds)"
                )
                self._end(name, session, why=why)
                continue
            self._charge(session)
            # Whoever charged it meanwhile: a message that computes nothing does too.
            used = session.charged - session.looked_at
            session.looked_at += used
            if used > _PATIENCE:
                try:
                    self._accounts.check_time(session.owner)
                except LimitError as error:
                    self._end(name, session, why=str(error))

    def lost(self, name: str, child: SessionProcess) -> None:
        """Take in that a session's child ended unasked, between two messages.

        Nothing is done if the session has another one: it began anew meanwhile.
        """
        with self._lock:
            session = self._sessions.get(name)
        if session is not None and session.started is child:
            self._end(name, session, crashed=True)

    def hung_up(self, line: Hashable) -> None:
        """Take in that a connection has ended."""
        with self._lock:
            for session in self._sessions.values():
                if session.lines and line in session.lines:
                    self._hear(session)
                    session.lines = session.lines - {line}

    def attends(self, line: Hashable) -> bool:
        """Tell whether a connection is one over which a session is used."""
        with self._lock:
            return any(line in (s.lines or ()) for s in self._sessions.values())

    def attend(self, sender: str, name: str, line: Hashable) -> bool:
        """Take in that a session's owner is connected; tell if it is there.

        Args:
            sender: who the certificate says it is.
            name: the session's name.
            line: the connection. Duty: ``hung_up`` when it ends.
        """
        with self._lock:
            session = self._sessions.get(name)
            if session is None or session.owner != sender:
                return False
            session.lines = (session.lines or frozenset()) | {line}
            return True

    def _attend(self, session: ServedSession, line: Hashable) -> None:
        if line not in (session.lines or ()):
            with self._lock:
                session.lines = (session.lines or frozenset()) | {line}

    def _is_left(self, session: ServedSession) -> bool:
        """Tell whether its owner is away, and nothing of theirs is being computed."""
        return not session.lines and not session.lock.locked()

    def _make_room(self, owner: str) -> bool:
        """End the session that its owner has left for longest; tell if there is one."""
        with self._lock:
            left = [
                (session.seen, name, session)
                for name, session in self._sessions.items()
                if session.owner == owner
                and session.lines is not None
                and self._is_left(session)
            ]
        if not left:
            return False
        _, name, session = min(left, key=lambda one: one[0])
        why = "it made room for your next one: you were not connected to it"
        return self._end(name, session, why=why)

    def _hear(self, session: ServedSession, ids: tuple[int, ...] = ()) -> None:
        """Take in that something came for a session, or of a delivery to it."""
        session.seen = now = self._clock()
        if ids:
            session.awaited.hear(ids, now)

    def _wake(self, session: ServedSession) -> None:
        """Let those who wait for a session's deliveries look again."""
        self._departures.look()
        session.awaited.wake()
        self._storing.look()

    def _read(self, sender: str, header: bytes, sizes: Sequence[int]) -> AnyMessage:
        """Return a message, and charge its sender if it takes long to read.

        Raises:
            LimitError: if it is long, and the sender's time is used up.
            RemoteProtocolError: if it is none.
        """
        if len(header) <= LONG_HEADER:
            return codec.decode_ahead(header, sizes)
        self._accounts.check_time(sender)
        began = time.thread_time()
        try:
            return codec.decode_ahead(header, sizes)
        finally:
            self._accounts.charge(sender, time.thread_time() - began)

    def end_not_admitted(
        self, withdrawn: Callable[[str], bool] = lambda owner: False
    ) -> None:
        """End the sessions of all who may not open one any more.

        Args:
            withdrawn: tells whether a session may have data that its owner may not.
        """
        with self._lock:
            sessions = dict(self._sessions)
        for name, session in sessions.items():
            if not self._may_open(session.owner):
                why = "its owner may open no session any more; ask the worker's owner"
                self._end(name, session, why=why)
            elif withdrawn(session.owner):
                why = "what it may use has changed; begin another session"
                self._end(name, session, why=why)

    def finish(self, seconds: float) -> None:
        """Wait until what was announced has been delivered, but so long at most."""
        self._departures.finish(seconds)
        self._storing.finish(seconds)

    def close(self) -> None:
        """End all sessions."""
        with self._lock:
            names = list(self._sessions)
        for name in names:
            self._end(name)

    def admits(self, sender: str) -> bool:
        """Tell whether a principal may open sessions."""
        return self._may_open(sender)

    def knows(self, sender: str) -> bool:
        """Tell whether a principal may do anything here."""
        return self._may_open(sender) or self._may_deliver(sender)

    def turned_away(self, sender: str) -> AccessDeniedError:
        """Log that a principal may open no session; return the error for them."""
        gate = self._gate
        named = gate is None or sender in gate.policy.requesters
        key = "sessions under [access]" if named else "requesters under [policy]"
        return self._denied(sender, "opens no session for", key)

    def _denied(self, sender: str, what: str, key: str) -> AccessDeniedError:
        """Log which line would let a principal in; return the error for them."""
        called = self.called(sender)
        self._log(f'to let {called} in, add "{called}" to {key} in {self._file}')
        return AccessDeniedError(
            f'{self.name} {what} you: ask its owner to add "{called}" to {key} in its '
            "configuration"
        )

    def busy(self) -> int:
        """Return how many sessions there are."""
        return len(self._sessions)

    def _routed(
        self,
        sender: str,
        message: AnyMessage,
        header: bytes,
        frames: Sequence[Frame] | Arriving,
        sent: contextlib.ExitStack | None,
        line: Hashable,
    ) -> Envelope:
        match message:
            case Open(session=name):
                if not self._may_open(sender):
                    raise self.turned_away(sender)
                self._conductor.admit(sender, message)
                session = self._opened(sender, name)
            case Batch(session=name) | Close(session=name):
                session = self._owned(sender, name)
                self._conductor.admit(sender, message)
                self._check_time(session, message)
            case Deliver(session=name):
                session = self._receiving(sender, name)
            case Recall(number=number):
                return codec.encode(self._recalled(sender, number)), ()
            case _:
                kind = type(message).__name__
                raise RemoteProtocolError(f"a worker takes no {kind} message")
        if isinstance(message, Close):
            self._end(name, session)
            return codec.encode(Done()), ()
        child = session.child
        if isinstance(frames, Arriving):
            frames.check(session.lender)
        if line is not None and not isinstance(message, Deliver):
            self._attend(session, line)
        accepted: list[Delivery] = []
        kept: list[Keeping] = []
        try:
            deliver = partial(self._deliver, name, accepted)
            keep = partial(self._storing.keep, name, session, kept)
            follows = session.following is not None
            seen = _absent(frames, self._hashes) if follows else frames
            runner = ChildRunner(child, sender, name, header, seen, self._clock)
            if isinstance(message, Deliver):
                # Not in line with the owner's batches: one of them may be waiting
                # for this.
                return self._delivered(sender, session, message, header, frames, runner)
            with session.lock:
                self._hear(session)
                self._wait_for_answers(session, sent)
                session.batch = message.number if isinstance(message, Batch) else 0
                try:
                    if isinstance(message, Batch):
                        self._wait_for_deliveries(name, session, message)
                    self._cancel(name, session)  # it may have come before
                    said = self._conductor.conduct(sender, runner, deliver, keep)
                except BaseException:
                    self._storing.give_up(sender, kept)
                    raise
                finally:
                    session.batch, session.done = 0, session.batch or session.done
                    if accepted and session.following is None:
                        self._departures.add(name, accepted)
                if isinstance(message, Batch):
                    leaving: list[Leaving] = [*accepted, *kept]
                    self._follow(name, session, sender, header, frames, said, leaving)
                self._hear(session)
            if sent is None:
                self._charge(session)
            else:
                sent.callback(self._charge, session)  # nobody need wait for it
            if isinstance(message, Open) and _refuses(said.header):
                self._end(name, session)
            return said.header, said.frames
        except DistrustedError as error:
            self._log(f"session {name[:8]}: {error}")
            broken = "its process broke the protocol"
            self._end(name, session, why=broken, crashed=True)
            raise SessionLostError(self.name, broken) from error
        except SessionLostError as error:
            if not self._end(name, session, why=error.why, crashed=True):
                with self._lock:
                    why = self._ended.get((sender, name))
                if why is not None:
                    # It was ended here: what its child's end looked like is not why.
                    raise SessionLostError(self.name, why) from error
            raise

    def _entered(self, sender: str, name: str) -> tuple[ServedSession, bool]:
        """Return a session and whether it is a new one, whose lock is held then."""
        with self._lock:
            known = self._sessions.get(name)
            if known is not None:
                if known.owner != sender:
                    raise SessionLostError(self.name, GONE)
                return known, False
            memory = self._accounts.reserve(sender)
            session = ServedSession(sender, memory, self._clock())
            self._sessions[name] = session
            session.lock.acquire()
            return session, True

    def _opened(self, sender: str, name: str) -> ServedSession:
        while True:
            try:
                session, new = self._entered(sender, name)
                break
            except LimitError:
                # Against that room is no help.
                self._accounts.check_time(sender, crashes=True)
                if not self._make_room(sender):
                    raise
        if not new:
            if session.started is None:
                with session.lock:
                    pass  # its child has started now, or could not be
            return session
        # Without the node's lock: a process may take long to start.
        try:
            starting = session.starting = self._start(sender)
            if starting.follows is not None:
                start = partial(_started, starting, name, session.memory)
                session.following = self._followed(sender, name, start)
            session.started = starting.answers(name, session.memory)
        except BaseException:
            self._end(name, session)
            raise
        finally:
            session.lock.release()
        if self._sessions.get(name) is not session:
            # It was ended before there was a child to end.
            session.started.close()
            raise SessionLostError(self.name, self._why(sender, name))
        self._log(f"session {name[:8]} opened for {self.called(sender)}")
        return session

    def _followed(
        self, owner: str, name: str, start: Callable[[], HighProcess]
    ) -> Following:
        """Return what follows a new session's answers.

        Waits while as much of one owner's has still to do as they may have sessions:
        what was ended ends after what it has to do.
        """
        with self._left:
            self._left.wait_for(lambda: self._following[owner] < self._most)
            self._following[owner] += 1

        def ended() -> None:
            with self._left:
                self._following[owner] -= 1
                self._left.notify_all()

        return Following(
            start,
            partial(self._bring, owner, name),
            self._log,
            self._clock,
            ended,
        )

    def _wait_for_answers(
        self, session: ServedSession, sent: contextlib.ExitStack | None
    ) -> None:
        """Wait until a session's answers are few enough for one more.

        Raises:
            LimitError: if that takes too long. Nothing was done then.
        """
        if sent is None:
            return
        if not session.answers.acquire(timeout=self._answer_seconds):
            raise LimitError(
                f"{ANSWERS} answers of this session are on their way and nobody takes "
                "them; read them, or end the connections that they are on"
            )
        sent.callback(session.answers.release)

    def _wait_for_deliveries(
        self, name: str, session: ServedSession, batch: Batch
    ) -> None:
        """Wait until what a batch reads has come, and what it delivers may go."""

        def ended() -> bool:
            cancelled = batch.cancelled or batch.number <= session.cancelled
            return cancelled or self._sessions.get(name) is not session

        if self._departures.has(name) and any(
            isinstance(request, Move) for request in batch.requests
        ):
            self._departures.wait(name, ended)
        if any(
            isinstance(request, ListState | RecallState) for request in batch.requests
        ):
            self._storing.wait(session.owner, ended)
        while overdue := session.awaited.wait(batch, ended, self._clock):
            for one in overdue:
                self._despair(session, one)

    def _despair(self, session: ServedSession, one: Announced) -> None:
        """Wait no more for a delivery that was announced."""
        called = self.called(one.sender)
        self._log(f"delivery from {called}: nothing was heard of it any more")
        spoilt = codec.encode(structs.replace(one.header, spoilt=True))
        session.child.exchange(one.sender, spoilt, (), self._clock())
        session.awaited.came(one.header.ids)

    def _delivered(
        self,
        sender: str,
        session: ServedSession,
        message: Deliver,
        header: bytes,
        frames: Sequence[Frame] | Arriving,
        runner: ChildRunner,
    ) -> Envelope:
        """Take in the header of a delivery, or its bytes.

        Whose batches read it hear that the header was accepted after this returns.
        """
        told = None if message.seen is None else self._recalled(sender, message.seen)
        came = isinstance(frames, Arriving) or bool(frames) or message.spoilt
        said = self._conductor.conduct(sender, runner, partial(self._deliver, "", []))
        if _refuses(said.header):
            return said.header, said.frames
        self._hear(session)
        if came and not message.spoilt:
            self._follow(message.session, session, sender, header, frames, said)
        if came:
            session.awaited.came(message.ids)
        elif message.tensors:
            session.awaited.announce(sender, message, self._clock())
        return said.header if told is None else codec.encode(told), said.frames

    def _follow(
        self,
        name: str,
        session: ServedSession,
        sender: str,
        header: bytes,
        frames: Sequence[Frame] | Arriving,
        said: ChildSaid,
        accepted: Sequence[Leaving] = (),
    ) -> None:
        """Let what has the rows do what was answered."""
        if session.following is None or _refuses(said.header):
            self._storing.give_up(sender, accepted)
            return
        undone = tuple(said.undone)
        message = Followed(sender, header, body(frames), undone, accepted)
        promised = [one for one in accepted if isinstance(one, Delivery)]
        if promised:
            self._departures.promise(name, promised)
        session.following.put(message)

    def _owned(self, sender: str, name: str) -> ServedSession:
        session = self._named(sender, name)
        if session.owner != sender:
            raise SessionLostError(self.name, GONE)
        return session

    def _receiving(self, sender: str, name: str) -> ServedSession:
        """Return the session that somebody else delivers into."""
        if sender != self._id and not self._may_deliver(sender):
            raise self._denied(sender, "takes nothing from", "deliver under [access]")
        return self._named(sender, name)

    def _recalled(self, sender: str, number: int) -> Recalled:
        """Tell who may deliver how far the record of releases came, and what it was."""
        if not self._may_deliver(sender):
            raise self._denied(sender, "takes nothing from", "deliver under [access]")
        if self._recall is None:
            raise ReleaseRefusedError(
                "policy",
                f"{self.name} is no aggregator under a policy, and {sender} delivers "
                "to nobody else",
            )
        try:
            head, then = self._recall(number)
        except LedgerError as error:
            self._log(str(error))
            raise InternalError("its record of releases can not be read") from error
        return Recalled(head.number, head.hash, then)

    def _named(self, sender: str, name: str) -> ServedSession:
        with self._lock:
            session = self._sessions.get(name)
        if session is None:
            raise SessionLostError(self.name, self._why(sender, name))
        return session

    def _end(
        self,
        name: str,
        only: ServedSession | None = None,
        *,
        why: str = "",
        crashed: bool = False,
    ) -> bool:
        """End a session, if it is there and is that one; tell whether it was.

        Args:
            name: the session's name.
            only: the session that is meant.
            why: what its owner is told later on.
            crashed: whether its child ended unasked.
        """
        with self._lock:
            session = self._sessions.get(name)
            if session is None or (only is not None and session is not only):
                return False
            del self._sessions[name]
            if why:
                self._ended[session.owner, name] = why
                while len(self._ended) > _REASONS_KEPT:
                    self._ended.popitem(last=False)
        if session.started is not None:
            session.started.close()
            self._charge(session)
        if session.following is not None:
            session.following.end()
        self._accounts.release(session.owner, session.memory)
        self._ways.drop(name)
        self._wake(session)
        self._log(f"session {name[:8]} ended{': ' + why if why else ''}")
        owner = self.called(session.owner)
        if crashed and session.started is not None and session.started.blameless:
            self._log(f"session {name[:8]} of {owner} ended with others")
        elif crashed:
            self._log(f"session {name[:8]} of {owner} crashed")
            if self._accounts.crashed(session.owner):
                self._log(f"too many sessions of {owner} crashed")
        return True

    def _why(self, sender: str, name: str) -> str:
        """Return what became of a session, for who asks."""
        with self._lock:
            return self._ended.get((sender, name), GONE)

    def _charge(self, session: ServedSession) -> float:
        """Charge what a session has used since it was last looked at; return it."""
        if session.started is None:
            return 0.0
        with self._charging:
            used = session.started.used() - session.charged
            session.charged += used
        self._accounts.charge(session.owner, used)
        return used

    def _check_time(self, session: ServedSession, message: AnyMessage) -> None:
        """Refuse to compute for an owner whose time is used up.

        Raises:
            LimitError: if it is.
        """
        if isinstance(message, Batch) and any(
            request.computes for request in message.requests
        ):
            self._accounts.check_time(session.owner)

    def _deliver(
        self, session: str, accepted: list[Delivery], delivery: Delivery
    ) -> Refused | None:
        """Announce a delivery; return why it was refused, or None."""
        to = delivery.to
        try:
            refused = self._carry(to, delivery.message, (), session)
        except Exception as error:
            # Any: the child waits to hear how each ended, and the batch for the child.
            self._not_delivered(to, f"{type(error).__name__}: {error}")
            return undelivered(self.name, to, error)
        if refused is None and delivery.message.tensors:
            accepted.append(delivery)
        return refused

    def _bring(self, owner: str, name: str, leaving: Iterable[Leaving]) -> None:
        """Let values go where they were declared for: away, or onto this disk."""
        ready = list(leaving)
        self._departures.add(name, [one for one in ready if isinstance(one, Delivery)])
        self._storing.bring(owner, ready)

    def _carry(
        self, to: str, message: Deliver, frames: Sequence[Frame], session: str = ""
    ) -> Refused | None:
        """Take a message of a delivery to its worker; return why it was refused.

        Args:
            to: the worker.
            message: the message.
            frames: its frames.
            session: the session that waits for it, if one does.
        """
        if to == self._id:
            header, _ = self.exchange(to, codec.encode(message), frames)
            answer = codec.decode(header)
        else:
            answer = self._ways.carry(session, to, message, frames)
        return answer if isinstance(answer, Refused) else None

    def _not_delivered(self, to: str, why: str) -> None:
        self._log(f"delivery to {self.called(to)}: {why}")


def _absent(frames: Sequence[Frame] | Arriving, hashed: bool) -> Absent:
    """Return what a process is told of frames that it does not get."""
    if isinstance(frames, Arriving):
        return Absent(frames.lengths, frames.digests)
    digests = tuple(map(codec.frame_digest, frames)) if hashed else ()
    return Absent(tuple(map(len, frames)), digests)


def refusal(error: ObhutError) -> bytes:
    """Return the reply that says why a message was refused."""
    text = error.why if isinstance(error, SessionLostError) else str(error)
    return codec.encode(Refused(type(error).__name__, text))


def _refuses(header: bytes) -> bool:
    """Tell whether a child's reply, which carries no frames, is a refusal."""
    try:
        return isinstance(codec.decode(header), Refused)
    except RemoteProtocolError:
        return True
