"""Where an attack takes place: owners, an aggregator, and whoever attacks.

Rules:

- Owners and aggregator are guarded; the attacker has an open worker of their own.
- All that reaches a requester is written down, with what was permitted.
- Names are counted and draws are seeded: twice the same is the same to the byte.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias

import torch
from msgspec import structs

import obhut
from obhut.client.workers import RemoteWorker
from obhut.errors import ObhutError
from obhut.guard import release
from obhut.guard.audit import Auditor
from obhut.guard.policy import Quorum
from obhut.host import mark
from obhut.host.gate import Gate, Record
from obhut.host.ledger import FILE, Ledger
from obhut.host.mark import Signer
from obhut.protocol import codec
from obhut.protocol.codec import Frame
from obhut.protocol.messages import (
    PROTOCOL_VERSION,
    AnyMessage,
    AnyRequest,
    Batch,
    Close,
    Failed,
    Fetched,
    Open,
    Put,
    Refused,
    ReleaseQuestion,
    Results,
)
from obhut.testing.transcripts import Transcript
from obhut.testing.wrapping import WrappingTransport
from obhut.transports import Pending, Transport
from obhut.transports.local import (
    ME,
    LocalNetwork,
    LocalShell,
    LocalTransport,
)
from obhut.worker.core import Worker
from obhut.worker.effects import Parcel
from obhut.worker.roles import Aggregator, Owner
from obhut.worker.tensors import from_frame

from .private_data import OWNERS, Values, data
from .weakened import WeakGate, WeakOwner, WeakWorker, audit_rules

SW = "sw"
"""The aggregator whom all policies name."""

MINE = "mine"
"""The attacker's own worker, which is open."""

DAY = datetime.date(2026, 1, 1)
"""The day on which a stage opens."""

POLICY = Quorum(
    aggregators=(SW,), contributors=OWNERS, requesters=(ME,), programs="any"
)
"""What all policies say but for the changes that an attack asks for.

They compare no programs, so that each attack is stopped by its own rule, and not by
that of programs before it.
"""

Remote: TypeAlias = Any
"""A remote tensor; to a type checker the result of an operator is a plain one."""

