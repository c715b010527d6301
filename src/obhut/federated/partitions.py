"""Which rows of one data set each simulated client has.

::

    partition = obhut.dirichlet(0.3, clients=20, seed=0)(x, y)
    partition["client-07"]               # (rows of the client,) int64: numbers of rows
    print(partition)                     # rows and classes of a client: a table
    partition.plot()
    obhut.federated.Partition({"bob": [0, 1], "alice": [2]}, y)     # one of your own

Rules:

- Every client has a row or more, and has none twice.
- Rows that are nobody's, or several clients', are said wherever a partition is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from obhut.errors import CallError
from obhut.extras import import_extra
from obhut.host.printing import Table, Tabular

from .classes import Classes, classes_of


class Partition(Tabular, Mapping[str, torch.Tensor]):
    """The rows of each client, by the client's name.

    Args:
        indices: for each client the numbers of its rows, (rows of the client,).
        target: (rows, ...) of the data set, for their number and their classes.
        made: how it was made, for its title.

    Attributes:
        rows: how many the data set has.
        classes: of its rows; None if the target has none.
        made: as given.

    Raises:
        CallError: if a client has no row, one twice, or one that is not there.
    """

    def __init__(
        self,
        indices: Mapping[str, Any],  # Any: lists and arrays do as well
        target: torch.Tensor,
        *,
        made: str = "",
    ) -> None:
        if not indices:
            raise CallError("expected a client or more in a partition, got none")
        self.rows = len(target)
        self.classes: Classes | None = classes_of(target)
        self.made = made
        self._indices = {name: _checked(name, one) for name, one in indices.items()}
        self._joined = torch.cat([*self._indices.values()])
        if int(self._joined.min()) < 0 or int(self._joined.max()) >= self.rows:
            raise CallError(
                f"expected numbers of rows from 0 to {self.rows - 1:,}, got others"
            )
        cells = self._places * self.rows + self._joined
        if len(cells.unique()) < len(cells):
            raise CallError("expected each row of a client once, got one again")

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._indices[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)

    __hash__ = None  # type: ignore[assignment] # tensors are compared by element

    @property
    def sizes(self) -> torch.Tensor:
        """The number of rows of each client, (clients,) int64."""
        return torch.tensor([len(one) for one in self._indices.values()])

    @property
    def _places(self) -> torch.Tensor:
        """The place of each row's client, as rows stand in ``_joined``."""
        return torch.arange(len(self)).repeat_interleave(self.sizes)

    def counts(self) -> torch.Tensor:
        """Return how many rows of each class each client has.

        Returns:
            (clients, classes) int64; with one column if the target has no classes.
        """
        sizes = self.sizes
        if self.classes is None:
            return sizes[:, None]
        width = len(self.classes.names)
        cells = self._places * width + self.classes.of_rows[self._joined]
        return torch.bincount(cells, minlength=len(sizes) * width).view(-1, width)

    # --- how it is shown --------------------------------------------------------------

    @property
    def notes(self) -> list[str]:
        """Sentences on rows that are not just one client's."""
        times = torch.bincount(self._joined, minlength=self.rows)
        nobodys, several = int((times == 0).sum()), int((times > 1).sum())
        return [
            *([f"rows of no client: {nobodys:,}"] if nobodys else []),
            *([f"rows of several clients: {several:,}"] if several else []),
        ]

    @property
    def title(self) -> str:
        """How many clients and rows there are, and how they were made."""
        clients = f"{len(self):,} client" + "s" * (len(self) > 1)
        return f"{clients}, {self.rows:,} rows" + f": {self.made}" * bool(self.made)

    @property
    def _table(self) -> Table:
        lines = [("rows", *_spread(self.sizes))]
        if self.classes is not None:
            lines.append(("classes", *_spread((self.counts() > 0).sum(1))))
        head = ("of a client", "min", "median", "max")
        return Table(head, lines, self.notes, self.title, right=True)

    def plot(self, axes: Any = None) -> Any:  # Any: matplotlib's Axes, if it is there
        """Draw which classes clients have.

        A bar for each of up to 30 clients, as long as it has rows, divided by classes;
        of more clients a map, with a column for each. Where there are no classes, how
        many rows clients have.

        Args:
            axes: where, matplotlib's ``Axes``; by default a new figure's.

        Returns:
            The axes.

        Raises:
            CallError: if these are none.
            MissingExtraError: if matplotlib is not installed.
        """
        import_extra("matplotlib", "Partition.plot", "plot")
        from . import partition_plot  # noqa: PLC0415 # for those who have it

        return partition_plot.draw(self, axes)


def _checked(name: str, given: Any) -> torch.Tensor:  # Any: as given
    try:
        rows = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        raise CallError(
            f"expected numbers of rows for {name}, in a tensor, an array or a list, "
            f"got a {type(given).__name__}"
        ) from None
    whole = not (rows.is_floating_point() or rows.is_complex())
    if rows.dtype is torch.bool or not whole or rows.dim() != 1 or not len(rows):
        raise CallError(
            f"expected numbers of rows for {name}, one or more, in one dimension, got "
            f"{str(rows.dtype).removeprefix('torch.')} {list(rows.shape)}"
        )
    return rows.to(torch.int64)


def _spread(numbers: torch.Tensor) -> tuple[str, str, str]:
    """Return the smallest, the median and the largest, as text."""
    found = (numbers.min(), numbers.double().quantile(0.5), numbers.max())
    return tuple(f"{float(one):,.10g}" for one in found)  # type: ignore[return-value] # three
