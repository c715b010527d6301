"""Each strategy is the arithmetic written out in plain PyTorch, also under a policy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import obhut
from obhut.errors import CallError
from obhut.federated import (
    FedAdam,
    FedAvg,
    Federation,
    FedYogi,
    LocalTraining,
    Scaffold,
)
from obhut.federated.parameters import named_tensors, write

ROWS = {"aspen": 12, "birch": 7, "cedar": 20, "dogwood": 9, "elm": 15}
ROUNDS = 5
TAU = 1e-2
POLICY = obhut.Quorum(
    aggregators=["secure_worker"], contributors=list(ROWS), programs="same"
)
TRAINING = LocalTraining(
    partial(torch.optim.SGD, lr=0.1), F.cross_entropy, batch_size=5, epochs=2
)
policies = pytest.mark.parametrize("policy", [None, POLICY], ids=["open", "same"])

Parts = Mapping[str, Mapping[str, torch.Tensor]]


def make_parts() -> Parts:
    """Return each owner's rows, of different means."""
    return {
        name: {
            "features": torch.randn(rows, 4, dtype=torch.float64) + place / 3,
            "target": torch.randint(0, 3, (rows,)),
        }
        for place, (name, rows) in enumerate(ROWS.items())
    }


def federate(
    parts: Parts, policy: obhut.Quorum | None = None, state: Path | None = None
) -> Federation:
    """Return owners at virtual workers, and an aggregator.

    Args:
        parts: each owner's rows.
        policy: everybody's.
        state: a folder for what stays at owners.
    """
    owners = {
        name: obhut.VirtualWorker(
            name,
            policy=policy,
            datasets={"digits": part},
            state=state and state / name,
        )
        for name, part in parts.items()
    }
    aggregator = obhut.VirtualWorker("secure_worker", policy=policy)
    data = {name: worker.dataset("digits") for name, worker in owners.items()}
    return Federation(data, aggregator)


