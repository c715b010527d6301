"""Programs repeat plain PyTorch, bit by bit, wherever they run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.programs.zoo import BODIES, MODELS, OPTIMIZERS, ROWS, Model, plain
from torch import nn

import obhut
from obhut.client.programs import program
from obhut.client.ratio import Ratio
from obhut.errors import CallError, LocationError, ProgramError

SIZE = 16  # four full batches, and 6 rows


@pytest.fixture
def bob() -> Iterator[obhut.VirtualWorker]:
    """Return bob."""
    worker = obhut.VirtualWorker("bob")
    yield worker
    worker.close()


def trained(
    body: Callable[..., Any],
    model: Model,
    optimizer: Callable[[Any], torch.optim.Optimizer],
    bob: obhut.VirtualWorker,
    epochs: int = 2,
) -> tuple[nn.Module, torch.Tensor, nn.Module, float]:
    """Return a model and losses by program, and the same by a loop here."""
    torch.manual_seed(0)
    local, rows = model.make(), model.rows()
    labels = torch.randint(0, 10, (ROWS,))
    remote = obhut.send(copy.deepcopy(local), bob)
    data = (obhut.send(rows, bob), obhut.send(labels, bob))
    ratio = program(body).run(
        model=remote,
        optimizer=optimizer(remote.parameters()),
        data=data,
        batch_size=SIZE,
        epochs=epochs,
        seed=3,
    )
    losses = ratio.numerator.get() / ratio.denominator.get()
    torch.manual_seed(3)
    stepping, total = optimizer(local.parameters()), 0.0
    for _ in range(epochs):
        total = 0.0
        for x, y in zip(rows.split(SIZE), labels.split(SIZE), strict=True):
            total += float(body(local, stepping, x, y).detach()) * len(x)
    return obhut.get(remote), losses, local, total / ROWS


def assert_same(one: nn.Module, other: nn.Module) -> None:
    """Return assert same."""
    mine, theirs = one.state_dict(), other.state_dict()
    assert {name: torch.equal(mine[name], theirs[name]) for name in mine} == (
        dict.fromkeys(mine, True)
    )


@pytest.mark.parametrize("name", MODELS)
def test_models_are_trained_as_here(name: str, bob: obhut.VirtualWorker) -> None:
    """Models are trained as here."""
    remote, losses, local, loss = trained(plain, MODELS[name], OPTIMIZERS["sgd"], bob)
    assert_same(remote, local)
    assert losses[-1].item() == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_step_as_here(name: str, bob: obhut.VirtualWorker) -> None:
    """Optimizers step as here."""
    remote, _, local, _ = trained(plain, MODELS["mlp"], OPTIMIZERS[name], bob)
    assert_same(remote, local)


@pytest.mark.parametrize("name", BODIES)
def test_bodies_do_what_they_do_here(name: str, bob: obhut.VirtualWorker) -> None:
    """Bodies do what they do here."""
    remote, losses, local, loss = trained(
        BODIES[name], MODELS["mlp"], OPTIMIZERS["momentum"], bob
    )
    assert_same(remote, local)
    assert losses[-1].item() == pytest.approx(loss, rel=1e-12)


def test_what_optimizers_keep_stays_for_the_next_run(bob: obhut.VirtualWorker) -> None:
    """What optimizers keep stays for the next run."""
    torch.manual_seed(0)
    local, x, y = nn.Linear(4, 2), torch.randn(12, 4), torch.randint(0, 2, (12,))
    remote = obhut.send(copy.deepcopy(local), bob)
    here, there = (
        torch.optim.Adam(model.parameters(), lr=0.1) for model in (local, remote)
    )
    data, step = (obhut.send(x, bob), obhut.send(y, bob)), program(plain)
    for rate in (0.1, 0.01):
        here.param_groups[0]["lr"] = there.param_groups[0]["lr"] = rate
        step.run(model=remote, optimizer=there, data=data)
        plain(local, here, x, y)
    assert_same(obhut.get(remote), local)


def test_two_optimizers_of_one_body(bob: obhut.VirtualWorker) -> None:
    """Two optimizers of one body."""

    def gan(g, d, og, od, x):
        noise = torch.randn(len(x), 3, device=x.device)
        od.zero_grad()
        fake = g(noise)
        real = F.binary_cross_entropy_with_logits(d(x), torch.ones(len(x), 1))
        loss = real + F.binary_cross_entropy_with_logits(
            d(fake.detach()), torch.zeros(len(x), 1)
        )
        loss.backward()
        od.step()
        og.zero_grad()
        fooled = F.binary_cross_entropy_with_logits(d(fake), torch.ones(len(x), 1))
        fooled.backward()
        og.step()
        return {"d": loss, "g": fooled}

    torch.manual_seed(0)
    g, d, x = nn.Linear(3, 4), nn.Linear(4, 1), torch.randn(24, 4)
    there = [obhut.send(copy.deepcopy(one), bob) for one in (g, d)]
    rates = (2e-2, 4e-2)
    optimizers = [
        torch.optim.Adam(one.parameters(), lr=rate)
        for one, rate in zip((*there, g, d), rates * 2, strict=True)
    ]
    ratios = program(gan).run(
        g=there[0],
        d=there[1],
        og=optimizers[0],
        od=optimizers[1],
        data=obhut.send(x, bob),
        batch_size=8,
    )
    torch.manual_seed(0)
    totals = {"d": 0.0, "g": 0.0}
    for batch in x.split(8):
        for name, loss in gan(g, d, optimizers[2], optimizers[3], batch).items():
            totals[name] += float(loss.detach()) * len(batch)
    for name, ratio in ratios.items():
        assert ratio.numerator.get().item() == pytest.approx(totals[name], rel=1e-12)
    for remote, local in zip(there, (g, d), strict=True):
        assert_same(obhut.get(remote), local)


def test_ratios_are_summed_over_batches(bob: obhut.VirtualWorker) -> None:
    """Ratios are summed over batches."""

    def right(model, x, y):
        hits = (model(x).argmax(1) == y).sum()
        return {"accuracy": Ratio(hits, len(x)), "ones": Ratio(hits, (y == 1).sum())}

    torch.manual_seed(0)
    local, x, y = nn.Linear(4, 2), torch.randn(11, 4), torch.randint(0, 2, (11,))
    data = (obhut.send(x, bob), obhut.send(y, bob))
    remote = obhut.send(copy.deepcopy(local), bob)
    for size in (4, 11, 100, None):
        found = program(right).run(model=remote, data=data, batch_size=size)
        hits = (local(x).argmax(1) == y).sum().item()
        assert [one.get().tolist() for one in found["accuracy"]] == [[hits], [11]]
        assert found["ones"].denominator.get().tolist() == [(y == 1).sum().item()]


def test_shuffling_goes_through_all_rows_and_repeats_by_seed(
    bob: obhut.VirtualWorker,
) -> None:
    """Shuffling goes through all rows and repeats by seed."""

    def order(model, x):
        weights = torch.arange(1, len(x) + 1, device=x.device)
        return Ratio((x[:, 0] * weights * model.weight.detach().sum()).sum(), x.sum())

    model = obhut.send(nn.Linear(1, 1), bob)
    x = obhut.send(torch.arange(50.0).reshape(50, 1), bob)

    def run(**how: Any) -> list[list[float]]:
        ratio = program(order).run(model=model, data=x, batch_size=8, **how)
        return [one.get().tolist() for one in ratio]

    once, again = run(shuffle=True, seed=1), run(shuffle=True, seed=1)
    assert once == again != run(shuffle=True, seed=2)
    assert once[1] == run()[1] == [sum(range(50))]
    assert once[0] != run()[0]
    two = run(shuffle=True, seed=1, epochs=2)
    assert two[0][0] == once[0][0] != two[0][1]
    assert run(drop_last=True)[1] == [sum(range(48))]


def test_the_process_draws_as_if_no_program_had_run(bob: obhut.VirtualWorker) -> None:
    """The process draws as if no program had run."""
    model = obhut.send(nn.Sequential(nn.Linear(4, 2), nn.Dropout()), bob)
    data = (
        obhut.send(torch.randn(9, 4), bob),
        obhut.send(torch.randint(0, 2, (9,)), bob),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    program(plain).run(model=model, optimizer=optimizer, data=data, batch_size=2)
    bob.wait()
    assert torch.equal(torch.rand(3), expected)


def test_rows_stay_as_they_are_when_a_body_writes_into_its_batch(
    bob: obhut.VirtualWorker,
) -> None:
    """Rows stay as they are when a body writes into its batch."""

    def scaled(model, x):
        x.mul_(2)
        return model(x).sum()

    model, x = obhut.send(nn.Linear(2, 1), bob), torch.randn(20, 2)
    rows = obhut.send(x, bob)
    for size in (4, 7, None):
        program(scaled).run(model=model, data=rows, batch_size=size)
    assert torch.equal(rows.get(), x)


def test_a_graph_of_before_can_not_be_differentiated_after_a_run(
    bob: obhut.VirtualWorker,
) -> None:
    """As in PyTorch, where a step changes what a graph has kept."""
    model = obhut.send(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), bob)
    x, y = obhut.send(torch.randn(20, 2), bob), obhut.send(torch.ones(20).long(), bob)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = model(x).sum()
    program(plain).run(model=model, optimizer=optimizer, data=(x, y), batch_size=4)
    loss.backward()
    with pytest.raises(obhut.ObhutError, match="modified by an inplace operation"):
        bob.wait()


def test_a_last_batch_of_one_row_is_refused_where_a_layer_takes_none(
    bob: obhut.VirtualWorker,
) -> None:
    """A last batch of one row is refused where a layer takes none."""
    model = obhut.send(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), bob)
    data = (obhut.send(torch.randn(9, 3), bob), obhut.send(torch.ones(9).long(), bob))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = program(plain)
    with pytest.raises(CallError, match="drop_last=True"):
        step.run(model=model, optimizer=optimizer, data=data, batch_size=4)
    step.run(model=model, optimizer=optimizer, data=data, batch_size=4, drop_last=True)
    bob.wait()


def test_the_function_itself_is_plain_python(bob: obhut.VirtualWorker) -> None:
    """The function itself is plain python."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(4, 2), torch.ones(4).long()
    assert program(plain)(model, optimizer, x, y).shape == ()
    obhut.send(model, bob)
    loss = program(plain)(model, optimizer, obhut.send(x, bob), obhut.send(y, bob))
    assert isinstance(loss, obhut.RemoteTensor)


def test_arguments_must_be_at_one_worker_and_complete(bob: obhut.VirtualWorker) -> None:
    """Arguments must be at one worker and complete."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = (obhut.send(torch.randn(4, 2), bob), obhut.send(torch.ones(4).long(), bob))
    with pytest.raises(LocationError, match="send the model"):
        program(plain).run(model=model, optimizer=optimizer, data=data)
    with pytest.raises(CallError, match="expected model, optimizer"):
        program(plain).run(model=model, data=data)
    obhut.send(model, bob)
    for rows, words in (
        ((data[0], data[1][:3]), "as many rows of each"),
        ((data[0], data[0][:, 0].long()[:3]), "as many rows of each"),
    ):
        program(plain).run(model=model, optimizer=optimizer, data=rows)
        with pytest.raises(ProgramError, match=words):
            bob.wait()
    program(lambda model, x, y: (model(x) * y).sum()).run(
        model=model, data=(data[0], data[0].view(4, 2))
    )
    with pytest.raises(ProgramError, match="share memory"):
        bob.wait()
