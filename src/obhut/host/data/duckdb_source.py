"""Rows that a query yields of a DuckDB database, through the extra ``obhut[duckdb]``.

::

    with DuckdbSource(declaration) as rows:
        for batch in rows.batches([0, 1]):
            ...

Rules:

- The database is opened for reading. A query is one statement that selects; it reads
  the database and no other file, loads no extension and changes no setting.
- One thread answers it, so that its rows come in the same order each time; what draws
  at random is refused.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from obhut.errors import DatasetError

from .declaration import DatasetDeclaration
from .source import Arrow, Lineless
from .sql import LISTING, order, refused, statement

_SETTINGS = (
    "SET threads = 1",
    "SET autoload_known_extensions = false",
    "SET autoinstall_known_extensions = false",
    "SET temp_directory = ''",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)
"""What is set before a query is read. The last two can not be taken back."""

_CELLS = 2**20
"""Cells of a batch of rows."""

_NOT_ANSWERED = "can not answer the query to its end"

_RANDOM = re.compile(
    r"\b(random|uuid\w*|gen_random_uuid|nextval|setseed)\s*\(|\bsample\b", re.IGNORECASE
)


class DuckdbSource(Lineless):
    """Rows of a DuckDB database: a ``Source``.

    Raises:
        DatasetError: if it is none, or does not understand the query; or if there is
            no DuckDB.
        OSError: if the file can not be opened.
    """

    names: Sequence[str]
    types: Sequence[Arrow]
    aside: Mapping[int, str] = {}

    def __init__(self, declaration: DatasetDeclaration) -> None:
        self._library = library = _library(declaration.file)
        self._name = declaration.file
        declaration.path.open("rb").close()  # which names the reason, if it fails
        with self._translated("is not a DuckDB database that can be opened"):
            self._database = library.connect(str(declaration.path), read_only=True)
        try:
            with self._translated("can not be read"):
                for setting in _SETTINGS:
                    self._database.execute(setting)
                tables = [
                    name for (name,) in self._database.sql(LISTING["duckdb"]).fetchall()
                ]
            self._query = statement(declaration, tables)
            self._check(declaration)
            with self._translated(_NOT_ANSWERED):
                self.names, self.types = self._look(declaration)
        except BaseException:
            self._database.close()
            raise
        self.notes: Sequence[str] = order(self._query)

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def batches(self, places: Sequence[int]) -> Iterator[Arrow]:
        """Yield record batches of the columns at these places, in this order.

        Raises:
            DatasetError: if the database is damaged, or an expression has no value.
        """
        with (
            self._translated(_NOT_ANSWERED),
            self._database.cursor() as cursor,
        ):
            rows = max(1, _CELLS // len(self.names))
            for batch in cursor.sql(self._query).to_arrow_reader(rows):
                yield batch.select(places)

    def _look(
        self, declaration: DatasetDeclaration
    ) -> tuple[Sequence[str], Sequence[Arrow]]:
        """Return names and types of what the query yields."""
        try:
            looked = self._database.sql(self._query)
            with looked.limit(0).to_arrow_reader() as none:
                return looked.columns, none.schema.types
        except (
            self._library.ProgrammingError,
            self._library.NotSupportedError,
            self._library.PermissionException,
        ) as error:
            # These are found before a row is read, and quote the query alone.
            raise refused(declaration, str(error)) from error

    def _check(self, declaration: DatasetDeclaration) -> None:
        """Refuse what is no single query, or another one each time."""
        try:
            found = self._database.extract_statements(self._query)
        except self._library.Error as error:
            raise refused(declaration, str(error)) from error
        if [one.type for one in found] != [self._library.StatementType.SELECT]:
            raise refused(declaration, "it is not one SELECT")
        drawn = _RANDOM.search(self._query)
        if drawn and declaration.query:
            raise refused(declaration, f"{drawn[0]} yields other rows each time")

    @contextmanager
    def _translated(self, problem: str) -> Iterator[None]:
        try:
            yield
        except (self._library.Error, OSError, RuntimeError) as error:
            # Without the library's words: they may quote a cell.
            raise DatasetError(
                self._name,
                problem,
                "try it with duckdb: another program may have it open, or the file be "
                "damaged",
            ) from error


def _library(file: str) -> Any:
    """Return the module."""
    try:
        return importlib.import_module("duckdb")
    except ModuleNotFoundError as error:
        raise DatasetError(
            file,
            "needs duckdb, which is not installed",
            "run: pip install 'obhut[duckdb]'",
        ) from error
