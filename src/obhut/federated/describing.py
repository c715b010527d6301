"""What all owners' columns look like, before a model is trained.

::

    found = describe(owners, aggregator, names=["age", "dose"], classes=3)
    print(found)                                 # count, missing, mean, std, quantiles
    found.covariance()                           # asks the owners once more

Rules:

- Owners are asked for sums; for differences from the mean; for a histogram on a grid
  that mean and standard deviation make; and for another within the cells in which
  quantiles are. Only sums over all owners come here.
- Numbers are rounded to multiples of a power of two, of which a standard deviation has
  256 to 512. Quantiles are numpy's of numbers so rounded: off by half of such a step at
  most, and exact for whole numbers where the deviation is below 512.
- No minimum and no maximum: each would be one row's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from obhut.client.registry import Place
from obhut.client.remote_dataset import RemoteDataset
from obhut.errors import CallError
from obhut.extras import import_extra
from obhut.host.printing import Table, Tabular

from .columns import (
    Centre,
    Counting,
    Grid,
    check_columns,
    deviations,
    histogram,
    look_of,
    moments,
    products,
    totals,
)
from .metrics.labels import check_classes
from .metrics.marked import added, true_classes

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""The shares of rows below each quantile."""

_STEPS = 256
"""Steps of a standard deviation, at least; and less than twice as many."""

_REACH = 5.0
"""Standard deviations on both sides of the mean that cells reach over. No quantile from
0.05 to 0.95 is farther (Cantelli's inequality: 4.36)."""

_SHOWN = 60
"""Columns that are printed at most."""


@dataclass(frozen=True, eq=False, repr=False)
class Description(Tabular):
    """Statistics of columns over all owners' rows.

    Attributes:
        names: the columns'.
        rows: how many there are.
        count: (columns,) int64, cells that are there.
        missing: (columns,) int64, cells that are NaN.
        mean: (columns,) float64, without missing cells; NaN where there is none.
        std: (columns,) float64, of n - 1 degrees of freedom; NaN for a single cell.
        quantiles: (5, columns) float64, at ``QUANTILES``, linear between two cells.
        step: (columns,) float64, what numbers were rounded to for quantiles.
        edges: (columns, bins + 1) float64, of the histogram's cells.
        histogram: (columns, bins + 2) int64, cells between edges; first and last are
            those below and above all.
        classes: (classes,) int64, rows of each class; None if none were asked for.
    """

    names: tuple[str, ...]
    rows: int
    count: torch.Tensor
    missing: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor
    quantiles: torch.Tensor
    step: torch.Tensor
    edges: torch.Tensor
    histogram: torch.Tensor
    classes: torch.Tensor | None
    _pairs: Callable[[], torch.Tensor]

    def covariance(self) -> torch.Tensor:
        """Return the covariance of each pair of columns, asking the owners once more.

        It is over rows where both have a cell, of n - 1 degrees of freedom.

        Leak: sums over all owners come to this process, each owner's own go to the
        aggregator.

        Returns:
            (columns, columns) float64.
        """
        rows, off, both = self._pairs().unbind()
        return (both - off * off.T / rows) / (rows - 1)

    # Any: pandas may not be there.
    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame``, a line for each column, by its name.

        Raises:
            MissingExtraError: if pandas is not installed.
        """
        pandas = import_extra("pandas", "Description.to_pandas", "pandas")
        return pandas.DataFrame(
            {
                "count": self.count.numpy(),
                "missing": self.missing.numpy(),
                "mean": self.mean.numpy(),
                "std": self.std.numpy(),
                **dict(zip(_PERCENT, self.quantiles.numpy(), strict=True)),
            },
            index=list(self.names),
        )

    @property
    def _table(self) -> Table:
        head = ["", "count", "missing", "mean", "std", *_PERCENT]
        return Table(head, self._lines, self._notes, right=True)

    @property
    def _lines(self) -> list[list[str]]:
        numbers = torch.stack((self.mean, self.std, *self.quantiles)).T.tolist()
        counts = torch.stack((self.count, self.missing)).T.tolist()
        return [
            [name, *(f"{one:,}" for one in whole), *(f"{one:.4g}" for one in each)]
            for name, whole, each in zip(
                self.names[:_SHOWN], counts[:_SHOWN], numbers[:_SHOWN], strict=True
            )
        ]

    @property
    def _notes(self) -> list[str]:
        more = len(self.names) - _SHOWN
        notes = [f"and {more:,} columns more"] if more > 0 else []
        notes.append(f"{self.rows:,} rows")
        if self.classes is not None:
            counts = enumerate(self.classes.tolist())
            each = ", ".join(f"{number}: {count:,}" for number, count in counts)
            notes[-1] += f"; of classes {each}"
        return notes


_PERCENT = [f"{share:.0%}" for share in QUANTILES]


def describe(
    owners: Sequence[RemoteDataset],
    aggregator: Place | str,
    *,
    names: Sequence[str] | None = None,
    classes: int | None = None,
    bins: int = 50,
    batch_size: int | None = 10_000,
) -> Description:
    """Return statistics of the features' columns over all owners' rows.

    Leak: sums over all owners, histograms among them, come to this process; each
    owner's own go to the aggregator. Where there are few rows in all, a histogram says
    much of single ones.

    Args:
        owners: the rows of each. What a row has is columns, one after the other.
        aggregator: where sums are added, itself or by id.
        names: the columns'; by default their numbers.
        classes: how many classes the targets are of, whole numbers from 0; None not to
            count them.
        bins: cells of the histogram, over five standard deviations or more on both
            sides of the mean.
        batch_size: rows that an owner counts at a time; None for all.

    Raises:
        CallError: if there is no owner, or columns differ or are not as many as names.
        NonFiniteError: if an owner's rows have values that are infinite, targets are
            no classes, or a computation on them failed.
    """
    check_columns(owners)
    columns = torch.Size(look_of(owners[0]).shape).numel()
    names = tuple(map(str, range(columns)) if names is None else names)
    if len(names) != columns:
        raise CallError(f"expected {columns} names of columns, got {len(names)}")
    if not isinstance(bins, int) or bins < 1:
        raise CallError(f"expected bins to be 1 or more, got {bins!r}")
    check_classes(classes)
    (cells, sums, _), rows = totals(moments, owners, aggregator, batch_size)
    near = (sums / cells).nan_to_num(0.0)
    centre = Centre(near)
    (off, square), _ = totals(deviations, owners, aggregator, batch_size, given=centre)
    variance = (square - off**2 / cells).clamp_min(0)
    std = (variance / (cells - 1)).sqrt()
    coarse = _grid(near, (variance / cells).sqrt().nan_to_num(0.0), bins)
    counted, _ = totals(histogram, owners, aggregator, batch_size, given=coarse)
    counts = counted[0]
    lower, share = _ranks(cells)
    wanted = torch.cat((lower, (lower + 1).minimum(cells - 1)))
    place, before = _found(counts, wanted)
    fine = _within(coarse, place)
    counted, _ = totals(histogram, owners, aggregator, batch_size, given=fine)
    inner, _ = _found(counted[..., 1:], wanted - before)
    values = (fine.first + inner) * coarse.step
    low, high = values.chunk(2)
    quantiles = low + share * (high - low)
    edges = coarse.first[0] + torch.arange(bins + 1).unsqueeze(1) * coarse.wide - 0.5
    return Description(
        names,
        rows,
        cells.to(torch.int64),
        (rows - cells).to(torch.int64),
        sums / cells + off / cells,
        std,
        quantiles.masked_fill(cells == 0, torch.nan),
        coarse.step,
        (edges * coarse.step).T,
        counts.to(torch.int64),
        None if classes is None else _classes(owners, aggregator, classes, batch_size),
        lambda: totals(products, owners, aggregator, batch_size, given=centre).sums,
    )


def _grid(mean: torch.Tensor, std: torch.Tensor, bins: int) -> Grid:
    """Return cells around means, of steps that are powers of two."""
    least = (mean.abs() * 2.0**-30).clamp_min(2.0**-500)
    step = torch.exp2((std.maximum(least) / _STEPS).log2().floor())
    first = ((mean - _REACH * std) / step + 0.5).floor()
    last = ((mean + _REACH * std) / step + 0.5).floor()
    wide = ((last - first + 1) / bins).ceil()
    return Grid(step, first.unsqueeze(0), wide, bins)


def _ranks(cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the place of the cell below each quantile, and the share of the next.

    Returns:
        Both (quantiles, columns); places from 0.
    """
    shares = torch.tensor(QUANTILES, dtype=torch.float64).unsqueeze(1)
    ranks = shares * (cells - 1).clamp_min(0)
    return ranks.floor(), ranks - ranks.floor()


