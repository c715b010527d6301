"""``Ratio``: what is summed over batches and owners, and divided once."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Ratio(NamedTuple):
    """A numerator and a denominator, both summed before they are divided.

    So a mean over rows is one whatever the batches and whoever has them, which a mean
    of means is not.

    Attributes:
        numerator: of any shape, such as the sum of losses, or how many rows were right.
        denominator: a scalar or a number, such as how many rows there are.
    """

    numerator: torch.Tensor
    denominator: torch.Tensor | float
