"""What remote tensors cost, as ratios to plain torch in the same run.

Each figure is the median of rounds in which both sides take turns, on one
thread. A virtual worker goes through session, batching and codec.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import obhut


def timed(func: Callable[[], object], count: int) -> float:
    """Return the seconds of one call, from so many in a row."""
    began = time.perf_counter()
    for _ in range(count):
        func()
    return (time.perf_counter() - began) / count


def compared(
    ours: Callable[[], object],
    plain: Callable[[], object],
    done: Callable[[], object],
    count: int,
    rounds: int,
) -> tuple[float, float]:
    """Return the medians in seconds of both sides, which take turns.

    Args:
        ours: one step with remote tensors.
        plain: the same with local ones.
        done: waits until the worker has done all that was asked.
        count: steps in a row.
        rounds: how often the sides take turns.
    """

    def step() -> None:
        for _ in range(count):
            ours()
        done()

    timed(step, 1), timed(plain, count)
    gc.collect()
    pairs = [(timed(step, 1) / count, timed(plain, count)) for _ in range(rounds)]
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
    )


def step_of(loss_fn: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return a step of ordinary training."""

    def step(model, optimizer, x, y):  # type: ignore[no-untyped-def] # as users write
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


def training_step(
    model: nn.Module,
    data: torch.Tensor,
    target: torch.Tensor,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    optimizer: type[torch.optim.Optimizer],
) -> Callable[[], None]:
    """Return one step of ordinary training."""
    opt = optimizer(model.parameters(), lr=0.01)  # type: ignore[call-arg]

    def step() -> None:
        opt.zero_grad()
        loss(model(data), target).backward()
        opt.step()

    return step


def squared(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the seed's loss."""
    return ((prediction - target) ** 2).sum()


def linear() -> nn.Module:
    """Return the seed's linear layer 2-1."""
    return nn.Linear(2, 1)


def cnn() -> nn.Module:
    """Return two 5x5 convolutions and two linear layers, for 28x28 images."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(800, 500),
        nn.ReLU(),
        nn.Linear(500, 10),
    )


def mlp() -> nn.Module:
    """Return the MLP 784-256-10."""
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))


class Training(NamedTuple):
    """What is trained, and how.

    Attributes:
        build: makes the model.
        data: a batch.
        target: its targets.
        loss: of predictions and targets.
        optimizer: its class.
        count: steps in a row that are timed at once.
        reach: the ratio to plain torch that is to be reached.
    """

    build: Callable[[], nn.Module]
    data: torch.Tensor
    target: torch.Tensor
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    optimizer: type[torch.optim.Optimizer]
    count: int
    reach: str = ""

    def here(self) -> Callable[[], None]:
        """Return a step in this process."""
        return training_step(
            self.build(), self.data, self.target, self.loss, self.optimizer
        )

    def at(self, worker: obhut.RemoteWorker) -> Callable[[], None]:
        """Return a step at a worker."""
        model = obhut.send(self.build(), worker)
        data, target = obhut.send(self.data, worker), obhut.send(self.target, worker)
        return training_step(model, data, target, self.loss, self.optimizer)


def trainings() -> dict[str, Training]:
    """Return what is timed, by name: with SGD a linear layer, an MLP and a CNN."""
    cross = nn.functional.cross_entropy
    labels = torch.randint(0, 10, (32,))
    images, pixels = torch.randn(32, 1, 28, 28), torch.randn(32, 784)
    pair, truth = torch.tensor([[0.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0], [0.0]])
    adam, sgd = torch.optim.Adam, torch.optim.SGD
    return {
        "linear step, SGD": Training(linear, pair, truth, squared, sgd, 200, "3.5"),
        "linear step, Adam": Training(linear, pair, truth, squared, adam, 100),
        "MLP step": Training(mlp, pixels, labels, cross, sgd, 50, "2.2"),
        "CNN step": Training(cnn, images, labels, cross, sgd, 5, "1.3"),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--plain-transport", action="store_true", help="no codec")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bob = obhut.VirtualWorker(id="bob", encode=not options.plain_transport)
    rounds = options.rounds
    table = Table(title="Remote tensors on a virtual worker, one thread")
    for name in ("what", "plain", "remote", "ratio", "reach"):
        table.add_column(name, justify="left" if name == "what" else "right")

    def row(name: str, ours: float, plain: float, reach: str) -> None:
        table.add_row(
            name,
            f"{plain * 1e6:,.1f} µs",
            f"{ours * 1e6:,.1f} µs",
            f"{ours / plain:.2f}",
            reach,
        )

    for name, one in trainings().items():
        ours, plain = compared(one.at(bob), one.here(), bob.wait, one.count, rounds)
        row(name, ours, plain, one.reach)

    x = torch.randn(4, 2)
    there = obhut.send(x, bob)
    ours, plain = compared(lambda: there + there, lambda: x + x, bob.wait, 2000, rounds)
    row("x + x", ours, plain, "+25 µs")
    large = torch.randn(25_000_000)
    few = min(rounds, 9)
    kept: list[object] = []

    def sending() -> None:
        kept.append(obhut.send(large, bob))

    def drop() -> None:
        kept.clear()
        bob.wait()

    clones: list[object] = []

    def cloning() -> None:
        clones.append(large.clone())
        clones.clear()

    ours, plain = compared(sending, cloning, drop, 1, few)
    row("100 MB sent", ours, plain, "3")
    held = obhut.send(large, bob)
    state = {"x": held}

    def fetching() -> None:
        state["x"].copy().get()

    def copying() -> None:
        state["x"].copy()

    both, _ = compared(fetching, cloning, bob.wait, 1, few)
    alone, plain = compared(copying, cloning, bob.wait, 1, few)
    row("100 MB fetched", both - alone, plain, "3")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
