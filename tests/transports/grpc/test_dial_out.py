"""Owners who open no port, and are used through the aggregator that they attach to."""

from __future__ import annotations

import copy
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import grpc
import pytest
import torch
from torch import nn

import obhut
from obhut.client import network
from obhut.client.network import Network
from obhut.client.remote_tensor import RemoteTensor
from obhut.client.workers import RemoteWorker
from obhut.errors import (
    AccessDeniedError,
    ObhutError,
    TransportError,
    WorkerNotFoundError,
)
from obhut.testing.cables import Cable
from obhut.transports.grpc.client import CHANNEL_OPTIONS
from obhut.transports.grpc.credentials import channel_credentials
from obhut.transports.relay.messages import (
    ACCEPT,
    ATTACH,
    CONNECT,
    NUMBER_KEY,
    WORKER_KEY,
    Carried,
)
from obhut.transports.relay.relay import CONNECTIONS_EACH

from .conftest import DATA, ROWS
from .dialling import PATIENCE, RELAY, Region, within


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    """An aggregator, and two owners who dial out to it."""
    region = Region(tmp_path_factory.mktemp("region"))
    lines = "".join(f"{k},{k * 0.5},{k % 2}\n" for k in range(ROWS))
    (region.root / "bob" / "data.csv").write_text("a,b,y\n" + lines)
    try:
        region.relay()
        region.dial("bob", more=DATA)
        region.dial("alice")
        yield region
    finally:
        region.close()


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Region]:
    """People of whom a test starts whom it needs."""
    region = Region(tmp_path)
    yield region
    region.close()


@pytest.fixture
def net(region: Region) -> Iterator[Network]:
    """What ``me`` is connected to, by the aggregator's address alone."""
    with region.enter() as net:
        yield net


def train(
    x: torch.Tensor, y: torch.Tensor, model: nn.Module, each: Callable[[], object]
) -> list[float]:
    """Train for 30 steps; return the losses that were asked for."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    losses = []
    for step in range(30):
        optimizer.zero_grad()
        loss = ((model(x).squeeze(1) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
        if step % 3 == 0:
            losses.append(loss.item())
        each()
    return losses


class Training:
    """A training, and what it comes to in this process."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.x, self.y = torch.randn(64, 10), torch.randn(64)
        self.start = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 1))
        self.model = copy.deepcopy(self.start)
        self.losses = train(self.x, self.y, self.model, lambda: None)

    def is_the_same_at(
        self, worker: RemoteWorker, each: Callable[[], object] = lambda: None
    ) -> None:
        """Train there; losses and weights must be those of here, bit for bit."""
        model = copy.deepcopy(self.start)
        obhut.send(model, worker)
        x, y = obhut.send(self.x, worker), obhut.send(self.y, worker)
        assert train(x, y, model, each) == self.losses
        obhut.get(model)
        assert all(map(torch.equal, model.parameters(), self.model.parameters()))


# --- what it is for ---------------------------------------------------------------


def test_the_aggregators_address_finds_who_is_attached(net: Network) -> None:
    """They have their pinned names, say how they are reached, and show their data."""
    assert set(net.workers) == {RELAY, "bob", "alice"}
    bob = net["bob"]
    assert "through 127.0.0.1:" in repr(bob)
    x, y = bob["d"], bob["d", "target"]
    assert isinstance(x, RemoteTensor)
    assert (tuple(x.shape), tuple(y.shape)) == ((ROWS, 2), (ROWS,))
    assert y.sum().item() == ROWS // 2
    assert {tuple(one.shape) for one in bob.search("#d")} == {(ROWS, 2), (ROWS,)}
    with pytest.raises(WorkerNotFoundError):
        net["carol"]


def test_training_through_a_relay_is_training_here(net: Network) -> None:
    """Losses and weights are those of the same training in this process, to the bit."""
    Training().is_the_same_at(net["bob"])


def listening() -> set[str]:
    """Return the TCP ports at which this process listens."""
    sockets = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
               if os.path.islink(f"/proc/self/fd/{fd}")}  # fmt: skip
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                ports.add(fields[1])
    return ports


