"""Workers in processes of their own, with people who know each other.

Each is an ``obhut worker`` with a folder, as an owner would start it.

Rule: what a process wrote, and what it took, is there for a test to look at.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from obhut.cli.processes import Site, start
from obhut.identity.identity import Identity
from obhut.identity.peers import PeerBook
from obhut.transports.grpc.client import GrpcTransport
from obhut.transports.grpc.credentials import channel_credentials

from .vitals import Vitals, vitals

_END_SECONDS = 15


class Sites:
    """People with folders; any of them can serve.

    Duty: close them.

    Args:
        root: an empty folder.
        names: who there is; all are pinned by all.

    Attributes:
        identities: who they are, by name.
        pids: the processes that serve, by name.
        addresses: where they listen, by name.
    """

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root = root
        self.identities = {name: Identity.create() for name in names}
        self.pids: dict[str, int] = {}
        self.addresses: dict[str, str] = {}
        self._stacks: dict[str, contextlib.ExitStack] = {}
        for name, identity in self.identities.items():
            identity.save(root / name)
            for other in names:
                if other != name:
                    self.peers(name).add(other, self.identities[other].certificate)

    def peers(self, name: str) -> PeerBook:
        """Return whom somebody knows."""
        return PeerBook(self.root / name / "peers")

    def configure(
        self,
        name: str,
        *,
        listen: str = "127.0.0.1:0",
        sessions: Sequence[str] = (),
        deliver: Sequence[str] = (),
        limits: str = "",
        reach: Mapping[str, str] | None = None,
        policy: str = 'kind = "UnsafeOpen"',
        more: str = "",
    ) -> None:
        """Write a worker's configuration.

        Args:
            name: whose.
            listen: where; by default at any port, or where it last did.
            sessions: who may open sessions.
            deliver: who may deliver into them.
            limits: lines of ``[limits]``.
            reach: where other workers are, by name.
            policy: lines of ``[policy]``.
            more: further tables.
        """
        peers = "".join(
            f'[[peer]]\nname = "{other}"\nid = "{self.identities[other].id}"\n'
            f'address = "{address}"\n'
            for other, address in (reach or {}).items()
        )
        (self.root / name / "worker.toml").write_text(
            f'id = "{name}"\nlisten = "{self.addresses.get(name, listen)}"\n'
            f"[policy]\n{policy}\n"
            f"[access]\nsessions = {json.dumps(list(sessions))}\n"
            f"deliver = {json.dumps(list(deliver))}\n"
            f"[limits]\n{limits}\n{peers}{more}"
        )

    # Any: what ``configure`` takes.
    def serve(self, name: str, **configuration: Any) -> str:
        """Configure a worker and start it; return its address.

        Raises:
            TransportError: if it does not serve.
        """
        self.configure(name, **configuration)
        stack = contextlib.ExitStack()
        (serving,) = stack.enter_context(
            start([Site(name, "worker", self.root / name)])
        )
        self._stacks[name] = stack
        self.pids[name] = serving.pid
        self.addresses[name] = serving.address
        return serving.address

    def transport(
        self,
        who: str,
        to: str,
        address: str = "",
        *,
        options: Collection[tuple[str, str | int]] = (),
        reconnect_seconds: float = 20.0,
    ) -> GrpcTransport:
        """Return somebody's own way to a worker.

        Args:
            who: whose.
            to: the worker.
            address: where it is reached; by default where it listens.
            options: further options of the channel.
            reconnect_seconds: how long a broken way is mended.
        """
        peer = self.peers(who).find(to)
        credentials, pinned = channel_credentials(self.identities[who], peer)
        return GrpcTransport(
            address or self.addresses[to],
            credentials,
            (*pinned, *options),
            worker=to,
            address=peer.id,
            reconnect_seconds=reconnect_seconds,
        )

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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
