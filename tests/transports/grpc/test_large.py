"""Served data sets that are larger than what a session may hold."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import obhut
from obhut.client.network import connect
from obhut.client.remote_dataset import RemoteDataset
from obhut.errors import MemoryLimitError

from .conftest import World
from .test_guarded import OWNERS, POLICY, entered

COLUMNS = 1_023
ROWS = 200_000_000 // (4 * (COLUMNS + 1))
MEMORY = 'memory = "64 MiB"'
DATA = '[[dataset]]\nname = "d"\npath = "d.npz"\n'


@obhut.program
def trained(model, data):
    """Go through all rows twice, once in an order that is drawn."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    total, n = torch.zeros(()), 0
    for x, y in data.batches(256):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x).flatten(), y)
        loss.backward()
        optimizer.step()
        total = total + loss.detach() * len(x)
        n += len(x)
    for x, y in data.batches(256, shuffle=True):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x).flatten(), y)
        loss.backward()
        optimizer.step()
        total = total + loss.detach() * len(x)
        n += len(x)
    return {"loss": obhut.Ratio(total, n)}


def rows_of(owner: str, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an owner's features and targets."""
    draw = np.random.default_rng(OWNERS.index(owner))
    features = draw.random((rows, COLUMNS), dtype=np.float32)
    return features, features[:, :7].sum(1)


def model() -> nn.Module:
    """Return what is trained."""
    torch.manual_seed(0)
    return nn.Linear(COLUMNS, 1)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One who serves 200 MB, and allows a session 64 MiB."""
    world = World(tmp_path_factory.mktemp("large"), ("bob", "me"))
    features, target = rows_of("bob", ROWS)
    np.savez(world.root / "bob" / "d.npz", features=features, target=target)
    try:
        world.serve("bob", sessions=["me"], limits=MEMORY, more=DATA)
        yield world
    finally:
        world.close()
        (world.root / "bob" / "d.npz").unlink()


def test_a_program_trains_on_more_than_a_session_holds(large: World) -> None:
    """Digit for digit as in memory, whatever the order."""
    with connect(large.address("bob"), folder=large.root / "me") as net:
        bob = net["bob"]
        there = obhut.send(model(), bob)
        loss = trained.run(model=there, data=bob.dataset("d"), seed=1)["loss"]
        found = [loss.numerator.get(), *obhut.get(there).parameters()]
    virtual = obhut.VirtualWorker("bob")
    features, target = map(torch.from_numpy, rows_of("bob", ROWS))
    data = RemoteDataset.send(features, target, virtual)
    here = obhut.send(model(), virtual)
    loss = trained.run(model=here, data=data, seed=1)["loss"]
    expected = [loss.numerator.get(), *obhut.get(here).parameters()]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_it_is_on_the_disk_and_costs_nothing_until_it_is_written(large: World) -> None:
    """A session may look at all of it, and have no copy of its own."""
    arrays = large.served["bob"]._reading.datasets["d"].tensors
    assert "memfd" not in os.readlink(f"/proc/self/fd/{arrays['features'].fd}")
    with connect(large.address("bob"), folder=large.root / "me") as net:
        x, y = net["bob"].dataset("d").features, net["bob"].dataset("d").targets
        mean = x.mean(0)
        assert mean.get().shape == (COLUMNS,)
        for write in (x.zero_, x[:5].zero_, x.neg):
            with pytest.raises(MemoryLimitError):
                obhut.get(write().sum())
        y.zero_()  # a copy of 200 kB
        assert (x[-1].sum() + y.sum()).get() > 0


@pytest.mark.parametrize(
    "rows", ["hidden", pytest.param("exact", marks=pytest.mark.slow)]
)
def test_a_policy_changes_nothing_of_that(rows: str, tmp_path: Path) -> None:
    """Neither who answers nor who has the rows needs them in memory."""
    names = ("secure_worker", *OWNERS, "me", "you", "mallory")
    world = World(tmp_path, names)
    public = f'public = {{ names = true, rows = "{rows}" }}\n'
    counts = dict(zip(OWNERS, (100, 25_000, 50), strict=True))
    try:
        world.serve("secure_worker", policy=POLICY, deliver=OWNERS)
        reach = {"secure_worker": world.address("secure_worker")}
        for owner, count in counts.items():
            features, target = rows_of(owner, count)
            file = world.root / owner / "d.npz"
            np.savez(file, features=features, target=target)
            world.serve(
                owner,
                policy=POLICY,
                deliver=(),
                reach=reach,
                limits=MEMORY,
                more=DATA + public,
            )
        with entered(world) as net:
            owners = [net[name] for name in OWNERS]
            found = figures(owners, net["secure_worker"])
    finally:
        world.close()
    policy = obhut.Quorum(aggregators=("secure_worker",), contributors=OWNERS)
    virtual = [
        obhut.VirtualWorker(
            name,
            policy=policy,
            datasets={
                "d": dict(
                    zip(
                        ("features", "target"),
                        map(torch.from_numpy, rows_of(name, count)),
                        strict=True,
                    )
                )
            },
            rows="hidden",
        )
        for name, count in counts.items()
    ]
    hub = obhut.VirtualWorker("secure_worker", policy=policy)
    for one, other in zip(found, figures(virtual, hub), strict=True):
        assert torch.equal(one, other)


def figures(owners: list[Any], hub: Any) -> list[torch.Tensor]:
    """Return the sum of what is trained at each."""
    parts = []
    for owner in owners:
        there = obhut.send(model(), owner)
        loss = trained.run(model=there, data=owner.dataset("d"), seed=1)["loss"]
        given = [*there.parameters(), loss.numerator]
        parts.append([obhut.move(one.detach(), hub) for one in given])
    return [(a + b + c).get() for a, b, c in zip(*parts, strict=True)]
