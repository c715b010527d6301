"""The ways in which contributions are combined, as questions and ledgers name them.

::

    kind = Combining("trimmed_mean", 1)
    str(kind)                        # "trimmed_mean:1", in a question and in the ledger
    parse("trimmed_mean:1") == kind  # where it is decided on, and where it is computed

Rules:

- A way is a row of ``KINDS``, which says what the audit must know of it. How it is
  computed is a row of ``obhut.worker.evaluation.ELEMENTWISE``.
- A name that is no row is no way in which contributions may leave.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Traits:
    """What the audit must know of one way of combining.

    Attributes:
        weighted: whether contributions may have coefficients other than 1.
        values: whether values leave, or only how many of them are not finite.
        trims: whether each element leaves out its smallest and its largest values, as
            many as the number behind the name says.
    """

    weighted: bool = False
    values: bool = True
    trims: bool = False


KINDS: Mapping[str, Traits] = {
    "sum": Traits(weighted=True),
    "count": Traits(values=False),
    "trimmed_mean": Traits(trims=True),
}
"""The ways, by name."""


@dataclass(frozen=True, slots=True)
class Combining:
    """One way of combining.

    Attributes:
        name: a name of ``KINDS``.
        trim: how many values are left out at each end.
    """

    name: str
    trim: int = 0

    @property
    def traits(self) -> Traits:
        """What the audit must know of it."""
        return KINDS[self.name]

    def __str__(self) -> str:
        return f"{self.name}:{self.trim}" if self.traits.trims else self.name


def parse(text: str) -> Combining | None:
    """Return the way that a text names; None if it names none."""
    name, colon, number = text.partition(":")
    traits = KINDS.get(name)
    if traits is None or bool(colon) is not traits.trims:
        return None
    if not traits.trims:
        return Combining(name)
    return Combining(name, int(number)) if re.fullmatch("[0-9]{1,6}", number) else None
