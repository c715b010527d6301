"""A data set at its owner's worker, in minibatches that stay there.

Leak: no row leaves. How many rows there are is known to whoever holds the
remote tensors, as each remote tensor's shape is. Of a ``HiddenDataset`` there are none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch

from obhut.errors import CallError, LocationError
from obhut.protocol.messages import DatasetRows, Split
from obhut.worker.held_out import SplitRows
from obhut.worker.shapes import dense

from .counting import counted
from .functions import send
from .held import Held
from .local_dataset import slices, split_of
from .registry import Place
from .remote_tensor import RemoteTensor


@dataclass(frozen=True, slots=True, eq=False)
class RemoteDataset:
    """Features and targets of the same rows, at one worker.

    Attributes:
        features: (rows, ...), any dtype, remote.
        targets: (rows, ...), any dtype, remote.
        only: which of these rows it has; None for all.
        source: the worker's data set, its parts and their columns, by which it is
            opened again; None of rows that were sent.

    Raises:
        LocationError: if they are not at one worker.
        CallError: if they are not of the same number of rows, or of none.
    """

    features: torch.Tensor
    targets: torch.Tensor
    only: Split | None = None
    source: DatasetRows | None = None

    def __post_init__(self) -> None:
        places = [_place_of(self.features), _place_of(self.targets)]
        if places[0] is None or places[0] is not places[1]:
            raise LocationError(
                "RemoteDataset",
                ["this process" if place is None else place.id for place in places],
                "send both to one worker: obhut.send(x, worker)",
            )
        shapes = [tuple(x.shape) for x in (self.features, self.targets)]
        if not all(shapes) or shapes[0][0] != shapes[1][0] or not shapes[0][0]:
            raise CallError(
                "expected features and targets of the same rows, one or more, got "
                f"shapes {list(shapes[0])} and {list(shapes[1])}"
            )

    @classmethod
    def send(
        cls, features: torch.Tensor, targets: torch.Tensor, worker: Place | str
    ) -> Self:
        """Send rows that are here to a worker, and return the data set there.

        Args:
            features: (rows, ...), any dtype.
            targets: (rows, ...), any dtype.
            worker: where to, itself or by id.
        """
        return cls(send(features, worker), send(targets, worker))

    @property
    def location(self) -> Place:
        """The worker that the rows are at."""
        return self.features.location  # type: ignore[attr-defined,no-any-return] # remote

    def __len__(self) -> int:
        """Return how many rows there are."""
        rows = int(self.features.shape[0])
        return rows if self.only is None else len(self._split_rows(rows, self.only))

    def _split_rows(self, rows: int, split: Split) -> SplitRows:
        return SplitRows(split, self.location.id, rows)

    def split(self, held_out: float, seed: int = 0) -> tuple[Self, Self]:
        """Return two data sets: some rows to train on, and some that are held out.

        Which are is drawn at the worker from the seed and the worker's name, and is the
        same in each run and session. Programs go through either, as does ``batches``.
        Of few rows, none may be held out.

        Args:
            held_out: the share of the rows that is held out, above 0 and below 1.
            seed: of which rows these are.

        Raises:
            CallError: if it is no such share or seed, or a part is split again.
        """
        if self.only is not None:
            raise CallError("expected a whole data set to split, got a part of one")
        left, held = split_of(held_out, seed)
        return self.taking(left), self.taking(held)

    def taking(self, split: Split) -> Self:
        """Return a part of the data set."""
        return replace(self, only=split)

    def count(self) -> torch.Tensor:
        """Return how many rows there are, counted at the worker: a scalar, float64."""
        held: Held = self.targets._held  # type: ignore[attr-defined] # remote
        held.check()
        shape, dtype = self.targets.shape[1:], self.targets.dtype
        return counted(held.session, (held.id,), dense(tuple(shape), dtype), self.only)

    def batches(
        self,
        size: int | None = None,
        *,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
        drop_last: bool = False,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Go through the rows once, in minibatches at the worker.

        Args:
            size: rows in a batch; the last may have fewer. None for all rows, which are
                the features and targets themselves unless they are shuffled or a
                part: what is asked of a worker then doesn't say how many there are.
            shuffle: in a new random order, which is drawn here and sent.
            generator: what the order comes from, by default torch's own.
            drop_last: leave out what is left after the full batches; in a random
                order these are other rows each time.

        Yields:
            Features and targets of a batch, both at the worker. A part that has no rows
            has no batch.

        Raises:
            CallError: if the size is not positive, or ``drop_last`` would leave out
                all rows.
        """
        rows = len(self)
        if self.only is not None and not rows:
            return
        each = slices(rows, size, drop_last, self.location.id)
        features, targets = self.features, self.targets
        chosen: torch.Tensor | None = None
        if self.only is not None:
            chosen = self._split_rows(int(features.shape[0]), self.only).places()
        if shuffle:
            drawn = torch.randperm(rows, generator=generator)
            chosen = drawn if chosen is None else chosen[drawn]
        if chosen is not None:
            order = send(chosen, self.location)
            features, targets = features[order], targets[order]
        if size is None:
            yield features, targets
            return
        for places in each:
            yield features[places], targets[places]


def _place_of(x: torch.Tensor) -> Place | None:
    return x.location if isinstance(x, RemoteTensor) else None
