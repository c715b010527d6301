"""The rows of one loop of a program, in batches.

::

    batches = Batches(rows, 32, shuffle=True, drop_last=False, least=1)
    batches.sizes                                # [32, 5]: of a full batch, and a last
    for batch in batches.epoch(generator):       # of each tensor its rows
        ...

Rules:

- The order is drawn from the generator alone, and only to shuffle; see ``orders``.
- Of a part without rows there is no batch, and nothing is wrong with that.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence

import torch

from obhut.errors import CallError

from .held_out import SplitRows
from .orders import Order, in_batches


class Batches:
    """Rows in batches of one size; the last may have fewer.

    Args:
        rows: tensors of as many rows each, one or more.
        size: rows of a batch; 0 for all.
        shuffle: whether each epoch has another order.
        drop_last: whether rows that fill no batch are left out.
        least: rows that a batch must have.
        hidden: whether how many rows there are is hidden. A last batch that is too
            small is left out then, since to refuse it would tell.
        only: which of the rows are meant; None for all.
        steps: how many batches there are, over and over again; 0 for one epoch.
        columns: of each tensor the places of the columns that are meant, None for all;
            nothing for all of all.

    Attributes:
        size: rows of a full batch.
        sizes: of the batches, that of a full one first. If there are none, of one that
            there could be.
        full: how many full batches an epoch has.
        rest: rows of a last batch that is not full; 0 for none.
        empty: whether it is of a part without rows.

    Raises:
        CallError: if there is no batch, or one that is too small.
    """

    def __init__(
        self,
        rows: Sequence[torch.Tensor],
        size: int,
        *,
        shuffle: bool,
        drop_last: bool,
        least: int,
        hidden: bool = False,
        only: SplitRows | None = None,
        steps: int = 0,
        columns: Sequence[torch.Tensor | None] = (),
    ) -> None:
        self._rows = rows
        self._columns = columns if any(one is not None for one in columns) else ()
        self._shuffle = shuffle
        self._only = only
        self._steps = steps
        self._count = count = len(rows[0]) if only is None else len(only)
        self.empty = only is not None and not count
        if self.empty:
            self.size, self.full, self.rest, self.sizes = least, 0, 0, [least]
            return
        self.size = size or count
        self.full, rest = divmod(count, self.size) if self.size else (0, 0)
        self.rest = 0 if drop_last or (hidden and rest < least) else rest
        self.sizes = [self.size] * bool(self.full) + [self.rest] * bool(self.rest)
        if hidden and min(self.sizes, default=0) < least:
            raise CallError(
                f"expected a batch of {least:,} to {count:,} rows where their number "
                f"is hidden, got {self.size:,}"
            )
        if not self.sizes:
            raise CallError(
                f"expected {self.size or 1} rows or more for a batch, got {count}; "
                "choose a smaller batch size, or drop_last=False"
            )
        small = min(self.sizes)
        if small < least:
            raise CallError(
                f"the last batch has {small} row, of {count} in batches of "
                f"{self.size}, and the program takes {least} or more; leave it out "
                "with drop_last=True, or choose another batch_size"
            )

    def of(self, rows: Sequence[torch.Tensor]) -> Batches:
        """Return the same batches of other rows that look the same."""
        made = object.__new__(Batches)
        made.__dict__.update(self.__dict__)
        made._rows = rows
        return made

    def __len__(self) -> int:
        """Return how many batches ``epoch`` yields."""
        if self._steps and not self.empty:
            return self._steps
        return self.full + bool(self.rest)

    def times(self, size: int) -> int:
        """Return how many batches of a size ``epoch`` yields, about."""
        return (self._steps or self.full or 1) if size == self.size else 1

    @property
    def gone(self) -> int:
        """How many rows an epoch goes through."""
        return self.full * self.size + self.rest

    def first(self, size: int) -> list[torch.Tensor]:
        """Return what looks like a batch."""
        if self.empty:
            return self._chosen(
                [one.new_zeros((size, *one.shape[1:])) for one in self._rows]
            )
        narrow = [one.detach().narrow(0, 0, size) for one in self._rows]
        return [one.contiguous() for one in self._chosen(narrow)]

    def _chosen(self, batch: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the columns that are meant: of a batch, so that no more is copied."""
        if not self._columns:
            return batch
        return [
            one if places is None else one.index_select(1, places)
            for one, places in zip(batch, self._columns, strict=True)
        ]

    def epoch(
        self, generator: torch.Generator | None
    ) -> Iterator[Sequence[torch.Tensor]]:
        """Yield the batches of an epoch, or as many as there are steps."""
        if not self._steps or self.empty:
            return self._epoch(generator)
        each = (self._epoch(generator) for _ in itertools.count())
        return itertools.islice(itertools.chain.from_iterable(each), self._steps)

    def _epoch(
        self, generator: torch.Generator | None
    ) -> Iterator[Sequence[torch.Tensor]]:
        if self.empty:
            return
        rows = [one.detach() for one in self._rows]
        if not self._shuffle and self._only is None:
            going = Order(rows)
            several = self.size * _TOGETHER
            for start in range(0, self.gone, several):
                count = min(several, self.gone - start)
                parts = rows
                if count < self._count:
                    parts = [one.narrow(0, start, count) for one in rows]
                for number, batch in enumerate(self._parted(parts)):
                    going.ahead(start + number * self.size)
                    yield [one.contiguous() for one in self._chosen(batch)]
            return
        drawn = generator if self._shuffle else None
        among = Order(rows, self._places)
        windows, left = among.windows(drawn), self.gone
        if among.is_whole and sum(one.nbytes for one in rows) <= _SMALL:
            order = next(windows)[:left].to(rows[0].device)
            ordered = [one.index_select(0, order) for one in rows]
            yield from map(self._chosen, self._parted(ordered))
            return
        for places in in_batches(windows, self.size):
            chosen = places[:left].to(rows[0].device)  # a last batch may be left out
            left -= len(chosen)
            if len(chosen):
                yield self._chosen([one.index_select(0, chosen) for one in rows])

    def _parted(self, rows: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
        """Yield consecutive rows in batches."""
        if len(rows[0]):
            split = (one.split(self.size) for one in rows)
            yield from map(list, zip(*split, strict=True))

    @functools.cached_property
    def _places(self) -> torch.Tensor | None:
        return None if self._only is None else self._only.places()


_TOGETHER = 64
"""So many batches are views that are made in one call."""

_SMALL = 1 << 20
"""Rows of so many bytes are put into a drawn order at once, and not batch by batch."""
