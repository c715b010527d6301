"""What a worker says of itself to those who may ask.

Leak: all of it leaves the worker; it is what its owner declared public.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from msgspec import Struct

from obhut.host.data.datasets import Dataset
from obhut.host.printing import Table, Tabular, several

_OURS = frozenset(("features", "target", "lengths", "target_lengths"))
"""Names that tell nothing of a file: all data sets may have them."""

_SHOWN = 60
"""Columns that are printed at most."""


class DatasetDescription(Tabular, Struct, frozen=True):
    """A data set, as far as it is public.

    It prints as a table, a line for each column.

    Attributes:
        name: what it is found by.
        tags: what it is searched by.
        description: a sentence.
        parts: the tensors that it is made of. If names are private, ``features`` and
            ``target`` alone, which tell nothing; who has another from the owner can
            use it.
        columns: the names of columns, by part; None if names are private, and so for
            what follows.
        dtypes: element types, by part; none if they are private.
        rows: how many.
        rounded: whether ``rows`` is rounded.
        shapes: the sizes of a row, by part, where a policy hides how many there are.
        hidden: whether it does: then programs go through the rows, and no part is
            loaded.
        classes: the texts of the target's classes, of which the first is 0; empty if it
            has none.
        categories: those of columns that are categories, by column.
        units: what columns are measured in, by column.
    """

    name: str
    tags: tuple[str, ...] = ()
    description: str = ""
    parts: tuple[str, ...] = ()
    columns: dict[str, tuple[str, ...]] | None = None
    dtypes: dict[str, str] = {}
    rows: int | None = None
    rounded: bool = False
    shapes: dict[str, tuple[int, ...]] = {}
    hidden: bool = False
    classes: tuple[str, ...] | None = None
    categories: dict[str, tuple[str, ...]] | None = None
    units: dict[str, str] | None = None

    @property
    def count(self) -> str:
        """How many rows there are, in words; empty where that is not told."""
        if self.rows is None:
            return "hidden" if self.hidden else ""
        return f"about {self.rows:,}" if self.rounded else f"{self.rows:,}"

    def texts(self, part: str) -> tuple[str, ...]:
        """Return the texts of a part's classes, as far as they are told."""
        return (self.classes or ()) if part == "target" else ()

    def lines(self) -> Iterator[tuple[str, str, str, str]]:
        """Yield each part: its name, element type and columns, and classes."""
        units = self.units or {}
        for part in self.parts:
            names = [
                f"{one} ({units[one]})" if one in units else one
                for one in (self.columns or {}).get(part, ())
            ]
            classes = several(self.texts(part))
            yield part, self.dtypes.get(part, ""), several(names), classes

    @property
    def _table(self) -> Table:
        head = ("part", "column", "type", "unit", "classes")
        lines = []
        for part in self.parts:
            dtype = self.dtypes.get(part, "")
            for column in (self.columns or {}).get(part) or ("",):
                unit = (self.units or {}).get(column, "")
                texts = (self.categories or {}).get(column) or self.texts(part)
                lines.append((part, column, dtype, unit, several(texts)))
        rows = "rows hidden" if self.count == "hidden" else f"{self.count} rows"
        said = [rows] * bool(self.count)
        said += [
            *map(str, self.tags),
            *([self.description] if self.description else []),
        ]
        title = f"{self.name}: {', '.join(said)}" if said else self.name
        more = len(lines) - _SHOWN
        notes = [f"and {more:,} columns more"] * (more > 0)
        if self.columns is None:
            notes.append("the names of its columns are not public")
        return Table(head, lines[:_SHOWN], notes, title)


def listing(described: Collection[DatasetDescription], title: str = "") -> Table:
    """Return data sets as a table, a line for each part."""
    head = ("data set", "rows", "part", "type", "columns", "classes", "tags", "")
    lines = []
    for one in described:
        about = (" ".join(one.tags), one.description)
        for place, line in enumerate([*one.lines()] or [("",) * 4]):
            first = not place
            begin = (one.name, one.count) if first else ("", "")
            lines.append((*begin, *line, *(about if first else ("", ""))))
    return Table(head, lines, title=title)


def public_parts(parts: Collection[str], *, named: bool) -> tuple[str, ...]:
    """Return the names of parts that are told.

    Leak: this is the one place where names of tensors become public.

    Args:
        parts: the names of all.
        named: whether the owner made names public.
    """
    return tuple(sorted(parts if named else _OURS.intersection(parts)))


def describe(dataset: Dataset) -> DatasetDescription:
    """Return what is said of a data set."""
    public = dataset.public
    parts = public_parts(dataset.tensors, named=public.names is not None)
    return DatasetDescription(
        str(dataset.name),
        dataset.tags,
        dataset.description,
        parts,
        None if public.names is None else dict(public.names),
        {part: public.dtypes[part] for part in parts if public.dtypes is not None},
        public.rows,
        public.rounded,
        {part: public.shapes[part] for part in parts if public.shapes is not None},
        dataset.hidden,
        public.classes,
        None if public.categories is None else dict(public.categories),
        None if public.units is None else dict(public.units),
    )


class WorkerDescription(Struct, frozen=True):
    """A worker, as far as it is public.

    Attributes:
        name: the worker's name.
        id: the hash of its key.
        sessions: how many it serves at present.
        datasets: its data, for those who may open a session.
        attached: ids of the workers that are attached to it, for those who may
            connect to them. Whether they are who it says only they can prove.
    """

    name: str
    id: str
    sessions: int
    datasets: tuple[DatasetDescription, ...] = ()
    attached: tuple[str, ...] = ()
