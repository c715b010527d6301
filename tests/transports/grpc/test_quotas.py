"""Quotas of served workers: real children and connections, a clock that is set."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import torch

import obhut
from obhut.client.network import Network, connect
from obhut.errors import LimitError, ObhutError, SessionLostError
from obhut.host import configuration as configurations
from obhut.protocol import codec
from obhut.protocol.messages import (
    PROTOCOL_VERSION,
    Batch,
    Failed,
    Fetch,
    Move,
    Open,
    Put,
    Results,
    TensorData,
)
from obhut.testing.cables import Cable
from obhut.testing.transports import Client
from obhut.transports.grpc import wire
from obhut.transports.grpc.client import CHANNEL_OPTIONS, EXCHANGE
from obhut.transports.grpc.credentials import channel_credentials
from obhut.transports.grpc.streams import EACH, STALLED_SECONDS, State, Stream
from obhut.transports.serving import Served

from .conftest import World, until

CONFIGURATION = """\
id = "bob"
listen = "127.0.0.1:0"
[policy]
kind = "UnsafeOpen"
[access]
sessions = ["me", "you"]
deliver = ["alice"]
[limits]
"""


class Bench:
    """Bob, who serves by a clock that a test sets."""

    def __init__(self, world: World, limits: str) -> None:
        self.world = world
        self.now = 1000.0
        file = world.root / "bob" / "worker.toml"
        file.write_text(CONFIGURATION + limits)
        self.bob = Served(configurations.load(file), lambda: self.now)
        world.served["bob"] = self.bob
        self.bob.start()
        self.nets: list[Network] = []

    def net(self, who: str) -> Network:
        """Connect somebody."""
        folder = self.world.root / who
        self.nets.append(connect(self.bob.address, folder=folder))
        return self.nets[-1]

    def channel(self, who: str) -> grpc.Channel:
        """Return a bare channel of somebody's."""
        peer = self.world.peers(who).find("bob")
        credentials, options = channel_credentials(self.world.identities[who], peer)
        return grpc.secure_channel(
            self.bob.address, credentials, (*CHANNEL_OPTIONS, *options)
        )

    def streams(self, who: str) -> list[Stream]:
        """Return somebody's streams that are served."""
        id = self.world.id(who)
        return [s for s in self.bob.server._streams._streams if s.principal == id]

    def close(self) -> None:
        """End all."""
        for net in self.nets:
            net.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Return who there is."""
    world = World(tmp_path, ("bob", "alice", "me", "you"))
    yield world
    world.close()


@pytest.fixture
def bench(world: World, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Return bob, with the limits that a test is marked with."""
    made = Bench(world, getattr(request, "param", ""))
    yield made
    made.close()


def child_of(worker: Served, session: str) -> int:
    """Return the number of the process that holds a session."""
    child = worker.node._sessions[session].started
    pid = child.pid  # type: ignore[union-attr]
    assert isinstance(pid, int)
    return pid


def limited(*lines: str) -> pytest.MarkDecorator:
    """Mark a test with limits."""
    return pytest.mark.parametrize(
        "bench", ["\n".join(lines)], indirect=True, ids=["limited"]
    )


@pytest.mark.slow
@limited('memory = "16 MiB"', "sessions = 50", "all_sessions = 50")
def test_fifty_idle_clients_whose_batches_are_refused(bench: Bench) -> None:
    """Each is told at its next value, goes on and closes; nobody waits forever."""
    there = [bench.net(who)["bob"] for who in ("me", "you") for _ in range(25)]
    large = torch.ones(5 << 20)
    refused = [obhut.send(large, bob) for bob in there]
    for bob in there:
        under_way = bob.session._flights[0].pending
        if under_way is not None:  # else the session was told already
            under_way.result(timeout=30)
    for bob, x in zip(there, refused, strict=True):
        with pytest.raises(LimitError, match="16,777,216 bytes"):
            (x + 1).sum().item()
        assert (obhut.send(torch.ones(2), bob) + 1).sum().item() == 4.0
    bench.close()