def make_model() -> nn.Module:
    """Return a classifier with a BatchNorm."""
    torch.manual_seed(1)
    layers = (nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
    return nn.Sequential(*layers).double()


def trained_here(model: nn.Module, part: Mapping[str, torch.Tensor]) -> nn.Module:
    """Return a copy of a model that was trained as ``TRAINING`` says."""
    mine = copy.deepcopy(model)
    optimizer = torch.optim.SGD(mine.parameters(), lr=0.1)
    for _ in range(2):
        for x, y in zip(
            part["features"].split(5), part["target"].split(5), strict=True
        ):
            optimizer.zero_grad()
            F.cross_entropy(mine(x), y).backward()
            optimizer.step()
    return mine


def mean_of(models: Sequence[nn.Module], weights: Sequence[int]) -> dict[str, Any]:
    """Return the weighted mean of models by name, in float64."""
    return {
        name: sum(
            dict(named_tensors(model))[name].detach().double() * weight
            for model, weight in zip(models, weights, strict=True)
        )
        / sum(weights)
        for name in named_tensors(models[0])
    }


def averaged(
    model: nn.Module,
    parts: Parts,
    step: Callable[[nn.Module, dict[str, torch.Tensor]], None],
) -> None:
    """Play the rounds here."""
    weights = [len(part["target"]) for part in parts.values()]
    for _ in range(ROUNDS):
        mean = mean_of([trained_here(model, part) for part in parts.values()], weights)
        step(model, mean)


def to_mean(model: nn.Module, mean: dict[str, torch.Tensor]) -> None:
    """Let a model be a mean."""
    for name, tensor in named_tensors(model).items():
        value = mean[name]
        value = value if tensor.is_floating_point() else value.round()
        tensor.data.copy_(value)


class Adaptive:
    """Reddi et al. 2021, algorithm 2, written out."""

    def __init__(self, kind: str, lr: float, beta: float = 0.9) -> None:
        self._kind, self._lr, self._beta = kind, lr, beta
        self._m: dict[str, Any] = {}
        self._v: dict[str, Any] = {}

    def __call__(self, model: nn.Module, mean: dict[str, torch.Tensor]) -> None:
        """Take a step."""
        old = {n: p.detach().double().clone() for n, p in model.named_parameters()}
        to_mean(model, mean)
        for name, parameter in model.named_parameters():
            delta = mean[name] - old[name]
            m = self._m.get(name, 0.0) * self._beta + (1 - self._beta) * delta
            v = self._v.get(name, torch.full_like(delta, TAU**2))
            square = delta**2
            if self._kind == "adagrad":
                v = v + square
            elif self._kind == "yogi":
                v = v - 0.01 * square * (v - square).sign()
            else:
                v = 0.99 * v + 0.01 * square
            self._m[name], self._v[name] = m, v
            parameter.data.copy_(old[name] + self._lr * m / (v.sqrt() + TAU))


class Momentum:
    """Averaging with momentum, written out: Hsu et al. 2019, arXiv 1909.06335."""

    def __init__(self) -> None:
        self._velocity: dict[str, Any] = {}

    def __call__(self, model: nn.Module, mean: dict[str, torch.Tensor]) -> None:
        """Take a step."""
        old = {n: p.detach().double().clone() for n, p in model.named_parameters()}
        to_mean(model, mean)
        for name, parameter in model.named_parameters():
            v = 0.9 * self._velocity.get(name, 0.0) + (old[name] - mean[name])
            self._velocity[name] = v
            parameter.data.copy_(old[name] - v)


OUTER: dict[str, tuple[Any, Callable[[], Any]]] = {
    "FedAvg": (None, lambda: to_mean),
    "FedAvg by SGD": (partial(torch.optim.SGD, lr=1.0), lambda: to_mean),
    "FedAvgM": (partial(torch.optim.SGD, lr=1.0, momentum=0.9), Momentum),
    "FedAdam": (partial(FedAdam, lr=0.05, tau=TAU), partial(Adaptive, "adam", 0.05)),
    "FedYogi": (partial(FedYogi, lr=0.05, tau=TAU), partial(Adaptive, "yogi", 0.05)),
    "FedAdagrad": (
        partial(
            torch.optim.Adagrad, lr=0.05, initial_accumulator_value=TAU**2, eps=TAU
        ),
        partial(Adaptive, "adagrad", 0.05, 0.0),
    ),
}


@policies
@pytest.mark.parametrize("name", OUTER)
def test_outer_optimizers_are_their_papers(
    name: str, policy: obhut.Quorum | None
) -> None:
    """Five rounds are within 1e-9 of the arithmetic; buffers are averaged."""
    outer, make_step = OUTER[name]
    parts, model = make_parts(), make_model()
    expected = copy.deepcopy(model)
    averaged(expected, parts, make_step())
    history = federate(parts, policy).fit(
        model, TRAINING, rounds=ROUNDS, outer_optimizer=outer, progress=False
    )
    assert [one.number for one in history] == [*range(1, ROUNDS + 1)]
    for key, value in named_tensors(model).items():
        torch.testing.assert_close(
            value, named_tensors(expected)[key], atol=1e-9, rtol=0
        )


@policies
def test_fedsgd_is_a_step_along_the_gradient_of_all_rows(
    policy: obhut.Quorum | None,
) -> None:
    """One step of SGD(1.0) on all rows at each owner delivers its gradient."""
    parts = make_parts()
    torch.manual_seed(2)
    model = nn.Linear(4, 3).double()
    expected = copy.deepcopy(model)
    training = LocalTraining(partial(torch.optim.SGD, lr=1.0), F.cross_entropy)
    outer = partial(torch.optim.Adam, lr=0.1)
    federate(parts, policy).fit(
        model, training, rounds=ROUNDS, outer_optimizer=outer, progress=False
    )
    x, y = (torch.cat([p[k] for p in parts.values()]) for k in ("features", "target"))
    optimizer = outer(expected.parameters())
    for _ in range(ROUNDS):
        optimizer.zero_grad()
        F.cross_entropy(expected(x), y).backward()
        optimizer.step()
    for one, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0)


