"""A policy at workers that are really served: with processes, ledger and network."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import obhut
from obhut.client.network import Network, connect
from obhut.errors import (
    AccessDeniedError,
    LedgerError,
    NonFiniteError,
    ObhutError,
    OpNotAdmittedError,
    ReleaseRefusedError,
)
from obhut.federated import LocalTraining, RemoteDataset, train_round

from .conftest import DATASET, World, until

OWNERS = ("alice", "bob", "carol")
POLICY = """
kind = "Quorum"
aggregators = ["secure_worker"]
contributors = ["alice", "bob", "carol"]
requesters = ["me", "you"]
refusals = 1000
"""
DATA = DATASET + 'public = { names = true, types = true, rows = "exact" }\n'


def serve(world: World, name: str, **options: str) -> None:
    """Serve one of the four under the policy."""
    if name == "secure_worker":
        # Names stand for whoever is pinned.
        world.serve(name, policy=POLICY, deliver=OWNERS, **options)
    else:
        reach = {"secure_worker": world.address("secure_worker")}
        world.serve(name, policy=POLICY, deliver=(), reach=reach, more=DATA)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Three owners and an aggregator under one policy; three who are known."""
    names = ("secure_worker", *OWNERS, "me", "you", "mallory")
    world = World(tmp_path_factory.mktemp("guarded"), names)
    generator = torch.Generator().manual_seed(5)
    for owner in OWNERS:
        rows = torch.rand(20, 3, generator=generator).tolist()
        lines = "".join(f"{a},{b},{y}\n" for a, b, y in rows)
        (world.root / owner / "data.csv").write_text("a,b,y\n" + lines)
    try:
        for name in ("secure_worker", *OWNERS):
            serve(world, name)
        yield world
    finally:
        world.close()


@contextlib.contextmanager
def entered(world: World, who: str = "me") -> Iterator[Network]:
    """Let somebody connect to all four."""
    addresses = [world.address(name) for name in ("secure_worker", *OWNERS)]
    with connect(*addresses, folder=world.root / who) as net:
        yield net


def trained(net: Network, steps: int = 3) -> tuple[nn.Module, list[nn.Module], list]:
    """Train a model at each owner; return the first, those and their losses."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    models, losses = [], []
    for owner in OWNERS:
        x, y = net[owner]["d"], net[owner]["d", "target"]
        copy = obhut.send(obhut.copy(model), net[owner])
        opt = torch.optim.SGD(copy.parameters(), lr=0.1)
        for _ in range(steps):
            opt.zero_grad()
            loss = ((copy(x)[:, 0] - y) ** 2).mean()
            loss.backward()
            opt.step()
        models.append(copy)
        losses.append(loss.detach())
    return model, models, losses


def locally(world: World, steps: int = 3) -> tuple[torch.Tensor, float]:
    """Return the mean weight and the mean loss that plain torch comes to."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    weights, losses = [], []
    for owner in OWNERS:
        lines = (world.root / owner / "data.csv").read_text().splitlines()[1:]
        rows = torch.tensor([[float(c) for c in line.split(",")] for line in lines])
        copy = obhut.copy(model)
        opt = torch.optim.SGD(copy.parameters(), lr=0.1)
        for _ in range(steps):
            opt.zero_grad()
            loss = ((copy(rows[:, :2])[:, 0] - rows[:, 2]) ** 2).mean()
            loss.backward()
            opt.step()
        weights.append(copy.weight.data)
        losses.append(loss.item())
    return torch.stack(weights).mean(0), sum(losses) / 3


def test_three_owners_train_and_only_the_mean_comes_back(guarded):
    """The seed's program trains as plain torch does; nothing of one owner leaves."""
    weight, mean_loss = locally(guarded)
    with entered(guarded) as net:
        _, models, losses = trained(net)
        for value in (losses[0], models[0].weight, net["bob"]["d"]):
            with pytest.raises(ReleaseRefusedError, match="place"):
                obhut.get(value)
        sw = net["secure_worker"]
        for model, loss in zip(models, losses, strict=True):
            obhut.move(model, sw)
            obhut.move(loss, sw)
        with pytest.raises(ReleaseRefusedError, match="quorum"):
            obhut.get(models[0].weight.data + models[1].weight.data)
        a, b, c = (model.weight.data for model in models)
        assert torch.allclose(((a + b + c) / 3).get(), weight, atol=1e-6)
        loss = torch.stack(losses).mean().get()
        assert loss.item() == pytest.approx(mean_loss, abs=1e-6)


