"""What a guard costs a training step: the same steps at an owner's and an open worker.

Both are executors in this process, fed with the requests that a client sends for one
step, so that nothing but what a guard does is between them. Served workers have a limit
of memory, and virtual ones mostly none: each step is measured both ways. Rounds of the
two take turns, and the figure is the median of the ratios of neighbours.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import obhut

POLICY = obhut.Quorum(
    aggregators=("hub",), contributors=("a", "b", "c"), requesters=("me",)
)

Step = Callable[[], None]


def step_at(worker: obhut.VirtualWorker, model: nn.Module, *shape: int) -> Step:
    """Return a training step of a model on data at a worker."""
    remote = obhut.send(model, worker)
    x = obhut.send(torch.rand(*shape), worker)
    y = obhut.send(torch.arange(shape[0]) % 2, worker)
    optimizer = torch.optim.SGD(remote.parameters(), lr=0.01)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(remote(x), y).backward()
        optimizer.step()
        x._held.session.flush()

    return step


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "linear": (lambda: nn.Linear(2, 2), (4, 2), 150),
    "MLP": (
        lambda: nn.Sequential(
            nn.Linear(64, 128),
            nn.ReLU(),
            nn.Linear(128, 64),
            nn.ReLU(),
            nn.Linear(64, 2),
        ),
        (32, 64),
        60,
    ),
    "CNN": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 16, 3),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 121, 2),
        ),
        (16, 1, 28, 28),
        5,
    ),
}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(title="a training step behind a guard, and not")
    for header in ("step", "limit of memory", "open, µs", "guarded / open"):
        table.add_column(header, justify="left" if header == "step" else "right")
    for name, (make, shape, count) in MODELS.items():
        for limit in (None, 1 << 30):
            steps = []
            for policy in (None, POLICY):
                torch.manual_seed(0)
                worker = obhut.VirtualWorker("a", policy=policy, memory_limit=limit)
                steps.append(step_at(worker, make(), *shape))
            pairs = []
            for _ in range(args.rounds + 5):
                pair = []
                for step in steps:
                    began = time.perf_counter()
                    for _ in range(count):
                        step()
                    pair.append((time.perf_counter() - began) / count)
                pairs.append(pair)
            pairs = pairs[5:]
            ratio = statistics.median(behind / open_ for open_, behind in pairs)
            unit = statistics.median(open_ for open_, _ in pairs)
            table.add_row(
                name, "yes" if limit else "no", f"{unit * 1e6:,.0f}", f"{ratio:.3f}"
            )
    Console().print(table)


if __name__ == "__main__":
    main()
