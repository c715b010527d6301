"""Whole trainings are repeated bit by bit, in one message, or refused by name."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.programs.whole import SGD, TRAININGS, order
from tests.programs.zoo import mlp
from torch import nn

import obhut
from obhut.client.programs import program
from obhut.client.ratio import Ratio
from obhut.errors import CallError, ObhutError, ProgramError
from obhut.programs.gradients import keeps_to_itself
from obhut.worker import trainings


@pytest.fixture
def bob() -> Iterator[obhut.VirtualWorker]:
    """Return bob."""
    worker = obhut.VirtualWorker("bob")
    yield worker
    worker.close()


def number(one: Any) -> float:
    """Return a number without its history."""
    return float(one.detach() if isinstance(one, torch.Tensor) else one)


def numbers(returned: Any) -> dict[str, list[float]]:
    """Return what a training returned."""
    if not isinstance(returned, dict):
        returned = {} if returned is None else {"": returned}
    found = {}
    for name, one in returned.items():
        pair = one if isinstance(one, Ratio) else Ratio(one, 1)
        found[name] = [
            float(obhut.get(n) if isinstance(n, obhut.RemoteTensor) else number(n))
            for n in pair
        ]
    return found


def compared(
    train: Callable[..., Any],
    bob: obhut.VirtualWorker,
    rows: tuple[int, ...],
    make: Callable[[], nn.Module] = mlp,
) -> None:
    """Run a training here and there on data sets of several sizes."""
    there = program(train)
    for count in rows:
        torch.manual_seed(count)
        local, x = make(), torch.randn(count, 16)
        y = torch.randint(0, 10, (count,))
        remote = obhut.send(copy.deepcopy(local), bob)
        data = obhut.send(x, bob), obhut.send(y, bob)
        returned = numbers(there.run(model=remote, data=data, seed=3))
        torch.manual_seed(3)
        here = train(local, obhut.LocalDataset(x, y, generator=order(3)))
        assert numbers(here) == returned, count
        mine, theirs = local.state_dict(), obhut.get(remote).state_dict()
        assert {name: torch.equal(mine[name], theirs[name]) for name in mine} == (
            dict.fromkeys(mine, True)
        ), count


ROWS = {"two_sizes": (70, 64, 16)}


@pytest.mark.parametrize("name", TRAININGS)
def test_trainings_do_what_they_do_here(name: str, bob: obhut.VirtualWorker) -> None:
    """For rows that fill batches, leave some, are fewer than a batch, or one."""
    compared(TRAININGS[name], bob, ROWS.get(name, (70, 64, 100, 9, 1)))


def adversarial(generator, discriminator, data):
    """Two optimizers, of which each steps its own module (GAN)."""
    of_generator = torch.optim.Adam(generator.parameters(), lr=0.01)
    of_discriminator = torch.optim.Adam(discriminator.parameters(), lr=0.01)
    judge = F.binary_cross_entropy_with_logits
    for _ in range(2):
        for x in data.batches(16):
            noise = torch.randn(len(x), 4, device=x.device)
            made = generator(noise)
            true, false = torch.ones_like(x[:, :1]), torch.zeros_like(x[:, :1])
            of_discriminator.zero_grad()
            right = judge(discriminator(x), true)
            (right + judge(discriminator(made.detach()), false)).backward()
            of_discriminator.step()
            of_generator.zero_grad()
            judge(discriminator(made), true).backward()
            of_generator.step()


def test_two_modules_are_trained_against_each_other(bob: obhut.VirtualWorker) -> None:
    """A generator and a discriminator, on one tensor of rows."""
    torch.manual_seed(0)
    here = [nn.Linear(4, 6), nn.Linear(6, 1)]
    there = [obhut.send(copy.deepcopy(one), bob) for one in here]
    x = torch.randn(70, 6)
    program(adversarial).run(
        generator=there[0], discriminator=there[1], data=obhut.send(x, bob), seed=3
    )
    torch.manual_seed(3)
    adversarial(*here, obhut.LocalDataset(x))
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one.weight, obhut.get(other).weight)


def test_layers_that_keep_statistics_are_trained_as_here(
    bob: obhut.VirtualWorker,
) -> None:
    """BatchNorm, which takes no batch of one row."""

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))

    compared(TRAININGS["momentum"], bob, (70, 64, 9), make)
    model = obhut.send(make(), bob)
    data = obhut.send(torch.randn(17, 16), bob), obhut.send(torch.ones(17).long(), bob)
    program(TRAININGS["momentum"]).run(model=model, data=data)
    with pytest.raises(CallError, match="drop_last=True"):
        bob.wait()


def test_a_passed_optimizer_goes_on_where_it_was(bob: obhut.VirtualWorker) -> None:
    """What it keeps lasts from run to run; what a function makes begins anew."""

    def train(model, optimizer, data):
        for x, y in data.batches(16):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

    torch.manual_seed(0)
    local, x, y = mlp(), torch.randn(70, 16), torch.randint(0, 10, (70,))
    remote = obhut.send(copy.deepcopy(local), bob)
    here, there = (
        torch.optim.Adam(one.parameters(), lr=0.01) for one in (local, remote)
    )
    data = obhut.send(x, bob), obhut.send(y, bob)
    for rate in (0.01, 0.003):
        here.param_groups[0]["lr"] = there.param_groups[0]["lr"] = rate
        program(train).run(model=remote, optimizer=there, data=data)
        train(local, here, obhut.LocalDataset(x, y))
    for one, other in zip(
        local.parameters(), obhut.get(remote).parameters(), strict=True
    ):
        assert torch.equal(one, other)


def test_batches_run_as_graphs_where_nothing_shows_it(
    bob: obhut.VirtualWorker,
) -> None:
    """Sums and averages are carried by graphs; graphs of autograd's are not."""
    model = obhut.send(mlp(), bob)
    data = obhut.send(torch.randn(70, 16), bob), obhut.send(torch.ones(70).long(), bob)

    def graphs(digest: str) -> set[bool]:
        known = trainings._lowered._known.items()
        return {one is not None for key, one in known if key[0] == digest}

    for name, each in {
        "momentum": (True,),
        "adam": (True,),
        "averaged_weights_anew": (True,),
        "by_hand": (True,),
        "evaluated": (True, True),
        "cleared_last": (True,),
        "warmed_up": (True,),
        "never_cleared": (False,),
        "last_gradients": (False,),
        "every_2": (False,),
    }.items():
        train = program(TRAININGS[name])
        made = train.record(model=model, data=data)
        assert keeps_to_itself(made.program) == each, name
        train.run(model=model, data=data)
        bob.wait()
        assert graphs(made.digest) == {one for one in each if one}, name

    def kept(model, data):
        total = torch.zeros((), device=next(model.parameters()).device)
        for x, y in data.batches(16):
            total = total + F.cross_entropy(model(x), y)
        return total

    program(kept).run(model=model, data=data)
    bob.wait()
    made = program(kept).record(model=model, data=data)
    assert keeps_to_itself(made.program) == (True,)
    assert graphs(made.digest) == {False}


