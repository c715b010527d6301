"""Many clients on one machine or a cluster, before anybody installs a worker.

::

    with obhut.simulate({"ann": (x, y), "bob": (u, v)}) as clients:
        federation = obhut.Federation(clients)
        federation.fit(model, training, rounds=30, participants=10, seed=0)

Rules:

- The program is the one that trains at real owners. Only how workers are obtained
  differs.
- It protects nothing: whoever simulates clients has their rows.
- A client is a worker like any other, and opened when it is asked for by its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from obhut.client.remote_dataset import RemoteDataset
from obhut.client.workers import RemoteWorker
from obhut.host.closing import Closing
from obhut.host.printing import Table
from obhut.transports.cohorts import Crew
from obhut.transports.grpc.description import DatasetDescription
from obhut.worker.shapes import Spec
from obhut.worker.tasks import DATASET

_AGGREGATOR = "aggregator"


class Simulation(Mapping[str, RemoteDataset], Closing):
    """Simulated clients by name, with their data; what ``obhut.Federation`` takes.

    ``with`` ends what was started for it.

    Args:
        crew: computes them.
        names: of all clients.
        looks: what a row of each part of their data looks like.

    Attributes:
        crew: as given.
        looks: as given.
        aggregator: a worker beside them, which adds where they are asked one by one.
    """

    def __init__(
        self, crew: Crew, names: Iterator[str], looks: Mapping[str, Spec]
    ) -> None:
        self.crew = crew
        self.looks = looks
        self._names = dict.fromkeys(names)
        self._workers: dict[str, RemoteWorker] = {}
        self._data: dict[str, RemoteDataset] = {}

    @property
    def aggregator(self) -> RemoteWorker:
        """A worker beside the clients."""
        name = _AGGREGATOR
        while name in self._names:
            name += "_"
        return self._worker(name)

    def _worker(self, name: str) -> RemoteWorker:
        found = self._workers.get(name)
        if found is None:
            said = [DatasetDescription(DATASET)] if name in self._names else []
            way = self.crew.transport(name)
            found = self._workers[name] = RemoteWorker(way, described=said)
        return found

    def __getitem__(self, name: str) -> RemoteDataset:
        if name not in self._names:
            raise KeyError(name)
        found = self._data.get(name)
        if found is None:
            found = self._worker(name).dataset(DATASET, *self.looks)
            self._data[name] = found
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"<Simulation of {len(self)} clients {self.crew.where}>"

    @property
    def table(self) -> Table:
        """What is there, in a table."""
        looks = [
            (name, str(look.dtype).removeprefix("torch."), str(list(look.shape)))
            for name, look in self.looks.items()
        ]
        title = f"{len(self)} simulated clients {self.crew.where}"
        return Table(("part", "dtype", "shape of a row"), looks, title=title)

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        return self.table.html()

    def close(self) -> None:
        """End the clients, and what was started for them."""
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()
        self._data.clear()
        self.crew.close()
