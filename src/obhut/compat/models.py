"""Arithmetic on models and predictions, as PySyft's ``fl.utils`` had it.

New programs average with ``obhut.average``.
"""

from __future__ import annotations

import torch
from torch import nn


def add_model(dst_model: nn.Module, src_model: nn.Module) -> nn.Module:
    """Add a model's parameters to those of another by name, in place.

    What else shares their memory stays as it was.

    Args:
        dst_model: what is added to; parameters that the other lacks stay.
        src_model: at the same place.

    Returns:
        The first model itself.
    """
    sources = dict(src_model.named_parameters())
    with torch.no_grad():
        for name, parameter in dst_model.named_parameters():
            if name in sources:
                parameter.data = parameter.data + sources[name].data
    return dst_model


def scale_model(model: nn.Module, scale: float) -> nn.Module:
    """Multiply a model's parameters by a number, in place, and return it."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = parameter.data * scale
    return model


def accuracy(pred_softmax: torch.Tensor, target: torch.Tensor) -> float:
    """Return which fraction of predictions is right.

    Leak: of remote tensors, that number comes to this process.

    Args:
        pred_softmax: (rows, classes) of any dtype; the largest is the prediction.
        target: (rows,), classes from 0.
    """
    predicted = pred_softmax.argmax(dim=1)
    right = (predicted == target.view(predicted.shape)).sum()
    return int(right.item()) / len(target)
