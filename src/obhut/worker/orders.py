"""In which order a program goes through rows, of which not all may be in memory.

::

    order = Order(rows)                          # or of the rows at some places
    for places in order.windows(generator):      # (rows of a window,) int64
        ...
    for places in in_batches(windows, 32):       # the same, 32 at a time
        ...

Rules:

- Rows that together take no more than a window are shuffled as a whole. Of more than
  that, whole blocks of neighbours are drawn, and the rows of as many as fill a window
  are shuffled among each other: so a disk is read a block at a time.
- An order follows from the generator, how many rows there are and the bytes of one. So
  it is the same wherever they are kept.
- The system is told of a window before it is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from .pages import soon

WINDOW = 2**28
"""Bytes of rows that are shuffled among each other."""

BLOCK = 2**20
"""Bytes of rows that stay together until then."""

_STEP = 2**26
"""Bytes that are asked for at a time where rows come as they are."""


class Order:
    """How rows are gone through.

    Args:
        rows: tensors of as many rows each.
        places: which of the rows, in their order: (rows,) int64; None for all.
    """

    def __init__(
        self, rows: Sequence[torch.Tensor], places: torch.Tensor | None = None
    ) -> None:
        self._rows = rows
        self._places = places
        self._count = len(rows[0]) if places is None else len(places)
        self._bytes = max(1, sum(one.nbytes for one in rows) // max(1, len(rows[0])))
        self._asked = 0

    @property
    def _most(self) -> int:
        """How many rows a window has at most."""
        return max(1, WINDOW // self._bytes)

    @property
    def is_whole(self) -> bool:
        """Whether all rows are one window."""
        return self._count <= self._most

    def windows(self, generator: torch.Generator | None) -> Iterator[torch.Tensor]:
        """Yield the places of rows, a window after the other.

        Args:
            generator: what their order is drawn from; None for that which they have.
        """
        if generator is None:
            yield self._at(torch.arange(self._count))
            return
        if self.is_whole:
            yield self._at(torch.randperm(self._count, generator=generator))
            return
        block = max(1, BLOCK // self._bytes)
        blocks = torch.randperm(-(-self._count // block), generator=generator)
        groups = iter(blocks.split(max(1, self._most // block)))
        ready = self._window(next(groups), block, generator)
        for group in groups:
            following = self._window(group, block, generator)
            yield ready
            ready = following
        yield ready

    def _window(
        self, group: torch.Tensor, block: int, generator: torch.Generator
    ) -> torch.Tensor:
        """Return where some blocks have their rows, shuffled."""
        parts = []
        for start in (group * block).tolist():
            part = self._at(torch.arange(start, min(start + block, self._count)))
            self._soon(int(part[0]), int(part[-1]) + 1)
            parts.append(part)
        found = torch.cat(parts)
        return found[torch.randperm(len(found), generator=generator)]

    def _at(self, order: torch.Tensor) -> torch.Tensor:
        return order if self._places is None else self._places[order]

    def ahead(self, start: int) -> None:
        """Say that the rows from ``start`` on are next, one after the other."""
        if self._count * self._bytes <= WINDOW:
            return
        step = max(1, _STEP // self._bytes)
        if start + step > self._asked:
            self._soon(self._asked, self._asked + 2 * step)
            self._asked += 2 * step

    def _soon(self, start: int, end: int) -> None:
        for one in self._rows:
            part = one[start:end]
            if one.device.type == "cpu" and one.is_contiguous() and part.nbytes:
                soon(part.data_ptr(), part.nbytes)


def in_batches(windows: Iterable[torch.Tensor], size: int) -> Iterator[torch.Tensor]:
    """Yield places so many at a time; the last time there may be fewer."""
    left: list[torch.Tensor] = []
    for window in windows:
        places = torch.cat([*left, window]) if left else window
        full = len(places) // size * size
        yield from places[:full].split(size) if full else ()
        left = [places[full:]] if full < len(places) else []
    yield from left
