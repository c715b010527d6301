"""Programs that were read and checked, once for all sessions of a process.

::

    definition = defined(text)                   # ProgramError, or what is kept
    definition.digest                            # by which a session calls it
    definition.remember(key, make)               # what follows from the text alone

Rules:

- What is kept follows from the text and from numbers in the key: nothing of a session,
  a worker or a value is in it.
- Long texts are read anew in each session, so that no sender fills the memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from obhut.programs.checks import check
from obhut.programs.gradients import detached, keeps_to_itself
from obhut.programs.program import Kind, Loop, Part, Program
from obhut.programs.text import digest, read
from obhut.protocol import limits

# Any below: bodies and lines, which are defined above this module.


class Definition:
    """A program, and what follows from it.

    Args:
        text: the program's.

    Attributes:
        program: it, checked.
        digest: of its text.

    Raises:
        ProgramError, OpNotAdmittedError: if it is none that workers run.
    """

    def __init__(self, text: str) -> None:
        self.program: Program = read(text)
        check(self.program)
        self.digest = digest(text)
        self._made: dict[tuple[object, ...], Any] = {}

    @functools.cached_property
    def keeps_to_itself(self) -> tuple[bool, ...]:
        """Of each loop, whether no gradient goes into a batch of it, or out."""
        return keeps_to_itself(self.program)

    @functools.cached_property
    def draws(self) -> bool:
        """Whether an operator draws random numbers."""
        return self.program.draws

    @functools.cached_property
    def loops(self) -> tuple[Loop, ...]:
        """Its loops; none if it is a step."""
        return self.program.loops

    @functools.cached_property
    def part(self) -> Part:
        """What a step does to each batch."""
        return Part(self.program.lines)

    @functools.cached_property
    def rows(self) -> frozenset[int]:
        """The ids of the inputs that are rows."""
        return frozenset(self.program.rows)

    @functools.cached_property
    def own(self) -> dict[int, bool]:
        """The ids of the inputs that are no rows, and whether they need gradients."""
        return {
            id: one.kind is Kind.PARAMETER
            for id, one in enumerate(self.program.inputs, 1)
            if one.kind is not Kind.ROWS
        }

    @functools.cached_property
    def detached(self) -> set[int]:
        """What is carried whose graph nobody needs."""
        return detached(self.program)

    def remember(self, key: tuple[object, ...], make: Callable[[], Any]) -> Any:
        """Return what was made under a key, or make it."""
        found = self._made.get(key)
        if found is None:
            if len(self._made) >= limits.PROGRAMS_PER_SESSION:
                self._made.clear()
            found = self._made[key] = make()
        return found


def defined(text: str) -> Definition:
    """Return a program that was read and checked.

    Raises:
        ProgramError, OpNotAdmittedError: if it is none that workers run.
    """
    return _kept(text) if len(text) <= _SHORT else Definition(text)


_SHORT = 2**17
"""Characters of a text that is kept: of a hundred layers it has half as many."""

_kept = functools.lru_cache(32)(Definition)
