"""Simulated clients as a federation has them: all, some, or parts of their rows.

::

    clients = Clients(simulation)                # a sequence of data sets
    train, held_out = clients.split(0.2, seed=0)
    some = train.chosen([3, 17, 20])

Rules:

- Nothing is opened until it is asked for by its place: a round is one message to each
  process that computes clients, and opens none.
- Places are counted over all clients, whichever are chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, overload

from obhut.client.local_dataset import split_of
from obhut.client.remote_dataset import RemoteDataset
from obhut.protocol.messages import Split
from obhut.transports.cohorts import Crew
from obhut.worker.shapes import Spec


class Simulated(Protocol):
    """What simulates clients."""

    @property
    def crew(self) -> Crew:
        """What computes them."""

    @property
    def looks(self) -> Mapping[str, Spec]:
        """What a row of each part of their data looks like."""

    def __getitem__(self, name: str) -> RemoteDataset:
        """Return a client's data set, at a session with its worker."""

    def __iter__(self) -> Iterator[str]:
        """Go through the clients' names."""


class Clients(Sequence[RemoteDataset]):
    """Some clients of a simulation, in order.

    Args:
        simulation: it.
        places: which clients; None for all.
        only: which of their rows; None for all.

    Attributes:
        simulation: as given.
        places: where each is among all.
        names: what each is called.
        only: as given.
    """

    def __init__(
        self,
        simulation: Simulated,
        places: Sequence[int] | None = None,
        only: Split | None = None,
    ) -> None:
        self.simulation = simulation
        names = list(simulation)
        self.places = list(range(len(names))) if places is None else list(places)
        self.names = [names[place] for place in self.places]
        self.only = only

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, place: int) -> RemoteDataset: ...

    @overload
    def __getitem__(self, place: slice) -> Clients: ...

    def __getitem__(self, place: int | slice) -> RemoteDataset | Clients:
        if isinstance(place, slice):
            return Clients(self.simulation, self.places[place], self.only)
        data = self.simulation[self.names[place]]
        return data if self.only is None else data.taking(self.only)

    def chosen(self, places: Sequence[int]) -> Clients:
        """Return some of them, by their places here."""
        return Clients(self.simulation, [self.places[one] for one in places], self.only)

    def split(self, held_out: float, seed: int) -> tuple[Clients, Clients]:
        """Return two parts of each one's rows; see ``RemoteDataset.split``."""
        first, second = split_of(held_out, seed)
        return (
            Clients(self.simulation, self.places, first),
            Clients(self.simulation, self.places, second),
        )
