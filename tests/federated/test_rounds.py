from __future__ import annotations

import copy
import gc
from collections.abc import Sequence
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import obhut
from obhut.errors import CallError, ObhutError
from obhut.federated import (
    LocalTraining,
    RemoteDataset,
    Round,
    train_round,
    train_rounds,
)
from obhut.protocol.messages import Fetch
from obhut.testing.traces import TracingTransport
from obhut.transports.local import LocalShell, LocalTransport
from obhut.worker.core import Worker

ROWS = (7, 3, 20)
TRAINING = LocalTraining(partial(torch.optim.SGD, lr=0.1), F.mse_loss, epochs=4)


class Recording(TracingTransport):
    """A way to a worker that keeps what was asked of it."""

    def __init__(self, name: str) -> None:
        super().__init__(LocalTransport(LocalShell(Worker(name))))

    def fetches(self) -> int:
        """Return how many values were asked for."""
        return sum(isinstance(request, Fetch) for request in self.requests)


def _make_rows() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(n, 3), torch.randn(n, 1)) for n in ROWS]


def _send(rows: list[tuple[torch.Tensor, torch.Tensor]]) -> list[RemoteDataset]:
    return [
        RemoteDataset.send(x, y, obhut.VirtualWorker(f"owner-{number}"))
        for number, (x, y) in enumerate(rows)
    ]


def _local_round(
    model: nn.Module,
    rows: list[tuple[torch.Tensor, torch.Tensor]],
    weights: Sequence[float],
) -> float:
    """Do the arithmetic of a round without obhut."""
    states, losses = [], []
    for x, y in rows:
        mine = copy.deepcopy(model)
        opt = torch.optim.SGD(mine.parameters(), lr=0.1)
        for _ in range(4):
            opt.zero_grad()
            loss = F.mse_loss(mine(x), y)
            loss.backward()
            opt.step()
        states.append(mine.state_dict())
        losses.append(loss.item())
    total, count = sum(weights), sum(ROWS)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.copy_(
                sum(s[name] * (w / total) for s, w in zip(states, weights, strict=True))
            )
    return sum(x * n / count for x, n in zip(losses, ROWS, strict=True))


@pytest.mark.parametrize("weights", [None, [1.0, 1.0, 2.0]])
def test_rounds_are_the_arithmetic_written_out(weights: list[float] | None) -> None:
    """Models and losses equal those of the same loop and average done locally."""
    rows = _make_rows()
    model = nn.Linear(3, 1)
    expected = copy.deepcopy(model)
    reports = train_rounds(
        model, _send(rows), obhut.VirtualWorker("aggregator"), TRAINING, 3, weights
    )
    for number, report in enumerate(reports, 1):
        loss = _local_round(expected, rows, weights or ROWS)
        assert isinstance(report, Round)
        assert report.number == number
        assert report.loss == pytest.approx(loss, abs=1e-6)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(
                value, expected.state_dict()[name], atol=1e-6, rtol=1e-6
            )
    assert number == 3


def test_nothing_is_fetched_from_an_owner() -> None:
    """Only the aggregator is asked: for sums, and one owner's are among none of them.

    They are a count of failures, one of rows, weight and bias, and a loss in two parts.
    """
    owners = [Recording(f"recorded-{number}") for number in range(3)]
    aggregator = Recording("recorded-aggregator")
    datasets = [
        RemoteDataset.send(x, y, obhut.RemoteWorker(transport))
        for (x, y), transport in zip(_make_rows(), owners, strict=True)
    ]
    train_round(nn.Linear(3, 1), datasets, obhut.RemoteWorker(aggregator), TRAINING)
    assert [transport.fetches() for transport in owners] == [0, 0, 0]
    assert aggregator.fetches() == 6


def test_a_round_leaves_nothing_behind() -> None:
    """After a round the owners hold their rows only, and the aggregator nothing."""
    datasets = _send(_make_rows())
    aggregator = obhut.VirtualWorker("aggregator")
    train_round(nn.Linear(3, 1), datasets, aggregator, TRAINING)
    gc.collect()
    assert [dataset.location.objects_count() for dataset in datasets] == [2, 2, 2]
    assert aggregator.objects_count() == 0


def test_a_round_is_all_or_nothing() -> None:
    """If an owner is gone, the round raises and the model is as it was."""
    datasets = _send(_make_rows())
    model = nn.Linear(3, 1)
    before = copy.deepcopy(model.state_dict())
    datasets[1].location.close()
    with pytest.raises(ObhutError, match="owner-1"):
        train_round(model, datasets, obhut.VirtualWorker("aggregator"), TRAINING)
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())


