"""Sessions open, train and close for minutes; the worker's parent must not grow.

One worker in a process of its own, two clients that take turns with their sessions,
as many at a time as they are. At intervals they pause, and the parent's memory,
threads, open files and processes are printed, with the threads and files that it had
when it was busy. It ends with 1 if, after a quarter of the time to warm up, memory is
not flat, or threads, files or processes were added.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from torch import nn

import obhut
from obhut.client.workers import RemoteWorker
from obhut.errors import ObhutError
from obhut.testing.sites import Sites
from obhut.testing.vitals import Vitals
from obhut.transports.serving import EXPIRY_SECONDS

MEBIBYTE = 2**20

GROWTH = 0.05
"""By how much memory may grow, from the first third after warming up to the last."""

IDLE_SECONDS = EXPIRY_SECONDS + 1
"""What is measured is a worker that has had no session for so long: it has given back
what it does not need."""


class Work:
    """Sessions one after the other, until it is told to stop.

    Attributes:
        sessions: how many were opened and closed.
        errors: what went wrong.
    """

    def __init__(self, sites: Sites, who: str, seed: int) -> None:
        self.sessions = 0
        self.errors: list[BaseException] = []
        self._sites = sites
        self._who = who
        self._random = random.Random(seed)
        self._lock = threading.Condition()
        self._going = self._busy = False
        self._stopped = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def go_on(self) -> None:
        """Open sessions until it is told to pause."""
        with self._lock:
            self._going = True
            self._lock.notify_all()

    def pause(self) -> None:
        """Finish the session that is open, and wait until that is done."""
        with self._lock:
            self._going = False
            self._lock.wait_for(lambda: not self._busy)

    def stop(self) -> None:
        """Do no more."""
        self.pause()
        with self._lock:
            self._stopped = True
            self._lock.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._lock:
                self._busy = False
                self._lock.notify_all()
                self._lock.wait_for(lambda: self._going or self._stopped)
                if self._stopped:
                    return
                self._busy = True
            worker = RemoteWorker(self._sites.transport(self._who, "bob"))
            try:
                self._session(worker)
                self.sessions += 1
            except (ObhutError, AssertionError) as error:
                self.errors.append(error)
            finally:
                worker.close()

    def _session(self, worker: RemoteWorker) -> None:
        """Train; move megabytes there and back; fail once; close, or just go."""
        x, y = (obhut.send(torch.randn(64, n), worker) for n in (20, 1))
        model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 1))
        obhut.send(model, worker)
        optimizer = torch.optim.Adam(model.parameters())
        losses = []
        for _ in range(self._random.randrange(5, 40)):
            optimizer.zero_grad()
            loss = ((model(x) - y) ** 2).mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
        big = torch.randn(self._random.choice((10, 100_000, 2_000_000)))
        assert torch.equal(obhut.send(big, worker).get(), big)
        if self._random.randrange(4) == 0:
            row = obhut.send(torch.tensor([100]), worker)
            try:
                obhut.send(torch.ones(3), worker)[row].sum().item()
            except ObhutError:
                pass
            else:
                raise AssertionError("an index out of range was no error")


def line(seconds: float, sessions: int, now: Vitals) -> str:
    """Return what is printed of one moment."""
    return (
        f"{seconds:6.0f} s {sessions:7,} sessions  "
        f"PSS {now.pss / MEBIBYTE:6.1f} MiB  RSS {now.rss / MEBIBYTE:6.1f} MiB  "
        f"{now.threads:3} threads  {now.files:3} files  {now.children:3} processes"
    )


def main() -> int:
    """Run it; return 1 if anything grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--every", type=float, default=15, help="seconds")
    parser.add_argument("--clients", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = [f"client-{k}" for k in range(options.clients)]
    with tempfile.TemporaryDirectory() as name, Sites(Path(name), ["bob", *names]) as s:
        s.serve("bob", sessions=names)
        works = [Work(s, who, seed) for seed, who in enumerate(names)]
        first = s.vitals("bob")
        print(line(0, 0, first), flush=True)
        began = time.monotonic()
        seen: list[Vitals] = []
        try:
            while (at := time.monotonic() - began) < options.seconds:
                for work in works:
                    work.go_on()
                time.sleep(min(options.every, options.seconds - at))
                busy = s.vitals("bob")
                for work in works:
                    work.pause()
                time.sleep(IDLE_SECONDS)
                seen.append(s.vitals("bob"))
                done = sum(work.sessions for work in works)
                text = line(time.monotonic() - began, done, seen[-1])
                print(f"{text} (busy: {busy.threads}, {busy.files})", flush=True)
        finally:
            for work in works:
                work.stop()
    return verdict(seen, [e for work in works for e in work.errors])


def verdict(seen: list[Vitals], errors: list[BaseException]) -> int:
    """Print whether it held, and why not; return the exit code."""
    wrong = [f"{len(errors)} sessions failed: {errors[0]!r}"] if errors else []
    settled = seen[len(seen) // 4 :]  # a quarter to warm up
    part = max(1, len(settled) // 3)
    early, late = settled[:part], settled[-part:]
    for what in ("pss", "rss", "threads", "files", "children"):
        before, after = (
            statistics.median(getattr(one, what) for one in some)
            for some in (early, late)
        )
        change = after / before - 1
        print(f"{what} after warming up: {change:+.1%}")
        # A pool of threads fills up to as many as were ever busy at a time.
        slack = {"pss": GROWTH, "rss": GROWTH, "threads": 2 / before}.get(what, 0.0)
        if change > slack:
            wrong.append(f"{what} grew from {before:,.0f} to {after:,.0f}")
    for one in wrong:
        print(one, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
