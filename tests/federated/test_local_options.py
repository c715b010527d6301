"""Each option of a local training against plain PyTorch that is written out here."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau, StepLR

import obhut
from obhut.errors import CallError
from obhut.federated import LocalTraining, RemoteDataset, train_round, train_rounds
from obhut.protocol.messages import RunProgram
from obhut.testing.traces import TracingTransport
from obhut.transports.local import LocalShell, LocalTransport
from obhut.worker.core import Worker
from obhut.worker.held_out import SplitRows

SGD = partial(optim.SGD, lr=0.1, momentum=0.9)
WEIGHTS = torch.tensor([1.0, 2.0, 0.5])
OWNERS = ("alice", "bob", "carol")
POLICY = obhut.Quorum(aggregators=("hub",), contributors=OWNERS)

Model = nn.Module
Rows = tuple[torch.Tensor, torch.Tensor]


def rows(count: int = 25, seed: int = 0) -> Rows:
    """Return features and classes: (rows, 3) and (rows,)."""
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def model() -> Model:
    """Return a model, the same each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))


def epochs(data: Rows, number: int = 3) -> Iterator[list[Rows]]:
    """Yield the batches of each epoch."""
    for _ in range(number):
        yield list(zip(data[0].split(7), data[1].split(7), strict=True))


def step(net: Model, opt: Any, x: Any, y: Any, then: Any = lambda: None) -> float:
    """Take a step; return the loss times rows."""
    opt.zero_grad()
    loss = F.cross_entropy(net(x), y)
    loss.backward()
    then()
    opt.step()
    return loss.item() * len(x)


# --- what PyTorch does, written out ---------------------------------------------------


def plainly(net: Model, data: Rows, then: Callable[[], Any] = lambda: None) -> float:
    """Train for three epochs; return the last one's loss."""
    opt = SGD(net.parameters())
    for batches in epochs(data):
        total = sum(step(net, opt, x, y, then) for x, y in batches)
    return total


def clipped_norm(net: Model, data: Rows) -> float:
    """Gradients of a step are no longer than a tenth together."""

    def clip() -> None:
        norm = sum(one.grad.square().sum() for one in net.parameters()).sqrt()
        for one in net.parameters():
            one.grad *= min(1.0, 0.1 / (norm.item() + 1e-6))

    return plainly(net, data, clip)


def clipped_values(net: Model, data: Rows) -> float:
    """No gradient is larger than a hundredth."""

    def clip() -> None:
        for one in net.parameters():
            one.grad.clamp_(-0.01, 0.01)

    return plainly(net, data, clip)


def scheduled(net: Model, data: Rows) -> float:
    """The rate is halved after each epoch."""
    opt = SGD(net.parameters())
    for epoch, batches in enumerate(epochs(data)):
        opt.param_groups[0]["lr"] = 0.1 * 0.5**epoch
        total = sum(step(net, opt, x, y) for x, y in batches)
    return total


def stepwise(net: Model, data: Rows) -> float:
    """Eleven steps: two epochs of four, and three more."""
    opt = SGD(net.parameters())
    batches = [one for each in epochs(data) for one in each]
    return sum(step(net, opt, x, y) for x, y in batches[:11])


def near(net: Model, data: Rows) -> float:
    """A quarter of the squared distance from the begin is part of the loss."""
    opt = SGD(net.parameters())
    first = [one.detach().clone() for one in net.parameters()]
    for batches in epochs(data):
        total = 0.0
        for x, y in batches:
            opt.zero_grad()
            loss = F.cross_entropy(net(x), y)
            far = zip(net.parameters(), first, strict=True)
            (loss + 0.5 / 2 * sum((p - s).square().sum() for p, s in far)).backward()
            opt.step()
            total += loss.item() * len(x)
    return total


def half(net: Model, data: Rows) -> float:
    """What is left after full batches is left out."""
    opt = SGD(net.parameters())
    for batches in epochs(data):
        total = sum(step(net, opt, x, y) for x, y in batches[:3])
    return total


OPTIONS: dict[str, tuple[dict[str, Any], Callable[[Model, Rows], float]]] = {
    "nothing": ({}, plainly),
    "clip_grad_norm": ({"clip_grad_norm": 0.1}, clipped_norm),
    "clip_grad_value": ({"clip_grad_value": 0.01}, clipped_values),
    "accumulate": ({"accumulate": 3}, plainly),
    "scheduler": ({"scheduler": partial(StepLR, step_size=1, gamma=0.5)}, scheduled),
    "steps": ({"epochs": None, "steps": 11}, stepwise),
    "proximal": ({"proximal": 0.5}, near),
    "drop_last": ({"drop_last": True}, half),
}
options = pytest.mark.parametrize("option", OPTIONS)


