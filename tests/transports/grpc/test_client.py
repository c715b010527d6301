"""The client's transport in front of a node whose sessions are real children."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import torch

from obhut.errors import AccessDeniedError, TransportError
from obhut.identity.identity import Identity
from obhut.identity.peers import Peer, PeerBook
from obhut.protocol.messages import Batch, Count, Fetch, Ref, Refused, Results
from obhut.testing.cables import Cable
from obhut.testing.transports import Client, Host, TransportConformance, run
from obhut.transports.grpc.client import GrpcTransport
from obhut.transports.grpc.credentials import (
    caller,
    channel_credentials,
    server_credentials,
)
from obhut.transports.grpc.node import Node
from obhut.transports.grpc.server import Server
from obhut.transports.grpc.sessions import Starting
from obhut.transports.grpc.ways import Ways
from obhut.transports.pipe.children import Children
from obhut.transports.pipe.control import Settings

from .conftest import World

PRINCIPALS = ("me", "you", "mallory", "one", "two")


@pytest.fixture(scope="module")
def people() -> dict[str, Identity]:
    """Who there is, by name."""
    return {name: Identity.create() for name in ("bob", "alice", *PRINCIPALS)}


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


class Hosts:
    """Workers that know each other, and where each is."""

    def __init__(self, folder: Path, people: dict[str, Identity]) -> None:
        self.people = people
        self.peers = PeerBook(folder)
        self.hosts: dict[str, GrpcHost] = {}
        for name, identity in people.items():
            self.peers.add(name, identity.certificate)

    def way(self, who: str, to: str) -> GrpcTransport:
        """Return somebody's own way to a worker."""
        identity = self.people[to]
        credentials, options = channel_credentials(
            self.people[who], Peer(to, identity.id, identity.certificate)
        )
        return GrpcTransport(
            self.hosts[to].server.address,
            credentials,
            options,
            worker=to,
            address=identity.id,
            reconnect_seconds=0.5,
        )


class GrpcHost:
    """A worker behind a gRPC server."""

    def __init__(self, name: str, network: Hosts, children: Children) -> None:
        self.name = name
        self.network = network
        self.ways = Ways(self.way)
        self.connected: list[GrpcTransport] = []
        people = network.people
        self.node = Node(
            name,
            self.id,
            lambda sender: Starting(children.start),
            self.ways,
            may_open=lambda sender: sender in {people[p].id for p in PRINCIPALS},
            may_deliver=lambda sender: sender in {people[p].id for p in people},
        )
        self.server = Server(
            self.node,
            "127.0.0.1:0",
            server_credentials(people[name], network.peers),
            self.caller,
            lambda sender: b"",
        )
        network.hosts[name] = self
        self.server.start()

    def caller(self, context: grpc.ServicerContext) -> Callable[[], str]:
        """Return what tells who a call is from."""
        who = caller(context, self.network.peers)
        return lambda: who().id

    def way(self, to: str) -> GrpcTransport | None:
        """Return a new way of this worker to another, or to itself."""
        known = {host.id: name for name, host in self.network.hosts.items()}
        if to not in known:
            return None
        return self.network.way(self.name, known[to])

    @property
    def id(self) -> str:
        """The worker's id."""
        return self.network.people[self.name].id

    def connect(self, principal: str) -> GrpcTransport:
        """Return a new way to the worker for a client of that name."""
        transport = self.network.way(principal, self.name)
        self.connected.append(transport)
        return transport

    def close(self) -> None:
        """Stop serving."""
        self.server.stop(grace=0)
        self.ways.close()


class TestConformance(TransportConformance):
    """What holds for every way to a worker holds over gRPC."""

    @pytest.fixture(autouse=True)
    def _network(
        self,
        tmp_path: Path,
        people: dict[str, Identity],
        children: dict[str, Children],
    ) -> Iterator[None]:
        self.network = Hosts(tmp_path / "peers", people)
        self.children = children
        yield
        for host in self.network.hosts.values():
            for transport in host.connected:
                transport.close()

    def host(self, id: str) -> Host:
        """Return a new server in front of that worker's children."""
        return GrpcHost(id, self.network, self.children[id])


# --- what only this transport does ------------------------------------------------


@pytest.fixture
def transports(world: World) -> Iterator[Callable[..., GrpcTransport]]:
    """Ways to a worker, which are given up at the end of the test."""
    made: list[GrpcTransport] = []

    def make(who: str, to: str, address: str = "", **more: float) -> GrpcTransport:
        made.append(world.transport(who, to, address, **more))
        return made[-1]

    yield make
    for transport in made:
        transport.close()


