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

import importlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, SupportsFloat

from obhut.client.remote_dataset import RemoteDataset
from obhut.client.workers import RemoteWorker
from obhut.errors import CallError, MissingExtraError
from obhut.extras import import_extra
from obhut.host.closing import Closing
from obhut.host.printing import Table
from obhut.transports.cohorts import Crew, LocalCrew
from obhut.transports.grpc.description import DatasetDescription
from obhut.transports.sources import Source
from obhut.worker.shapes import Spec
from obhut.worker.tasks import DATASET

from .data_parts import whole
from .simulated_data import looks_of, simulated_data

# Any below: what the caller passed, which is checked; Ray may not be there.

_LOG = logging.getLogger("obhut.federated")

_AGGREGATOR = "aggregator"


class Simulation(Mapping[str, RemoteDataset], Closing):
    """Simulated clients by name, with their data; what ``obhut.Federation`` takes.

    ``with`` ends what was started for it.

    Args:
        crew: computes them.
        names: of all clients.
        looks: what a row of each part of their data looks like; None if that shows when
            it is loaded.

    Attributes:
        crew: as given.
    """

    def __init__(
        self, crew: Crew, names: Iterable[str], looks: Mapping[str, Spec] | None
    ) -> None:
        self.crew = crew
        self._looks = looks
        self._names = dict.fromkeys(names)
        self._workers: dict[str, RemoteWorker] = {}
        self._data: dict[str, RemoteDataset] = {}

    @property
    def looks(self) -> Mapping[str, Spec]:
        """What a row of each part of their data looks like."""
        if self._looks is None:
            first = self[next(iter(self._names))]
            parts = {"features": first.features, "target": first.targets}
            self._looks = looks_of(parts)
        return self._looks

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
            found = self._worker(name).dataset(DATASET)
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


def simulate(
    datasets: Any,
    clients: Any = None,
    *,
    actors: int | None = None,
    address: str | None = None,
    gpus_per_actor: float = 0,
) -> Simulation:
    """Simulate clients, on Ray where it is installed, else in this process.

    Leak: none of it is protected. Ray sends data and code as pickles to processes of
    its cluster: use a cluster of your own.

    Args:
        datasets: the clients' data sets by name, each a pair of features and target, an
            ``obhut.LocalDataset``, a ``TensorDataset`` or tensors by part; or one data
            set, which is dealt; or a function that returns a client's data set, called
            with its name where the client is computed, when it is needed.
        clients: how one data set is dealt, ``obhut.iid(100)`` or the like, or a
            ``Partition``; the clients' names, or how many, if a function loads.
        actors: how many processes; by default one for each processor, and of GPUs as
            many as there is room for. 0 computes in this process.
        address: of a Ray cluster to join; by default one is started on this machine,
            unless this process has joined one, and ended with the simulation.
        gpus_per_actor: an actor's share of GPUs; 0 computes on processors.

    Returns:
        What ``obhut.Federation`` takes. ``with`` ends it.

    Raises:
        CallError: if something is wrong with what is given, with the line to write.
        MissingExtraError: if a cluster is to be joined, and Ray is not installed.
        TransportError: if Ray does not start, or the cluster is not reached.
    """
    count = None if actors is None else whole(actors)
    if actors is not None and (count is None or count < 0):
        raise CallError(f"expected how many actors, from 0, got {actors!r}")
    if not isinstance(gpus_per_actor, SupportsFloat) or not float(gpus_per_actor) >= 0:
        raise CallError(f"expected a share of GPUs from 0, got {gpus_per_actor!r}")
    data = simulated_data(datasets, clients)
    crew = _crew(data.source, count, address, gpus_per_actor)
    return Simulation(crew, data.source.names, data.looks)


def _crew(
    source: Source, actors: int | None, address: str | None, gpus_per_actor: float
) -> Crew:
    """Return what computes clients."""
    if actors == 0:
        if address is not None or gpus_per_actor:
            raise CallError("expected actors on a cluster, or with GPUs: leave out 0")
        return LocalCrew(source)
    try:
        import_extra("ray", "a cluster", "ray")
    except MissingExtraError:
        if address is not None or gpus_per_actor:
            raise
        _LOG.warning(
            "Ray is not installed: clients are simulated in this process, one after "
            "the other; pip install 'obhut[ray]' for several processes"
        )
        return LocalCrew(source)
    made: Any = importlib.import_module("obhut.transports.ray.crew")
    crew: Crew = made.RayCrew(
        source, actors=actors, address=address, gpus_per_actor=gpus_per_actor
    )
    return crew
