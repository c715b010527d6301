"""What each requester may use of a worker, and what they have used.

Rules:

- It is the principal's, whatever sessions they open and close.
- Memory is reserved when a session opens: what is promised to all together is never
  more than there may be.
- Time goes by the clock that was handed in, which does not go back. Nothing here
  looks at the time of day.
- A worker that starts again has forgotten what was used.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable
from dataclasses import dataclass

from obhut.errors import LimitError

DAY = 86_400.0
"""Seconds after which used processor time counts no more."""

HOUR = 3_600.0
"""Seconds after which a crash counts no more."""

SMALLEST_MEMORY = 64 * 2**20
"""Bytes below which a session is not worth opening."""

_PARTS = 288


@dataclass(frozen=True, slots=True)
class Quotas:
    """How much a requester may use. ``None`` is no limit.

    Attributes:
        sessions: sessions that one requester may have open.
        all_sessions: sessions that all together may have open.
        memory: bytes that one session may hold.
        requester_memory: bytes that all sessions of one requester may hold.
        all_memory: bytes that all sessions together may hold.
        requester_seconds: processor time of one requester in 24 hours, in seconds.
        requester_crashes: sessions of one requester whose process may end unasked
            in an hour.
    """

    sessions: int
    all_sessions: int | None = None
    memory: int | None = None
    requester_memory: int | None = None
    all_memory: int | None = None
    requester_seconds: float | None = None
    requester_crashes: int | None = None


class Window:
    """An amount that was added up over the last so many seconds.

    Args:
        span: seconds after which an addition counts no more. They are counted in
            a few hundred parts: some counts up to that much longer, none shorter.
    """

    def __init__(self, span: float) -> None:
        self._span = span
        self._part = span / _PARTS
        self._added: collections.deque[tuple[float, float]] = collections.deque()
        self._sum = 0.0

    def add(self, amount: float, now: float) -> None:
        """Add an amount that was used up to now."""
        end = (now // self._part + 1) * self._part
        self._forget(now)
        self._sum += amount
        if self._added and self._added[-1][0] >= end:
            end, before = self._added.pop()
            amount += before
        self._added.append((end, amount))

    def total(self, now: float) -> float:
        """Return what counts now."""
        self._forget(now)
        return self._sum

    def below(self, limit: float, now: float) -> float:
        """Return after how many seconds less than a limit above 0 will count."""
        left = self.total(now)
        end = now
        for ends, amount in self._added:
            if left < limit:
                break
            left -= amount
            end = ends + self._span
        return max(0.0, end - now)

    def _forget(self, now: float) -> None:
        while self._added and self._added[0][0] + self._span <= now:
            self._added.popleft()
            self._sum = sum(amount for _, amount in self._added)


class _Account:
    """What one principal has used and holds."""

    def __init__(self) -> None:
        self.sessions = 0
        self.memory = 0
        self.seconds = Window(DAY)
        self.crashes = Window(HOUR)

    def empty(self, now: float) -> bool:
        """Tell whether nothing would be lost with it."""
        return not (self.sessions or self.seconds.total(now) or self.crashes.total(now))


class Accounts:
    """The accounts of all principals. It may be used by several threads.

    Args:
        worker: the worker's name, for its words.
        quotas: what is allowed.
        clock: tells the time in seconds, and does not go back.
    """

    def __init__(self, worker: str, quotas: Quotas, clock: Callable[[], float]) -> None:
        self.quotas = quotas
        self._worker = worker
        self._clock = clock
        self._lock = threading.Lock()
        self._accounts: dict[str, _Account] = {}

    def reserve(self, principal: str) -> int | None:
        """Admit one more session of a principal; return the bytes it may hold.

        Duty: ``release`` them.

        Raises:
            LimitError: if it is one too many; it says what to do.
        """
        now = self._clock()
        with self._lock:
            for known in [k for k, a in self._accounts.items() if a.empty(now)]:
                del self._accounts[known]
            account = self._accounts.get(principal) or _Account()
            self._check_used(account, now)
            self._check_sessions(account)
            memory = self._free_memory(account)
            self._accounts[principal] = account
            account.sessions += 1
            account.memory += memory or 0
            return memory

    def release(self, principal: str, memory: int | None) -> None:
        """Take back what a session had reserved."""
        with self._lock:
            account = self._accounts[principal]
            account.sessions -= 1
            account.memory -= memory or 0

    def charge(self, principal: str, seconds: float) -> None:
        """Count processor time that a principal has used."""
        if seconds > 0:
            with self._lock:
                account = self._accounts.setdefault(principal, _Account())
                account.seconds.add(seconds, self._clock())

    def crashed(self, principal: str) -> bool:
        """Count a session that crashed; tell whether there are now too many."""
        limit = self.quotas.requester_crashes
        now = self._clock()
        with self._lock:
            account = self._accounts.setdefault(principal, _Account())
            account.crashes.add(1, now)
            return limit is not None and account.crashes.total(now) > limit

    def check_time(self, principal: str, *, crashes: bool = False) -> None:
        """Refuse to compute for a principal whose time is used up.

        Args:
            principal: who it is.
            crashes: whether their crashes may not be used up either.

        Raises:
            LimitError: if it is; it says when there is some again.
        """
        check = self._check_used if crashes else self._check_time
        now = self._clock()
        with self._lock:
            account = self._accounts.get(principal)
            if account is not None:
                check(account, now)

    def _check_used(self, account: _Account, now: float) -> None:
        self._check_time(account, now)
        limit = self.quotas.requester_crashes
        if limit is not None and account.crashes.total(now) > limit:
            wait = account.crashes.below(limit + 1, now)
            raise LimitError(
                f"{self._worker} opens no new session for you at present: "
                f"{account.crashes.total(now):,.0f} of yours crashed within an hour, "
                f"and {limit:,} may; try again in {_span(wait)}, and tell its owner "
                "what you ran (requester_crashes)"
            )

    def _check_time(self, account: _Account, now: float) -> None:
        limit = self.quotas.requester_seconds
        if limit is not None and account.seconds.total(now) >= limit:
            wait = account.seconds.below(limit, now)
            raise LimitError(
                f"{self._worker} computes {limit:,.0f} seconds a day for one "
                "requester, over all sessions, and yours are used up; fetch what you "
                f"need and go on in {_span(wait)}, or ask its owner for more "
                "(requester_seconds)"
            )

    def _check_sessions(self, account: _Account) -> None:
        each, together = self.quotas.sessions, self.quotas.all_sessions
        if account.sessions >= each:
            raise LimitError(
                f"{self._worker} keeps at most {each} sessions for one client; close "
                "some, or ask its owner for more (sessions)"
            )
        if together is not None and together <= sum(
            one.sessions for one in self._accounts.values()
        ):
            raise LimitError(
                f"{self._worker} keeps at most {together} sessions for all clients, "
                "and all are taken; try again later, or ask its owner for more "
                "(all_sessions)"
            )

    def _free_memory(self, account: _Account) -> int | None:
        """Return the bytes that a new session may hold.

        Raises:
            LimitError: if too few are left.
        """
        memory = self.quotas.memory
        if memory is None:
            return None
        held = sum(one.memory for one in self._accounts.values())
        least = min(memory, SMALLEST_MEMORY)
        for limit, taken, whose, key in (
            (self.quotas.requester_memory, account.memory, "one client", "requester"),
            (self.quotas.all_memory, held, "all clients", "all"),
        ):
            if limit is None:
                continue
            if limit - taken < least:
                raise LimitError(
                    f"{self._worker} has {limit:,} bytes of memory for all sessions "
                    f"of {whose}, and open ones have reserved {taken:,}; close some, "
                    f"or ask its owner for more ({key}_memory)"
                )
            memory = min(memory, limit - taken)
        return memory


def _span(seconds: float) -> str:
    """Say how long, in words that are not too exact."""
    for unit, name in ((HOUR, "hour"), (60.0, "minute")):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:.0f} {name}s"
    return "a minute"