def training(option: str, **other: Any) -> LocalTraining:
    """Return a training with an option, in batches of seven."""
    how = {"batch_size": 7, "epochs": 3} | OPTIONS[option][0] | other
    return LocalTraining(SGD, F.cross_entropy, **how)


def close(found: Model, expected: Model, atol: float = 1e-6) -> None:
    """Check that two models are the same, to a millionth."""
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=atol, rtol=0)


@pytest.fixture(autouse=True)
def recorded() -> Iterator[None]:
    """Nothing runs line by line for want of a recording: it would warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@options
def test_an_option_is_plain_pytorch(option: str) -> None:
    """Here, line by line at an owner, and as one program there: to a millionth.

    Among themselves these three are the same to the last bit, and so is the loss.
    """
    data, how = rows(), training(option)
    expected = model()
    loss = OPTIONS[option][1](expected, data)
    here = model()
    found = [how(here, obhut.LocalDataset(*data))["loss"]]
    owner = obhut.VirtualWorker("owner")
    models = [here]
    for eager in (True, False):
        there = obhut.send(model(), owner)
        ratio = dataclasses.replace(how, eager=eager).run(
            there, RemoteDataset.send(*data, owner)
        )
        found.append(obhut.Ratio(*map(obhut.get, ratio)))
        models.append(obhut.get(there))
    close(here, expected)
    count = {"steps": 71, "drop_last": 21}.get(option, 25)
    for one, ratio in zip(models, found, strict=True):
        close(one, here, atol=0)
        assert float(ratio.numerator) == pytest.approx(loss, abs=1e-5)
        assert float(ratio.denominator) == count
        assert ratio.numerator.dtype == torch.float64
        assert float(ratio.numerator) == float(found[0].numerator)


@options
def test_an_option_is_one_message(option: str) -> None:
    """At an owner there is one run of a program, and no operator on rows by name."""
    traced = TracingTransport(LocalTransport(LocalShell(Worker("traced"))))
    owner = obhut.RemoteWorker(traced)
    data = RemoteDataset.send(*rows(), owner)
    training(option).run(obhut.send(model(), owner), data).numerator.get()
    runs = [one for one in traced.requests if isinstance(one, RunProgram)]
    assert len(runs) == 1
    assert "linear" not in traced.render()


@options
@pytest.mark.parametrize("hide", ["exact", "hidden"])
def test_an_option_passes_where_programs_are_compared(option: str, hide: Any) -> None:
    """Two rounds of owners with unequal rows are those of owners without a policy.

    They train on what is not held out, and count its rows themselves.
    """
    found = []
    for policy in (POLICY, None):
        net = model()
        owners = []
        for seed, (name, count) in enumerate(zip(OWNERS, (25, 60, 40), strict=True)):
            x, y = rows(count, seed)
            worker = obhut.VirtualWorker(
                name,
                policy=policy,
                datasets={"d": {"features": x, "target": y}},
                rows=hide if policy else "exact",
            )
            owners.append(worker.dataset("d").split(held_out=0.2, seed=1)[0])
        hub = obhut.VirtualWorker("hub", policy=policy)
        how = training(option, shuffle=True, generator=torch.Generator().manual_seed(3))
        *_, report = train_rounds(net, owners, hub, how, 2)
        found.append((net, report.loss))
    close(found[0][0], found[1][0])
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-6)


def test_a_schedule_goes_on_from_round_to_round() -> None:
    """Three rounds of two epochs have the rates of six, whatever the schedule."""
    how = LocalTraining(
        partial(optim.SGD, lr=0.1),
        F.cross_entropy,
        batch_size=7,
        epochs=2,
        scheduler=partial(CosineAnnealingLR, T_max=6),
    )
    data = rows()
    owner = obhut.VirtualWorker("owner")
    there = obhut.send(model(), owner)
    remote = RemoteDataset.send(*data, owner)
    for number in (1, 2, 3):
        how.run(there, remote, round=number)
    expected = model()
    opt = optim.SGD(expected.parameters(), lr=0.1)
    scheduler = CosineAnnealingLR(opt, T_max=6)
    for batches in epochs(data, 6):
        for x, y in batches:
            step(expected, opt, x, y)
        scheduler.step()
    close(obhut.get(there), expected)


def test_a_run_of_steps_is_one_for_a_schedule() -> None:
    """In its third round the rate was halved twice."""
    how = training("steps", scheduler=partial(StepLR, step_size=1, gamma=0.5))
    slow = dataclasses.replace(
        how, scheduler=None, optimizer=partial(optim.SGD, lr=0.025, momentum=0.9)
    )
    owner = obhut.VirtualWorker("owner")
    remote = RemoteDataset.send(*rows(), owner)
    models = []
    for one in (how, slow):
        models.append(obhut.send(model(), owner))
        one.run(models[-1], remote, round=3)
    close(*map(obhut.get, models), atol=0)


@pytest.mark.parametrize(
    "loss_fn",
    [
        F.cross_entropy,
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.1),
        partial(F.cross_entropy, weight=WEIGHTS, label_smoothing=0.1),
        partial(F.cross_entropy, label_smoothing=0.1),
    ],
    ids=[
        "function",
        "module",
        "module with weights",
        "partial with weights",
        "partial",
    ],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_is_a_function_or_a_module(loss_fn: Any, accumulate: int) -> None:
    """Its tensors go to the owner; the program is that of the plain loop."""
    data = rows()
    expected = model()
    opt = SGD(expected.parameters())
    total = 0.0
    for x, y in zip(data[0].split(7), data[1].split(7), strict=True):
        opt.zero_grad()
        loss = 0.0
        for place in range(accumulate):
            part = y[place::accumulate]
            one = loss_fn(expected(x[place::accumulate]), part) * len(part) / len(y)
            one.backward()
            loss += one.item()
        opt.step()
        total += loss * len(y)
    owner = obhut.VirtualWorker("owner")
    there = obhut.send(model(), owner)
    how = LocalTraining(SGD, loss_fn, batch_size=7, accumulate=accumulate)
    ratio = how.run(there, RemoteDataset.send(*data, owner))
    close(obhut.get(there), expected)
    assert ratio.numerator.get().item() == pytest.approx(total, abs=1e-5)
    found = how(model(), obhut.LocalDataset(*data))["loss"]
    assert float(found.numerator) == pytest.approx(total, abs=1e-5)


def test_weights_of_classes_pass_where_programs_are_compared() -> None:
    """All owners get the same tensor, which is in the digest."""
    found = []
    for weight in (WEIGHTS, 2 * WEIGHTS.flip(0)):
        net = model()
        owners = [_owner(name, 25) for name in OWNERS]
        hub = obhut.VirtualWorker("hub", policy=POLICY)
        how = LocalTraining(SGD, partial(F.cross_entropy, weight=weight), batch_size=7)
        train_round(net, owners, hub, how)
        found.append(net)
    assert not torch.equal(found[0][0].weight, found[1][0].weight)


def _owner(name: str, count: int) -> RemoteDataset:
    x, y = rows(count)
    parts = {"d": {"features": x, "target": y}}
    return obhut.VirtualWorker(name, policy=POLICY, datasets=parts).dataset("d")


@pytest.mark.parametrize("parts", [2, 3, 5, 8])
def test_parts_of_a_batch_are_rounded_right(parts: int) -> None:
    """Whatever the size of a batch, a part's rows weigh as many as it has.

    The text says how many these are, and must for all remainders.
    """
    owner = obhut.VirtualWorker("owner")
    for size in range(parts, 40, 3):
        data = rows(size)
        expected, there = model(), obhut.send(model(), owner)
        how = LocalTraining(SGD, F.cross_entropy, accumulate=parts)
        how.run(there, RemoteDataset.send(*data, owner))
        step(expected, SGD(expected.parameters()), *data)
        close(obhut.get(there), expected)


def test_a_frozen_layer_stays() -> None:
    """Neither clipping nor the proximal term moves what requires no gradient."""
    net = model()
    net[0].requires_grad_(False)
    first = copy.deepcopy(net)
    owner = obhut.VirtualWorker("owner")
    there = obhut.send(net, owner)
    how = training("proximal", clip_grad_norm=0.5, clip_grad_value=0.1)
    how.run(there, RemoteDataset.send(*rows(), owner))
    trained = obhut.get(there)
    assert torch.equal(trained[0].weight, first[0].weight)
    assert not torch.equal(trained[2].weight, first[2].weight)


def test_a_part_is_trained_on_by_its_rows_alone() -> None:
    """By program and line by line; an owner without rows delivers 0 and 0."""
    data = rows()
    owner = obhut.VirtualWorker("owner")
    whole = RemoteDataset.send(*data, owner)
    left, held = whole.split(held_out=0.2, seed=4)
    assert (len(left), len(held)) == (20, 5)
    places = SplitRows(left.only, "owner", 25).places()
    expected = model()
    plainly(expected, (data[0][places], data[1][places]))
    for eager in (False, True):
        there = obhut.send(model(), owner)
        ratio = training("nothing", eager=eager).run(there, left)
        assert ratio.denominator.get().item() == 20
        close(obhut.get(there), expected)
        for option in ("nothing", "steps", "scheduler"):
            there = obhut.send(model(), owner)
            none = whole.split(held_out=0.001)[1]
            ratio = training(option, eager=eager).run(there, none)
            assert [one.get().item() for one in ratio] == [0, 0]
            close(obhut.get(there), model(), atol=0)


def test_a_training_is_a_program_of_its_own() -> None:
    """Inside of somebody's function it is recorded as they would have written it."""
    how = training("nothing")

    @obhut.program
    def train(net: Model, data: Any) -> Any:
        return how(net, data)

    owner = obhut.VirtualWorker("owner")
    there = obhut.send(model(), owner)
    data = rows()
    found = train.run(net=there, data=RemoteDataset.send(*data, owner))
    expected = model()
    loss = plainly(expected, data)
    close(obhut.get(there), expected)
    assert found["loss"].numerator.get().item() == pytest.approx(loss, abs=1e-5)