def train_on(model, optimizer, x, y):
    """Take a step."""
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


def reads_a_value(model, data):
    """It reads a value."""
    optimizer, total = SGD(model.parameters(), lr=0.1), 0.0
    for x, y in data.batches(16):
        total += train_on(model, optimizer, x, y).item()  # here
    return total


def ends_by_value(model, data):
    """It ends when a value is small."""
    optimizer = SGD(model.parameters(), lr=0.1)
    for x, y in data.batches(16):
        if train_on(model, optimizer, x, y) < 0.1:  # here
            break


def ends_early(model, data):
    """It ends after three batches."""
    optimizer = SGD(model.parameters(), lr=0.1)
    for i, (x, y) in enumerate(data.batches(16)):
        train_on(model, optimizer, x, y)
        if i == 2:
            break  # here


def branches_on_size(model, data):
    """It does more with small batches."""
    optimizer = SGD(model.parameters(), lr=0.1)
    for x, y in data.batches(64):
        if len(x) < 40:
            x.sin()  # here
        train_on(model, optimizer, x, y)


def branches_on_place(model, data):
    """It does more with a certain batch."""
    optimizer = SGD(model.parameters(), lr=0.1)
    for i, (x, y) in enumerate(data.batches(64)):
        if i == 20:
            x.sin()  # here
        train_on(model, optimizer, x, y)


