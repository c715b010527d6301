"""The rows of one loop of a program, in batches.

::

    batches = Batches(rows, 32, shuffle=True, drop_last=False, least=1)
    batches.sizes                                # [32, 5]: of a full batch, and a last
    for batch in batches.epoch(generator):       # of each tensor its rows
        ...

Rule: the order is drawn from the generator alone, and only to shuffle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from obhut.errors import CallError


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

    Attributes:
        size: rows of a full batch.
        sizes: of the batches, that of a full one first.
        full: how many full batches an epoch has.
        rest: rows of a last batch that is not full; 0 for none.

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
    ) -> None:
        self._rows = rows
        self._shuffle = shuffle
        count = len(rows[0])
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

    def __len__(self) -> int:
        """Return how many batches an epoch has."""
        return self.full + bool(self.rest)

    @property
    def gone(self) -> int:
        """How many rows an epoch goes through."""
        return self.full * self.size + self.rest

    def first(self, size: int) -> list[torch.Tensor]:
        """Return a batch of the first rows."""
        return [_batch(one.detach(), 0, size) for one in self._rows]

    def epoch(self, generator: torch.Generator) -> Iterator[Sequence[torch.Tensor]]:
        """Yield the batches of an epoch."""
        rows = [one.detach() for one in self._rows]
        stop = self.gone
        if not self._shuffle:
            for start in range(0, stop, self.size):
                end = min(start + self.size, stop)
                yield [_batch(one, start, end - start) for one in rows]
            return
        order = torch.randperm(len(rows[0]), generator=generator)[:stop]
        for places in order.to(rows[0].device).split(self.size):
            yield [one.index_select(0, places) for one in rows]


def _batch(rows: torch.Tensor, start: int, size: int) -> torch.Tensor:
    return rows.narrow(0, start, size).contiguous()
