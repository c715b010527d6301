"""How much of what a served worker computes is done, as its client sees it."""

from __future__ import annotations

import logging
import re
import threading
from typing import Any

import pytest
import torch
from torch import nn

import obhut
from obhut.client.workers import RemoteWorker
from obhut.host import waiting
from obhut.transports.grpc.watching import read

from .conftest import Connect


@obhut.program
def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor
) -> torch.Tensor:
    """Take a step."""
    optimizer.zero_grad()
    loss: torch.Tensor = ((model(x) - y) ** 2).mean()
    loss.backward()
    optimizer.step()
    return loss


def begin(worker: RemoteWorker, epochs: int) -> Any:
    """Let a worker go through rows so often, in a hundred batches; return the loss."""
    x = obhut.send(torch.ones(100, 4), worker)
    y = obhut.send(torch.zeros(100, 1), worker)
    model = obhut.send(nn.Linear(4, 1), worker)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    given = {"model": model, "optimizer": optimizer, "data": (x, y)}
    loss = step.run(batch_size=1, epochs=epochs, **given)
    return loss.numerator


def test_progress_goes_up_until_it_is_done(enter: Connect) -> None:
    """It is asked for beside the run, which it waits for no more than others do."""
    bob = enter("me")["bob"]
    assert bob.progress() is None
    loss = begin(bob, 300)
    shares = []
    while (done := bob.progress()) is not None:
        shares.append(done)
        threading.Event().wait(0.02)
    assert shares == sorted(shares)
    assert any(0 < one < 1 for one in shares)
    assert len(loss.get()) == 300


def test_a_long_wait_says_how_much_is_done(
    enter: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As it says what it waits for, from time to time."""
    monkeypatch.setattr(waiting, "SECONDS", 0.05)
    monkeypatch.setattr(waiting, "AGAIN_SECONDS", 0.0)
    caplog.set_level(logging.WARNING, "obhut.waiting")
    begin(enter("me")["bob"], 300).get()
    lines = [record.getMessage() for record in caplog.records]
    assert any(
        re.fullmatch(r"waiting for bob at \S+: \d0 % done", one) for one in lines
    )


def test_what_could_not_be_asked_is_not_known(enter: Connect) -> None:
    """A way that is closed, or was never open, answers nothing."""
    bob = enter("me")["bob"]
    transport = bob.session._transport
    assert transport.progress(bob.session.name, 1) is None
    obhut.send(torch.ones(1), bob).get()
    assert transport.progress(bob.session.name, 1) == 1.0
    bob.close()
    assert transport.progress(bob.session.name, 1) is None
    assert read(None) is None
