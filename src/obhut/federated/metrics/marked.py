"""Outputs and targets as metrics count them: classes, scores, and what is neither.

::

    marks = marked_classes(outputs, targets, 10, 0.0)
    added(marks.true, marks.ones, 10)            # rows of each class, (10,) float64

Rules:

- Where an output is NaN or a target no class, one is NaN, and so is what it adds to.
  Places are valid all the same, so that nothing is written elsewhere.
- What does not fit by its shape is an error at once.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from obhut.errors import CallError

_EDGE = 1e-15
"""How near to 0 and 1 probabilities are told apart."""


class Marks(NamedTuple):
    """What each answer was, and should have been.

    Attributes:
        found: (answers,) int64, the predicted class.
        true: (answers,) int64, the class.
        ones: (answers,) float64, 1; NaN where there is none.
    """

    found: torch.Tensor
    true: torch.Tensor
    ones: torch.Tensor


class Scores(NamedTuple):
    """How likely each class was to a model.

    Attributes:
        odds: (answers, columns) float64, logarithms of odds, finite. One column, for
            class 1, of two classes.
        true: (answers,) int64, the class.
        ones: (answers, 1) float64, 1; NaN where there is none.
    """

    odds: torch.Tensor
    true: torch.Tensor
    ones: torch.Tensor


def classes_of(outputs: torch.Tensor, targets: torch.Tensor) -> int:
    """Return how many classes outputs are of; 1 if they are one number each.

    Args:
        outputs: (rows, classes, ...), or (rows,) or (rows, 1, ...) of two classes.
        targets: (rows, ...).

    Raises:
        CallError: if they do not fit.
    """
    shape, wanted = list(outputs.shape), list(targets.shape)
    if outputs.numel() == targets.numel() and (len(shape) == 1 or shape[1] == 1):
        return 1
    if len(shape) > 1 and shape[:1] + shape[2:] == wanted and shape[1] > 1:
        return shape[1]
    more = "; one-hot targets are classes by y.argmax(1)" if shape == wanted else ""
    raise CallError(
        "expected outputs (rows, classes), or (rows,) of two classes, and the class of "
        f"each as target, got shapes {shape} and {wanted}{more}"
    )


def columns_of(outputs: torch.Tensor, targets: torch.Tensor, classes: int) -> int:
    """Return how many numbers each answer is, of so many classes.

    Raises:
        CallError: if they are of another number of classes.
    """
    columns = classes_of(outputs, targets)
    if columns != classes and not (columns == 1 and classes == 2):
        raise CallError(
            f"expected outputs of {classes} classes, got shape {list(outputs.shape)}; "
            f"say how many there are: classes={max(columns, 2)}"
        )
    return columns


def marked_classes(
    outputs: torch.Tensor, targets: torch.Tensor, classes: int, threshold: float
) -> Marks:
    """Return predicted and true classes.

    Args:
        outputs: (rows, classes, ...), or (rows,) or (rows, 1, ...) of two classes.
        targets: (rows, ...), whole numbers below ``classes``, of any dtype.
        classes: how many there are.
        threshold: a single output above it is class 1.

    Raises:
        CallError: if they do not fit.
    """
    if columns_of(outputs, targets, classes) == 1:
        found = (outputs > threshold).to(torch.int64)
        missing = outputs.isnan()
    else:
        found = outputs.argmax(1)
        missing = outputs.isnan().any(1)
    return Marks(
        found.reshape(-1), *true_classes(targets, classes, missing.reshape(-1))
    )


def scored(
    outputs: torch.Tensor, targets: torch.Tensor, classes: int | None, logits: bool
) -> Scores:
    """Return scores of one class or of each, and true classes.

    Args:
        outputs: as for ``marked_classes``.
        targets: likewise.
        classes: how many there are; None for two, of which class 1 has scores.
        logits: whether outputs are logits; else they are probabilities.

    Raises:
        CallError: if they do not fit.
    """
    if columns_of(outputs, targets, classes or 2) == 1:
        x = outputs.reshape(-1, 1).to(torch.float64)
        odds = x if logits else _log_odds(x)
        if classes:
            odds = torch.cat((-odds, odds), 1)
    else:
        # A copy always, so that a program is the same for a batch of one row.
        x = outputs.movedim(1, -1).clone(memory_format=torch.contiguous_format)
        x = x.view(-1, outputs.shape[1]).to(torch.float64)
        if logits:
            logs = x.log_softmax(1)
            odds = logs - (-torch.expm1(logs)).log()
        else:
            odds = _log_odds(x)
        odds = odds if classes else odds[:, 1:]
    true, ones = true_classes(targets, classes or 2, odds.isnan().any(1))
    odds = odds.nan_to_num(0.0).clamp(-_FAR, _FAR)
    return Scores(odds, true, ones.unsqueeze(1))


def added(places: torch.Tensor, amounts: torch.Tensor, size: int) -> torch.Tensor:
    """Return sums of what has the same place.

    Args:
        places: (n,) int64, from 0.
        amounts: (n,) float64.
        size: how many places there are.

    Returns:
        (size,) float64.
    """
    return amounts.new_zeros(size).scatter_add(0, places, amounts)


def places_among(shares: torch.Tensor, bins: int) -> torch.Tensor:
    """Return in which of equal bins numbers from 0 to 1 are, int64."""
    return (shares * bins).floor().clamp(0, bins - 1).to(torch.int64)


def true_classes(
    targets: torch.Tensor, classes: int, missing: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return true classes, and ones.

    Args:
        targets: (rows, ...), whole numbers below ``classes``, of any dtype.
        classes: how many there are.
        missing: (answers,) bool, which of them have no output.

    Returns:
        (answers,) int64, and (answers,) float64, 1; NaN where there is no class.
    """
    given = targets.reshape(-1)
    true = given.to(torch.int64)
    wrong = (true != given) | (true < 0) | (true >= classes)
    wrong = wrong if missing is None else wrong | missing
    ones = torch.ones_like(true, dtype=torch.float64).masked_fill(wrong, math.nan)
    return true.clamp(0, classes - 1), ones


_FAR = 1e9
"""Beyond it no logarithms of odds are told apart."""


def _log_odds(shares: torch.Tensor) -> torch.Tensor:
    wrong = (shares < 0) | (shares > 1)
    return shares.masked_fill(wrong, math.nan).logit(_EDGE)
