"""Workers that were lost are found again, or it is said who is away."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch

import obhut
from obhut.client.network import Network
from obhut.errors import AccessDeniedError, ObhutError, TransportError
from obhut.federated import RemoteDataset
from obhut.federated.reconnecting import reconnected


def make_worker(name: str) -> Any:
    """Return a worker that can be found at an address."""
    rows = {"features": torch.ones(20, 2), "target": torch.ones(20)}
    worker: Any = obhut.VirtualWorker(name, datasets={"d": rows})
    worker.target = f"{name}:1"
    return worker


class Street:
    """Two workers, of whom one is away for as many tries as a test says.

    Args:
        errors: what whoever looks for it hears, one after the other.
    """

    def __init__(self, *errors: ObhutError) -> None:
        self.errors = list(errors)
        workers = {name: make_worker(name) for name in ("bob", "carol")}
        self.network = Network(workers, find=self._find)
        self.owners = {name: one.dataset("d") for name, one in workers.items()}
        self.reconnect: Callable[..., Mapping[str, RemoteDataset]] = partial(
            reconnected, aggregator=obhut.VirtualWorker("hub"), tries=1, wait=False
        )

    def _find(self, kept: Mapping[str, Any]) -> Any:
        if self.errors:
            raise self.errors.pop(0)
        found = {name: kept.get(name) or make_worker(name) for name in self.owners}
        return found, {}, ()


AWAY = TransportError("nobody answers at bob:1")


def test_who_is_there_keeps_its_session_and_others_get_one() -> None:
    """The data of these is loaded again, and divided as it was."""
    street, said = Street(AWAY), list[str]()
    _, street.owners["bob"] = street.owners["bob"].split(0.25, seed=3)
    street.owners["bob"].location.session.close()
    again = street.reconnect(street.owners, wait=True, say=said.append)
    assert said == ["bob is not there yet: nobody answers at bob:1"]
    assert again["carol"] is street.owners["carol"]
    assert again["bob"].location is street.network["bob"]
    assert again["bob"].only == street.owners["bob"].only
    assert again["bob"].features.sum().item() == 40.0


def test_who_does_not_come_back_is_named() -> None:
    """After as many tries as were asked for, and nobody gets a new session."""
    street, said = Street(AWAY, AWAY), list[str]()
    street.owners["bob"].location.session.close()
    with pytest.raises(TransportError, match="bob did not come back: nobody answers"):
        street.reconnect(street.owners, tries=2, say=said.append)
    assert len(said) == 1


def test_who_lets_nobody_in_is_not_waited_for() -> None:
    """What it says is what is raised."""
    street = Street(AccessDeniedError("bob opens no session for you"))
    street.owners["bob"].location.session.close()
    with pytest.raises(AccessDeniedError):
        street.reconnect(street.owners, wait=True, say=print)


def test_rows_that_were_sent_can_not_be_had_again() -> None:
    """The error says what to use in their place."""
    street = Street()
    bob = street.owners["bob"].location
    street.owners["bob"] = RemoteDataset.send(torch.ones(3, 2), torch.ones(3), bob)
    bob.session.close()
    with pytest.raises(TransportError, match=r'worker\.dataset\("name"\)'):
        street.reconnect(street.owners, say=print)
