"""Whether the first row of a text file has names or data.

::

    found = decide(first, below, used)
    found.header, found.note, found.doubt

Rules:

- A row that has a name which the declaration uses is a header. Else the types of the
  cells decide: text over numbers is a name, numbers over numbers are data.
- Where either may be, it is refused and not guessed: numbers that may be names, and
  texts of which some come again below.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .words import MISSING

ROWS = 1_000
"""Rows below the first that are looked at."""

_NUMBER = re.compile(
    r"[+-]?(?:[0-9][0-9.,'_ ]*|[.,][0-9]+)(?:[eE][+-]?[0-9]+)?"
    r"|[0-9]{1,4}[-./][0-9]{1,2}[-./][0-9]{1,4}(?:[T ].*)?",
    re.ASCII,
)
"""What looks like a number or a date, however it is written."""

_YEARS = range(1900, 2101)


@dataclass(frozen=True, slots=True)
class Found:
    """What a first row is.

    Attributes:
        header: whether it has names.
        why: in a few words.
        doubt: whether it may as well be the other.
    """

    header: bool
    why: str
    doubt: bool = False


def decide(
    first: Sequence[str],
    below: Sequence[Sequence[str]],
    used: Iterable[str],
    missing: Iterable[str] = (),
) -> Found:
    """Decide what the first row is.

    Args:
        first: its cells, trimmed.
        below: by column, the cells in the rows below, trimmed.
        used: names of columns that the declaration uses.
        missing: further cells that say that there is no value.
    """
    places = {str(place + 1) for place in range(len(first))}
    if ({*used} - places) & {*first}:
        return Found(True, "it has a name that is declared")
    nothing = {*missing}

    def is_missing(cell: str) -> bool:
        return cell.lower() in MISSING or cell in nothing

    names = 0  # texts over numbers
    numbers: list[int] = []  # places of numbers over numbers
    texts = again = 0
    for place, (cell, column) in enumerate(zip(first, below, strict=True)):
        values = [one for one in column if not is_missing(one)]
        if is_missing(cell):
            continue
        is_number = bool(_NUMBER.fullmatch(cell))
        if all(map(_NUMBER.fullmatch, values)) and (values or is_number):
            if is_number:
                numbers.append(place)
            else:
                names += 1
        elif not is_number:
            texts += 1
            again += cell in column
    if numbers:
        named = _may_be_names(
            [first[place] for place in numbers], [below[place] for place in numbers]
        )
        if names and not again and named:
            return Found(True, "it has texts over numbers")
        doubt = bool(names) or (bool(named) and not again)
        return Found(
            False, named or "it has numbers, and so have the rows below", doubt
        )
    if names:
        return Found(not again, "it has texts over numbers", doubt=bool(again))
    if again:
        return Found(False, "its texts come again in the rows below", again < texts)
    return Found(True, "it has texts that do not come again below")


def _may_be_names(cells: Sequence[str], below: Sequence[Sequence[str]]) -> str:
    """Return why numbers over numbers may be names; empty if they may not."""
    if not all(re.fullmatch("[0-9]{1,9}", cell) for cell in cells):
        return ""
    whole = [int(cell) for cell in cells]
    steps = [after - one for one, after in pairwise(whole)]
    if (steps and {*steps} == {1}) or whole == [0]:
        return "its numbers count up by one"
    values = [one for column in below for one in column if one.lower() not in MISSING]
    if not values:
        return ""
    years = [re.fullmatch("[0-9]{4}", one) and int(one) in _YEARS for one in values]
    if all(one in _YEARS for one in whole) and not all(years):
        return "its numbers may be years"
    if not any(re.fullmatch("[+-]?[0-9]+", one) for one in values):
        return "its numbers are whole, and those below are not"
    return ""
