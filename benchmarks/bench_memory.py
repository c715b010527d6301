"""What a loop that never waits has in memory, as ratios in one run.

Each loop runs three times at a worker: waiting after each step, never waiting, and
with plain torch in a process of its own. Workers are virtual, in a process of their
own, and served, in a process that has a child for each session. A figure is the most
memory that the process had while the loop ran, as the kernel counts it, over what it
had when the loop began; or with it, where that is said.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from rich.console import Console
from rich.table import Table
from torch import nn, optim
from torch.nn import functional as F

import obhut
from obhut.testing.sites import Sites
from obhut.testing.vitals import descendants

WAITS_AT_MOST, PLAIN_AT_MOST = 1.2, 1.3

NAMES = ("bob", "me")
HOWS = ("waits", "never")

Loop: TypeAlias = Callable[[int], object]
"""Goes through so many steps."""

WARM_UP = 3
"""Steps after which all is loaded that PyTorch loads when it is first used."""

# --- the loops --------------------------------------------------------------------


def scaled(place: obhut.RemoteWorker | None, wait: bool) -> Loop:
    """Return a loop of ``y = x * 2`` with 8 MB tensors."""
    x = sent(torch.ones(2 << 20), place)

    def loop(steps: int) -> object:
        for _ in range(steps):
            y = x * 2
            if wait and place is not None:
                place.wait()
        return y

    return loop


def trained(
    model: nn.Module,
    shape: tuple[int, ...],
    place: obhut.RemoteWorker | None,
    wait: bool,
) -> Loop:
    """Return a training in batches of 64 out of 6,400 rows."""
    rows = 6_400
    features, targets = torch.randn(rows, *shape), torch.randint(0, 10, (rows,))
    data = [sent(features, place), sent(targets, place)]
    del features, targets
    sent(model, place)

    def loop(steps: int) -> object:
        optimizer = optim.SGD(model.parameters(), lr=0.01)
        losses = []
        for step in range(steps):
            begin = 64 * step % rows
            x, y = (part[begin : begin + 64] for part in data)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            if wait and place is not None:
                place.wait()
        return torch.stack(losses).mean()

    return loop


def mlp() -> nn.Module:
    """Return a network of 1.9 million parameters."""
    return nn.Sequential(
        nn.Linear(784, 1200),
        nn.ReLU(),
        nn.Linear(1200, 784),
        nn.ReLU(),
        nn.Linear(784, 10),
    )


def cnn() -> nn.Module:
    """Return a network with large activations."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 24 * 24, 10),
    )


def sent(x, place):  # type: ignore[no-untyped-def] # a tensor or a module
    """Return a tensor or a module at a place, or as it is."""
    return x if place is None else obhut.send(x, place)


LOOPS = {
    "y = x * 2, 8 MB": scaled,
    "MLP, an epoch": lambda *how: trained(mlp(), (784,), *how),
    "CNN, an epoch": lambda *how: trained(cnn(), (1, 28, 28), *how),
}

# --- how much memory --------------------------------------------------------------


class Peak(NamedTuple):
    """Bytes of memory that a process has, as the kernel counts its pages.

    Attributes:
        before: when a loop began.
        most: at most while it ran.
    """

    before: int
    most: int

    @property
    def added(self) -> int:
        """What the loop added."""
        return self.most - self.before


def reset(pid: int | str) -> None:
    """Let the kernel count a process's most memory from now on."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def memory(pid: int | str, which: str) -> int:
    """Return a process's memory in bytes: ``VmRSS`` now, ``VmHWM`` at most."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{which}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def peak(pid: int | str, loop: Loop, steps: int, done: Callable[[], object]) -> Peak:
    """Return what a process has when a loop begins, and at most while it runs."""
    loop(WARM_UP)
    done()
    reset(pid)
    before = memory(pid, "VmRSS")
    kept = loop(steps)
    done()
    del kept
    return Peak(before, memory(pid, "VmHWM"))


def alone(name: str, how: str, steps: int) -> Peak:
    """Return what a process of its own has: plain torch, or with a virtual worker."""
    what = ["--loop", name, "--how", how, "--steps", str(steps)]
    command = [sys.executable, __file__, *what]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Peak(*json.loads(done.stdout))


def here(name: str, how: str, steps: int) -> Peak:
    """Run a loop in this process."""
    place = None if how == "plain" else obhut.VirtualWorker("bob")
    wait = place.wait if place else lambda: None
    return peak("self", LOOPS[name](place, how == "waits"), steps, wait)


def served(name: str, how: str, steps: int, sites: Sites, folder: Path) -> Peak:
    """Return what the child of a served worker's session has."""
    before = set(descendants(sites.pids["bob"]))
    with obhut.connect(sites.addresses["bob"], folder=folder / "me") as net:
        place = net["bob"]
        (obhut.send(torch.ones(1), place) + 1).get()
        (child,) = set(descendants(sites.pids["bob"])) - before
        return peak(child, LOOPS[name](place, how == "waits"), steps, place.wait)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--loop", choices=LOOPS)
    parser.add_argument("--how", choices=("plain", *HOWS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.loop:
        print(json.dumps(here(args.loop, args.how, args.steps)))
        return
    table = Table(title=f"{args.steps:,} steps, in MB: at most (of it by the loop)")
    for header in (
        *("loop", "worker", "plain torch", "waits", "never waits"),
        f"never / waits, at most {WAITS_AT_MOST}",
        f"never / plain, at most {PLAIN_AT_MOST}",
    ):
        table.add_column(header)
    with tempfile.TemporaryDirectory() as root, Sites(Path(root), NAMES) as sites:
        sites.serve("bob", sessions=["me"])
        for name in LOOPS:
            plain = alone(name, "plain", args.steps)
            waits, never = (alone(name, how, args.steps) for how in HOWS)
            cells = (*map(told, (plain, waits, never)), ratio(never, waits))
            table.add_row(name, "virtual", *cells, ratio(never, plain))
            waits, never = (
                served(name, how, args.steps, sites, Path(root)) for how in HOWS
            )
            cells = ("", told(waits), told(never), ratio(never, waits))
            table.add_row(name, "served", *cells, "")
    Console().print(table)


def told(one: Peak) -> str:
    """Return a process's megabytes at most, and those that the loop added."""
    return f"{one.most / 1e6:,.0f} (+{one.added / 1e6:,.0f})"


def ratio(one: Peak, other: Peak) -> str:
    """Return the ratio of whole processes."""
    return f"{one.most / other.most:.2f}"


if __name__ == "__main__":
    main()
