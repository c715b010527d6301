"""The in-process shell, with the codec in between and without it."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from obhut.errors import RemoteProtocolError, WorkerClosedError
from obhut.guard.policy import Quorum
from obhut.host.gate import Gate
from obhut.protocol.messages import (
    PROTOCOL_VERSION,
    Batch,
    Close,
    Count,
    Deliver,
    Expect,
    Move,
    Open,
    Put,
    Refused,
    Results,
    TensorData,
)
from obhut.testing.transports import Host, TransportConformance
from obhut.transports.local import LocalNetwork, LocalShell, LocalTransport
from obhut.worker.core import Worker
from obhut.worker.effects import Delivery
from obhut.worker.owners import OwnersWorker
from obhut.worker.roles import Aggregator, Owner


class LocalHost:
    """A worker behind a function call."""

    def __init__(self, id: str, *, encode: bool, network: LocalNetwork) -> None:
        self.shell = LocalShell(Worker(id), encode=encode, network=network)

    def connect(self, principal: str) -> LocalTransport:
        """Return a way to the worker."""
        return LocalTransport(self.shell, principal)

    def close(self) -> None:
        """Close the worker."""
        self.shell.close()


class TestEncoded(TransportConformance):
    """Messages pass through the codec."""

    @pytest.fixture(autouse=True)
    def _network(self) -> None:
        self.network = LocalNetwork()

    def host(self, id: str) -> Host:
        """Return a new worker in the test's own network."""
        return LocalHost(id, encode=True, network=self.network)


class TestAsTheyAre(TransportConformance):
    """Messages are handed over as objects, which nobody checks."""

    checks_frames = False

    @pytest.fixture(autouse=True)
    def _network(self) -> None:
        self.network = LocalNetwork()

    def host(self, id: str) -> Host:
        """Return a new worker in the test's own network."""
        return LocalHost(id, encode=False, network=self.network)


def test_addresses_are_told_apart():
    """Two workers of one id get two addresses; a worker that is gone frees its own."""
    network = LocalNetwork()
    first, second, third = (LocalShell(Worker("a"), network=network) for _ in range(3))
    assert [s.address for s in (first, second, third)] == ["a", "a~2", "a~3"]
    del first
    gc.collect()
    assert LocalShell(Worker("a"), network=network).address == "a"


def test_a_network_keeps_no_worker_alive():
    """Being reachable does not keep a worker from going."""
    network = LocalNetwork()
    shell = LocalShell(Worker("a"), network=network)
    gone = weakref.ref(shell)
    del shell
    gc.collect()
    assert gone() is None


def test_a_closed_worker_holds_nothing():
    """Closing lets go of the tensors, and says so to whoever comes."""
    shell = LocalShell(Worker("a"), network=LocalNetwork())
    transport = LocalTransport(shell)
    transport.submit(Open("s", PROTOCOL_VERSION, str(torch.__version__)))
    shell.close()
    shell.close()
    with pytest.raises(WorkerClosedError, match="a is closed"):
        transport.submit(Close("s"))


def test_a_shell_shows_its_own_process_what_is_there():
    """Objects of a session that is open, by id; of no other's and of none."""
    shell = LocalShell(Worker("bob"), network=LocalNetwork())
    mine, theirs = LocalTransport(shell), LocalTransport(shell, "somebody")
    for transport, session in ((mine, "s"), (theirs, "t")):
        transport.submit(Open(session, PROTOCOL_VERSION, str(torch.__version__)))
    put = Put(7, TensorData("float32", (2,), 0), ("#x",))
    mine.submit(Batch("s", 1, (put,)), [bytes(8)])
    assert shell.named("s") == [(7, ("#x",))]
    for session in ("t", "none"):
        with pytest.raises(WorkerClosedError):
            shell.named(session)


def test_a_bad_message_is_refused_before_the_worker():
    """With the codec in between, what does not decode never reaches the core."""
    transport = LocalTransport(LocalShell(Worker("a"), network=LocalNetwork()))
    put = Put(1, TensorData("float32", (2,), 0))
    with pytest.raises(RemoteProtocolError, match="8 bytes"):
        transport.submit(Batch("s", 1, (put,)), [bytes(4)])


def test_the_clock_is_the_shells():
    """Sessions end by the clock that was handed in."""
    now = [0.0]
    core = Worker("a", session_seconds=10.0)
    shell = LocalShell(core, network=LocalNetwork(), clock=lambda: now[0])
    transport = LocalTransport(shell)
    hello = Open("s", PROTOCOL_VERSION, str(torch.__version__))
    transport.submit(hello)
    count = Batch("s", 1, (Count(),))
    assert isinstance(transport.submit(count).result().message, Results)
    now[0] = 11.0
    assert isinstance(transport.submit(count).result().message, Refused)


def test_a_worker_that_policies_name_has_the_name_for_its_address():
    """Made again under its name, it is the one that policies mean by the name."""
    network = LocalNetwork()
    policy = Quorum(aggregators=["sum"], contributors=["a", "b", "c"])
    first = LocalShell(Worker("a"), network=network, gate=Gate(policy))
    again = LocalShell(Worker("a"), network=network, gate=Gate(policy))
    other = LocalShell(Worker("a"), network=network)
    assert (first.address, again.address, other.address) == ("a", "a", "a~2")
    again.close()
    message = Deliver("s", (1,), (TensorData("float32", (1,), 0),))
    refused = network.deliver("b", Delivery("a", message, (bytes(4),), 0))
    assert refused == Refused("WorkerClosedError", str(WorkerClosedError("a")))


def test_after_ctrl_c_what_was_declared_comes_as_spoilt(monkeypatch):
    """Else an aggregator that has accepted its header would wait without end."""
    network = LocalNetwork()
    policy = Quorum(
        aggregators=["hub"], contributors=["bob", "alice"], requesters=["me"]
    )
    bob = OwnersWorker("bob", Owner(policy, print))
    hub = Worker("hub", role=Aggregator(policy))
    shells = []
    for core, session, *requests in (
        (hub, "t", Expect((8,), "bob")),
        (bob, "s", Put(1, TensorData("float32", (1,), 0))),
    ):
        shells.append(LocalShell(core, network=network, gate=Gate(policy)))
        way = LocalTransport(shells[-1])
        way.submit(Open(session, PROTOCOL_VERSION, str(torch.__version__)))
        way.submit(Batch(session, 1, tuple(requests)), [bytes(4)] * (core is bob))

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(bob, "follow", interrupted)
    with pytest.raises(KeyboardInterrupt):
        way.submit(Batch("s", 2, (Move((1,), "hub", "t", (8,)),)))
    (contribution,) = hub._sessions["t"].objects[8].terms
    assert contribution.spoilt
