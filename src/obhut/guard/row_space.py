"""All that can be computed from released sums by adding and scaling them, exactly.

Columns are owners, a row holds the coefficients of a released sum. The rows are kept
in reduced echelon form, over the integers, split into blocks that share no owner.

Rules:

- Arithmetic is exact: 2**-50 apart is apart.
- A space does not change; adding a row yields another, which shares what is alike.
- Each row is primitive: its entries are integers without a common factor, and the one
  in its pivot's column is positive. So the rows are the same whatever the order in
  which a space's vectors came, once the pivots are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias, TypeVar

from .release import Atom

K = TypeVar("K", str, Atom)

Row: TypeAlias = Mapping[str, int]
"""The coefficients of a vector, by owner, without zeros."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A part of a space that shares no owner with the rest of it, and does not split.

    Attributes:
        rows: the rows by pivot; a pivot is in no other row.
    """

    rows: Mapping[str, Row]

    @property
    def owners(self) -> list[str]:
        """Whose contributions are in it, in order."""
        return sorted({owner for row in self.rows.values() for owner in row})

    @property
    def free(self) -> list[str]:
        """The owners that are no pivots, in order."""
        return [owner for owner in self.owners if owner not in self.rows]

    def without(self, owner: str) -> tuple[Block, ...]:
        """Return what is left if an owner's contribution is known: it falls out."""
        kept = {
            pivot: _primitive({one: x for one, x in row.items() if one != owner})
            for pivot, row in self.rows.items()
            if pivot != owner
        }
        space = RowSpace.of(_components(kept))
        if owner in self.rows:
            rest = {one: x for one, x in self.rows[owner].items() if one != owner}
            space = space.plus(rest)[0]
        return space.blocks

    def vanishing(self, owner: str) -> tuple[Block, ...]:
        """Return the vectors of it in which an owner's coefficient is zero."""
        rows = dict(self.rows)
        if owner not in rows:
            _pivot_on(rows, owner)
        del rows[owner]
        return tuple(_components(rows))


class RowSpace:
    """The space that released rows span; see the module."""

    __slots__ = ("_block_of",)

    def __init__(self, block_of: Mapping[str, Block] | None = None) -> None:
        self._block_of: Mapping[str, Block] = block_of or {}

    @classmethod
    def of(cls, blocks: Iterable[Block]) -> RowSpace:
        """Return the space of blocks that share no owner."""
        return cls({owner: block for block in blocks for owner in block.owners})

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Its parts, by their first owners."""
        return tuple(
            dict.fromkeys(self._block_of[one] for one in sorted(self._block_of))
        )

    @property
    def rank(self) -> int:
        """How many rows tell something that the others don't."""
        return sum(len(block.rows) for block in self.blocks)

    def residual(self, row: Row) -> Row:
        """Return what a row tells beyond the space: a primitive row, or an empty one.

        It is zero in the columns of all pivots.
        """
        used = {
            one: block.rows[one]
            for one in row
            if (block := self._block_of.get(one)) is not None and one in block.rows
        }
        scale = math.lcm(*(of[pivot] for pivot, of in used.items()))
        rest = {owner: scale * x for owner, x in row.items()}
        for pivot, of in used.items():
            factor = row[pivot] * (scale // of[pivot])
            for owner, x in of.items():
                rest[owner] = rest.get(owner, 0) - factor * x
        return _primitive(rest)

    def plus(self, row: Row) -> tuple[RowSpace, tuple[Block, ...]]:
        """Return the space with one more row, and the blocks that are new in it.

        None are new if the space has the row already; then the space is the same.
        """
        rest = self.residual(row)
        if not rest:
            return self, ()
        touched = dict.fromkeys(
            self._block_of[one] for one in sorted(rest) if one in self._block_of
        )
        rows = {pivot: of for block in touched for pivot, of in block.rows.items()}
        # An owner who is new leaves all other rows as they are. A large entry keeps
        # quotients small.
        pivot = max(
            rest, key=lambda one: (one not in self._block_of, abs(rest[one]), one)
        )
        rows[pivot] = rest if rest[pivot] > 0 else {one: -x for one, x in rest.items()}
        _clear(rows, pivot)
        new = tuple(_components(rows))
        block_of = dict(self._block_of)
        block_of.update({owner: block for block in new for owner in block.owners})
        return RowSpace(block_of), new


def primitive(row: Mapping[K, Fraction]) -> dict[K, int]:
    """Return the integer multiple of a row that stands for all its multiples.

    It has no zeros, its entries share no factor, and that of the least key is positive.
    """
    scale = math.lcm(*(x.denominator for x in row.values()))
    whole = {one: x.numerator * (scale // x.denominator) for one, x in row.items() if x}
    divisor = math.gcd(*whole.values())
    if whole and whole[min(whole)] < 0:
        divisor = -divisor
    return {one: x // divisor for one, x in whole.items()}


def elementary(blocks: Iterable[Block], after: str = "") -> Iterator[Row]:
    """Yield vectors of blocks, all those with a minimal set of owners among them.

    A vector is elementary if no other of the space has fewer owners, all of them
    among its own. They are found as what is left when enough coefficients are set to
    zero, in the order of owners; each at least once, up to a factor.

    Source: R. T. Rockafellar, The elementary vectors of a subspace of R^N, 1969.
    """
    for block in blocks:
        if len(block.rows) == 1:
            yield from block.rows.values()
            continue
        for owner in block.owners:
            if owner > after:
                yield from elementary(block.vanishing(owner), owner)


def _primitive(row: Row) -> Row:
    """Divide a row by what its entries have in common; leave out zeros."""
    divisor = math.gcd(*row.values())
    if divisor == 1:
        return {owner: x for owner, x in row.items() if x}
    return {owner: x // divisor for owner, x in row.items() if x}


def _clear(rows: dict[str, Row], pivot: str) -> None:
    """Take the pivot's column out of all rows but its own."""
    of = rows[pivot]
    for other, row in rows.items():
        entry = row.get(pivot)
        if entry is None or other == pivot:
            continue
        ours, theirs = of[pivot], entry
        changed = {owner: ours * x for owner, x in row.items()}
        for owner, x in of.items():
            changed[owner] = changed.get(owner, 0) - theirs * x
        # Its own pivot's entry stays positive: the pivot's row has none there.
        rows[other] = _primitive(changed)


def _pivot_on(rows: dict[str, Row], owner: str) -> None:
    """Make an owner a pivot, in place of the first that shares a row with it."""
    before = min(pivot for pivot, row in rows.items() if owner in row)
    row = rows.pop(before)
    rows[owner] = row if row[owner] > 0 else {one: -x for one, x in row.items()}
    _clear(rows, owner)


def _components(rows: Mapping[str, Row]) -> Iterator[Block]:
    """Split reduced rows into those that share owners, directly or by others."""
    meeting: dict[str, list[str]] = {}
    for pivot, row in rows.items():
        for owner in row:
            meeting.setdefault(owner, []).append(pivot)
    left = dict.fromkeys(rows)
    while left:
        start = next(iter(left))
        del left[start]
        found, waiting = [], [start]
        while waiting:
            pivot = waiting.pop()
            found.append(pivot)
            for owner in rows[pivot]:
                for other in meeting.pop(owner, ()):
                    if other in left:
                        del left[other]
                        waiting.append(other)
        yield Block({pivot: rows[pivot] for pivot in found})
