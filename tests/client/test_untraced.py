"""PyTorch's compiler leaves this package alone."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

import obhut
from obhut.errors import LocationError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's

X = torch.linspace(-1, 1, 6).reshape(2, 3)
SOURCE = str(Path(obhut.__file__).parent)


def test_no_line_of_it_is_traced(
    bob: obhut.VirtualWorker, caplog: pytest.LogCaptureFixture
):
    """While functions and modules with remote tensors are compiled, and go back."""
    model = obhut.send(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1)), bob)
    x = obhut.send(X, bob)

    @torch.compile
    def step(x: torch.Tensor) -> torch.Tensor:
        loss = (model(x).sigmoid() * 2).mean()
        loss.backward()
        return torch.where(loss > 0, loss, loss + 1).detach().get()

    log = logging.getLogger("torch._dynamo.symbolic_convert")
    log.setLevel(logging.INFO)
    try:
        with caplog.at_level(logging.INFO, "torch._dynamo"):
            log.propagate = True
            loss = step(x)
    finally:
        log.setLevel(logging.NOTSET)
    assert torch.equal(loss, (obhut.get(model)(X).sigmoid() * 2).mean().detach())
    assert not [record for record in caplog.messages if SOURCE in record]


def test_compiled_code_raises_what_it_would_raise(bob: obhut.VirtualWorker):
    """Uncompiled is also how it fails."""
    f = torch.compile(lambda x: x + torch.ones(2, 3))
    with pytest.raises(LocationError):
        f(obhut.send(X, bob))
