"""One call of a crew: turns in actors, of which some may be lost meanwhile.

::

    playing = Playing(crew, number, tasks, frames, exact, retries)
    sums = playing.go(dealt(turns, rows, 2))

Rules:

- Portions wait for actors, not actors for portions: whoever is ready takes the next.
- What a lost actor had is not used, even if it comes. Its turns are taken again alone:
  if another one is lost, it shows whose turn it was.
- Sums are added by the portions' places, not as they come.
- If it fails, or is interrupted, actors begin no more turns of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import ray

from obhut.errors import ObhutError, TransportError
from obhut.protocol.codec import Frame
from obhut.worker.tasks import Sums, Task

from .engine import INLINE
from .member import PULSE_SECONDS, Member, reason
from .packing import Packed
from .portions import Portion

_STARTS = 3
"""How many actors may fail to start, one after the other, before a call gives up."""


class Members(Protocol):
    """Actors that are replaced when they are lost."""

    def members(self) -> list[Member]:
        """Return all actors, lost ones replaced as far as there is room.

        Raises:
            TransportError: if there is none any more.
        """


class _Flight(NamedTuple):
    """A call under way.

    Attributes:
        reference: what will be its sums.
        portion: the turns in it.
        answers: how often the actor had said how it goes before the call.
    """

    reference: ray.ObjectRef[Any]
    portion: Portion
    answers: int


class Playing:
    """One call of a crew.

    Args:
        crew: the actors.
        number: of the call.
        tasks: as of ``play``, likewise the others.
    """

    def __init__(
        self,
        crew: Members,
        number: int,
        tasks: Sequence[Task],
        frames: Sequence[Frame],
        exact: bool,
        retries: int,
    ) -> None:
        self._crew, self._number = crew, number
        self._exact, self._retries = exact, retries
        shared = tuple(memoryview(one) for one in frames)
        packed = Packed((tuple(tasks), shared))
        small = sum(one.nbytes for one in shared) < INLINE // 2
        self._shared = packed if small else ray.put(packed)
        self._waiting: deque[Portion] = deque()
        self._flights: dict[Member, _Flight] = {}
        self._sums: dict[tuple[int, int], Sums] = {}
        self._failed_starts = 0

    def go(self, portions: Sequence[Portion]) -> Sums:
        """Have all portions taken; return their sums."""
        self._waiting.extend(portions)
        for member in self._crew.members():
            member.begin()
        try:
            while self._waiting or self._flights:
                self._call()
                self._wait()
        except BaseException:
            self._stop()
            raise
        return self._added()

    def _call(self) -> None:
        """Call each actor that is ready and has nothing to do."""
        for member in self._crew.members():
            if self._waiting and member.ready and member not in self._flights:
                portion = self._waiting.popleft()
                member.listen()
                member.begin()  # asked before: who answers is there, and takes it in
                reference = member.handle.play.remote(
                    self._number,
                    self._shared,
                    Packed(portion.turns),
                    self._exact,
                )
                self._flights[member] = _Flight(reference, portion, member.answers)

    def _wait(self) -> None:
        """Wait until something comes, or for a while; take in what came."""
        members = {*self._crew.members(), *self._flights}
        starting = {m: m.asked for m in members if not (m.ready or m.lost)}
        wanted = [flight.reference for flight in self._flights.values()]
        for asked in starting.values():
            wanted += asked
        came, _ = ray.wait(wanted, timeout=PULSE_SECONDS)
        for member, flight in list(self._flights.items()):
            if flight.reference in came:
                self._take(member, flight)
        for member in members:
            member.listen()
            if member.lost and member in self._flights:
                self._lose(member)
            elif member in starting and member.lost:
                self._failed_starts += 1
                alone = not any(one.ready for one in members)
                if alone and self._failed_starts >= _STARTS:
                    raise TransportError(f"no actor starts: {member.lost}")
            elif member in starting and member.ready:
                self._failed_starts = 0

    def _take(self, member: Member, flight: _Flight) -> None:
        """Take in what an actor returned."""
        try:
            sums = ray.get(flight.reference, timeout=PULSE_SECONDS)
        except (ray.exceptions.RayError, TimeoutError) as error:
            if isinstance(error, ray.exceptions.RayTaskError):
                raise TransportError(
                    f"an actor could not take its call in: {error.cause!r}"
                ) from error
            member.listen()
            member.lost = member.lost or reason(error)
            return
        del self._flights[member]
        if isinstance(sums, ObhutError):
            raise sums
        self._sums[flight.portion.place] = sums
        if sums.failures:  # all is in vain
            self._waiting.clear()
            self._stop()

    def _lose(self, member: Member) -> None:
        """Have turns taken again that an actor was lost with."""
        _, portion, answers = self._flights.pop(member)
        if member.answers == answers and not (portion.spared or member.silent):
            # It was gone already, though nobody had been told.
            self._waiting.append(replace(portion, spared=True))
            return
        if portion.losses >= self._retries:
            client = portion.turns[0].client
            if len(portion.turns) > 1 and member.pulse is not None:
                client = member.pulse.client or client
            whose = f"{client}'s turn was under way"
            if len(portion.turns) > 1:
                whose += f", or another one's of {len(portion.turns)}"
            raise TransportError(
                f"an actor was lost, {portion.losses + 1} in a row: {member.lost}; "
                f"{whose}; try again with more retries, or, if it takes too much "
                "memory, with fewer actors, smaller batches or fewer rows"
            )
        self._waiting.extend(portion.singly())

    def _stop(self) -> None:
        """Let actors begin no more turns of this call. It does not wait."""
        for member in self._flights:
            if not member.lost:
                member.handle.stop.remote(self._number)
        self._flights.clear()

    def _added(self) -> Sums:
        """Return the sums of all portions, in memory that may be written to."""
        first, *others = (self._sums[place] for place in sorted(self._sums))
        if not others:
            first.narrow, first.wide = first.narrow.clone(), first.wide.clone()
        for other in others:
            first = first.added(other)
        return first
