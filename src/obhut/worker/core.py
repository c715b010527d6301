"""The worker's state machine: a message in, a reply and effects out.

::

    worker = Worker("bob")
    hello = Open("s", PROTOCOL_VERSION, str(torch.__version__))
    reply, effects = worker.handle("me", Parcel(hello), now)
    reply, effects = worker.handle("me", Parcel(Batch("s", 1, requests), frames), now)
    reply = worker.settle("me", "s", outcomes)   # if there were effects

Rules:

- ``Worker.handle`` is the one way in. It does no I/O and knows no clock: the
  time is an argument, what it wants done is an effect.
- A session belongs to the sender who opened it. Nobody else can use it, and no
  message reaches the objects of another session; other workers can deliver what
  the session expects from them, once.
- Each request is begun once. A batch that is sent again goes on after the last
  request that was begun, or is answered as it was before.
- One request's failure fails no other, except those that need its result.
- Of a batch that is cancelled nothing more is computed, and nothing leaves.
- Under a policy, an owner's worker lets nothing leave but deliveries to the
  aggregators that the policy names, and to its own shell, for itself; an aggregator
  lets nothing leave that its shell's guard has not permitted.
- Unknown is refused.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import ClassVar

import torch
from msgspec import structs

from obhut.errors import (
    InternalError,
    LimitError,
    MemoryLimitError,
    ObhutError,
    ReleaseRefusedError,
    RemoteProtocolError,
    WorkerClosedError,
)
from obhut.guard.policy import SAME, Quorum, decode, encode
from obhut.protocol import limits, messages
from obhut.protocol.codec import Frame
from obhut.protocol.dtypes import nbytes
from obhut.protocol.messages import (
    AnyAnswer,
    AnyMessage,
    AnyRequest,
    Batch,
    Close,
    Deliver,
    Described,
    Done,
    Failed,
    Fetch,
    Fetched,
    Free,
    ListState,
    Move,
    Open,
    Put,
    RecallState,
    Refused,
    Request,
    Results,
    RunProgram,
    State,
    StateAnswer,
    StateQuestion,
    StoreState,
    TensorData,
    Versions,
    Welcome,
)

from .aggregation import Aggregation, SumStore, Wanted
from .answers import (
    declare,
    failed,
    name_of,
    words,
)
from .choosing import NAMELESS, Columns
from .effects import Delivery, Effect, Keeping, Leaving, Parcel, Seeking
from .execution import Execution, ShapeOnlyExecution, computing
from .executor import Executor
from .objects import PoisonedError
from .provenance import Provenance
from .roles import Aggregator, Owner, Role
from .runs import StoppedError
from .session_state import SessionState, Suspended
from .store import Store
from .tensors import DTYPES, spec_of


class Worker:
    """Holds tensors for sessions and runs operators on them.

    Args:
        id: the worker's name among its peers.
        device: where it computes.
        memory_limit: bytes that a session may hold; None for no limit.
        session_seconds: how long a session outlives its last message; None for
            as long as the worker.
        datasets: its data, by name and part.
        role: what it is under a policy; None for an open worker.
        hidden: of an owner, the names of data sets whose number of rows is hidden.
        columns: the public names of its data's columns.
        cancelled: tells whether a batch of that number was cancelled meanwhile. It is
            asked before each request.
        progress: takes what share of a batch's runs of programs is done, while they
            run. Under a policy it is told nothing.

    Attributes:
        follows: whether something is done after an answer.
    """

    follows: ClassVar[bool] = False

    def __init__(
        self,
        id: str,
        *,
        device: str = "cpu",
        memory_limit: int | None = None,
        session_seconds: float | None = None,
        datasets: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
        role: Role | None = None,
        hidden: Collection[str] = (),
        columns: Columns = NAMELESS,
        cancelled: Callable[[int], bool] = lambda number: False,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        self.id = id
        self._device = torch.device(device)
        self._memory_limit = memory_limit
        self._session_seconds = session_seconds
        self._datasets = datasets or {}
        self._role = role
        self._hidden = frozenset(hidden)
        self._columns = columns
        self._cancelled = cancelled
        self._progress = progress
        self._sessions: dict[str, SessionState] = {}

    def handle(
        self, sender: str, parcel: Parcel, now: float
    ) -> tuple[Parcel, tuple[Effect, ...]]:
        """Take one message in.

        Args:
            sender: who sent it, as the transport knows.
            parcel: the message with its frames, as ``codec.decode`` checked them.
            now: the time in seconds, of any clock that does not go back.

        Returns:
            The reply, and what the shell has to do before it sends the reply.
        """
        if self._session_seconds is not None:
            self._expire(now)
        try:
            message = parcel.message
            match message:
                case Batch():
                    return self._batch(sender, message, parcel.frames, now)
                case Open():
                    return self._open(sender, message, now), ()
                case Deliver():
                    return self._deliver(sender, message, parcel.frames), ()
                case StateAnswer():
                    return self._told(sender, message, parcel.frames), ()
                case Close():
                    self._session(sender, message.session).objects.clear()
                    del self._sessions[message.session]
                    return Parcel(Done()), ()
                case _:
                    name = type(message).__name__
                    raise RemoteProtocolError(f"a worker takes no {name} message")
        except ObhutError as error:
            return Parcel(Refused(type(error).__name__, words(error))), ()

    def settle(
        self, sender: str, session: str, outcomes: Sequence[Refused | None]
    ) -> Parcel:
        """Take in how the effects of a session's last batch ended.

        What was delivered is forgotten here; what was not stays, and its request
        is answered as failed. What may be released is.

        Args:
            sender: who owns the session.
            session: the session.
            outcomes: for each effect in order, None or why it was refused.

        Returns:
            The reply to the batch.
        """
        try:
            held = self._session(sender, session)
        except WorkerClosedError as error:
            return Parcel(Refused(type(error).__name__, str(error)))
        if held.given_up and not held.moves:
            # What has arrived all the same is not here any more.
            left = iter(outcomes)
            for request, effects, _ in held.given_up:
                ends = [next(left, _UNKNOWN) for _ in effects]
                if isinstance(request, Move) and ends == [None]:
                    held.objects.free(request.ids, tagged=True)
            held.given_up = []
            return held.finish()
        if len(outcomes) != len(held.effects):
            return Parcel(Refused("InternalError", "expected an outcome an effect"))
        ended = iter(outcomes)
        ends_of = [tuple(next(ended) for _ in one.effects) for one in held.moves]
        lacking = self._lacks(held, ends_of)
        for one, (first, *others) in zip(held.moves, ends_of, strict=True):
            request, effects, asked = one
            index = effects[0].index
            refused = first or (lacking if isinstance(request, Fetch) else None)
            if refused is not None:
                held.undone.add(index)
                held.answer(_refusal(refused, index, held.number, request))
            elif isinstance(request, Move):
                held.objects.free(request.ids, tagged=True)
            elif isinstance(request, Fetch):
                self._release(held, asked, index, not any(others))
            elif not isinstance(request, StoreState):
                untold = _refusal(_UNKNOWN, index, held.number, request)
                held.answer(held.told.pop(index, untold))
        held.moves.clear()
        return held.finish()

    def _lacks(
        self, held: SessionState, ends: Sequence[Sequence[Refused | None]]
    ) -> Refused | None:
        """Return why nothing of a batch is released although it may be, if so."""
        permitted = [
            one.asked
            for one, (refused, *_) in zip(held.moves, ends, strict=True)
            if refused is None and one.asked is not None
        ]
        if held.aggregation is None or not held.aggregation.lacks(permitted):
            return None
        return Refused("ReleaseRefusedError", _LACKING)

    def has(self, session: str) -> bool:
        """Tell whether there is a session of that name."""
        return session in self._sessions

    def follow(
        self, sender: str, parcel: Parcel, reply: AnyMessage
    ) -> Sequence[Leaving]:
        """Do what comes after the answer; return what is delivered by it.

        Nothing, but where ``follows``.

        Args:
            sender: who sent the message.
            parcel: the message.
            reply: how it was answered, in the end.
        """
        return ()

    def undone(self, session: str) -> Collection[int]:
        """Return the places of the requests that were not carried out.

        Of a session's last batch, when it is answered; none if there is no session.
        """
        found = self._sessions.get(session)
        return found.undone if found is not None else ()

    def named(self, sender: str, session: str) -> list[tuple[int, tuple[str, ...]]]:
        """Return the objects of a session, each by one id, with its tags.

        For a shell that shows its own process what is there; no message asks for it.
        """
        return list(self._session(sender, session).objects.named())

    def _session(self, sender: str, name: str) -> SessionState:
        found = self._sessions.get(name)
        # The same words whether it is somebody else's or nobody's.
        if found is None or found.owner != sender:
            raise WorkerClosedError(self.id)
        return found

    def _expire(self, now: float) -> None:
        lifetime = self._session_seconds or 0.0
        for name, session in list(self._sessions.items()):
            if session.seen + lifetime < now:
                del self._sessions[name]

    def _open(self, sender: str, message: Open, now: float) -> Parcel:
        if message.protocol != messages.PROTOCOL_VERSION:
            raise RemoteProtocolError(
                f"{self.id} speaks protocol version {messages.PROTOCOL_VERSION}, you "
                f"speak {message.protocol}; use the same version of obhut"
            )
        ours, theirs = torch.__version__.split("+")[0], message.torch.split("+")[0]
        if ours != theirs:
            raise RemoteProtocolError(
                f"{self.id} runs torch {ours}, you run {theirs[:80]}; use the same: "
                "results could differ unseen"
            )
        session = self._sessions.get(message.session)
        if session is None:
            theirs_open = sum(s.owner == sender for s in self._sessions.values())
            if theirs_open >= limits.SESSIONS_PER_SENDER:
                raise LimitError(
                    f"{self.id} keeps at most {limits.SESSIONS_PER_SENDER} sessions "
                    "for one client; close some"
                )
            session = self._sessions[message.session] = self._new_session(
                sender, message.session, now
            )
        elif session.owner != sender:
            raise WorkerClosedError(self.id)
        session.seen = now
        applied = session.number - (not session.complete)
        return Parcel(Welcome(applied, isinstance(self._role, Owner)))

    def _new_session(self, sender: str, name: str, now: float) -> SessionState:
        store, columns = Store(self.id, self._memory_limit), self._columns
        execution: Execution
        if isinstance(self._role, Owner):
            kept = Provenance() if self._role.policy.programs == SAME else None
            low = Executor(store, self._device, low=True, provenance=kept)
            execution = ShapeOnlyExecution(
                store,
                low,
                self._device,
                self._datasets,
                self._hidden,
                kept,
                self._role.policy.minimum_rows,
                columns,
            )
        else:
            plain = Executor(store, self._device)
            execution = Execution(
                store,
                plain,
                self._device,
                self._datasets,
                columns=columns,
            )
        if not isinstance(self._role, Aggregator):
            return SessionState(sender, store, execution)
        # A session may have the name of one that ended before. The name is as long as
        # a client likes, and stands in the key of each tensor.
        unique = hashlib.sha256(f"{name}@{now!r}".encode()).hexdigest()[:32]
        sums = SumStore(self.id, self._memory_limit, unique)
        aggregation = Aggregation(sums, self._role.policy, self._role.passed)
        return SessionState(sender, store, execution, aggregation)

    def _deliver(
        self, sender: str, message: Deliver, frames: Sequence[Frame]
    ) -> Parcel:
        session = self._sessions.get(message.session)
        if session is None:
            raise WorkerClosedError(self.id)
        objects = session.objects
        if objects.was_delivered(message.ids, sender):
            return Parcel(Done())
        if message.spoilt and session.aggregation is None:
            objects.lack(message.ids, sender, _lost(sender, message.ids))
            objects.arrived(message)
            return Parcel(Done())
        objects.check_expected(message.ids, sender)
        if message.digests and len(message.digests) != len(message.ids):
            raise RemoteProtocolError("a delivery states one digest for each tensor")
        policy = decode(message.policy) if message.policy else None
        if isinstance(policy, Quorum) and session.aggregation is None:
            raise ReleaseRefusedError(
                "policy",
                f"{self.id} is no aggregator under a policy, and {sender} delivers to "
                "nobody else",
            )
        objects.announce(structs.replace(message, seen=None, spoilt=False), sender)
        if len(frames) < len(message.tensors) and not message.spoilt:
            return Parcel(Done())
        objects.arrived(message)
        read = session.execution.read
        try:
            tensors = [
                _zeros(data) if message.spoilt else read(data, frames)
                for data in message.tensors
            ]
        except (RuntimeError, TypeError, ValueError) as error:
            raise RemoteProtocolError(f"{sender} delivered no tensor") from error
        if session.aggregation is not None:
            bound = policy if isinstance(policy, Quorum) else None
            session.aggregation.deliver(
                message.ids, sender, tensors, bound, message.spoilt, message.digests
            )
        else:
            session.store.deliver(message.ids, sender, tensors)
        return Parcel(Done())

    def _told(
        self, sender: str, message: StateAnswer, frames: Sequence[Frame]
    ) -> Parcel:
        """Take in what the shell says is stored, if a request waits for it."""
        session, index = self._session(sender, message.session), message.index
        asked = {one.effects[0].index: one.request for one in session.moves}
        request = asked.get(index)
        if isinstance(request, ListState):
            session.told[index] = Versions(index, message.versions)
        elif isinstance(request, RecallState):
            execution, store = session.execution, session.store
            if index not in session.told:  # else it is told again, after Ctrl-C
                asked_for = sum(nbytes(d.dtype, d.shape) for d in message.tensors)
                store.reserve(asked_for, "recall")
                tensors = execution.recalled(message, frames)
                specs = tuple(map(spec_of, tensors))
                for id, tensor in enumerate(tensors, request.out):
                    store[id] = tensor
                session.told[index] = Described(index, specs, sequence=True)
        else:
            raise RemoteProtocolError("no request waits for what is stored")
        return Parcel(Done())

    # --- batches ------------------------------------------------------------------

    def _batch(
        self, sender: str, batch: Batch, frames: Sequence[Frame], now: float
    ) -> tuple[Parcel, tuple[Effect, ...]]:
        session = self._session(sender, batch.session)
        session.seen = now
        if batch.number == session.number + 1 and session.complete:
            session.begin(batch.number)
        elif batch.number != session.number or not session.number:
            raise RemoteProtocolError(
                f"expected batch {session.number + session.complete}, got "
                f"{batch.number}"
            )
        elif session.reply is not None:
            return session.reply, ()
        elif session.moves and not batch.requests:
            # It was told that the batch was refused, and goes on without it.
            session.given_up = session.moves
            self._give_up(session, _GIVEN_UP)
            return session.finish(), ()
        elif len(batch.requests) < session.begun:
            raise RemoteProtocolError(f"batch {batch.number} was longer before")
        elif session.begun and not session.moves:
            session.interrupt(batch.requests[session.begun - 1], batch.cancelled)
        self._apply_all(session, batch, frames)
        if batch.cancelled or session.cut is not None:
            self._give_up(session, _CANCELLED)
        if session.moves:
            waiting = Parcel(Results(batch.number, ()))
            return waiting, session.effects
        return session.finish(), ()

    def _apply_all(
        self, session: SessionState, batch: Batch, frames: Sequence[Frame]
    ) -> None:
        requests, number, cancelled = batch.requests, batch.number, batch.cancelled
        session.execution.watch.cancelled = functools.partial(self._cancelled, number)
        if self._progress is not None:
            session.execution.watch.tell = _Share(requests, self._progress)
        with computing(batch.default_dtype):
            for index in range(session.begun, len(requests)):
                session.begun = index + 1
                request = requests[index]
                if session.cut is None and (cancelled or self._cancelled(number)):
                    session.cut = index
                if session.cut is not None:
                    if not self._keep_book(session, request, index, frames):
                        session.undone.add(index)
                    continue
                try:
                    answer = self._apply(session, request, index, requests, frames)
                except StoppedError:
                    session.cut = index
                    session.undone.add(index)
                    continue
                except Exception as error:
                    answer = self._failed(session, request, index, error)
                if answer is not None:
                    session.answer(answer)

    def _failed(
        self, session: SessionState, request: AnyRequest, index: int, error: Exception
    ) -> Failed | None:
        """Take in that a request failed; return what it is answered."""
        told = True
        if isinstance(error, PoisonedError):
            # Only who waits for an answer is told again.
            failure = structs.replace(error.failure, index=index)
            told = request.answered()
        else:
            known = session.store.ran_out(error, name_of(request))
            failure = failed(known, index, session.number, request)
        session.execution.note(request, failure)
        session.undone.add(index)
        if isinstance(request, Request):
            session.objects.poison(request.makes(), failure)
        return failure if told else None

    def _keep_book(
        self,
        session: SessionState,
        request: AnyRequest,
        index: int,
        frames: Sequence[Frame],
    ) -> bool:
        """Carry out a request of a cancelled batch, if it computes nothing.

        Tells whether it was carried out.
        """
        if not request.bookkeeping:
            return False
        try:
            self._apply(session, request, index, (), frames)
        except (PoisonedError, ObhutError, RuntimeError):
            return False  # what it names may never have been made
        return True

    def _give_up(self, session: SessionState, why: Refused) -> None:
        """Answer for what waits for effects: there will be none."""
        for request, effects, _ in session.moves:
            index = effects[0].index
            session.undone.add(index)
            session.answer(_refusal(why, index, session.number, request))
        session.moves = []

    def _apply(
        self,
        session: SessionState,
        request: AnyRequest,
        index: int,
        requests: Sequence[AnyRequest],
        frames: Sequence[Frame],
    ) -> AnyAnswer | None:
        if isinstance(request, Free):  # every other one is
            if session.aggregation is None:
                session.execution.free(request)
            else:
                session.objects.free(request.ids, request.tagged)
            return None
        if session.aggregation is not None:
            return self._aggregated(
                session, session.aggregation, request, index, frames
            )
        match request:
            case Fetch():
                if isinstance(self._role, Owner):
                    raise ReleaseRefusedError("place", _PLACE)
                tensor = session.store[request.id]
                data = declare(tensor, len(session.frames))
                session.frames.append(session.export(tensor, requests[index + 1 :]))
                return Fetched(index, data)
            case Move():
                self._move(session, request, index, requests[index + 1 :])
            case StoreState():
                self._store(session, request, index, requests[index + 1 :])
            case RecallState() | ListState():
                version = None if isinstance(request, ListState) else request.version
                seeking = Seeking(StateQuestion(request.name, version), index)
                session.moves.append(Suspended(request, (seeking,)))
            case _:
                return session.execution.apply(request, index, frames)
        return None

    def _aggregated(
        self,
        session: SessionState,
        aggregation: Aggregation,
        request: AnyRequest,
        index: int,
        frames: Sequence[Frame],
    ) -> AnyAnswer | None:
        """Apply a request at an aggregator."""
        match request:
            case Put():
                session.objects.reserve(len(frames[request.data.frame]), "send")
                aggregation.put(request, session.execution.read(request.data, frames))
            case Fetch():
                asked = aggregation.ask(request, index)
                if asked.effects:
                    session.moves.append(Suspended(request, asked.effects, asked))
                else:
                    self._release(session, asked, index, False)
            case _:
                return aggregation.apply(request, index)
        return None

    def _release(
        self, session: SessionState, asked: Wanted | None, index: int, counts: bool
    ) -> None:
        """Answer with a value that may leave."""
        if session.aggregation is None or asked is None:
            raise InternalError("only an aggregator releases")
        try:
            fetched, frame, bad = session.aggregation.release(
                asked, index, len(session.frames)
            )
        except MemoryLimitError as error:
            session.answer(failed(error, index, session.number, Fetch(0)))
            return
        except Exception:
            # Whatever it is: the batch is answered, or the session would be stuck.
            broken = InternalError("a sum could not be evaluated")
            session.answer(failed(broken, index, session.number, Fetch(0)))
            return
        if counts:
            session.count(index, bad)
        session.frames.append(frame)
        session.answer(fetched)

    def _move(
        self,
        session: SessionState,
        request: Move,
        index: int,
        later: Sequence[AnyRequest],
    ) -> None:
        if len(request.ids) != len(request.out):
            raise RemoteProtocolError("a move names one id there for each id here")
        policy = b""
        if isinstance(self._role, Owner):
            if request.to not in self._role.policy.aggregators:
                raise ReleaseRefusedError("place", _PLACE)
            policy = encode(self._role.policy)
        tensors = [session.store[id] for id in request.ids]
        message = Deliver(
            request.session,
            request.out,
            tuple(declare(tensor, i) for i, tensor in enumerate(tensors)),
            policy,
            digests=session.execution.made(tensors),
        )
        frames = self._exported(session, tensors, later)
        delivery = Delivery(request.to, message, frames, index)
        session.moves.append(Suspended(request, (delivery,)))

    def _store(
        self,
        session: SessionState,
        request: StoreState,
        index: int,
        later: Sequence[AnyRequest],
    ) -> None:
        tensors = [session.store[id] for id in request.ids]
        message = State(
            request.name,
            request.version,
            tuple(declare(tensor, i) for i, tensor in enumerate(tensors)),
            digests=session.execution.made(tensors),
        )
        frames = self._exported(session, tensors, later)
        keeping = Keeping(message, frames, index)
        session.moves.append(Suspended(request, (keeping,)))

    def _exported(
        self,
        session: SessionState,
        tensors: Sequence[torch.Tensor],
        later: Sequence[AnyRequest],
    ) -> tuple[Frame, ...]:
        """Return frames of what leaves; none where tensors have no values."""
        if isinstance(self._role, Owner):
            return ()
        return tuple(session.export(tensor, later) for tensor in tensors)


def _lost(sender: str, ids: Sequence[int]) -> Failed:
    """Return what stands for a delivery that was announced and did not come."""
    text = f"{sender} announced this and could not deliver it; move it once more"
    return Failed(0, 0, ids[0], "TransportError", "move", text)  # of no batch here


def _zeros(data: TensorData) -> torch.Tensor:
    """Return zeros of such a look, in no memory of their size."""
    zero = torch.zeros((), dtype=DTYPES[data.dtype])
    return zero.expand(data.shape).requires_grad_(data.requires_grad)


def _refusal(refused: Refused, index: int, batch: int, request: AnyRequest) -> Failed:
    return Failed(index, batch, index, refused.kind, name_of(request), refused.text)


_UNKNOWN = Refused("InternalError", "nobody knows how it ended")

_LACKING = (
    "program: of too few owners what is to be added up has come; their logs say why, "
    "and the next round is anew"
)

_GIVEN_UP = Refused("LimitError", "the batch was given up")

_CANCELLED = Refused("CancelledError", "the batch was cancelled")

_PLACE = (
    "an owner's values leave only for an aggregator that the owner's policy names, and "
    "come back as a sum over several owners: move this one there, add the others' "
    "and get() the sum; a loss is averaged like a weight"
)
"""The same words for every value."""


class _Share:
    """What share of a batch's runs is done, of which each counts alike.

    Args:
        requests: the batch's.
        tell: takes the share.
    """

    def __init__(
        self, requests: Sequence[AnyRequest], tell: Callable[[float], None]
    ) -> None:
        self._requests = requests
        self._tell = tell

    @functools.cached_property
    def _before(self) -> dict[int, int]:
        """How many runs come before each of them."""
        runs = (one for one in self._requests if isinstance(one, RunProgram))
        return {id(one): place for place, one in enumerate(runs)}

    def __call__(self, request: RunProgram, done: float) -> None:
        """Take what share of one run is done."""
        before = self._before
        self._tell((before[id(request)] + done) / len(before))
