"""What a training step costs by program, as ratios to plain torch in the same run.

Batches of an epoch go through a virtual worker, open, in one message; the plain loop
has the same batches ready, of the same rows. The figure is the median of the ratios of
neighbours, on one thread.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from bench import cnn, mlp, squared, step_of
from rich.console import Console
from rich.table import Table
from tests.programs.zoo import GPT, LSTM
from torch import nn

import obhut

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Case = tuple[Callable[[], nn.Module], torch.Tensor, torch.Tensor, Loss, int, str]


def cases(batches: int) -> dict[str, Case]:
    """Return models with so many batches of rows for the smallest."""
    labels, tokens = torch.arange(32) % 10, torch.randint(0, 50, (32, 16))
    many, few = max(batches // 2, 4), max(batches // 10, 4)
    return {
        "linear": (
            lambda: nn.Linear(2, 1),
            torch.randn(4, 2),
            torch.randn(4, 1),
            squared,
            batches,
            "0.40",
        ),
        "MLP": (mlp, torch.randn(32, 784), labels, F.cross_entropy, batches, "0.75"),
        "CNN": (
            cnn,
            torch.randn(32, 1, 28, 28),
            labels,
            F.cross_entropy,
            few,
            "0.92",
        ),
        "LSTM": (LSTM, tokens, labels, F.cross_entropy, many, "0.75"),
        "GPT": (GPT, tokens, labels, F.cross_entropy, many, "0.90"),
    }


def compared(case: Case, bob: obhut.VirtualWorker, rounds: int) -> list[float]:
    """Return seconds of a step by program, and of a plain one, and their ratios."""
    make, x, y, loss, batches, _ = case
    step = step_of(loss)
    local = make()
    remote = obhut.send(copy.deepcopy(local), bob)
    rows = [one.repeat(batches, *[1] * (one.dim() - 1)) for one in (x, y)]
    sent = tuple(obhut.send(one, bob) for one in rows)
    here, there = (
        torch.optim.SGD(one.parameters(), lr=1e-3) for one in (local, remote)
    )
    program = obhut.program(step)

    def ours() -> None:
        program.run(model=remote, optimizer=there, data=sent, batch_size=len(x))
        bob.wait()

    ready = list(zip(*(one.split(len(x)) for one in rows), strict=True))

    def plain() -> None:
        for features, targets in ready:
            step(local, here, features, targets)

    def seconds(what: Callable[[], None]) -> float:
        began = time.perf_counter()
        what()
        return (time.perf_counter() - began) / batches

    ours(), plain()
    pairs = [(seconds(ours), seconds(plain)) for _ in range(rounds)]
    return [
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(a / b for a, b in pairs),
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bob = obhut.VirtualWorker("bob")
    table = Table(title="A training step by program, one thread")
    for name in ("step", "plain", "by program", "ratio", "reach"):
        table.add_column(name, justify="left" if name == "step" else "right")
    for name, case in cases(options.batches).items():
        ours, plain, ratio = compared(case, bob, options.rounds)
        table.add_row(
            name,
            f"{plain * 1e6:,.0f} µs",
            f"{ours * 1e6:,.0f} µs",
            f"{ratio:.2f}",
            case[-1],
        )
    Console().print(table)


if __name__ == "__main__":
    main()
