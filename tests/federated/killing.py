"""A training over served workers in which somebody is killed at a chosen point.

::

    with Hospitals(folder) as hospitals:
        whole = hospitals.train()                                # nobody is killed
        assert hospitals.train(Kill("bob", "process", 120), retries=3) == whole
        hospitals.train_elsewhere(run, "request", 120)           # the client is
        assert hospitals.train_elsewhere(run) == whole

Rules:

- Workers are processes of their own: owners under a policy with ``programs = "same"``,
  and their aggregator with its record of releases.
- A point is a number of requests that the client has submitted, however many it puts in
  a message, or of changes that it has made to the files of its checkpoints.
- Who was killed is started again at its address while the client waits.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import obhut
from obhut.client.network import Network, connect
from obhut.federated import Checkpoint, FedAdam, Federation, History, LocalTraining
from obhut.protocol.messages import Batch, Free
from obhut.testing.sites import Sites
from obhut.testing.vitals import descendants
from obhut.transports.grpc.client import GrpcTransport

OWNERS = {"alice": 40, "bob": 25, "carol": 31}
HUB = "hub"
HEAD = "4"
"""The layer that owners may keep."""

POINTS = int(os.environ.get("OBHUT_KILLS", "0"))
"""How many points of a training, spread over all of it; 0 for a chosen few."""

ROUNDS = 10 if POINTS else 4

POLICY = f"""
kind = "Quorum"
aggregators = ["{HUB}"]
contributors = {json.dumps(list(OWNERS))}
requesters = ["me"]
programs = "same"
refusals = 10000
"""

LIMITS = "requester_crashes = 100000"

DATA = """
[[dataset]]
name = "digits"
path = "data.npz"
features = "x"
target = "y"
public = {{ names = true, rows = "{rows}" }}
"""

TRAINING = LocalTraining(
    partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    F.cross_entropy,
    batch_size=8,
    shuffle=True,
    drop_last=True,
)


def accuracy(outputs: torch.Tensor, targets: torch.Tensor) -> obhut.Ratio:
    """Return the share of rows that are right."""
    return obhut.Ratio((outputs.argmax(1) == targets).sum(), len(targets))


def make_model() -> nn.Module:
    """Return a model that draws, and has buffers."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3)
    )


class Outcome(NamedTuple):
    """What came of a training.

    Attributes:
        values: the model's, by name.
        history: its rounds.
        said: lines on standard error.
        seen: how many requests, and changes of files, there were.
    """

    values: Mapping[str, torch.Tensor]
    history: History
    said: str = ""
    seen: Mapping[str, int] = {}

    def __eq__(self, other: object) -> bool:
        """Tell whether models and rounds are the same, bit for bit."""
        return (
            isinstance(other, Outcome)
            and self.history == other.history
            and self.values.keys() == other.values.keys()
            and all(torch.equal(self.values[n], other.values[n]) for n in self.values)
        )

    __hash__ = None  # type: ignore[assignment] # of tensors


class Counter:
    """Counts what the client does, and acts once, at one point of it.

    Args:
        kind: ``request`` that it submits, or ``file`` of its checkpoints to be changed.
        at: the first point at which to act, from 1; 0 for never.
        act: what is done; it returns False to be called at the next point again.
        folder: of the checkpoints.
    """

    def __init__(
        self,
        kind: str = "request",
        at: int = 0,
        act: Callable[[], bool] = bool,
        folder: Path = Path("/nowhere"),
    ) -> None:
        self.seen = {"request": 0, "file": 0}
        self._kind, self._at, self._act, self._folder = kind, at, act, str(folder)
        self._lock = threading.Lock()

    @property
    def acted(self) -> bool:
        """Whether the point has come."""
        return not self._at

    def _count(self, kind: str, count: int = 1) -> None:
        with self._lock:
            self.seen[kind] += count
            if kind != self._kind or not 0 < self._at <= self.seen[kind]:
                return
            if self._act():
                self._at = 0

    # Any: whatever an event has.
    def hear(self, event: str, given: tuple[Any, ...]) -> None:
        """Take an audit event of Python's, before it takes place."""
        if event in _CHANGES and given and str(given[0]).startswith(self._folder):
            self._count("file")

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Count requests inside, once they have been submitted."""
        submit = GrpcTransport.submit

        def counted(way: GrpcTransport, *given: Any) -> Any:
            pending = submit(way, *given)
            if isinstance(given[0], Batch):
                asked = [one for one in given[0].requests if not isinstance(one, Free)]
                self._count("request", len(asked))
            return pending

        with mock.patch.object(GrpcTransport, "submit", counted):
            yield


_CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")


def federate(net: Network) -> Federation:
    """Return the owners and their aggregator."""
    return Federation({name: net[name].dataset("digits") for name in OWNERS}, HUB)


# Any: options of a fit.
def train(
    net: Network, folder: Path, counter: Counter, kept: bool, **options: Any
) -> Outcome:
    """Train a model, with validation and checkpoints; each owner's head, if kept."""
    model, federation = make_model(), federate(net)
    with counter.counting():
        history = federation.fit(
            model,
            TRAINING,
            rounds=ROUNDS,
            seed=5,
            held_out=0.25,
            validate={"accuracy": accuracy},
            outer_optimizer=partial(FedAdam, lr=0.05),
            resume=folder,
            callbacks=[Checkpoint(folder, best="accuracy")],
            keep=[HEAD] * kept,
            **options,
        )
    return Outcome(model.state_dict(), history, seen=counter.seen)