def steps_rarely(model, data):
    """It steps every 128 batches."""
    optimizer = SGD(model.parameters(), lr=0.1)
    for i, (x, y) in enumerate(data.batches(16)):
        F.cross_entropy(model(x), y).backward()
        if i % 128 == 127:
            optimizer.step()  # here
            optimizer.zero_grad()


def data_are_assigned(model, data):
    """It gives a parameter other memory."""
    for x, y in data.batches(16):
        loss = F.cross_entropy(model(x), y)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        for p, g in zip(model.parameters(), grads, strict=True):
            p.data = p.data - 0.1 * g  # here


def list_grows(model, data):
    """It keeps each loss."""
    optimizer, losses = SGD(model.parameters(), lr=0.1), []
    for x, y in data.batches(16):
        losses.append(train_on(model, optimizer, x, y))
    return torch.stack(losses).mean()  # here


def two_batches_old(model, data):
    """It uses a loss two batches old."""
    optimizer, losses = SGD(model.parameters(), lr=0.1), [0.0, 0.0]
    total = 0.0
    for x, y in data.batches(16):
        losses.append(train_on(model, optimizer, x, y))
        total = total + losses[-3]  # here
    return total


def rows_are_kept(model, data):
    """It uses the rows of the batch before."""
    optimizer, before = SGD(model.parameters(), lr=0.1), None
    for x, y in data.batches(16):
        if before is not None:
            model(before)  # here
        train_on(model, optimizer, x, y)
        before = x


def number_changes(model, data):
    """It divides by the number of the batch."""
    optimizer, mean = SGD(model.parameters(), lr=0.1), 0.0
    for i, (x, y) in enumerate(data.batches(16)):
        loss = train_on(model, optimizer, x, y)
        mean = mean + (loss - mean) / (i + 1)  # here
    return mean


def schedule_by_batch(model, data):
    """Its schedule steps with each batch."""
    optimizer = SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    for x, y in data.batches(16):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()  # here
        schedule.step()


def with_a_closure(model, data):
    """Its steps take a closure."""
    optimizer = SGD(model.parameters(), lr=0.1)
    for x, y in data.batches(16):
        optimizer.step(lambda x=x, y=y: F.cross_entropy(model(x), y))  # here


def of_others(model, data):
    """Its optimizer steps a copy of the model."""
    other = copy.deepcopy(model)
    optimizer = SGD(other.parameters(), lr=0.1)
    for x, y in data.batches(16):
        F.cross_entropy(other(x), y).backward()
        optimizer.step()  # here


def asks_how_many(model, data):
    """It asks for the number of rows."""
    return model(torch.ones(1, 16)).sum() / len(data)  # here


def draws_the_order(model, data):
    """It draws the order itself."""
    for x, _ in data.batches(16, shuffle=True, generator=torch.Generator()):  # here
        model(x)


def loops_inside(model, data):
    """It goes through the rows for each batch."""
    for x, _ in data.batches(16):
        for other, _ in data.batches(16):  # here
            model(x).sum() + model(other).sum()


def takes_all(model, data):
    """It takes the rows without a loop."""
    return model(data.features).sum()  # here


REFUSED = {
    reads_a_value: "a value is read here",
    ends_by_value: "a value is read here",
    ends_early: "a loop ends here before its rows do",
    branches_on_size: "do the same whatever the size",
    branches_on_place: "which batch it is",
    steps_rarely: "which batch it is",
    data_are_assigned: "write p.data.copy_(x)",
    list_grows: "add it up in the loop",
    two_batches_old: "older than the batch before",
    rows_are_kept: "rows of an earlier batch",
    number_changes: "a number changes from batch to batch",
    schedule_by_batch: "let a schedule step once an epoch",
    with_a_closure: "a step that takes a closure",
    of_others: "parameters of no module that is passed",
    asks_how_many: "how many rows there are is not known",
    draws_the_order: "from the seed of the run",
    loops_inside: "inside of another",
    takes_all: "data have no features",
}


