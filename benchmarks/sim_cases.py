"""What is simulated: models, clients' rows, and the plain loop at a client."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

RATE = 0.05

Rows = list[tuple[torch.Tensor, torch.Tensor]]
"""Features and targets of each client."""


@dataclass(frozen=True, slots=True)
class Case:
    """One of the simulations.

    Attributes:
        make: returns the model.
        shape: of a row's features.
        rows: how many each client has.
        batch: rows in a step.
        clients: how many there are.
        participants: how many train in a round.
        exact: what the ratio to plain torch is to be at most.
        fused: likewise, with updates fused into products.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    rows: int
    batch: int
    clients: int = 100
    participants: int = 10
    exact: float = 1.0
    fused: float | None = None

    def model(self) -> nn.Module:
        """Return what the rounds begin with, the same in each process."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.make()

    def write(self, file: Path) -> None:
        """Write the rows of all clients: a fifth of each picture is not black."""
        draw = torch.Generator().manual_seed(0)
        count = self.clients * self.rows
        x = torch.rand(count, *self.shape, generator=draw)
        x = (x - 0.8).clamp_(min=0).mul_(5)
        torch.save((x, torch.randint(0, 10, (count,), generator=draw)), file)

    def read(self, file: Path) -> Rows:
        """Return the rows of each client, which are in the file until used."""
        x, y = torch.load(file, mmap=True)
        return list(zip(x.split(self.rows), y.split(self.rows), strict=True))


def mlp() -> nn.Module:
    """Return a network of 1.9 million parameters."""
    return nn.Sequential(
        nn.Linear(784, 1200),
        nn.ReLU(),
        nn.Linear(1200, 800),
        nn.ReLU(),
        nn.Linear(800, 10),
    )


def cnn() -> nn.Module:
    """Return a network of 1.7 million parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3136, 512),
        nn.ReLU(),
        nn.Linear(512, 10),
    )


def small() -> nn.Module:
    """Return a network of 50,890 parameters."""
    return nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


PICTURE = (1, 28, 28)

CASES = {
    "MLP, 50 rows": Case(mlp, (784,), 50, 10, exact=0.75, fused=0.62),
    "CNN, 50 rows": Case(cnn, PICTURE, 50, 10, exact=0.60, fused=0.57),
    "MLP, 600 rows": Case(mlp, (784,), 600, 32, exact=0.60, fused=0.45),
    "CNN, 600 rows": Case(cnn, PICTURE, 600, 32, exact=0.65, fused=0.60),
    "1,000 clients": Case(small, (784,), 50, 10, 1000, 100, exact=0.30),
}


def train(
    model: nn.Module, features: torch.Tensor, targets: torch.Tensor, batch: int
) -> None:
    """Go through a client's rows once, in order."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for x, y in zip(features.split(batch), targets.split(batch), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
