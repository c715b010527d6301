"""Workers that dial out, with the relay that they are reached through."""

from __future__ import annotations

import queue
import threading
from pathlib import Path

from obhut.client.network import Network, connect
from obhut.host import configuration as configurations
from obhut.identity.peers import Peer
from obhut.transports.grpc.credentials import channel_credentials
from obhut.transports.grpc.serving import Served
from obhut.transports.relay.tunnel import Dialler, Tunnel, TunnelTransport

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

    def relay(
        self,
        listen: str = "127.0.0.1:0",
        *,
        attach: str = '["bob", "alice"]',
        extra: str = "",
    ) -> Served:
        """Start the aggregator, to which ``bob`` and ``alice`` may attach."""
        peers = "".join(
            f'[[peer]]\nname = "{owner}"\nid = "{self.id(owner)}"\n' for owner in OWNERS
        )
        return self._start(
            RELAY,
            f'listen = "{listen}"\n',
            f'deliver = ["bob", "alice"]\nattach = {attach}\n',
            peers + extra,
        )

    def dial(
        self,
        name: str,
        at: str = "",
        *,
        listen: str = "",
        extra: str = "",
        wait: bool = True,
    ) -> Served:
        """Start an owner who opens no port, and wait until it is attached.

        Args:
            name: whose.
            at: the relay's address, as the owner sees it.
            listen: where it listens besides, if it does.
            extra: more tables.
            wait: whether to wait.
        """
        at = at or self.address(RELAY)
        peers = f'[[peer]]\nname = "{RELAY}"\nid = "{self.id(RELAY)}"\n'
        peers += f'address = "{at}"\n'
        for other in OWNERS:
            if other != name:
                peers += f'[[peer]]\nname = "{other}"\nid = "{self.id(other)}"\n'
        deliver = [RELAY, *(o for o in OWNERS if o != name)]
        where = f'attach = "{at}"\n' + (f'listen = "{listen}"\n' if listen else "")
        served = self._start(name, where, f"deliver = {deliver}\n", peers + extra)
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
        return Tunnel(Dialler(at, self.people[who], relay, self.id(to)), at)

    def through(
        self, who: str, to: str, at: str = "", *, reconnect_seconds: float = 20.0
    ) -> TunnelTransport:
        """Return somebody's own way through the relay to an owner."""
        credentials, options = channel_credentials(self.people[who], self.peer(to))
        return TunnelTransport(
            self.tunnel(who, to, at),
            credentials,
            options,
            worker=to,
            address=self.id(to),
            reconnect_seconds=reconnect_seconds,
        )

    def peer(self, name: str) -> Peer:
        """Return somebody as others have pinned them."""
        identity = self.people[name]
        return Peer(name, identity.id, identity.certificate)

    def _start(self, name: str, where: str, access: str, tables: str) -> Served:
        file = self.root / name / "worker.toml"
        file.write_text(
            f'id = "{name}"\n{where}[policy]\nkind = "UnsafeOpen"\n'
            f'[access]\nsessions = ["me", "you"]\n{access}\n{tables}'
        )
        arrivals: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._arrivals[name] = arrivals
        served = Served(configurations.load(file))
        self.served[name] = served
        served.start(lambda: arrivals.put(None))
        return served


def within(event: threading.Event) -> None:
    """Wait for an event, which must come."""
    assert event.wait(PATIENCE)
