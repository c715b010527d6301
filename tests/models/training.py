"""One training and evaluation, to be run here and at a worker."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn

import obhut

from .conftest import Peeked

Make: TypeAlias = Callable[[], tuple[nn.Module, dict[str, Any]]]
"""Makes a model and what its ``forward`` takes, by name; it returns a ``loss``."""


class Trained(NamedTuple):
    """What a training leaves.

    Attributes:
        losses: of each step, and of the evaluation without gradients afterwards.
        grads: of the last step, by parameter.
        state: parameters and buffers, by name.
    """

    losses: list[torch.Tensor]
    grads: dict[str, torch.Tensor]
    state: dict[str, torch.Tensor]


def train(make: Make, place: Peeked | None, steps: int = 2) -> Trained:
    """Train a model for a few steps, here or at a worker.

    Args:
        make: the model and its inputs, drawn from the seed 0.
        place: where; None for here.
        steps: how many.
    """
    torch.manual_seed(0)
    model, inputs = make()
    value: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.detach
    if place is not None:
        value = place.value
        obhut.send(model, place.worker)
        inputs = {
            name: obhut.send(x, place.worker) if isinstance(x, torch.Tensor) else x
            for name, x in inputs.items()
        }
    torch.manual_seed(1)  # what a model draws while it runs
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**inputs)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss)
    model.eval()
    with torch.no_grad():
        losses.append(model(**inputs)["loss"])
    parameters = dict(model.named_parameters())
    state = {**parameters, **dict(model.named_buffers())}
    return Trained(
        [value(loss) for loss in losses],
        {n: value(p.grad) for n, p in parameters.items() if p.grad is not None},
        {n: value(x) for n, x in state.items()},
    )


@functools.cache
def trained_here(make: Make) -> Trained:
    """Return what the same training here leaves."""
    return train(make, None)


def check(make: Make, place: Peeked, atol: float = 0.0) -> None:
    """Check that a training at a worker leaves what it leaves here.

    Args:
        make: the model and its inputs.
        place: the worker.
        atol: how far values may be apart; 0 where they must be equal to the bit.
    """
    there, here = train(make, place), trained_here(make)
    assert len(here.grads) > 1
    _check_alike(dict(enumerate(there.losses)), dict(enumerate(here.losses)), atol)
    _check_alike(there.grads, here.grads, atol)
    _check_alike(there.state, here.state, atol)
    assert not place.log


def _check_alike(
    there: Mapping[Any, torch.Tensor], here: Mapping[Any, torch.Tensor], atol: float
) -> None:
    assert there.keys() == here.keys()
    for name, expected in here.items():
        assert not expected.double().isnan().any()
        torch.testing.assert_close(there[name], expected, rtol=0, atol=atol)
