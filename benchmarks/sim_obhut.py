"""Who simulates: obhut, exact, and with updates fused into products."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import torch
from sim_cases import RATE
from sim_sides import ROUNDS, Clients, Side, be
from torch.nn import functional as F

import obhut
from obhut.federated import LocalTraining
from obhut.federated.clients import Clients as Simulated
from obhut.federated.sampling import Sample

SEED = 0

Rows = tuple[torch.Tensor, torch.Tensor]


def loader(file: Path, rows: int) -> Callable[[str], Rows]:
    """Return what reads a client's rows from the file."""
    opened: list[Rows] = []

    def load(name: str) -> Rows:
        if not opened:
            opened.append(torch.load(file, mmap=True))
        number = int(name.rpartition("-")[2])
        x, y = (one.narrow(0, number * rows, rows) for one in opened[0])
        return x, y

    return load


class Exact(Side):
    """A federation over simulated clients, with as many actors as there are cores."""

    exact = True

    def start(self) -> None:
        """Simulate the clients."""
        simulation = obhut.simulate(loader(self.file, self.case.rows), len(self.rows))
        self.rows = []  # where clients are computed, they are read when needed
        self._sample = Sample(self.case.participants, Simulated(simulation))
        training = LocalTraining(
            functools.partial(torch.optim.SGD, lr=RATE),
            F.cross_entropy,
            batch_size=self.case.batch,
        )
        self._rounds = obhut.Federation(simulation).rounds(
            self.model,
            training,
            rounds=ROUNDS,
            participants=self.case.participants,
            seed=SEED,
            exact=self.exact,
        )

    def round(self, clients: Clients) -> Clients:
        """Play the next round, of clients that the federation draws."""
        return self._sample.drawn(SEED, next(self._rounds).number)


class Fused(Exact):
    """Likewise, where updates need not be PyTorch's digit for digit."""

    exact = False


SIDES = {"exact": Exact, "fused": Fused}

if __name__ == "__main__":
    be(SIDES)
