"""Whether released sums, taken together, single out too few owners.

The rule: no vector of the space that the released rows span has fewer than K owners in
it. In the words of coding theory, the minimum distance of the space is K at least.

Source: F. Y. Chin and G. Özsoyoğlu, Auditing and inference control in statistical
databases, IEEE TSE 8 (6), 1982, for K = 2; with K - 1 columns of a parity-check matrix
in place of one, for any K.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from .row_space import Block, Row, elementary

SUBSETS = 20_000
"""How many sets of owners are looked at before a release is refused unchecked."""


def checkable(block: Block, weight: int) -> bool:
    """Tell whether ``light`` may be asked: above three owners, it looks at subsets."""
    rank, owners = len(block.rows), len(block.owners)
    if weight <= 2:
        return True
    return min(math.comb(owners, weight - 2), math.comb(owners, rank - 1)) <= SUBSETS


def light(
    blocks: Iterable[Block], weight: int, after: str = ""
) -> frozenset[str] | None:
    """Return the owners of a vector with at most so many of them, if there is one.

    Args:
        blocks: parts of a space.
        weight: how many owners are too few.
        after: owners up to this one were left out before, and need not be again.

    Returns:
        the owners of such a vector, perhaps with some whose coefficient is zero.
    """
    for block in blocks:
        found = _light(block, weight, after)
        if found is not None:
            return found
    return None


def _light(block: Block, weight: int, after: str) -> frozenset[str] | None:
    for row in block.rows.values():
        if len(row) <= weight:
            return frozenset(row)
    if weight == 1 or len(block.rows) == 1:
        return None
    found = _two(block)
    if found is not None or weight == 2:
        return found
    owners = len(block.owners)
    if math.comb(owners, len(block.rows) - 1) <= math.comb(owners, weight - 2):
        # The lightest vectors are elementary.
        few = (row for row in elementary([block]) if len(row) <= weight)
        return next(map(frozenset, few), None)
    for owner in block.owners:
        if owner > after:
            found = light(block.without(owner), weight - 1, owner)
            if found is not None:
                return found | {owner}
    return None


def _two(block: Block) -> frozenset[str] | None:
    """Return two pivots whose rows are, but for the pivots, multiples of each other.

    Their difference is a vector over these two owners. There is no other way to one:
    a vector's coefficients at the pivots say which rows it is made of.
    """
    seen: dict[tuple[tuple[str, int], ...], str] = {}
    for pivot, row in block.rows.items():
        before = seen.setdefault(_direction(row, pivot), pivot)
        if before != pivot:
            return frozenset((before, pivot))
    return None


def _direction(row: Row, pivot: str) -> tuple[tuple[str, int], ...]:
    """Return a row without its pivot, up to a factor."""
    rest = sorted((owner, x) for owner, x in row.items() if owner != pivot)
    divisor = math.gcd(*(x for _, x in rest))
    if rest[0][1] < 0:
        divisor = -divisor
    return tuple((owner, x // divisor) for owner, x in rest)
