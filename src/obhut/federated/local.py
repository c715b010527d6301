"""What an owner's worker does in a round: train a model on the rows there.

It is an ordinary PyTorch loop; the model and the rows are remote, so that each
line of it runs where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from obhut.errors import CallError

from .averaging import average
from .datasets import RemoteDataset


@dataclass(frozen=True, slots=True)
class LocalTraining:
    """How a model is trained on one owner's rows.

    Attributes:
        optimizer: makes the optimizer of a model's parameters, for instance
            ``functools.partial(torch.optim.SGD, lr=0.1)``. Each run begins with a
            new one: momentum and the like do not last from round to round.
        loss_func: the loss of predictions and targets, a scalar.
        epochs: how often a run goes through the rows.
        batch_size: rows in a step; None for all of them.
        shuffle: whether each epoch has a new random order.
        generator: what the order comes from, by default torch's own.

    Raises:
        CallError: if there would be no epoch.
    """

    optimizer: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]
    loss_func: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    epochs: int = 1
    batch_size: int | None = None
    shuffle: bool = False
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise CallError(f"expected 1 epoch or more, got {self.epochs}")

    def run(self, model: nn.Module, dataset: RemoteDataset) -> torch.Tensor:
        """Train a model where the rows are; it changes in place.

        Args:
            model: at the same worker as the rows. It is set to training mode.
            dataset: the rows.

        Returns:
            The mean loss over the rows in the last epoch, each step's before that
            step: a scalar without history, still at the worker.
        """
        model.train()
        optimizer = self.optimizer(model.parameters())
        losses: list[torch.Tensor] = []
        rows: list[int] = []
        for _ in range(self.epochs):
            losses, rows = [], []
            for features, targets in dataset.batches(
                self.batch_size, shuffle=self.shuffle, generator=self.generator
            ):
                optimizer.zero_grad()
                loss = self.loss_func(model(features), targets)
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
                rows.append(len(targets))
        return average(losses, weights=rows)
