"""How a model does on the owners' rows, without anybody's own result.

Each owner works out a metric over its rows, and scales it by its share of all rows; the
results move straight to an aggregator, and what comes here is their sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from obhut.client.functions import copy, get, move, send
from obhut.client.registry import Place

from .averaging import average, scale, to_shares, total
from .datasets import RemoteDataset


def evaluate(
    model: nn.Module,
    owners: Sequence[RemoteDataset],
    aggregator: Place | str,
    metric: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    batch_size: int | None = None,
    weights: Sequence[float] | None = None,
) -> torch.Tensor:
    """Return a metric of a model, averaged over the rows of all owners.

    A metric that is no mean over rows, such as the area under a curve, has no exact
    average; what can be counted or summed row by row has.

    Leak: the metric's average over the owners comes to this process; each owner's own
    goes to the aggregator.

    Args:
        model: here. Copies of it are tried, in evaluation mode.
        owners: the rows of each.
        aggregator: where the results are added, itself or by id.
        metric: of predictions and targets, a mean over the rows: a floating-point
            tensor of any shape. ``torch.stack([loss, correct])`` is two at once.
        batch_size: rows in a step; None for all of them.
        weights: one an owner; by default how many rows it has.

    Returns:
        The average, here, of the metric's shape and dtype.

    Raises:
        CallError: if there is no owner, or the weights do not fit.
        ObhutError: what went wrong at an owner or the aggregator.
    """
    shares = to_shares(
        [len(o) for o in owners] if weights is None else weights, len(owners)
    )
    found = []
    for owner, share in zip(owners, shares, strict=True):
        there = send(copy(model).eval(), owner.location)
        found.append(scale(_measured(there, owner, metric, batch_size), share))
    return get(total([move(one, aggregator) for one in found]))


def _measured(
    model: nn.Module,
    owner: RemoteDataset,
    metric: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    batch_size: int | None,
) -> torch.Tensor:
    """Return a metric over one owner's rows, which stays there."""
    results: list[torch.Tensor] = []
    rows: list[int] = []
    with torch.no_grad():
        for features, targets in owner.batches(batch_size):
            results.append(metric(model(features), targets))
            rows.append(len(targets))
    return average(results, weights=rows)