def test_who_dials_out_opens_no_port(alone: Region) -> None:
    """``attach`` without ``listen`` listens at no address that a network reaches."""
    alone.relay()
    before = listening()
    assert before
    bob = alone.dial("bob")
    assert listening() <= before
    assert bob.address == ""
    with alone.enter() as net:
        assert obhut.send(torch.ones(1), net["bob"]).item() == 1.0


@pytest.mark.parametrize(
    ("first", "then"),
    [("bob", RELAY), (RELAY, "bob"), ("alice", "bob"), ("bob", "alice")],
)
def test_tensors_move_in_all_directions(net: Network, first: str, then: str) -> None:
    """Between owners who dial out, and between them and the aggregator, both ways."""
    tensor = torch.randn(300_000)
    held = obhut.send(tensor, net[first])
    moved = obhut.move(held, net[then])
    assert torch.equal(moved.get(), tensor)
    assert net[first].objects_count() == 0


def test_owners_average_at_the_aggregator(net: Network) -> None:
    """The models of two who dial out become one at the aggregator."""
    models = [nn.Linear(3, 2) for _ in range(2)]
    expected = sum(model.weight.detach() for model in models) / 2
    for model, name in zip(models, ("bob", "alice"), strict=True):
        obhut.send(model, net[name])
        obhut.move(model, net[RELAY])
    mean = (models[0].weight.data + models[1].weight.data) / 2
    assert torch.equal(mean.get(), expected)


def test_a_worker_can_listen_and_dial(alone: Region) -> None:
    """With both keys it is reached either way, and ``connect`` takes the direct one."""
    alone.relay()
    bob = alone.dial("bob", listen="127.0.0.1:0")
    addresses = (bob.address, alone.address(RELAY))
    with network.connect(*addresses, folder=alone.root / "me") as net:
        assert f"at {bob.address}" in repr(net["bob"])
    way = alone.through("me", "bob")
    worker = RemoteWorker(way)
    assert obhut.send(torch.ones(1), worker).item() == 1.0
    worker.close()


# --- what breaks ------------------------------------------------------------------


def test_cuts_between_client_and_relay_change_nothing(
    region: Region, cabled: Callable[[str], Cable]
) -> None:
    """Thirty cuts in one training: weights are those of here, bit for bit."""
    cable = cabled(region.address(RELAY))
    bob = RemoteWorker(region.through("me", "bob", cable.address))
    Training().is_the_same_at(bob, cable.cut_next)
    assert cable.cut_by_hand == 30
    bob.close()


@pytest.mark.slow
def test_cuts_between_relay_and_worker_change_nothing(
    alone: Region, cabled: Callable[[str], Cable]
) -> None:
    """Each time the worker attaches again, and the training goes on where it was."""
    alone.relay()
    cable = cabled(alone.address(RELAY))
    alone.dial("bob", cable.address)
    steps = 0

    def each() -> None:
        nonlocal steps
        steps += 1
        if steps % 6 == 0:
            cable.cut_next()
            alone.attached("bob")

    with alone.enter() as net:
        Training().is_the_same_at(net["bob"], each)
    assert cable.cut_by_hand == 5


@pytest.mark.slow
def test_a_delivery_that_is_cut_arrives_once(
    alone: Region, cabled: Callable[[str], Cable]
) -> None:
    """From owner to owner, with the path of the one who delivers cut each time."""
    alone.relay()
    cable = cabled(alone.address(RELAY))
    alone.dial("bob")
    alone.dial("alice", cable.address)
    with alone.enter() as net:
        for k in range(5):
            tensor = torch.full((300_000,), float(k))
            moved = obhut.move(obhut.send(tensor, net["alice"]), net["bob"])
            cable.cut_next()
            assert torch.equal(moved.get(), tensor)
            alone.attached("alice")
        assert net["alice"].objects_count() == 0


