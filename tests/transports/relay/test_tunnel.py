"""Workers that are reached through a relay, as a client sees them."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from obhut.errors import AccessDeniedError, PeerNotFoundError, TransportError
from obhut.identity.identity import Identity
from obhut.identity.peers import Peer, PeerBook
from obhut.protocol.messages import Batch, Count
from obhut.testing.transports import Host, TransportConformance
from obhut.transports.grpc.client import GrpcTransport
from obhut.transports.grpc.credentials import (
    caller,
    channel_credentials,
    principal,
    server_credentials,
)
from obhut.transports.grpc.node import Node
from obhut.transports.grpc.server import Server
from obhut.transports.grpc.sessions import Starting
from obhut.transports.grpc.ways import Ways
from obhut.transports.pipe.children import Children
from obhut.transports.pipe.control import Settings
from obhut.transports.relay import attachment as attachments
from obhut.transports.relay import messages as relay_messages
from obhut.transports.relay.attachment import Attachment
from obhut.transports.relay.messages import Attached, Called, Carried
from obhut.transports.relay.relay import Relay
from obhut.transports.relay.splice import Source, Splice
from obhut.transports.relay.tunnel import (
    Dialler,
    Tunnel,
    TunnelTransport,
    private_folder,
)

PRINCIPALS = ("me", "you", "mallory", "one", "two")
OWNERS = ("bob", "alice")
SECONDS = 15.0


@pytest.fixture(scope="module")
def people() -> dict[str, Identity]:
    """Who there is, by name."""
    return {name: Identity.create() for name in ("hub", *OWNERS, *PRINCIPALS)}


@pytest.fixture(scope="module")
def children() -> Iterator[dict[str, Children]]:
    """The children of two workers; they serve all tests of this file."""
    with (
        Children(Settings("bob", memory=2**30)) as bob,
        Children(Settings("alice", memory=2**30)) as alice,
    ):
        bob.ready()
        alice.ready()
        yield {"bob": bob, "alice": alice}


class Hub:
    """A relay that knows everybody and runs nothing itself."""

    def __init__(self, folder: Path, people: dict[str, Identity]) -> None:
        self.people = people
        self.folder = folder
        self.peers = PeerBook(folder / "peers")
        for name, identity in people.items():
            self.peers.add(name, identity.certificate)
        self.ids = {name: identity.id for name, identity in people.items()}
        self.connected: list[GrpcTransport] = []

        def who(context: grpc.ServicerContext) -> str:
            return principal(context, self.peers).id

        self.who = who
        self.relay = Relay(
            lambda id: id in self.ids.values(),
            lambda id: self.peers.find(id).name,
            may_attach=lambda id: id in {self.ids[owner] for owner in OWNERS},
            may_connect=lambda id: True,
        )
        self.server = self.serve("hub", listen="127.0.0.1:0")
        self.server.start()

    def serve(
        self,
        name: str,
        listen: str | None = None,
        node: Node | None = None,
        path: Path | None = None,
    ) -> Server:
        """Return somebody's server; the hub's relays."""
        if node is None:
            node = Node(
                name,
                self.ids[name],
                lambda sender: Starting(_none),
                Ways(lambda to: None),
                may_open=lambda sender: False,
                may_deliver=lambda sender: False,
            )
        return Server(
            node,
            listen,
            server_credentials(self.people[name], self.peers),
            self.caller,
            lambda sender: b"",
            socket=path,
            more=self.relay.methods(self.who) if name == "hub" else {},
        )

    def caller(self, context: grpc.ServicerContext) -> Callable[[], str]:
        """Return what tells who a call is from."""
        who = caller(context, self.peers)
        return lambda: who().id

    def peer(self, name: str) -> Peer:
        """Return somebody as others have pinned them."""
        return Peer(name, self.ids[name], self.people[name].certificate)

    def way(self, who: str, to: str) -> TunnelTransport:
        """Return somebody's own way to a worker."""
        credentials, options = channel_credentials(self.people[who], self.peer(to))
        address, relay = self.server.address, self.peer("hub")
        dial = Dialler(address, self.people[who], relay, self.ids[to])
        transport = TunnelTransport(
            Tunnel(dial, address),
            credentials,
            options,
            worker=to,
            address=self.ids[to],
            reconnect_seconds=0.5,
        )
        self.connected.append(transport)
        return transport

    def close(self) -> None:
        """Stop all."""
        for transport in self.connected:
            transport.close()
        self.relay.close()
        self.server.stop(grace=0)


def _none(session: str, memory: int | None) -> Children:
    raise TransportError("the hub runs nothing")


