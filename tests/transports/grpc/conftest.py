"""Workers that are really served: identities, processes, a network that can be cut."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from obhut.client.network import Network, connect
from obhut.host import configuration as configurations
from obhut.identity.identity import Identity
from obhut.identity.peers import PeerBook
from obhut.transports.grpc.client import GrpcTransport
from obhut.transports.grpc.credentials import channel_credentials
from obhut.transports.grpc.serving import Served

WORKERS = ("bob", "alice", "secure_worker")
CLIENTS = ("me", "you", "mallory")

ROWS = 1_000

DATA = """
[[dataset]]
name = "d"
path = "data.csv"
features = ["a", "b"]
target = "y"
tags = ["#d"]
public = { names = true, types = true, rows = "rounded" }
"""


class World:
    """People who know each other, each with a folder; some serve.

    Args:
        root: where the folders are.
        names: who there is.

    Attributes:
        people: their identities, by name.
        served: the workers that serve, by name.
        between: what can be cut between alice and the aggregator.
    """

    def __init__(self, root: Path, names: tuple[str, ...]) -> None:
        self.root = root
        self.people = {name: Identity.create() for name in names}
        self.served: dict[str, Served] = {}
        self.between: Proxy | None = None
        for name, identity in self.people.items():
            identity.save(root / name)
            for other in names:
                if other != name:
                    self.peers(name).add(other, self.people[other].certificate)

    def peers(self, name: str) -> PeerBook:
        """Return whom somebody knows."""
        return PeerBook(self.root / name / "peers")

    def id(self, name: str) -> str:
        """Return somebody's id."""
        return self.people[name].id

    def address(self, name: str) -> str:
        """Return where a worker listens."""
        return self.served[name].address

    def serve(
        self,
        name: str,
        *,
        listen: str = "127.0.0.1:0",
        limits: str = "",
        reach: dict[str, str] | None = None,
        extra: str = "",
        policy: str = 'kind = "UnsafeOpen"',
        deliver: str = '"bob", "alice"',
        begin_anew: str = "",
    ) -> Served:
        """Start a worker that ``me`` and ``you`` may use and workers deliver to.

        Args:
            name: who serves.
            listen: where.
            limits: lines of ``[limits]``.
            reach: where other workers are, by name.
            extra: more tables.
            policy: lines of ``[policy]``.
            deliver: who may deliver to it.
            begin_anew: why its record of releases begins anew.
        """
        peers = "".join(
            f'[[peer]]\nname = "{other}"\nid = "{self.id(other)}"\n'
            f'address = "{address}"\n'
            for other, address in (reach or {}).items()
        )
        file = self.root / name / "worker.toml"
        file.write_text(
            f'id = "{name}"\nlisten = "{listen}"\n'
            f"[policy]\n{policy}\n"
            f'[access]\nsessions = ["me", "you"]\ndeliver = [{deliver}]\n'
            f"[limits]\n{limits}\n{peers}{extra}"
        )
        served = Served(configurations.load(file), begin_anew=begin_anew)
        self.served[name] = served
        served.start()
        return served

    def transport(
        self, who: str, to: str, address: str = "", *, reconnect_seconds: float = 20.0
    ) -> GrpcTransport:
        """Return somebody's own way to a worker."""
        peer = self.peers(who).find(to)
        credentials, options = channel_credentials(self.people[who], peer)
        return GrpcTransport(
            address or self.address(to),
            credentials,
            options,
            worker=to,
            address=peer.id,
            reconnect_seconds=reconnect_seconds,
        )

    def close(self) -> None:
        """Stop all that serve."""
        for served in self.served.values():
            served.close(grace=0)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Three workers who serve, and three clients who are known to them."""
    world = World(tmp_path_factory.mktemp("world"), WORKERS + CLIENTS)
    lines = "".join(f"{k},{k * 0.5},{k % 2}\n" for k in range(ROWS))
    (world.root / "bob" / "data.csv").write_text("a,b,y\n" + lines)
    try:
        world.serve("secure_worker")
        reach = {"secure_worker": world.address("secure_worker")}
        limits = 'memory = "256 MiB"\nsessions = 64'
        world.serve("bob", limits=limits, reach=reach, extra=DATA)
        world.between = Proxy(world.address("secure_worker"))
        world.serve("alice", reach={"secure_worker": world.between.address})
        yield world
    finally:
        world.close()
        if world.between is not None:
            world.between.close()


Connect = Callable[..., Network]


@pytest.fixture
def enter(world: World) -> Iterator[Connect]:
    """Let somebody connect to workers by name; sessions end with the test."""
    with contextlib.ExitStack() as stack:

        def enter(who: str, *workers: str) -> Network:
            addresses = [world.address(name) for name in workers or ("bob",)]
            return stack.enter_context(connect(*addresses, folder=world.root / who))

        yield enter


class Proxy:
    """A network in front of an address, whose connections can be cut.

    Args:
        target: ``host:port`` that it forwards to.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.cuts = 0
        self._changed = threading.Condition()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def cut(self) -> None:
        """Cut the connection, once there is one."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._pairs, timeout=15)
            pairs, self._pairs = self._pairs, []
            self.cuts += 1
        for pair in pairs:
            for one in pair:
                _reset(one)

    def close(self) -> None:
        """Cut all and take no more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        with self._changed:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for one in pair:
                _reset(one)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target)
            except OSError:
                _reset(near)
                continue
            with self._changed:
                self._pairs.append((near, far))
                self._changed.notify_all()
            for source, sink in ((near, far), (far, near)):
                thread = threading.Thread(
                    target=self._pump, args=(source, sink), daemon=True
                )
                self._threads.append(thread)
                thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        with self._changed:
            self._pairs = [p for p in self._pairs if source not in p]
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        # Only who read from it closes it, so that no number is used twice.
        source.close()


def _reset(connection: socket.socket) -> None:
    """End a connection as a network does that breaks: with a reset, if at all."""
    with contextlib.suppress(OSError):
        linger = struct.pack("ii", 1, 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxied() -> Iterator[Callable[[str], Proxy]]:
    """Put a network that can be cut in front of an address."""
    with contextlib.ExitStack() as stack:

        def start(target: str) -> Proxy:
            proxy = Proxy(target)
            stack.callback(proxy.close)
            return proxy

        yield start