class Kill(NamedTuple):
    """Who is killed, and when.

    Attributes:
        who: its name.
        what: its ``process``, or the ``session``: a process that computes for the
            client, with rows or without.
        at: after how many requests of the client.
    """

    who: str
    what: str
    at: int


class Hospitals(Sites):
    """Three owners, their aggregator and a client.

    Args:
        root: an empty folder.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root, (HUB, *OWNERS, "me"))
        self._runs = 0
        self._others: set[int] = set()
        self._starting: threading.Thread | None = None
        generator = np.random.default_rng(0)
        for place, (name, rows) in enumerate(OWNERS.items()):
            x = generator.normal(place / 3, 1, (rows, 4)).astype(np.float32)
            file = root / name / "data.npz"
            np.savez(file, x=x, y=x.argmax(1) % 3)
            file.chmod(0o600)
        try:
            # By other threads than the main one, who alone could end them else.
            with ThreadPoolExecutor() as pool:
                pool.submit(self.start, HUB).result()
                list(pool.map(self.start, OWNERS))
        except BaseException:
            self.close()
            raise

    def start(self, name: str) -> None:
        """Start one of them, or start it again where it was."""
        options: dict[str, Any] = {"sessions": ["me"], "policy": POLICY}
        options["limits"] = LIMITS
        if name == HUB:
            self.serve(name, role="aggregator", deliver=[*OWNERS], **options)
        else:
            hidden = "hidden" if name == "carol" else "exact"
            reach = {HUB: self.addresses[HUB]} | dict.fromkeys({*OWNERS} - {name}, "")
            self.serve(name, reach=reach, more=DATA.format(rows=hidden), **options)

    def start_later(self, name: str) -> None:
        """Start one of them again, while something else goes on."""
        self._starting = threading.Thread(target=self.start, args=(name,))
        self._starting.start()

    def join(self) -> None:
        """Wait until whoever was to be started again has been."""
        if self._starting is not None:
            self._starting.join()
            self._starting = None

    @property
    def places(self) -> list[str]:
        """The addresses of all."""
        return [self.addresses[name] for name in (HUB, *OWNERS)]

    def folder(self) -> Path:
        """Return an empty folder for checkpoints."""
        self._runs += 1
        return self.root / f"run-{self._runs}"

    def end(self, kill: Kill) -> bool:
        """Kill somebody, who is started again if need be; tell whether it was there."""
        if kill.what == "process":
            self.kill(kill.who)
            self.start_later(kill.who)
            return True
        sessions = [one for one in self.sessions(kill.who) if one not in self._others]
        if sessions:
            with contextlib.suppress(ProcessLookupError):
                os.kill(sessions[kill.at % len(sessions)], signal.SIGKILL)
        return bool(sessions)

    def sessions(self, name: str) -> list[int]:
        """Return the processes that compute at a worker."""
        # The processes that others are forked from have to stay.
        servers = [one for one in descendants(self.pids[name]) if descendants(one)]
        return [one for server in servers for one in descendants(server)]

    # Any: options of a fit.
    def train(
        self, kill: Kill | None = None, kept: bool = False, **options: Any
    ) -> Outcome:
        """Train, while somebody is killed; each owner's own head, if it is kept."""
        # Of clients that were killed before.
        self._others = {one for name in self.pids for one in self.sessions(name)}
        act = partial(self.end, kill) if kill else bool
        counter = Counter("request", kill.at if kill else 0, act)
        said = io.StringIO()
        try:
            with (
                contextlib.redirect_stderr(said),
                connect(*self.places, folder=self.root / "me") as net,
            ):
                outcome = train(net, self.folder(), counter, kept, **options)
        finally:
            self.join()
        if not counter.acted:
            raise AssertionError(f"nobody was killed: {counter.seen} came, {kill}")
        return outcome._replace(said=said.getvalue())

    def train_elsewhere(
        self, folder: Path, kind: str = "", at: int = 0, *, kept: bool = False
    ) -> Outcome | None:
        """Train in a process of its own, which kills itself; None if it did.

        Args:
            folder: of its checkpoints, from which it goes on.
            kind: of what it counts.
            at: at which it does.
            kept: whether owners keep their heads.
        """
        command = [sys.executable, "-m", __name__, str(self.root / "me"), str(folder)]
        ended = subprocess.run(
            [*command, kind, str(at), "kept" * kept, *self.places],
            cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if ended.returncode == -signal.SIGKILL and at:
            return None
        if ended.returncode:
            raise AssertionError(f"ended with {ended.returncode}: {ended.stderr}")
        values, seen = torch.load(folder / "outcome")
        history = Checkpoint(folder).state(ROUNDS).history
        return Outcome(values, history, ended.stderr, seen)


def main(
    home: str, folder: str, kind: str, at: str, kept: str, *addresses: str
) -> None:
    """Be the client that kills itself."""
    torch.set_num_threads(1)
    kill = partial(os.kill, os.getpid(), signal.SIGKILL)
    counter = Counter(kind, int(at), lambda: kill() is None, Path(folder))
    sys.addaudithook(counter.hear)
    with connect(*addresses, folder=home) as net:
        outcome = train(net, Path(folder), counter, bool(kept))
    torch.save((dict(outcome.values), counter.seen), Path(folder) / "outcome")


if __name__ == "__main__":
    main(*sys.argv[1:])
