"""Who simulates: obhut."""

from __future__ import annotations

import functools

import torch
from sim_cases import RATE
from sim_sides import ROUNDS, Clients, Side, be
from torch.nn import functional as F

import obhut
from obhut.federated import LocalTraining


class Virtual(Side):
    """As many virtual workers as take part in a round, always the same."""

    def start(self) -> None:
        """Make the workers."""
        workers = [
            obhut.VirtualWorker(f"client_{k}", datasets={"rows": named(self.rows[k])})
            for k in range(self.case.participants)
        ]
        owners = {worker.id: worker.dataset("rows") for worker in workers}
        federation = obhut.Federation(owners, obhut.VirtualWorker("aggregator"))
        training = LocalTraining(
            functools.partial(torch.optim.SGD, lr=RATE),
            F.cross_entropy,
            batch_size=self.case.batch,
        )
        self._rounds = federation.rounds(self.model, training, rounds=ROUNDS)

    def round(self, clients: Clients) -> Clients:
        """Play the next round."""
        next(self._rounds)
        return list(range(self.case.participants))


def named(rows: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a data set's parts by name."""
    return dict(zip(("features", "target"), rows, strict=True))


SIDES = {"virtual": Virtual}

if __name__ == "__main__":
    be(SIDES)
