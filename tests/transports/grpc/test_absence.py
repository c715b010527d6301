"""Sessions live as long as their clients are connected, and outlive a sleep.

Workers and clients are processes of their own. What passes here is real time: that is
what these claims are about.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import obhut
from obhut.errors import SessionLostError
from obhut.federated import LocalTraining, RemoteDataset, train_round
from obhut.testing.cables import Cable
from obhut.testing.sites import Sites
from obhut.transports.serving import EXPIRY_SECONDS

from .conftest import World, until

LIVES_SECONDS = 2
"""How long sessions outlive their clients' connections here."""

LONG_SECONDS = LIVES_SECONDS + EXPIRY_SECONDS + 1
"""After so long every session that nobody is connected to has ended."""

MENDS_SECONDS = 30
"""How long a client that sleeps here mends a broken way for: half as long as ever."""

SLEEPS_SECONDS = MENDS_SECONDS + 5
"""Longer than that, and than a worker asks whether who says nothing is there."""

pytestmark = pytest.mark.slow


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Return bob, alice and me; nobody serves yet."""
    world = World(tmp_path, ("bob", "alice", "me"))
    yield world
    world.close()


def test_a_client_that_says_nothing_goes_on(tmp_path: Path) -> None:
    """After eight seconds, where a session outlives its connection for two."""
    with Sites(tmp_path, ("bob", "me")) as sites:
        limits = f"session_seconds = {LIVES_SECONDS}"
        address = sites.serve("bob", sessions=["me"], limits=limits)
        with obhut.connect(address, folder=sites.root / "me") as net:
            x = obhut.send(torch.ones(3), net["bob"])
            assert x.sum().item() == 3.0
            threading.Event().wait(LONG_SECONDS)
            assert x.sum().item() == 3.0
        assert "expired" not in sites.log("bob")


def test_a_connection_that_breaks_is_made_again_though_nobody_waits(
    world: World,
) -> None:
    """Else a session would end though its client is there and says nothing."""
    bob = world.serve("bob", limits=f"session_seconds = {LIVES_SECONDS}")
    with (
        Cable(bob.address) as cable,
        obhut.connect(cable.address, folder=world.root / "me") as net,
    ):
        x = obhut.send(torch.ones(3), net["bob"])
        assert x.sum().item() == 3.0
        for _ in range(2):
            before = cable.connections
            cable.cut()
            until(lambda before=before: cable.connections > before)  # type: ignore[misc]
        threading.Event().wait(LONG_SECONDS)
        assert x.sum().item() == 3.0


def test_nobody_keeps_a_session_that_is_not_there(world: World) -> None:
    """A client that says nothing stops trying when its session has ended."""
    bob = world.serve("bob")
    with (
        Cable(bob.address) as cable,
        obhut.connect(cable.address, folder=world.root / "me") as net,
    ):
        x = obhut.send(torch.ones(3), net["bob"])
        assert x.sum().item() == 3.0
        bob.node.close()
        way = net["bob"].session._transport
        before = cable.connections
        cable.cut()
        until(lambda: cable.connections > before and way._thread is None)  # type: ignore[attr-defined] # a gRPC way
        with pytest.raises(SessionLostError, match="reconnect"):
            x.sum().item()
        assert cable.connections == before + 2


SLEEPER = f"""
import sys
import torch, obhut
from obhut.transports.grpc.client import GrpcTransport
assert GrpcTransport.__init__.__kwdefaults__["reconnect_seconds"] > {MENDS_SECONDS}
GrpcTransport.__init__.__kwdefaults__["reconnect_seconds"] = {MENDS_SECONDS}
net = obhut.connect(*sys.argv[2:], folder=sys.argv[1])
x = {{name: obhut.send(torch.ones(3), worker) for name, worker in net.items()}}
for one in x.values():
    assert one.sum().item() == 3.0
m = obhut.send(torch.eye(700), net["bob"])
for line in sys.stdin:
    try:
        print("asked", flush=True)
        print(eval(line), flush=True)
    except obhut.errors.ObhutError as error:
        print(type(error).__name__, error, flush=True)
