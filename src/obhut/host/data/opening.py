"""The rows of a declared table, whatever it is stored in.

::

    with opened(declaration) as rows:            # a Source
        rows.names

Rule: nobody but its owner may change a file, or put another in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from . import parts
from .csv_source import CsvSource
from .declaration import DatasetDeclaration, Format
from .duckdb_source import DuckdbSource
from .parquet_source import ParquetSource
from .source import Source
from .sqlite_source import SqliteSource

SOURCES: Mapping[Format, Callable[[DatasetDeclaration], Source]] = {
    "csv": CsvSource,
    "parquet": ParquetSource,
    "sqlite": SqliteSource,
    "duckdb": DuckdbSource,
}
"""What opens a table, by its format."""

_IN_PARTS: frozenset[Format] = frozenset({"csv", "parquet"})
"""Formats of tables that may be in several files."""


def opened(declaration: DatasetDeclaration, kind: Format) -> Source:
    """Open a table.

    Args:
        declaration: the data set.
        kind: its format, which is one of ``SOURCES``.

    Raises:
        DatasetError: if it is not what it is declared to be.
        OSError: if a file can not be read.
        UnsafeFileError: if others could change it.
    """
    source = SOURCES[kind]
    if kind not in _IN_PARTS:
        parts.check(declaration.path)
        return source(declaration)
    found = parts.find(declaration)
    return (
        parts.PartsSource(declaration, found, source) if found else source(declaration)
    )