Changes: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Clauses of policies that are otherwise, by worker."""


@dataclass(slots=True)
class Exchange:
    """What one message brought to a requester.

    Attributes:
        to: who got it.
        header: the reply's bytes, or an error's text.
        message: the reply; None for an error.
        frames: the bytes of tensors.
        values: the tensors.
        permitted: the releases that were permitted for it.
    """

    to: str
    header: bytes
    message: AnyMessage | None = None
    frames: tuple[bytes, ...] = ()
    values: tuple[torch.Tensor, ...] = ()
    permitted: tuple[release.Release, ...] = ()


@dataclass(slots=True)
class Evidence:
    """All that judges look at.

    Attributes:
        exchanges: what reached requesters.
        printed: what an attacker's program printed, errors and warnings included.
        refused: the rules that refused something, or the kinds of errors.
        private: what owners hold, by owner.
        delivered: what owners delivered: owner and values, by key.
        public: what requesters sent.
        policies: what each owner decided.
        claims: what the attacker says that owners hold.
        day: the last day of the attack.
        transcripts: what passed at each owner's worker.
        died: how the process ended, if it did.
    """

    exchanges: list[Exchange] = field(default_factory=list)
    printed: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    private: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    delivered: dict[str, tuple[str, torch.Tensor]] = field(default_factory=dict)
    public: list[torch.Tensor] = field(default_factory=list)
    policies: dict[str, Quorum] = field(default_factory=dict)
    claims: list[torch.Tensor] = field(default_factory=list)
    day: datetime.date = DAY
    transcripts: list[Transcript] = field(default_factory=list)
    died: str = ""

    def failed(self, to: str, error: ObhutError) -> None:
        """Take in that an error came in place of a reply."""
        text = f"{type(error).__name__}: {error}"
        self.exchanges.append(Exchange(to, text.encode()))
        self.note(type(error).__name__, str(error))

    def came(
        self, to: str, parcel: Parcel, permitted: tuple[release.Release, ...]
    ) -> None:
        """Take in a reply."""
        message, frames = parcel
        values: list[torch.Tensor] = []
        if isinstance(message, Refused):
            self.note(message.kind, message.text)
        for answer in message.answers if isinstance(message, Results) else ():
            if isinstance(answer, Failed):
                self.note(answer.kind, answer.text)
            elif isinstance(answer, Fetched):
                data = answer.data
                frame = bytes(frames[data.frame])
                values.append(from_frame(frame, data.dtype, data.shape))
        self.exchanges.append(
            Exchange(
                to,
                bytes(codec.encode(message)),
                message,
                tuple(bytes(frame) for frame in frames),
                tuple(values),
                permitted,
            )
        )

    def note(self, kind: str, text: str) -> None:
        """Note what refused something: a rule if it says so, else a kind of error."""
        rule = text.partition(": ")[0] if kind == "ReleaseRefusedError" else kind
        if rule not in self.refused:
            self.refused.append(rule)


class Stage:
    """Workers with private data, and an attacker's means.

    Args:
        off: the rules that are off.
        world: which private data there are.
        changes: what policies say otherwise.
        folder: where the aggregator keeps its ledger; None to keep none.
        apart: whether an operator that ends its process leaves who answers alone.

    Attributes:
        evidence: all that judges look at.
        at: the requester's workers, by id.
        permitted: what the last message was permitted to bring.
        sessions: what names of sessions begin with.
    """

    sessions = "session"

    def __init__(
        self,
        off: frozenset[str] = frozenset(),
        world: Values = Values.FIRST,
        changes: Changes | None = None,
        folder: Path | None = None,
        *,
        apart: bool = False,
    ) -> None:
        self.off = off
        self.evidence = Evidence()
        self.at: dict[str, RemoteWorker] = {}
        self._world = world
        self._changes = changes or {}
        self._folder = folder
        self._apart = apart
        self._network = LocalNetwork()
        self._shells: dict[str, LocalShell] = {}
        self._sessions = 0
        self._seconds = 0.0
        self.permitted: list[release.Release] = []
        self._records: list[Ledger] = []
        self._clients: list[RawClient] = []
        for owner in OWNERS:
            self._start(owner)
        for id in (SW, MINE):
            self._start(id)
        for id in (*OWNERS, SW, MINE):
            self.at[id] = self.enter(id)

    # --- what an attacker does ---

    def enter(self, id: str, principal: str = ME) -> RemoteWorker:
        """Open a session at a worker, as somebody."""
        worker = RemoteWorker(Watched(self, self.way(id, principal), principal))
        self._sessions += 1
        worker.session.name = f"{self.sessions}-{self._sessions}"
        return worker

    def way(self, id: str, principal: str) -> Transport:
        """Return somebody's way to a worker."""
        return LocalTransport(self._shells[id], principal)

    def client(self, id: str, principal: str = ME, session: str = "") -> RawClient:
        """Return a client that speaks messages of its own."""
        self._sessions += not session
        name = session or f"{self.sessions}-{self._sessions}"
        made = RawClient(Watched(self, self.way(id, principal), principal), name)
        self._clients.append(made)
        return made

    def vector(self, owner: str, part: str = "vector") -> Remote:
        """Return an owner's private vector (64,) float64, as a remote tensor."""
        return self.at[owner].load(part)

    def gathered(
        self, owners: Sequence[str], worker: RemoteWorker | None = None
    ) -> list[Remote]:
        """Move private vectors to the aggregator."""
        place = worker or self.at[SW]
        return [obhut.move(self.vector(owner), place) for owner in owners]

    def show(self, value: object) -> None:
        """Print something, as an attacker's program does."""
        torch.set_printoptions(precision=12)
        try:
            self.evidence.printed.append(f"{value!r} {value}")
        finally:
            torch.set_printoptions(profile="default")

    def try_(self, call: Callable[[], object]) -> None:
        """Do something, and show what came or what was said against it."""
        with self.watched():
            self.show(call())

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Note what is said against what is done inside, and go on after it."""
        try:
            yield
        except Exception as error:
            self.evidence.printed.append(f"{type(error).__name__}: {error}")

    def claim(self, values: torch.Tensor) -> None:
        """Say that some owner holds a row or a vector, which judges look up."""
        self.evidence.claims.append(values.detach().double().reshape(-1))

    # --- what happens around them ---

    def later(self, days: int) -> None:
        """Let days pass."""
        self._seconds += 86_400.0 * days
        self.evidence.day = DAY + datetime.timedelta(seconds=self._seconds)

    def restart(self, id: str, changes: Mapping[str, Any] | None = None) -> None:
        """Let a worker end and start again; the requester opens new sessions.

        Args:
            id: the worker's.
            changes: what its policy says otherwise from now on.
        """
        if changes is not None:
            self._changes = {**self._changes, id: changes}
        for record in self._records:
            record.close()
        self._records.clear()
        self._shells[id].close()
        self._start(id)
        self.at[id] = self.enter(id)

    def empty_record(self) -> None:
        """End the aggregator and empty its record, as somebody at its disk can."""
        if self._folder is None:
            raise AttributeError("this aggregator keeps no record on disk")
        for record in self._records:
            record.close()
        (self._folder / FILE).write_bytes(b"")
        if "record: mark" in self.off:
            (self._folder / mark.FILE).unlink()

    def leave(self) -> None:
        """End the sessions of clients that speak messages of their own."""
        for client in self._clients:
            with contextlib.suppress(ObhutError):
                client.tell(Close(client.session))
        self._clients.clear()

    def close(self) -> None:
        """End all."""
        for record in self._records:
            record.close()
        for worker in self.at.values():
            with contextlib.suppress(ObhutError):
                worker.close()

    def _policy(self, id: str) -> Quorum:
        changes = {**self._changes.get("*", {}), **self._changes.get(id, {})}
        return structs.replace(POLICY, **changes) if changes else POLICY

    def _start(self, id: str) -> None:
        policy = self._policy(id)
        core: Worker
        if id == MINE:
            core, gate = WeakWorker(id, None, self.off), None
        elif id in policy.aggregators:
            core = WeakWorker(id, Aggregator(policy), self.off, self._told)
            auditor = Auditor(id, policy, rules=audit_rules(self.off))
            gate = self._gate(policy, auditor, self._record(auditor))
        else:
            private = data(id, self._world)
            role = Owner(policy, lambda line: None)
            core = WeakOwner(id, role, self.off, private, self._apart)
            gate = self._gate(policy, None, None)
            self.evidence.policies[id] = policy
            self.evidence.private[id] = [
                part.clone() for parts in private.values() for part in parts.values()
            ]
        self._shells[id] = LocalShell(
            core, network=self._network, clock=lambda: self._seconds, gate=gate
        )

    def _gate(
        self, policy: Quorum, auditor: Auditor | None, record: Record | None
    ) -> Gate:
        gate = _TappedGate(
            policy,
            auditor,
            record,
            clock=lambda: self._seconds,
            now=lambda: (
                datetime.datetime.combine(DAY, datetime.time(), datetime.UTC)
                + datetime.timedelta(seconds=self._seconds)
            ),
        )
        gate.off, gate.permitted = self.off, self.permitted
        return gate

    def _record(self, auditor: Auditor) -> Record | None:
        if self._folder is None or "record" in self.off:
            return None
        ledger = Ledger(
            self._folder / FILE, Signer(SW, lambda told: told, lambda a, b: a == b)
        )
        ledger.replay(auditor)
        self._records.append(ledger)
        return ledger

    def _told(self, key: str, owner: str, values: torch.Tensor) -> None:
        if owner in self.evidence.policies:
            self.evidence.delivered[key] = (owner, values)


class _TappedGate(WeakGate):
    """A gate that tells what it permitted."""

    permitted: list[release.Release]

    def decide(
        self, requester: str, asked: Sequence[ReleaseQuestion]
    ) -> list[Refused | None]:
        outcomes = super().decide(requester, asked)
        for one, outcome in zip(asked, outcomes, strict=True):
            if outcome is None:
                terms = {
                    release.Atom(owner, key): Fraction(n, d)
                    for owner, key, n, d in one.terms
                }
                self.permitted.append(release.Release(requester, terms, {}))
        return outcomes


class Watched(WrappingTransport):
    """A requester's way to a worker, which writes down what comes back.

    Args:
        stage: where it is written down.
        way: the way itself.
        principal: who the requester is.
    """

    def __init__(self, stage: Stage, way: Transport, principal: str) -> None:
        super().__init__(way)
        self._stage = stage
        self._principal = principal

    def submit(self, message: AnyMessage, frames: Sequence[Frame] = ()) -> Pending:
        """Send a message."""
        stage = self._stage
        if isinstance(message, Batch):
            stage.evidence.public += [
                from_frame(bytes(frames[r.data.frame]), r.data.dtype, r.data.shape)
                for r in message.requests
                if isinstance(r, Put) and r.data.frame < len(frames)
            ]
        stage.permitted.clear()
        try:
            pending = super().submit(message, frames)
        except ObhutError as error:
            stage.evidence.failed(self._principal, error)
            raise
        watched = _WatchedReply(
            stage.evidence, pending, self._principal, tuple(stage.permitted)
        )
        if pending.done():
            watched.result()
        return watched


class _WatchedReply:
    """A reply that is written down when it is there."""

    def __init__(
        self,
        evidence: Evidence,
        pending: Pending,
        to: str,
        permitted: tuple[release.Release, ...],
    ) -> None:
        self._evidence = evidence
        self._pending = pending
        self._to = to
        self._permitted = permitted
        self._seen = False

    def done(self) -> bool:
        return self._pending.done()

    def result(self, timeout: float | None = None) -> Parcel:
        try:
            parcel = self._pending.result(timeout)
        except ObhutError as error:
            self._evidence.failed(self._to, error)
            raise
        if not self._seen:
            self._seen = True
            self._evidence.came(self._to, parcel, self._permitted)
        return parcel

    def when_done(self, call: Callable[[], None]) -> None:
        self._pending.when_done(call)

    def cancel(self) -> None:
        self._pending.cancel()


class RawClient:
    """Speaks messages, with nothing in between.

    Args:
        transport: the way to a worker.
        session: the session's name.
    """

    def __init__(self, transport: Transport, session: str) -> None:
        self.session = session
        self._transport = transport
        self._number = 0

    def tell(self, message: AnyMessage, frames: Sequence[Frame] = ()) -> Parcel:
        """Send a message; return the reply."""
        return self._transport.submit(message, frames).result()

    def open(self) -> Parcel:
        """Open the session; return the reply."""
        return self.tell(Open(self.session, PROTOCOL_VERSION, str(torch.__version__)))

    def ask(self, *requests: AnyRequest, frames: Sequence[Frame] = ()) -> Parcel:
        """Send the next batch; return the reply."""
        if not self._number:
            self.open()
        self._number += 1
        return self.tell(Batch(self.session, self._number, requests), frames)