"""

BUSY = "[m := m @ m for _ in range(100)][-1].trace().item()\n"
"""It is under way while the client sleeps."""


class Sleeper:
    """A client that connects to workers, and holds three ones at each."""

    def __init__(self, sites: Sites, *addresses: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SLEEPER, str(sites.root / "me"), *addresses],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def begin(self, line: str) -> None:
        """Let it evaluate an expression."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.strip() + "\n")
        self.process.stdin.flush()
        assert self._read() == "asked"

    def end(self) -> str:
        """Return what came of it."""
        return self._read()

    def ask(self, line: str) -> str:
        """Let it evaluate an expression; return what came of it."""
        self.begin(line)
        return self.end()

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@pytest.mark.timeout(240)
def test_a_laptop_that_sleeps(tmp_path: Path) -> None:
    """Where its session is still there it goes on at once, without an error.

    Where it is not, one error says what happened and what to do. What is at the others
    stays, and another worker whose session ended, too, is no second error: reconnecting
    says so. It sleeps idle; or while a worker computes; or while it tries to connect.
    """
    with Sites(tmp_path, ("bob", "alice", "carol", "me")) as sites:
        bob = sites.serve("bob", sessions=["me"])
        short = f"session_seconds = {LIVES_SECONDS}"
        alice, carol = (
            sites.serve(name, sessions=["me"], limits=short)
            for name in ("alice", "carol")
        )
        with Cable(bob) as cable:
            idle = Sleeper(sites, bob, alice, carol)
            asking = Sleeper(sites, bob)
            trying = Sleeper(sites, cable.address)
            clients = [idle.process, asking.process, trying.process]
            with contextlib.ExitStack() as stack:
                for one in clients:
                    stack.enter_context(one)
                    stack.callback(one.kill)
                for sleeper in (idle, asking, trying):
                    assert sleeper.ask("1 + 1") == "2"  # it has connected
                cable.cut()
                cable.swallow()
                trying.begin("x['bob'].sum().item()")
                asking.begin(BUSY)
                for one in clients:
                    one.send_signal(signal.SIGSTOP)
                threading.Event().wait(SLEEPS_SECONDS)
                cable.pass_on()
                for one in clients:
                    one.send_signal(signal.SIGCONT)
                woke = time.monotonic()
                assert asking.end() == "700.0"
                assert trying.end() == "3.0"
                assert idle.ask("x['bob'].sum().item()") == "3.0"
                error = idle.ask("x['alice'].sum().item()")
                assert error.startswith("SessionLostError the session at alice is lost")
                assert f"more than {LIVES_SECONDS} seconds (session_seconds)" in error
                assert "net.reconnect()" in error
                there = "<Network of bob, alice, carol>"
                assert idle.ask("net.reconnect()") == there
                assert idle.ask("x['bob'].sum().item()") == "3.0"
                for name in ("alice", "carol"):
                    again = f"obhut.send(torch.ones(2), net['{name}']).sum().item()"
                    assert idle.ask(again) == "2.0"
                assert time.monotonic() - woke < 20
                said = [one.communicate(timeout=60)[1] for one in clients]
                assert [one.returncode for one in clients] == [0, 0, 0]
    # The others may have said that they try again, and nothing else.
    assert said[0].splitlines() == [
        "what was at carol is gone, too: it expired: you were not connected for more "
        f"than {LIVES_SECONDS} seconds (session_seconds)"
    ]
    assert "goaway" not in "".join(said).lower()


QUORUM = """
kind = "Quorum"
aggregators = ["hub"]
contributors = {}
requesters = ["me"]
"""


@pytest.mark.parametrize("owners", [("bob", "alice"), ("bob", "alice", "carol")])
def test_a_round_in_which_one_owner_computes_for_long(
    tmp_path: Path, owners: tuple[str, ...]
) -> None:
    """The other owners and the aggregator, who have nothing to do, keep their sessions.

    With three owners, under a policy.
    """
    policy = (
        QUORUM.format(json.dumps(owners)) if len(owners) > 2 else 'kind = "UnsafeOpen"'
    )
    limits = f"session_seconds = {LIVES_SECONDS}"
    with Sites(tmp_path, ("hub", *owners, "me")) as sites:
        sites.serve(
            "hub", sessions=["me"], deliver=owners, policy=policy, limits=limits
        )
        for name in owners:
            rows = 2_000 if name == "alice" else 20
            x, y = np.random.rand(rows, 500), np.random.rand(rows, 1)
            file = sites.root / name / "d.npz"
            np.savez(file, features=x.astype(np.float32), target=y.astype(np.float32))
            sites.serve(
                name,
                sessions=["me"],
                reach={"hub": sites.addresses["hub"]},
                policy=policy,
                limits=limits,
                more='[[dataset]]\nname = "d"\npath = "d.npz"\n'
                'public = { names = true, rows = "exact" }\n',
            )
        addresses = [sites.addresses[name] for name in ("hub", *owners)]
        with obhut.connect(*addresses, folder=sites.root / "me") as net:
            data = [
                RemoteDataset(net[name]["d"], net[name]["d", "target"])
                for name in owners
            ]
            model = nn.Sequential(nn.Linear(500, 500), nn.Tanh(), nn.Linear(500, 1))
            took, epochs = 0.0, 16
            while took < LONG_SECONDS:
                training = LocalTraining(
                    partial(torch.optim.SGD, lr=1e-3), F.mse_loss, epochs=epochs
                )
                began = time.monotonic()
                loss = train_round(
                    model, data, net["hub"], training, [1.0] * len(owners)
                )
                took = time.monotonic() - began
                assert math.isfinite(loss)
                epochs = math.ceil(epochs * 1.2 * LONG_SECONDS / took)
            assert not any(worker.session.closed for worker in net.values())
        for name in ("hub", *owners):
            assert "expired" not in sites.log(name)
