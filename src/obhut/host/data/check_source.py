"""Refuses keys of a declaration that do not fit where its rows come from.

::

    check_source(declaration, check)             # ConfigurationError, or nothing

Rules:

- A key that would say nothing is refused, and not passed over.
- Rows that are split by their order need one that stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from obhut.host.strict_toml import Check
from obhut.host.wording import enumerate_names, nearest, quote

from .declaration import DatasetDeclaration, Format, listed
from .sql import is_ordered, is_statement

_DATABASES: frozenset[Format | None] = frozenset({"sqlite", "duckdb"})

_LISTS: frozenset[Format | None] = frozenset({"parquet", "duckdb"})
"""Formats of tables whose cells may be lists."""

_OF_ARRAYS: frozenset[Format | None] = frozenset({"npz", "safetensors"})
"""Formats of files that hold several arrays by name."""

_LONGEST = 2**31
"""Elements of a sequence."""


def check_source(one: DatasetDeclaration, check: Check) -> None:
    """Refuse what the declared format has no meaning for, or that is not one table.

    Raises:
        ConfigurationError: naming the key.
    """
    for key, problem, advice in (
        *_query(one),
        *_pad(one),
        *_tensors(one),
        *_dtypes(one),
    ):
        check(False, key, problem, advice)


def _query(one: DatasetDeclaration) -> Iterator[tuple[str, str, str]]:
    query = one.query
    if query is None:
        return
    if one.kind not in _DATABASES:
        yield "query", f"has no meaning for {one.kind} files", "leave it out"
    elif not query.strip():
        yield "query", "expected SQL or the name of a table, got nothing", "write it"
    elif one.split and is_statement(query) and not is_ordered(query):
        yield (
            "query",
            "its rows come in any order, and split needs one that stays",
            "add ORDER BY",
        )


def _pad(one: DatasetDeclaration) -> Iterator[tuple[str, str, str]]:
    if one.pad is None:
        return
    if one.kind not in _LISTS and one.loader is None:
        yield (
            "pad",
            f"has no meaning for {one.kind} files, whose cells are no lists",
            "leave it out",
        )
    elif isinstance(one.pad, int) and not 1 <= one.pad <= _LONGEST:
        yield (
            "pad",
            f"expected 1 to {_LONGEST:,} elements, got {one.pad:,}",
            "write how many elements a row has",
        )


def _tensors(one: DatasetDeclaration) -> Iterator[tuple[str, str, str]]:
    """Check the names of several feature tensors and of their columns."""
    tensors = one.features
    if not isinstance(tensors, dict):
        return
    every = [name for name, chosen in tensors.items() if chosen == "*"]
    if len(every) > 1:
        yield (
            "features",
            f"{enumerate_names([quote(name) for name in every])} are the same columns",
            'write "*" once',
        )
    for chosen in tensors.values():
        for column, times in Counter(listed(chosen)).items():
            if times > 1:
                yield "features", f"{quote(column)} is listed twice", "remove one"


def _dtypes(one: DatasetDeclaration) -> Iterator[tuple[str, str, str]]:
    """Check that types are those of tensors that there are."""
    if not isinstance(one.dtype, dict):
        return
    if one.kind in _OF_ARRAYS or one.loader is not None:
        return  # of tensors that are known when they are loaded
    if not isinstance(one.features, dict):
        yield (
            "dtype",
            "expected one type, got a table: features are one tensor",
            'write dtype = "float32"',
        )
        return
    for name in one.dtype:
        if name not in one.features:
            like = nearest(name, one.features)
            yield (
                "dtype",
                f"{quote(name)} is none of the tensors of features",
                f"did you mean {quote(like)}?" if like else "name one of them",
            )
