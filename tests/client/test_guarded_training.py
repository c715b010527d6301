"""Training at an owner's worker behind a guard is the same as at an open one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.models.conftest import POLICY, Peeked
from torch import nn

import obhut
from obhut.errors import CallError, RemoteExecutionError


class Block(nn.Module):
    """Two convolutions with batch norm, and a way around them."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inside, outside, 3, padding=1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(inplace=True),
            nn.Conv2d(outside, outside, 3, padding=1, bias=False),
            nn.BatchNorm2d(outside),
        )
        self.around = nn.Sequential(
            nn.Conv2d(inside, outside, 1, bias=False),
            nn.BatchNorm2d(outside, affine=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output."""
        return torch.relu(self.body(x) + self.around(x))


def residual() -> nn.Module:
    """Return a small residual network."""
    return nn.Sequential(
        Block(1, 4),
        nn.MaxPool2d(2),
        Block(4, 6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(6, track_running_stats=False),
        nn.Dropout(0.2),
        nn.Linear(6, 3),
    )


def trained(place: Peeked, make: Callable[[], nn.Module]) -> list[torch.Tensor]:
    """Train a network at a place; return all that it consists of, and predictions."""
    torch.manual_seed(0)
    model = obhut.send(make(), place.worker)
    x = obhut.send(torch.randn(8, 1, 6, 6), place.worker)
    y = obhut.send(torch.arange(8) % 3, place.worker)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        unseen = model(x)
    model.train()
    with torch.no_grad():
        model(x)  # statistics are taken without gradients too
    model.eval()
    tracked = model(x)
    nn.functional.cross_entropy(tracked, y).backward()
    values = [*model.parameters(), *model.buffers(), unseen, tracked]
    grads = [p.grad for p in model.parameters()]
    return [place.value(one) for one in (*values, *grads) if one is not None]


NETWORKS = {
    "residual": residual,
    "instance norm": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        nn.InstanceNorm2d(4),
        nn.Flatten(),
        nn.Linear(64, 3),
    ),
    "other norms": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.GroupNorm(2, 4),
        nn.LocalResponseNorm(2),
        nn.Flatten(),
        nn.LayerNorm(64),
        nn.Linear(64, 3),
        nn.RMSNorm(3),
    ),
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_training_behind_a_guard_is_the_same(make):
    """Weights, statistics, predictions and gradients equal an open worker's."""
    behind, open_ = Peeked("bob", guarded=True), Peeked("bob", guarded=False)
    ours, theirs = trained(behind, make), trained(open_, make)
    assert len(ours) == len(theirs) > 6
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)
        assert not torch.isnan(one.double()).any()
    assert behind.log == []


NORMS = {
    "function": nn.functional.batch_norm,
    "torch.batch_norm": lambda x, mean, var, weight, bias, training: torch.batch_norm(
        x, weight, bias, mean, var, training, 0.1, 1e-5, True
    ),
    "instance norm": nn.functional.instance_norm,
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("around", ["grad", "no grad", "autocast", "inference"])
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_norms_with_statistics_run_in_every_mode(norm, around, training):
    """A norm and the statistics that it leaves are the same as where nobody guards."""
    modes = {
        "grad": torch.enable_grad,
        "no grad": torch.no_grad,
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "inference": torch.inference_mode,
    }
    made = []
    for place in (Peeked("bob", guarded=True), Peeked("bob", guarded=False)):
        torch.manual_seed(1)
        x, mean, bias = torch.randn(4, 3, 5, 2), torch.randn(3), torch.randn(3)
        sent = [
            obhut.send(one, place.worker) for one in (x, mean, mean * mean, bias, bias)
        ]
        with modes[around]():
            result = norm(*sent, training)
        made.append([place.value(one) for one in (result, *sent)])
    for one, other in zip(*made, strict=True):
        assert torch.equal(one, other)


def test_statistics_of_another_dtype_are_refused_in_words():
    """What a kernel would refuse is told: it depends on dtypes, not on values."""
    bob = obhut.VirtualWorker("bob", policy=POLICY, blocking=True)
    x = obhut.send(torch.ones(4, 3), bob)
    mean = obhut.send(torch.ones(3, dtype=torch.float64), bob)
    with pytest.raises(CallError, match=r"behind a guard expected torch\.float32"):
        nn.functional.batch_norm(x, mean, mean, training=True)


WRONG = {
    "float64 rows": (torch.ones(4, 2).double(), torch.zeros(4, dtype=torch.int64)),
    "int32 rows": (torch.ones(4, 2).int(), torch.zeros(4, dtype=torch.int64)),
    "int32 targets": (torch.ones(4, 2), torch.zeros(4, dtype=torch.int32)),
}


@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG)
def test_data_of_another_dtype_is_refused_in_pytorchs_words(data):
    """As here: it does not train to zeros in silence."""
    features, target = data
    rows = {"rows": {"features": features, "target": target}}
    bob = obhut.VirtualWorker("bob", policy=POLICY, blocking=True, datasets=rows)
    local = nn.Linear(2, 3)

    def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(x), y)

    with pytest.raises(RuntimeError) as here:
        loss(local, features, target)
    with pytest.raises(RemoteExecutionError) as there:
        loss(obhut.send(local, bob), bob["rows"], bob["rows", "target"])
    assert str(here.value) in str(there.value)
    bob.close()
