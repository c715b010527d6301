"""Tensors that are made of a table's columns, block by block.

::

    maker = Maker(declaration, source, chosen, marks, threads)
    for group in maker.groups:
        group.read(cells, rows)              # of a block; groups side by side
    maker.begin(rows)
    for group in maker.groups:
        group.settle(keep, rows, maker.block)
    maker.write()
    maker.patch(rows)                        # at the end
    maker.writer.finish(maker.part.shape(rows))

Rules:

- A group of columns is read by one thread, and nobody else looks at it meanwhile.
- What a whole column decides, such as its mean, is written when it is known, and
  before the memory is sealed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from obhut.errors import DatasetError
from obhut.host.wording import quote, toml_key

from .arrays import ArrayWriter
from .column_choice import Chosen
from .columns import Categories, Column, Dates, make
from .declaration import DatasetDeclaration, Fill, Pad
from .lists import Lengths, Lists, is_list, sizes_of
from .number_cells import Marks
from .numbers import Elements, MisfitError, narrowed, widened
from .report import ColumnReport
from .source import Arrow, Source
from .tally import ColumnError, Tally
from .words import Mask


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor that is made of a table.

    Attributes:
        tensor: its name: ``features``, ``target``, or as declared.
        columns: the names of its columns, in order; none of one that is of lists.
        sizes: of a row.
        dtype: the element type.
        places: by output where the column is in the table, from 0.
    """

    tensor: str
    columns: tuple[str, ...]
    sizes: tuple[int, ...]
    dtype: str
    places: tuple[int, ...]

    def shape(self, rows: int) -> tuple[int, ...]:
        """Return the tensor's shape."""
        return (rows, *self.sizes)


