"""Rounds and metrics over owners whose number of rows nobody learns."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn, optim

import obhut
from obhut.errors import NonFiniteError, ProgramError
from obhut.federated import LocalTraining, evaluate, train_round, train_rounds

OWNERS = ("alice", "bob", "carol", "dave")
SIZES = (17, 136, 40, 40)
POLICY = obhut.Quorum(aggregators=("hub",), contributors=OWNERS)


def data(rows: str, *, only: str = "") -> tuple[list[Any], obhut.VirtualWorker]:
    """Return owners' rows and an aggregator, under a policy that compares programs.

    Args:
        rows: whether how many there are is exact or hidden.
        only: the one owner of whom it is so; of the others it is exact.
    """
    found = []
    for place, (name, size) in enumerate(zip(OWNERS, SIZES, strict=True)):
        draw = torch.Generator().manual_seed(place)
        x = torch.randn(size, 3, generator=draw)
        parts = {"features": x, "target": x.sum(1, keepdim=True)}
        worker = obhut.VirtualWorker(
            name,
            policy=POLICY,
            datasets={"d": parts},
            rows=rows if only in ("", name) else "exact",
        )
        found.append(worker.dataset("d"))
    return found, obhut.VirtualWorker("hub", policy=POLICY)


def training(**how: Any) -> LocalTraining:
    """Return a training in batches of eight."""
    given = {"epochs": 2, "batch_size": 8, "shuffle": True} | how
    return LocalTraining(partial(optim.Adam, lr=0.05), nn.MSELoss(), **given)


def model(*layers: nn.Module) -> nn.Module:
    """Return a model, the same each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), *layers, nn.Linear(4, 1))


def figures(rows: str, only: str = "", **how: Any) -> list[torch.Tensor]:
    """Return what three rounds and a metric come to."""
    owners, hub = data(rows, only=only)
    trained = model(nn.ReLU())
    found = [
        torch.tensor(report.loss)
        for report in train_rounds(trained, owners, hub, training(), 3, **how)
    ]
    metric = evaluate(trained, owners, hub, nn.functional.mse_loss, **how)
    return [*found, metric, *(one.detach() for one in trained.parameters())]


@pytest.mark.parametrize("weights", [None, (1, 1, 1, 1)])
@pytest.mark.parametrize("only", ["", "bob"])
def test_figures_are_those_of_exact_rows(only: str, weights: Any) -> None:
    """Digit for digit, whoever hides; weighed by what owners count, or all alike."""
    hidden = figures("hidden", only, weights=weights)
    for one, other in zip(hidden, figures("exact", weights=weights), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_means_are_the_same_in_any_dtype(dtype: torch.dtype) -> None:
    """What rows are multiplied with is exact up to the most that can be hidden."""
    found = []
    for rows in ("hidden", "exact"):
        owners, hub = data(rows)
        torch.manual_seed(0)
        layer = nn.Linear(3, 1, dtype=dtype)

        def loss(x: torch.Tensor, y: torch.Tensor, kind: Any = dtype) -> torch.Tensor:
            return ((x - y.to(kind)) ** 2).mean()

        class Wide(nn.Module):
            def __init__(self, inner: nn.Module = layer) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.inner(x.to(self.inner.weight.dtype))

        train_round(
            Wide(),
            owners,
            hub,
            LocalTraining(partial(optim.SGD, lr=0.1), loss, batch_size=8),
        )
        found.append(layer.weight.detach().clone())
    assert torch.equal(*found)


def test_a_last_batch_of_one_row_is_left_out() -> None:
    """Of 17 rows in batches of eight: exact ones are an error, hidden ones train."""
    norm = model(nn.BatchNorm1d(4))
    owners, hub = data("hidden")
    assert train_round(norm, owners, hub, training()) > 0
    owners, hub = data("exact")
    with pytest.raises(obhut.ObhutError, match="has 1 row, of 17"):
        train_round(norm, owners, hub, training())


def test_an_owner_without_a_full_batch_spoils_the_round() -> None:
    """It is told of how many owners that is so, as of whatever fails at them."""
    owners, hub = data("hidden")
    with pytest.raises(NonFiniteError) as told:
        train_round(model(), owners, hub, training(batch_size=20, drop_last=True))
    assert (told.value.owners, told.value.asked) == (1, 4)


def test_what_can_not_be_recorded_is_refused() -> None:
    """It says why, and that it can't run line by line; nothing is warned of."""

    def reading(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = ((x - y) ** 2).mean()
        return loss if loss.item() < 1 else loss * 2

    owners, hub = data("hidden")
    how = LocalTraining(partial(optim.SGD, lr=0.1), reading)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for run in (
            lambda: train_round(model(), owners, hub, how),
            lambda: evaluate(model(), owners, hub, reading),
        ):
            with pytest.raises(ProgramError, match=r"value .*; line by line it can"):
                run()


def test_an_eager_training_is_refused() -> None:
    """Its loop would show how many rows there are."""
    owners, hub = data("hidden")
    with pytest.raises(obhut.ObhutError, match="is hidden, and a loop here would show"):
        train_round(model(), owners, hub, training(eager=True))


def test_batches_too_small_for_a_model_are_refused_at_once() -> None:
    """That follows from what was asked."""
    owners, hub = data("hidden")
    with pytest.raises(ProgramError, match="has 1 row, and 2 or more are needed"):
        train_round(model(nn.BatchNorm1d(4)), owners, hub, training(batch_size=1))
