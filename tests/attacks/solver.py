"""A judge that computes what the values that were released tell together.

It asks for each set of fewer than K owners whether a combination of their private
vectors, or of what they delivered, is a linear combination of all values that reached
requesters and of what requesters know anyway. With random vectors that is no chance.

Rules:

- Only values reached are looked at, never what was asked or permitted.
- What a requester sent, and constants, are taken out first.
- More unknowns than elements show nothing: such vectors are passed over.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from .private_data import VECTOR
from .stage import Evidence

Matrix = NDArray[np.float64]

_NEAR = 1e-4
"""How near a private vector comes to what was released, to count as told: the sine
of the angle between them."""

_NOTHING = 1e-10
"""A direction that is so much smaller than the largest is rounding."""


def alarms(evidence: Evidence) -> Iterator[str]:
    """Yield what could be computed about too few owners."""
    quorum = max((p.quorum for p in evidence.policies.values()), default=3)
    released = _vectors(v for e in evidence.exchanges for v in e.values)
    if not released:
        return
    known = _orthonormal([np.ones(VECTOR), *_vectors(evidence.public)])
    told = _orthonormal(_without(known, released))
    owned: dict[str, list[Matrix]] = {
        owner: _vectors(tensors) for owner, tensors in evidence.private.items()
    }
    for owner, values in evidence.delivered.values():
        owned[owner] += _vectors([values])
    owners = sorted(owner for owner, vectors in owned.items() if vectors)
    for size in range(1, quorum):
        for few in itertools.combinations(owners, size):
            vectors = [v for owner in few for v in owned[owner]]
            secret = _orthonormal(_without(known, vectors))
            if not secret.shape[1] or not told.shape[1]:
                continue
            if secret.shape[1] + told.shape[1] + known.shape[1] >= VECTOR - 4:
                continue
            angle = np.linalg.svd(secret - told @ (told.T @ secret), compute_uv=False)
            if angle.min() < _NEAR:
                yield f"a combination over {', '.join(few)} alone can be computed"
                return


def _vectors(tensors: object) -> list[Matrix]:
    """Return those of as many elements as a private vector, as float64."""
    found: list[Matrix] = []
    for tensor in tensors:  # type: ignore[attr-defined] # an iterable of tensors
        if tensor.numel() == VECTOR and not tensor.is_complex():
            flat = tensor.detach().reshape(-1).to(torch.float64)
            clean = torch.nan_to_num(flat, nan=0.0, posinf=0.0, neginf=0.0)
            found.append(clean.numpy())
    return found


def _without(known: Matrix, vectors: Sequence[Matrix]) -> list[Matrix]:
    """Return what vectors have beyond a space, at length 1."""
    left: list[Matrix] = []
    for vector in vectors:
        size = np.linalg.norm(vector)
        rest = vector - known @ (known.T @ vector)
        if size and np.linalg.norm(rest) > _NOTHING * size:
            left.append(rest / np.linalg.norm(rest))
    return left


def _orthonormal(vectors: Sequence[Matrix]) -> Matrix:
    """Return a basis of what vectors span."""
    kept = [v / np.linalg.norm(v) for v in vectors if np.linalg.norm(v)]
    if not kept:
        return np.zeros((VECTOR, 0))
    left, sizes, _ = np.linalg.svd(np.stack(kept, axis=1), full_matrices=False)
    return left[:, sizes > _NOTHING * sizes.max()]
