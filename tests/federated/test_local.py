from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import obhut
from obhut.errors import CallError
from obhut.federated import LocalTraining, RemoteDataset

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_training_is_the_ordinary_loop(batch_size: int | None) -> None:
    """Training at a worker equals the loop that PyTorch's users write, to 1e-6."""
    owner = obhut.VirtualWorker("owner")
    features, targets = torch.randn(10, 3), torch.randn(10, 1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    remote = obhut.send(obhut.copy(model), owner)
    training = LocalTraining(SGD, F.mse_loss, epochs=3, batch_size=batch_size)
    loss = training.run(remote, RemoteDataset.send(features, targets, owner))

    opt = SGD(model.parameters())
    total = 0.0
    for _ in range(3):
        total = 0.0
        for x, y in zip(
            features.split(batch_size or 10),
            targets.split(batch_size or 10),
            strict=True,
        ):
            opt.zero_grad()
            expected = F.mse_loss(model(x), y)
            expected.backward()
            opt.step()
            total += expected.item() * len(x) / 10
    assert loss.location is owner
    torch.testing.assert_close(loss.get().item(), total, atol=1e-6, rtol=1e-6)
    for name, value in obhut.get(remote).state_dict().items():
        torch.testing.assert_close(
            value, model.state_dict()[name], atol=1e-6, rtol=1e-6
        )


def test_training_sets_training_mode() -> None:
    """A model that was evaluated last trains with its dropout on."""
    owner = obhut.VirtualWorker("owner")
    model = obhut.send(nn.Sequential(nn.Linear(3, 1), nn.Dropout()).eval(), owner)
    dataset = RemoteDataset.send(torch.randn(4, 3), torch.randn(4, 1), owner)
    LocalTraining(SGD, F.mse_loss).run(model, dataset)
    assert model.training


def test_there_is_an_epoch() -> None:
    """Training for no epoch is refused when it is described."""
    with pytest.raises(CallError, match="1 epoch"):
        LocalTraining(SGD, F.mse_loss, epochs=0)
