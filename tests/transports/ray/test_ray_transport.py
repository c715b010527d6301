"""A worker in an actor, as a transport reaches it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import ray

from obhut.testing.transports import Host, TransportConformance
from obhut.transports.ray.actor import Actor
from obhut.transports.ray.crew import RayCrew
from obhut.transports.ray.transport import RayTransport


class RayHost:
    """A worker in one of a crew's actors, new in each test."""

    def __init__(self, crew: RayCrew, id: str) -> None:
        self.crew, self.id = crew, id
        self.tell(lambda actor, id: actor._shells.pop(id, None) and None)

    def tell(self, call: Callable[[Actor, str], None]) -> None:
        """Call a function in the actor's process."""
        handle = self.crew.home(self.id).handle
        ray.get(handle.__ray_call__.remote(call, self.id), timeout=60)

    def connect(self, principal: str) -> RayTransport:
        """Return a way to the worker."""
        return RayTransport(self.crew, self.id, principal)

    def close(self) -> None:
        """Close the worker."""
        self.tell(lambda actor, id: actor._shell(id).close())


class TestRay(TransportConformance):
    """Two workers in two actors."""

    @pytest.fixture(autouse=True)
    def _crew(self, crew: RayCrew) -> None:
        self.crew = crew

    def host(self, id: str) -> Host:
        """Return a new worker."""
        return RayHost(self.crew, id)