@pytest.mark.slow
def test_an_aggregator_that_starts_again_is_found_again(alone: Region) -> None:
    """Both owners attach by themselves; their sessions and the training go on."""
    address = alone.relay().address
    alone.dial("bob")
    alone.dial("alice")
    training = Training()
    with alone.enter() as net:
        kept = obhut.send(torch.arange(3.0), net["alice"])
        training.is_the_same_at(net["bob"])
        alone.served[RELAY].close(grace=0)
        alone.relay(listen=address)
        alone.attached("bob")
        alone.attached("alice")
        training.is_the_same_at(net["bob"])
        assert kept.tolist() == [0.0, 1.0, 2.0]
        with alone.enter() as again:
            moved = obhut.move(kept, again[RELAY])
            assert moved.tolist() == [0.0, 1.0, 2.0]


def test_a_worker_may_come_before_its_aggregator(alone: Region) -> None:
    """It tries until there is one."""
    with socket.socket() as holder:
        # Two sockets that both say so may have one port, while one does not listen.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        alone.dial("bob", address, wait=False)
        alone.relay(listen=address)
        alone.attached("bob")
        with alone.enter() as net:
            assert obhut.send(torch.ones(1), net["bob"]).item() == 1.0


def test_a_worker_that_starts_again_takes_its_place(alone: Region) -> None:
    """Its old sessions are lost, with words, and new ones are opened."""
    alone.relay()
    alone.dial("bob")
    with alone.enter() as net:
        x = obhut.send(torch.ones(1), net["bob"])
        assert x.item() == 1.0
        alone.served["bob"].close(grace=0)
        alone.dial("bob")
        with pytest.raises(TransportError, match="bob"):
            x.item()
    with alone.enter() as net:
        assert obhut.send(torch.ones(1), net["bob"]).item() == 1.0


