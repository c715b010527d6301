"""A worker outlives whatever a pinned client, or a stranger, sends it.

``OBHUT_FUZZ`` says how many streams; ``make fuzz`` sends 10,000.
"""

from __future__ import annotations

import collections
import contextlib
import os
import queue
import socket
import struct
from collections.abc import Iterator
from random import Random

import grpc
import pytest
import torch
from torch import nn

import obhut
from obhut.client.remote_tensor import RemoteTensor
from obhut.client.workers import RemoteWorker
from obhut.protocol import codec
from obhut.protocol.messages import (
    PROTOCOL_VERSION,
    AnyMessage,
    Open,
    Refused,
    Welcome,
)
from obhut.testing.fuzz import RecordingTransport, Sent, Target, noise, stream
from obhut.testing.sites import Sites
from obhut.transports.grpc import wire
from obhut.transports.grpc.client import CHANNEL_OPTIONS, EXCHANGE
from obhut.transports.grpc.credentials import channel_credentials
from obhut.transports.grpc.server import HEALTH

from .conftest import DATASET

STREAMS = int(os.environ.get("OBHUT_FUZZ", "1000"))
BATCH = 100
SEED = 20_260_707
SESSIONS = 4

ROWS = "a,b,y\n" + "".join(f"{k},{k * 0.5},{k % 2}\n" for k in range(50))

CANARY = bytes.fromhex("ba15eeffc0")
"""Bytes of each private float64, as they travel."""


def canaries(count: int) -> torch.Tensor:
    """Return numbers between 1 and 2, (count,) float64, that are known anywhere."""
    packed = (bytes([k % 256]) + CANARY + b"\xf0\x3f" for k in range(count))
    values = [struct.unpack("<d", one)[0] for one in packed]
    return torch.tensor(values, dtype=torch.float64)


def test_canaries_can_be_found() -> None:
    """What leaks of a private tensor would be seen: its bytes hold the pattern."""
    tensor = canaries(10)
    assert bool(((tensor >= 1) & (tensor < 2)).all())
    assert tensor.unique().numel() == 10
    assert tensor.numpy().tobytes().count(CANARY) == 10


class Fuzzer:
    """A pinned client who sends what it wants.

    Attributes:
        replies: how often each kind of reply or status came.
        seen: all bytes that came back, until they are looked at.
    """

    def __init__(self, sites: Sites, others: list[str]) -> None:
        peer = sites.peers("mallory").find("bob")
        credentials, options = channel_credentials(sites.identities["mallory"], peer)
        self.channel = grpc.secure_channel(
            sites.addresses["bob"], credentials, (*CHANNEL_OPTIONS, *options)
        )
        self.exchange = self.channel.stream_stream(EXCHANGE)
        self.random = Random(SEED)
        self.others = others
        self.workers = [one.id for one in sites.identities.values()]
        self.replies: collections.Counter[str] = collections.Counter()
        self.seen: list[bytes] = []
        self.recorded = record(sites)

    def send(self) -> None:
        """Send one stream, in a session that is there when it begins."""
        session = f"fuzz-{self.random.randrange(SESSIONS)}"
        outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        call = self.exchange(iter(outbox.get, None), timeout=60)
        hello = Open(session, PROTOCOL_VERSION, str(torch.__version__))
        for chunk in wire.cut(codec.encode(hello)):
            outbox.put(chunk)
        assembler = wire.Assembler(2**30)
        try:
            welcome = self.read(next(call), assembler)
            assert isinstance(welcome, Welcome), welcome
            target = Target(session, welcome.applied, self.others, self.workers)
            for chunk in stream(self.random, self.recorded, target):
                outbox.put(chunk)
            outbox.put(None)
            for chunk in call:
                message = self.read(chunk, assembler)
                if isinstance(message, Refused):
                    self.replies[message.kind] += 1
                elif message is not None:
                    self.replies[type(message).__name__] += 1
        except grpc.RpcError as error:
            self.replies[error.code().name] += 1
        finally:
            outbox.put(None)

    def read(self, chunk: bytes, assembler: wire.Assembler) -> AnyMessage | None:
        """Take in a piece of a reply; return the message once it is whole."""
        self.seen.append(chunk)
        complete = assembler.feed(chunk)
        return None if complete is None else codec.decode(*complete)

    def health(self) -> None:
        """Ask whether the worker serves."""
        assert self.channel.unary_unary(HEALTH)(b"", timeout=10) == b"\x08\x01"