class AttachedHost:
    """A worker that has no port, and is attached to the hub."""

    def __init__(self, name: str, hub: Hub, children: Children) -> None:
        self.name = name
        self.hub = hub
        self.ways = Ways(self._way)
        arrived = threading.Event()
        path = hub.folder / f"{name}.socket"
        self.server = hub.serve(
            name,
            node=Node(
                name,
                hub.ids[name],
                lambda sender: Starting(children.start),
                self.ways,
                may_open=lambda sender: sender in {hub.ids[p] for p in PRINCIPALS},
                may_deliver=lambda sender: sender in hub.ids.values(),
            ),
            path=path,
        )
        self.server.start()
        self.attachment = Attachment(
            hub.server.address,
            hub.people[name],
            lambda: hub.peer("hub"),
            path,
            attached=arrived.set,
        )
        self.attachment.start()
        assert arrived.wait(SECONDS)

    def _way(self, to: str) -> GrpcTransport | None:
        names = {id: name for name, id in self.hub.ids.items()}
        return self.hub.way(self.name, names[to]) if to in names else None

    def connect(self, principal: str) -> GrpcTransport:
        """Return a new way to the worker for a client of that name."""
        return self.hub.way(principal, self.name)

    def close(self) -> None:
        """Stop serving."""
        self.server.stop(grace=0)
        self.attachment.close()
        self.ways.close()


@pytest.fixture
def hub(tmp_path: Path, people: dict[str, Identity]) -> Iterator[Hub]:
    """A relay."""
    hub = Hub(tmp_path, people)
    yield hub
    hub.close()


class TestConformance(TransportConformance):
    """What holds for every way to a worker holds through a relay."""

    @pytest.fixture(autouse=True)
    def _hub(self, hub: Hub, children: dict[str, Children]) -> None:
        self.hub = hub
        self.children = children

    def host(self, id: str) -> Host:
        """Return a new worker that is attached."""
        return AttachedHost(id, self.hub, self.children[id])


# --- what only this way does ------------------------------------------------------


@pytest.fixture
def bob(hub: Hub, children: dict[str, Children]) -> Iterator[AttachedHost]:
    """A worker that is attached."""
    host = AttachedHost("bob", hub, children["bob"])
    yield host
    host.close()


def test_who_is_not_attached_is_named(hub: Hub) -> None:
    """The error says who was wanted, through whom, and that it may come."""
    with pytest.raises(TransportError) as caught:
        hub.way("me", "alice").submit(Batch("s", 1, (Count(),))).result()
    assert str(caught.value).startswith(f"alice through {hub.server.address}: ")
    assert "not attached here at present" in str(caught.value)


def test_what_the_relay_denies_is_not_tried_again(
    tmp_path: Path, people: dict[str, Identity]
) -> None:
    """Who may not connect through a relay hears so at once, as of a worker."""
    hub = Hub(tmp_path, people)
    hub.relay._may_connect = lambda id: False
    try:
        way = hub.way("you", "bob")
        with pytest.raises(AccessDeniedError, match=r"bob through .*nothing for you"):
            way.submit(Batch("s", 1, (Count(),))).result()
        assert way.given_up
    finally:
        hub.close()


def test_a_tunnel_is_this_users_and_goes(hub: Hub) -> None:
    """Its socket is in a folder that nobody else can enter, and that is removed."""
    way = hub.way("me", "bob")
    folder = Path(way._tunnel.target.removeprefix("unix:")).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert folder.stat().st_uid == os.geteuid()
    way.close()
    assert not folder.exists()


def test_a_long_name_of_the_temporary_folder_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a socket's path would be too long for the system, another is taken."""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    folder = private_folder()
    try:
        assert not list(long.iterdir())
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(folder / "s"))
        (folder / "s").unlink()
    finally:
        folder.rmdir()


class Still:
    """A relayed connection through which nothing comes, until it is ended."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.ended = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        assert self.ended.wait(SECONDS)
        return iter(())

    def cancel(self) -> None:
        """End it."""
        self.ended.set()


def test_what_nobody_takes_is_not_read() -> None:
    """A sender whose relay does not take bytes is stopped by its own socket."""
    made: list[Still] = []

    def dial(source: Source) -> Carried:
        made.append(Still(source))
        return made[0]

    near, here = socket.socketpair()
    splice = Splice(here, dial)
    thread = threading.Thread(target=splice.run)
    thread.start()
    sent = 0
    near.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while sent < 1 << 26:
            sent += near.send(bytes(1 << 16))
    splice.end()
    thread.join(SECONDS)
    assert not thread.is_alive()
    splice.close()
    near.close()
    assert sent < 1 << 23


def test_a_splice_that_was_ended_before_it_ran_opens_nothing() -> None:
    """Nobody dials for a connection that is over."""
    near, here = socket.socketpair()
    splice = Splice(here, Still)
    splice.end()
    splice.run()
    splice.close()
    assert near.recv(1) == b""
    near.close()


def test_closing_a_tunnel_does_not_wait_for_a_dead_path() -> None:
    """Connections through which nothing comes end with it, at once."""
    made: list[Still] = []
    dialled = threading.Event()

    def dial(source: Source) -> Carried:
        made.append(Still(source))
        dialled.set()
        return made[-1]

    tunnel = Tunnel(dial, "nowhere")
    near = socket.socket(socket.AF_UNIX)
    near.connect(tunnel.target.removeprefix("unix:"))
    assert dialled.wait(SECONDS)
    tunnel.close()
    assert made[0].ended.is_set()
    assert near.recv(1) == b""
    near.close()


# --- what a relay and an end can do to each other ---------------------------------


@pytest.fixture
def silent(hub: Hub) -> Iterator[socket.socket]:
    """Where a worker takes connections; it says nothing and reads nothing."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(hub.folder / "silent"))
        listener.listen(64)
        listener.settimeout(SECONDS)
        yield listener


