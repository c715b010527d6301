"""What a data set is made of, for its owner alone.

Leak: a report holds extremes, counts and texts of the data. It is shown on the owner's
console and goes to nobody else.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ColumnReport:
    """One column of a table, or one array.

    Attributes:
        name: its name in the file.
        stored: its type there: ``text``, ``int64``, ``date32[day]``, …
        becomes: what it is in a tensor, such as ``features, float32``; empty if it is
            left out.
        missing: how many used rows have no value.
        least: the smallest number; None where there is none.
        greatest: the largest one.
        classes: of categories, each with how many rows have it.
        note: what its owner should know of it; empty for nothing.
    """

    name: str
    stored: str
    becomes: str = ""
    missing: int = 0
    least: float | None = None
    greatest: float | None = None
    classes: tuple[tuple[str, int], ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """A data set, column by column.

    Attributes:
        columns: in the order of the file.
        rows: rows of the file.
        used: rows that are left by conditions, missing values and empty ends.
        notes: sentences on the whole file, such as whether a header was found.
    """

    columns: tuple[ColumnReport, ...] = ()
    rows: int = 0
    used: int = 0
    notes: tuple[str, ...] = ()
