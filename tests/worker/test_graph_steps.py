"""Parameters are stepped as soon as their gradients are there, to the same bits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.programs.zoo import BODIES, OPTIMIZERS, plain
from torch import nn

from obhut.client.programs import program
from obhut.client.recording import settings_of
from obhut.protocol.messages import (
    Batch,
    DatasetRows,
    Define,
    Put,
    RunProgram,
    Stepping,
    TensorData,
)
from obhut.worker import replay, trainings
from obhut.worker.core import Worker
from obhut.worker.repeated import Repeated
from obhut.worker.tensors import DTYPE_NAMES, to_frame

from .conftest import Driver

ROWS, SIZE = 70, 16  # four full batches, and 6 rows

Body = Callable[..., Any]


class Wide(nn.Module):
    """Layers that are stepped by themselves, one with a weight of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 300), nn.Linear(300, 300), nn.ReLU()
        self.tied = nn.Linear(300, 300)
        self.tied.weight = self.b.weight
        self.head = nn.Linear(300, 10)
        self.unused = nn.Linear(300, 300)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what it makes of rows."""
        return self.head(self.tied(self.c(self.b(self.c(self.a(x))))))


class Recurrent(nn.Module):
    """An LSTM with large weights."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(4, 160, batch_first=True), nn.Linear(160, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what it makes of rows."""
        return self.head(self.rnn(x.view(len(x), 4, 4))[0][:, -1])


def mlp() -> nn.Module:
    """Return an MLP with two large weights."""
    return nn.Sequential(
        *(nn.Linear(16, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU()),
        *(nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 10)),
    )


def cnn() -> nn.Module:
    """Return a CNN with batch normalization and a large layer."""
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 32, 3, padding=1)),
        *(nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(512, 160), nn.ReLU(), nn.Linear(160, 10)),
    )


MODELS = {"mlp": mlp, "cnn": cnn, "lstm": Recurrent, "tied": Wide}


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows of numbers and labels."""
    return torch.randn(ROWS, 16), torch.randint(0, 10, (ROWS,))


def requests(
    model: nn.Module,
    body: Body,
    data: Sequence[torch.Tensor],
    optimizer: torch.optim.Optimizer,
    later: Sequence[tuple[int, dict[str, Any]]] = (),
    **how: Any,
) -> tuple[list[Any], list[Any]]:
    """Return what trains a model in one batch of requests, and its frames."""
    made = program(body).record(data=data, model=model, optimizer=optimizer)
    sent = [
        Put(
            id,
            TensorData(
                DTYPE_NAMES[one.dtype], tuple(one.shape), id - 1, one.requires_grad
            ),
        )
        for id, one in enumerate(made.tensors, 1)
    ]
    options = settings_of(optimizer)
    changed = tuple((stage, ({**options[0], **given},)) for stage, given in later)
    run = RunProgram(
        made.digest,
        tuple(range(1, len(sent) + 1)),
        DatasetRows("data", ("features", "target")),
        1000,
        2,
        SIZE,
        optimizers=(Stepping(0, options, changed),),
        **how,
    )
    frames = [to_frame(one) for one in made.tensors]
    return [*sent, Define(made.text), run], frames


def trained(
    model: nn.Module,
    sent: tuple[list[Any], list[Any]],
    data: Sequence[torch.Tensor],
    exact: bool = True,
) -> nn.Module:
    """Return a model that a new worker has trained in a new session.

    Or one whose turn comes after others', bound to what they had; exact it is the same.
    """
    batch = Batch("task", 1, tuple(sent[0]))
    repeated = Repeated(batch, sent[1], exact=exact)
    others = [[one.flip(0) for one in data], [one[SIZE * 2 :] for one in data]]
    for name, given in zip(("ann", "eve", "bob"), (*others, data), strict=True):
        named = dict(zip(("features", "target"), given, strict=True))
        assert repeated.turn(name, {"data": named}) is None
    count = len([*model.parameters(), *model.buffers()])
    values = repeated.held(*range(1, count + 1))
    if exact:
        me = Driver(Worker("bob", datasets={"data": named}))
        me.open()
        assert me(*sent[0], frames=sent[1]) == []
        alone = [me.value(id) for id in range(1, count + 1)]
        for one, other in zip(alone, values, strict=True):
            assert torch.equal(one, other)
    found = copy.deepcopy(model)
    with torch.no_grad():
        tensors = (*found.parameters(), *found.buffers())
        for one, value in zip(tensors, values, strict=True):
            one.copy_(value)
    return found


def looped(
    model: nn.Module,
    body: Body,
    data: Sequence[torch.Tensor],
    make: Callable[[Any], torch.optim.Optimizer],
    epochs: int = 1,
    rates: Sequence[float] = (),
) -> nn.Module:
    """Return a model that an ordinary loop has trained."""
    found = copy.deepcopy(model)
    optimizer = make(found.parameters())
    for epoch in range(epochs):
        if rates:
            optimizer.param_groups[0]["lr"] = rates[epoch]
        for x, y in zip(*(one.split(SIZE) for one in data), strict=True):
            body(found, optimizer, x, y)
    return found


def furthest(one: nn.Module, other: nn.Module) -> float:
    """Return how far two models are from each other at most; 0 for the same bits."""
    mine, theirs = one.state_dict(), other.state_dict()
    return max(float((mine[n].double() - theirs[n].double()).abs().max()) for n in mine)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The code of graphs that are lowered in the test."""
    texts: list[str] = []

    class Kept(replay._Writer):
        """A writer whose text is kept."""

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            texts.append(self.text)

    trainings._lowered._known.clear()
    monkeypatch.setattr(replay, "_Writer", Kept)
    return texts


