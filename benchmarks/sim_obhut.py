"""Who simulates: obhut, exact, and with updates fused into products."""

from __future__ import annotations

import functools

import torch
from sim_cases import RATE
from sim_sides import ROUNDS, Clients, Side, be
from torch.nn import functional as F

import obhut
from obhut.federated import LocalTraining
from obhut.federated.clients import Clients as Simulated
from obhut.federated.sampling import Sample

SEED = 0


class Exact(Side):
    """A federation over simulated clients, with as many actors as there are cores."""

    exact = True

    def start(self) -> None:
        """Simulate the clients."""
        rows = {
            f"client {k}": dict(zip(("features", "target"), one, strict=True))
            for k, one in enumerate(self.rows)
        }
        simulation = obhut.simulate(rows)
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
