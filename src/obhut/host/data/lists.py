"""Columns whose cells are lists: of one length, or sequences that are filled up.

::

    sizes = sizes_of(file, source, place, pad)      # (128,), or (4, 3) of nested ones
    column = Lists(name, dtype, marks, inner, sizes, pad, drops)
    values, missing = column.read(arrow_array)      # (elements of a row, rows)

Rules:

- The elements are read as a column of their own: as numbers, categories or dates.
- Without ``pad`` all lists have as many elements as the first. With it a shorter one is
  filled up, and none is cut off.
- Lists in lists have one length each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from obhut.errors import DatasetError

from .arrow import pa, pc
from .columns import Column
from .declaration import Pad
from .number_cells import Marks
from .numbers import Elements, MisfitError
from .source import Arrow, Source
from .words import Mask


class LengthError(MisfitError):
    """A list has another length. What to do depends on the longest of the column."""


def is_list(kind: Arrow) -> bool:
    """Return whether a type is one of lists."""
    types = pa.types
    return bool(
        types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_fixed_size_list(kind)
        or types.is_list_view(kind)
        or types.is_large_list_view(kind)
    )


def sizes_of(file: str, source: Source, place: int, pad: Pad | None) -> tuple[int, ...]:
    """Return the sizes of what a row's list becomes.

    Args:
        file: for errors.
        source: the table.
        place: the column's.
        pad: how sequences of several lengths become rows of one.

    Raises:
        DatasetError: if no list has elements.
    """
    for batch in source.batches([place]):
        cells = batch.column(0)
        found = []
        while is_list(cells.type):
            lengths = pc.list_value_length(cells)
            some = lengths.filter(pc.greater(lengths, 0))
            if not len(some):
                break
            found.append(some[0].as_py())
            cells = pc.list_flatten(cells)
        else:
            return (pad.to, *found[1:]) if pad else tuple(found)
    raise DatasetError(
        file, "has no list with elements", "leave it out", source.names[place]
    )


def elements(cells: Arrow) -> Arrow:
    """Return what is in lists, and in lists in them; other cells as they are."""
    while is_list(cells.type):
        cells = pc.list_flatten(cells)
    return cells


def longest(source: Source, place: int) -> int:
    """Return how many elements the longest list of a column has."""
    return max(
        pc.max(pc.list_value_length(batch.column(0))).as_py() or 0
        for batch in source.batches([place])
    )


class Lists(Column):
    """Reads lists as as many columns as a row has elements.

    Args:
        name: its name in the table.
        dtype: the tensor's element type.
        marks: how numbers and missing values are written.
        each: reads the elements.
        sizes: of what a row becomes.
        pad: how a shorter list is filled up, if it is.
        drops: whether rows without a value are left out.

    Attributes:
        sizes: likewise.
    """

    def __init__(
        self,
        name: str,
        dtype: str,
        marks: Marks,
        each: Column,
        sizes: Sequence[int],
        pad: Pad | None,
        drops: bool,
    ) -> None:
        super().__init__(name, dtype, marks)
        self.outputs = (name,) * math.prod(sizes)
        self.numeric = each.numeric
        self.sizes = tuple(sizes)
        self._each = each
        self._pad = pad
        self._drops = drops

    def read(self, cells: Arrow) -> tuple[Elements, Mask | None]:
        """Return the elements, by their places; see ``Column.read``."""
        present = cells.is_valid().to_numpy(zero_copy_only=False)
        lengths = _lengths(cells)
        if self._pad and not self._drops and not present.all():
            raise MisfitError(
                int(present.argmin()),
                "expected a list, got an empty cell",
                'write missing = "drop", or an empty list',
            )
        self._check_length(lengths, present)
        flat, parents = pc.list_flatten(cells), pc.list_parent_indices(cells)
        for size in self.sizes[1:]:
            wrong = _lengths(flat) != size
            if wrong.any():
                at = int(wrong.argmax())
                raise MisfitError(
                    parents[at].as_py(),
                    f"expected lists of {size:,} in it, as in the first row",
                    "give the lists in lists one length, or leave the column out",
                )
            parents = parents.take(pc.list_parent_indices(flat))
            flat = pc.list_flatten(flat)
        try:
            values, missing = self._each.read(flat)
        except MisfitError as error:
            error.index = parents[error.index].as_py() if error.index >= 0 else -1
            raise
        lost = self._each.inexact_at
        self.inexact_at = parents[lost].as_py() if lost >= 0 else -1
        self.note = self._each.note
        return self._placed(values, missing, lengths, present)

    def _check_length(self, lengths: Elements, present: Mask) -> None:
        size = self.sizes[0]
        wrong = lengths > size if self._pad else lengths != size
        wrong &= present
        if wrong.any():
            at = int(wrong.argmax())
            expected = "at most" if self._pad else "as many elements as before:"
            raise LengthError(
                at, f"expected {expected} {size:,}, got {int(lengths[at]):,}", ""
            )

    def _placed(
        self,
        values: Elements,
        missing: Mask | None,
        lengths: Elements,
        present: Mask,
    ) -> tuple[Elements, Mask | None]:
        """Return elements where they belong: (elements of a row, rows)."""
        rows, width = len(lengths), len(self.outputs)
        if self._pad is None and present.all():
            nothing = None if missing is None else missing.reshape(rows, width).T
            return values.reshape(rows, width).T, nothing
        there = np.arange(self.sizes[0]) < lengths[:, np.newaxis]
        there = np.repeat(there, width // self.sizes[0], axis=1)
        value = self._pad.value if self._pad else 0
        made = np.full((rows, width), value, values.dtype)
        made[there] = values
        absent = np.zeros((rows, width), np.bool_)
        if missing is not None:
            absent[there] = missing
        absent[~present] = True
        return made.T, absent.T if absent.any() else None


class Lengths(Column):
    """Reads how many elements lists have."""

    numeric = False

    def read(self, cells: Arrow) -> tuple[Elements, Mask | None]:
        """Return them; see ``Column.read``."""
        missing = cells.is_null().to_numpy(zero_copy_only=False)
        return _lengths(cells), missing if missing.any() else None


def _lengths(cells: Arrow) -> Elements:
    """Return how many elements each list has: (rows,) int64, 0 where it is missing."""
    lengths: Elements = pc.fill_null(pc.list_value_length(cells), 0).to_numpy()
    return lengths.astype(np.int64)
