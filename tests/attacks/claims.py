"""A judge that looks up what an attacker says that owners hold.

It is for attacks whose arithmetic is their own: what they compute of permitted values
is no linear combination, and holds no value to the last digit.

Rule: eight numbers and more, all within a thousandth, are no chance.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .stage import Evidence

_LEAST = 8
_NEAR = 1e-3


def alarms(evidence: Evidence) -> Iterator[str]:
    """Yield whose rows or vectors were told."""
    for claim in evidence.claims:
        for owner, tensors in evidence.private.items():
            if any(_holds(tensor, claim) for tensor in tensors):
                yield f"a row of {owner} was told"


def _holds(tensor: torch.Tensor, claim: torch.Tensor) -> bool:
    if claim.numel() < _LEAST or tensor.numel() % claim.numel():
        return False
    if tensor.dim() and tensor.shape[-1] != claim.numel():
        return False
    rows = tensor.double().reshape(-1, claim.numel())
    gap = (rows - claim).abs().amax(1)
    return bool((gap <= _NEAR * claim.abs().max()).any())
