"""Metrics of a model's outputs, as what is summed over batches and owners.

::

    evaluate(model, owners, aggregator, {"f1": metrics.f1(classes=10)})
    metrics.r2()(outputs, targets)               # a Ratio, of tensors here or there

Rules:

- A metric takes outputs and targets and returns a ``Ratio``: what it counted, and over
  how many. Both are summed in float64, over all owners, before anything is divided.
- What is no quotient of two sums, such as an F1, has
  ``compute(numerator, denominator)``, which makes it of the sums, here.
- No shape depends on a value, so that each is recorded as part of a program.
- A NaN among the outputs, or a target that is no class, makes the sums NaN. That is
  told as for a loss that is NaN, and never counted as an answer.
"""

from .curves import average_precision, calibration, roc_auc
from .labels import accuracy, confusion_matrix, f1, precision, recall
from .regression import mae, mse, r2
from .summed_states import summed_states

__all__ = [
    "accuracy",
    "average_precision",
    "calibration",
    "confusion_matrix",
    "f1",
    "mae",
    "mse",
    "precision",
    "r2",
    "recall",
    "roc_auc",
    "summed_states",
]
