"""The data sets of a worker, as far as their owner made them public.

::

    bob.datasets                                 # prints as a table
    bob.datasets["diagnosis"].columns["features"]

Rule: what is listed after a wrong name is public, the nearest first.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from obhut.errors import CallError, DatasetNotFoundError
from obhut.transports.grpc.description import DatasetDescription, listing


class DescribedDatasets(Mapping[str, DatasetDescription]):
    """Descriptions by the names of data sets.

    Args:
        worker: whose they are.
        described: the descriptions.
    """

    def __init__(self, worker: str, described: Collection[DatasetDescription]) -> None:
        self._worker = worker
        self._described = {one.name: one for one in described}

    def __getitem__(self, name: str) -> DatasetDescription:
        found = self._described.get(name)
        if found is None:
            raise _absent(self._worker, "data set", str(name), self)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._described)

    def __len__(self) -> int:
        return len(self._described)

    def __repr__(self) -> str:
        if not self._described:
            return f"no data sets at {self._worker} are public"
        return str(listing(self._described.values()))

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        return listing(self._described.values(), f"data sets at {self._worker}").html()


def check_part(one: DatasetDescription, part: str, worker: str) -> None:
    """Check that a data set has a part, as far as that is known.

    Where names are private, whoever was told one by the owner can use it.

    Raises:
        DatasetNotFoundError: if it has none of this name.
    """
    if one.columns is not None and part not in one.parts:
        raise _absent(f"{one.name!r} at {worker}", "part", part, one.parts)


def listed(columns: Iterable[str]) -> tuple[str, ...]:
    """Return names of columns that somebody wrote.

    Raises:
        CallError: if they are no list of names, there is none, or one comes twice.
    """
    names = (columns,) if isinstance(columns, str) else tuple(columns)
    texts = all(isinstance(name, str) for name in names)
    if isinstance(columns, str) or not names or not texts:
        raise CallError(
            f'expected a list of columns, got {columns!r}: columns=["age", "sex"]'
        )
    if len({*names}) < len(names):
        raise CallError(f"expected each column once, got {[*names]}")
    return names


def check_columns(
    one: DatasetDescription, part: str, columns: Sequence[str], worker: str
) -> None:
    """Check that columns can be chosen by their names.

    Raises:
        CallError: if names are private.
        DatasetNotFoundError: if there is none of a name.
    """
    if one.columns is None:
        raise CallError(
            f"the names of columns of {one.name!r} at {worker} are not public, so that "
            "none is found by its name: ask its owner for public = { names = true }"
        )
    known = one.columns.get(part, ())
    for name in columns:
        if name not in known:
            where = f"{part!r} of {one.name!r} at {worker}"
            raise _absent(where, "column", name, known)


def _absent(
    where: str, kind: str, name: str, known: Collection[str]
) -> DatasetNotFoundError:
    """Return the error that nothing has a name."""
    close = difflib.get_close_matches(name, [*known], 3)
    listed = [*close, *(one for one in known if one not in close)]
    meant = close[0] if close else ""
    return DatasetNotFoundError(where, kind, name, listed, meant)
