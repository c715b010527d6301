"""Where a worker's policy is applied: who may come, and what may leave.

::

    gate.admit(requester)                        # AccessDeniedError, or nothing
    gate.check_delivery(to, message)             # InternalError, or nothing
    outcomes = gate.decide(requester, asked)     # written down before it returns
    gate.check_reply(requester, reply, frames)

Rules:

- What an aggregator decides is written down before anybody learns of it, and counts
  from then on, whether or not the value arrives.
- One decision at a time: each sees all that were made before. Between two of one batch
  others have their turn.
- What a decision costs is bounded before it is begun.
- Refusals are counted by principal, whatever sessions they open.
"""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Protocol

from obhut.errors import AccessDeniedError, LedgerError, LimitError, ObhutError
from obhut.guard import audit, release
from obhut.guard import policy as policies
from obhut.guard.egress import check_delivery, check_reply
from obhut.guard.policy import Policy, Quorum
from obhut.protocol.codec import Frame
from obhut.protocol.messages import AnyMessage, Refused, ReleaseQuestion

from .quotas import HOUR, Window
from .turns import Turns

TERMS_AT_MOST = 16_384
"""Contributions in one sum that may leave."""

BATCH_AT_MOST = 1 << 20
"""Contributions in all sums, together, that one batch asks for."""


class Record(Protocol):
    """Where decisions are written down."""

    def extend(
        self,
        decided: Sequence[tuple[release.Release, release.Decision]],
        time: int,
    ) -> None:
        """Write decisions down, all or none; return when they are on the disk.

        Raises:
            LedgerError: if they could not be written.
        """


class Gate:
    """Applies the policy of one worker.

    Args:
        policy: the worker's own.
        auditor: decides on releases; None for an owner, who releases nothing.
        record: where decisions are written down; None to keep them in memory only.
        clock: the time in seconds; it does not go back.
        now: the present, in UTC.
        log: takes a line for the operator.
    """

    def __init__(
        self,
        policy: Quorum,
        auditor: audit.Auditor | None = None,
        record: Record | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(
            datetime.UTC
        ),
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._log = log
        self.policy = policy
        self._auditor = auditor
        self._record = record
        self._clock = clock
        self._now = now
        self._turns = Turns()
        self._lock = threading.Lock()
        self._refusals: dict[str, Window] = {}

    @property
    def aggregates(self) -> bool:
        """Whether it is an aggregator's."""
        return self._auditor is not None

    def admit(self, requester: str) -> None:
        """Let a requester in.

        Raises:
            AccessDeniedError: if the policy does not name it, has expired, or
                refused it too often within the last hour.
        """
        if requester not in self.policy.requesters:
            raise AccessDeniedError("the policy does not name you as a requester")
        expires = self.policy.expires
        if expires is not None and self._now().date() > expires:
            raise AccessDeniedError(
                f"the policy expired on {expires.isoformat()}; ask its owner for a "
                "new one"
            )
        with self._lock:
            window = self._refusals.get(requester)
            if window is not None and window.total(self._clock()) > (
                self.policy.refusals
            ):
                raise AccessDeniedError(
                    f"you were refused more than {self.policy.refusals:,} times within "
                    "an hour; try again later, or ask the owner"
                )

    def decide(
        self, requester: str, asked: Sequence[ReleaseQuestion]
    ) -> list[Refused | None]:
        """Decide on what is to leave, in order; None for what may.

        They are written down together. If that fails none leaves, and what would have
        left counts as if it had. A count goes with what is asked before it: if that is
        refused, nobody asks for the count.
        """
        if self._auditor is None:
            return [Refused("InternalError", "only an aggregator releases")] * len(
                asked
            )
        now = self._now()
        decided: list[tuple[release.Release, release.Decision]] = []
        outcomes: list[Refused | None] = []
        read = _Reader(requester)
        for one in asked:
            before = outcomes[-1] if one.kind == "count" and outcomes else None
            if before is not None:
                outcomes.append(before)
                continue
            try:
                wanted = read(one)
            except ObhutError as error:
                outcomes.append(Refused(type(error).__name__, str(error)))
                continue
            with self._turns.turn():
                decision = self._auditor.decide(wanted, now.date())
                self._auditor.record(wanted, decision)
            decided.append((wanted, decision))
            text = f"{decision.rule}: {decision.text}"
            outcomes.append(
                None if decision.permits else Refused("ReleaseRefusedError", text)
            )
        # A requester does not know of counts.
        refused = [w for w, d in decided if not d.permits and w.kind != "count"]
        self._count(requester, len(refused))
        if self._record is not None and decided:
            try:
                self._record.extend(decided, int(now.timestamp()))
            except LedgerError as error:
                self._log(str(error))
                return [Refused("InternalError", _UNWRITTEN)] * len(asked)
        return outcomes

    def check_reply(
        self, requester: str, message: AnyMessage, frames: Sequence[Frame]
    ) -> None:
        """Look at what goes to a requester, and count what they were refused.

        Raises:
            InternalError: if it must not leave.
        """
        refusals = 0 if self.aggregates else check_reply(message, frames)
        self._count(requester, refusals)

    def check_delivery(self, to: str, message: AnyMessage) -> None:
        """Look at what goes to another worker.

        Raises:
            InternalError: if it must not leave.
        """
        check_delivery(self.policy, to, message)

    def _count(self, requester: str, refusals: int) -> None:
        if not refusals:
            return
        with self._lock:
            window = self._refusals.setdefault(requester, Window(HOUR))
            window.add(refusals, self._clock())


_UNWRITTEN = (
    "the decision could not be written to the aggregator's record of releases, so "
    "nothing leaves; its operator's log says why"
)


class _Reader:
    """Reads the questions of one batch as the auditor takes them.

    Args:
        requester: who asks.
    """

    def __init__(self, requester: str) -> None:
        self._requester = requester
        self._left = BATCH_AT_MOST
        self._policies: dict[bytes, Policy] = {}

    def __call__(self, asked: ReleaseQuestion) -> release.Release:
        """Return a session's question.

        Raises:
            LimitError: if it is over too many contributions.
            RemoteProtocolError: if a policy in it is none.
        """
        terms = len(asked.terms)
        if terms > TERMS_AT_MOST:
            raise LimitError(
                f"a sum over {terms:,} contributions was asked for, and at most "
                f"{TERMS_AT_MOST:,} may leave in one; add at the owners before "
                "you move, or ask for parts"
            )
        if terms > self._left:
            raise LimitError(
                f"the sums that one batch asks for are over more than "
                f"{BATCH_AT_MOST:,} contributions; ask for fewer of them at a time"
            )
        self._left -= terms
        bound: dict[str, Quorum] = {}
        for owner, encoded in asked.policies:
            policy = self._policies.get(encoded)
            if policy is None:
                policy = self._policies[encoded] = policies.decode(encoded)
            if isinstance(policy, Quorum):
                bound[owner] = policy
        return release.Release(
            self._requester,
            {
                release.Atom(owner, key): Fraction(numerator, denominator)
                for owner, key, numerator, denominator in asked.terms
            },
            bound,
            asked.kind,
            {
                release.Atom(owner, key): made
                for (owner, key, _, _), made in zip(
                    asked.terms, asked.digests, strict=False
                )
                if made
            },
        )