def test_what_asks_for_values_is_refused_by_name(guarded):
    """item, bool, shapes that depend on values: refused, and the session goes on."""
    with entered(guarded) as net:
        x = net["bob"]["d"]
        for ask in (
            lambda: x.sum().item(),
            lambda: bool((x > 0).all()),
            lambda: x[x > 0.5],
            lambda: torch.nonzero(x),
            x.tolist,
        ):
            with pytest.raises((ReleaseRefusedError, OpNotAdmittedError, ObhutError)):
                ask()
        assert x.shape == (20, 2)


def test_who_answers_never_had_the_rows(guarded):
    """Neither it nor the process that it came from has them open or mapped."""
    served = guarded.served["bob"]
    assert served._reading._highs is not None

    def has_rows(process: int) -> bool:
        maps = Path(f"/proc/{process}/maps").read_text()
        files = Path(f"/proc/{process}/fd").iterdir()
        return any("obhut-data" in one for one in (maps, *map(os.readlink, files)))

    with entered(guarded) as net:
        assert net["bob"]["d"].shape == (20, 2)
        (session,) = served.node._sessions.values()
        low, high = session.child, session.following._there()
        assert not has_rows(low.pid)
        assert not has_rows(served._reading._children._server._process.pid)
        assert has_rows(high.pid)
        assert has_rows(served._reading._highs._server._process.pid)


def test_an_index_out_of_range_looks_like_any_other(guarded, caplog):
    """Where torch raises for a value, only the owner's log says so."""
    caplog.set_level(logging.INFO, logger="obhut.worker")
    with entered(guarded) as net:
        x = net["bob"]["d"]
        table = obhut.send(torch.randn(2, 3), net["bob"])
        inside = nn.functional.embedding((x[:, 0] * 0).long(), table)
        outside = nn.functional.embedding((x[:, 0] * 1e6 + 7).long(), table)
        net["bob"].wait()
        assert inside.shape == outside.shape
    # It follows what was answered, when it has time.
    until(
        lambda: any(
            "embedding" in one.getMessage() and "failed" in one.getMessage()
            for one in caplog.records
        )
    )


def test_what_fails_spoils_one_delivery_and_leaves_the_rows(guarded):
    """The process that has them goes on: the next sum of what was loaded is right."""
    found = []
    with entered(guarded) as net:
        rows = {owner: net[owner]["d"] for owner in OWNERS}
        for where in (7, 1):
            parts = []
            for owner in OWNERS:
                table = obhut.send(torch.ones(2, 3), net[owner])
                place = (rows[owner][:, 0] * 0 + where).long()
                sums = nn.functional.embedding(place, table).sum()
                parts.append(obhut.move(sums, net["secure_worker"]))
            try:
                found.append(obhut.get(parts[0] + parts[1] + parts[2]).item())
            except ReleaseRefusedError as error:
                found.append(error.rule)
    assert found == ["program", 180.0]


def test_history_outlives_sessions_requesters_and_restarts(guarded):
    """A second requester, after a restart of the aggregator, gets no other sum."""
    with entered(guarded) as net:
        _, models, _ = trained(net)
        for model in models:
            obhut.move(model, net["secure_worker"])
        a, b, c = (model.weight.data for model in models)
        obhut.get(a + b + c)
    listen = guarded.address("secure_worker")
    guarded.served["secure_worker"].close(grace=0)
    serve(guarded, "secure_worker", listen=listen)
    with entered(guarded, "you") as net:
        _, models, _ = trained(net)
        for model in models:
            obhut.move(model, net["secure_worker"])
        a, b, c = (model.weight.data for model in models)
        with pytest.raises(ReleaseRefusedError, match=r"p-percent|owners"):
            obhut.get(a + b + 2 * c)
        obhut.get((a + b + c) / 3)


def test_decisions_are_in_a_ledger_that_nobody_can_change(guarded):
    """Each decision is in the file; changed, the aggregator does not start with it."""
    with entered(guarded) as net:
        _, models, _ = trained(net, steps=1)
        for model in models:
            obhut.move(model, net["secure_worker"])
        a, b, c = (model.weight.data for model in models)
        obhut.get(a + b + c)
        with pytest.raises(ReleaseRefusedError):
            obhut.get(a)
    served = guarded.served["secure_worker"]
    entries = list(served._guarding.ledger.entries())
    assert any(entry.permits for entry in entries)
    assert any(not entry.permits for entry in entries)
    listen = guarded.address("secure_worker")
    served.close(grace=0)
    file = guarded.root / "secure_worker" / "ledger.sqlite"
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        kept = database.execute("SELECT number, body FROM entries").fetchall()
        database.execute("DELETE FROM entries WHERE number = 1")
    with pytest.raises(LedgerError):
        serve(guarded, "secure_worker", listen=listen)
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        number, body = kept[0]
        database.execute("INSERT INTO entries VALUES (?, ?)", (number, body))
    serve(guarded, "secure_worker", listen=listen)