@policies
def test_kept_layers_are_each_owners_own(policy: obhut.Quorum | None) -> None:
    """FedBN: the norm stays at its owner, goes on from round to round, and not here."""
    parts, model = make_parts(), make_model()
    before = copy.deepcopy(model)
    expected = copy.deepcopy(model)
    weights = [len(part["target"]) for part in parts.values()]
    own = [copy.deepcopy(model[1]) for _ in parts]
    for _ in range(ROUNDS):
        models = []
        for place, part in enumerate(parts.values()):
            start = copy.deepcopy(expected)
            start[1] = copy.deepcopy(own[place])
            models.append(trained_here(start, part))
            own[place] = copy.deepcopy(models[-1][1])
        mean = mean_of(models, weights)
        norm = copy.deepcopy(expected[1])
        to_mean(expected, mean)
        expected[1] = norm
    federation = federate(parts, policy)
    federation.fit(model, TRAINING, rounds=ROUNDS, keep=["1"], progress=False)
    for key, value in named_tensors(model).items():
        torch.testing.assert_close(
            value, named_tensors(expected)[key], atol=1e-9, rtol=0
        )
    assert all(
        torch.equal(value, named_tensors(before)[f"1.{key}"])
        for key, value in named_tensors(model[1]).items()
    )
    right = sum(
        _right(expected, norm, part)
        for norm, part in zip(own, parts.values(), strict=True)
    )

    def accuracy(outputs: torch.Tensor, targets: torch.Tensor) -> obhut.Ratio:
        return obhut.Ratio((outputs.argmax(1) == targets).sum(), len(targets))

    found = federation.evaluate(model, {"accuracy": accuracy}, keep=["1"])
    assert found == {"accuracy": right / sum(weights)}


def _right(model: nn.Module, norm: nn.Module, part: Mapping[str, torch.Tensor]) -> int:
    """Return how many rows an owner's own model has right."""
    own = copy.deepcopy(model).eval()
    own[1] = copy.deepcopy(norm).eval()
    return int((own(part["features"]).argmax(1) == part["target"]).sum())


@policies
def test_scaffold_is_its_paper(policy: obhut.Quorum | None) -> None:
    """Five rounds are within 1e-9 of algorithm 1, option II, weighed by rows."""
    parts, model = make_parts(), make_model()
    expected = copy.deepcopy(model)
    rows = {name: len(part["target"]) for name, part in parts.items()}
    names = [name for name, _ in model.named_parameters()]
    everybody = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    own = {owner: dict(everybody) for owner in parts}
    for _ in range(ROUNDS):
        models, changes = [], []
        for owner, part in parts.items():
            mine, steps = copy.deepcopy(expected), 0
            for _ in range(2):
                for x, y in zip(
                    part["features"].split(5), part["target"].split(5), strict=True
                ):
                    mine.zero_grad()
                    F.cross_entropy(mine(x), y).backward()
                    for name, one in mine.named_parameters():
                        step = one.grad - own[owner][name] + everybody[name]
                        one.data -= 0.1 * step
                    steps += 1
            before = dict(expected.named_parameters())
            became = {
                name: own[owner][name]
                - everybody[name]
                + (before[name] - one).detach() / (steps * 0.1)
                for name, one in mine.named_parameters()
            }
            changes.append({n: became[n] - own[owner][n] for n in names})
            own[owner] = became
            models.append(mine)
        weights = [*rows.values()]
        for name in names:
            change = sum(
                one[name] * weight for one, weight in zip(changes, weights, strict=True)
            )
            everybody[name] = everybody[name] + change / sum(weights)
        to_mean(expected, mean_of(models, weights))
    federate(parts, policy).fit(
        model, TRAINING, rounds=ROUNDS, strategy=Scaffold, progress=False
    )
    for key, value in named_tensors(model).items():
        torch.testing.assert_close(
            value, named_tensors(expected)[key], atol=1e-9, rtol=0
        )


def test_scaffold_asks_for_steps_of_known_length() -> None:
    """What it can't correct is told before anything is sent."""
    other = LocalTraining(partial(torch.optim.Adam, lr=0.1), F.cross_entropy)
    federation = federate(make_parts())
    with pytest.raises(CallError, match="plain SGD"):
        federation.fit(make_model(), other, rounds=1, strategy=Scaffold)


