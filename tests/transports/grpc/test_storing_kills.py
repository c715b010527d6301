"""An owner's worker that is killed while something is stored there."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import pytest
import torch

import obhut
from obhut.client.workers import RemoteWorker
from obhut.errors import ObhutError
from obhut.host.state_files import FOLDER, StatesOnDisk
from obhut.testing.sites import Sites

pytestmark = pytest.mark.slow

POLICY = """
kind = "Quorum"
aggregators = ["hub"]
contributors = ["bob", "alice", "carol"]
requesters = ["me"]
"""
NAMES = ("hub", "bob", "alice", "carol", "me")


def serve(sites: Sites) -> str:
    """Serve bob under a policy; return the address."""
    return sites.serve("bob", policy=POLICY, deliver=(), sessions=["me"])


def store(bob: RemoteWorker, first: int, listed: list[int]) -> None:
    """Store one version after the other until the worker is gone."""
    with contextlib.suppress(ObhutError):
        for version in range(first, first + 500):
            value = obhut.send(torch.full((500_000,), float(version)), bob)
            bob.store("n", version, [value])
            listed[:] = bob.stored("n")


@pytest.mark.timeout(300)
def test_a_killed_owner_has_each_version_whole_or_not(tmp_path: Path) -> None:
    """At four moments; what was listed before is there after."""
    with Sites(tmp_path, NAMES) as sites:
        first, listed, address = 1, list[int](), serve(sites)
        for delay in (0.0, 0.05, 0.15, 0.4):
            with obhut.connect(address, folder=sites.root / "me") as net:
                bob = net["bob"]
                assert set(listed[-1:]) <= set(bob.stored("n"))
                storing = threading.Thread(target=store, args=(bob, first, listed))
                storing.start()
                threading.Event().wait(0.1 + delay)
                sites.kill("bob")
                serve(sites)
                storing.join(60)
                assert not storing.is_alive()
            there = StatesOnDisk(sites.root / "bob" / FOLDER).listed()
            numbers = [one.stored.state.version for one in there]
            assert max(numbers, default=0) >= max(listed, default=0)
            for one in there:
                content = bytearray(one.path.read_bytes()[-2_000_000:])
                values = torch.frombuffer(content, dtype=torch.float32)
                assert bool((values == one.stored.state.version).all())
            first = max(numbers, default=0) + 1
        with obhut.connect(address, folder=sites.root / "me") as net:
            last = net["bob"].stored("n")[-1]
            assert net["bob"].recall("n", last)[0].shape == (500_000,)
