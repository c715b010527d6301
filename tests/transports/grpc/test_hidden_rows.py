"""Served owners who hide how many rows they have."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchmetrics import MeanSquaredError

import obhut
from obhut.client.hidden_dataset import HiddenDataset
from obhut.client.network import Network, connect
from obhut.errors import CallError
from obhut.federated import (
    LocalTraining,
    describe,
    evaluate,
    metrics,
    train_round,
    train_rounds,
)

from .conftest import DATASET, World
from .test_guarded import OWNERS, POLICY, entered

SAME = POLICY + 'programs = "same"\n'
SIZES = dict(zip(OWNERS, (17, 136, 40), strict=True))
DATA = DATASET + 'tags = ["#d"]\npublic = { names = true, rows = "%s" }\n'

Made = Callable[[str], World]


def rows_of(owner: str) -> torch.Tensor:
    """Return an owner's rows: two features and a target."""
    draw = torch.Generator().manual_seed(SIZES[owner])
    return (torch.rand(SIZES[owner], 3, generator=draw) * 1_000).round() / 1_000


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """What makes three owners, of whom each has its own number of rows, and serves."""
    made: dict[str, World] = {}

    def make(rows: str) -> World:
        if rows in made:
            return made[rows]
        names = ("secure_worker", *OWNERS, "me", "you", "mallory")
        world = made[rows] = World(tmp_path_factory.mktemp(rows), names)
        world.serve("secure_worker", policy=SAME, deliver=OWNERS)
        reach = {"secure_worker": world.address("secure_worker")}
        for owner in OWNERS:
            lines = "".join(f"{a},{b},{y}\n" for a, b, y in rows_of(owner).tolist())
            file: Path = world.root / owner / "data.csv"
            file.write_text("a,b,y\n" + lines)
            more = DATA % rows
            world.serve(owner, policy=SAME, deliver=(), reach=reach, more=more)
        return world

    try:
        yield make
    finally:
        for world in made.values():
            world.close()


def figures(owners: list[Any], hub: Any) -> list[torch.Tensor]:
    """Return losses, a metric and the model of two rounds, and a program's sums."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1), nn.Flatten(0))
    how = LocalTraining(
        partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        nn.MSELoss(),
        epochs=2,
        batch_size=8,
        shuffle=True,
    )
    rounds = [*train_rounds(model, owners, hub, how, 2)]
    found = [torch.tensor(one.loss) for one in rounds]
    left, held = zip(*(one.split(0.2, seed=3) for one in owners), strict=True)
    steps = dataclasses.replace(how, epochs=None, steps=5, proximal=0.1)
    found += [torch.tensor(train_round(model, left, hub, steps))]
    found += [
        evaluate(model, one, hub, nn.functional.mse_loss) for one in (owners, held)
    ]
    found += [one.detach() for one in model.parameters()]
    parts = []
    for owner in owners:
        remote = obhut.send(obhut.copy(model), owner.location)
        results = train.run(model=remote, data=owner, seed=1)
        given = [*remote.parameters(), *results["loss"]]
        parts.append([obhut.move(one.detach(), hub) for one in given])
    return found + [(a + b + c).get() for a, b, c in zip(*parts, strict=True)]


@obhut.program
def train(model, data):
    """Train in two epochs."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    total, n = torch.zeros(()), 0
    for _ in range(2):
        for x, y in data.batches(8, shuffle=True):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            total = total + loss.detach() * len(x)
            n += len(x)
    return {"loss": obhut.Ratio(total, n)}


def test_figures_are_those_of_exact_rows_and_of_virtual_workers(worlds: Made) -> None:
    """Digit for digit: owners of 17, 40 and 136 rows under a policy that compares."""
    found = {}
    for rows in ("hidden", "exact"):
        with entered(worlds(rows)) as net:
            owners = [net[name].dataset("d") for name in OWNERS]
            found[rows] = figures(owners, net["secure_worker"])
    found["virtual"] = figures(*virtual())
    for one in ("exact", "virtual"):
        for mine, other in zip(found["hidden"], found[one], strict=True):
            assert torch.equal(mine, other), one


