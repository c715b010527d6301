"""Whether owners' data sets are the same columns, by what is public of them.

::

    owners = in_one_order(owners)                # by name, as the first owner has them
    found = compare(owners)
    print(found)                                 # column | bob | alice | differs in
    found.check()                                # AlignmentError, or nothing

Rules:

- Nothing is asked of an owner: types and sizes are known of whatever is open, names,
  classes and units of what is described.
- What is not public is unknown, and not taken for equal or for different.
- An order that differs is put right by names, at all owners alike; else it is an error.
- Of each fact the first owner who tells it is who others are compared with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from msgspec import structs

from obhut.client.described import listed
from obhut.client.hidden_dataset import HiddenDataset
from obhut.client.remote_dataset import RemoteDataset
from obhut.client.workers import RemoteWorker
from obhut.errors import AlignmentError
from obhut.host.printing import Table, Tabular, several
from obhut.protocol.messages import DatasetRows
from obhut.transports.grpc.description import DatasetDescription
from obhut.worker.tensors import DTYPE_NAMES

Owners: TypeAlias = Mapping[str, RemoteDataset]
"""The rows of each owner, by the owner's name."""

_UNKNOWN = "?"
_SHOWN = 60

_ADVICE = (
    "let the owners serve the same columns, or take those that all have, in one order: "
    'obhut.Federation(owners, aggregator, columns=["age", "sex"]). '
    "obhut.federated.compare(owners) shows all in a table"
)


@dataclass(frozen=True, slots=True)
class Difference:
    """Something in which an owner's data set is not like the first owner's.

    Attributes:
        owner: the owner's name.
        part: which tensor: ``features``, ``target``, …
        column: the column's name; empty for the whole tensor.
        kind: ``order``, ``missing``, ``type``, ``shape``, ``classes`` or ``unit``.
        text: it in words.
        mended: whether it makes no difference any more: columns of another order are
            taken in one order.
    """

    owner: str
    part: str
    column: str
    kind: str
    text: str
    mended: bool = False


@dataclass(frozen=True, slots=True)
class _Part:
    """What is known of one tensor of an owner's.

    Attributes:
        name: the part's.
        dtype: its element type.
        shape: the sizes of a row.
        own: the names of the owner's columns, in its order; None if they are private.
        used: those that are taken, in that order; likewise.
        by_name: whether they are taken by name.
        described: what the owner says; None of rows that were sent.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    own: tuple[str, ...] | None
    used: tuple[str, ...] | None
    by_name: bool
    described: DatasetDescription | None

    def place(self, column: str) -> int:
        """Return where a column is in the owner's own order, from 1; 0 for nowhere."""
        return (self.own or ()).index(column) + 1 if column in (self.own or ()) else 0

    @property
    def classes(self) -> str:
        """The texts of classes in order; empty if they are not told."""
        told = () if self.described is None else self.described.texts(self.name)
        return ", ".join(told)

    def categories(self, column: str) -> str:
        """Return the texts of a column's categories in order, likewise."""
        told = (self.described and self.described.categories) or {}
        return ", ".join(told.get(column, ()))

    def unit(self, column: str) -> str:
        """Return what a column is measured in; empty if that is not told."""
        return ((self.described and self.described.units) or {}).get(column, "")


@dataclass(frozen=True, repr=False)
class Comparison(Tabular):
    """Owners' data sets, column by column. It prints as a table.

    Attributes:
        owners: their names.
        differences: what differs, in the order of columns.
        unknown: the owners whose names of columns are not public.
    """

    owners: tuple[str, ...]
    differences: tuple[Difference, ...]
    unknown: tuple[str, ...]
    _lines: tuple[tuple[str, ...], ...] = field(repr=False)

    @property
    def agrees(self) -> bool:
        """Whether nothing differs that is known, or what differs was put right."""
        return all(one.mended for one in self.differences)

    def check(self) -> None:
        """Raise if something differs that was not put right.

        Raises:
            AlignmentError: naming each difference.
        """
        left = [one.text for one in self.differences if not one.mended]
        if left:
            raise AlignmentError(left, _ADVICE)

    @property
    def _table(self) -> Table:
        head = ("column", *self.owners, "differs in")
        more = len(self._lines) - _SHOWN
        notes = [f"and {more:,} columns more"] * (more > 0)
        if self.unknown:
            notes.append(
                f"{_UNKNOWN}: the names of columns of {', '.join(self.unknown)} are "
                "not public"
            )
        return Table(head, self._lines[:_SHOWN], notes)