def record(sites: Sites) -> list[Sent]:
    """Return what an honest client sends in a small training."""
    recorder = RecordingTransport(sites.transport("me", "bob"))
    bob = RemoteWorker(recorder)
    train(bob)
    bob.load("d").sum().item()
    bob.search("#x")
    bob.close()
    return recorder.parcels


def train(worker: RemoteWorker) -> list[torch.Tensor]:
    """Train a small model there; return its parameters."""
    torch.manual_seed(0)
    x, y = torch.randn(32, 4), torch.randn(32, 1)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    x, y = obhut.send(x, worker), obhut.send(y, worker)
    obhut.send(model, worker)
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        ((model(x) - y) ** 2).mean().backward()
        optimizer.step()
    return [p.get().detach() for p in model.parameters()]


def shout(sites: Sites, random: Random, count: int) -> None:
    """Say something to the port that is no TLS, so many times."""
    host, _, port = sites.addresses["bob"].rpartition(":")
    for _ in range(count):
        with (
            contextlib.suppress(ConnectionError),
            socket.create_connection((host, int(port)), 10) as one,
        ):
            one.sendall(noise(random))
            one.settimeout(0.05)
            with contextlib.suppress(TimeoutError):
                while one.recv(1_000):
                    pass


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    """A worker in a process of its own, whose memory is that of nothing else."""
    with Sites(tmp_path_factory.mktemp("fuzz"), ("bob", "me", "mallory")) as sites:
        (sites.root / "bob" / "data.csv").write_text(ROWS)
        sites.serve(
            "bob",
            sessions=["me", "mallory"],
            deliver=["mallory"],
            limits='memory = "256 MiB"\nrequester_crashes = 100000\n',
            more=DATASET,
        )
        yield sites


@pytest.mark.slow
@pytest.mark.timeout(60 + STREAMS // 10)
def test_fuzzed_streams_change_nothing_for_others(sites: Sites) -> None:
    """Spoilt streams over TLS and noise before it; an honest client sees nothing.

    After each batch of them the worker says that it serves, a session that was open
    all the time and a new one give what they would alone, the parent has not grown,
    and no byte that the fuzzer received is one of another session's.
    """
    private = canaries(1_000)
    mine = RemoteWorker(sites.transport("me", "bob"))
    try:
        x = obhut.send(private, mine, tags=("#canary",))
        assert isinstance(x, RemoteTensor)
        expected = train(mine)
        fuzzer = Fuzzer(sites, [mine.session.name])
        strangers = Random(SEED)
        memory: list[int] = []
        for _ in range(STREAMS // BATCH):
            for _ in range(BATCH):
                fuzzer.send()
            shout(sites, strangers, BATCH // 10)
            fuzzer.health()
            assert torch.equal((x + 0).get(), private)
            fresh = RemoteWorker(sites.transport("me", "bob"))
            assert all(map(torch.equal, train(fresh), expected))
            fresh.close()
            answers = b"".join(fuzzer.seen)
            assert CANARY not in answers
            assert mine.session.name.encode() not in answers
            fuzzer.seen.clear()
            memory.append(sites.vitals("bob").pss)
        third = max(1, len(memory) // 3)
        assert min(memory[-third:]) < max(memory[:third]) * 1.05 + 2**20, memory
        # All this was no use if nothing got through, or everything.
        assert fuzzer.replies["Results"] > STREAMS // 10
        assert fuzzer.replies["RemoteProtocolError"] > STREAMS // 20
        assert fuzzer.replies["INVALID_ARGUMENT"] > STREAMS // 20
        assert fuzzer.replies["SessionLostError"] > 0
        assert not fuzzer.replies["UNKNOWN"]
        fuzzer.channel.close()
    finally:
        mine.close()