# --- what is wrong is told at once ----------------------------------------------------


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"optimizer": optim.SGD([torch.zeros(1)], 0.1)}, "partial.torch.optim.SGD"),
        ({"optimizer": 0.1}, r"got a float: partial\(torch.optim.SGD"),
        (
            {"loss_fn": nn.CrossEntropyLoss},
            r"class CrossEntropyLoss: write Cross.*\(\)",
        ),
        ({"loss_fn": "mse"}, "got a str: loss_fn=nn.functional.cross_entropy"),
        ({"epochs": 1, "steps": 1}, "epochs or steps, got both"),
        ({"epochs": 0}, "1 epoch or more"),
        ({"steps": -1}, "1 step or more"),
        ({"batch_size": 0}, "batch_size to be 1 or more"),
        ({"accumulate": 0}, "accumulate to be 1 or more"),
        ({"accumulate": 8, "batch_size": 7}, "batches of 8 rows or more"),
        ({"proximal": -0.1}, "proximal to be 0 or more"),
        ({"proximal": float("nan")}, "proximal to be 0 or more"),
        ({"clip_grad_norm": 0.0}, "clip_grad_norm to be above 0"),
        ({"clip_grad_value": -1.0}, "clip_grad_value to be above 0"),
        ({"batch_size": 2.0}, "batch_size to be a whole number, got 2.0"),
        ({"epochs": 1.5}, "1 epoch or more, got 1.5"),
        ({"scheduler": ReduceLROnPlateau}, "counts epochs.*got ReduceLROnPlateau"),
        ({"scheduler": partial(ReduceLROnPlateau)}, "got ReduceLROnPlateau"),
        (
            {"scheduler": StepLR(optim.SGD([torch.zeros(1)], 0.1), 1)},
            "makes a scheduler .*got StepLR",
        ),
    ],
)
def test_what_is_wrong_is_told_before_there_are_rows(given: Any, text: str) -> None:
    """Each says what to write."""
    with pytest.raises(CallError, match=text):
        LocalTraining(**({"optimizer": SGD, "loss_fn": F.cross_entropy} | given))


