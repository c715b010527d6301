"""The scaler of gradients, over workers, and behind a policy."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import obhut
from obhut.errors import UnsupportedError

X = torch.linspace(-1, 1, 6).reshape(2, 3)


def test_one_scaler_for_parameters_at_several_places(
    bob: obhut.VirtualWorker, alice: obhut.VirtualWorker
):
    """An infinite gradient at any of them keeps all as they are."""
    layers = [obhut.send(nn.Linear(3, 1), bob), obhut.send(nn.Linear(3, 1), alice)]
    layers.append(nn.Linear(3, 1))
    places = [obhut.send(X, bob), obhut.send(X, alice), X]
    weights = [layer.weight for layer in layers]
    optimizer = torch.optim.SGD(weights, lr=0.1)
    for infinite in (None, 0, 1, 2):
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        before = [weight.detach().clone() for weight in weights]
        for number, (layer, x) in enumerate(zip(layers, places, strict=True)):
            factor = float("inf") if number == infinite else 1.0
            scaler.scale(layer(x).sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        same = [
            torch.equal(weight, old)
            for weight, old in zip(weights, before, strict=True)
        ]
        assert same == [infinite is not None] * 3
        assert scaler.get_scale() == (8.0 if infinite is None else 4.0)


def test_a_policy_does_not_tell_whether_gradients_are_finite():
    """The error says what to write instead, and that works."""
    policy = obhut.Quorum(
        aggregators=("hub",), contributors=("bob", "alice", "carol"), requesters=("me",)
    )
    bob = obhut.VirtualWorker("bob", policy=policy)
    model, x = obhut.send(nn.Linear(3, 1), bob), obhut.send(X, bob)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for enabled in (True, False):
        scaler = torch.amp.GradScaler("cpu", enabled=enabled)
        scaler.scale(model(x).sum()).backward()
        if enabled:
            with pytest.raises(UnsupportedError, match=r"GradScaler.*enabled=False"):
                scaler.step(optimizer)
        else:
            scaler.step(optimizer)
            scaler.update()