def _found(
    counts: torch.Tensor, ranks: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return in which part of a histogram places are, and how many are before it.

    Args:
        counts: (..., columns, parts).
        ranks: (quantiles, columns).
    """
    upto = counts.cumsum(-1)
    place = (upto <= ranks.unsqueeze(-1)).sum(-1).clamp_max(counts.shape[-1] - 1)
    upto, counts = torch.broadcast_tensors(upto, counts)
    before = (upto - counts).expand(*place.shape, -1)
    return place, before.gather(-1, place.unsqueeze(-1)).squeeze(-1)


def _within(grid: Grid, place: torch.Tensor) -> Grid:
    """Return the steps within cells of a grid, as grids of cells of one step.

    Args:
        grid: the cells.
        place: (quantiles, columns), which of them, from 1.
    """
    cells = int(grid.wide.max())
    first = grid.first + (place - 1) * grid.wide
    return Grid(grid.step, first, torch.ones_like(grid.wide), cells)


def _classes(
    owners: Sequence[RemoteDataset],
    aggregator: Place | str,
    classes: int,
    batch_size: int | None,
) -> torch.Tensor:
    found = totals(
        _counting(classes),
        owners,
        aggregator,
        batch_size,
        targets=True,
        advice=f"look for targets that are no whole number from 0 to {classes - 1}",
    )
    return found.sums.to(torch.int64)


@functools.lru_cache(maxsize=64)
def _counting(classes: int) -> Counting:
    """Return what counts rows of each class, the same for the same."""

    def count(targets: torch.Tensor, given: object) -> torch.Tensor:
        true, ones = true_classes(targets, classes)
        return added(true, ones, classes)

    return count