class Awaited(logging.Handler):
    """Sets an event when a line with certain words is logged."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words = words
        self.seen = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """Look at a line."""
        if self.words in record.getMessage():
            self.seen.set()


@pytest.mark.slow
def test_a_dead_path_is_noticed(alone: Region) -> None:
    """A network that swallows all is given up in 30 seconds or little more."""
    alone.relay()
    log = logging.getLogger("obhut.worker")
    log.setLevel(logging.INFO)
    lost = Awaited("is no longer attached to")
    log.addHandler(lost)
    try:
        with Cable(alone.address(RELAY)) as cable:
            alone.dial("bob", cable.address)
            cable.swallow()
            assert lost.seen.wait(40)
            cable.pass_on()
            alone.attached("bob")
            with alone.enter() as net:
                assert obhut.send(torch.ones(1), net["bob"]).item() == 1.0
            alone.served.pop("bob").close(grace=0)
    finally:
        log.removeHandler(lost)


# --- attacks ----------------------------------------------------------------------


def test_who_is_not_named_does_not_attach(region: Region) -> None:
    """A peer who may open sessions there is refused by name."""
    for who in ("me", "mallory"):
        credentials, options = channel_credentials(
            region.identities[who], region.peer(RELAY)
        )
        with grpc.secure_channel(
            region.address(RELAY), credentials, (*CHANNEL_OPTIONS, *options)
        ) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                next(channel.unary_stream(ATTACH)(b"", timeout=PATIENCE))
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_a_worker_that_attaches_again_and_again_holds_two_calls(
    alone: Region,
) -> None:
    """Whatever became of the earlier ones: others are served meanwhile."""
    alone.relay()
    credentials, options = channel_credentials(
        alone.identities["bob"], alone.peer(RELAY)
    )
    with grpc.secure_channel(
        alone.address(RELAY), credentials, (*CHANNEL_OPTIONS, *options)
    ) as channel:
        silence = threading.Event()

        def nothing() -> Iterator[bytes]:
            silence.wait(PATIENCE)
            yield from ()

        attach = channel.stream_stream(ATTACH)
        calls = [attach(nothing()) for _ in range(300)]
        with alone.enter() as net:
            assert obhut.send(torch.ones(1), net[RELAY]).item() == 1.0
        with ThreadPoolExecutor(300) as threads:
            reading = [threads.submit(list, call) for call in calls]
            ended = as_completed(reading, PATIENCE)
            for _ in range(298):
                assert isinstance(next(ended).exception(), grpc.RpcError)
            silence.set()
            for call in calls:
                call.cancel()


def test_nobody_attaches_as_another(alone: Region) -> None:
    """Whatever mallory says, she is mallory: who wants bob does not reach her."""
    alone.relay(attach=["mallory", "bob"])
    credentials, options = channel_credentials(
        alone.identities["mallory"], alone.peer(RELAY)
    )
    claims = [(WORKER_KEY, alone.id("bob")), ("obhut-id", alone.id("bob"))]
    with grpc.secure_channel(
        alone.address(RELAY), credentials, (*CHANNEL_OPTIONS, *options)
    ) as channel:
        call = channel.unary_stream(ATTACH)(b"bob", metadata=claims)
        assert b'"mallory"' in next(call)
        assert alone.served[RELAY].relay.attached(alone.id("me")) == (
            alone.id("mallory"),
        )
        way = alone.through("me", "bob", reconnect_seconds=0.0)
        with pytest.raises(TransportError, match="not attached"):
            obhut.send(torch.ones(1), RemoteWorker(way)).item()
        way.close()
        call.cancel()


def test_a_stranger_accepts_nothing(region: Region) -> None:
    """Who makes up a number is refused in the same way, attached or not."""
    for who in ("mallory", "alice"):
        credentials, options = channel_credentials(
            region.identities[who], region.peer(RELAY)
        )
        with grpc.secure_channel(
            region.address(RELAY), credentials, (*CHANNEL_OPTIONS, *options)
        ) as channel:
            method = channel.stream_stream(ACCEPT)
            for number in ("0" * 32, "", "%"):
                with pytest.raises(grpc.RpcError) as caught:
                    next(method(iter(()), metadata=[(NUMBER_KEY, number)]))
                assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_a_relay_that_leads_elsewhere_is_found_out(
    region: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own operator can hand bob's callers to alice; they end in the inner TLS."""
    monkeypatch.setattr(network, "ASK_SECONDS", 2.0)
    relay, alice = region.served[RELAY].relay, region.served["alice"]
    honest = relay.connect

    def misled(sender: str, worker: str, *more: object) -> Carried:
        return honest(sender, region.id("alice"), *more)  # type: ignore[arg-type]

    monkeypatch.setattr(relay, "connect", misled)
    with region.enter() as net:
        assert "bob" not in net
        with pytest.raises(ObhutError, match="bob through"):
            net["bob"]
        assert obhut.send(torch.ones(1), net["alice"]).item() == 1.0
        assert alice.node.busy() == 1
        way = RemoteWorker(region.through("me", "bob", reconnect_seconds=1.0))
        with pytest.raises(TransportError):
            obhut.send(torch.ones(1), way).item()
        way.close()
    assert alice.node.busy() == 0