def attach(
    hub: Hub, log: queue.SimpleQueue[str], *, arrived: threading.Event | None = None
) -> Attachment:
    """Begin to attach bob, whose server is ``silent``."""
    attachment = Attachment(
        hub.server.address,
        hub.people["bob"],
        lambda: hub.peer("hub"),
        hub.folder / "silent",
        attached=arrived.set if arrived is not None else lambda: None,
        log=log.put,
    )
    attachment.start()
    return attachment


def test_a_slow_side_holds_the_other_up(hub: Hub, silent: socket.socket) -> None:
    """Who sends to a worker that does not read is stopped after some megabytes.

    They are in the windows of both connections; the relay does not gather more.
    """
    arrived = threading.Event()
    attachment = attach(hub, queue.SimpleQueue(), arrived=arrived)
    assert arrived.wait(SECONDS)
    address = hub.server.address
    dial = Dialler(address, hub.people["me"], hub.peer("hub"), hub.ids["bob"])
    tunnel = Tunnel(dial, address)
    with socket.socket(socket.AF_UNIX) as near:
        near.connect(tunnel.target.removeprefix("unix:"))
        far, _ = silent.accept()
        near.settimeout(3.0)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 1 << 28:
                sent += near.send(bytes(1 << 16))
        assert sent < 1 << 26
        # It was held up, and not lost: all of it comes when it is read.
        far.settimeout(SECONDS)
        left = sent
        while left:
            left -= len(far.recv(min(left, 1 << 20)))
    tunnel.close()
    attachment.close()
    far.close()


def test_a_relay_can_not_flood_a_worker(
    hub: Hub, silent: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may call as often as it likes: only so many connections are taken."""
    monkeypatch.setattr(attachments, "CONNECTIONS", 3)
    over = threading.Event()

    def flood(worker: str) -> Iterator[bytes]:
        yield relay_messages.encode(Attached("bob"))
        for k in range(10):
            yield relay_messages.encode(Called(str(k)))
        over.wait(SECONDS)

    def hold(*_: object) -> Iterator[bytes]:
        over.wait(SECONDS)
        yield b""

    monkeypatch.setattr(hub.relay, "attach", lambda who, _: Evil(flood(who)))
    monkeypatch.setattr(hub.relay, "accept", lambda *_: Evil(hold()))
    log: queue.SimpleQueue[str] = queue.SimpleQueue()
    attachment = attach(hub, log)
    assert "attached to" in log.get(timeout=SECONDS)
    for _ in range(7):
        assert "at most 3 connections are taken" in log.get(timeout=SECONDS)
    for _ in range(3):
        silent.accept()[0].close()
    silent.setblocking(False)
    with pytest.raises(BlockingIOError):
        silent.accept()
    over.set()
    attachment.close()


class Evil:
    """What a relay says that does not keep to the rules."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def cancel(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize(
    "notices",
    [
        [relay_messages.encode(Called("0"))],
        [relay_messages.encode(Attached("bob"))] * 2,
        [b"nonsense"],
    ],
)
def test_a_relay_that_breaks_the_protocol_is_left(
    hub: Hub,
    silent: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    notices: list[bytes],
) -> None:
    """The log says so, no connection is taken, and the worker tries again later."""
    monkeypatch.setattr(hub.relay, "attach", lambda *_: Evil(iter(notices)))
    log: queue.SimpleQueue[str] = queue.SimpleQueue()
    attachment = attach(hub, log)
    lines = [log.get(timeout=SECONDS)]
    while "will try again" not in lines[-1]:
        lines.append(log.get(timeout=SECONDS))
    assert "notice" in lines[-1]
    attachment.close()
    silent.setblocking(False)
    with pytest.raises(BlockingIOError):
        silent.accept()


def test_a_relay_that_is_not_pinned_is_not_dialled(hub: Hub) -> None:
    """Without its certificate the worker says what is missing, and waits for it."""

    def unknown() -> Peer:
        raise PeerNotFoundError("hub", ())

    log: queue.SimpleQueue[str] = queue.SimpleQueue()
    attachment = Attachment(
        hub.server.address, hub.people["bob"], unknown, hub.folder / "s", log=log.put
    )
    attachment.start()
    line = log.get(timeout=SECONDS)
    assert line.startswith(f"can not be attached to {hub.server.address}, will try")
    assert "hub" in line
    attachment.close()
