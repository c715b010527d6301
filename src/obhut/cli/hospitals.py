"""The demo's second part: hospitals train a model on data that none hands out.

The data is real: 569 samples of breast tissue, 30 measurements each, and whether
the tumour was benign. One process plays all parts here: each hospital is a virtual
worker, and the rows are sent to them first. Real hospitals have theirs already.

Source: Street, Wolberg, Mangasarian 1993, the Wisconsin diagnostic breast cancer
data, as scikit-learn ships it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

import obhut
from obhut.federated import (
    LocalTraining,
    RemoteDataset,
    mean_and_std,
    split,
    train_rounds,
)

SHARES = {"aspen": 0.40, "birch": 0.25, "cedar": 0.20, "dogwood": 0.10, "elm": 0.05}
"""Each hospital's share of the training rows."""

HELD_OUT = 0.4
"""The share of all rows that no hospital has, and that every model is tested on."""

LOCAL_STEPS = 5
LEARNING_RATE = 0.1


@dataclass(frozen=True, slots=True)
class Study:
    """Who has what.

    Attributes:
        hospitals: each hospital's rows, by name, at its worker.
        pooled: all training rows at one worker, as if everyone had handed them out.
        aggregator: the worker that everyone trusts to average.
        features: (held-out rows, measurements) float32, here.
        targets: (held-out rows, 1) float32, 1 for benign, here.
    """

    hospitals: dict[str, RemoteDataset]
    pooled: RemoteDataset
    aggregator: obhut.VirtualWorker
    features: torch.Tensor
    targets: torch.Tensor


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


def prepare(features: torch.Tensor, targets: torch.Tensor, seed: int) -> Study:
    """Share rows out to hospitals, and standardise them without pooling them.

    Args:
        features: (rows, measurements) float32.
        targets: (rows, 1) float32, 0 or 1.
        seed: what decides who gets which rows.
    """
    generator = torch.Generator().manual_seed(seed)
    held_out, training = split(len(features), (HELD_OUT, 1 - HELD_OUT), generator)
    parts = split(len(training), SHARES.values(), generator)
    rows = {name: training[part] for name, part in zip(SHARES, parts, strict=True)}

    aggregator = obhut.VirtualWorker("aggregator")
    workers = {name: obhut.VirtualWorker(name) for name in SHARES}
    raw = {name: obhut.send(features[rows[name]], workers[name]) for name in SHARES}

    # Each hospital's sums and sums of squares are added at the aggregator.
    mean, std = mean_and_std(list(raw.values()), aggregator)

    hospitals = {}
    for name, worker in workers.items():
        scaled = (raw[name] - obhut.send(mean, worker)) / obhut.send(std, worker)
        labels = obhut.send(targets[rows[name]], worker)
        hospitals[name] = RemoteDataset(scaled, labels)
    return Study(
        hospitals=hospitals,
        pooled=RemoteDataset.send(
            (features[training] - mean) / std,
            targets[training],
            obhut.VirtualWorker("pooled"),
        ),
        aggregator=aggregator,
        features=(features[held_out] - mean) / std,
        targets=targets[held_out],
    )


def make_model(measurements: int, seed: int) -> nn.Module:
    """Return a small classifier of so many measurements."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(measurements, 16), nn.ReLU(), nn.Linear(16, 1))


def follow(
    study: Study, model: nn.Module, owners: Sequence[RemoteDataset], rounds: int
) -> Iterator[Point]:
    """Train a copy of a model at its owners, and test it after each round.

    With one owner this is training on that owner's rows alone: an average over one
    changes nothing.
    """
    training = LocalTraining(
        optimizer=partial(torch.optim.SGD, lr=LEARNING_RATE),
        loss_func=F.binary_cross_entropy_with_logits,
        epochs=LOCAL_STEPS,  # of one step each: a batch is all of an owner's rows
    )
    model = obhut.copy(model)
    for report in train_rounds(model, owners, study.aggregator, training, rounds):
        with torch.no_grad():
            logits = model(study.features)
            loss = F.binary_cross_entropy_with_logits(logits, study.targets)
            right = (logits > 0) == (study.targets > 0.5)
        yield Point(report.loss, loss.item(), int(right.sum()))
