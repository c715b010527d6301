"""Who simulates: plain torch, in one process and in two; and what each side is told.

A side is a process that is told by a pipe what to do: ``start`` and then ``round``
play a round, and return its seconds with the clients who took part; ``model`` returns
the parameters.
"""

from __future__ import annotations

import argparse
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from sim_cases import CASES, Case, train
from torch import multiprocessing, nn

Clients = list[int]
"""Who takes part in a round, by number."""

ROUNDS = 1_000
"""More than are played."""


class Side(ABC):
    """Plays rounds of a case.

    Args:
        case: the case.
        file: of the rows.

    Attributes:
        case, file: as given.
        rows: of each client, in the file until they are used.
        model: what rounds begin with.
    """

    def __init__(self, case: Case, file: Path) -> None:
        self.case, self.file = case, file
        self.rows = case.read(file)
        self.model = case.model()

    @abstractmethod
    def start(self) -> None:
        """Begin what a round needs."""

    @abstractmethod
    def round(self, clients: Clients) -> Clients:
        """Play a round, of these clients or one's own choice; return who took part."""


class Plain(Side):
    """A loop over clients in this process, on one thread."""

    def start(self) -> None:
        """Make the model that trains."""
        self._local = self.case.model()

    @torch.no_grad()
    def round(self, clients: Clients) -> Clients:
        """Train at each client in turn, and average in place."""
        sums = {
            name: torch.zeros_like(p) for name, p in self.model.state_dict().items()
        }
        total = sum(len(self.rows[client][0]) for client in clients)
        for client in clients:
            self._local.load_state_dict(self.model.state_dict())
            with torch.enable_grad():
                train(self._local, *self.rows[client], self.case.batch)
            weight = len(self.rows[client][0]) / total
            for name, value in self._local.state_dict().items():
                sums[name].add_(value, alpha=weight)
        self.model.load_state_dict(sums)
        return clients


class TwoProcesses(Side):
    """The same in two processes that stay, with the models in shared memory."""

    def start(self) -> None:
        """Start the processes."""
        context = multiprocessing.get_context("fork")
        self.model.share_memory()
        self._sums, self._pipes = [], []
        for _ in range(2):
            ours, theirs = context.Pipe()
            sums = self.case.model().share_memory()
            process = context.Process(
                target=self._work, args=(theirs, sums), daemon=True
            )
            process.start()
            self._sums.append(sums)
            self._pipes.append(ours)

    @torch.no_grad()
    def _work(self, pipe: Connection, sums: nn.Module) -> None:
        """Train a round's clients whenever they are named."""
        torch.set_num_threads(1)
        local = self.case.model()
        pairs = list(zip(sums.parameters(), local.parameters(), strict=True))
        theirs = list(zip(local.parameters(), self.model.parameters(), strict=True))
        while asked := pipe.recv():
            clients, total = asked
            for one, _ in pairs:
                one.zero_()
            for client in clients:
                for mine, given in theirs:
                    mine.copy_(given)
                with torch.enable_grad():
                    train(local, *self.rows[client], self.case.batch)
                weight = len(self.rows[client][0]) / total
                for one, trained in pairs:
                    one.add_(trained, alpha=weight)
            pipe.send(None)

    @torch.no_grad()
    def round(self, clients: Clients) -> Clients:
        """Give each process half of the clients; add what they have."""
        total = sum(len(self.rows[client][0]) for client in clients)
        for k, pipe in enumerate(self._pipes):
            pipe.send((clients[k::2], total))
        for pipe in self._pipes:
            pipe.recv()
        one, other = (sums.parameters() for sums in self._sums)
        for mine, first, second in zip(
            self.model.parameters(), one, other, strict=True
        ):
            torch.add(first, second, out=mine)
        return clients


SIDES = {
    "plain": Plain,
    "two": TwoProcesses,
}


def serve(side: Side, pipe: Connection) -> None:
    """Do what is told, until the pipe ends."""
    pipe.send("ready")
    while True:
        try:
            what, clients = pipe.recv()
        except EOFError:
            return
        if what == "model":
            pipe.send(arrays(side.model))
            continue
        began = time.perf_counter()
        if what == "start":
            side.start()
        took_part = side.round(clients)
        pipe.send((time.perf_counter() - began, took_part))


def arrays(model: nn.Module) -> list[np.ndarray]:
    """Return a copy of a model's parameters."""
    return [one.detach().numpy().copy() for one in model.parameters()]


def arguments(sides: Sequence[str]) -> tuple[str, Case, Path, Connection]:
    """Return what a side is called with: which it is, the case, its rows, a pipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=sides)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("rows", type=Path)
    parser.add_argument("pipe", type=int)
    options = parser.parse_args()
    os.set_inheritable(options.pipe, False)
    torch.set_num_threads(1)
    return options.side, CASES[options.case], options.rows, Connection(options.pipe)


def be(sides: Mapping[str, type[Side]]) -> None:
    """Be one of these sides, as the arguments say."""
    side, case, file, pipe = arguments(list(sides))
    serve(sides[side](case, file), pipe)


if __name__ == "__main__":
    be(SIDES)