@pytest.mark.parametrize("train", REFUSED, ids=lambda one: one.__name__)
def test_what_is_no_program_is_refused_with_the_line(
    train: Callable[..., Any], bob: obhut.VirtualWorker
) -> None:
    """What is no program is refused with the line."""
    model = obhut.send(mlp(), bob)
    data = obhut.send(torch.randn(70, 16), bob), obhut.send(torch.ones(70).long(), bob)
    with pytest.raises(ProgramError) as caught:
        program(train).run(model=model, data=data)
    lines, first = inspect.getsourcelines(train)
    place = next(n for n, line in enumerate(lines, first) if "# here" in line)
    assert str(caught.value).startswith(f"{__file__}:{place}: "), caught.value
    assert REFUSED[train] in str(caught.value)


def test_batches_are_the_functions_own(bob: obhut.VirtualWorker) -> None:
    """A run of a whole training takes no batch size, and its rows as ``data``."""
    model, x = obhut.send(mlp(), bob), obhut.send(torch.randn(70, 16), bob)
    with pytest.raises(CallError, match="says itself in which batches"):
        program(TRAININGS["adam"]).run(model=model, data=(x, x), batch_size=3)
    with pytest.raises(CallError, match="expected model"):
        program(TRAININGS["adam"]).run(data=(x, x))


def test_local_rows_go_through_in_batches() -> None:
    """As remote ones do: all, in order or not, with the last or without."""
    x, y = torch.arange(10.0), torch.arange(10)
    data = obhut.LocalDataset(x, y)
    assert [len(one) for one, _ in data.batches(4)] == [4, 4, 2]
    assert [len(one) for one, _ in data.batches(4, drop_last=True)] == [4, 4]
    assert [len(one) for one, _ in data.batches()] == [10]
    (mixed, labels), *_ = data.batches(shuffle=True, generator=order(0))
    assert torch.equal(mixed.long(), labels)
    assert sorted(mixed.tolist()) == x.tolist() != mixed.tolist()
    assert torch.equal(next(obhut.LocalDataset(x).batches()), x)
    for wrong in ((x, y[:3]), (x[:0],), (x.sum(),), ()):
        with pytest.raises(CallError, match="of the same rows"):
            obhut.LocalDataset(*wrong)
    with pytest.raises(CallError, match="1 or more"):
        next(data.batches(0))
    with pytest.raises(CallError, match="drop_last=False"):
        next(data.batches(11, drop_last=True))


def test_a_cancelled_run_ends_at_its_next_batch(bob: obhut.VirtualWorker) -> None:
    """What it made until then stays, and its results are none."""
    torch.manual_seed(0)
    local, x, y = mlp(), torch.randn(70, 16), torch.randint(0, 10, (70,))
    remote = obhut.send(copy.deepcopy(local), bob)
    data = obhut.send(x, bob), obhut.send(y, bob)
    bob.wait()
    asked: list[int] = []
    core = bob._shell._core

    def cancelled(number: int) -> bool:
        asked.append(number)
        return len(asked) > 5  # before two requests, and before three batches

    before, core._cancelled = core._cancelled, cancelled
    ratio = program(TRAININGS["adam"]).run(model=remote, data=data)["loss"]
    bob.wait()
    core._cancelled = before
    with pytest.raises(ObhutError, match="is not at bob"):
        ratio.numerator.get()
    optimizer = torch.optim.Adam(local.parameters(), lr=0.01)
    for start in (0, 16, 32):
        train_on(local, optimizer, x[start : start + 16], y[start : start + 16])
    assert torch.equal(obhut.get(remote)[0].weight, local[0].weight)
