from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import obhut
from obhut.errors import CallError, NonFiniteError, ReleaseRefusedError
from obhut.federated import Description, LocalTraining, describe, mean_and_std
from obhut.federated.describing import QUANTILES

from .pooled import CLASSES, WAYS, Rows, parts, pooled, served
from .pooled import NAMES as NAMED

NAMES = ["wide", "narrow", "whole", "constant", "far", "holes"]


def rows() -> list[Rows]:
    """Return columns of all kinds, of which some cells are NaN."""
    found = []
    for place, (features, y) in enumerate(parts()):
        x = features.double()
        x[:, 0] = torch.exp(3 * x[:, 0])
        x[:, 1] = x[:, 1] * 1e-4 + 3
        x[:, 2] = (x[:, 2] * 20).round()
        x[:, 3] = 0.1
        x[:, 4] = x[:, 4] + 1e9
        x[::3, 5] = torch.nan
        if place == 1:
            x[:, 5] = torch.nan
        x[place, 0] = torch.nan
        found.append(Rows(x, y))
    return found


@pytest.fixture(params=WAYS)
def described(request: pytest.FixtureRequest) -> Description:
    """What they come to, at open and guarded owners."""
    owners, hub = served(request.param, rows())
    return describe(owners, hub, names=NAMES, classes=CLASSES, bins=20, batch_size=32)


def test_statistics_are_those_of_pooled_rows(described: Description) -> None:
    """By pandas, without missing cells, with a column that one owner has none of."""
    x, y = pooled(rows())
    frame = pd.DataFrame(x.numpy(), columns=NAMES)
    found = described.to_pandas()
    assert list(found.index) == NAMES
    assert described.rows == len(y)
    np.testing.assert_array_equal(found["count"], frame.count())
    np.testing.assert_array_equal(found["missing"], frame.isna().sum())
    np.testing.assert_allclose(found["mean"], frame.mean(), rtol=1e-13)
    np.testing.assert_allclose(found["std"], frame.std(), rtol=1e-9, atol=1e-15)
    covariance = described.covariance().numpy()
    known = (frame - frame.mean()).cov()  # of numbers that are not far from 0
    np.testing.assert_allclose(covariance, known, rtol=1e-8, atol=1e-12)
    assert described.classes is not None
    assert described.classes.tolist() == y.bincount(minlength=CLASSES).tolist()


def test_quantiles_are_those_of_rounded_cells(described: Description) -> None:
    """By numpy; rounded to a 256th of a deviation, and whole numbers are exact."""
    x = pooled(rows()).features.numpy()
    for column, step in enumerate(described.step.numpy()):
        cells = x[~np.isnan(x[:, column]), column]
        rounded = np.floor(cells / step + 0.5) * step
        found = described.quantiles[:, column].numpy()
        np.testing.assert_allclose(found, np.quantile(rounded, QUANTILES), rtol=1e-14)
        off = abs(found - np.quantile(cells, QUANTILES)).max()
        assert off <= step / 2 * (1 + 1e-6)
        if NAMES[column] != "constant":
            assert cells.std() / 512 <= step <= cells.std() / 256
    whole = NAMES.index("whole")
    exact = np.quantile(x[:, whole], QUANTILES)
    assert described.quantiles[:, whole].tolist() == exact.tolist()


def test_histograms_count_each_cell_once(described: Description) -> None:
    """By numpy, between the edges and beyond them."""
    x = pooled(rows()).features.numpy()
    for column, (counts, edges) in enumerate(
        zip(described.histogram.numpy(), described.edges.numpy(), strict=True)
    ):
        cells = x[~np.isnan(x[:, column]), column]
        assert counts.sum() == len(cells)
        inner, _ = np.histogram(cells, edges)
        np.testing.assert_array_equal(counts[1:-1], inner)
        assert counts[0] == (cells < edges[0]).sum()
        reach = 4.99 * cells.std()
        assert edges[0] <= cells.mean() - reach < cells.mean() + reach <= edges[-1]