def virtual() -> tuple[list[Any], Any]:
    """Return owners of the same rows in this process, who hide how many, and a hub."""
    policy = obhut.Quorum(aggregators=("secure_worker",), contributors=OWNERS)
    owners = [
        obhut.VirtualWorker(
            name,
            policy=policy,
            datasets={
                "d": {"features": rows_of(name)[:, :2], "target": rows_of(name)[:, 2]}
            },
            rows="hidden",
        ).dataset("d")
        for name in OWNERS
    ]
    return owners, obhut.VirtualWorker("secure_worker", policy=policy)


class Above:
    """The area under a curve, of targets above a half."""

    area = metrics.roc_auc(thresholds=50)
    compute = area.compute

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> obhut.Ratio:
        """Return its counts."""
        return self.area(outputs - 0.5, targets > 0.5)


def statistics(owners: list[Any], hub: Any) -> list[torch.Tensor]:
    """Return metrics of a model, and what columns look like."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))
    wanted = {
        "area": Above(),
        "r2": metrics.r2(),
        "theirs": MeanSquaredError(),
        "one's own": lambda x, y: obhut.Ratio((x > y).sum(), (y > 0).sum()),
    }
    found = evaluate(model, owners, hub, wanted, batch_size=8)
    assert list(found) == list(wanted)
    described = describe(owners, hub, names=("a", "b"), batch_size=8)
    return [
        *found.values(),
        described.mean,
        described.std,
        described.quantiles,
        described.histogram,
        described.covariance(),
    ]


def test_statistics_are_those_of_exact_rows_and_of_virtual_workers(
    worlds: Made,
) -> None:
    """Metrics and columns, digit for digit."""
    found = {"virtual": statistics(*virtual())}
    for rows in ("hidden", "exact"):
        with entered(worlds(rows)) as net:
            owners = [net[name].dataset("d") for name in OWNERS]
            found[rows] = statistics(owners, net["secure_worker"])
    for one in ("exact", "virtual"):
        for mine, other in zip(found["hidden"], found[one], strict=True):
            assert torch.equal(mine, other), one


def test_what_a_client_sees_of_it(worlds: Made) -> None:
    """How a row looks; no number, and no tensor."""
    with entered(worlds("hidden")) as net:
        bob = net["bob"]
        said = bob.datasets["d"]
        assert (said.hidden, said.rows) == (True, None)
        assert said.shapes == {"features": (2,), "target": ()}
        assert said.dtypes == {"features": "float32", "target": "float32"}
        assert "<td>hidden</td>" in bob._repr_html_()
        assert isinstance(bob.dataset("d"), HiddenDataset)
        assert bob.search("#d") == []
        for part in ("features", "target"):
            with pytest.raises(CallError, match=r"run an @obhut.program over worker"):
                bob["d", part]


def test_who_answers_knows_no_number(worlds: Made) -> None:
    """It is in no setting of the process that answers, nor in what is described."""
    for name in OWNERS:
        served = worlds("hidden").served[name]
        for one in served._reading._children._settings.datasets:
            assert one.shape[0] == 2**20
            assert one.fd is None
        assert (
            str(SIZES[name]).encode()
            not in served._describe(worlds("hidden").id("me")).split(b'"sessions"')[0]
        )
        assert b'"rows":null' in served._describe(worlds("hidden").id("me"))


# --- cancelling -----------------------------------------------------------------------


@obhut.program
def slow(x):
    """Add up, line by line."""
    return x.sum()


def counted(net: Network) -> float:
    """Return how many rows all owners have together."""
    a, b, c = (
        obhut.move(net[name].dataset("d").count(), net["secure_worker"])
        for name in OWNERS
    )
    return (a + b + c).get().item()


@pytest.mark.parametrize("cancels", [True, False])
def test_a_run_ends_when_it_is_cancelled(worlds: Made, cancels: bool) -> None:
    """It was answered long ago; the next round begins at once, and other rounds wait.

    A million epochs take minutes at the owner.
    """
    world = worlds("hidden")
    addresses = [world.address(name) for name in ("secure_worker", *OWNERS)]
    with connect(*addresses, folder=world.root / "me") as net:
        epochs = 2**20 if cancels else 2**14
        ratio = slow.run(
            data=net["bob"].dataset("d", "features"), batch_size=2**20, epochs=epochs
        )
        obhut.move(ratio.numerator[-1], net["secure_worker"])
        net["bob"].wait()
        if cancels:
            net["bob"].session.cancel()
        began = time.monotonic()
        assert counted(net) == sum(SIZES.values())
        took = time.monotonic() - began
    assert took < 10 if cancels else took > 0.5
