"""Workers and gates of which single rules are off, to show what each is for.

Rules:

- Each is a subclass of what ships, and hands over to it for all that is not off.
- Nothing outside ``obhut.testing`` refers to this, so no policy or configuration
  can switch a rule off.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from msgspec import structs

from obhut.guard import audit
from obhut.guard.policy import encode
from obhut.host.gate import Gate
from obhut.protocol.codec import Frame
from obhut.protocol.messages import (
    AnyAnswer,
    AnyMessage,
    AnyRequest,
    Deliver,
    Fetch,
    Fetched,
    Free,
    ListState,
    Move,
    RecallState,
    StateAnswer,
    StoreState,
)
from obhut.worker.aggregation import SumStore
from obhut.worker.answers import declare
from obhut.worker.core import Worker
from obhut.worker.effects import Delivery, Effect, Leaving, Parcel
from obhut.worker.execution import Execution
from obhut.worker.executor import Executor
from obhut.worker.high import High
from obhut.worker.owners import OwnersWorker
from obhut.worker.roles import Aggregator, Owner
from obhut.worker.session_state import SessionState, Suspended
from obhut.worker.tensors import to_frame

from .apart import HighApart
from .eager import EagerAggregation
from .tapped import Tapped, Told

MEMORY = 16 * 2**20
"""Bytes that a session may hold."""


def audit_rules(off: frozenset[str]) -> frozenset[str]:
    """Return the auditor's rules that are on."""
    return audit.ALL - {name.removeprefix("audit: ") for name in off}


class _Weak(Worker):
    """A worker's core with what stands in a message's way taken away.

    Attributes:
        off: the rules that are off.
        takes_anything: whether what comes with a policy is taken without.
    """

    off: frozenset[str] = frozenset()
    takes_anything = False

    def handle(
        self, sender: str, parcel: Parcel, now: float
    ) -> tuple[Parcel, tuple[Effect, ...]]:
        """Take one message in."""
        message = parcel.message
        if isinstance(message, Deliver):
            session = self._sessions.get(message.session)
            if session is not None and "sums: expected" in self.off:
                objects = session.objects
                for id in message.ids:
                    if objects._expected.get(id) != sender:
                        objects._drop(id)
                        objects._expected[id] = sender
            if self.takes_anything:
                stripped = structs.replace(message, policy=b"")
                parcel = Parcel(stripped, parcel.frames)
        return super().handle(sender, parcel, now)

    def _session(self, sender: str, name: str) -> SessionState:
        if "sessions" in self.off and name in self._sessions:
            return self._sessions[name]
        return super()._session(sender, name)


class WeakWorker(_Weak):
    """The core of an open worker, or of an aggregator.

    Args:
        id: as for a worker.
        role: likewise.
        off: the rules that are off.
        delivered: told of each contribution's key, owner and values.
    """

    def __init__(
        self,
        id: str,
        role: Aggregator | None,
        off: frozenset[str],
        delivered: Told = lambda *told: None,
    ) -> None:
        rule = "receiver: aggregates"
        if role is not None:
            rule = "sums: only" if "sums: only" in off else "sums: policy"
        super().__init__(
            id, role=None if rule == "sums: only" else role, memory_limit=MEMORY
        )
        self.off = off
        self.takes_anything = rule in off
        self._delivered = delivered

    def _new_session(self, sender: str, name: str, now: float) -> SessionState:
        session = super()._new_session(sender, name, now)
        if isinstance(self._role, Aggregator):
            kind = EagerAggregation if "sums: canonical" in self.off else Tapped
            store = SumStore(self.id, None, name)
            told = self._delivered
            session.aggregation = kind(store, self._role.policy, told, self.off)
            session.objects = store
        return session


