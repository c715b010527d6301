"""What an owner asks a database.

Rule: a query of one word, or none, is a table's name; a database is never written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from obhut.errors import DatasetError
from obhut.host.wording import enumerate_names, nearest, quote

from .declaration import DatasetDeclaration, Format

LISTING: Mapping[Format | None, str] = {
    "sqlite": "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') "
    "AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name",
    "duckdb": "SELECT table_name FROM information_schema.tables "
    "WHERE table_schema = current_schema() ORDER BY table_name",
}
"""What yields the names of a database's tables and views, by its format."""

_ALL = "SELECT * FROM "

_SHOWN = 8
"""Names of tables that an error lists."""


def statement(declaration: DatasetDeclaration, tables: Sequence[str]) -> str:
    """Return the statement that yields a data set's rows, without its semicolon.

    Args:
        declaration: the data set.
        tables: names of the database's tables and views.

    Raises:
        DatasetError: if there is no such table, or it is open which one is meant.
    """
    query = (declaration.query or "").strip().rstrip(";").rstrip()
    if not query and len(tables) == 1:
        query = tables[0]
    if query in tables:
        return f"{_ALL}{quoted(query)}"
    if query and is_statement(query):
        return query
    file = declaration.file
    if not tables:
        raise DatasetError(file, "has no tables", "name another file")
    names = [quote(one) for one in tables[:_SHOWN]]
    has = f"has {enumerate_names(names)}"
    if len(tables) > _SHOWN:
        has = f"has {len(tables):,} tables, such as {enumerate_names(names)}"
    if not query:
        raise DatasetError(file, has, f"name one, such as query = {names[0]}")
    like = nearest(query, tables)
    raise DatasetError(
        file,
        f"has no table {quote(query)}; it {has}",
        f"did you mean {quote(like)}?" if like else "correct query",
    )


def is_statement(query: str) -> bool:
    """Return whether a query is more than the name of a table, as far as it shows."""
    return not query.strip().isidentifier()


def quoted(name: str) -> str:
    """Return a name as SQL writes it, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def order(statement: str) -> Sequence[str]:
    """Return what the owner should know of the order of the rows."""
    if statement.startswith(f'{_ALL}"') or is_ordered(statement):
        return ()
    return (
        "the query has no ORDER BY: in which order its rows come is the database's to "
        "say, and it may change",
    )


def is_ordered(query: str) -> bool:
    """Return whether a query says in which order its rows come."""
    return re.search(r"\border\s+by\b", query, re.IGNORECASE) is not None


def refused(declaration: DatasetDeclaration, why: str) -> DatasetError:
    """Return the error for a query that the database does not understand.

    Args:
        declaration: the data set.
        why: its words, which were said before it read any row.
    """
    return DatasetError(
        declaration.file,
        f"can not answer the query: {quote(why.splitlines()[0] if why else why)}",
        "correct query",
    )
