"""A data set at its owner's worker, of which nobody learns how many rows it has.

::

    data = bob.dataset("xray")                   # rows = "hidden" at bob's worker
    ratio = train.run(model=model, data=data)    # of an @obhut.program

Rules:

- Programs go through the rows. No tensor of them is held, since its shape would tell.
- How many there are is counted at the worker, and leaves as all else does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn, Self

import torch

from obhut.errors import CallError, ObhutError
from obhut.protocol.messages import DatasetRows, Split
from obhut.worker.shapes import Spec

from .counting import counted
from .registry import Place
from .remote_dataset import RemoteDataset


class HiddenDataset(RemoteDataset):
    """Rows of a worker's data set, in one tensor or several.

    Args:
        worker: the worker that they are at.
        rows: the data set, its parts and their columns, as a worker is told.
        looks: what a row of each part looks like.
        only: which of its rows; None for all.

    Attributes:
        rows: as given.
        looks: as given.
    """

    __slots__ = ("_worker", "looks", "rows")

    rows: DatasetRows
    looks: tuple[Spec, ...]
    _worker: Place

    def __init__(
        self,
        worker: Place,
        rows: DatasetRows,
        looks: Sequence[Spec],
        only: Split | None = None,
    ) -> None:
        # A data set's attributes are set once.
        object.__setattr__(self, "_worker", worker)
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "looks", tuple(looks))
        object.__setattr__(self, "only", only)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.rows.dataset} at {self._worker.id}>"

    @property
    def source(self) -> DatasetRows:
        """What a worker is told of it."""
        return self.rows

    @property
    def location(self) -> Place:
        """The worker that the rows are at."""
        return self._worker

    @property
    def features(self) -> NoReturn:
        """Raise that no tensor of the rows is held.

        Raises:
            CallError: always; it says what to write.
        """
        raise self._hidden("a tensor's shape would show it")

    @property
    def targets(self) -> NoReturn:
        """Raise as ``features`` does.

        Raises:
            CallError: always.
        """
        raise self._hidden("a tensor's shape would show it")

    def taking(self, split: Split) -> Self:
        """Return a part of the data set."""
        return type(self)(self._worker, self.rows, self.looks, split)

    def __len__(self) -> NoReturn:
        """Raise that nobody learns it.

        Raises:
            CallError: always.
        """
        raise self._hidden("data.count() counts them there, and leaves in a sum alone")

    def count(self) -> torch.Tensor:
        """Return how many rows there are, counted at the worker: a scalar, float64."""
        rows = self.rows
        last = DatasetRows(rows.dataset, rows.parts[-1:], rows.columns[-1:])
        return counted(self._worker.session, last, self.looks[-1], self.only)

    # Any: whatever the arguments are, there are no batches here.
    def batches(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise that only programs go through the rows.

        Raises:
            CallError: always.
        """
        raise self._hidden("a loop here would show it")

    def _hidden(self, why: str) -> ObhutError:
        return CallError(
            f"how many rows {self.rows.dataset!r} at {self._worker.id} has is hidden, "
            f"and {why}: go through them in an @obhut.program, which is recorded"
        )
