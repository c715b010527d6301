"""The workers that this process knows, by id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from obhut.errors import CallError, WorkerNotFoundError

from .session import Session


class Place(Protocol):
    """Where remote tensors can be: a worker, as the client sees it.

    Attributes:
        id: the worker's id.
        session: the client's session with it.
        here: whether it stands for this process: what moves there is fetched.
    """

    id: str
    session: Session
    here: bool


class Registry:
    """Workers by id; a new worker of the same id takes the old one's place."""

    def __init__(self) -> None:
        self._places: dict[str, Place] = {}

    def add(self, place: Place) -> None:
        """Make a worker known by its id."""
        self._places[place.id] = place

    def remove(self, place: Place) -> None:
        """Forget a worker, unless another has taken its id."""
        if self._places.get(place.id) is place:
            del self._places[place.id]

    def known(self, id: str) -> Place | None:
        """Return the worker of that id, if one is known."""
        return self._places.get(id)

    def all(self) -> Mapping[str, Place]:
        """Return all workers that are known, by id."""
        return dict(self._places)

    def home(self) -> Place | None:
        """Return the worker that stands for this process, if there is one."""
        return next((place for place in self._places.values() if place.here), None)

    def find(self, place: Place | str) -> Place:
        """Return a worker by itself or by its id.

        Raises:
            WorkerNotFoundError: if no worker is known by that id.
            CallError: if it is neither a worker nor an id.
        """
        if not isinstance(place, str):
            if not isinstance(getattr(place, "session", None), Session):
                raise CallError(
                    f"expected a worker or its id, got a {type(place).__name__}"
                )
            return place
        found = self._places.get(place)
        if found is None:
            raise WorkerNotFoundError(place, sorted(self._places))
        return found

    def of(self, session: Session) -> Place | None:
        """Return the worker that a session is with, if it is still known."""
        for place in self._places.values():
            if place.session is session:
                return place
        return None


WORKERS = Registry()
"""Where workers are known unless told otherwise."""
