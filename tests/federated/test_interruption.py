"""Ctrl-C in a round of averaging, under a policy and without one."""

from __future__ import annotations

import copy
import os
import signal
import threading
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import obhut
from obhut.federated import LocalTraining, RemoteDataset, train_round
from obhut.federated.parameters import taken_back, write

TRAINING = LocalTraining(
    partial(torch.optim.SGD, lr=0.1, momentum=0.9), F.mse_loss, epochs=8
)
OWNERS = ("bob", "alice", "carol")
POLICY = obhut.Quorum(aggregators=["secure_worker"], contributors=list(OWNERS))


# Where it comes in a weakref's callback Python says so and goes on.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.unrecorded("Ctrl-C comes in the middle, which is no message")
@pytest.mark.parametrize("policy", [None, POLICY])
def test_a_round_after_ctrl_c_is_a_round(policy: obhut.Quorum | None) -> None:
    """Whenever it comes, the model is as it was, and the next round as ever."""
    torch.manual_seed(0)
    parts = [(torch.randn(12, 3), torch.randn(12, 1)) for _ in OWNERS]
    aggregator = obhut.VirtualWorker("secure_worker", policy=policy)
    owners = []
    for name, (x, y) in zip(OWNERS, parts, strict=True):
        data = {"rows": {"features": x, "target": y}}
        worker = obhut.VirtualWorker(name, policy=policy, datasets=data)
        owners.append(RemoteDataset(worker["rows"], worker["rows", "target"]))
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    expected = copy.deepcopy(model)
    loss = train_round(expected, owners, aggregator, TRAINING)
    cuts = 0
    for delay in range(1, 16):
        fresh = copy.deepcopy(model)
        press = threading.Timer(delay * 0.01, os.kill, (os.getpid(), signal.SIGINT))
        try:
            press.start()
            try:
                train_round(fresh, owners, aggregator, TRAINING)
            finally:
                press.join()
        except KeyboardInterrupt:
            cuts += 1
        # Either no parameter has changed or all have.
        changed = {
            torch.equal(a, b)
            for a, b in zip(fresh.parameters(), model.parameters(), strict=True)
        }
        assert len(changed) == 1
        again = copy.deepcopy(model)
        assert train_round(again, owners, aggregator, TRAINING) == loss
        assert all(map(torch.equal, again.parameters(), expected.parameters()))
    assert cuts


@pytest.mark.parametrize("last", range(4))
def test_ctrl_c_while_the_model_is_written_takes_it_back(last: int) -> None:
    """After any of its tensors was written, all are as they were."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    named, before = dict(model.named_parameters()), copy.deepcopy(model)
    first = dict(before.named_parameters())
    names = [*named][: last + 1]

    def press() -> None:
        with taken_back(named, first):
            write(named, {name: torch.ones_like(named[name]) for name in names})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        press()
    assert all(map(torch.equal, model.parameters(), before.parameters()))
