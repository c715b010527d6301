"""A table's columns as tensors: which rows, and what is said of them.

::

    with CsvSource(declaration) as source:       # or another source
        loaded, report = table.read(declaration, source)

Rules:

- Rows come in blocks, and columns of a block are read side by side: pyarrow and NumPy
  let other threads run.
- Rows at the end that are empty throughout are none.
- What is wrong with a column is said after a look at the rest of it, where that tells
  its owner what to do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np

from obhut.errors import DatasetError
from obhut.host.wording import quote, toml_key

from . import where
from .arrays import Array
from .arrow import pa
from .column_choice import Unnamed, select
from .declaration import DatasetDeclaration
from .lists import LengthError, elements, longest
from .number_cells import NUMBER, Marks, TextError
from .numbers import Elements
from .report import ColumnReport, Report
from .source import Arrow, Place, Source
from .tally import ColumnError
from .tensor_maker import Group, Maker, Part
from .words import BOOLEANS, DATES, Mask, blank_mask, missing_mask

_THREADS = min(os.cpu_count() or 1, 8)

_SHOWN = 8
"""Texts that an advice lists at most."""

_ADVICE = 150
"""Characters of the texts in it."""


def read(
    declaration: DatasetDeclaration, source: Source
) -> tuple[tuple[tuple[Part, Array], ...], Report]:
    """Read the declared columns of the declared rows.

    Raises:
        DatasetError: naming line, row and column.
        OSError: if the source can not be read, or there is no memory.
    """
    try:
        return _Reading(declaration, source).run()
    finally:
        pa.default_memory_pool().release_unused()


class _Reading:
    """A table while it is read."""

    def __init__(self, declaration: DatasetDeclaration, source: Source) -> None:
        self._declared = declaration
        self._file = declaration.file
        self._source = source
        chosen, unnamed = select(declaration, source)
        self._unnamed = {place: Unnamed() for place in unnamed}
        numbers = tuple(
            found
            for one in declaration.missing_values
            if (found := _number(one)) is not None
        )
        self._marks = Marks(
            declaration.decimal,
            declaration.thousands or "",
            frozenset(map(str, declaration.missing_values)),
            numbers,
        )
        self._where = None
        if declaration.where is not None:
            self._where = where.parse(self._file, declaration.where)
            where.check(self._file, self._where, source.names)
        conditions = [
            source.names.index(name)
            for name in (self._where.names if self._where else ())
        ]
        self._places = sorted(
            {place for one in chosen for place in one.places}
            | {*unnamed}
            | {*conditions}
        )
        self._makers = [
            Maker(declaration, source, one, self._marks, _THREADS) for one in chosen
        ]
        self._groups = [group for maker in self._makers for group in maker.groups]
        self._rows = self._used = self._empty = self._dropped = 0

    def run(self) -> tuple[tuple[tuple[Part, Array], ...], Report]:
        """Read it."""
        with ExitStack() as stack:
            for maker in self._makers:
                stack.enter_context(maker.writer)
            pool = stack.enter_context(ThreadPoolExecutor(_THREADS))
            blocks = self._source.batches(self._places)
            for batch in self._without_empty_end(blocks):
                self._take(batch, pool)
            self._check()
            loaded = []
            for maker in self._makers:
                failed = maker.patch(self._used)
                if failed is not None:
                    raise self._column_error(*failed)
                loaded.append(
                    (maker.part, maker.writer.finish(maker.part.shape(self._used)))
                )
            return tuple(loaded), self._report()

    def _take(self, batch: Arrow, pool: ThreadPoolExecutor) -> None:
        """Convert a block and write it."""
        begin = self._rows + 1
        rows = np.arange(begin, begin + batch.num_rows)
        self._rows += batch.num_rows
        cells = dict(zip(self._places, batch.columns, strict=True))
        for place, unnamed in self._unnamed.items():
            unnamed.take(cells[place])
            if not unnamed.reason:
                raise self._error(
                    "expected an index or nothing in a column without a name",
                    "give it a name, or leave it out by "
                    f"exclude = [{quote(self._source.names[place])}]",
                    place,
                )
        if self._where is not None:
            mask = self._meets(cells, rows)
            if not mask.all():
                rows = rows[mask]
                selected = pa.array(mask)
                cells = {place: one.filter(selected) for place, one in cells.items()}
        if not len(rows):
            return
        self._all(pool, lambda group: group.read(cells, rows))
        keep = None
        if self._declared.missing == "drop":
            absent = [one.nothing for one in self._groups if one.nothing is not None]
            if absent:
                keep = ~np.logical_or.reduce([one.any(axis=0) for one in absent])
                self._dropped += len(rows) - int(keep.sum())
                rows = rows[keep]
        for maker in self._makers:
            maker.begin(len(rows))
        by_group = {id(g): maker for maker in self._makers for g in maker.groups}
        self._all(
            pool, lambda group: group.settle(keep, rows, by_group[id(group)].block)
        )
        for maker in self._makers:
            maker.write()
        self._used += len(rows)

    def _all(self, pool: ThreadPoolExecutor, work: Callable[[Group], None]) -> None:
        """Do something with all groups, side by side."""

        def one(group: Group) -> ColumnError | None:
            try:
                work(group)
            except ColumnError as error:
                return error
            return None

        results = list(pool.map(one, self._groups))
        for group, error in zip(self._groups, results, strict=True):
            if error is not None:
                raise self._column_error(group, error)

    def _column_error(self, group: Group, error: ColumnError) -> DatasetError:
        """Return the error for the owner."""
        place = group.place_of(error.place)
        misfit = error.misfit
        advice = misfit.advice
        if isinstance(misfit, TextError) and not advice:
            advice = self._advice(group, place)
        elif isinstance(misfit, LengthError):
            most = longest(self._source, place)
            advice = f"write pad = {most}: the longest has {most:,} elements"
        return self._error(misfit.problem, advice, place, error.row)

    def _error(
        self, problem: str, advice: str, place: int, row: int = 0
    ) -> DatasetError:
        at = Place(self._file, 0, self._source.line)
        if row:
            at = self._source.place_of(row)
        name = quote(self._source.names[place])[1:-1]
        return DatasetError(at.file, problem, advice, name, at.row, at.line)

    def _meets(self, cells: Mapping[int, Arrow], rows: Elements) -> Mask:
        """Return which rows the condition takes."""
        if self._where is None:
            return np.ones(len(rows), np.bool_)
        named = {self._source.names[place]: one for place, one in cells.items()}
        try:
            return self._where.meets(
                {name: named[name] for name in self._where.names}, self._marks
            )
        except where.CellError as error:
            place = self._source.names.index(error.name)
            misfit = error.misfit
            row = int(rows[misfit.index]) if misfit.index >= 0 else 0
            advice = misfit.advice or (
                "compare it with a text in quotes, or correct the cell"
            )
            raise self._error(misfit.problem, advice, place, row) from None

    def _without_empty_end(self, batches: Iterator[Arrow]) -> Iterator[Arrow]:
        """Yield blocks without the rows at the end that are empty throughout."""
        held: list[Arrow] = []
        for batch in batches:
            empty = _empty_end(batch)
            if empty < batch.num_rows:
                yield from held
                held = []
                yield batch.slice(0, batch.num_rows - empty)
            if empty:
                held.append(batch.slice(batch.num_rows - empty))
        count = sum(batch.num_rows for batch in held)
        if not count:
            return
        # Only what was written as lines has such an end.
        is_text = self._source.place_of(1).line > 0
        left = count - (self._also_empty(count) if is_text else 0)
        self._empty = count - left
        for batch in held:
            if left > 0:
                yield batch.slice(0, left)
                left -= batch.num_rows

    def _also_empty(self, count: int) -> int:
        """Return how many rows at the end are empty in columns that are not used."""
        others = [
            place
            for place in range(len(self._source.names))
            if place not in {*self._places}
        ]
        if not others:
            return count
        empty = 0
        for batch in self._source.batches(others):
            found = _empty_end(batch)
            empty = found + (empty if found == batch.num_rows else 0)
        return min(empty, count)

    def _check(self) -> None:
        """Refuse what only the whole table tells."""
        if not self._used:
            what, advice = "has no rows", "add rows to it"
            if self._source.line:
                what = "has a header and no rows"
            if self._rows:
                what = f"has {self._rows:,} rows, of which none is used"
                advice = "correct where, or missing"
            raise DatasetError(self._file, what, advice)
        for group in self._groups:
            try:
                group.tally.check()
            except ColumnError as error:
                raise self._column_error(group, error) from None

    def _report(self) -> Report:
        """Return what the table is made of."""
        columns: dict[int, list[ColumnReport]] = {}
        names, types = self._source.names, self._source.types
        for maker in self._makers:
            for group in maker.groups:
                at = 0
                for column, place in zip(group.columns, group.places, strict=True):
                    columns.setdefault(place, []).append(
                        group.report(column, at, str(types[place]))
                    )
                    at += len(column.outputs)
        aside = {
            **self._source.aside,
            **{place: one.reason for place, one in self._unnamed.items()},
        }
        found = []
        for place, name in enumerate(names):
            note = aside.get(place, "")
            note = f"left out: {note}" if note else ""
            found += columns.get(place) or [
                ColumnReport(name, str(types[place]), note=note)
            ]
        notes = [*self._source.notes]
        for count, what in (
            (self._empty, "empty rows at the end, left out"),
            (self._rows - self._used - self._dropped, "rows that do not meet where"),
            (self._dropped, "rows with a missing value, left out"),
        ):
            if count:
                notes.append(f"{what}: {count:,}")
        return Report(tuple(found), self._rows, self._used, tuple(notes))

    def _advice(self, group: Group, place: int) -> str:
        """Return what to do about text in a column: it depends on all of it."""
        name = toml_key(self._source.names[place])
        is_target = group.tensor == "target"
        other = "correct the cell, or " + (
            "list the texts in classes" if is_target else "leave the column out"
        )
        try:
            texts, numbers = self._texts(place)
        except DatasetError:
            return other
        if len(texts) > _SHOWN:
            return other
        listed = ", ".join(map(quote, texts))
        if numbers and not any(
            re.search(r"\d", one) for one in texts if one[:1] != "#"
        ):
            return (
                f"write missing_values = [{listed}] if it stands for no value; or "
                f"{other}"
            )
        if is_target:
            return f"correct the cell, or list the texts in classes = [{listed}]"
        if numbers:
            return other
        if all(one.lower() in BOOLEANS for one in texts):
            return f'write encode = {{ {name} = "boolean" }}, or leave the column out'
        ways = [way for way, one in DATES.items() if all(map(one.fullmatch, texts))]
        if ways:
            written = [
                '"days"' if way == "iso" else f'{{ days = "{way}" }}' for way in ways
            ]
            said = " or ".join(f"{{ {name} = {one} }}" for one in written)
            return f"write encode = {said}, or leave the column out"
        if len(listed) > _ADVICE:
            return f"list its texts in encode, or {other}"
        return f"write encode = {{ {name} = [{listed}] }}, or leave the column out"

    def _texts(self, place: int) -> tuple[Sequence[str], bool]:
        """Return a column's first texts that are no numbers, and whether it has any."""
        texts: dict[str, None] = {}
        numbers = False
        for batch in self._source.batches([place]):
            cells = elements(batch.column(0))
            kinds = cells.cast(pa.string()).unique().to_pylist()
            absent = missing_mask(pa.array(kinds, pa.string()), self._marks.missing)
            for one, is_absent in zip(kinds, absent, strict=True):
                if is_absent:
                    continue
                if re.fullmatch(NUMBER, one.strip()):
                    numbers = True
                else:
                    texts[one.strip()] = None
                if len(texts) > _SHOWN:
                    return tuple(texts), numbers
        return tuple(texts), numbers


def _empty_end(batch: Arrow) -> int:
    """Return how many rows at the end of a block are empty."""
    last = batch.num_rows - 1
    if last < 0 or not all(blank_mask(one.slice(last))[0] for one in batch.columns):
        return 0
    empty = np.logical_and.reduce([blank_mask(one) for one in batch.columns])
    return len(empty) if empty.all() else int(empty[::-1].argmin())


def _number(value: str | float) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None
