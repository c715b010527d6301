"""Sums, scaled models and trimmed means: here, at open workers, at an aggregator."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import obhut
from obhut.errors import CallError, LocationError, ReleaseRefusedError
from obhut.federated import scale, total, trimmed_mean

OWNERS = ("alice", "bob", "carol", "dave", "erin")
POLICY = obhut.Quorum(aggregators=["sw"], contributors=OWNERS)
VALUES = [*torch.randn(5, 3, generator=torch.Generator().manual_seed(0))]
VALUES[2] = VALUES[2] + 1_000.0


class Counting(nn.Module):
    """A model with a buffer of whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)
        self.register_buffer("seen", torch.tensor([3]))


@pytest.fixture
def guarded() -> dict[str, obhut.VirtualWorker]:
    """Five owners, of whom each has a tensor, and an aggregator under one policy."""
    workers = {"sw": obhut.VirtualWorker("sw", policy=POLICY)}
    for place, name in enumerate(OWNERS):
        data = {"values": {"features": VALUES[place].clone()}}
        workers[name] = obhut.VirtualWorker(name, policy=POLICY, datasets=data)
    return workers


def moved(guarded) -> list[torch.Tensor]:
    """Return each owner's tensor, moved to the aggregator."""
    return [obhut.move(guarded[name]["values"], guarded["sw"]) for name in OWNERS]


def test_scaling_and_adding_is_a_weighted_mean():
    """Scale at the owners and total at the aggregator make average's result."""
    worker = obhut.VirtualWorker("w")
    models = [Counting() for _ in range(3)]
    shares = [0.5, 0.25, 0.25]
    sent = [obhut.send(copy.deepcopy(m), worker) for m in models]
    scaled = [scale(m, s) for m, s in zip(sent, shares, strict=True)]
    summed = obhut.get(total(scaled))
    mean = obhut.average(models, shares)
    torch.testing.assert_close(summed.linear.weight, mean.linear.weight)
    assert summed.seen.dtype is torch.float64
    assert summed.seen.item() == 3.0
    assert obhut.get(sent[0]).seen.dtype is torch.int64  # what is scaled stays


def test_scaled_tensors_have_no_history():
    """A scaled loss is a number, not a graph."""
    x = obhut.send(torch.ones(2), obhut.VirtualWorker("w")).requires_grad_()
    scaled = scale(x * 3, 0.5)
    assert not scaled.requires_grad
    assert scaled.get().tolist() == [1.5, 1.5]


def test_nothing_to_add_is_refused():
    """An empty sum has no shape."""
    with pytest.raises(CallError, match="got none"):
        total([])


@pytest.mark.parametrize("place", ["here", "open", "guarded"])
def test_a_trimmed_mean_is_the_same_everywhere(guarded, place):
    """Sorted, cut, averaged: in this process, at an open worker, at an aggregator."""
    wanted = torch.stack(VALUES).sort(0).values[1:-1].mean(0)
    if place == "guarded":
        parts = moved(guarded)
    elif place == "open":
        worker = obhut.VirtualWorker("w")
        parts = [obhut.send(value, worker) for value in VALUES]
    else:
        parts = VALUES
    made = trimmed_mean(parts)
    torch.testing.assert_close(made if place == "here" else made.get(), wanted)


def test_models_are_trimmed_tensor_by_tensor():
    """A model of nonsense moves the result little; whole numbers are refused."""
    models = [nn.Linear(2, 1) for _ in range(3)]
    with torch.no_grad():
        models[0].weight.fill_(1e6)
    made = trimmed_mean(models, 1)
    assert made.weight.abs().max() < 10
    with pytest.raises(CallError, match="int64"):
        trimmed_mean([Counting() for _ in range(3)])


def test_what_can_not_be_trimmed_is_refused(guarded):
    """Too few, different shapes, different places: named errors."""
    parts = [torch.ones(2), torch.zeros(2), torch.ones(2)]
    for trim in (0, 2):
        with pytest.raises(CallError, match="less than half"):
            trimmed_mean(parts, trim)
    with pytest.raises(CallError, match="one shape"):
        trimmed_mean([*parts[:2], torch.ones(3)])
    worker = obhut.VirtualWorker("w")
    with pytest.raises(LocationError):
        trimmed_mean([obhut.send(parts[0], worker), *parts[1:]])


def test_one_kind_of_combination_is_released(guarded):
    """After a trimmed mean no plain sum: the difference would be the extremes."""
    trimmed_mean(moved(guarded)).get()
    with pytest.raises(ReleaseRefusedError, match="kind"):
        total(moved(guarded)).get()
