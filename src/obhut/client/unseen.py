"""The failures of a session, and those that nobody has seen yet.

::

    unseen.remember((batch, index), error)
    unseen.raise_all()      # once: the oldest, with notes of others
    raise unseen.known((batch, index))

Rule: what is raised is a copy. It refers to frames, and those to remote tensors.
"""

from __future__ import annotations

import copy
from typing import TypeAlias

from obhut.errors import ObhutError

Origin: TypeAlias = tuple[int, int]
"""A batch's number, and the place of the request in it that failed."""

_REMEMBERED = 1_000

_OTHERS_TOLD = 3
"""So many other failures are told with the first one."""


class Unseen:
    """Failures by origin, the oldest first; so many are remembered."""

    def __init__(self) -> None:
        self._errors: dict[Origin, ObhutError] = {}
        self._unseen: list[Origin] = []

    def __contains__(self, origin: Origin) -> bool:
        return origin in self._errors

    def remember(
        self, origin: Origin, error: ObhutError, *, seen: bool = False
    ) -> None:
        """Keep a failure, and the oldest no longer."""
        if len(self._errors) >= _REMEMBERED:
            oldest = next(iter(self._errors))
            del self._errors[oldest]
            self.see(oldest)
        self._errors[origin] = error
        if origin not in self._unseen and not seen:
            self._unseen.append(origin)

    def see(self, origin: Origin) -> None:
        """Take a failure for seen."""
        if origin in self._unseen:
            self._unseen.remove(origin)

    def known(self, origin: Origin) -> ObhutError | None:
        """Return a failure, if it is remembered."""
        known = self._errors.get(origin)
        return None if known is None else copy.copy(known)

    def came_before(self, origin: Origin) -> bool:
        """Tell whether something failed before that nobody has seen."""
        return bool(self._unseen) and self._unseen[0] < origin

    def dropped(self) -> list[ObhutError]:
        """Take all for seen; return the oldest few."""
        few = [self._errors[one] for one in self._unseen[:_OTHERS_TOLD]]
        self._unseen.clear()
        return few

    def raise_all(self) -> None:
        """Raise the oldest that nobody has seen, if there is one, once."""
        if self._unseen:
            unseen, self._unseen = self._unseen, []
            first, *others = (copy.copy(self._errors[one]) for one in unseen)
            for other in others[:_OTHERS_TOLD]:
                first.add_note(f"and then: {other}")
            if len(others) > _OTHERS_TOLD:
                first.add_note(f"and {len(others) - _OTHERS_TOLD:,} more")
            raise first