@dataclass(slots=True)
class Group:
    """Columns of a tensor that one thread reads, and their block."""

    tensor: str
    columns: Sequence[Column]
    places: Sequence[int]
    begin: int
    dtype: str
    missing: str | Fill
    tally: Tally = field(init=False)
    values: Elements = field(init=False)
    nothing: Mask | None = None
    holes: list[tuple[int, int, Elements]] = field(default_factory=list)
    _settled: int = 0

    def __post_init__(self) -> None:
        names = [name for column in self.columns for name in column.outputs]
        self.tally = Tally(names, self.dtype)

    def read(self, cells: Mapping[int, Arrow], rows: Elements) -> None:
        """Read a block."""
        found: list[Elements] = []
        absent: list[tuple[int, int, Mask]] = []
        at = 0
        for column, place in zip(self.columns, self.places, strict=True):
            width = len(column.outputs)
            one = cells[place]
            try:
                values, missing = column.read(one)
                if missing is not None:
                    self._check_missing(column, one, missing)
                    absent.append((at, width, missing))
            except MisfitError as error:
                row = int(rows[error.index]) if error.index >= 0 else 0
                raise ColumnError(at, row, error) from None
            if column.inexact_at >= 0:
                shown = quote(str(one[column.inexact_at].as_py()).strip())
                self.tally.lose(at, int(rows[column.inexact_at]), shown.strip('"'))
            found.append(values)
            at += width
        if len(found) == 1:
            self.values = found[0].reshape(at, -1)
        else:
            self.values = np.vstack(found)
        self.nothing = None
        if absent:
            self.nothing = np.zeros(self.values.shape, np.bool_)
            for first, width, missing in absent:
                self.nothing[first : first + width] = missing

    def settle(self, keep: Mask | None, rows: Elements, block: Elements) -> None:
        """Put the block's values into a tensor's rows."""
        values, nothing = self.values, self.nothing
        if keep is not None:
            values, nothing = values[:, keep], None
        self.tally.take(values, nothing, rows)
        at = 0
        for column in self.columns:
            width = len(column.outputs)
            if column.categories:
                column.count(
                    values[at : at + width], None if nothing is None else nothing[at]
                )
            at += width
        if nothing is not None:
            values = self._fill(values, nothing)
        out = block[:, self.begin : self.begin + len(values)]
        if len(values) < values.shape[1]:
            for place, column in enumerate(values):
                out[:, place] = column  # faster than all at once, if there are few
        else:
            np.copyto(out, values.T, casting="unsafe")
        self._settled += values.shape[1]

    def _fill(self, values: Elements, nothing: Mask) -> Elements:
        """Return values with what stands where there is none."""
        if not isinstance(self.missing, Fill):
            return np.where(nothing, math.nan, values)
        fill = self.missing.fill
        if isinstance(fill, str):
            if fill == "mean":
                self.tally.sum(values, nothing)
            bits = np.packbits(nothing, axis=1)
            self.holes.append((self._settled, values.shape[1], bits))
            return np.where(nothing, 0, values)
        if not isinstance(fill, dict):
            return np.where(nothing, fill, values)
        by_output = [
            fill.get(column.name, 0.0)
            for column in self.columns
            for _ in column.outputs
        ]
        return np.where(nothing, np.array(by_output)[:, np.newaxis], values)

    def place_of(self, output: int) -> int:
        """Return where the column is in the table that an output comes from."""
        widths = [len(column.outputs) for column in self.columns]
        return self.places[int(np.searchsorted(np.cumsum(widths), output, "right"))]

    def patch(self, whole: Elements) -> None:
        """Put what is computed of a column where nothing was.

        Args:
            whole: (rows, columns) of the tensor, which can be written to.

        Raises:
            ColumnError: if it is no value of the tensor's type, or there is none.
        """
        holes = np.zeros((len(self.tally.count), len(whole)), np.bool_)
        for begin, count, bits in self.holes:
            unpacked = np.unpackbits(bits, axis=1, count=count)
            holes[:, begin : begin + count] = unpacked
        at = 0
        for column in self.columns:
            width = len(column.outputs)
            hole = holes[at]
            if hole.any():
                first = self.begin + at
                part = whole[:, first : first + width]
                part[hole] = self._computed(column, at, part[~hole])
            at += width

    def _computed(self, column: Column, at: int, part: Elements) -> Elements:
        """Return what fills a column: (outputs,), as the tensor holds it."""
        fill = self.missing.fill if isinstance(self.missing, Fill) else ""
        problem = ""
        if not len(part):
            problem = "has no value in any row that is used"
        elif fill == "most frequent":
            kinds, times = np.unique(part, axis=0, return_counts=True)
            return np.asarray(kinds[times.argmax()])
        else:
            value = self.tally.sums[at] / self.tally.count[at]
            if fill == "median":
                value = np.median(widened(part[:, 0], self.dtype)).item()
            column.note = f"filled with {value:.6g}"
            if "float" in self.dtype:
                return narrowed(np.array([value]), self.dtype)
            if value == math.trunc(value):
                return np.array([value]).astype(self.dtype)
            problem = f"has {fill} {value:.6g}, which is no {self.dtype}"
        raise ColumnError(
            at,
            0,
            MisfitError(
                -1, problem, 'write another fill, such as "most frequent", or "drop"'
            ),
        )

    def report(self, column: Column, at: int, stored: str) -> ColumnReport:
        """Return what a column is made of.

        Args:
            column: the column.
            at: the place of its first output.
            stored: its type in the table.
        """
        tally = self.tally
        notes = [column.note] if column.note else []
        if column.numeric:
            notes += [
                f"{number:g} in {times:,} rows: missing_values = [{number:g}]?"
                for number, times in tally.sentinels(at)
            ]
            if step := tally.step(at):
                notes.append(f'rounded to steps of {step:g}: dtype = "float64"?')
        known = column.numeric and tally.count[at] > 0
        counted = (tally.missing[at], tally.least[at], tally.greatest[at])
        if len(column.outputs) > 1:
            its = slice(at, at + len(column.outputs))
            known = column.numeric and bool(tally.count[its].any())
            counted = (
                tally.missing[its].max(),
                tally.least[its].min(),
                tally.greatest[its].max(),
            )
        missing, least, greatest = counted
        counts = [(one, column.counts[one]) for one in column.categories]
        return ColumnReport(
            column.name,
            stored,
            f"{self.tensor}, {self.dtype}",
            int(missing),
            float(least) if known else None,
            float(greatest) if known else None,
            tuple(counts),
            "; ".join(notes),
        )

    def _check_missing(self, column: Column, cells: Arrow, missing: Mask) -> None:
        """Refuse what is missing, unless it is declared what it becomes."""
        policy, advice = self.missing, ""
        is_float = "float" in self.dtype
        if policy == "drop":
            return
        if policy == "nan":
            if is_float:
                return
            advice = f'{self.dtype} has no NaN: correct it, or write missing = "drop"'
        elif isinstance(policy, Fill):
            fill = policy.fill
            number = fill.get(column.name) if isinstance(fill, dict) else fill
            several = isinstance(column, Categories | Dates) and column.outputs[1:]
            if several and isinstance(number, float) and number:
                advice = (
                    f"it becomes {len(column.outputs)} columns, which one number does "
                    'not fill: write fill = 0 or "most frequent", or missing = "drop"'
                )
            elif isinstance(fill, dict):
                if column.name in fill:
                    return
                advice = f"add {toml_key(column.name)} to fill, or correct the cell"
            elif isinstance(fill, float) or column.numeric or fill == "most frequent":
                return
            else:
                advice = (
                    f"categories have no {fill}: write fill = "
                    '"most frequent", or a number by column'
                )
        else:
            choices = '"nan", "drop"' if is_float else '"drop"'
            advice = f"correct it, or write missing = {choices} or {{ fill = … }}"
        at = int(missing.reshape(-1, len(cells)).any(axis=0).argmax())
        cell = cells[at].as_py()
        if isinstance(cell, list):
            what = "a list with an element that has none"
        elif isinstance(cell, float):
            what = "NaN" if math.isnan(cell) else quote(cell)
        else:
            what = quote(cell) if str(cell or "").strip() else "an empty cell"
        raise MisfitError(at, f"expected a value, got {what}", advice)


