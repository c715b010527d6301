"""Autocast casts the same weights as often for remote tensors as for local ones."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import obhut
from obhut.client.autocast import _noted
from obhut.client.remote_tensor import RemoteTensor

X = torch.linspace(-1, 1, 12).reshape(4, 3)


class Casts(TorchDispatchMode):
    """Counts the casts that reach the operators below autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.made: set[int] = set()
        self.kept: list[torch.Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Note the result of each cast, as long as it is not one noted before."""
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            self.kept.append(result)
            self.made.add(id(result))
        return result


def casts_of(weight: torch.Tensor, x: torch.Tensor) -> list[int]:
    """Return how many different casts each of several pieces of code makes."""
    counts: list[int] = []
    casts = Casts()

    def count(*, cached: bool = True, dtype: torch.dtype = torch.bfloat16) -> None:
        before = len(casts.made)
        with casts, torch.autocast("cpu", dtype, cache_enabled=cached):
            torch.mm(x, weight)
            with torch.no_grad():
                torch.mm(x, weight)
            with torch.autocast("cpu", enabled=False):
                torch.mm(x, weight)
            weight.bfloat16()
            weight.to(torch.bfloat16)
            torch.mm(x, weight.detach())
            torch.mm(x, weight[:, :1])
        counts.append(len(casts.made) - before)

    count()
    count(cached=False)
    count(dtype=torch.float16)
    with torch.autocast("cpu", torch.bfloat16):
        count()
        with torch.no_grad():
            count()
    weight.requires_grad_(False)
    count()
    return counts


def test_weights_are_cast_as_often_as_here(bob: obhut.VirtualWorker):
    """In each mode, and written by the program itself, views and frozen ones too."""
    here = casts_of(torch.ones(3, 3).requires_grad_(), torch.ones(2, 3))
    there = casts_of(
        obhut.send(torch.ones(3, 3).requires_grad_(), bob),
        obhut.send(torch.ones(2, 3), bob),
    )
    assert there == here


def test_casts_go_when_autocast_ends(bob: obhut.VirtualWorker):
    """Not before the outermost one does, and what they are of may go before."""
    model, x = obhut.send(nn.Linear(3, 3), bob), obhut.send(X, bob)
    before = bob.objects_count()
    with torch.autocast("cpu", torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16):
            model(x)
        casts = weakref.ref(_noted())
        assert len(casts()) == 2
        model(x)
        assert len(casts()) == 2
        assert bob.objects_count() == before + 2
        del model
        assert len(casts()) == 0
    assert casts() is None
    assert bob.objects_count() == 1
    with torch.autocast("cpu", torch.bfloat16):
        assert len(_noted()) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_shared_weight_has_the_gradient_that_it_has_here(
    dtype: torch.dtype, bob: obhut.VirtualWorker
):
    """Its uses are added in the lower precision; a step in between is not seen."""

    def run(at: obhut.VirtualWorker | None) -> list[torch.Tensor]:
        torch.manual_seed(0)
        cell, out, x = nn.GRUCell(3, 3), nn.Linear(3, 1), X
        for part in (cell, out) if at is not None else ():
            obhut.send(part, at)
        if at is not None:
            x = obhut.send(X, at)
        weights = [*cell.parameters(), *out.parameters()]
        optimizer = torch.optim.SGD(weights, lr=0.5)
        seen: list[torch.Tensor] = []
        with torch.autocast("cpu", dtype):
            for _ in range(3):
                optimizer.zero_grad()
                state = x * 0
                for _ in range(3):
                    state = cell(x, state)
                loss = (out(state).float() ** 2).mean()
                loss.backward()
                seen += [loss.detach(), *(w.grad.clone() for w in weights)]
                optimizer.step()
        values = [*seen, *(w.detach() for w in weights)]
        return [v.get() if isinstance(v, RemoteTensor) else v for v in values]

    for there, here in zip(run(bob), run(None), strict=True):
        assert torch.equal(there, here)
