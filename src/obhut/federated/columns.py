"""What owners count in the columns of their rows, as programs.

::

    found = totals(moments, owners, aggregator)  # over all owners
    found.sums.unbind()                          # cells, sums and squares of columns
    found.rows                                   # how many rows there are

Rules:

- A cell that is NaN is missing, and left out of all but ``sums``, which is NaN then.
- Sums are made in float64. Columns are what a row has, one after the other.
- What columns are compared with, such as a grid, travels to the owners.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn

from obhut.client.hidden_dataset import HiddenDataset
from obhut.client.modules import send_copy
from obhut.client.programs import Program
from obhut.client.ratio import Ratio
from obhut.client.recording import Rows
from obhut.client.registry import Place
from obhut.client.remote_dataset import RemoteDataset
from obhut.errors import CallError

from .contributions import collected

# Any: the module that it takes.
Counting: TypeAlias = Callable[[torch.Tensor, Any], torch.Tensor]
"""Takes a batch of rows, and a module or an empty one, and returns what is summed."""


class Totals(NamedTuple):
    """What all owners counted.

    Attributes:
        sums: of any shape, float64.
        rows: how many rows there are.
    """

    sums: torch.Tensor
    rows: int


class Grid(nn.Module):
    """Cells of equal width in each column, and what lies beyond them.

    Args:
        step: (columns,) float64, a width that numbers are rounded to, to multiples.
        first: (..., columns) float64, the multiple that the first cell begins with.
        wide: (columns,) float64, how many multiples a cell has.
        cells: how many there are.
    """

    step: torch.Tensor
    first: torch.Tensor
    wide: torch.Tensor

    def __init__(
        self, step: torch.Tensor, first: torch.Tensor, wide: torch.Tensor, cells: int
    ) -> None:
        super().__init__()
        self.register_buffer("step", step)
        self.register_buffer("first", first)
        self.register_buffer("wide", wide)
        self.cells = cells


class Centre(nn.Module):
    """Near the mean of each column.

    Args:
        mean: (columns,) float64.
    """

    mean: torch.Tensor

    def __init__(self, mean: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)


Data: TypeAlias = torch.Tensor | RemoteDataset
"""A remote tensor, or a data set."""


def look_of(data: Data) -> Rows:
    """Return what a row of features looks like."""
    if isinstance(data, HiddenDataset):
        return Rows(data.looks[0].dtype, tuple(data.looks[0].shape))
    features = data.features if isinstance(data, RemoteDataset) else data
    return Rows(features.dtype, tuple(features.shape[1:]))


def check_columns(data: Sequence[Data]) -> None:
    """Check that all owners have the same columns.

    Raises:
        CallError: if they have not, or there is no owner.
    """
    shapes = [list(look_of(one).shape) for one in data]
    if not shapes or any(shape != shapes[0] for shape in shapes):
        raise CallError(
            "expected owners of the same columns, one or more, got rows of shapes "
            + (", ".join(map(str, shapes)) or "none")
        )


def totals(
    counting: Counting,
    data: Sequence[Data],
    aggregator: Place | str,
    batch_size: int | None = None,
    *,
    given: nn.Module | None = None,
    targets: bool = False,
    advice: str = "look for infinite cells in their rows",
) -> Totals:
    """Return what all owners count.

    Leak: the sums over all owners, and how many rows they have together, come to this
    process; each owner's own go to the aggregator.

    Args:
        counting: what one of them counts in a batch.
        data: of each owner the rows, there.
        aggregator: where sums are added, itself or by id.
        batch_size: rows that are counted at a time; None for all.
        given: what is passed beside rows, here.
        targets: whether it counts targets of data sets, and not features.
        advice: what the error says after how many owners there were.

    Raises:
        NonFiniteError: if sums are NaN or infinite, or failed.
    """
    parts = []
    for rows in data:
        place: Place = rows.location  # type: ignore[union-attr] # of remote rows
        there = nn.Module() if given is None else send_copy(given, place)
        alone = not isinstance(rows, RemoteDataset) or (
            isinstance(rows, HiddenDataset) and len(rows.looks) == 1
        )
        program = _program(counting, alone, targets)
        found = program.run(data=rows, batch_size=batch_size, given=there)
        parts.append([found.numerator[0], found.denominator[0]])
    sums, number = collected(parts, aggregator, [torch.float64] * 2, advice=advice)
    return Totals(sums, round(number.item()))


@functools.lru_cache(maxsize=64)
def _program(counting: Counting, alone: bool, targets: bool) -> Program:
    """Return what is counted in a batch as a program, the same for the same.

    Args:
        counting: what is counted.
        alone: whether rows are one tensor, and not features and targets.
        targets: whether in these.
    """
    if alone:

        def count(given: Any, x: torch.Tensor) -> Ratio:
            return Ratio(counting(x, given), len(x))

        return Program(count)

    def count_one(given: Any, features: torch.Tensor, target: torch.Tensor) -> Ratio:
        x = target if targets else features
        return Ratio(counting(x, given), len(x))

    return Program(count_one)


def sums(features: torch.Tensor, given: nn.Module) -> torch.Tensor:
    """Return sums and squares of each column, (2, columns); NaN if a cell is."""
    values = _flat(features)
    return torch.stack((values.sum(0), values.square().sum(0)))


def moments(features: torch.Tensor, given: nn.Module) -> torch.Tensor:
    """Return cells, sums and squares of each column, (3, columns)."""
    there, values = _cells(features)
    return torch.stack((there.sum(0), values.sum(0), values.square().sum(0)))


def deviations(features: torch.Tensor, centre: Centre) -> torch.Tensor:
    """Return sums and squares of what columns differ by from a centre, (2, columns)."""
    there, values = _cells(features)
    off = values - there * centre.mean
    return torch.stack((off.sum(0), off.square().sum(0)))


def products(features: torch.Tensor, centre: Centre) -> torch.Tensor:
    """Return what pairs of columns come to in rows where both have a cell.

    Returns:
        (3, columns, columns): how many rows, sums of the first's difference from a
        centre, and sums of products of both differences.
    """
    there, values = _cells(features)
    off = values - there * centre.mean
    return torch.stack((there.T @ there, off.T @ there, off.T @ off))


def histogram(features: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return how many cells of columns are in the cells of grids.

    Returns:
        (grids, columns, cells + 2): the first and the last for what is below and above.
    """
    there, values = _cells(features)
    steps = (values / grid.step + 0.5).floor()
    places = ((steps.unsqueeze(1) - grid.first) / grid.wide).floor()
    size = grid.cells + 2
    grids, columns = grid.first.shape
    each = torch.arange(grids * columns, device=features.device) * size
    places = places.clamp(-1, grid.cells).to(torch.int64) + 1
    places = places + each.view(grids, columns)
    amounts = there.unsqueeze(1).repeat(1, grids, 1)
    counts = amounts.new_zeros(grids * columns * size)
    counts = counts.scatter_add(0, places.view(-1), amounts.view(-1))
    return counts.view(grids, columns, size)


def _cells(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where cells are, and values, else 0, both (rows, columns) float64."""
    values = _flat(features)
    missing = values.isnan()
    return missing.logical_not().to(torch.float64), values.masked_fill(missing, 0.0)


def _flat(features: torch.Tensor) -> torch.Tensor:
    flat = features.flatten(1) if features.dim() > 1 else features.unsqueeze(1)
    return flat.to(torch.float64)
