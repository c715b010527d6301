"""How a model does on the owners' rows, without anybody's own result.

Each owner works out a metric over its rows; the results move straight to an aggregator,
weighed by rows, and what comes here is their mean.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import nn

from obhut.client.functions import copy
from obhut.client.modules import send_copy
from obhut.client.programs import Program
from obhut.client.registry import Place
from obhut.client.remote_dataset import RemoteDataset
from obhut.errors import CallError, NonFiniteError, ProgramError

from .contributions import OnNonFinite, check_choice, collected, weights_of
from .row_means import sums_over_rows

Metric: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""A metric of predictions and targets, a mean over the rows."""


def evaluate(
    model: nn.Module,
    owners: Sequence[RemoteDataset],
    aggregator: Place | str,
    metric: Metric,
    *,
    batch_size: int | None = None,
    weights: Sequence[float] | None = None,
    on_non_finite: OnNonFinite = "raise",
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
        on_non_finite: if an owner's result is NaN or infinite, or failed, ``raise`` the
            error, or ``skip`` the metric and return NaN.

    Returns:
        The average, here, of the metric's shape and dtype.

    Raises:
        CallError: if there is no owner, or the weights do not fit.
        NonFiniteError: if an owner's result is NaN or infinite, or failed.
        ObhutError: what went wrong at an owner or the aggregator.
    """
    check_choice(on_non_finite)
    weighing = weights_of(owners, weights)
    tried = copy(model).eval()
    found = [
        _measured(send_copy(tried, owner.location), owner, metric, batch_size)
        for owner in owners
    ]
    shape, dtype = found[0].value.shape, found[0].dtype
    try:
        (average,) = collected(
            [[one.value] for one in found],
            aggregator,
            [dtype],
            weighing,
            "look for empty cells in their rows, or for a metric that divides by 0",
        )
    except NonFiniteError:
        if on_non_finite == "raise":
            raise
        return torch.full(shape, math.nan, dtype=dtype)
    return average


class _Measured(NamedTuple):
    """What an owner has found.

    Attributes:
        value: the metric over its rows, there, float64.
        dtype: what the metric returned.
    """

    value: torch.Tensor
    dtype: torch.dtype


def _measured(
    model: nn.Module,
    owner: RemoteDataset,
    metric: Metric,
    batch_size: int | None,
) -> _Measured:
    """Return a metric over one owner's rows, which stays there.

    Raises:
        CallError: if the metric is no floating-point number.
    """
    program = _program(metric)
    try:
        recorded = program.record(data=owner, model=model)
    except ProgramError as error:
        program.fall_back(error, owner)
        return _line_by_line(model, owner, metric, batch_size)
    (dtype,) = recorded.dtypes
    _check(dtype)
    ratio = program.run(data=owner, model=model, batch_size=batch_size)
    return _Measured(ratio.numerator[0] / ratio.denominator[0], dtype)


def _line_by_line(
    model: nn.Module, owner: RemoteDataset, metric: Metric, batch_size: int | None
) -> _Measured:
    results: list[torch.Tensor] = []
    rows: list[int] = []
    with torch.no_grad():
        for features, targets in owner.batches(batch_size):
            results.append(metric(model(features), targets))
            rows.append(len(targets))
    if not results:
        raise CallError(
            f"{owner.location.id} has no rows in this part, and line by line a metric "
            "needs some: write one that can be recorded"
        )
    dtype = results[0].dtype
    _check(dtype)
    above, below = sums_over_rows(results, rows, owner)
    return _Measured(above / below, dtype)


def _check(dtype: torch.dtype) -> None:
    if not dtype.is_floating_point:
        raise CallError(
            f"expected a metric that is a floating-point tensor, got {dtype}; convert "
            "it first: x.double()"
        )


@functools.lru_cache(maxsize=64)
def _program(metric: Metric) -> Program:
    """Return a metric of a batch as a program, the same for the same."""

    def measure(
        model: nn.Module, features: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        with torch.no_grad():
            return metric(model(features), targets)

    return Program(measure)
