"""How a worker's parent gets processes for its sessions.

Rules:

- Children that were lost are not started again, for their tensors are gone; the fork
  server is.
- One that does not answer is replaced, and kept until its children have ended.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Collection, Sequence

from obhut.errors import SandboxError, TransportError
from obhut.host.closing import Closing

from . import meter
from .control import Settings
from .parent import Child
from .supervisor import Supervisor

FORK_SERVER = (sys.executable, "-P", "-m", "obhut.transports.pipe.forkserver")
"""How the fork server is started; the number of its socket is added."""


class Children(Closing):
    """Starts the children of one worker.

    The fork server starts at once, and again when it ended, or does not answer, and a
    child is wanted.

    Duty: close it.

    Args:
        settings: what holds for each child.
        lost: called with each child that ended unasked, as soon as it does, on a
            thread that must not be held up.
        command: how the fork server is started.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        lost: Callable[[Child], None] = lambda child: None,
        command: Sequence[str] = FORK_SERVER,
    ) -> None:
        self._settings = settings
        self._lost = lost
        self._command = tuple(command)
        self._lock = threading.Lock()
        self._closed = False
        self._server = Supervisor(settings, self._command, lost)
        self._former: list[Supervisor] = []

    def ready(self) -> frozenset[str]:
        """Wait until children can be started; return the walls that they will have.

        Raises:
            SandboxError: if they can not be walled in as the settings ask, or not
                measured.
            TransportError: if the fork server does not start.
        """
        if not meter.available():
            raise SandboxError(
                "measure of processor time",
                "the system does not show that of another process",
                "run the worker on a Linux kernel that does",
            )
        return self._running().ready()

    @property
    def holds(self) -> bool:
        """Whether children are there still."""
        with self._lock:
            return any(one.holds for one in (*self._former, self._server))

    def start(
        self,
        session: str,
        memory: int | None = None,
        datasets: Collection[str] | None = None,
    ) -> Child:
        """Start a child for a session.

        Args:
            session: the session's name.
            memory: bytes that it may use; by default what the settings say, which
                is the most.
            datasets: the names of the data sets that it may use; None for all.

        Raises:
            SandboxError, TransportError: as ``ready``.
        """
        most = self._settings.memory
        memory = most if memory is None or most is None else min(memory, most)
        names = None if datasets is None else tuple(sorted(datasets))
        server = self._running()
        try:
            return server.start(session, memory, names)
        except TransportError:
            if not server.ended:
                raise
        return self._running().start(session, memory, names)

    def _running(self) -> Supervisor:
        """Return the fork server, a new one if the last one ended."""
        with self._lock:
            if self._closed:
                raise TransportError("the worker's children are closed")
            if self._server.ended:
                self._former.append(self._server)
                self._server = Supervisor(self._settings, self._command, self._lost)
            for former in [one for one in self._former if not one.holds]:
                self._former.remove(former)
                former.close()
            return self._server

    def close(self) -> None:
        """End all children and the fork server."""
        with self._lock:
            self._closed = True
            for server in (*self._former, self._server):
                server.close()
