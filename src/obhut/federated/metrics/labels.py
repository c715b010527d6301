"""Metrics of the class that a model answers with.

::

    metrics.accuracy(outputs, targets)           # a Ratio
    metrics.f1(classes=10, average=None)         # a metric, of each class

Rules:

- Outputs are (rows, classes, ...), of which the largest is the answer, or (rows,) or
  (rows, 1, ...) of two classes, of which class 1 is above a threshold: 0 for logits.
- Of a class that nobody has and no model answers with, precision, recall and F1 are 0,
  as scikit-learn's ``zero_division=0`` has it, and a macro average leaves it out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch

from obhut.client.ratio import Ratio
from obhut.errors import CallError

from .marked import added, classes_of, marked_classes

Average: TypeAlias = Literal["macro", "micro", "weighted"]
"""Classes count alike, by all answers together, or by how many rows each has."""


def accuracy(
    outputs: torch.Tensor, targets: torch.Tensor, *, threshold: float = 0.0
) -> Ratio:
    """Return how many answers are right, and how many there are.

    Args:
        outputs: (rows, classes, ...), or (rows,) or (rows, 1, ...) of two classes.
        targets: (rows, ...), whole numbers from 0, of any dtype.
        threshold: a single output above it is class 1; 0.5 for probabilities, by
            ``functools.partial(metrics.accuracy, threshold=0.5)``.

    Raises:
        CallError: if they do not fit.
    """
    classes = max(classes_of(outputs, targets), 2)
    marks = marked_classes(outputs, targets, classes, threshold)
    right = (marks.found == marks.true) * marks.ones
    return Ratio(right.sum(), targets.numel())


def precision(
    *,
    classes: int | None = None,
    average: Average | None = "macro",
    threshold: float = 0.0,
) -> PerClass:
    """Return a metric: of answers with a class, the share that is right.

    Args:
        classes: how many there are; None for two, of which class 1 is meant.
        average: over classes; None for each class's own.
        threshold: a single output above it is class 1; 0.5 for probabilities.
    """
    return PerClass("precision", classes, average, threshold)


def recall(
    *,
    classes: int | None = None,
    average: Average | None = "macro",
    threshold: float = 0.0,
) -> PerClass:
    """Return a metric: of rows of a class, the share that is answered so.

    Args:
        classes: how many there are; None for two, of which class 1 is meant.
        average: over classes; None for each class's own.
        threshold: a single output above it is class 1; 0.5 for probabilities.
    """
    return PerClass("recall", classes, average, threshold)


def f1(
    *,
    classes: int | None = None,
    average: Average | None = "macro",
    threshold: float = 0.0,
) -> PerClass:
    """Return a metric: the harmonic mean of precision and recall.

    Args:
        classes: how many there are; None for two, of which class 1 is meant.
        average: over classes; None for each class's own.
        threshold: a single output above it is class 1; 0.5 for probabilities.
    """
    return PerClass("f1", classes, average, threshold)


@dataclass(frozen=True, slots=True)
class PerClass:
    """Precision, recall or F1.

    Attributes:
        kind: which of them.
        classes: how many there are; None for two, of which class 1 is meant.
        average: over classes; None for each class's own.
        threshold: a single output above it is class 1.

    Raises:
        CallError: if there is no such average, or fewer than two classes.
    """

    kind: Literal["precision", "recall", "f1"]
    classes: int | None
    average: Average | None
    threshold: float

    def __post_init__(self) -> None:
        check_classes(self.classes)
        check_average(self.average, get_args(Average))

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> Ratio:
        """Return right answers, answers and rows of each class, (3, classes)."""
        classes = self.classes or 2
        found, true, ones = marked_classes(outputs, targets, classes, self.threshold)
        return Ratio(
            torch.stack(
                (
                    added(true, (found == true) * ones, classes),
                    added(found, ones, classes),
                    added(true, ones, classes),
                )
            ),
            targets.numel(),
        )

    def compute(
        self, numerator: torch.Tensor, denominator: torch.Tensor
    ) -> torch.Tensor:
        """Return it of the sums: a scalar, or (classes,), float64."""
        if self.classes is None:
            return self._quotient(numerator)[1]
        if self.average == "micro":
            return self._quotient(numerator.sum(1, keepdim=True))[0]
        each = self._quotient(numerator)
        _, found, true = numerator
        if self.average == "macro":
            return each[found + true > 0].mean()
        if self.average == "weighted":
            each = (each * true).sum() / true.sum()
        return each

    def _quotient(self, sums: torch.Tensor) -> torch.Tensor:
        right, found, true = sums
        above, below = {
            "precision": (right, found),
            "recall": (right, true),
            "f1": (2 * right, found + true),
        }[self.kind]
        quotient: torch.Tensor = above / below.clamp_min(1)
        return quotient


def confusion_matrix(*, classes: int = 2, threshold: float = 0.0) -> ConfusionMatrix:
    """Return a metric: how many rows of each class are answered with each.

    Args:
        classes: how many there are.
        threshold: a single output above it is class 1; 0.5 for probabilities.
    """
    return ConfusionMatrix(classes, threshold)


@dataclass(frozen=True, slots=True)
class ConfusionMatrix:
    """How many rows of each class are answered with each.

    Attributes:
        classes: how many there are.
        threshold: a single output above it is class 1.

    Raises:
        CallError: if there are fewer than two classes.
    """

    classes: int
    threshold: float

    def __post_init__(self) -> None:
        check_classes(self.classes)

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> Ratio:
        """Return counts, (classes * classes,), and how many answers there are."""
        classes = self.classes
        found, true, ones = marked_classes(outputs, targets, classes, self.threshold)
        return Ratio(
            added(true * classes + found, ones, classes * classes), targets.numel()
        )

    def compute(
        self, numerator: torch.Tensor, denominator: torch.Tensor
    ) -> torch.Tensor:
        """Return (classes, classes) int64: rows are true classes, columns answers."""
        return numerator.to(torch.int64).reshape(self.classes, self.classes)


def check_classes(classes: int | None) -> None:
    """Check a number of classes.

    Raises:
        CallError: if it is none.
    """
    if classes is not None and (not isinstance(classes, int) or classes < 2):
        raise CallError(f"expected classes to be 2 or more, got {classes!r}")


def check_average(average: str | None, averages: tuple[str, ...]) -> None:
    """Check how classes are averaged.

    Raises:
        CallError: if there is no such average.
    """
    if average is not None and average not in averages:
        raise CallError(
            f"expected average to be None or one of {', '.join(averages)}, got "
            f"{average!r}"
        )
