"""New sessions with workers that were lost, for a round that is run again.

::

    try:
        round()
    except ObhutError as error:
        if not hides_a_loss(error) and not lost(places):
            raise
        give_up(places)
        owners = reconnected(owners, aggregator, tries=3, wait=False, say=print)

Rules:

- Whoever is still there keeps its session. Of others the data sets are loaded again by
  their names.
- Rows that were sent are gone with a session: they can't be had again.
- Whatever went wrong, a session that is gone is why. What a worker refuses, while all
  sessions are there, is refused.
- An owner under a policy does not tell that its process with the rows has ended, since
  rows may have been why: what it should have delivered is missing. Whoever finds that
  begins anew with all owners, once: if it is missing again, it was the rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal, TypeAlias

from obhut.client.registry import WORKERS, Place
from obhut.client.remote_dataset import RemoteDataset
from obhut.client.workers import RemoteWorker
from obhut.errors import (
    NonFiniteError,
    ObhutError,
    ReleaseRefusedError,
    TransportError,
)
from obhut.host.waiting import Waiting

if TYPE_CHECKING:  # it loads gRPC, which virtual workers do without
    from obhut.client.network import Network

Missing: TypeAlias = Literal["stop", "wait"]
"""What to do about a worker that does not come back."""

_FIRST_SECONDS = 1.0
"""How long it is waited before a second try; twice as long before each next."""

_MOST_SECONDS = 30.0

TRIES = 7
"""In so many tries it is waited for a minute, as long as a way is mended."""

_LOOK_SECONDS = 5.0
"""How long a worker may take to say that a session is there."""


def lost(places: Iterable[Place], seconds: float = _LOOK_SECONDS) -> list[str]:
    """Return the names of workers with which there is no session any more.

    Args:
        places: the workers.
        seconds: how long each may take to say that its session is there.
    """
    known = list(places)
    with ThreadPoolExecutor(max(len(known), 1)) as pool:
        gone = pool.map(
            lambda one: one.session.look(seconds) or one.session.closed, known
        )
        return [one.id for one, is_gone in zip(known, gone, strict=True) if is_gone]


def hides_a_loss(error: ObhutError) -> bool:
    """Tell whether an error may come of an owner's process that has ended.

    What such a one should have delivered counts as not finite, or is too little for a
    sum.
    """
    return isinstance(error, NonFiniteError) or (
        isinstance(error, ReleaseRefusedError) and error.rule == "program"
    )


def give_up(places: Iterable[Place]) -> None:
    """Let workers do no more of a round that has failed; nobody hears of it again."""
    for place in places:
        place.session.cancel()
        place.session.overlook()


def end(owners: Sequence[RemoteDataset]) -> bool:
    """End the sessions of owners who do not tell that they lost rows.

    Returns:
        Whether there are any, and their rows can all be had again.
    """
    places = [data.location for data in owners if data.source]
    served = [
        one.session
        for one in places
        if _network(one) is not None and one.session.guarded()
    ]
    if not served or len(served) < len(owners):
        return False
    for session in served:
        session.close()
    return True


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
        ObhutError: if it can be, and lets nobody in.
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
            who = ", ".join(name for name in names if _is_at(name, str(error)))
            if tried >= tries and not wait:
                raise TransportError(
                    f"{who or 'a worker'} did not come back: {error}"
                ) from error
            say(f"{who or 'a worker'} is not there yet: {error}")
        with Waiting("waiting for workers to come back"):
            time.sleep(pause)
        pause, tried = min(2 * pause, _MOST_SECONDS), tried + 1


def _is_at(name: str, said: str) -> bool:
    """Tell whether an error's text says where a worker is, or what leads to it."""
    target: str | None = getattr(WORKERS.known(name), "target", None)
    return target is not None and target in said


def _networks(names: Iterable[str]) -> list[Network]:
    """Return the networks by which workers were found, each once."""
    found: dict[int, Network] = {}
    for name in names:
        network = _network(WORKERS.known(name))
        if network is not None:
            found[id(network)] = network
    return list(found.values())


def _network(place: Place | None) -> Network | None:
    """Return the network by which a worker is found again; None for other workers."""
    found: Network | None = getattr(place, "network", None)
    return found


def _again(name: str, data: RemoteDataset) -> RemoteDataset:
    """Return a data set at a session that is there.

    Raises:
        TransportError: if its rows were in the session that was lost.
    """
    lost = data.location
    worker = WORKERS.find(lost.id)
    if worker.session is lost.session and not lost.session.closed:
        return data
    if data.source is None or not isinstance(worker, RemoteWorker):
        raise TransportError(
            f"{name}'s rows were sent to {lost.id}, and are gone with its session: use "
            'a data set of the worker, worker.dataset("name")'
        )
    again = worker.opened(data.source)
    return again if data.only is None else again.taking(data.only)
