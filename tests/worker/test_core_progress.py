"""What a core tells of how much of a batch is done, and when it tells nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from obhut.guard.policy import Quorum
from obhut.programs.text import digest
from obhut.protocol.messages import DatasetRows, Define, RunProgram
from obhut.worker.core import Worker
from obhut.worker.roles import Aggregator, Owner, Role

from .conftest import Driver

SUM = """obhut program 1
rows %x: float32[$B, 2]
%0 = aten.sum.default(%x)
return %0 / $B
"""
WHOLE = """obhut program 1
rows %x: float32[$B, 2]
batches 4 epochs 1:
  then:
    %0 = aten.sum.default(%x)
batches 5 epochs 2:
  then:
    %1 = aten.sum.default(%x)
%2 = aten.zeros.default([], device=here)
return %2 / 1*$N0
"""
POLICY = Quorum(aggregators=("hub",), contributors=("alice", "bob", "carol"))


def shares(rows: int = 8, role: Role | None = None) -> tuple[Driver, list[float]]:
    """Return a worker's client, and what the worker tells."""
    told: list[float] = []
    data = {"d": {"features": torch.ones(rows, 2)}}
    worker = Worker("bob", datasets=data, role=role, progress=told.append)
    me = Driver(worker)
    me.open()
    return me, told


def run(text: str, out: int, **how: int) -> RunProgram:
    """Return a run over the worker's data."""
    return RunProgram(digest(text), (), DatasetRows("d", ("features",)), out, 2, **how)


def test_a_run_tells_after_each_batch() -> None:
    """Over all of its epochs, up to all."""
    me, told = shares()
    assert me(Define(SUM), run(SUM, 1, batch_size=4, epochs=2)) == []
    assert told == [0.25, 0.5, 0.75, 1.0]


def test_a_whole_training_tells_over_all_loops() -> None:
    """Each batch of each of them counts alike, and a last small one too."""
    me, told = shares()
    assert me(Define(WHOLE), run(WHOLE, 1)) == []
    assert told == pytest.approx([n / 6 for n in range(1, 7)])


def test_runs_of_one_batch_count_alike() -> None:
    """What is done never becomes less; the next batch begins anew."""
    me, told = shares()
    me(Define(SUM), run(SUM, 1, batch_size=4), run(SUM, 3))
    me(run(SUM, 5))
    assert told == [0.25, 0.5, 1.0, 1.0]


def test_a_long_run_tells_a_thousand_times() -> None:
    """Its steps pay for no more."""
    me, told = shares(rows=7)
    me(Define(SUM), run(SUM, 1, batch_size=1, epochs=1_000))
    assert 500 <= len(told) <= 1_000
    assert told == sorted(told)


@pytest.mark.parametrize("role", [Owner, Aggregator])
def test_under_a_policy_nothing_is_told(role: Callable[[Quorum], Role]) -> None:
    """Whoever listens."""
    me, told = shares(role=role(POLICY))
    me(Define(SUM), run(SUM, 1, batch_size=4, epochs=2))
    assert told == []