@policies
def test_trimmed_means_leave_out_extremes(policy: obhut.Quorum | None) -> None:
    """Each element's smallest and largest are left out, of numbers and of counts."""
    parts, model = make_parts(), make_model()
    expected = copy.deepcopy(model)
    for _ in range(2):
        models = [trained_here(expected, part) for part in parts.values()]
        to_mean(
            expected,
            {
                name: torch.stack([named_tensors(one)[name].double() for one in models])
                .sort(0)
                .values[1:-1]
                .mean(0)
                for name in named_tensors(expected)
            },
        )
    federate(parts, policy).fit(
        model, TRAINING, rounds=2, strategy=partial(FedAvg, trim=1), progress=False
    )
    for key, value in named_tensors(model).items():
        torch.testing.assert_close(
            value, named_tensors(expected)[key], atol=1e-9, rtol=0
        )


@policies
@pytest.mark.parametrize("norm", [0.05, 100.0])
def test_changes_are_clipped_at_their_owner(
    policy: obhut.Quorum | None, norm: float
) -> None:
    """None is longer than the norm, over all parameters; buffers are as they are."""
    parts, model = make_parts(), make_model()
    expected = copy.deepcopy(model)
    models = []
    for part in parts.values():
        mine = trained_here(expected, part)
        pairs = [*zip(mine.parameters(), expected.parameters(), strict=True)]
        squares = [(a - b).detach().square().sum() for a, b in pairs]
        length = float(torch.stack(squares).sum().sqrt())
        for one, first in pairs:
            one.data.copy_(first + (one - first) * min(1.0, norm / length))
        models.append(mine)
    to_mean(expected, mean_of(models, [len(p["target"]) for p in parts.values()]))
    clipped = partial(FedAvg, clip_norm=norm)
    federate(parts, policy).fit(
        model, TRAINING, rounds=1, strategy=clipped, progress=False
    )
    for key, value in named_tensors(model).items():
        torch.testing.assert_close(
            value, named_tensors(expected)[key], atol=1e-9, rtol=0
        )


def test_too_much_to_leave_out_is_told() -> None:
    """Before anything is sent."""
    federation = federate(make_parts())
    for options, said in (
        ({"strategy": partial(FedAvg, trim=3)}, "below half of 5"),
        ({"strategy": partial(FedAvg, trim=-1)}, "trim from 0"),
        ({"strategy": partial(FedAvg, clip_norm=0.0)}, "clip_norm above 0"),
        (
            {"strategy": partial(FedAvg, trim=1), "weights": dict.fromkeys(ROWS, 1.0)},
            "expected no weights",
        ),
    ):
        with pytest.raises(CallError, match=said):
            federation.fit(make_model(), TRAINING, rounds=1, **options)


class Halved(FedAvg):
    """Goes half of the way to the mean."""

    def update(self, model: nn.Module, mean: Mapping[str, torch.Tensor]) -> None:
        """Go half of the way."""
        own = named_tensors(model)
        write(own, {name: (own[name] + x) / 2 for name, x in mean.items()})


def test_a_strategy_of_ones_own_is_one_class() -> None:
    """It is used as those that are there."""
    parts, model = make_parts(), nn.Linear(4, 3).double()
    expected = copy.deepcopy(model)

    def step(here: nn.Module, mean: dict[str, torch.Tensor]) -> None:
        for name, parameter in here.named_parameters():
            parameter.data.copy_((parameter + mean[name]) / 2)

    averaged(expected, parts, step)
    federate(parts).fit(model, TRAINING, rounds=ROUNDS, strategy=Halved, progress=False)
    for one, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0)


def test_gradients_that_were_here_stay() -> None:
    """An outer optimizer leaves the model's own gradients as they were."""
    model = nn.Linear(4, 3).double()
    model(torch.ones(1, 4).double()).sum().backward()
    before = [one.grad.clone() for one in model.parameters()]
    federate(make_parts()).fit(
        model,
        TRAINING,
        rounds=1,
        outer_optimizer=partial(torch.optim.SGD, lr=0.5),
        progress=False,
    )
    after = [one.grad for one in model.parameters()]
    assert all(map(torch.equal, before, after))


@pytest.mark.parametrize("value", [{"lr": -1.0}, {"tau": 0.0}, {"betas": (1.0, 0.9)}])
def test_hyperparameters_out_of_range_are_refused(value: dict[str, Any]) -> None:
    """They are refused when the optimizer is made."""
    for kind in (FedAdam, FedYogi):
        with pytest.raises(CallError, match="expected lr from 0"):
            kind(nn.Linear(1, 1).parameters(), **value)