def plateau(optimizer: optim.Optimizer) -> Any:
    """Return a scheduler that steps by a value."""
    return ReduceLROnPlateau(optimizer)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"optimizer": optim.LBFGS}, "step needs no closure, got LBFGS"),
        ({"optimizer": list}, "expected an optimizer of the model's parameters"),
        ({"scheduler": lambda made: None}, "counts epochs.*got NoneType"),
        ({"scheduler": plateau}, "got ReduceLROnPlateau"),
    ],
)
def test_what_a_factory_makes_is_looked_at(given: Any, text: str) -> None:
    """By program, line by line and here."""
    owner = obhut.VirtualWorker("owner")
    data = RemoteDataset.send(*rows(), owner)
    for eager in (False, True):
        how = LocalTraining(
            **({"optimizer": SGD, "loss_fn": F.cross_entropy, "eager": eager} | given)
        )
        with pytest.raises(CallError, match=text):
            how.run(obhut.send(model(), owner), data)
    with pytest.raises(CallError, match=text):
        how(model(), obhut.LocalDataset(*rows()))


def test_one_row_that_is_left_names_the_owner_by_program_too() -> None:
    """Under a policy, and in the round of all: who it is, and what to write."""
    norm = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    owners = [
        _owner(name, count) for name, count in zip(OWNERS, (25, 29, 40), strict=True)
    ]
    hub = obhut.VirtualWorker("hub", policy=POLICY)
    how = LocalTraining(SGD, F.cross_entropy, batch_size=7)
    with pytest.raises(CallError, match=r"last batch at bob has 1 row.*drop_last=True"):
        train_round(norm, owners, hub, how)
    found = train_round(norm, owners, hub, dataclasses.replace(how, drop_last=True))
    assert found > 0


def test_a_last_batch_of_fewer_rows_than_parts_says_what_to_write() -> None:
    """Each part has a row; a batch that has fewer is named."""
    owner = obhut.VirtualWorker("owner")
    data = RemoteDataset.send(*rows(9), owner)
    how = LocalTraining(SGD, F.cross_entropy, batch_size=7, accumulate=4)
    with pytest.raises(CallError, match=r"last batch at owner has 2 rows.*drop_last"):
        how.run(obhut.send(model(), owner), data)