def test_the_model_keeps_its_parameters_and_its_mode() -> None:
    """A round changes values in place: optimizers and eval() go on holding."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).eval()
    parameters = [id(parameter) for parameter in model.parameters()]
    train_round(model, _send(_make_rows()), obhut.VirtualWorker("agg"), TRAINING)
    assert [id(parameter) for parameter in model.parameters()] == parameters
    assert not model.training
    assert model[1].num_batches_tracked.item() == TRAINING.epochs


def test_a_round_takes_place_when_it_is_asked_for() -> None:
    """Rounds that nobody asks for are not done."""
    model = nn.Linear(3, 1)
    before = model.weight.clone()
    reports = train_rounds(
        model, _send(_make_rows()), obhut.VirtualWorker("aggregator"), TRAINING, 2
    )
    assert torch.equal(model.weight, before)
    next(reports)
    assert not torch.equal(model.weight, before)


def test_what_does_not_fit_is_refused_before_training() -> None:
    """Without owners, or with other weights than owners, nothing is trained."""
    aggregator = obhut.VirtualWorker("aggregator")
    datasets = _send(_make_rows())
    with pytest.raises(CallError, match="at least one"):
        train_round(nn.Linear(3, 1), [], aggregator, TRAINING)
    with pytest.raises(CallError, match="expected 3 weights"):
        train_round(nn.Linear(3, 1), datasets, aggregator, TRAINING, [1.0])
    assert datasets[0].location.objects_count() == 2


@pytest.mark.parametrize("guarded", [False, True])
def test_one_owners_row_count_ends_no_round(guarded: bool) -> None:
    """Under a BatchNorm 33 rows in batches of 32 are one batch with ``drop_last``."""
    names = ("bob", "alice", "carol")
    policy = obhut.Quorum(aggregators=["agg"], contributors=names) if guarded else None
    owners = []
    for name, rows in zip(names, (32, 33, 64), strict=True):
        data = {"features": torch.randn(rows, 5), "target": torch.randn(rows, 1)}
        worker = obhut.VirtualWorker(name, policy=policy, datasets={"rows": data})
        owners.append(RemoteDataset(worker["rows"], worker["rows", "target"]))
    aggregator = obhut.VirtualWorker("agg", policy=policy)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    sgd = partial(torch.optim.SGD, lr=0.1)
    with pytest.raises(CallError, match=r"last batch at alice has 1 row.*drop_last"):
        train_round(
            model, owners, aggregator, LocalTraining(sgd, F.mse_loss, batch_size=32)
        )
    assert model[1].num_batches_tracked.item() == 0
    training = LocalTraining(sgd, F.mse_loss, batch_size=32, drop_last=True)
    train_round(model, owners, aggregator, training, weights=[1, 1, 1])
    assert model[1].num_batches_tracked.item() == 1  # of 1, 1 and 2


def test_a_frozen_norm_stays_as_it_was() -> None:
    """A norm that the caller froze is frozen at the owners, and its mode is kept."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model[1].eval()
    before = obhut.copy(model[1]).state_dict()
    train_round(model, _send(_make_rows()), obhut.VirtualWorker("agg"), TRAINING)
    after = model[1].state_dict()
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(after[name], before[name])
    assert [module.training for module in model] == [True, False, True]


def test_a_frozen_parameter_is_not_delivered() -> None:
    """It goes to the owners, and what becomes of it there does not come back."""

    class Restless(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.bias.data.add_(1.0)
            return super().forward(x)

    model = Restless(3, 1)
    model.bias.requires_grad_(False)
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    aggregator = Recording("recorded-aggregator")
    train_round(model, _send(_make_rows()), obhut.RemoteWorker(aggregator), TRAINING)
    assert torch.equal(model.bias, bias)
    assert not torch.equal(model.weight, weight)
    # A count of failures, one of rows, weight, and a loss in two parts.
    assert aggregator.fetches() == 5


def test_federated_training_learns() -> None:
    """Owners who have one kind of row each learn what separates the kinds."""
    rows = [
        (torch.randn(20, 2) + kind, torch.full((20, 1), kind)) for kind in (-2.0, 2.0)
    ]
    model = nn.Linear(2, 1)
    training = LocalTraining(partial(torch.optim.SGD, lr=0.01), F.mse_loss, epochs=4)
    *_, last = train_rounds(
        model, _send(rows), obhut.VirtualWorker("aggregator"), training, 20
    )
    assert last.loss < 1
    assert all(bool(((model(x) > 0) == (y > 0)).float().mean() > 0.9) for x, y in rows)