@limited("sessions = 3", "session_seconds = 4")
def test_restarted_clients_make_room_for_the_next(bench: Bench) -> None:
    """Sessions whose connection is gone end for a new one, those that have one do not.

    As a notebook's kernel does that restarts and says no word.
    """
    nets = [bench.net("me") for _ in range(3)]
    held = [obhut.send(torch.ones(1), net["bob"]) for net in nets]
    assert [x.item() for x in held] == [1.0] * 3
    fourth = bench.net("me")
    with pytest.raises(LimitError, match="at most 3 sessions"):
        obhut.send(torch.ones(1), fourth["bob"]).item()
    for net in nets[:2]:
        net["bob"].session._transport.close()  # the session itself is not closed
    until(lambda: len(bench.streams("me")) == 2)
    assert obhut.send(torch.ones(1), fourth["bob"]).item() == 1.0
    assert obhut.send(torch.ones(1), bench.net("me")["bob"]).item() == 1.0
    assert held[2].item() == 1.0
    with pytest.raises(LimitError, match="at most 3 sessions"):
        obhut.send(torch.ones(1), bench.net("me")["bob"]).item()


@limited("session_seconds = 4")
def test_a_client_that_says_nothing_keeps_its_session(bench: Bench) -> None:
    """For as long as it is connected, and for so many seconds after."""
    with Cable(bench.bob.address) as cable:
        keeps_its_session(bench, cable)


def keeps_its_session(bench: Bench, cable: Cable) -> None:
    """Prove the claim above, over a network that can be cut."""
    bench.nets.append(connect(cable.address, folder=bench.world.root / "me"))
    net = bench.nets[-1]
    x = obhut.send(torch.ones(1), net["bob"])
    assert x.item() == 1.0
    for _ in range(3):
        bench.now += 1_000
        bench.bob.node.expire()
        bench.bob.server.expire()
    assert x.item() == 1.0
    cable.swallow()
    cable.cut()
    until(lambda: not bench.streams("me"))
    bench.now += 3
    bench.bob.node.expire()
    cable.pass_on()
    assert x.item() == 1.0


@limited('memory = "300 MiB"', 'requester_memory = "400 MiB"')
def test_what_a_session_gets_is_what_it_has(bench: Bench) -> None:
    """The second session's process holds no more than what was left for it."""
    one, two, three = (bench.net("me")["bob"] for _ in range(3))
    assert obhut.send(torch.ones(1), one).item() == 1.0
    small = obhut.send(torch.ones(1000), two)
    assert small.repeat(15_000).sum().item() == 15_000_000  # 60 MB
    with pytest.raises(LimitError, match="104,857,600"):
        small.repeat(40_000).sum().item()
    with pytest.raises(LimitError, match="requester_memory"):
        obhut.send(torch.ones(1), three).item()
    one.close()
    assert obhut.send(torch.ones(1), three).item() == 1.0
    you = bench.net("you")["bob"]
    assert obhut.send(torch.ones(1), you).item() == 1.0


@limited("all_sessions = 1", "sessions = 1")
def test_all_sessions_are_counted(bench: Bench) -> None:
    """Another requester is told that all are taken."""
    me, you = bench.net("me")["bob"], bench.net("you")["bob"]
    assert obhut.send(torch.ones(1), me).item() == 1.0
    with pytest.raises(LimitError, match="all are taken; try again later"):
        obhut.send(torch.ones(1), you).item()


def power(x: torch.Tensor, times: int) -> torch.Tensor:
    """Return a sum that takes so many products of matrices."""
    for _ in range(times):
        x = x @ x
    return x.sum()


def use_up(x: torch.Tensor) -> None:
    """Compute, a little at a time, until that is refused; at first it is not."""
    power(x, 1).item()
    while True:
        power(x, 1).item()


@limited("batch_seconds = 1")
def test_a_message_that_computes_too_long_ends_its_session(bench: Bench) -> None:
    """Its client is told the limit and what to do; a new session works."""
    bob = bench.net("me")["bob"]
    x = obhut.send(torch.rand(1500, 1500), bob)
    with pytest.raises(SessionLostError, match="may take 1 seconds here") as caught:
        power(x, 1000).item()
    assert "batch_seconds" in str(caught.value)
    assert obhut.send(torch.ones(1), bench.net("me")["bob"]).item() == 1.0


@limited("requester_seconds = 1")
def test_a_days_time_is_used_up_and_comes_again(bench: Bench) -> None:
    """Over sessions that were closed; what is there is fetched; a day later it goes on.

    Another requester is not concerned.
    """
    first = bench.net("me")
    x = obhut.send(torch.rand(1000, 1000), first["bob"])
    with pytest.raises(LimitError, match="1 seconds a day") as caught:
        use_up(x)
    assert "24 hours" in str(caught.value)
    assert x.get().shape == (1000, 1000)
    first.close()
    with pytest.raises(LimitError, match="requester_seconds"):
        obhut.send(torch.ones(1), bench.net("me")["bob"]).item()
    assert obhut.send(torch.ones(1), bench.net("you")["bob"]).item() == 1.0
    bench.now += 86_400 + 301
    assert obhut.send(torch.ones(1), bench.net("me")["bob"]).item() == 1.0