def test_who_is_no_requester_opens_nothing(guarded):
    """Being pinned is not enough."""
    with (
        pytest.raises(AccessDeniedError),
        connect(guarded.address("bob"), folder=guarded.root / "mallory") as net,
    ):
        net["bob"]["d"]


def test_no_byte_of_an_owner_comes_back(guarded):
    """Rows with a mark in their digits: it is in nothing that the requester is told."""
    with entered(guarded) as net:
        x = net["bob"]["d"]
        heard: list[bytes] = []
        transport = net["bob"].session._transport
        answer = transport._answer

        def listening(parcel):
            heard.extend(bytes(frame) for frame in parcel.frames)
            heard.append(repr(parcel.message).encode())
            answer(parcel)

        transport._answer = listening
        for ask in (x.get, x.sum().get, lambda: x.mean().item()):
            with pytest.raises(ObhutError):
                ask()
        assert heard
        lines = (guarded.root / "bob" / "data.csv").read_text().splitlines()[1:]
        rows = torch.tensor([[float(c) for c in line.split(",")] for line in lines])
        marks = [row.numpy().tobytes() for row in rows[:, :2].reshape(-1)]
        assert not any(mark in piece for mark in marks for piece in heard)


def nan_at_one(world: World, net: obhut.Network) -> dict[str, torch.Tensor]:
    """Return at each owner a number that the same computation made: NaN at one."""
    means = []
    for name in OWNERS:
        lines = (world.root / name / "data.csv").read_text().splitlines()[1:]
        rows = torch.tensor([[float(c) for c in line.split(",")] for line in lines])
        means.append(rows[:, :2].mean().item())
    least, second, _ = sorted(means)
    between = (least + second) / 2
    return {name: (net[name]["d"].mean() - between).sqrt() for name in OWNERS}


def test_each_sum_with_nan_warns(guarded):
    """A contribution that is NaN counts as 0, and every release says how many were."""
    with entered(guarded) as net:
        _, models, _ = trained(net, steps=1)
        factors = nan_at_one(guarded, net)
        for name, model in zip(OWNERS, models, strict=True):
            model.weight.data.mul_(factors[name])
            obhut.move(model, net["secure_worker"])
        a, b, c = (model.weight.data for model in models)
        total = a + b + c
        for _ in range(2):
            with pytest.warns(
                UserWarning, match="1 contribution could not be used"
            ) as told:
                value = (total / 3).get()
            assert told[0].filename == __file__
        assert value.isfinite().all()


def test_rounds_are_exact_and_spoilt_ones_change_nothing(guarded):
    """Owners who agree have what they agree on; a NaN at one ends the round."""
    x, y = torch.randn(9, 2), torch.randn(9, 1)
    training = LocalTraining(
        partial(torch.optim.SGD, lr=0.1), mse_loss, batch_size=4, drop_last=True
    )
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    model.double().register_buffer("seed", torch.tensor(2**62 + 12345))
    x, y = x.double(), y.double()
    expected = obhut.copy(model)
    here = obhut.VirtualWorker("here")
    training.run(obhut.send(expected, here), RemoteDataset.send(x, y, here))
    obhut.get(expected)
    with entered(guarded) as net:
        sw = net["secure_worker"]
        owners = [RemoteDataset.send(x, y, net[name]) for name in OWNERS]
        train_round(model, owners, sw, training)
        for name, value in model.state_dict().items():
            assert torch.equal(value, expected.state_dict()[name]), name
        factors = nan_at_one(guarded, net)
        spoilt = [
            RemoteDataset(one.features * factors[name], one.targets)
            for name, one in zip(OWNERS, owners, strict=True)
        ]
        with pytest.raises(NonFiniteError, match="1 of 3 owners"):
            train_round(model, spoilt, sw, training)
        for name, value in model.state_dict().items():
            assert torch.equal(value, expected.state_dict()[name]), name
