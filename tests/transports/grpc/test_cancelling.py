"""Ctrl-C at a client of served workers: what was asked for ends there too."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import obhut
from obhut.client.network import Network
from obhut.errors import CancelledError
from obhut.testing.sites import Sites

ROUND_SECONDS = 20.0
"""About how long the round would take that Ctrl-C ends."""


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Network]:
    """Connect to two served workers."""
    with Sites(tmp_path, ("bob", "alice", "me")) as sites:
        addresses = [sites.serve(name, sessions=["me"]) for name in ("bob", "alice")]
        with obhut.connect(*addresses, folder=sites.root / "me") as connected:
            yield connected


def press_soon() -> threading.Timer:
    """Let Ctrl-C come in a second."""
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    return timer


class Busy:
    """Work at two workers, in requests that take some milliseconds each."""

    def __init__(self, net: Network) -> None:
        self.matrices = [obhut.send(torch.eye(500), net[n]) for n in ("bob", "alice")]
        self.seconds = min(self.take(20) for _ in range(3)) / 20

    def take(self, requests: int) -> float:
        """Ask for so many products at each worker; return how long it took."""
        began = time.monotonic()
        results = self.matrices
        for _ in range(requests):
            results = [a @ b for a, b in zip(results, self.matrices, strict=True)]
        assert [one.trace().item() for one in results] == [500.0, 500.0]
        return time.monotonic() - began


@pytest.mark.parametrize("served", [True, False])
def test_the_next_round_begins_within_a_second(net: Network, served: bool) -> None:
    """Ctrl-C in a round of twenty seconds leaves nothing that has to be waited for."""
    workers = net if served else {n: obhut.VirtualWorker(n) for n in ("bob", "alice")}
    work = Busy(workers)  # type: ignore[arg-type] # looked up by name, as either is
    press = press_soon()
    with pytest.raises(KeyboardInterrupt) as stopped:
        work.take(int(ROUND_SECONDS / work.seconds))
    press.join()
    began = time.monotonic()
    # One product at each worker is what a next round would begin with.
    assert work.take(1) > 0
    assert time.monotonic() - began < 1.0
    # One of two that are here has nothing to do while the other computes. Sessions that
    # other tests left with something to do are cancelled and told as well.
    said = {note.partition(":")[0] for note in stopped.value.__notes__}
    busy = said & {"bob", "alice"}
    assert busy == {"bob", "alice"} if served else busy


def test_what_was_cut_says_so(net: Network) -> None:
    """What the abandoned round made is nothing; what was there before it is there."""
    work = Busy(net)
    press = press_soon()
    result = work.matrices[0]
    try:
        for _ in range(int(ROUND_SECONDS / work.seconds)):
            result = result @ work.matrices[0]
        result.trace().item()
        pytest.fail("nobody pressed Ctrl-C")
    except KeyboardInterrupt:
        press.join()
    assert work.matrices[0].trace().item() == 500.0
    with pytest.raises(CancelledError, match=r"matmul"):
        (result @ work.matrices[0]).trace().item()
    assert net["bob"].objects_count() <= 3


def test_a_message_that_was_cut_in_the_middle_breaks_nothing(
    net: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while a large tensor is copied leaves the way to its worker usable."""
    x = obhut.send(torch.ones(3), net["bob"])
    assert x.sum().item() == 3.0
    from obhut.transports.grpc import client, wire

    whole, left = wire.fill, [3]

    def fill(to: memoryview, what: memoryview) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        whole(to, what)

    monkeypatch.setattr(client.wire, "fill", fill)
    with pytest.raises(KeyboardInterrupt):
        obhut.send(torch.ones(10_000_000), net["bob"])
    monkeypatch.undo()
    assert x.sum().item() == 3.0
    assert obhut.send(torch.ones(1_000_000), net["bob"]).sum().item() == 1_000_000.0
