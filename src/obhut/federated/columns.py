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

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from obhut.client.hidden_dataset import HiddenDataset
from obhut.client.modules import send_copy
from obhut.client.programs import Program, program
from obhut.client.ratio import Ratio
from obhut.client.registry import Place
from obhut.client.remote_dataset import RemoteDataset
from obhut.errors import CallError

from .contributions import collected


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


def features_of(owner: RemoteDataset) -> torch.Tensor | HiddenDataset:
    """Return an owner's features alone, for a program."""
    return _part(owner, 0) if isinstance(owner, HiddenDataset) else owner.features


def targets_of(owner: RemoteDataset) -> torch.Tensor | HiddenDataset:
    """Return an owner's targets alone, for a program."""
    return _part(owner, -1) if isinstance(owner, HiddenDataset) else owner.targets


def _part(owner: HiddenDataset, place: int) -> HiddenDataset:
    name, look = owner.rows.parts[place], owner.looks[place]
    return HiddenDataset(owner.location, owner.rows.dataset, {name: look})


def shape_of(data: torch.Tensor | HiddenDataset) -> tuple[int, ...]:
    """Return the sizes of a row."""
    if isinstance(data, HiddenDataset):
        return tuple(data.looks[0].shape)
    return tuple(data.shape[1:])


def check_columns(data: Sequence[torch.Tensor | HiddenDataset]) -> None:
    """Check that all owners have the same columns.

    Raises:
        CallError: if they have not, or there is no owner.
    """
    shapes = [list(shape_of(one)) for one in data]
    if not shapes or any(shape != shapes[0] for shape in shapes):
        raise CallError(
            "expected owners of the same columns, one or more, got rows of shapes "
            + (", ".join(map(str, shapes)) or "none")
        )


def dtype_of(data: torch.Tensor | HiddenDataset) -> torch.dtype:
    """Return the dtype of cells."""
    return data.looks[0].dtype if isinstance(data, HiddenDataset) else data.dtype


def totals(
    counting: Program,
    data: Sequence[torch.Tensor | HiddenDataset],
    aggregator: Place | str,
    batch_size: int | None = None,
    *,
    advice: str = "look for infinite cells in their rows",
    **given: nn.Module,
) -> Totals:
    """Return what all owners count by a program.

    Leak: the sums over all owners, and how many rows they have together, come to this
    process; each owner's own go to the aggregator.

    Args:
        counting: a program that returns a ``Ratio`` over rows.
        data: of each owner the rows, there.
        aggregator: where sums are added, itself or by id.
        batch_size: rows that are counted at a time; None for all.
        advice: what the error says after how many owners there were.
        given: what the program takes beside rows, here.

    Raises:
        NonFiniteError: if sums are NaN or infinite, or failed.
    """
    parts = []
    for rows in data:
        place: Place = rows.location  # type: ignore[union-attr] # of remote rows
        there: dict[str, Any] = {
            name: send_copy(one, place) for name, one in given.items()
        }
        found = counting.run(data=rows, batch_size=batch_size, **there)
        parts.append([found.numerator[0], found.denominator[0]])
    sums, rows_ = collected(parts, aggregator, [torch.float64] * 2, advice=advice)
    return Totals(sums, round(rows_.item()))


@program
def sums(features: torch.Tensor) -> Ratio:
    """Return sums and squares of each column, (2, columns); NaN if a cell is."""
    values = _flat(features)
    return Ratio(torch.stack((values.sum(0), values.square().sum(0))), len(features))


@program
def moments(features: torch.Tensor) -> Ratio:
    """Return cells, sums and squares of each column, (3, columns)."""
    there, values = _cells(features)
    return Ratio(
        torch.stack((there.sum(0), values.sum(0), values.square().sum(0))),
        len(features),
    )


@program
def deviations(centre: Centre, features: torch.Tensor) -> Ratio:
    """Return sums and squares of what columns differ by from a centre, (2, columns)."""
    there, values = _cells(features)
    off = values - there * centre.mean
    return Ratio(torch.stack((off.sum(0), off.square().sum(0))), len(features))


@program
def products(centre: Centre, features: torch.Tensor) -> Ratio:
    """Return what pairs of columns come to in rows where both have a cell.

    Returns:
        (3, columns, columns): how many rows, sums of the first's difference from a
        centre, and sums of products of both differences.
    """
    there, values = _cells(features)
    off = values - there * centre.mean
    return Ratio(
        torch.stack((there.T @ there, off.T @ there, off.T @ off)), len(features)
    )


@program
def histogram(grid: Grid, features: torch.Tensor) -> Ratio:
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
    return Ratio(counts.view(grids, columns, size), len(features))


def _cells(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where cells are, and values, else 0, both (rows, columns) float64."""
    values = _flat(features)
    missing = values.isnan()
    return missing.logical_not().to(torch.float64), values.masked_fill(missing, 0.0)


def _flat(features: torch.Tensor) -> torch.Tensor:
    flat = features.flatten(1) if features.dim() > 1 else features.unsqueeze(1)
    return flat.to(torch.float64)
