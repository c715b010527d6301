"""Policies that compare programs, at workers that are really served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import obhut
from obhut.client.network import Network
from obhut.errors import ReleaseRefusedError

from .conftest import World
from .test_guarded import DATA, OWNERS, POLICY, entered, trained

SAME = POLICY + 'programs = "same"\n'


@pytest.fixture(scope="module")
def comparing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Three owners and an aggregator under a policy that compares programs."""
    names = ("secure_worker", *OWNERS, "me", "you", "mallory")
    world = World(tmp_path_factory.mktemp("comparing"), names)
    draw = torch.Generator().manual_seed(5)
    try:
        world.serve("secure_worker", policy=SAME, deliver=OWNERS)
        reach = {"secure_worker": world.address("secure_worker")}
        for owner in OWNERS:
            rows = torch.rand(20, 3, generator=draw).tolist()
            lines = "".join(f"{a},{b},{y}\n" for a, b, y in rows)
            file: Path = world.root / owner / "data.csv"
            file.write_text("a,b,y\n" + lines)
            world.serve(owner, policy=SAME, deliver=(), reach=reach, more=DATA)
        yield world
    finally:
        world.close()


def summed(net: Network, parts: list[torch.Tensor]) -> torch.Tensor:
    """Return the sum of what owners computed."""
    a, b, c = (obhut.move(part, net["secure_worker"]) for part in parts)
    return obhut.get(a + b + c)


def test_one_computation_is_released(comparing: World):
    """The same code at three owners, whatever was done before at one of them."""
    with entered(comparing) as net:
        aside = obhut.send(torch.ones(2, requires_grad=True), net["bob"])
        (net["bob"]["d"] * aside).sum().backward()
        _, models, losses = trained(net)
        assert summed(net, [one.weight.data for one in models]).isfinite().all()
        assert summed(net, losses).isfinite()


def test_another_computation_is_refused(comparing: World):
    """It is said whose; the sum is not over, and another one leaves."""
    with entered(comparing) as net:
        parts = [net[name]["d"].sum(0) for name in OWNERS]
        scales = (1.0, 0.0, 1.0)
        scaled = [part * scale for part, scale in zip(parts, scales, strict=True)]
        with pytest.raises(ReleaseRefusedError, match="and bob computed") as told:
            summed(net, scaled)
        assert told.value.rule == "program"
        assert summed(net, parts).shape == (2,)


@pytest.mark.parametrize("size", [3, 2**20])
def test_what_is_sent_is_told_by_its_bytes(comparing: World, size: int):
    """Also where it is large, and the process that answers gets none of it."""
    with entered(comparing) as net:

        def sent(*values: float) -> list[torch.Tensor]:
            return [
                net[name]["d"].sum() * obhut.send(torch.full((size,), value), net[name])
                for name, value in zip(OWNERS, values, strict=True)
            ]

        assert summed(net, sent(1.0, 1.0, 1.0)).shape == (size,)
        with pytest.raises(ReleaseRefusedError, match="and alice computed"):
            summed(net, sent(0.0, 1.0, 1.0))


def test_draws_that_are_seeded_are_one_computation(comparing: World):
    """What a model drops is the same everywhere, if each owner's part is seeded."""
    with entered(comparing) as net:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 1))

        def passed(seeds: tuple[int, ...]) -> list[torch.Tensor]:
            made = []
            for name, seed in zip(OWNERS, seeds, strict=True):
                copy = obhut.send(obhut.copy(model), net[name])
                x = net[name]["d"]
                with net[name]:
                    torch.manual_seed(seed)
                    made.append(copy(x).sum().detach())
            return made

        assert summed(net, passed((1, 1, 1))).isfinite()
        with pytest.raises(ReleaseRefusedError, match="and carol computed"):
            summed(net, passed((1, 1, 2)))


def test_a_decision_is_the_same_after_a_restart(comparing: World):
    """The record holds what was decided on."""
    with entered(comparing) as net:
        parts = [net[name]["d"].mean(0) for name in OWNERS]
        summed(net, parts)
    served = comparing.served["secure_worker"]
    *_, last = served._guarding.ledger.entries()
    (made,) = last.made
    assert len(bytes.fromhex(made)) == 32
    listen = comparing.address("secure_worker")
    served.close(grace=0)
    comparing.serve("secure_worker", policy=SAME, deliver=OWNERS, listen=listen)
    with entered(comparing) as net:
        summed(net, [net[name]["d"].mean(0) for name in OWNERS])