class Tap:
    """What passes through a relay, seen and perhaps changed."""

    def __init__(self, region: Region, change: Callable[[bytes], bytes]) -> None:
        self.relay = region.served[RELAY].relay
        self.honest = self.relay._carried
        self.change = change
        self.seen: list[bytes] = []

    def __call__(self, link: object, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Carry what one side sends."""
        for chunk in self.honest(link, chunks):  # type: ignore[arg-type]
            self.seen.append(chunk)
            yield self.change(chunk)


def test_the_relay_sees_no_value(
    region: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Megabytes of a tensor go through it both ways; no eight bytes of it are seen."""
    tap = Tap(region, lambda chunk: chunk)
    monkeypatch.setattr(tap.relay, "_carried", tap)
    canary = torch.randn(250_000, dtype=torch.float64)
    with region.enter() as net:
        assert torch.equal(obhut.send(canary, net["bob"]).get(), canary)
    seen = b"".join(tap.seen)
    raw = canary.numpy().tobytes()
    assert len(seen) > 2 * len(raw)
    samples = [raw[k : k + 8] for k in range(0, len(raw), 8_000)]
    assert not any(sample in seen for sample in samples)
    assert b"obhut.Worker" not in seen  # nor which method is called


def test_a_relay_that_flips_bits_changes_nothing(
    region: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS breaks where a bit was flipped; what was lost is sent again, and no more."""
    count = flipped = 0

    def flip(chunk: bytes) -> bytes:
        nonlocal count, flipped
        count += 1
        if count % 17 or not chunk:  # ten losses are twenty pieces, however few
            return chunk
        flipped += 1
        return chunk[:-1] + bytes([chunk[-1] ^ 1])

    way = RemoteWorker(region.through("me", "bob"))
    tap = Tap(region, flip)
    monkeypatch.setattr(tap.relay, "_carried", tap)
    Training().is_the_same_at(way)
    monkeypatch.undo()
    way.close()
    assert flipped


def test_one_client_can_not_take_the_relay_from_others(region: Region) -> None:
    """All the places that ``you`` may have are taken, in silence; ``me`` is served."""
    credentials, options = channel_credentials(
        region.identities["you"], region.peer(RELAY)
    )
    release = threading.Event()

    def silence() -> Iterator[bytes]:
        release.wait(PATIENCE)
        yield from ()

    with grpc.secure_channel(
        region.address(RELAY), credentials, (*CHANNEL_OPTIONS, *options)
    ) as channel:
        method = channel.stream_stream(CONNECT)
        metadata = [(WORKER_KEY, region.id("bob"))]
        refused = threading.Event()
        calls = []
        for _ in range(CONNECTIONS_EACH + 1):
            calls.append(method(silence(), metadata=metadata))
            calls[-1].add_callback(refused.set)
        within(refused)  # one of them was too many
        codes = [call.code() for call in calls if not call.is_active()]
        assert codes == [grpc.StatusCode.RESOURCE_EXHAUSTED]
        with region.enter() as net:
            assert obhut.send(torch.ones(1), net["bob"]).item() == 1.0
        assert sum(call.is_active() for call in calls) == CONNECTIONS_EACH
        for call in calls:
            call.cancel()
        release.set()


def test_who_is_no_peer_of_the_worker_gets_nothing(
    region: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the relay lets somebody through is no leave to enter; the reason is kept."""
    monkeypatch.setattr(network, "ASK_SECONDS", 1.0)
    region.peers("bob").remove("you")
    try:
        with region.enter("you") as net:
            assert set(net.workers) == {RELAY, "alice"}
            with pytest.raises(TransportError, match="bob through"):
                net["bob"]
        with region.enter("me") as net:
            assert "bob" in net
    finally:
        region.peers("bob").add("you", region.identities["you"].certificate)


def test_a_peer_who_is_removed_loses_the_relay(region: Region) -> None:
    """Bob, no longer the aggregator's peer, can't be reached through it any more."""
    with region.enter() as net:
        x = obhut.send(torch.ones(1), net["bob"])
        assert x.item() == 1.0
        region.peers(RELAY).remove("bob")
        with region.enter() as again:
            assert "bob" not in again
        way = region.through("me", "bob", reconnect_seconds=0.1)
        worker = RemoteWorker(way)
        with pytest.raises(TransportError, match="not attached"):
            obhut.send(torch.ones(1), worker).item()
        worker.close()
        region.served[RELAY].relay.expire()  # as it does every few seconds
        region.peers(RELAY).add("bob", region.identities["bob"].certificate)
        region.attached("bob")


def test_who_may_do_nothing_at_the_aggregator_connects_to_nobody(
    region: Region,
) -> None:
    """Mallory, a peer of both, is told of no worker and led to none."""
    with region.enter("mallory") as net:
        assert net.workers == [RELAY]
    way = region.through("mallory", "bob")
    with pytest.raises(AccessDeniedError, match="nothing for you"):
        obhut.send(torch.ones(1), RemoteWorker(way)).item()
    way.close()
