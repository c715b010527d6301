"""Rows of a table, wherever they come from: text, Parquet, a database, an own loader.

::

    with csv_source.open(declaration) as rows:   # or another source
        rows.names                               # ("age", "sex", "result")
        for batch in rows.batches(["age"]):      # Arrow record batches of these columns
            ...

Rules:

- A source says what is in the file and converts nothing: cells of text are strings, as
  they stand there. What they become is the table's task, the same for all sources.
- Rows come in an order that is the same each time, in batches of some MiB.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, TypeAlias

from obhut.host.closing import Closing

Arrow: TypeAlias = Any  # pyarrow is untyped
"""A type, array or batch of pyarrow's."""


class Place(NamedTuple):
    """Where a row is.

    Attributes:
        file: the one that it is in, of several.
        row: which of its rows, from 1.
        line: in which it begins, from 1; 0 if there are none.
    """

    file: str
    row: int
    line: int = 0


class Lineless(Closing):
    """A source whose rows stand in no lines."""

    line = 0
    _name: str

    def place_of(self, row: int) -> Place:
        """Return where a row is."""
        return Place(self._name, row)


class Source(AbstractContextManager["Source"], Protocol):
    """Rows of a table. Use it as a context manager."""

    @property
    def names(self) -> Sequence[str]:
        """Those of all columns, in order. One may be empty, or come twice."""

    @property
    def types(self) -> Sequence[Arrow]:
        """Arrow's type of each column; text for those of a text file."""

    @property
    def aside(self) -> Mapping[int, str]:
        """Columns that ``*`` does not take, by their places, each with the reason.

        Such as pandas' index. The reason has a few words.
        """

    @property
    def notes(self) -> Sequence[str]:
        """Sentences for the owner, complete when the rows were read.

        Such as whether a header was found, and which lines were passed over.
        """

    @property
    def line(self) -> int:
        """That of the names, for errors; 0 if there is none."""

    def batches(self, places: Sequence[int]) -> Iterator[Arrow]:
        """Yield record batches of the columns at these places, in this order.

        It can be called more than once, and begins anew then.

        Raises:
            DatasetError: naming row and line, if the file can not be read on.
        """

    def close(self) -> None:
        """Close what is open, also where an iterator was left before its end."""

    def place_of(self, row: int) -> Place:
        """Return where a row of data is, for errors.

        Args:
            row: from 1, of all rows.
        """
