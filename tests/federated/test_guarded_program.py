"""The tutorial's program, with three owners: with and without a policy."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn, optim

import obhut
from obhut.cli import demo, processes
from obhut.client.registry import Place
from obhut.errors import ReleaseRefusedError
from obhut.federated import LocalTraining, RemoteDataset, train_round
from obhut.guard.policy import Policy

OWNERS = ("alice", "bob", "carol")
POLICY = obhut.Quorum(aggregators=["aggregator"], contributors=OWNERS)
ANY = obhut.Quorum(aggregators=["aggregator"], contributors=OWNERS, programs="any")
ROWS = {
    "alice": ([[1, 0], [1, 1.0]], [[1], [1.0]]),
    "bob": ([[0, 0], [0, 1.0]], [[0], [0.0]]),
    "carol": ([[1, 0], [0, 1.0]], [[1], [0.0]]),
}


class OwnerRows(NamedTuple):
    """Two rows at an owner's worker: (2, 2) and (2, 1) float32."""

    features: torch.Tensor
    targets: torch.Tensor


def virtual(policy: Policy | None) -> tuple[dict[str, OwnerRows], Place]:
    """Return three owners and an aggregator in this process."""
    owners = {}
    for name, (features, targets) in ROWS.items():
        rows = {"features": torch.tensor(features), "target": torch.tensor(targets)}
        worker = obhut.VirtualWorker(name, policy=policy, datasets={"rows": rows})
        owners[name] = OwnerRows(worker["rows"], worker["rows", "target"])
    return owners, obhut.VirtualWorker("aggregator", policy=policy)


def train(owners: Mapping[str, OwnerRows], aggregator: Place) -> list[float]:
    """Run the tutorial's program; return weights and mean loss after each round.

    What it fetches is written as the tutorial has it, and nothing else is fetched.
    """
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    figures = []
    for steps in (10, *[5] * 10):
        models, losses = [], []
        for owner in owners.values():
            local = obhut.send(obhut.copy(model), owner.features.location)
            opt = optim.SGD(local.parameters(), lr=0.1)
            for _ in range(steps):
                opt.zero_grad()
                loss = ((local(owner.features) - owner.targets) ** 2).sum()
                loss.backward()
                opt.step()
            models.append(obhut.move(local, aggregator))
            losses.append(obhut.move(loss.detach(), aggregator))
        a, b, c = models
        with torch.no_grad():
            model.weight.set_(
                ((a.weight.data + b.weight.data + c.weight.data) / 3).get()
            )
            model.bias.set_(((a.bias.data + b.bias.data + c.bias.data) / 3).get())
        loss = torch.stack(losses).mean(0).get()
        figures += [*model.weight[0].tolist(), model.bias.item(), loss.item()]
    return figures


@pytest.fixture(scope="module")
def openly() -> list[float]:
    """What it comes to where nothing is enforced."""
    owners, aggregator = virtual(None)
    obhut.get(owners["bob"].features * 1)  # nothing is
    return train(owners, aggregator)


def test_the_program_learns(openly: list[float]) -> None:
    """The mean loss goes down, and the model finds the column that is the answer."""
    *_, first, second, bias, last = openly
    assert last < 0.001 < openly[3]
    assert first == pytest.approx(1, abs=0.1)
    assert [second, bias] == pytest.approx([0, 0], abs=0.1)


@pytest.mark.parametrize("policy", [POLICY, ANY], ids=["same", "any"])
def test_under_a_policy_it_comes_to_the_same(
    openly: list[float], policy: Policy
) -> None:
    """On virtual workers that keep a policy all figures are those without one."""
    owners, aggregator = virtual(policy)
    with pytest.raises(ReleaseRefusedError):
        obhut.get(owners["bob"].features * 1)
    assert train(owners, aggregator) == pytest.approx(openly, abs=1e-6)


@pytest.mark.parametrize("policy", [POLICY, ANY], ids=["same", "any"])
def test_rounds_of_training_pass(policy: Policy) -> None:
    """With an equal share each, owners run one computation, whatever is compared."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    training = LocalTraining(partial(optim.Adam, lr=0.1), nn.MSELoss(), epochs=2)
    owners, aggregator = virtual(policy)
    datasets = [RemoteDataset(*one) for one in owners.values()]
    for _ in range(2):
        train_round(model, datasets, aggregator, training)


def test_statistics_of_batches_are_averaged_with_the_model() -> None:
    """A round under a policy brings a BatchNorm's buffers as a round without does."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    training = LocalTraining(partial(optim.SGD, lr=0.1), nn.MSELoss(), epochs=3)
    states = []
    for policy in (None, POLICY):
        model = copy.deepcopy(first)
        owners, aggregator = virtual(policy)
        train_round(
            model,
            [RemoteDataset(*one) for one in owners.values()],
            aggregator,
            training,
        )
        states.append(model.state_dict())
    assert states[0]["1.num_batches_tracked"].item() == 3
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_served_under_a_policy_it_comes_to_the_same(
    openly: list[float], tmp_path: Path
) -> None:
    """So they are at workers in processes of their own, whose policies name ids.

    The ledger has all that was fetched, and the row that was refused is not in it.
    """
    data = {
        name: (torch.tensor(x).numpy(), torch.tensor(y).numpy())
        for name, (x, y) in ROWS.items()
    }
    with (
        processes.running(tmp_path, data, ["a", "b"]) as serving,
        demo.connect(serving, tmp_path) as net,
    ):
        owners = {
            name: OwnerRows(
                net[name][processes.DATASET], net[name][processes.DATASET, "target"]
            )
            for name in OWNERS
        }
        with pytest.raises(ReleaseRefusedError):
            obhut.get(owners["bob"].features * 1)
        found = train(owners, net["aggregator"])
    assert found == pytest.approx(openly, abs=1e-6)
    assert processes.read_ledger(tmp_path) == processes.Decided(33, 0, ())
