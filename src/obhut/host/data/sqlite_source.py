"""Rows that a query yields of an SQLite database.

::

    with SqliteSource(declaration) as rows:
        rows.types                               # found of all values
        for batch in rows.batches([0, 1]):
            ...

Rules:

- The database is read as it was in one moment, and a query can do nothing but read.
- A column has the type of its values. Where numbers and text are mixed it is text, as
  in a text file: whether `12` or an empty text is a number is decided there.
- A query yields the same rows each time: it has no random numbers.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from obhut.errors import DatasetError
from obhut.host.wording import quote

from .arrow import pa
from .declaration import DatasetDeclaration
from .numbers import MisfitError
from .source import Arrow, Lineless
from .sql import LISTING, order, refused, statement

_CELLS = 2**18
"""Cells of a batch of rows."""

_READING = frozenset(
    {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}
)
"""What a query may do besides calling functions."""

_RANDOM = frozenset({"random", "randomblob", "load_extension"})

_TYPES: Mapping[frozenset[str], str] = {
    frozenset(): "null",
    frozenset({"integer"}): "int64",
    frozenset({"real"}): "float64",
    frozenset({"integer", "real"}): "float64",
    frozenset({"blob"}): "binary",
}
"""Arrow's names of types by the kinds of a column's values; all others are text."""


class SqliteSource(Lineless):
    """Rows of an SQLite database: a ``Source``.

    Raises:
        DatasetError: if it is none, or does not understand the query.
        OSError: if the file can not be opened.
    """

    aside: Mapping[int, str] = {}

    def __init__(self, declaration: DatasetDeclaration) -> None:
        self._name = declaration.file
        with self._translated():
            self._database = _connect(declaration.path)
        try:
            with self._translated():
                tables = [name for (name,) in self._database.execute(LISTING["sqlite"])]
            query = statement(declaration, tables)
            self._database.set_authorizer(_authorize)
            try:
                self._database.execute(f"EXPLAIN {query}")
            except (sqlite3.Error, sqlite3.Warning) as error:
                raise refused(declaration, str(error)) from error
            self._query = query
            with self._translated():
                self.names: Sequence[str] = self._execute_names()
                self.types: Sequence[Arrow] = self._execute_types()
        except BaseException:
            self._database.close()
            raise
        self.notes: Sequence[str] = order(query)

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def batches(self, places: Sequence[int]) -> Iterator[Arrow]:
        """Yield record batches of the columns at these places, in this order.

        Raises:
            DatasetError: if the database is damaged, or an expression has no value.
        """
        types = [self.types[place] for place in places]
        names = [self.names[place] for place in places]
        with self._translated():
            cursor = self._database.execute(self._query)
        done = 0
        while True:
            with self._translated():
                rows = cursor.fetchmany(max(1, _CELLS // len(self.names)))
            if not rows:
                return
            cells = list(zip(*rows, strict=True))
            columns = []
            for place, name, kind in zip(places, names, types, strict=True):
                try:
                    columns.append(_array(cells[place], kind))
                except MisfitError as error:
                    row = done + error.index + 1
                    raise DatasetError(
                        self._name, error.problem, error.advice, name, row
                    ) from error
            yield pa.RecordBatch.from_arrays(columns, names)
            done += len(rows)

    def _execute_names(self) -> Sequence[str]:
        with closing(self._database.execute(self._query)) as cursor:
            return [name for name, *_ in cursor.description]

    def _execute_types(self) -> Sequence[Arrow]:
        columns = [f"c{place}" for place in range(len(self.names))]
        kinds = ", ".join(f"group_concat(DISTINCT typeof({one}))" for one in columns)
        # By names of our own: those of a query may come twice.
        rows = f"WITH q({', '.join(columns)}) AS (\n{self._query}\n)"
        asked = " ".join((rows, "SELECT", kinds, "FROM q"))
        found = self._database.execute(asked).fetchone()
        kinds_of = [frozenset((one or "null").split(",")) - {"null"} for one in found]
        return [getattr(pa, _TYPES.get(one, "string"))() for one in kinds_of]

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, sqlite3.Warning) as error:
            # Without SQLite's words: they may quote a cell.
            raise DatasetError(
                self._name,
                "is not an SQLite database that can be read to the end of the query",
                "try the query with sqlite3; if the file is damaged, get it anew",
            ) from error


def _connect(path: Path) -> sqlite3.Connection:
    name = f"{path.absolute().as_uri()}?mode=ro"
    with path.open("rb") as file:
        logged = file.read(20)[18:] == b"\2\2"
    if logged and not path.with_name(f"{path.name}-wal").exists():
        # Nobody has it open, and SQLite would write beside it, or could not.
        name += "&immutable=1"
    database = sqlite3.connect(name, isolation_level=None, uri=True)
    try:
        database.execute("PRAGMA trusted_schema = OFF")
        database.execute("BEGIN")
    except BaseException:
        database.close()
        raise
    return database


def _authorize(
    action: int, first: str | None, second: str | None, *_: str | None
) -> int:
    function = action == sqlite3.SQLITE_FUNCTION and second not in _RANDOM
    if function or action in _READING:
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


def _array(cells: Sequence[Any], kind: Arrow) -> Arrow:
    """Return a column.

    Raises:
        MisfitError: at a whole number among others that a float64 can not be.
    """
    if kind == pa.string():
        cells = [one if one is None else str(one) for one in cells]
    elif kind == pa.float64():
        for index, one in enumerate(cells):
            if isinstance(one, int) and int(float(one)) != one:
                raise MisfitError(
                    index,
                    f"expected a number that float64 can hold, got {quote(one)}",
                    "correct it, or convert the column to text in the query",
                )
        cells = [one if one is None else float(one) for one in cells]
    return pa.array(cells, kind)
