"""Attempts to learn of an owner's rows from how far a computation on them has come.

A served worker is asked all the time, in messages of the attacker's own. One whose
owner enforces nothing has to tell: else it would be no attack.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import grpc
import pytest
import torch
from tests.transports.grpc.conftest import DATASET, World
from torch import nn

import obhut
from obhut.client.workers import RemoteWorker
from obhut.protocol import codec
from obhut.protocol.messages import Batch, Progress, Refused, Watch
from obhut.transports.grpc.client import WATCH, WATCHES, channel
from obhut.transports.grpc.credentials import channel_credentials

POLICY = """
kind = "Quorum"
aggregators = ["hub"]
contributors = ["few", "many", "hidden"]
requesters = ["me", "you"]
"""
UNSAFE = 'kind = "UnsafeOpen"'
ROWS = {"few": 20, "many": 2_000, "hidden": 2_000, "open": 2_000}
DATA = DATASET + 'public = {{ names = true, types = true, rows = "{}" }}\n'


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Owners of few rows and of many, one who hides how many, and an open worker."""
    world = World(tmp_path_factory.mktemp("watched"), (*ROWS, "hub", "me", "you"))
    try:
        for name, count in ROWS.items():
            lines = "".join(f"{k % 7},{k % 5},{k % 2}\n" for k in range(count))
            (world.root / name / "data.csv").write_text("a,b,y\n" + lines)
            world.serve(
                name,
                policy=UNSAFE if name == "open" else POLICY,
                deliver=(),
                more=DATA.format("hidden" if name == "hidden" else "exact"),
            )
        yield world
    finally:
        world.close()


class Attacker:
    """Somebody who asks how much of a session's batches is done."""

    def __init__(self, world: World, who: str, at: str) -> None:
        peer = world.peers(who).find(at)
        credentials, options = channel_credentials(world.identities[who], peer)
        self._channel = channel(world.address(at), credentials, options)

    def ask(self, session: str, number: int) -> bytes:
        """Return the bytes of an answer."""
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes]
        method = self._channel.unary_unary(WATCH)
        said = codec.encode(Watch(session, number))
        return method(b"", timeout=30, metadata=((WATCHES, said),))

    def close(self) -> None:
        """End the connection."""
        self._channel.close()


@obhut.program
def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor
) -> torch.Tensor:
    """Take a step."""
    optimizer.zero_grad()
    loss: torch.Tensor = ((model(x)[:, 0] - y) ** 2).mean()
    loss.backward()
    optimizer.step()
    return loss


def kind(answer: bytes) -> str:
    """Return with which error something was refused."""
    said = codec.decode(answer)
    assert isinstance(said, Refused)
    return said.kind


def begin(worker: RemoteWorker) -> None:
    """Let a worker go through its rows, which takes a second if there are many."""
    model = obhut.send(nn.Linear(2, 1), worker)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    data = worker.dataset("d")
    step.run(model=model, optimizer=optimizer, data=data, batch_size=1, epochs=10)
    worker.session.flush()


def told(world: World, at: str) -> set[bytes]:
    """Return all that comes while a worker goes through its rows, and then."""
    attacker = Attacker(world, "me", at)
    with (
        contextlib.closing(attacker),
        obhut.connect(world.address(at), folder=world.root / "me") as net,
    ):
        begin(net[at])
        name, heard = net[at].session.name, set[bytes]()
        for _ in range(75):
            heard |= {attacker.ask(name, number) for number in range(1, 7)}
            threading.Event().wait(0.02)
        assert at == "open" or net[at].progress() is None
        return heard


def test_a_guarded_worker_tells_nothing(world: World) -> None:
    """Neither of few rows nor of many, at no time; an open one tells how far it is."""
    nothing = {codec.encode(Progress(None))}
    assert {at: told(world, at) for at in ("few", "many", "hidden")} == dict.fromkeys(
        ("few", "many", "hidden"), nothing
    )
    openly = {codec.decode(one) for one in told(world, "open")}
    assert any(
        isinstance(one, Progress) and 0 < (one.thousandths or 0) < 1_000
        for one in openly
    )


def test_nobody_watches_anothers_session(world: World) -> None:
    """Who knows its name hears what is said of one that is not there."""
    attacker = Attacker(world, "you", "open")
    with (
        contextlib.closing(attacker),
        obhut.connect(world.address("open"), folder=world.root / "me") as net,
    ):
        begin(net["open"])
        name = net["open"].session.name
        heard = {attacker.ask(name, number) for number in range(3)}
        assert heard == {attacker.ask("no session", 1)}
        assert kind(*heard) == "SessionLostError"


def test_it_is_no_way_to_ask_anything_else(world: World) -> None:
    """Another message is refused there, and computes nothing."""
    attacker = Attacker(world, "me", "many")
    with (
        contextlib.closing(attacker),
        obhut.connect(world.address("many"), folder=world.root / "me") as net,
    ):
        x = obhut.send(torch.ones(1), net["many"])
        net["many"].wait()
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes]
        method = attacker._channel.unary_unary(WATCH)
        for message in (Batch(net["many"].session.name, 2, ()), Progress(1)):
            said = method(b"", metadata=((WATCHES, codec.encode(message)),))
            assert kind(said) == "RemoteProtocolError"
        assert x.shape == (1,)
        net["many"].wait()