def compare(owners: Owners) -> Comparison:
    """Compare owners' data sets column by column, from what is public.

    It compares order, missing columns, element types, the sizes of a row, classes and
    categories with their order, and units. Nothing is asked of an owner.

    Args:
        owners: the rows of each, by the owner's name.

    Returns:
        What was found; ``check`` raises it.
    """
    parts = {owner: _parts(data) for owner, data in owners.items()}
    least = min(len(each) for each in parts.values())
    differences: list[Difference] = []
    lines: list[tuple[str, ...]] = []
    for place in range(least):
        one = {owner: each[place] for owner, each in parts.items()}
        found = [*_differences(one)]
        differences += found
        lines += _table_of(one, found)
    for owner, each in parts.items():
        if len(each) > least:
            text = f"{owner} has {len(each)} tensors of each row, others {least}"
            name = each[least].name
            differences.append(Difference(owner, name, "", "missing", text))
    unknown = [owner for owner, each in parts.items() if each[0].used is None]
    return Comparison(tuple(owners), tuple(differences), tuple(unknown), tuple(lines))


def in_one_order(
    owners: Owners, columns: Sequence[str] | None = None
) -> dict[str, RemoteDataset]:
    """Return owners' rows with columns in one order.

    Where names are public at all owners, and they have the same columns in another
    order, all are taken by name, in the first owner's. Else they stay as they are.

    Args:
        owners: the rows of each, by the owner's name.
        columns: of the first tensor of all owners, in the order in which they are
            wanted; None for those that there are.

    Raises:
        DatasetNotFoundError: if an owner has no such column.
        CallError: if columns are given, and can't be taken by name.
        AlignmentError: if columns are given of rows that were sent.
    """
    parts = {owner: _parts(data) for owner, data in owners.items()}
    wanted: list[tuple[str, ...]] = []
    for place in range(min(map(len, parts.values()))):
        each = [several[place] for several in parts.values()]
        first = each[0].used or ()
        same = all(one.used and {*one.used} == {*first} for one in each)
        # What is taken by name by some is another computation than as it is.
        differ = len({(one.used, one.by_name) for one in each}) > 1
        wanted.append(first if same and differ else ())
    if columns is not None:
        wanted[0] = listed(columns)
    if not any(wanted):
        return dict(owners)
    return {owner: _taking(owner, data, wanted) for owner, data in owners.items()}


def public_columns(owners: Owners) -> tuple[str, ...] | None:
    """Return the names of the first tensor's columns, if all owners tell the same."""
    first, *others = (_parts(data)[0] for data in owners.values())
    if first.used is None or any(one.used != first.used for one in others):
        return None
    return first.used if len(first.used) == math.prod(first.shape) else None


def _taking(
    owner: str, data: RemoteDataset, wanted: Sequence[tuple[str, ...]]
) -> RemoteDataset:
    """Return an owner's rows, with columns by name."""
    worker = data.location
    if data.source is None or not isinstance(worker, RemoteWorker):
        raise AlignmentError(
            [f"{owner}'s columns have no names, since its rows were sent"],
            'use a data set of the worker, worker.dataset("name")',
        )
    before = [columns for _, columns in data.source.each()]
    wanted = [*wanted, *before[len(wanted) :]]
    chosen = tuple(after or own for after, own in zip(wanted, before, strict=True))
    again = worker.opened(structs.replace(data.source, columns=chosen))
    return again if data.only is None else again.taking(data.only)


def _parts(data: RemoteDataset) -> list[_Part]:
    """Return what is known of an owner's tensors."""
    if isinstance(data, HiddenDataset):
        looks = [(one.dtype, tuple(one.shape)) for one in data.looks]
    else:
        tensors: list[torch.Tensor] = [data.features, data.targets]
        looks = [(one.dtype, tuple(one.shape[1:])) for one in tensors]
    worker, source = data.location, data.source
    described = None
    if source is None:
        source = DatasetRows("", ("features", "target"))
    elif isinstance(worker, RemoteWorker):
        described = worker.datasets.get(source.dataset)
    found = []
    for (name, chosen), (dtype, shape) in zip(source.each(), looks, strict=True):
        own = None if described is None else (described.columns or {}).get(name)
        used, by_name = chosen or own, bool(chosen)
        look = (DTYPE_NAMES[dtype], shape)
        found.append(_Part(name, *look, own, used, by_name, described))
    return found


