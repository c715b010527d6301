"""The demo's second part: hospitals train a model on data that none hands out.

The data is real: 569 samples of breast tissue, 30 measurements each, and whether
the tumour was benign.

Rules:

- Nothing here but ``send_out`` knows what kind of workers there are. Real hospitals
  have their rows already; here they are dealt out first, to virtual workers or into
  files.
- All workers are under one policy. What it lets out is all that is used of what is at
  the hospitals; what it is compared with is trained on rows from before the deal.

Source: Street, Wolberg, Mangasarian 1993, the Wisconsin diagnostic breast cancer
data, as scikit-learn ships it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

import obhut
from obhut.client.registry import Place
from obhut.client.workers import RemoteWorker
from obhut.errors import ReleaseRefusedError
from obhut.federated import (
    LocalTraining,
    RemoteDataset,
    mean_and_std,
    split,
    train_rounds,
)
from obhut.guard.policy import Quorum

from .processes import AGGREGATOR, DATASET

SHARES = {"aspen": 0.40, "birch": 0.25, "cedar": 0.20, "dogwood": 0.10, "elm": 0.05}
"""Each hospital's share of the training rows."""

HELD_OUT = 0.4
"""The share of all rows that no hospital has, and that every model is tested on."""

LOCAL_STEPS = 5
LEARNING_RATE = 0.1

POLICY = Quorum(aggregators=(AGGREGATOR,), contributors=tuple(SHARES))
"""Everybody has it. Only sums over three hospitals or more leave the aggregator, of
what one program made at each of them."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that are here.

    Attributes:
        features: (rows, measurements) float32.
        targets: (rows, 1) float32, 1 for benign, 0 for malignant.
    """

    features: torch.Tensor
    targets: torch.Tensor

    def __getitem__(self, numbers: torch.Tensor) -> Rows:
        """Return the rows of these numbers, (rows,) int64."""
        return Rows(self.features[numbers], self.targets[numbers])

    def __len__(self) -> int:
        """Return how many rows there are."""
        return len(self.targets)


@dataclass(frozen=True, slots=True)
class Deal:
    """Who gets which rows.

    Attributes:
        hospitals: each hospital's, by name.
        training: all of these.
        held_out: those that no hospital gets.
    """

    hospitals: dict[str, Rows]
    training: Rows
    held_out: Rows


@dataclass(frozen=True, slots=True)
class Participants:
    """Where the hospitals' rows and the aggregator are.

    Attributes:
        hospitals: each hospital's rows as they were measured, by name, at its worker.
        aggregator: the worker that everyone trusts to average.
    """

    hospitals: dict[str, RemoteDataset]
    aggregator: Place


@dataclass(frozen=True, slots=True)
class Study:
    """Who has what, made ready for training.

    Attributes:
        hospitals: each hospital's rows, standardised, by name, at its worker.
        aggregator: the worker that everyone trusts to average.
        held_out: the rows to test on, standardised, here.
        mean: (measurements,) float32, over all hospitals' rows.
        std: (measurements,) float32, likewise.
    """

    hospitals: dict[str, RemoteDataset]
    aggregator: Place
    held_out: Rows
    mean: torch.Tensor
    std: torch.Tensor

    def standardised(self, rows: Rows) -> Rows:
        """Return rows that are here, scaled as the hospitals' are."""
        return Rows((rows.features - self.mean) / self.std, rows.targets)


@dataclass(frozen=True, slots=True)
class Point:
    """How a model does after a round.

    Attributes:
        training_loss: averaged over those who train it.
        loss: on the held-out rows.
        correct: held-out rows that it classifies correctly.
    """

    training_loss: float
    loss: float
    correct: int


def deal(rows: Rows, seed: int) -> Deal:
    """Deal rows out to the hospitals.

    Args:
        rows: all there are.
        seed: what decides who gets which rows.
    """
    generator = torch.Generator().manual_seed(seed)
    held_out, training = split(len(rows), (HELD_OUT, 1 - HELD_OUT), generator)
    parts = split(len(training), SHARES.values(), generator)
    return Deal(
        {name: rows[training[part]] for name, part in zip(SHARES, parts, strict=True)},
        rows[training],
        rows[held_out],
    )


