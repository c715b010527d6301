"""Workers and gates of which single rules are off, to show what each is for.

Rules:

- Each is a subclass of what ships, and hands over to it for all that is not off.
- Nothing outside ``obhut.testing`` refers to this, so no policy or configuration
  can switch a rule off.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from msgspec import structs

from obhut.errors import OpNotAdmittedError
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
    Move,
)
from obhut.worker import executor, guarded
from obhut.worker.aggregation import SumStore
from obhut.worker.core import Worker
from obhut.worker.effects import Delivery, Effect, Parcel
from obhut.worker.executor import Executor, Operator
from obhut.worker.guarded import Guard, Guarded
from obhut.worker.guarded_backward import Backwards, Pass
from obhut.worker.roles import Aggregator, Owner, Role
from obhut.worker.session_state import SessionState, Suspended
from obhut.worker.shapes import Inferred
from obhut.worker.store import Store

from .eager import EagerAggregation
from .tapped import Tapped, Told

# Any below: operators take and return whatever their schema says.


MEMORY = 16 * 2**20
"""Bytes that a session may hold."""


def audit_rules(off: frozenset[str]) -> frozenset[str]:
    """Return the auditor's rules that are on."""
    return audit.ALL - {name.removeprefix("audit: ") for name in off}


class WeakWorker(Worker):
    """A worker's core.

    Args:
        id: as for a worker.
        role: likewise.
        off: the rules that are off.
        datasets: as for a worker.
        delivered: told of each contribution's key, owner and values.
    """

    def __init__(
        self,
        id: str,
        role: Role | None,
        off: frozenset[str],
        datasets: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
        delivered: Told = lambda *told: None,
    ) -> None:
        rule = "receiver: aggregates"
        if isinstance(role, Aggregator):
            rule = "sums: only" if "sums: only" in off else "sums: policy"
        if rule == "sums: only":
            role = None
        self._takes_anything = rule in off
        super().__init__(id, role=role, datasets=datasets, memory_limit=MEMORY)
        self._off = off
        self._delivered = delivered

    def handle(
        self, sender: str, parcel: Parcel, now: float
    ) -> tuple[Parcel, tuple[Effect, ...]]:
        """Take one message in, with what stands in its way taken away."""
        message = parcel.message
        if isinstance(message, Deliver):
            session = self._sessions.get(message.session)
            if session is not None and "sums: expected" in self._off:
                objects = session.objects
                for id in message.ids:
                    if objects._expected.get(id) != sender:
                        objects._drop(id)
                        objects._expected[id] = sender
            if self._takes_anything:
                stripped = structs.replace(message, policy=b"")
                parcel = Parcel(stripped, parcel.frames)
        return super().handle(sender, parcel, now)

    def _session(self, sender: str, name: str) -> SessionState:
        if "sessions" in self._off and name in self._sessions:
            return self._sessions[name]
        return super()._session(sender, name)

    def _new_session(self, sender: str, name: str, now: float) -> SessionState:
        session = super()._new_session(sender, name, now)
        match self._role:
            case Owner(log=log):
                session.executor = WeakExecutor(
                    session.store, self._device, log, self._off
                )
            case Aggregator(policy=policy) if session.aggregation is not None:
                kind = EagerAggregation if "sums: canonical" in self._off else Tapped
                store = SumStore(self.id, None, name)
                aggregation = kind(store, policy, self._delivered, self._off)
                session.aggregation = aggregation
                session.objects = aggregation.store
            case _:
                pass
        return session

    def _apply(
        self,
        session: SessionState,
        request: AnyRequest,
        index: int,
        requests: Sequence[AnyRequest],
        frames: Sequence[Frame],
    ) -> AnyAnswer | None:
        free = (isinstance(request, Fetch) and "owner: fetch" in self._off) or (
            isinstance(request, Move) and "owner: move" in self._off
        )
        role = self._role
        if not (free and isinstance(role, Owner)):
            return super()._apply(session, request, index, requests, frames)
        self._role = None
        try:
            answer = super()._apply(session, request, index, requests, frames)
        finally:
            self._role = role
        if isinstance(request, Move):
            session.moves[-1] = _with_policy(session.moves[-1], encode(role.policy))
        return answer


def _with_policy(waiting: Suspended, policy: bytes) -> Suspended:
    """Return a move that carries a policy."""
    (delivery,) = waiting.effects
    if not isinstance(delivery, Delivery):
        return waiting
    message = structs.replace(delivery.message, policy=policy)
    return waiting._replace(effects=(dataclasses.replace(delivery, message=message),))


class WeakExecutor(Executor):
    """Runs an owner's operators.

    Args:
        store: the session's tensors.
        device: where the worker computes.
        log: takes lines for the owner.
        off: the rules that are off.
    """

    def __init__(
        self,
        store: Store,
        device: torch.device,
        log: Callable[[str], None],
        off: frozenset[str],
    ) -> None:
        super().__init__(store, device, log=log)
        self._off = off
        self._guard = _WeakGuard(log, off)
        if "owner: silent backward" in off:
            self._backwards = _TellingBackwards(log, store.held)

    def _checked(
        self, op: Operator, how: Guarded, args: list[Any], kwargs: dict[str, Any]
    ) -> Inferred:
        try:
            return super()._checked(op, how, args, kwargs)
        except (OpNotAdmittedError, RuntimeError):
            if "owner: sizes" not in self._off:
                raise
            return executor._NO_RESULTS


class _WeakGuard(Guard):
    def __init__(self, log: Callable[[str], None], off: frozenset[str]) -> None:
        super().__init__(log)
        self._off = off

    def call(
        self,
        how: Guarded,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        known: Inferred,
        count: int,
    ) -> Any:
        if "owner: sizes" in self._off:
            if how.check is not None:
                guarded._check(how.check, how.bind(args, kwargs))
            return how.call(*args, **kwargs)
        return super().call(how, args, kwargs, known, count)

    def looked(self, *seen: Any) -> Any:
        return seen[-1] if "owner: sizes" in self._off else super().looked(*seen)

    def failed(self, *told: Any) -> Any:
        if self._off & {"owner: silent operators", "owner: sizes"}:
            raise told[-1]
        return super().failed(*told)


class _TellingBackwards(Backwards):
    def _failed(
        self, what: str, asked: Pass, nodes: Sequence[Any], error: Exception
    ) -> Exception | None:
        return error


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
