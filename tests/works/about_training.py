"""Training a model where the rows are."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from obhut.federated import LocalTraining, RemoteDataset

from .programs import Location, row


@row("`LocalTraining` of a model with a BatchNorm that is frozen by `norm.eval()`")
def frozen_norm(at: Location) -> Any:
    """The norm goes on with the statistics that it has."""
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    model[1].eval()
    x, y = torch.randn(8, 2), torch.randn(8, 1)
    sgd = partial(torch.optim.SGD, lr=0.1)
    if at.worker is not None:
        rows = RemoteDataset.send(x, y, at.worker)
        LocalTraining(sgd, F.mse_loss, batch_size=4).run(at.send(model), rows)
    else:
        opt = sgd(model.parameters())
        for features, targets in zip(x.split(4), y.split(4), strict=True):
            opt.zero_grad()
            F.mse_loss(model(features), targets).backward()
            opt.step()
    return dict(at.get(model).state_dict())


@row("`LocalTraining` with `drop_last`, where a last batch would have one row")
def last_batch_of_one(at: Location) -> Any:
    """A BatchNorm, which can not train on one row, is spared it."""
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    x, y = torch.randn(9, 2), torch.randn(9, 1)
    sgd = partial(torch.optim.SGD, lr=0.1)
    if at.worker is not None:
        rows = RemoteDataset.send(x, y, at.worker)
        training = LocalTraining(sgd, F.mse_loss, batch_size=4, drop_last=True)
        training.run(at.send(model), rows)
    else:
        opt = sgd(model.parameters())
        for features, targets in zip(x[:8].split(4), y[:8].split(4), strict=True):
            opt.zero_grad()
            F.mse_loss(model(features), targets).backward()
            opt.step()
    return dict(at.get(model).state_dict())