def send_out(dealt: Deal) -> Participants:
    """Give each hospital's rows to a virtual worker of its own, in this process."""
    hospitals = {}
    for name, rows in dealt.hospitals.items():
        data = {DATASET: {"features": rows.features, "target": rows.targets}}
        worker = obhut.VirtualWorker(name, policy=POLICY, datasets=data)
        hospitals[name] = rows_at(worker)
    return Participants(hospitals, obhut.VirtualWorker(AGGREGATOR, policy=POLICY))


def rows_at(worker: RemoteWorker) -> RemoteDataset:
    """Return a hospital's rows, which its worker has under the same name as all."""
    return RemoteDataset(worker[DATASET], worker[DATASET, "target"])


def prepare(sites: Participants, held_out: Rows) -> Study:
    """Standardise the hospitals' rows without pooling them.

    Args:
        sites: where they are.
        held_out: as they were measured.
    """
    # Each hospital's sums and sums of squares are added at the aggregator.
    mean, std = mean_and_std(
        [raw.features for raw in sites.hospitals.values()], sites.aggregator
    )
    hospitals = {}
    for name, raw in sites.hospitals.items():
        worker = raw.location
        scaled = (raw.features - obhut.send(mean, worker)) / obhut.send(std, worker)
        hospitals[name] = RemoteDataset(scaled, raw.targets)
    study = Study(hospitals, sites.aggregator, held_out, mean, std)
    return replace(study, held_out=study.standardised(held_out))


def make_model(measurements: int, seed: int) -> nn.Module:
    """Return a small classifier of so many measurements."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(measurements, 16), nn.ReLU(), nn.Linear(16, 1))


def follow(
    study: Study, model: nn.Module, rounds: int, *, eager: bool = False
) -> Iterator[Point]:
    """Train a copy of a model at all hospitals, and test it after each round.

    Args:
        study: where the hospitals are.
        model: stays as it is.
        rounds: how many.
        eager: whether hospitals train line by line, and not by program.
    """
    model = obhut.copy(model)
    training = replace(_TRAINING, eager=eager)
    for report in train_rounds(
        model, [*study.hospitals.values()], study.aggregator, training, rounds
    ):
        yield _tested(model, study, report.loss)


def follow_here(
    study: Study, model: nn.Module, rows: Rows, rounds: int
) -> Iterator[Point]:
    """Train a copy of a model here, in plain torch, with the same steps.

    Args:
        study: what it is tested on.
        model: stays as it is.
        rows: standardised, here.
        rounds: after so many steps each it is tested, as often as ``follow`` does.
    """
    model = obhut.copy(model)
    optimizer = _TRAINING.optimizer(model.parameters())
    for _ in range(rounds):
        for _ in range(LOCAL_STEPS):
            optimizer.zero_grad()
            loss = _TRAINING.loss_fn(model(rows.features), rows.targets)
            loss.backward()
            optimizer.step()
        yield _tested(model, study, loss.item())


def ask_for_one(
    study: Study, model: nn.Module, name: str
) -> ReleaseRefusedError | None:
    """Ask for a model that one hospital trained; return the refusal, if it is one.

    Args:
        study: where the hospital is.
        model: is trained, as a copy.
        name: the hospital's.
    """
    dataset = study.hospitals[name]
    theirs = obhut.send(obhut.copy(model), dataset.location)
    _TRAINING.run(theirs, dataset)
    try:
        obhut.get(obhut.move(theirs, study.aggregator))
    except ReleaseRefusedError as refused:
        return refused
    return None


_TRAINING = LocalTraining(
    optimizer=partial(torch.optim.SGD, lr=LEARNING_RATE),
    loss_fn=F.binary_cross_entropy_with_logits,
    epochs=LOCAL_STEPS,  # of one step each: a batch is all of an owner's rows
)


def _tested(model: nn.Module, study: Study, training_loss: float) -> Point:
    """Try a model, which is here, on the held-out rows."""
    with torch.no_grad():
        logits = model(study.held_out.features)
        targets = study.held_out.targets
        loss = F.binary_cross_entropy_with_logits(logits, targets)
        right = (logits > 0) == (targets > 0.5)
    return Point(training_loss, loss.item(), int(right.sum()))
