"""New sessions with workers that were lost, for a round that is run again.

::

    owners = reconnected(owners, aggregator, tries=3, wait=False, say=print)

Rules:

- Whoever is still there keeps its session. Of others the data sets are loaded again by
  their names.
- Rows that were sent are gone with a session: they can't be had again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, TypeAlias

from obhut.client.network import Network
from obhut.client.registry import WORKERS, Place
from obhut.client.remote_dataset import RemoteDataset
from obhut.client.workers import RemoteWorker
from obhut.errors import ObhutError, TransportError
from obhut.host.waiting import Waiting

Missing: TypeAlias = Literal["stop", "wait"]
"""What to do about a worker that does not come back."""

_FIRST_SECONDS = 1.0
"""How long it is waited before a second try; twice as long before each next."""

_MOST_SECONDS = 30.0


def reconnected(
    owners: Mapping[str, RemoteDataset],
    aggregator: Place | str,
    *,
    tries: int,
    wait: bool,
    say: Callable[[str], object],
) -> dict[str, RemoteDataset]:
    """Return the owners' rows at sessions that are there.

    Args:
        owners: the rows of each, by name, maybe at sessions that were lost.
        aggregator: where they are averaged, itself or by id.
        tries: how often it is tried.
        wait: whether it is tried until it succeeds.
        say: takes why it was not.

    Raises:
        TransportError: if a worker can not be reached.
    """
    names = [data.location.id for data in owners.values()]
    names.append(aggregator if isinstance(aggregator, str) else aggregator.id)
    pause, tried = _FIRST_SECONDS, 1
    while True:
        try:
            for network in _networks(names):
                network.reconnect()
            return {name: _again(name, data) for name, data in owners.items()}
        except TransportError as error:
            if tried >= tries and not wait:
                raise
            say(f"not connected yet: {error}")
        except ObhutError as error:
            raise TransportError(f"a lost worker did not come back: {error}") from error
        with Waiting("waiting for workers to come back"):
            time.sleep(pause)
        pause, tried = min(2 * pause, _MOST_SECONDS), tried + 1


def _networks(names: Iterable[str]) -> list[Network]:
    """Return the networks by which workers were found, each once."""
    found: dict[int, Network] = {}
    for name in names:
        network = getattr(WORKERS.known(name), "network", None)
        if network is not None:
            found[id(network)] = network
    return list(found.values())


def _again(name: str, data: RemoteDataset) -> RemoteDataset:
    """Return a data set at a session that is there.

    Raises:
        TransportError: if its rows were in the session that was lost.
    """
    lost = data.location
    worker = WORKERS.find(lost.id)
    if worker.session is lost.session and not lost.session.closed:
        return data
    if not data.source or not isinstance(worker, RemoteWorker):
        raise TransportError(
            f"{name}'s rows were sent to {lost.id}, and are gone with its session: use "
            'a data set of the worker, worker.dataset("name")'
        )
    again = worker.dataset(*data.source)
    return again if data.only is None else again.taking(data.only)
