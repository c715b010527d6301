"""Parts of a data set, steps and schedules, as a client asks for them."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR

import obhut
from obhut.errors import CallError, ReleaseRefusedError
from obhut.federated import LocalTraining, RemoteDataset, evaluate, train_round
from obhut.programs.fitting import divisor_of, fit
from obhut.programs.program import Input, Kind, Line, Program, Result, Size
from obhut.protocol.messages import Ref
from obhut.worker.held_out import SplitRows

OWNERS = ("alice", "bob", "carol")
POLICY = obhut.Quorum(aggregators=("hub",), contributors=OWNERS)


@obhut.program
def step(model: nn.Module, optimizer: Any, x: Any, y: Any) -> torch.Tensor:
    """Train on a batch."""
    optimizer.zero_grad()
    loss = F.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    return loss


@obhut.program
def error(model: nn.Module, x: Any, y: Any) -> obhut.Ratio:
    """Return a batch's absolute error."""
    return obhut.Ratio((model(x) - y).abs().sum(), len(y))


def rows(count: int = 25) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features and target: (rows, 3) and (rows, 1)."""
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(count))
    return x, x.sum(1, keepdim=True)


def owner(name: str = "bob", count: int = 25, **how: Any) -> obhut.VirtualWorker:
    """Return a worker that has rows."""
    x, y = rows(count)
    parts = {"d": {"features": x, "target": y}}
    return obhut.VirtualWorker(name, datasets=parts, **how)


def linear() -> nn.Module:
    """Return a model, the same each time."""
    torch.manual_seed(0)
    return nn.Linear(3, 1)


# --- parts ----------------------------------------------------------------------------


def test_a_data_set_is_split_in_two() -> None:
    """Both know how many rows they have, and go through their own in batches."""
    x, y = rows()
    whole = owner().dataset("d")
    left, held = whole.split(held_out=0.2, seed=3)
    assert (len(left), len(held), len(whole)) == (20, 5, 25)
    assert [one.count().get().item() for one in (left, held, whole)] == [20, 5, 25]
    for part in (left, held):
        places = SplitRows(part.only, "bob", 25).places()
        for size in (None, 3):
            found = [(a.get(), b.get()) for a, b in part.batches(size)]
            assert torch.equal(torch.cat([one for one, _ in found]), x[places])
            assert torch.equal(torch.cat([one for _, one in found]), y[places])
        draw = torch.Generator().manual_seed(0)
        mixed = list(part.batches(3, shuffle=True, generator=draw, drop_last=True))
        found = torch.cat([one.get() for one, _ in mixed])
        assert len(found) == len(places) // 3 * 3
        assert {*map(tuple, found.tolist())} < {*map(tuple, x[places].tolist())} | {()}
        total = error.run(model=linear_at("bob"), data=part, batch_size=3)
        here = linear()
        expected = (here(x[places]) - y[places]).abs().sum().item()
        assert total.numerator.get().item() == pytest.approx(expected, rel=1e-6)


def linear_at(name: str) -> nn.Module:
    """Return the model at a worker."""
    return obhut.send(linear(), name)


def test_a_data_set_that_is_here_is_split_as_well() -> None:
    """The same each time, and no row is lost."""
    x, y = rows()
    data = obhut.LocalDataset(x, y)
    parts = data.split(held_out=0.2, seed=1)
    assert [len(one) for one in parts] == [20, 5]
    assert [one.count().item() for one in parts] == [20, 5]
    again = data.split(held_out=0.2, seed=1)
    other = data.split(held_out=0.2, seed=2)
    found = [next(two[1].batches())[0] for two in (parts, again, other)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    together = torch.cat([next(one.batches())[0] for one in parts])
    assert torch.equal(together.sort(0).values, x.sort(0).values)


@pytest.mark.parametrize("share", [0, 1, -0.2, 1.5, float("nan")])
def test_a_share_is_between_0_and_1(share: float) -> None:
    """And a seed is a number from 0; a part is not split again."""
    remote = owner().dataset("d")
    for data in (remote, obhut.LocalDataset(*rows())):
        with pytest.raises(CallError, match=r"data.split\(held_out=0.2\)"):
            data.split(share)
        with pytest.raises(CallError, match="seed that is a number from 0"):
            data.split(0.2, -1)
    with pytest.raises(CallError, match="got a part of one"):
        remote.split(0.2)[0].split(0.2)


def test_a_whole_training_goes_through_its_part() -> None:
    """What is held out changes nothing; of no rows there is no training."""

    @obhut.program
    def train(model: nn.Module, data: Any) -> Any:
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        total, n = torch.zeros(()), 0
        for _ in range(2):
            for x, y in data.batches(8):
                total = total + step(model, optimizer, x, y).detach() * len(x)
                n += len(x)
        return {"loss": obhut.Ratio(total, n)}

    x, y = rows()
    whole = owner().dataset("d")
    left, _ = whole.split(0.2)
    there = linear_at("bob")
    found = train.run(model=there, data=left)["loss"]
    places = SplitRows(left.only, "bob", 25).places()
    here = linear()
    expected = train(here, obhut.LocalDataset(x[places], y[places]))["loss"]
    assert found.denominator.get().item() == expected.denominator == 40
    assert torch.equal(found.numerator.get().float(), expected.numerator.detach())
    assert torch.equal(obhut.get(there).weight, here.weight)
    with pytest.raises(CallError, match="has no rows: hold out another share"):
        train.run(model=linear_at("bob"), data=whole.split(0.001)[1])[
            "loss"
        ].numerator.get()


@pytest.mark.parametrize("hide", ["exact", "hidden"])
def test_rounds_train_on_one_part_and_try_the_other(hide: Any) -> None:
    """Under a policy that compares programs, of owners with unequal rows."""
    sizes = dict(zip(OWNERS, (25, 60, 40), strict=True))
    owners = [
        owner(name, count, policy=POLICY, rows=hide).dataset("d")
        for name, count in sizes.items()
    ]
    hub = obhut.VirtualWorker("hub", policy=POLICY)
    left, held = zip(*(one.split(0.2, seed=5) for one in owners), strict=True)
    how = LocalTraining(partial(optim.SGD, lr=0.1), F.mse_loss)
    model = linear()
    train_round(model, left, hub, how)
    found = evaluate(model, held, hub, F.l1_loss)
    total = count = 0.0
    for name, one in zip(OWNERS, held, strict=True):
        x, y = rows(sizes[name])
        places = SplitRows(one.only, name, len(x)).places()
        total += (model(x[places]) - y[places]).abs().sum().item()
        count += len(places)
    assert found.item() == pytest.approx(total / count, rel=1e-5)


def test_owners_of_different_splits_are_not_combined() -> None:
    """Whose rows are held out by another seed has computed something else."""
    owners = [owner(name, 40, policy=POLICY).dataset("d") for name in OWNERS]
    hub = obhut.VirtualWorker("hub", policy=POLICY)
    how = LocalTraining(partial(optim.SGD, lr=0.1), F.mse_loss)
    for seeds in ((0, 0, 1), (0, 0, 0)):
        left = [one.split(0.2, s)[0] for one, s in zip(owners, seeds, strict=True)]
        if seeds[-1]:
            with pytest.raises(ReleaseRefusedError):
                train_round(linear(), left, hub, how)
        else:
            assert train_round(linear(), left, hub, how) > 0


def test_few_rows_that_are_held_out_end_a_round() -> None:
    """A policy's minimum holds for parts: told in words, or as one number."""
    strict = obhut.Quorum(aggregators=("hub",), contributors=OWNERS, minimum_rows=20)
    hub = obhut.VirtualWorker("hub", policy=strict)
    for hide, kind, text in (
        ("exact", CallError, r"part of 5 of 25 rows at alice.*minimum_rows"),
        ("hidden", ReleaseRefusedError, "of too few owners"),
    ):
        held = [
            owner(name, count, policy=strict, rows=hide).dataset("d").split(0.2)[1]
            for name, count in zip(OWNERS, (25, 200, 100), strict=True)
        ]
        with pytest.raises(kind, match=text):
            evaluate(linear(), held, hub, F.l1_loss)