STEPPERS = {
    **OPTIMIZERS,
    "fused sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9, fused=True),
    "fused adam": partial(torch.optim.Adam, lr=1e-2, fused=True),
    "decayed": partial(torch.optim.SGD, lr=0.05, weight_decay=0.1),
    "ascending": partial(torch.optim.SGD, lr=0.01, maximize=True),
}


@pytest.mark.parametrize("name", STEPPERS)
def test_each_optimizer_steps_by_parts_as_at_once(
    name: str, written: list[str]
) -> None:
    """A model with large layers is trained as by a loop, digit for digit."""
    torch.manual_seed(0)
    model, data, make = mlp(), rows(), STEPPERS[name]
    sent = requests(model, plain, data, make(model.parameters()), epochs=2)
    expected = looped(model, plain, data, make, epochs=2)
    assert furthest(trained(model, sent, data), expected) == 0
    assert written[0].count(".part(") == 3


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("stepper", ["sgd", "momentum", "adam", "adamw"])
def test_each_model_is_trained_as_by_a_loop(name: str, stepper: str) -> None:
    """Also with weights of two layers, and one without a gradient."""
    torch.manual_seed(0)
    model, data, make = MODELS[name](), rows(), OPTIMIZERS[stepper]
    sent = requests(model, plain, data, make(model.parameters()))
    assert furthest(trained(model, sent, data), looped(model, plain, data, make)) == 0


@pytest.mark.parametrize("name", sorted({*BODIES} - {"noisy"}))
@pytest.mark.parametrize("exact", [True, False])
def test_each_body_is_trained_as_by_a_loop(name: str, exact: bool) -> None:
    """Clipping, a proximal term, several steps a batch: what they need is there."""
    torch.manual_seed(0)
    model, data, make = mlp(), rows(), OPTIMIZERS["sgd"]
    sent = requests(model, BODIES[name], data, make(model.parameters()))
    expected = looped(model, BODIES[name], data, make)
    assert furthest(trained(model, sent, data, exact), expected) <= (
        0 if exact else 1e-6
    )


def test_gradients_that_are_products_are_never_made(written: list[str]) -> None:
    """By choice, of plain SGD: one operator steps the weight of a linear layer."""
    torch.manual_seed(0)
    model, data, make = mlp(), rows(), OPTIMIZERS["sgd"]
    sent = requests(model, plain, data, make(model.parameters()))
    expected = looped(model, plain, data, make)
    assert 0 < furthest(trained(model, sent, data, exact=False), expected) < 1e-6
    assert [one.count(".product(") for one in written] == [4, 4]  # also for 6 rows
    assert all(one.count("mm_") > one.count(" = mm_") for one in written)