class Maker:
    """Makes one tensor, block by block."""

    def __init__(
        self,
        declaration: DatasetDeclaration,
        source: Source,
        chosen: Chosen,
        marks: Marks,
        threads: int,
    ) -> None:
        columns = [
            _column(declaration, source, chosen, place, marks)
            for place in chosen.places
        ]
        outputs = tuple(name for column in columns for name in column.outputs)
        sizes = () if chosen.alone and len(outputs) == 1 else (len(outputs),)
        listed = columns[0] if isinstance(columns[0], Lists) else None
        self.part = Part(
            chosen.tensor,
            () if listed or chosen.counts else outputs,
            listed.sizes if listed else sizes,
            chosen.dtype,
            tuple(
                place
                for column, place in zip(columns, chosen.places, strict=True)
                for _ in column.outputs
            ),
        )
        per_group = max(1, -(-len(columns) // (4 * threads)))
        self.groups = []
        begin = 0
        for first in range(0, len(columns), per_group):
            some = columns[first : first + per_group]
            self.groups.append(
                Group(
                    chosen.tensor,
                    some,
                    chosen.places[first : first + per_group],
                    begin,
                    chosen.dtype,
                    declaration.missing,
                )
            )
            begin += sum(len(column.outputs) for column in some)
        if not chosen.counts:
            _check_fill(declaration, chosen.dtype)
        self.writer = ArrayWriter(chosen.dtype)
        self._kind = "float32" if chosen.dtype == "bfloat16" else chosen.dtype
        self.block: Elements = np.empty(0)

    def begin(self, rows: int) -> None:
        """Make room for a block of so many rows."""
        self.block = np.empty((rows, len(self.part.places)), self._kind)

    def write(self) -> None:
        """Append the block to the tensor."""
        block = self.block
        if self.part.dtype == "bfloat16":
            block = narrowed(block, "bfloat16")
        self.writer.write(block.reshape(-1).view(np.uint8).data)

    def patch(self, rows: int) -> tuple[Group, ColumnError] | None:
        """Put what is computed of a column where nothing was; return what can't be."""
        groups = [group for group in self.groups if group.holes]
        failed = None
        if not groups:
            return None
        with self.writer.edit() as memory:
            kind = "uint16" if self.part.dtype == "bfloat16" else self.part.dtype
            whole = np.frombuffer(memory, kind).reshape(rows, -1)
            for group in groups:
                try:
                    group.patch(whole)
                except ColumnError as error:
                    # Its frames would hold the memory.
                    failed = (group, error.with_traceback(None))
                    break
            del whole
        return failed


def _column(
    declaration: DatasetDeclaration,
    source: Source,
    chosen: Chosen,
    place: int,
    marks: Marks,
) -> Column:
    """Return what reads a column."""
    name, dtype = source.names[place], chosen.dtype
    if chosen.counts:
        return Lengths(name, dtype, marks)
    classes = declaration.classes if chosen.tensor == "target" else ()
    column = make(name, dtype, declaration.encode.get(name), classes, marks)
    if not is_list(source.types[place]):
        return column
    file, policy, pad = declaration.file, declaration.missing, declaration.pad
    if len(column.outputs) > 1:
        raise DatasetError(
            file,
            "is a column of lists, whose elements can not become several",
            'write a list of categories, or "days"',
            name,
        )
    if isinstance(policy, Fill) and isinstance(policy.fill, str):
        raise DatasetError(
            file,
            f"is a column of lists, which have no {policy.fill}",
            'write a number, or missing = "drop"',
            name,
        )
    if isinstance(pad, int):
        pad = Pad(pad)
    if pad is not None:
        _check_number(file, "pad", pad.value, dtype)
    sizes = sizes_of(file, source, place, pad)
    return Lists(name, dtype, marks, column, sizes, pad, policy == "drop")


def _check_fill(declaration: DatasetDeclaration, dtype: str) -> None:
    """Refuse numbers in the place of missing values that the type can not hold."""
    policy = declaration.missing
    if not isinstance(policy, Fill) or isinstance(policy.fill, str):
        return
    given = policy.fill.values() if isinstance(policy.fill, dict) else [policy.fill]
    for one in given:
        _check_number(declaration.file, "missing", one, dtype)


def _check_number(file: str, key: str, one: float, dtype: str) -> None:
    """Refuse a declared number that the type can not hold."""
    number = np.array([float(one)])
    with np.errstate(all="ignore"):
        if "float" in dtype:
            made = widened(narrowed(number, dtype), dtype)
            fits = np.isfinite(made)[0] and (one % 1 != 0 or made[0] == one)
        else:
            made = number.astype(np.int64).astype(dtype)
            fits = math.isfinite(one) and made[0] == one
    if not fits:
        raise DatasetError(
            file,
            f"{key}: expected a number that {dtype} can hold, got {quote(one)}",
            "write another number, or another dtype",
        )