def test_what_was_not_answered_is_sent_again(
    transports: Callable[..., GrpcTransport],
    world: World,
    cabled: Callable[[str], Cable],
) -> None:
    """Cut while many messages are under way: each is applied once, in order."""
    cable = cabled(world.address("bob"))
    client = Client(transports("me", "bob", cable.address), "sent-again")
    client.open()
    client.hold(1, torch.zeros(1))
    for _ in range(10):
        pending = [
            client.begin(run("aten.add_.Tensor", Ref(1), 1, grad=False), Count())
            for _ in range(30)
        ]
        cable.cut_next()
        replies = [one.result(timeout=20).message for one in pending]
        assert all(isinstance(reply, Results) for reply in replies)
    assert client.value(1).item() == 300
    assert cable.cut_by_hand == 10


def test_half_a_message_is_nothing(
    transports: Callable[..., GrpcTransport],
    world: World,
    cabled: Callable[[str], Cable],
) -> None:
    """A tensor whose transfer was cut in the middle arrives whole, and once."""
    cable = cabled(world.address("bob"))
    client = Client(transports("me", "bob", cable.address), "half")
    client.open()
    tensor = torch.arange(4_000_000.0)
    client.hold(1, torch.zeros(1))
    cable.cut_next()
    client.hold(2, tensor)
    cable.cut_next()
    assert torch.equal(client.value(2), tensor)


def test_nobody_at_the_address_is_said_after_a_time(
    transports: Callable[..., GrpcTransport],
) -> None:
    """A message that can not be delivered is given up, and the next is tried again."""
    transport = transports("me", "bob", "127.0.0.1:1", reconnect_seconds=0.1)
    for _ in range(2):
        pending = transport.submit(Batch("s", 1, ()))
        with pytest.raises(TransportError, match=r"bob at 127\.0\.0\.1:1"):
            pending.result(timeout=15)
        assert pending.done()


def test_a_reply_that_does_not_come_in_time_may_still_come(
    transports: Callable[..., GrpcTransport],
) -> None:
    """Waiting has a limit; the reply is there when it is waited for again."""
    client = Client(transports("me", "bob"), "late")
    client.open()
    big = [3_000, 3_000]
    pending = client.begin(
        run("aten.rand.default", big, out=1),
        run("aten.mm.default", Ref(1), Ref(1), out=2),
    )
    with pytest.raises(TimeoutError, match="may still come"):
        pending.result(timeout=0.001)
    assert isinstance(pending.result(timeout=15).message, Results)


def test_a_closed_way_is_refused(
    transports: Callable[..., GrpcTransport],
) -> None:
    """What is under way when it is closed fails, and so does what comes later."""
    client = Client(transports("me", "bob"), "closing")
    client.open()
    big = [3_000, 3_000]
    pending = client.begin(
        run("aten.rand.default", big, out=1),
        run("aten.mm.default", Ref(1), Ref(1), out=2),
    )
    client.transport.close()
    with pytest.raises(TransportError):
        pending.result(timeout=15)
    with pytest.raises(TransportError, match="closed"):
        client.transport.submit(Batch("closing", 9, ()))


def test_what_a_retry_can_not_mend_is_not_tried_again(
    transports: Callable[..., GrpcTransport], world: World
) -> None:
    """A worker that does not take this client says so at once, each time."""
    book = world.peers("bob")
    transport = transports("me", "bob")
    reply = transport.submit(Batch("s", 1, ())).result(timeout=15).message
    assert isinstance(reply, Refused)
    book.remove("me")
    try:
        pending = transport.submit(Batch("s", 1, ()))
        with pytest.raises(AccessDeniedError):
            pending.result(timeout=15)
        with pytest.raises(AccessDeniedError):
            transport.submit(Batch("s", 1, ()))
    finally:
        book.add("me", world.identities["me"].certificate)


def test_replies_that_are_kept_do_not_change(
    transports: Callable[..., GrpcTransport],
) -> None:
    """The bytes of a reply are its reader's, whatever comes after it."""
    client = Client(transports("me", "bob"), "kept")
    client.open()
    for k in range(20):
        client.hold(k + 1, torch.full((1_000,), float(k)))
    kept = [client.begin(Fetch(k + 1)) for k in range(20)]
    frames = [one.result(timeout=15).frames for one in kept]
    for k, (frame,) in enumerate(frames):
        values = torch.frombuffer(bytearray(frame), dtype=torch.float32)
        assert torch.equal(values, torch.full((1_000,), float(k)))