def test_it_prints_as_a_table(described: Description) -> None:
    """In a terminal and in a notebook, whose markup names can not break."""
    lines = str(described).splitlines()
    assert " ".join(lines[0].split()) == "count missing mean std 5% 25% 50% 75% 95%"
    assert [line.split()[0] for line in lines[1:7]] == NAMES
    assert lines[7].startswith("165 rows; of classes 0: ")
    assert len({len(line) for line in lines[:7]}) == 1
    owners, hub = served("same", rows())
    names = ["<b>", *NAMES[1:]]
    shown = describe(owners, hub, names=names)._repr_html_()
    assert "&lt;b&gt;" in shown
    assert "<b>" not in shown
    assert shown.count("<tr>") == 7


def test_columns_beyond_the_sixtieth_are_not_printed() -> None:
    """They are counted, and rows of several sizes are columns in order."""
    wide = [Rows(torch.randn(9, 1, 8, 9), torch.zeros(9)) for _ in range(5)]
    found = describe(*served("same", wide))
    lines = str(found).splitlines()
    assert (len(lines), lines[-2]) == (63, "and 12 columns more")
    x = pooled(wide).features.flatten(1).double()
    torch.testing.assert_close(found.mean, x.mean(0))


def test_a_column_of_no_or_of_one_cell_has_no_deviation() -> None:
    """It is NaN, as pandas has it."""
    some = [Rows(torch.full((4, 3), torch.nan), torch.zeros(4)) for _ in range(5)]
    some[2].features[1, 1] = 7
    some[2].features[1, 2] = 7
    some[3].features[1, 2] = 8
    found = describe(*served("hidden", some))
    assert found.count.tolist() == [0, 1, 2]
    assert found.mean.tolist()[1:] == [7, 7.5]
    assert found.std.isnan().tolist() == [True, True, False]
    assert found.quantiles[:, 0].isnan().all()
    assert found.quantiles[:, 1].tolist() == [7] * 5
    assert found.quantiles[2, 2] == pytest.approx(7.5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float16, torch.int64])
def test_any_dtype_has_statistics(dtype: torch.dtype) -> None:
    """Whole numbers too, and a single column without a size of its own."""
    draw = torch.Generator().manual_seed(0)
    some = [
        Rows(torch.randint(0, 9, (12,), generator=draw).to(dtype), torch.zeros(12))
        for _ in range(5)
    ]
    found = describe(*served("same", some))
    x = pooled(some).features.double()
    torch.testing.assert_close(found.std[0], x.std())
    assert found.quantiles[:, 0].tolist() == np.quantile(x, QUANTILES).tolist()


@pytest.mark.parametrize("way", WAYS)
def test_what_can_not_be_counted_is_told(way: str) -> None:
    """Of how many owners it is so; a class that is none, and an infinite cell."""
    some = parts()
    owners, hub = served(way, some)
    with pytest.raises(NonFiniteError, match="whole number from 0 to 2") as told:
        describe(owners, hub, classes=3)
    assert told.value.owners == 3
    some[1].features[0, 0] = torch.inf
    owners, hub = served(way, some)
    with pytest.raises(NonFiniteError, match=r"1 of 5 owners .* infinite cells"):
        describe(owners, hub)


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ({"names": ["a"]}, "6 names of columns, got 1"),
        ({"bins": 0}, "bins to be 1 or more"),
        ({"classes": 1}, "classes to be 2 or more"),
    ],
)
def test_arguments_are_checked(how: Any, line: str) -> None:
    """Before anything is sent."""
    owners, hub = served("open", parts())
    with pytest.raises(CallError, match=line):
        describe(owners, hub, **how)
    other, _ = served("open", parts("numbers"))
    narrow = [owner.features[:, :2] for owner in other[:1]]
    with pytest.raises(CallError, match="the same columns"):
        mean_and_std([*narrow, *owners[1:]], hub)


