"""Metrics of how sure a model is: areas under curves, and calibration.

::

    metrics.roc_auc(thresholds=200)              # a metric of two classes
    metrics.roc_auc(classes=10, average=None)    # of each class against the rest

Rules:

- Scores are counted between thresholds that all owners share; in between, they are
  taken to be equal. An area is that of scikit-learn for scores so rounded.
- Thresholds part the logarithms of odds, x, evenly in x / (4 + abs(x)). Of 200 the two
  at 0.5 are 0.01 apart, and outside ever more in x, so that the scores of a model that
  is sure of itself do not all fall into one part.
- Logits are taken for what outputs are: ``logits=False`` is for probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch

from obhut.client.ratio import Ratio
from obhut.errors import CallError

from .labels import check_average, check_classes
from .marked import Scores, added, classes_of, places_among, scored

Average: TypeAlias = Literal["macro", "weighted"]
"""Classes count alike, or by how many rows each has."""

_HALF = 4.0
"""The logarithm of odds above which half of the thresholds of that side are."""


def roc_auc(
    *,
    thresholds: int = 200,
    classes: int | None = None,
    average: Average | None = "macro",
    logits: bool = True,
) -> Curve:
    """Return a metric: the area under the receiver operating characteristic.

    It is the share of pairs, of a row of the class and another, that scores put in
    order. It is off by at most half the share of pairs that no threshold parts.

    Args:
        thresholds: how many parts scores are counted in.
        classes: how many there are, each against the rest; None for two, of which
            class 1 has the area.
        average: over classes; None for each class's own, NaN where there is none.
            Classes that nobody has, or everybody, are left out of it.
        logits: whether outputs are logits; else they are probabilities.
    """
    return Curve("roc_auc", thresholds, classes, average, logits)


def average_precision(
    *,
    thresholds: int = 200,
    classes: int | None = None,
    average: Average | None = "macro",
    logits: bool = True,
) -> Curve:
    """Return a metric: precision, averaged over the rows of a class by their scores.

    It is off by at most the sum, over the parts that scores are counted in, of the
    share of the class's rows there, times by how much precision differs between the
    best and the worst order of the scores in it.

    Args:
        thresholds: how many parts scores are counted in.
        classes: how many there are, each against the rest; None for two, of which
            class 1 has the precision.
        average: over classes; None for each class's own, NaN where there is none.
            Classes that nobody has are left out of it.
        logits: whether outputs are logits; else they are probabilities.
    """
    return Curve("average_precision", thresholds, classes, average, logits)


@dataclass(frozen=True, slots=True)
class Curve:
    """The area under a curve, from counts between thresholds.

    Attributes:
        kind: of which curve.
        thresholds: how many parts scores are counted in.
        classes: how many there are; None for two, of which class 1 is meant.
        average: over classes; None for each class's own.
        logits: whether outputs are logits; else they are probabilities.

    Raises:
        CallError: if a number or an average is none.
    """

    kind: Literal["roc_auc", "average_precision"]
    thresholds: int
    classes: int | None
    average: Average | None
    logits: bool

    def __post_init__(self) -> None:
        check_parts("thresholds", self.thresholds)
        check_classes(self.classes)
        check_average(self.average, get_args(Average))

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> Ratio:
        """Return counts of scores, (columns, 2, thresholds): of the rest, of the class.

        Of two classes there is one column, for class 1.
        """
        scores = scored(outputs, targets, self.classes, self.logits)
        columns = self.classes or 1
        numbers = torch.arange(columns, device=scores.true.device)
        first = 0 if self.classes else 1
        is_class = scores.true.unsqueeze(1) == numbers + first
        parts = 2 * numbers + is_class
        places = parts * self.thresholds + _part(scores, self.thresholds)
        counts = added(
            places.reshape(-1),
            scores.ones.repeat(1, columns).view(-1),
            2 * columns * self.thresholds,
        )
        return Ratio(
            counts.reshape(columns, 2, self.thresholds),
            targets.numel(),
        )

    def compute(
        self, numerator: torch.Tensor, denominator: torch.Tensor
    ) -> torch.Tensor:
        """Return the area of the sums: a scalar, or (classes,), float64."""
        rest, own = numerator.unbind(1)
        if self.kind == "roc_auc":
            below = rest.cumsum(1) - rest / 2
            each = (own * below).sum(1) / (own.sum(1) * rest.sum(1))
        else:
            above = own.flip(1).cumsum(1)
            both = above + rest.flip(1).cumsum(1)
            each = (own.flip(1) * above / both.clamp_min(1)).sum(1) / own.sum(1)
        if self.classes is None:
            return each[0]
        if self.average is None:
            return each
        known = ~each.isnan()
        weights = own.sum(1)[known] if self.average == "weighted" else known[known]
        return (each[known] * weights).sum() / weights.sum()


def _part(scores: Scores, parts: int) -> torch.Tensor:
    odds = scores.odds
    return places_among((odds / (_HALF + odds.abs()) + 1) / 2, parts)


def calibration(*, bins: int = 15, logits: bool = True) -> Calibration:
    """Return a metric: by how much a model's confidence is off, on the average.

    It is the expected calibration error: in bins of equal width, the difference between
    the mean probability and the share that is right, weighed by rows. Of a single
    output it is the probability of class 1, else that of the class answered with.

    Args:
        bins: how many.
        logits: whether outputs are logits; else they are probabilities.

    Source: Guo et al. 2017, arXiv 1706.04599, equation 3.
    """
    return Calibration(bins, logits)


@dataclass(frozen=True, slots=True)
class Calibration:
    """The expected calibration error.

    Attributes:
        bins: how many.
        logits: whether outputs are logits; else they are probabilities.

    Raises:
        CallError: if there is no bin.
    """

    bins: int
    logits: bool

    def __post_init__(self) -> None:
        check_parts("bins", self.bins)

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> Ratio:
        """Return confidence less right answers, summed in each bin, and the answers."""
        columns = classes_of(outputs, targets)
        scores = scored(outputs, targets, columns if columns > 1 else None, self.logits)
        found = scores.odds.sigmoid()
        if columns > 1:
            shares, answers = found.max(1)
            right = answers == scores.true
        else:
            shares, right = found[:, 0], scores.true == 1
        ones = scores.ones[:, 0]
        off = (shares - right.to(torch.float64)) * ones
        return Ratio(
            added(places_among(shares, self.bins), off, self.bins), targets.numel()
        )

    def compute(
        self, numerator: torch.Tensor, denominator: torch.Tensor
    ) -> torch.Tensor:
        """Return the error of the sums: a scalar, float64, from 0 to 1."""
        return numerator.abs().sum() / denominator


def check_parts(name: str, number: int) -> None:
    """Check how many parts scores are counted in.

    Raises:
        CallError: if there is none.
    """
    if not isinstance(number, int) or number < 1:
        raise CallError(f"expected {name} to be a number from 1, got {number!r}")
