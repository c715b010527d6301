"""Which of an owner's rows are held out, and which are left to train on.

::

    rows = SplitRows(Split(0.2, 0, True), "bob", 569)     # a fifth of bob's rows
    len(rows)                                    # 114
    rows.places()                                # which, in the order of the rows

Rules:

- It follows from the seed, the share, the worker's name and the number of rows alone:
  the same in every run and session, and at the client, if it knows the number.
- Another share is another draw. So no two shares differ by one row.
- Where the number of rows is hidden, who answers counts as many as none has more than.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from obhut.errors import CallError
from obhut.protocol.messages import Split


@dataclass(frozen=True, slots=True)
class SplitRows:
    """The rows that are held out, or all others.

    Attributes:
        split: which, and what they are drawn from.
        worker: the name of the worker that they are at.
        rows: how many rows there are in all.
    """

    split: Split
    worker: str
    rows: int

    @property
    def _held(self) -> int:
        return round(self.split.share * self.rows)

    def __len__(self) -> int:
        """Return how many rows it has."""
        return self._held if self.split.held_out else self.rows - self._held

    def places(self) -> torch.Tensor:
        """Return the places of its rows, in order: (rows,) int64."""
        share, seed = self.split.share, self.split.seed
        text = f"held out {share.hex()} {seed} {self.worker}".encode()
        number = int.from_bytes(hashlib.sha256(text).digest()[:7], "little")
        draw = torch.Generator().manual_seed(number)
        order = torch.randperm(self.rows, generator=draw)
        places = order[: self._held] if self.split.held_out else order[self._held :]
        return places.sort().values

    def check(self, minimum: int) -> None:
        """Check that neither it nor the rest is a few rows: less than all tells those.

        Raises:
            CallError: if one has rows, and fewer than the minimum.
        """
        for few in (len(self), self.rows - len(self)):
            if 0 < few < minimum:
                raise CallError(
                    f"held_out={self.split.share:g} makes a part of {few:,} of "
                    f"{self.rows:,} rows at {self.worker}, and its policy takes no "
                    f"part of fewer than {minimum:,} (minimum_rows): hold out another "
                    "share"
                )
