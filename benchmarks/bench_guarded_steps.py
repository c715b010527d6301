"""What a guard costs a training step: the same steps at an owner's and an open worker.

The steps are those of ``bench.py``. An owner's session is executed twice. Virtual
workers do it one after the other in this process, served ones at once in two; there the
time goes on until what was computed has been delivered. Rounds of guarded and open take
turns, and the figure is the median of the ratios of neighbours. Last, how long it takes
to enter a worker.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from bench import Training, trainings
from rich.console import Console
from rich.table import Table

import obhut
from obhut.cli.processes import AGGREGATOR, RESEARCHER, running

POLICY = obhut.Quorum(
    aggregators=("hub",), contributors=("a", "b", "c"), requesters=("me",)
)

Step = Callable[[], None]


def step_at(worker: obhut.RemoteWorker, training: Training) -> Step:
    """Return a training step at a worker, which is sent off at once."""
    step = training.at(worker)

    def sent() -> None:
        step()
        worker.session.flush()

    return sent


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(title="a training step behind a guard, and not")
    for header in ("step", "limit of memory", "open, µs", "guarded / open"):
        table.add_column(header, justify="left" if header == "step" else "right")
    for name, training in trainings().items():
        for limit in (None, 1 << 30):
            steps = []
            for policy in (None, POLICY):
                torch.manual_seed(0)
                worker = obhut.VirtualWorker("a", policy=policy, memory_limit=limit)
                steps.append(step_at(worker, training))
            unit, ratio = turns(steps, args.rounds, training.count)
            table.add_row(
                name, "yes" if limit else "no", f"{unit * 1e6:,.0f}", f"{ratio:.3f}"
            )
    console = Console()
    console.print(table)
    served(console, max(5, args.rounds // 4))


def turns(
    steps: list[Step], rounds: int, count: int, end: list[Step] | None = None
) -> tuple[float, float]:
    """Return the seconds of a step at the first, and how many times that the second's.

    Args:
        steps: a step at each.
        rounds: how often they take turns.
        count: steps in a row.
        end: what waits until all of it was done, at each.
    """
    pairs = []
    for _ in range(rounds + 5):
        pair = []
        for step, wait in zip(steps, end or [lambda: None] * 2, strict=True):
            began = time.perf_counter()
            for _ in range(count):
                step()
            wait()
            pair.append((time.perf_counter() - began) / count)
        pairs.append(pair)
    pairs = pairs[5:]
    ratio = statistics.median(behind / open_ for open_, behind in pairs)
    return statistics.median(open_ for open_, _ in pairs), ratio


def served(console: Console, rounds: int) -> None:
    """Measure served workers, one with a policy and one without."""
    rows = np.zeros((4, 2), dtype=np.float32), np.zeros((4, 1), dtype=np.float32)
    owners = dict.fromkeys(("bob", "alice", "carol"), rows)
    table = Table(title="served: a training step until it was delivered")
    for header in ("step", "open, µs", "guarded / open"):
        table.add_column(header, justify="left" if header == "step" else "right")
    with (
        tempfile.TemporaryDirectory() as one,
        tempfile.TemporaryDirectory() as two,
        running(Path(one), owners, ["a", "b"], unguarded=True) as open_,
        running(Path(two), owners, ["a", "b"]) as guarded,
    ):
        entered: list[list[float]] = [[], []]
        for _ in range(9):
            for times, serving, folder in zip(
                entered, (open_, guarded), (one, two), strict=True
            ):
                bob = serving[1]
                began = time.perf_counter()
                net = obhut.connect(bob.address, folder=Path(folder) / RESEARCHER)
                obhut.send(torch.ones(1), net["bob"]).sum()
                net["bob"].wait()
                times.append(time.perf_counter() - began)
                net.close()
        nets = [
            obhut.connect(*(s.address for s in serving), folder=Path(f) / RESEARCHER)
            for serving, f in ((open_, one), (guarded, two))
        ]
        for name, training in trainings().items():
            steps, ends = [], []
            for net in nets:
                torch.manual_seed(0)
                steps.append(step_at(net["bob"], training))
                ends.append(barrier(net))
            unit, ratio = turns(steps, rounds, max(training.count, 50), ends)
            table.add_row(name, f"{unit * 1e6:,.0f}", f"{ratio:.3f}")
        for net in nets:
            net.close()
    console.print(table)
    before, after = map(statistics.median, entered)
    console.print(f"To enter: open {before * 1e3:.0f} ms, guarded {after * 1e3:.0f} ms")


def barrier(net: obhut.Network) -> Step:
    """Return what waits until bob has computed and delivered all."""

    def wait() -> None:
        there = obhut.send(torch.ones(1), net["bob"]).move(net[AGGREGATOR])
        net["bob"].wait()
        net[AGGREGATOR].objects_count()  # it looks at what is still to come
        del there

    return wait


if __name__ == "__main__":
    main()
