"""Many simulated clients behind one call: crews, and the one in this process.

::

    crew = LocalCrew(Given({"ann": {"features": x, "target": y}}))
    sums = crew.play(tasks, frames, turns)       # each client's part of a round
    transport = crew.transport("ann")            # for whatever else is asked of her
    crew.close()

Rules:

- It knows tasks and messages, and nothing of what they mean.
- A client's worker is the same whichever way it is reached. In a turn it has a session
  of its own, and its rows are as they were before.
- Clients are no owners: whoever simulates them has their rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from obhut.errors import WorkerClosedError
from obhut.protocol.codec import Frame
from obhut.worker.core import Worker
from obhut.worker.tasks import DATASET, Sums, Task, Turn, run

from . import Transport
from .local import LocalNetwork, LocalShell, LocalTransport, alone
from .sources import Kept, Source, copied


class Crew(Protocol):
    """Simulated clients, wherever they are computed.

    Attributes:
        where: that in words.
    """

    where: str

    def play(
        self,
        tasks: Sequence[Task],
        frames: Sequence[Frame],
        turns: Sequence[Turn],
        *,
        exact: bool = True,
        retries: int = 0,
    ) -> Sums:
        """Let clients take their turns, and return the sums.

        Args:
            tasks: they average and sum the same.
            frames: those that all clients get.
            turns: one a client, in the order in which results are added.
            exact: whether training comes to the same as PyTorch's, digit for digit.
            retries: how often turns are taken again whose process was lost.

        Raises:
            TransportError: if processes were lost, and not to be had again.
        """

    def transport(self, name: str) -> Transport:
        """Return a new way to a client, or to a worker without data."""

    def close(self) -> None:
        """End all that was started."""


class LocalCrew:
    """Clients in this process.

    Args:
        source: the clients' data.
        device: where they compute.

    Attributes:
        where: as of a ``Crew``.
    """

    def __init__(self, source: Source, device: str = "cpu") -> None:
        self.where = "in this process"
        self._rows, self._device = Kept(source, device=device), device
        self._network = LocalNetwork()
        self._shells: dict[str, LocalShell] = {}
        self._closed = False

    def play(
        self,
        tasks: Sequence[Task],
        frames: Sequence[Frame],
        turns: Sequence[Turn],
        *,
        exact: bool = True,
        retries: int = 0,
    ) -> Sums:
        """Let clients take their turns, one after the other; see ``Crew``."""
        if self._closed:
            raise WorkerClosedError("the simulation")
        with alone():
            return run(tasks, turns, frames, self._rows, self._device, exact=exact)

    def transport(self, name: str) -> Transport:
        """Return a new way to a client's worker, which lasts as long as the crew."""
        if self._closed:
            raise WorkerClosedError(name)
        shell = self._shells.get(name)
        if shell is None:
            datasets = {}
            if name in self._rows:
                datasets[DATASET] = copied(self._rows(name))
            core = Worker(name, device=self._device, datasets=datasets)
            shell = self._shells[name] = LocalShell(core, network=self._network)
        return LocalTransport(shell)

    def close(self) -> None:
        """Let the workers go."""
        self._closed = True
        for shell in self._shells.values():
            shell.close()
        self._shells.clear()