def test_line_by_line_who_has_no_rows_counts_for_nothing() -> None:
    """So it is where a metric can't be recorded, too."""

    def read(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.l1_loss(x, y) if (x - y).abs().sum().item() >= 0 else x.sum()

    some = owner("alice", 600).dataset("d").split(0.001)[1]
    none = owner().dataset("d").split(0.001)[1]
    assert (len(some), len(none)) == (1, 0)
    hub = obhut.VirtualWorker("hub")
    model = linear()
    with pytest.warns(UserWarning, match="line by line"):
        found = evaluate(model, [some, none], hub, read)
    assert torch.equal(found, evaluate(model, [some], hub, read))


# --- steps and schedules --------------------------------------------------------------


def test_steps_go_round_again() -> None:
    """Nine of batches of eight are two epochs of 25 rows, and one more."""
    x, y = rows()
    there = linear_at("bob") if owner() else None
    data = RemoteDataset.send(x, y, "bob")
    opt = optim.SGD(there.parameters(), lr=0.1)
    found = step.run(model=there, optimizer=opt, data=data, batch_size=8, steps=9)
    here = linear()
    mine = optim.SGD(here.parameters(), lr=0.1)
    batches = list(zip(x.split(8), y.split(8), strict=True)) * 3
    total = sum(step(here, mine, a, b).item() * len(a) for a, b in batches[:9])
    assert found.numerator.shape == found.denominator.shape == (1,)
    assert found.numerator.get().item() == pytest.approx(total, rel=1e-6)
    assert found.denominator.get().item() == 2 * 25 + 8
    assert torch.equal(obhut.get(there).weight, here.weight)


@pytest.mark.parametrize(
    "schedule",
    [
        partial(StepLR, step_size=1, gamma=0.5),
        partial(OneCycleLR, max_lr=0.2, total_steps=8),
    ],
)
def test_a_schedule_steps_once_an_epoch(schedule: Any) -> None:
    """Two runs are one loop of PyTorch's, momentum too; nothing is warned of."""
    x, y = rows()
    bob = owner()
    models = linear_at("bob"), linear()
    opts = [optim.SGD(one.parameters(), lr=0.1, momentum=0.9) for one in models]
    schedulers = [schedule(one) for one in opts]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for epochs in (3, 2):
            step.run(
                model=models[0],
                optimizer=opts[0],
                data=bob.dataset("d"),
                batch_size=8,
                epochs=epochs,
                schedulers=schedulers[:1],
            )
    for _ in range(5):
        for a, b in zip(x.split(8), y.split(8), strict=True):
            step(models[1], opts[1], a, b)
        schedulers[1].step()
    assert torch.equal(obhut.get(models[0]).weight, models[1].weight)
    one, other = (opt.param_groups[0] for opt in opts)
    assert (one["lr"], one["momentum"]) == (other["lr"], other["momentum"])


def test_what_can_not_be_is_told_before_it_is_sent() -> None:
    """Epochs and steps, schedulers of others or of values, whole trainings."""
    bob = owner()
    there = linear_at("bob")
    opt = optim.SGD(there.parameters(), lr=0.1)
    run = partial(step.run, model=there, optimizer=opt, data=bob.dataset("d"))
    other = optim.SGD([torch.zeros(1)], lr=0.1)
    for how, text in (
        ({"epochs": 1, "steps": 1}, "epochs or steps, got both"),
        ({"steps": 0}, "1 step or more"),
        ({"schedulers": [StepLR(other, 1)]}, "optimizer that is not passed"),
        ({"schedulers": [ReduceLROnPlateau(opt)]}, "counts epochs"),
    ):
        with pytest.raises(CallError, match=text):
            run(**how)
    whole = obhut.program(lambda model, data: None)
    for how in ({"steps": 3}, {"epochs": 2}, {"schedulers": [StepLR(opt, 1)]}):
        with pytest.raises(CallError, match="says itself"):
            whole.run(model=there, data=bob.dataset("d"), **how)


# --- parts of a batch -----------------------------------------------------------------


def divided(size: int, more: int, parts: int) -> Program:
    """Return a program with a part of a batch's rows, so rounded."""
    x = Input("x", Kind.ROWS, "float32", (size,))
    number = (size + more) // parts
    line = Line("aten.mul.Tensor", (Ref(1), number), (), 2, 1)
    return Program((x,), (), (line,), (Result("", Ref(2), size),))


@pytest.mark.parametrize(("more", "parts"), [(0, 2), (1, 3), (2, 3), (6, 8), (7, 8)])
def test_a_part_is_rounded_as_in_all_batches(more: int, parts: int) -> None:
    """Sizes that follow one another tell which way; three others may not."""
    sizes = (29, 31, 37, *range(65, 64 + parts))
    program = fit({size: divided(size, more, parts) for size in sizes})
    assert divisor_of(program) == parts
    assert program.lines[0].args[1] == Size(1, more, parts)


def test_what_three_sizes_can_not_tell_is_recorded_again() -> None:
    """The second last of eight parts has as many rows as the last, of 29, 31 and 37."""

    @obhut.program
    def part(model: nn.Module, x: Any, y: Any) -> obhut.Ratio:
        mine = x[1::8]
        return obhut.Ratio(mine.sum() * len(mine), 1)

    recorded = part.record(data=rows(), model=linear())
    assert "aten.mul.Tensor(%1, $B+6//8)" in str(recorded)
    bob = owner(count=26)
    there = linear_at("bob")
    for size in (26, 25, 9, 10):
        found = part.run(model=there, data=bob.dataset("d"), batch_size=size)
        total = sum(
            (one[1::8].sum() * len(one[1::8])).item() for one in rows(26)[0].split(size)
        )
        assert found.numerator.get().item() == pytest.approx(total, rel=1e-5)
