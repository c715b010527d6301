"""Which columns of a data set's part a request names, and where they are.

::

    places(("age", "sex", "bp"), ("bp", "age"), tensor)   # [2, 0]

Rules:

- Columns are chosen by names that their owner made public, and by no others: what is
  answered to a name would tell whether there is such a column.
- Each is chosen once at most, so that nothing is made wider than it is.
- By names, the same choice is the same columns at all owners, whatever their order.
  So what was made of it is told apart by the names, and not by the places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

import torch

from obhut.errors import CallError

Columns: TypeAlias = Mapping[str, Mapping[str, Sequence[str]]]
"""The public names of columns, by data set and part."""

NAMELESS: Columns = MappingProxyType({})
"""No name is public."""


def places(
    known: Sequence[str], wanted: Sequence[str], tensor: torch.Tensor
) -> list[int] | None:
    """Return where columns are, or None if all are meant as they are.

    Args:
        known: the public names of the tensor's columns; none if they are private.
        wanted: the names that were asked for; none for all.
        tensor: (rows, columns), or of another shape: then its columns are no dimension,
            and can be asked for as they are.

    Raises:
        CallError: if they can not be chosen. It names what was asked for and no other.
    """
    if not wanted:
        return None
    if not known:
        raise CallError(
            "expected no columns: their names are not public here, so that none is "
            "found by its name"
        )
    if tensor.dim() != 2 or tensor.shape[1] != len(known):
        if tuple(wanted) != tuple(known):
            raise CallError(
                "expected no columns, or the one that it is: its columns are no "
                "dimension"
            )
        return None
    where: dict[str, int] = {}
    for place, name in enumerate(known):
        where[name] = -1 if name in where else place
    found = [where.get(name, -1) for name in wanted]
    if -1 in found:
        name = wanted[found.index(-1)]
        raise CallError(f"expected names of columns, one of each, got {name!r}")
    if len({*found}) < len(found):
        raise CallError("expected each column once, got one twice")
    return found
