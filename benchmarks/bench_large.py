"""What a row of a data set costs that is larger than a session's memory, as ratios.

The same rows are served twice, kept on the disk and kept in memory, by workers that
allow a session less than the rows take. A program goes through them in batches, in the
order that they have, and shuffled. They are served openly, and behind a policy that
hides how many there are, where one of three owners has them. The figure is the median
of neighbours; beside it is what the first session takes once, which finds nothing of
the file in memory.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import obhut
from obhut.testing.sites import Sites
from obhut.testing.vitals import descendants

AT_MOST = 1.3
COLUMNS, BATCH = 1023, 64
OWNERS = ("alice", "bob", "carol")
HUB = "secure_worker"
KEPT = ("memory", "disk")
POLICY = """
kind = "Quorum"
aggregators = ["secure_worker"]
contributors = ["alice", "bob", "carol"]
requesters = ["me"]
refusals = 1000
programs = "same"
"""


@obhut.program
def in_order(model, data):  # type: ignore[no-untyped-def] # as users write them
    """Go through all rows as they come."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    total, rows = torch.zeros(()), 0
    for x, y in data.batches(BATCH):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x).flatten(), y)
        loss.backward()
        optimizer.step()
        total = total + loss.detach() * len(x)
        rows += len(x)
    return {"loss": obhut.Ratio(total, rows)}


@obhut.program
def shuffled(model, data):  # type: ignore[no-untyped-def] # likewise
    """Go through all rows in a drawn order."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    total, rows = torch.zeros(()), 0
    for x, y in data.batches(BATCH, shuffle=True):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x).flatten(), y)
        loss.backward()
        optimizer.step()
        total = total + loss.detach() * len(x)
        rows += len(x)
    return {"loss": obhut.Ratio(total, rows)}


WAYS = {"in order": in_order, "shuffled": shuffled}


def write(file: Path, rows: int) -> None:
    """Write rows of features and a target."""
    draw = np.random.default_rng(0)
    features = np.lib.format.open_memmap(
        file.with_suffix(".npy"), mode="w+", dtype=np.float32, shape=(rows, COLUMNS)
    )
    for start in range(0, rows, 10_000):
        part = features[start : start + 10_000]
        part[:] = draw.random(part.shape, dtype=np.float32)
    np.savez(file, features=features, target=draw.random(rows, dtype=np.float32))
    file.with_suffix(".npy").unlink()


def table(file: Path, kept: str) -> str:
    """Return the declaration of a data set."""
    return f'[[dataset]]\nname = "d"\npath = "{file}"\nkeep = "{kept}"\n'


class Served:
    """Owners who serve the rows, kept in one way.

    Args:
        root: where the rows are, and the owners' folders.
        kept: ``memory`` or ``disk``.
        memory: what a session may hold, as the configuration says it.
        guarded: whether behind a policy.
    """

    def __init__(self, root: Path, kept: str, memory: str, guarded: bool) -> None:
        names = (HUB, *OWNERS, "me") if guarded else ("bob", "me")
        self._folder = root / f"{kept} {'guarded' if guarded else 'open'}"
        self._sites = Sites(self._folder, names)
        self._guarded = guarded
        limits = f'memory = "{memory}"'
        if not guarded:
            more = table(root / "large.npz", kept)
            self._sites.serve("bob", sessions=["me"], limits=limits, more=more)
            return
        self._sites.serve(HUB, sessions=["me"], policy=POLICY, deliver=OWNERS)
        reach = {HUB: self._sites.address(HUB)}
        for owner in OWNERS:
            file = root / ("large.npz" if owner == "bob" else "small.npz")
            more = table(file, kept)
            self._sites.serve(
                owner,
                sessions=["me"],
                policy=POLICY,
                limits=limits,
                reach=reach,
                more=more,
            )

    @contextlib.contextmanager
    def entered(self) -> Iterator[Callable[[str], float]]:
        """Return what runs a program and returns its seconds, in one session."""
        with obhut.connect(
            *self._sites.addresses.values(), folder=self._folder / "me"
        ) as net:
            owners = [net[one] for one in (OWNERS if self._guarded else ("bob",))]

            def seconds(way: str) -> float:
                model = nn.Linear(COLUMNS, 1)
                models = [obhut.send(obhut.copy(model), one) for one in owners]
                data = [one.dataset("d") for one in owners]
                began = time.perf_counter()
                losses = [
                    WAYS[way].run(model=model, data=rows, seed=1)["loss"]
                    for model, rows in zip(models, data, strict=True)
                ]
                if self._guarded:
                    sums = [obhut.move(one.numerator, net[HUB]) for one in losses]
                    (sums[0] + sums[1] + sums[2]).get()
                else:
                    losses[0].numerator.get()
                return time.perf_counter() - began

            yield seconds

    def forget(self) -> None:
        """Let the system keep no page of the rows in memory, where it can."""
        process = self._sites.pids["bob"]
        for one in (process, *descendants(process)):
            with contextlib.suppress(OSError):  # it has ended
                for link in Path(f"/proc/{one}/fd").iterdir():
                    _forget(link)

    def close(self) -> None:
        """End all that serve."""
        self._sites.close()


def _forget(link: Path) -> None:
    with contextlib.suppress(OSError):
        if "(deleted)" in os.readlink(link):
            fd = os.open(link, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--memory", default="1 GiB")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = int(args.gigabytes * 1e9) // (4 * (COLUMNS + 1))
    title = f"{args.gigabytes:g} GB in {rows:,} rows, {args.memory} a session: us a row"
    shown = Table(title=title)
    for header in (
        *("served", "order", "disk, at first", "disk", "memory"),
        f"disk / memory, at most {AT_MOST}",
    ):
        shown.add_column(header)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        root = Path(folder)
        write(root / "large.npz", rows)
        write(root / "small.npz", 1_000)
        for guarded in (False, True):
            made = {}
            for kept in KEPT:
                made[kept] = Served(root, kept, args.memory, guarded)
                stack.callback(made[kept].close)
            for way in WAYS:
                made["disk"].forget()
                with made["disk"].entered() as seconds:
                    first = seconds(way)
                with (
                    made["disk"].entered() as disk,
                    made["memory"].entered() as memory,
                ):
                    for one in (disk, memory):
                        one(way)
                    found = [(disk(way), memory(way)) for _ in range(args.rounds)]
                each = [first, *map(statistics.median, zip(*found, strict=True))]
                shown.add_row(
                    "hidden rows" if guarded else "open",
                    way,
                    *(f"{1e6 * one / rows:.2f}" for one in each),
                    f"{statistics.median(one / other for one, other in found):.2f}",
                )
            for one in made.values():
                one.close()
    Console().print(shown)


if __name__ == "__main__":
    main()