def _differences(parts: Mapping[str, _Part]) -> Iterator[Difference]:
    """Yield in what owners' tensors differ that are at one place."""
    first, one = next(iter(parts.items()))
    for owner, other in parts.items():
        if other.dtype != one.dtype:
            text = (
                f"{owner}'s {other.name} are {other.dtype}, {first}'s are {one.dtype}"
            )
            yield Difference(owner, other.name, "", "type", text)
    known = {owner: part for owner, part in parts.items() if part.used is not None}
    if len(known) < len(parts) or len({part.used for part in known.values()}) < 2:
        for owner, other in parts.items():
            if other.shape != one.shape:
                text = (
                    f"a row of {owner}'s {other.name} has the sizes "
                    f"{[*other.shape]}, of {first}'s {[*one.shape]}"
                )
                yield Difference(owner, other.name, "", "shape", text)
    yield from _told(parts, "", "classes", lambda part: part.classes)
    yield from _missing(known)
    yield from _orders(known)
    for column in _columns(known):
        yield from _told(
            known,
            column,
            "classes",
            lambda part, name=column: part.categories(name),  # type: ignore[misc] # bound here
        )
        yield from _told(
            known,
            column,
            "unit",
            lambda part, name=column: part.unit(name),  # type: ignore[misc] # bound here
        )


def _columns(parts: Mapping[str, _Part]) -> list[str]:
    """Return the names of all columns that owners use, each once."""
    return [*dict.fromkeys(name for one in parts.values() for name in one.used or ())]


def _missing(parts: Mapping[str, _Part]) -> Iterator[Difference]:
    """Yield which columns some owners have and others have not."""
    having = {owner: {*(part.used or ())} for owner, part in parts.items()}
    for column in _columns(parts):
        without = [owner for owner, names in having.items() if column not in names]
        having_it = ", ".join(owner for owner in parts if owner not in without)
        for owner in without:
            name = parts[owner].name
            text = f"{owner} has no column {column!r} in {name}, as {having_it} has"
            yield Difference(owner, name, column, "missing", text)


def _orders(parts: Mapping[str, _Part]) -> Iterator[Difference]:
    """Yield which owners have columns in another order, each once by its first."""
    if not parts:
        return
    first, one = next(iter(parts.items()))
    for owner, part in parts.items():
        shared = {*(one.used or ())} & {*(part.used or ())}
        mine, theirs = (
            [name for name in names or () if name in shared]
            for names in (part.own, one.own)
        )
        if mine == theirs:
            continue
        used = [
            [name for name in names or () if name in shared]
            for names in (part.used, one.used)
        ]
        column = next(a for a, b in zip(mine, theirs, strict=True) if a != b)
        text = (
            f"{owner} has the columns of {part.name} in another order than {first}, "
            f"from {column!r} on"
        )
        mended = used[0] == used[1]
        yield Difference(owner, part.name, column, "order", text, mended)


def _told(
    parts: Mapping[str, _Part],
    column: str,
    kind: str,
    tells: Callable[[_Part], str],
) -> Iterator[Difference]:
    """Yield where owners tell something else of a column, or of a tensor."""
    told = {owner: text for owner, part in parts.items() if (text := tells(part))}
    if not told:
        return
    first, known = next(iter(told.items()))
    for owner, text in told.items():
        if text != known:
            name = parts[owner].name
            what = f"{column!r} in {name}" if column else name
            said = f"{owner}'s {what} has the {kind} {text}, {first}'s has {known}"
            yield Difference(owner, name, column, kind, said)


def _table_of(
    parts: Mapping[str, _Part], differences: Sequence[Difference]
) -> Iterator[tuple[str, ...]]:
    """Yield a line for a tensor, and one for each of its columns."""
    known = [part for part in parts.values() if part.own]
    orders = [one for one in differences if one.kind == "order"]

    def kinds(column: str) -> str:
        found = [one.kind for one in differences if one.column == column]
        moved = orders and len({part.place(column) for part in known}) > 1
        if moved and "missing" not in found and "order" not in found:
            found.append("order")
        mended = all(one.mended for one in orders)
        right = {"order": "order (put right)"} if mended else {}
        return ", ".join(dict.fromkeys(right.get(one, one) for one in found))

    first = next(iter(parts.values()))
    cells = [
        " ".join(filter(None, (one.dtype, str([*one.shape]), _short(one.classes))))
        for one in parts.values()
    ]
    yield (f"({first.name})", *cells, kinds(""))
    for column in _columns(parts):
        yield (column, *(_cell(one, column) for one in parts.values()), kinds(column))


def _cell(part: _Part, column: str) -> str:
    """Return where a column is, its unit and its categories."""
    if part.used is None:
        return _UNKNOWN
    if column not in part.used:
        return "missing"
    about = filter(None, (part.unit(column), _short(part.categories(column))))
    return ": ".join((str(part.place(column)), *about))


def _short(texts: str) -> str:
    return several(texts.split(", "), 4) if texts else ""
