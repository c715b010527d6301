"""Whether one owner outweighs the others in anything that released sums tell.

The rule, for each vector of a space and each of its owners: with any ``colluders``
others taken out, those that remain weigh together at least ``percent`` of the owner.
Source: the p%-rule of L. Willenborg and T. de Waal, Elements of Statistical Disclosure
Control, 2001, section 6.3, with coefficients for magnitudes; over all vectors, since a
requester may combine sums.

Rules:

- A space of one row is decided on that row.
- The rule holds for all vectors of a space if it holds for its elementary ones, those
  with a minimal set of owners: what remains of a vector is a sum of absolute values,
  which is least at a corner, and a corner is elementary. Few of them are all looked at.
- Where they are many, certificates are looked for first: see ``certificates``. Where
  there is none and the vectors are too many, the answer is no, also where an
  unlimited search might have said yes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from .certificates import certified
from .row_space import Block, Row, elementary

AT_ONCE = 200
"""Up to how many elementary vectors are looked at without trying certificates."""

AT_MOST = 5_000
"""Up to how many elementary vectors are looked at where certificates fail."""


@dataclass(frozen=True, slots=True)
class Excess:
    """A vector in which one owner outweighs the others.

    Attributes:
        owner: who weighs too much.
        row: the coefficients; ``None`` if no vector was found, and no proof either
            that there is none.
        cap: the largest weight that would do beside these others, in the row's units.
    """

    owner: str
    row: Row | None = None
    cap: Fraction = Fraction(0)


def excess(blocks: Iterable[Block], colluders: int, percent: int) -> Excess | None:
    """Return where the rule does not hold, or is not shown to hold.

    Args:
        blocks: parts of a space. What one tells is hidden by none of the others.
        colluders: how many others of a vector may be taken out.
        percent: what the rest must weigh, in percent of one owner.
    """
    for block in blocks:
        found = _excess(block, colluders, percent)
        if found is not None:
            return found
    return None


def _excess(block: Block, colluders: int, percent: int) -> Excess | None:
    rank, owners = len(block.rows), block.owners
    many = math.comb(len(owners), rank - 1)
    if many > AT_ONCE and certified(block, colluders, percent):
        return None
    if many > AT_MOST:
        return Excess(owners[0])
    for row in elementary([block]):
        found = of_row(row, colluders, percent)
        if found is not None:
            return found
    return None


def of_row(row: Row, colluders: int, percent: int) -> Excess | None:
    """Return who outweighs the others in a row, if anybody does.

    It is enough to look at the heaviest, and to take out the next heaviest: to any
    other owner, at least as much remains.
    """
    by_weight = sorted(row, key=lambda owner: (-abs(row[owner]), owner))
    heaviest = by_weight[0]
    rest = sum(abs(row[owner]) for owner in by_weight[1 + colluders :])
    if abs(row[heaviest]) * percent <= 100 * rest:
        return None
    return Excess(heaviest, row, Fraction(100 * rest, percent))
