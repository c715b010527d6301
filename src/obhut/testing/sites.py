"""Workers in processes of their own.

Each is an ``obhut worker`` with a folder, as an owner would start it.

Rule: what a process wrote, and what it took, is there for a test to look at.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from obhut.cli.processes import Site, start
from obhut.host.closing import Closing

from .people import People
from .vitals import Vitals, vitals

_END_SECONDS = 15


class Sites(People, Closing):
    """People with folders, any of whom can serve.

    Duty: close them.

    Args:
        root: an empty folder.
        names: who there is; all are pinned by all.

    Attributes:
        pids: the processes that serve, by name.
    """

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        super().__init__(root, names)
        self.pids: dict[str, int] = {}
        self._stacks: dict[str, contextlib.ExitStack] = {}

    # Any: what ``configure`` takes.
    def serve(self, name: str, *, role: str = "worker", **configuration: Any) -> str:
        """Configure a worker and start it, where it last was; return its address.

        Args:
            name: whose.
            role: ``worker`` or ``aggregator``, the command that serves it.
            configuration: as for ``configure``.

        Raises:
            TransportError: if it does not serve.
        """
        if name in self.addresses:
            configuration["listen"] = self.addresses[name]
        self.configure(name, **configuration)
        stack = contextlib.ExitStack()
        (serving,) = stack.enter_context(start([Site(name, role, self.root / name)]))
        self._stacks[name] = stack
        self.pids[name] = serving.pid
        self.addresses[name] = serving.address
        return serving.address

    def vitals(self, name: str) -> Vitals:
        """Return what a worker's process takes."""
        return vitals(self.pids[name])

    def log(self, name: str) -> str:
        """Return what a worker has written into its log."""
        file = self.root / name / "worker.log"
        return file.read_text(encoding="utf-8", errors="replace")

    def kill(self, name: str) -> None:
        """End a worker as a power cut does, and wait until it has ended."""
        process = os.pidfd_open(self.pids[name])
        try:
            signal.pidfd_send_signal(process, signal.SIGKILL)
            select.select([process], [], [], _END_SECONDS)
        finally:
            os.close(process)
        self.stop(name)

    def stop(self, name: str) -> None:
        """Let a worker end as its owner would."""
        self._stacks.pop(name).close()

    def close(self) -> None:
        """End all that serve."""
        for name in list(self._stacks):
            self.stop(name)
