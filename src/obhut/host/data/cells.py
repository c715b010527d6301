"""Cells of text as the numbers that they stand for.

Rules:

- A number is written in ASCII digits, with a sign, a decimal mark and an exponent
  if need be; spaces around it are passed over.
- A column is one of numbers, or one of words (yes, no, true, false, beside 0
  and 1), as its first cell says: a "no" among numbers is not a 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from obhut.host.wording import quote

from .numbers import NAN, Elements, MisfitError, fit, misfit, unfit
from .tables import Part, codes

WORDS: Mapping[str, int] = {"yes": 1, "no": 0, "true": 1, "false": 0}

BOOLEANS: Mapping[str, int] = {**WORDS, "0": 0, "1": 1}

MISSING = frozenset({"", "na", "n/a", "nan", "null"})
"""Cells that say that there is no value, in lower case."""

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,6})?", re.ASCII)

_SEPARATOR = "\x1f"

_PLAIN_FLOAT = b"0123456789+-.eE \x1f"
_PLAIN_INT = b"0123456789+- \x1f"


class Cells:
    """Turns the cells of one tensor into elements, some rows at a time."""

    def __init__(self, part: Part, decimal: str) -> None:
        self._part = part
        self._decimal = decimal
        self._is_word: list[bool | None] = [None] * len(part.columns)
        self._is_float = part.dtype.startswith("float")
        self._kind = np.float64 if self._is_float else np.int64
        has_bounds = not self._is_float and part.dtype != "bool"
        self._bounds = np.iinfo(part.dtype) if has_bounds else None

    def convert(self, cells: Sequence[str]) -> Elements:
        """Return the elements.

        Args:
            cells: whole rows of the tensor, one after the other.

        Raises:
            MisfitError: at a cell that can not be converted.
        """
        part = self._part
        if part.classes:
            return fit(codes(part, cells), part.dtype, nan=False)
        values = None
        if not any(self._is_word):
            values = self._plain(cells)
        if values is None or None in self._is_word:
            width = len(self._is_word)
            values = np.empty(len(cells), self._kind)
            for column in range(width):
                values[column::width] = self._column(column, cells[column::width])
        return fit(values, part.dtype, part.nan)

    def _column(self, column: int, cells: Sequence[str]) -> Elements | list[float]:
        """Return the values of one column."""
        if self._is_word[column] is None:
            first = next(
                (one for one in map(_folded, cells) if one not in MISSING), None
            )
            if first is not None:
                self._is_word[column] = first in WORDS
        values = None if self._is_word[column] else self._plain(cells)
        if values is not None:
            return values
        width = len(self._is_word)
        return [
            self._value(row * width + column, cell) for row, cell in enumerate(cells)
        ]

    def _plain(self, cells: Sequence[str]) -> Elements | None:
        """Return the values if all cells are plain numbers, quickly, else nothing."""
        count = len(cells)
        text = _SEPARATOR.join(cells)
        if self._decimal != ".":
            if "." in text:
                return None
            text = text.replace(self._decimal, ".")
            cells = text.split(_SEPARATOR)
        # float() and int() take more than plain numbers: 1_000, other digits, nan.
        plain = _PLAIN_FLOAT if self._is_float else _PLAIN_INT
        if len(cells) != count or text.encode().translate(None, plain):
            return None
        if self._part.nan and "" in cells:
            cells = [cell or "nan" for cell in cells]
        number: Callable[[str], float] = float if self._is_float else int
        try:
            values = np.fromiter(map(number, cells), self._kind, count)
        except (ValueError, OverflowError):
            return None
        return None if np.isinf(values).any() else values

    def _value(self, index: int, cell: str) -> float:
        """Return the value of one cell, or say what is wrong with it."""
        text = cell.strip()
        lower = _folded(cell)
        if lower in MISSING:
            if self._part.nan:
                return float("nan")
            what = "an empty cell" if not text else quote(cell)
            advice = NAN if self._is_float else "fill it in"
            raise MisfitError(index, f"expected a number, got {what}", advice)
        column = index % len(self._is_word)
        # Where the result is true or false, a column may have both.
        if self._is_word[column] or self._part.dtype == "bool":
            if lower not in BOOLEANS:
                raise misfit(index, "yes, no, true, false, 0 or 1", quote(cell))
            return BOOLEANS[lower]
        if self._decimal != ".":
            text = "?" if "." in text else text.replace(self._decimal, ".")
        if not NUMBER.fullmatch(text):
            raise MisfitError(
                index, f"expected a number, got {quote(cell)}", self._advice(lower)
            )
        if text.lstrip("+-").isdigit() and len(text) <= 4_300 and not self._is_float:
            value: float = int(text)
        else:
            value = float(text)
            if math.isinf(value):
                raise misfit(index, "a number that a float can hold", quote(cell))
            if not self._is_float and abs(value) >= 2**53:
                raise misfit(index, "a whole number in plain digits", quote(cell))
        bounds = self._bounds
        if bounds is not None and (value % 1 or not bounds.min <= value <= bounds.max):
            raise unfit(index, value, self._part.dtype)
        return value

    def _advice(self, lower: str) -> str:
        if lower in WORDS:
            return "it is a column of numbers, as its first cell says: correct the cell"
        if self._decimal == "." and re.fullmatch(r"[+-]?[0-9]*,[0-9]+", lower):
            return 'correct it, or write decimal = ","'
        if self._decimal == "," and "." in lower:
            return 'correct it, or leave decimal = "," out'
        if len(self._part.columns) == 1 and self._part.tensor == "target":
            return "correct the cell, or list the texts in classes"
        return "correct the cell, or leave the column out"


def _folded(cell: str) -> str:
    return cell.strip().lower()
