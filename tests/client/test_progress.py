"""How far a virtual worker is, as another thread sees it."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

import obhut

POLICY = obhut.Quorum(aggregators=("hub",), contributors=("alice", "bob", "carol"))


@obhut.program
def total(x: torch.Tensor) -> torch.Tensor:
    """Add up rows."""
    return x.sum()


def heard(
    worker: obhut.VirtualWorker, data: Any, epochs: int = 2_000
) -> list[float | None]:
    """Return what another thread hears while a worker runs a program."""
    shares, running = [], threading.Event()

    def listen() -> None:
        while not running.wait(0.001):
            shares.append(worker.progress())

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        total.run(data=data, batch_size=1, epochs=epochs)
        worker.wait()
    finally:
        running.set()
        thread.join()
    return shares


def test_another_thread_sees_progress() -> None:
    """It is the share of the batches that are done, and nothing before and after."""
    bob = obhut.VirtualWorker("bob")
    x = obhut.send(torch.ones(8, 2), bob)
    assert bob.progress() is None
    shares = [one for one in heard(bob, (x,)) if one is not None]
    assert bob.progress() is None
    assert shares == sorted(shares)
    assert any(0 < one < 1 for one in shares)


@pytest.mark.parametrize(("rows", "epochs"), [("exact", 2_000), ("hidden", 50)])
def test_under_a_policy_nobody_sees_progress(rows: Any, epochs: int) -> None:
    """Neither while it is answered nor while it is done on the rows."""
    data = {"d": {"features": torch.ones(8, 2), "target": torch.ones(8)}}
    bob = obhut.VirtualWorker("bob", policy=POLICY, datasets=data, rows=rows)
    parts = bob.dataset("d", "features") if rows == "hidden" else (bob["d"],)
    assert {*heard(bob, parts, epochs)} == {None}