@limited("requester_crashes = 1")
def test_crashes_are_counted_however_they_end(bench: Bench) -> None:
    """One while idle and one while asked: the third session is refused for an hour."""
    for _ in range(2):
        bob = bench.net("me")["bob"]
        x = obhut.send(torch.ones(1), bob)
        assert x.item() == 1.0
        pid = child_of(bench.bob, bob.session.name)
        process = os.pidfd_open(pid)
        os.kill(pid, signal.SIGSEGV)
        assert select.select([process], [], [], 15)[0]
        os.close(process)
        with pytest.raises(SessionLostError):
            x.item()
    with pytest.raises(LimitError, match="2 of yours crashed within an hour, and 1"):
        obhut.send(torch.ones(1), bench.net("me")["bob"]).item()
    assert obhut.send(torch.ones(1), bench.net("you")["bob"]).item() == 1.0
    bench.now += 3_600 + 13
    assert obhut.send(torch.ones(1), bench.net("me")["bob"]).item() == 1.0


@limited("requester_crashes = 0")
def test_the_end_of_a_fork_server_is_nobodys_crash(bench: Bench) -> None:
    """Its sessions end, in words that say so, and their owners open others at once."""
    for _ in range(2):
        bob = bench.net("me")["bob"]
        x = obhut.send(torch.ones(1), bob)
        assert x.item() == 1.0
        pid = child_of(bench.bob, bob.session.name)
        server = int(Path(f"/proc/{pid}/stat").read_text().split()[3])
        process = os.pidfd_open(pid)
        os.kill(server, signal.SIGKILL)
        assert select.select([process], [], [], 15)[0]
        os.close(process)
        with pytest.raises(SessionLostError):
            x.item()


def test_sessions_outlive_a_stopped_fork_server(bench: Bench) -> None:
    """They go on at once, and others begin soon."""
    bob = bench.net("me")["bob"]
    x = obhut.send(torch.ones(1), bob)
    assert x.item() == 1.0
    pid = child_of(bench.bob, bob.session.name)
    os.kill(int(Path(f"/proc/{pid}/stat").read_text().split()[3]), signal.SIGSTOP)
    y = obhut.send(torch.ones(2), bench.net("you")["bob"])
    assert y.sum().item() == 2.0
    assert (x + 1).item() == 2.0


def test_a_target_that_is_busy_holds_up_its_own_delivery_only(world: World) -> None:
    """Alice delivers into one session while another's child has stopped for good."""
    bob = world.serve("bob")
    alice = world.serve("alice", reach={"bob": bob.address})
    me = world.root / "me"
    with connect(bob.address, alice.address, folder=me) as stuck:
        x = obhut.send(torch.ones(3), stuck["alice"])
        y = obhut.send(torch.ones(1), stuck["bob"])
        assert (x.sum().item(), y.item()) == (3.0, 1.0)
        pid = child_of(bob, stuck["bob"].session.name)
        os.kill(pid, signal.SIGSTOP)
        try:
            stopped = Client(world.transport("me", "alice"), "stopped")
            stopped.open()
            data = TensorData("float32", (1,), 0)
            stopped.ask(Put(1, data), frames=(bytes(4),))
            name = stuck["bob"].session.name
            batch = Batch("stopped", 2, (Move((1,), world.id("bob"), name, (9,)),))
            waiting = stopped.transport.submit(batch)
            with connect(bob.address, alice.address, folder=world.root / "you") as net:
                moved = obhut.move(obhut.send(torch.ones(5), net["alice"]), net["bob"])
                assert moved.sum().item() == 5.0
            assert not waiting.done()
        finally:
            os.kill(pid, signal.SIGCONT)
        stopped.transport.close()


def half_a_message() -> bytes:
    """Return the first chunk of a tensor of 16 MiB."""
    put = Batch("s", 1, (Put(1, TensorData("float32", (2**22,), 0)),))
    return next(iter(wire.cut(codec.encode(put), [bytes(2**24)])))