class WeakOwner(_Weak, OwnersWorker):
    """An owner's core.

    Rule: without "owner: low" who answers has the values and tells what fails on them.

    Args:
        id: as for a worker.
        role: likewise.
        off: the rules that are off.
        datasets: as for a worker.
        apart: whether high is a process of its own, as a served worker's is.
    """

    def __init__(
        self,
        id: str,
        role: Owner,
        off: frozenset[str],
        datasets: Mapping[str, Mapping[str, torch.Tensor]],
        apart: bool = False,
    ) -> None:
        super().__init__(id, role, datasets=datasets, memory_limit=MEMORY)
        self.off = off
        self.takes_anything = "receiver: aggregates" in off
        self._owner = role
        self._rows = datasets
        self._beside: dict[str, High] = {}
        if apart:
            self._make = lambda: HighApart(id, role.policy, datasets=datasets)

    def _new_session(self, sender: str, name: str, now: float) -> SessionState:
        session = super()._new_session(sender, name, now)
        if "owner: low" in self.off:
            executor = Executor(session.store, self._device, high=True)
            session.execution = Execution(
                session.store, executor, self._device, self._rows
            )
        if "owner: fetch" in self.off:
            self._beside[name] = High(self.id, self._owner.policy, datasets=self._rows)
        return session

    def _apply(
        self,
        session: SessionState,
        request: AnyRequest,
        index: int,
        requests: Sequence[AnyRequest],
        frames: Sequence[Frame],
    ) -> AnyAnswer | None:
        if "owner: fetch" in self.off:
            beside = next(
                self._beside[name]
                for name, one in self._sessions.items()
                if one is session
            )
            if isinstance(request, Fetch):
                return _fetched(session, beside, request.id, index)
            answer = super()._apply(session, request, index, requests, frames)
            _alongside(beside, request, index, frames)
            return answer
        if isinstance(request, Move) and "owner: move" in self.off:
            policy = self._owner.policy
            others = tuple(c for c in policy.contributors if c != request.to)
            lax = structs.replace(
                policy, aggregators=(request.to,), contributors=others
            )
            self._role = dataclasses.replace(self._owner, policy=lax)
            try:
                answer = super()._apply(session, request, index, requests, frames)
            finally:
                self._role = self._owner
            session.moves[-1] = _with_policy(session.moves[-1], encode(policy))
            return answer
        return super()._apply(session, request, index, requests, frames)

    def follow(
        self, sender: str, parcel: Parcel, reply: AnyMessage
    ) -> Sequence[Leaving]:
        """Let high do what low has answered; what fetches has what is recalled, too."""
        message = parcel.message
        if isinstance(message, StateAnswer) and message.session in self._beside:
            beside = self._beside[message.session]
            for one in self._sessions[message.session].moves:
                if isinstance(one.request, RecallState):
                    beside.recall(message, parcel.frames)
                    beside._hold(one.request, message.index)
        return super().follow(sender, parcel, reply)


def _alongside(
    high: High, request: AnyRequest, index: int, frames: Sequence[Frame]
) -> None:
    """Run a request on values, right after it ran without them."""
    if isinstance(request, Free):
        high._store.free(request.ids, request.tagged)
    elif not isinstance(request, Move | StoreState | RecallState | ListState):
        try:
            high._execution.apply(request, index, frames)
        except Exception as error:
            high._fail(request, error)


def _fetched(session: SessionState, high: High, id: int, index: int) -> Fetched:
    """Answer with a value; with zeros where something has failed on values."""
    look = session.store[id]
    found = list(high._store.there((id,))) or [torch.zeros(look.shape).to(look.dtype)]
    session.frames.append(to_frame(found[0]))
    return Fetched(index, declare(found[0], len(session.frames) - 1))


def _with_policy(waiting: Suspended, policy: bytes) -> Suspended:
    """Return a move that carries a policy."""
    (delivery,) = waiting.effects
    if not isinstance(delivery, Delivery):
        return waiting
    message = structs.replace(delivery.message, policy=policy)
    return waiting._replace(effects=(dataclasses.replace(delivery, message=message),))


class WeakGate(Gate):
    """A worker's gate.

    Attributes:
        off: the rules that are off.
    """

    off: frozenset[str] = frozenset()

    def admit(self, requester: str) -> None:
        """Let a requester in."""
        if "gate: requester" not in self.off:
            super().admit(requester)

    def check_reply(
        self, requester: str, message: AnyMessage, frames: Sequence[Frame]
    ) -> None:
        """Look at what goes to a requester."""
        if "gate: reply" not in self.off:
            super().check_reply(requester, message, frames)

    def check_delivery(self, to: str, message: AnyMessage) -> None:
        """Look at what goes to another worker."""
        if "gate: delivery" not in self.off:
            super().check_delivery(to, message)
