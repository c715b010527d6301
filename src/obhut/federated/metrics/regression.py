"""Metrics of numbers that a model answers with.

::

    metrics.mse()(outputs, targets)              # a Ratio of sums

Rule: outputs and targets are of one shape, but for a last size of 1. They are not
broadcast, which would compare each with each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from obhut.client.ratio import Ratio
from obhut.errors import CallError


def mse(*, root: bool = False) -> Callable[[torch.Tensor, torch.Tensor], Ratio]:
    """Return a metric: the mean squared error.

    Args:
        root: of its square root, in the units of the targets.
    """
    return RootMeanSquare() if root else _squares


def mae() -> Callable[[torch.Tensor, torch.Tensor], Ratio]:
    """Return a metric: the mean absolute error."""
    return _absolutes


def r2() -> R2:
    """Return a metric: the coefficient of determination.

    It is the share of the targets' variance that a model accounts for; of several
    numbers a row, the mean over them. As in scikit-learn it is 1 for a constant target
    that is met, and 0 for one that is not. It is wrong where the targets' standard
    deviation is less than about 1e-7 of their mean.
    """
    return R2()


@dataclass(frozen=True, slots=True)
class RootMeanSquare:
    """The root of the mean squared error."""

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> Ratio:
        """Return the sum of squared errors, and how many there are."""
        return _squares(outputs, targets)

    def compute(
        self, numerator: torch.Tensor, denominator: torch.Tensor
    ) -> torch.Tensor:
        """Return the root of the mean, a scalar, float64."""
        return (numerator / denominator).sqrt()


@dataclass(frozen=True, slots=True)
class R2:
    """The coefficient of determination."""

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> Ratio:
        """Return sums of targets, of squares and of squared errors, (3, numbers)."""
        found, true = (
            one.flatten(1) if one.dim() > 1 else one.unsqueeze(1)
            for one in _aligned(outputs, targets)
        )
        sums = torch.stack(
            (true.sum(0), true.square().sum(0), (found - true).square().sum(0))
        )
        return Ratio(sums, len(targets))

    def compute(
        self, numerator: torch.Tensor, denominator: torch.Tensor
    ) -> torch.Tensor:
        """Return it of the sums, a scalar, float64."""
        total, squares, errors = numerator
        variance = (squares - total.square() / denominator).clamp_min(0)
        constant = variance <= squares * _ROUNDED
        missed = torch.where(constant, (errors > 0).to(errors), errors / variance)
        return (1 - missed).mean()


_ROUNDED = 1e-14
"""The share of its squares that a sum of them is off by, if it is no more."""


def _squares(outputs: torch.Tensor, targets: torch.Tensor) -> Ratio:
    found, true = _aligned(outputs, targets)
    return Ratio((found - true).square().sum(), true.numel())


def _absolutes(outputs: torch.Tensor, targets: torch.Tensor) -> Ratio:
    found, true = _aligned(outputs, targets)
    return Ratio((found - true).abs().sum(), true.numel())


def _aligned(
    outputs: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both in float64 and of one shape."""
    shapes = [list(one.shape) for one in (outputs, targets)]
    bare = [shape[:-1] if shape[1:] and shape[-1] == 1 else shape for shape in shapes]
    if bare[0] != bare[1]:
        raise CallError(
            "expected outputs and targets of one shape, got "
            f"{shapes[0]} and {shapes[1]}; flatten them in the metric: "
            "metrics.mse()(outputs.flatten(1), y.flatten(1))"
        )
    found, true = outputs.to(torch.float64), targets.to(torch.float64)
    return found.reshape(true.shape), true
