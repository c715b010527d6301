"""A round of four data owners and an aggregator, as one ratio to plain torch.

The owners and the aggregator are processes of their own, with a child for each
session, over mutual TLS on loopback, under the policy of the tutorials. In each round
every owner is sent the model, takes one step of SGD on its ten rows and moves its copy
to the aggregator; the mean of the four comes back. It is written by hand, and as the
rounds of a federation, in float32 and with models that travel in bfloat16. Plain torch
does the same arithmetic in this process, in the same run; all take turns.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from bench import step_of
from rich.console import Console
from rich.table import Table
from torch import nn

import obhut
from obhut.cli.processes import AGGREGATOR, DATASET, RESEARCHER, running
from obhut.federated import LocalTraining, average

OWNERS = ("ann", "bert", "carla", "dirk")
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


def loss_fn(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy; a file's targets are numbers, (rows, 1)."""
    return nn.functional.cross_entropy(prediction, target.squeeze(1).long())


step = obhut.program(step_of(loss_fn))
TRAINING = LocalTraining(functools.partial(torch.optim.SGD, lr=RATE), loss_fn)


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
        with torch.no_grad():
            for mean, *parts in zip(
                self.model.parameters(),
                *(one.parameters() for one in copies),
                strict=True,
            ):
                torch.mean(torch.stack(parts), 0, out=mean)


class ByHand:
    """The same rounds at owners and an aggregator.

    Args:
        model: what they begin with.
        net: the owners and the aggregator.
    """

    def __init__(self, model: nn.Module, net: obhut.Network) -> None:
        self.model = model
        self._owners = [net[name] for name in OWNERS]
        self._aggregator = net[AGGREGATOR]

    def round(self) -> None:
        """Run one round."""
        copies = [
            obhut.send(copy.deepcopy(self.model), owner) for owner in self._owners
        ]
        for one, owner in zip(copies, self._owners, strict=True):
            step.run(model=one, optimizer=sgd(one), data=owner.dataset(DATASET))
        for one in copies:
            obhut.move(one, self._aggregator)
        self.model = obhut.get(average(copies))


class Federated:
    """The same rounds, as a federation's.

    Args:
        model: what they begin with.
        net: the owners and the aggregator.
        wire_dtype: in which models and contributions travel.
    """

    def __init__(
        self,
        model: nn.Module,
        net: obhut.Network,
        wire_dtype: torch.dtype | None = None,
    ) -> None:
        self.model = model
        owners = {name: net[name].dataset(DATASET) for name in OWNERS}
        federation = obhut.Federation(owners, net[AGGREGATOR])
        self._rounds = federation.rounds(
            model, TRAINING, rounds=1_000, wire_dtype=wire_dtype
        )

    def round(self) -> None:
        """Run one round."""
        next(self._rounds)


def rows_of(owner: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return data, (10, 784), and target, (10, 1), of one owner, float32."""
    generator = torch.Generator().manual_seed(owner)
    data = torch.randn(SAMPLES, LARGE[0], generator=generator)
    return data, torch.randint(0, 10, (SAMPLES, 1), generator=generator).float()


def measure(
    table: Table, net: obhut.Network, widths: Sequence[int], rounds: int, reach: str
) -> float:
    """Add one size to the table; return the seconds of its first round."""
    torch.manual_seed(0)
    model, rows = mlp(widths), [rows_of(k) for k in range(len(OWNERS))]
    sides = (
        ByHand(copy.deepcopy(model), net),
        Plain(copy.deepcopy(model), rows),
        Federated(copy.deepcopy(model), net),
        Federated(copy.deepcopy(model), net, torch.bfloat16),
    )
    first, *_ = [seconds(side.round) for side in sides]
    taken = [[seconds(side.round) for side in sides] for _ in range(rounds)]
    for ours, theirs, third, half in zip(
        *(side.model.parameters() for side in sides), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(third, theirs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(half, theirs, rtol=1e-2, atol=1e-3)
    hand, plain, federated, short = (
        statistics.median(column) for column in zip(*taken, strict=True)
    )
    size = sum(p.numel() for p in model.parameters())
    table.add_row(
        "-".join(map(str, widths)),
        f"{size / 1e6:.1f} M",
        f"{plain:,.3f} s",
        f"{hand:,.3f} s",
        f"{hand / plain:.1f}",
        f"{federated:,.3f} s",
        f"{federated / plain:.2f}",
        f"{short:,.3f} s",
        f"{short / plain:.2f}",
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
    table = Table(title="One round of four owners, beside plain torch on one thread")
    for name in (
        *("model", "parameters", "plain", "by hand", "ratio"),
        *("fit", "ratio", "fit, bfloat16", "ratio", "reach"),
    ):
        table.add_column(name, justify="left" if name == "model" else "right")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.perf_counter()
        owners = {
            name: tuple(x.numpy() for x in rows_of(k)) for k, name in enumerate(OWNERS)
        }
        names = [f"x{k}" for k in range(LARGE[0])]
        with running(folder, owners, names, listening=len(owners)) as serving:
            addresses = [one.address for one in serving]
            with obhut.connect(*addresses, folder=folder / RESEARCHER) as net:
                started = time.perf_counter() - began
                first = measure(table, net, SMALL, 3 * options.rounds, "0.08 s")
                measure(table, net, LARGE, options.rounds, "2.0, 1.4")
    console = Console(width=120)
    console.print(table)
    console.print(
        f"From no process to the end of the first round: {started + first:.1f} s."
    )


if __name__ == "__main__":
    main()