def test_two_owners_are_not_described() -> None:
    """Their policy asks for three."""
    owners, hub = served("same", parts())
    with pytest.raises(ReleaseRefusedError, match="3 owners are needed"):
        describe(owners[:2], hub)


@pytest.mark.parametrize("way", WAYS)
def test_means_are_of_data_sets_too(way: str) -> None:
    """Also of those whose rows are hidden, in whatever sizes; a NaN is told."""
    some = [Rows(x.unflatten(1, (2, 3)), y) for x, y in parts()]
    mean, std = mean_and_std(*served(way, some))
    x = pooled(some).features.double()
    torch.testing.assert_close(mean, x.mean(0).float())
    torch.testing.assert_close(std, x.std(0).float())
    with pytest.raises(NonFiniteError, match=r"5 of 5 owners .* empty cells"):
        mean_and_std(*served(way, rows()))


@pytest.mark.parametrize("way", WAYS)
def test_a_part_of_the_rows_is_described_alone(way: str) -> None:
    """Both parts together are all rows; at one owner a part has none."""
    owners, hub = served(way, parts())
    both = [owner.split(0.05) for owner in owners]
    assert way == "hidden" or 0 in [len(held) for _, held in both]
    found = [describe(list(part), hub) for part in zip(*both, strict=True)]
    assert found[0].rows > found[1].rows > 0
    whole = describe(owners, hub)
    assert sum(one.rows for one in found) == whole.rows
    mean = sum(one.rows * one.mean for one in found) / whole.rows
    torch.testing.assert_close(mean, whole.mean)


def test_features_alone_are_described() -> None:
    """Hidden ones, that come without a target."""
    owners, hub = served("hidden", parts())
    alone = [owner.location.dataset("d", "features") for owner in owners]
    found, known = describe(alone, hub), describe(owners, hub)
    assert torch.equal(found.std, known.std)
    assert torch.equal(found.quantiles, known.quantiles)


class Filled(nn.Module):
    """Puts a mean where a cell is missing."""

    mean: torch.Tensor

    def __init__(self, mean: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return rows without missing cells, (rows, columns)."""
        return torch.where(x.isnan(), self.mean, x)


@pytest.mark.parametrize("way", WAYS)
def test_a_model_can_fill_missing_cells_with_the_mean_of_all(way: str) -> None:
    """It trains as one on rows that were filled before; without, nothing is silent."""
    holes = [Rows(x.clone(), y[:, :1]) for x, y in parts("numbers")]
    holes[1].features[2, 3] = torch.nan
    x = pooled(holes).features
    mean = x.double().nanmean(0)
    filled = [Rows(torch.where(x.isnan(), mean.float(), x), y) for x, y in holes]
    figures = []
    for rows in (holes, filled):
        owners, hub = served(way, rows)
        federation = obhut.Federation(dict(zip(NAMED, owners, strict=True)), hub)
        found = federation.describe()
        assert found.missing.sum() == (rows is holes)
        torch.manual_seed(0)
        own = found.mean if rows is holes else mean
        torch.testing.assert_close(own, mean)
        model = nn.Sequential(Filled(mean), nn.Linear(6, 1))
        how = LocalTraining(
            partial(torch.optim.SGD, lr=0.01), nn.functional.mse_loss, batch_size=8
        )
        history = federation.fit(model, how, rounds=2, seed=0, progress=False)
        figures.append([*model.state_dict().values(), torch.tensor(history[-1].loss)])
        if rows is holes:
            with pytest.raises(NonFiniteError):
                federation.fit(model[1], how, rounds=1, progress=False)
            with pytest.raises(NonFiniteError, match="look for empty cells"):
                mean_and_std(owners, hub)
    for one, other in zip(*figures, strict=True):
        assert torch.equal(one, other)
