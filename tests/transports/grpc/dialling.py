"""Workers that dial out, with the relay that they are reached through."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from obhut.client.network import Network, connect
from obhut.transports.grpc.credentials import channel_credentials
from obhut.transports.relay.tunnel import Dialler, Tunnel, TunnelTransport
from obhut.transports.serving import Served

from .conftest import World

RELAY = "secure_worker"
OWNERS = ("bob", "alice")
PEOPLE = (RELAY, *OWNERS, "me", "you", "mallory")
PATIENCE = 30.0


class Region(World):
    """An aggregator that relays, and owners who are reached through it only.

    Args:
        root: where the folders are.
        names: who there is.
    """

    def __init__(self, root: Path, names: tuple[str, ...] = PEOPLE) -> None:
        super().__init__(root, names)
        self._arrivals: dict[str, queue.SimpleQueue[None]] = {}

    def relay(self, *, attach: Sequence[str] = OWNERS, **options: Any) -> Served:
        """Start the aggregator, to which ``bob`` and ``alice`` may attach."""
        owners = dict.fromkeys(OWNERS, "")
        return self._start(RELAY, attach=attach, reach=owners, **options)

    def dial(
        self, name: str, at: str = "", *, wait: bool = True, **options: Any
    ) -> Served:
        """Start an owner who opens no port, and wait until it is attached.

        Args:
            name: whose.
            at: the relay's address, as the owner sees it.
            wait: whether to wait.
            options: more of its configuration.
        """
        at = at or self.address(RELAY)
        others = {other: "" for other in OWNERS if other != name}
        served = self._start(
            name,
            dials=at,
            deliver=[RELAY, *others],
            reach={RELAY: at, **others},
            **{"listen": "", **options},
        )
        if wait:
            self.attached(name)
        return served

    def attached(self, name: str) -> None:
        """Wait until an owner has attached once more."""
        self._arrivals[name].get(timeout=PATIENCE)

    def enter(self, who: str = "me", at: str = "") -> Network:
        """Connect somebody to the aggregator, and through it to the owners."""
        return connect(at or self.address(RELAY), folder=self.root / who)

    def tunnel(self, who: str, to: str, at: str = "") -> Tunnel:
        """Return somebody's way through the relay, before any TLS with its end."""
        relay = self.peer(RELAY)
        at = at or self.address(RELAY)
        return Tunnel(Dialler(at, self.identities[who], relay, self.id(to)), at)

    def through(
        self, who: str, to: str, at: str = "", *, reconnect_seconds: float = 20.0
    ) -> TunnelTransport:
        """Return somebody's own way through the relay to an owner."""
        credentials, options = channel_credentials(self.identities[who], self.peer(to))
        return TunnelTransport(
            self.tunnel(who, to, at),
            credentials,
            options,
            worker=to,
            address=self.id(to),
            reconnect_seconds=reconnect_seconds,
        )

    def _start(self, name: str, **options: Any) -> Served:
        arrivals: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._arrivals[name] = arrivals
        return self.serve(name, lambda: arrivals.put(None), **options)


def within(event: threading.Event) -> None:
    """Wait for an event, which must come."""
    assert event.wait(PATIENCE)