def test_half_a_message_is_not_kept_forever(bench: Bench) -> None:
    """All connections of one who stops in the middle end in time; others go on."""
    you = bench.net("you")["bob"]
    y = obhut.send(torch.ones(1), you)
    assert y.item() == 1.0
    stop = threading.Event()

    def halves() -> Iterator[bytes]:
        yield half_a_message()
        stop.wait(60)

    with bench.channel("me") as channel:
        calls = [channel.stream_stream(EXCHANGE)(halves()) for _ in range(EACH)]
        chunk = len(half_a_message())
        while [s.held for s in bench.streams("me")] != [chunk] * EACH:
            pass
        bench.now += STALLED_SECONDS + 1
        bench.bob.server.expire()
        for call in calls:
            with pytest.raises(grpc.RpcError) as caught:
                next(call)
            assert caught.value.code() is grpc.StatusCode.CANCELLED
        stop.set()
    while bench.streams("me"):
        pass
    assert y.item() == 1.0


@limited('memory = "64 MiB"', 'requester_memory = "64 MiB"')
def test_bytes_under_way_are_bounded(bench: Bench) -> None:
    """Many messages at once that are never finished hold no more than was allowed."""
    stop = threading.Event()

    def long() -> Iterator[bytes]:
        put = Batch("s", 1, (Put(1, TensorData("float32", (15 * 2**20,), 0)),))
        chunks = wire.cut(codec.encode(put), [bytes(60 * 2**20)])
        sent = 0
        while sent < 30 * 2**20:
            chunk = next(chunks)
            sent += len(chunk)
            yield chunk
        stop.wait(60)

    with bench.channel("me") as channel:
        calls = [channel.stream_stream(EXCHANGE)(long()) for _ in range(4)]
        ended: list[grpc.Call] = []
        while len(ended) < 2:
            ended = [call for call in calls if not call.is_active()]
            with bench.bob.server._streams._lock:  # else one goes while another grows
                assert sum(s.held for s in bench.streams("me")) <= 64 * 2**20
        for call in ended:
            assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "67,108,864 bytes" in call.details()
        stop.set()


def test_an_answer_that_nobody_takes_is_not_kept_forever(bench: Bench) -> None:
    """Who asks for megabytes and never reads loses the connection, then the session."""
    stop = threading.Event()
    size = 2**24

    def asking() -> Iterator[bytes]:
        yield from wire.cut(
            codec.encode(Open("s", PROTOCOL_VERSION, str(torch.__version__)))
        )
        put = Put(1, TensorData("float32", (size // 4,), 0))
        yield from wire.cut(codec.encode(Batch("s", 1, (put,))), [bytes(size)])
        fetches = Batch("s", 2, tuple(Fetch(1) for _ in range(8)))
        yield from wire.cut(codec.encode(fetches))
        stop.wait(60)

    with bench.channel("me") as channel:
        call = channel.stream_stream(EXCHANGE)(asking())
        next(call), next(call)
        # The answer is counted among what is under way.
        while not any(
            stream.state is State.SENDING and stream.held > 8 * size
            for stream in bench.streams("me")
        ):
            pass
        bench.now += STALLED_SECONDS + 1
        while bench.streams("me"):
            bench.bob.server.expire()
        stop.set()
    bench.now += 601
    bench.bob.node.expire()
    assert bench.bob.node.busy() == 0


def test_no_peer_or_address_is_told_over_the_network(world: World) -> None:
    """A move to a worker that is not there tells neither its place nor who is known."""
    bob = world.serve("bob", reach={"alice": "127.0.0.1:1"})
    me = Client(world.transport("me", "bob"), "s")
    me.open()
    me.ask(Put(1, TensorData("float32", (1,), 0)), frames=(bytes(4),))
    world.peers("bob").remove("alice")
    for number, to in ((2, world.id("alice")), (3, "x" * 52)):
        reply = me.tell(Batch("s", number, (Move((1,), to, "t", (9,)),)))
        assert isinstance(reply, Results)
        (failed,) = reply.answers
        assert isinstance(failed, Failed)
        text = failed.text
        assert to in text
        for secret in ("127.0.0.1", "me", "you", "alice"):
            assert secret not in text.replace(to, "").split()
        assert bob.address not in text
    me.transport.close()


def test_a_restart_forgets(world: World) -> None:
    """What was used is not remembered by a worker that starts again, as documented."""
    bench = Bench(world, "requester_seconds = 1")
    x = obhut.send(torch.rand(1000, 1000), bench.net("me")["bob"])
    with pytest.raises(ObhutError):
        use_up(x)
    bench.close()
    bench.bob.close(grace=0)
    again = Bench(world, "requester_seconds = 1")
    assert obhut.send(torch.ones(1), again.net("me")["bob"]).item() == 1.0
    again.close()
