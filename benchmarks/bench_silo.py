"""A round of four data owners and an aggregator, as one ratio to plain torch.

The owners and the aggregator are processes of their own, with a child for each
session, over mutual TLS on loopback. In each round every owner is sent the model,
takes one step of SGD on ten rows and moves its copy to the aggregator; the weighted
mean of the four comes back. Plain torch does the same arithmetic in this process, in
the same run; both take turns.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import obhut
from obhut.cli.processes import AGGREGATOR, RESEARCHER, running
from obhut.federated import scale, total

OWNERS = ("ann", "bert", "carla", "dirk")
WEIGHTS = (10.0, 20.0, 30.0, 40.0)
SAMPLES = 10
RATE = 0.01
LARGE = (784, 4096, 4096, 1200, 10)
SMALL = (784, 1024, 1024, 10)


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Return a perceptron with layers of these widths."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of one round."""
    return torch.optim.SGD(model.parameters(), lr=RATE)


@obhut.program
def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: torch.Tensor,
    target: torch.Tensor,
) -> torch.Tensor:
    """Take one step of SGD."""
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(data), target)
    loss.backward()
    optimizer.step()
    return loss


class Plain:
    """The rounds in this process.

    Args:
        model: what they begin with.
        rows: data and target of each owner.
    """

    def __init__(
        self, model: nn.Module, rows: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> None:
        self.model = model
        self._rows = rows

    def round(self) -> None:
        """Run one round."""
        copies = [copy.deepcopy(self.model) for _ in self._rows]
        for one, (data, target) in zip(copies, self._rows, strict=True):
            step(one, sgd(one), data, target)
        everything = sum(WEIGHTS)
        with torch.no_grad():
            for mean, *parts in zip(
                self.model.parameters(),
                *(one.parameters() for one in copies),
                strict=True,
            ):
                mean.zero_()
                for part, weight in zip(parts, WEIGHTS, strict=True):
                    mean.add_(part, alpha=weight / everything)


class Remote:
    """The same rounds at owners and an aggregator.

    Args:
        model: what they begin with.
        rows: data and target of each owner.
        net: the owners and the aggregator.
    """

    def __init__(
        self,
        model: nn.Module,
        rows: Sequence[tuple[torch.Tensor, torch.Tensor]],
        net: obhut.Network,
    ) -> None:
        self.model = model
        self._owners = [net[name] for name in OWNERS]
        self._aggregator = net[AGGREGATOR]
        self._rows = [
            (obhut.send(data, owner), obhut.send(target, owner))
            for (data, target), owner in zip(rows, self._owners, strict=True)
        ]

    def round(self) -> None:
        """Run one round."""
        copies = [
            obhut.send(copy.deepcopy(self.model), owner) for owner in self._owners
        ]
        for one, rows in zip(copies, self._rows, strict=True):
            step.run(model=one, optimizer=sgd(one), data=rows)
        shares = [weight / sum(WEIGHTS) for weight in WEIGHTS]
        parts = [scale(one, share) for one, share in zip(copies, shares, strict=True)]
        for part in parts:
            obhut.move(part, self._aggregator)
        self.model = obhut.get(total(parts))


def rows_of(owner: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return data, (10, 784), and target, (10), of one owner."""
    generator = torch.Generator().manual_seed(owner)
    data = torch.randn(SAMPLES, LARGE[0], generator=generator)
    return data, torch.randint(0, 10, (SAMPLES,), generator=generator)


def measure(
    table: Table, net: obhut.Network, widths: Sequence[int], rounds: int, reach: str
) -> float:
    """Add one size to the table; return the seconds of its first round."""
    torch.manual_seed(0)
    model, rows = mlp(widths), [rows_of(k) for k in range(len(OWNERS))]
    plain = Plain(copy.deepcopy(model), rows)
    remote = Remote(model, rows, net)
    first, _ = seconds(remote.round), seconds(plain.round)
    taken = [(seconds(plain.round), seconds(remote.round)) for _ in range(rounds)]
    for ours, theirs in zip(
        remote.model.parameters(), plain.model.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    beside, took = (statistics.median(column) for column in zip(*taken, strict=True))
    size = sum(p.numel() for p in model.parameters())
    table.add_row(
        "-".join(map(str, widths)),
        f"{size / 1e6:.1f} M",
        f"{beside:,.3f} s",
        f"{took:,.3f} s",
        f"{took / beside:.1f}",
        reach,
    )
    return first


def seconds(func: Callable[[], None]) -> float:
    """Return the seconds of one call."""
    began = time.perf_counter()
    func()
    return time.perf_counter() - began


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    nothing = (
        np.zeros((2, 2), dtype=np.float32),
        np.zeros((2, 1), dtype=np.float32),
    )
    table = Table(title="One round of four owners, beside plain torch on one thread")
    for name in ("model", "parameters", "plain", "remote", "ratio", "reach"):
        table.add_column(name, justify="left" if name == "model" else "right")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.perf_counter()
        owners = dict.fromkeys(OWNERS, nothing)
        with running(folder, owners, ["a", "b"], listening=len(owners)) as serving:
            addresses = [one.address for one in serving]
            with obhut.connect(*addresses, folder=folder / RESEARCHER) as net:
                started = time.perf_counter() - began
                first = measure(table, net, SMALL, 3 * options.rounds, "0.1 s")
                measure(table, net, LARGE, options.rounds, "1.5 s")
    console = Console(width=100)
    console.print(table)
    console.print(
        f"From no process to the end of the first round: {started + first:.1f} s."
    )


if __name__ == "__main__":
    main()
