"""Averages of models that are at one worker.

Source: McMahan et al. 2017, arXiv 1602.05629, algorithm 1 (FederatedAveraging).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import nn

from obhut.errors import CallError

Module = TypeVar("Module", bound=nn.Module)


def average(models: Sequence[Module], weights: Sequence[float] | None = None) -> Module:
    """Return the weighted mean of models, at the worker where they are.

    Floating-point parameters and buffers are averaged. Others, such as the number
    of batches that a BatchNorm has seen, are averaged and rounded to the nearest
    number. The models stay as they are.

    Args:
        models: of the same architecture, all at one place.
        weights: one a model, for instance how many rows it was trained on; they
            need not sum to 1. By default all weigh the same.

    Returns:
        A new model at the same place.

    Raises:
        CallError: if there is no model, or the weights do not fit.
        LocationError: if the models are not at one place.
    """
    if not models:
        raise CallError("expected at least one model to average, got none")
    if weights is None:
        weights = [1.0] * len(models)
    if len(weights) != len(models) or not sum(weights) > 0:
        raise CallError(
            f"expected one weight for each of {len(models)} models and a positive sum, "
            f"got {list(weights)}"
        )
    total = float(sum(weights))
    states = [model.state_dict(keep_vars=False) for model in models]
    result = copy.deepcopy(models[0])
    with torch.no_grad():
        for name, target in result.state_dict().items():
            mean = torch.zeros_like(target, dtype=_working_dtype(target))
            for state, weight in zip(states, weights, strict=True):
                mean = mean + state[name] * (weight / total)
            target.copy_(mean if target.is_floating_point() else mean.round())
    return result


def _working_dtype(target: torch.Tensor) -> torch.dtype:
    exact = target.is_floating_point() or target.is_complex()
    return target.dtype if exact else torch.float64


def federated_avg(models: dict[object, Module] | Sequence[Module]) -> Module:
    """Return the mean of models, as the seed's library named it.

    Args:
        models: a sequence, or a dictionary by worker as the seed's programs pass.
    """
    return average(list(models.values()) if isinstance(models, dict) else models)