@pytest.mark.parametrize("name", sorted({*STEPPERS} - {"sgd"}))
def test_other_steps_are_exact_whatever_was_chosen(name: str) -> None:
    """What keeps or scales something needs the gradient itself."""
    torch.manual_seed(0)
    model, data, make = mlp(), rows(), STEPPERS[name]
    sent = requests(model, plain, data, make(model.parameters()))
    expected = looped(model, plain, data, make)
    assert furthest(trained(model, sent, data, exact=False), expected) == 0


@pytest.mark.parametrize("name", ["clipped_norm", "clipped_value", "proximal"])
def test_gradients_that_something_else_reads_are_made(
    name: str, written: list[str]
) -> None:
    """A norm, a bound and a sum of gradients need them, also by choice."""
    model, data, make = mlp(), rows(), OPTIMIZERS["sgd"]
    sent = requests(model, BODIES[name], data, make(model.parameters()))
    trained(model, sent, data, exact=False)
    assert not any(".product(" in one for one in written)


@pytest.mark.parametrize("exact", [True, False])
def test_rates_change_between_epochs(exact: bool) -> None:
    """A schedule is followed, however parameters are stepped."""
    torch.manual_seed(0)
    model, data, make = mlp(), rows(), OPTIMIZERS["sgd"]
    later = [(3, {"lr": 0.02}), (5, {"lr": 0.001})]
    optimizer = make(model.parameters())
    sent = requests(model, plain, data, optimizer, later, epochs=3)
    expected = looped(model, plain, data, make, 3, (0.05, 0.02, 0.001))
    assert furthest(trained(model, sent, data, exact), expected) <= (
        0 if exact else 1e-6
    )


@pytest.mark.parametrize("exact", [True, False])
def test_momentum_may_begin_between_epochs(exact: bool) -> None:
    """What was a multiple of a gradient is none any more, and none is missing."""
    torch.manual_seed(0)
    model, data, make = mlp(), rows(), OPTIMIZERS["sgd"]
    optimizer = make(model.parameters())
    later = [(3, {"momentum": 0.9})]
    sent = requests(model, plain, data, optimizer, later, epochs=2)
    expected = copy.deepcopy(model)
    stepping = make(expected.parameters())
    for momentum in (0, 0.9):
        stepping.param_groups[0]["momentum"] = momentum
        for x, y in zip(*(one.split(SIZE) for one in data), strict=True):
            plain(expected, stepping, x, y)
    assert furthest(trained(model, sent, data, exact), expected) <= (
        0 if exact else 1e-6
    )


def swapped(model: nn.Module, optimizer: Any, x: torch.Tensor, y: torch.Tensor) -> Any:
    """Let two weights be each other's gradients."""
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    one, other = model[2].weight, model[4].weight
    one.grad, other.grad = other.detach(), one.detach()
    optimizer.step()
    return loss


def test_steps_that_change_each_others_gradients_stay_in_order(
    written: list[str],
) -> None:
    """One step's parameter is another's gradient: all are stepped at once."""
    torch.manual_seed(0)
    model, data, make = mlp(), rows(), OPTIMIZERS["sgd"]
    sent = requests(model, swapped, data, make(model.parameters()))
    expected = looped(model, swapped, data, make)
    assert furthest(trained(model, sent, data), expected) == 0
    assert written[0].count(".part(") == 1


def flattened(
    model: nn.Module, optimizer: Any, x: torch.Tensor, y: torch.Tensor
) -> Any:
    """Add up rows of matrices, and lay out the sum anew."""
    sums = x.view(-1, 4, 4).sum(0, keepdim=True)
    return plain(model, optimizer, x + sums.view(16) + x.sum(0, True).view(16), y)


def test_sums_over_rows_have_the_sizes_that_are_wanted(written: list[str]) -> None:
    """A sum that is viewed in sizes of its own is made in them, and no other."""
    torch.manual_seed(0)
    model, data, make = mlp(), rows(), OPTIMIZERS["sgd"]
    sent = requests(model, flattened, data, make(model.parameters()))
    expected = looped(model, flattened, data, make)
    assert furthest(trained(model, sent, data), expected) == 0
    assert "[0], True)" in written[0]
    assert ".view" not in written[0]
    assert sum(" = sum_" in line for line in written[0].splitlines()) == 6
