"""Rows that are here, in minibatches: for functions that run here and at owners.

::

    data = obhut.LocalDataset(features, targets)
    for x, y in data.batches(32, shuffle=True):
        ...
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import torch

from obhut.errors import CallError
from obhut.protocol.messages import Split
from obhut.worker.held_out import SplitRows


def check_size(rows: int, size: int, drop_last: bool, where: str = "") -> None:
    """Check that rows make a batch.

    Args:
        rows: how many there are.
        size: rows in a full batch.
        drop_last: whether only full batches count.
        where: the worker that has them; empty if they are here.

    Raises:
        CallError: if the size is not positive, or no batch is left.
    """
    if size < 1:
        raise CallError(f"expected a batch size of 1 or more, got {size}")
    if drop_last and rows < size:
        at = f" at {where}" if where else ""
        raise CallError(
            f"expected {size} rows or more{at} for a full batch, got {rows}; choose a "
            "smaller batch size, or drop_last=False"
        )


def split_of(held_out: float, seed: int) -> tuple[Split, Split]:
    """Return what is left to train on, and what is held out.

    Args:
        held_out: the share of the rows that is, above 0 and below 1.
        seed: of which rows these are, from 0.

    Raises:
        CallError: if it is no such share or seed.
    """
    share = float(held_out)
    if not 0 < share < 1:
        raise CallError(
            f"expected a share above 0 and below 1 to hold out, got {held_out}: "
            "data.split(held_out=0.2)"
        )
    if not isinstance(seed, int) or seed < 0:
        raise CallError(f"expected a seed that is a number from 0, got {seed!r}")
    return Split(share, seed, False), Split(share, seed, True)


def slices(
    rows: int, size: int | None, drop_last: bool, where: str = ""
) -> list[slice]:
    """Return the places of each batch's rows; the last slice may end after them.

    Args:
        rows: how many there are.
        size: rows in a batch; None for all.
        drop_last: whether what is left after the full batches is left out.
        where: the worker that has them; empty if they are here.

    Raises:
        CallError: if there is no batch.
    """
    size = rows if size is None else size
    check_size(rows, size, drop_last, where)
    stop = rows - rows % size if drop_last else rows
    return [slice(start, start + size) for start in range(0, stop, size)]


class LocalDataset:
    """Tensors of the same rows.

    Args:
        tensors: (rows, ...) each, any dtype.
        generator: what the order of ``shuffle`` comes from, by default torch's own.

    Attributes:
        tensors: as given.

    Raises:
        CallError: if they are not of the same number of rows, or of none.
    """

    def __init__(
        self, *tensors: torch.Tensor, generator: torch.Generator | None = None
    ) -> None:
        counts = {one.shape[0] if one.dim() else 0 for one in tensors}
        if len(counts) != 1 or counts == {0}:
            raise CallError("expected tensors of the same rows, one or more")
        self.tensors = tensors
        self._generator = generator

    def __len__(self) -> int:
        """Return how many rows there are."""
        return len(self.tensors[0])

    def count(self) -> torch.Tensor:
        """Return how many rows there are: a scalar, float64."""
        return torch.tensor(len(self), dtype=torch.float64)

    def split(self, held_out: float, seed: int = 0) -> tuple[Self, Self]:
        """Return two data sets: some rows to train on, and some that are held out.

        Args:
            held_out: the share of the rows that is held out, above 0 and below 1.
            seed: of which rows these are: the same for the same.

        Raises:
            CallError: if one of the two would have no rows.
        """
        left, held = (
            SplitRows(one, "", len(self)).places() for one in split_of(held_out, seed)
        )
        return self._taking(left), self._taking(held)

    def _taking(self, places: torch.Tensor) -> Self:
        chosen = (one[places] for one in self.tensors)
        return type(self)(*chosen, generator=self._generator)

    def batches(
        self,
        size: int | None = None,
        *,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
        drop_last: bool = False,
    ) -> Iterator[Any]:
        """Go through the rows once, in minibatches.

        Args:
            size: rows in a batch; the last may have fewer. None for all rows.
            shuffle: in a new random order.
            generator: what the order comes from, by default the data set's.
            drop_last: leave out what is left after the full batches.

        Yields:
            Of each tensor a batch: a tuple of them, or the one alone.

        Raises:
            CallError: if the size is not positive, or ``drop_last`` would leave out
                all rows.
        """
        rows = len(self)
        each = slices(rows, size, drop_last)
        order: torch.Tensor | None = None
        if shuffle:
            order = torch.randperm(rows, generator=generator or self._generator)
        for places in each:
            chosen = places if order is None else order[places]
            batch = tuple(one[chosen] for one in self.tensors)
            yield batch[0] if len(batch) == 1 else batch
