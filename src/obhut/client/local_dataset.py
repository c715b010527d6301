"""Rows that are here, in minibatches: for functions that run here and at owners.

::

    data = obhut.LocalDataset(features, targets)
    for x, y in data.batches(32, shuffle=True):
        ...
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from obhut.errors import CallError


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

    Raises:
        CallError: if they are not of the same number of rows, or of none.
    """

    def __init__(
        self, *tensors: torch.Tensor, generator: torch.Generator | None = None
    ) -> None:
        counts = {one.shape[0] if one.dim() else 0 for one in tensors}
        if len(counts) != 1 or counts == {0}:
            raise CallError("expected tensors of the same rows, one or more")
        self._tensors = tensors
        self._generator = generator

    def __len__(self) -> int:
        """Return how many rows there are."""
        return len(self._tensors[0])

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
            batch = tuple(one[chosen] for one in self._tensors)
            yield batch[0] if len(batch) == 1 else batch
