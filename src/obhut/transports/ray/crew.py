"""Simulated clients in actors, any client's turn in any of them.

::

    crew = RayCrew(Given(data), actors=2)
    sums = crew.play(tasks, frames, turns, retries=1)
    transport = crew.transport("ann")
    crew.close()

Rules:

- What all clients get is put into Ray's object store once a round, and each actor is
  called once; sums are added in an order that does not depend on who is quicker.
- An actor that is lost is replaced, on another node if it was silent. Its sums are not
  used, even if they come.
- A client has a home for whatever else it is asked, an actor by its name. If that is
  lost, its sessions are.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Sequence
from typing import Any

import ray

from obhut.errors import CallError, TransportError, WorkerClosedError
from obhut.protocol.codec import Frame
from obhut.transports.sources import Source
from obhut.worker.tasks import Sums, Task, Turn, nothing

from .engine import Engine, processors
from .member import Member, here
from .packing import Packed
from .playing import Playing
from .portions import dealt
from .transport import RayTransport


class RayCrew:
    """Simulated clients in actors; see ``Crew``.

    Args:
        source: the clients' data, sent to each node once.
        actors: how many; None for one a processor, or a share of a device.
        address: of a cluster to join; None for this machine.
        gpus_per_actor: an actor's share of devices; 0 for the processor.
        deadline: seconds after which an actor that says nothing is given up.

    Attributes:
        where: as of a ``Crew``.

    Raises:
        CallError: if there can be no such actors.
        TransportError: if Ray does not start, or the cluster is not reached.
    """

    def __init__(
        self,
        source: Source,
        *,
        actors: int | None = None,
        address: str | None = None,
        gpus_per_actor: float = 0.0,
        deadline: float = 10.0,
    ) -> None:
        if actors is not None and actors < 1:
            raise CallError(f"expected one actor or more, got {actors}")
        names = source.names
        self._rows = {name: source.count(name) or 1 for name in names}
        self._gpus, self._deadline = gpus_per_actor, deadline
        self._device = "cuda" if gpus_per_actor else "cpu"
        self._playing, self._lock = threading.Lock(), threading.RLock()
        self._number = 0
        self._silent: set[str] = set()
        self._members: list[Member] = []
        self._closed = False
        cpus = actors or min(processors(), max(len(names), 1))
        self._engine = Engine(cpus=cpus, address=address)
        # A crew that nobody has closed shall not keep another one waiting here.
        self._spread = not self._engine.is_own
        try:
            if actors is None:
                actors = min(_room(gpus_per_actor), max(len(names), 1))
            self._source = _put(source)
            for _ in range(actors):
                self._members.append(self._begun())
        except BaseException:
            self.close()
            raise
        self.where = f"on Ray, {actors} actor{'s' if actors > 1 else ''}"
        if address is not None:
            self.where += f" at {address}"

    def play(
        self,
        tasks: Sequence[Task],
        frames: Sequence[Frame],
        turns: Sequence[Turn],
        *,
        exact: bool = True,
        retries: int = 0,
    ) -> Sums:
        """Let clients take their turns, in all actors at once; see ``Crew``.

        Raises:
            ObhutError: why a client could not take its turn, which it names.
            TransportError: if more actors were lost with a turn than ``retries``.
        """
        if not turns:
            return nothing(tasks[0])
        with self._playing:
            self._check_open()
            self._number += 1
            rows = [self._rows.get(turn.client, 1) for turn in turns]
            portions = dealt(turns, rows, len(self._members))
            play = Playing(self, self._number, tasks, frames, exact, retries)
            return play.go(portions)

    def transport(self, name: str) -> RayTransport:
        """Return a new way to a client, or to a worker without data."""
        return RayTransport(self, name)

    def home(self, name: str) -> Member:
        """Return the actor that has a client's sessions.

        Raises:
            WorkerClosedError: if the crew was closed.
            TransportError: if there is none, and no room for a new one.
        """
        with self._lock:
            if self._closed:
                raise WorkerClosedError(name)
            place = zlib.crc32(name.encode()) % len(self._members)
            if self._members[place].lost:
                self._replace(place)
            return self._members[place]

    def members(self) -> list[Member]:
        """Return all actors, lost ones replaced as far as there is room.

        Raises:
            TransportError: if there is none any more.
        """
        with self._lock:
            self._check_open()
            for place, member in enumerate(self._members):
                if member.lost:
                    try:
                        self._replace(place)
                    except TransportError:
                        if all(one.lost for one in self._members):
                            raise
            return list(self._members)

    def close(self) -> None:
        """End all that was started."""
        with self._lock:
            self._closed = True
            for member in self._members:
                member.end()
            self._engine.close()

    def _check_open(self) -> None:
        if self._closed:
            raise WorkerClosedError("the simulation")

    def _replace(self, place: int) -> None:
        lost = self._members[place]
        if lost.silent and lost.node and lost.node != here():
            self._silent.add(lost.node)
        lost.end()
        self._members[place] = self._begun()

    def _begun(self) -> Member:
        """Begin an actor, not on a node that was silent."""
        return Member.begun(
            self._source,
            device=self._device,
            cpus=1 if self._spread else 0,
            gpus=self._gpus,
            deadline=self._deadline,
            node=self._node(),
        )

    def _node(self) -> str | None:
        """Return the node with the most room, if one of them was silent.

        Raises:
            TransportError: if there is none.
        """
        self._silent -= {one.node for one in self._members if one.ready}
        if not self._silent:
            return None
        free: dict[str, float] = {
            node["NodeID"]: node["Resources"].get("CPU", 0.0)
            for node in ray.nodes()  # type: ignore[no-untyped-call] # Ray's own
            if node["Alive"] and node["NodeID"] not in self._silent
        }
        for member in self._members:
            if not member.lost and member.node in free:
                free[member.node] -= 1
        best = max(free, key=lambda node: free[node], default=None)
        if best is None or free[best] < 1:
            raise TransportError(
                "no room for another actor on the nodes that answer; start another "
                "node, or simulate with fewer actors"
            )
        return best


def _put(source: Source) -> ray.ObjectRef[Any]:
    """Put the clients' data into Ray's object store.

    Raises:
        CallError: if it, or the function that loads it, can not be pickled.
    """
    try:
        return ray.put(Packed(source))
    except TypeError as error:
        raise CallError(
            "expected data, or a function that loads it, that can go to other "
            f"processes: {error.__cause__ or error}; open files and the like within "
            "the function, or compute in this process, actors=0"
        ) from error


def _room(gpus: float) -> int:
    """Return how many actors Ray has room for.

    Raises:
        CallError: if it has none.
    """
    there = ray.cluster_resources()  # type: ignore[no-untyped-call] # Ray's own
    room = int(there.get("CPU", 0.0))
    if gpus:
        room = min(room, int(there.get("GPU", 0.0) / gpus))
    if room < 1:
        wanted = f"{gpus} of a GPU" if gpus else "a processor"
        raise CallError(
            f"expected a machine with {wanted} for each actor, Ray sees "
            f"{int(there.get('GPU', 0))} GPUs and {int(there.get('CPU', 0))} processors"
        )
    return room
