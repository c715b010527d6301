"""Proofs that no owner outweighs the others in any vector of a space.

Let x be a vector of the space, j an owner, s a colluder, T the owners but these two. If
z is orthogonal to the space, then ``z·x = 0``, and so::

    |z_j| |x_j|  <=  max |z_t| (sum of |x_t| over T)  +  |z_s| |x_s|.

With ``z_s = 0``, the p%-rule holds for j if ``|z_j| >= percent/100 max |z_t|``. This is
one half of the duality of linear programming; the other half says that the best z
proves all that is true. We take the z that least squares yields, which is not always
the best.

Rules:

- z is found in floating point, but what is proved of it is proved of exact numbers.
  The vectors that are orthogonal to a space with rows ``(I | A)`` are ``(-A c, c)``,
  for any c; floats c are exact, and ``-A c`` lies within the bound that is known for a
  dot product.
- ``z_s`` is then not 0 but small, and so ``|x_s|`` is bounded by a certificate for s.
- A certificate that is not found proves nothing: the caller goes on to count, or
  refuses.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .row_space import Block

Matrix = npt.NDArray[np.float64]

PUNCTURES = 2_000
"""How many spaces without some colluders are looked at before giving up."""

LARGEST = 2**40
"""The largest quotient with which certificates are tried; none would come of larger."""

_UNIT = 2.0**-53
"""The relative error of one operation in float64."""

_TINY = 2.0**-900
"""More than what underflow can take away, here or in a sum."""

_SLACK = 1.0 + 2.0**-40
"""More than what the few operations of the last comparison can round away."""


def certified(block: Block, colluders: int, percent: int) -> bool:
    """Tell whether the p%-rule is proved for a block, by certificates."""
    if colluders >= 2:
        owners = block.owners
        if len(owners) < colluders + 2:
            return False  # beside an owner and its colluders nobody is left
        if math.comb(len(owners), colluders - 1) > PUNCTURES:
            return False
        # A colluder's coefficient is known: what is left must obey the rule with one
        # colluder fewer.
        return all(
            certified(part, colluders - 1, percent)
            for owner in owners
            for part in block.without(owner)
        )
    found = _orthogonal(block)
    if found is None:
        return False
    values, errors = found
    if colluders == 0:
        return _without_colluders(values, errors, percent / 100)
    return _with_one(values, errors, percent / 100)


def _orthogonal(block: Block) -> tuple[Matrix, Matrix] | None:
    """Return vectors orthogonal to a block: for each owner one that is large there.

    Returns:
        values and bounds on their errors, (owners, owners) float64 each: column j
        belongs to an exact vector that is orthogonal to all of the block's rows, and
        is as near to the unit vector of owner j as such vectors come.
    """
    pivots, free = list(block.rows), block.free
    if not free:
        return None
    for pivot, row in block.rows.items():
        if max(map(abs, row.values())) > row[pivot] * LARGEST:
            return None
    # The quotient of two integers is rounded once, however large they are.
    quotients = np.array(
        [
            [row.get(owner, 0) / row[pivot] for owner in free]
            for pivot, row in block.rows.items()
        ]
    )
    basis, _ = np.linalg.qr(np.vstack((-quotients, np.eye(len(free)))))
    chosen = basis[len(pivots) :] @ basis.T
    magnitude = np.abs(quotients) @ np.abs(chosen)
    # Each quotient, product and sum is rounded, in whatever order the sum is taken
    # (N. J. Higham, Accuracy and Stability of Numerical Algorithms, section 3.1).
    operations = len(free) + 4
    relative = operations * _UNIT / (1 - operations * _UNIT)
    values = np.vstack((-(quotients @ chosen), chosen))
    errors = np.vstack((2 * relative * magnitude + _TINY, np.zeros_like(chosen)))
    return values, errors


def _without_colluders(values: Matrix, errors: Matrix, share: float) -> bool:
    largest = np.abs(values) + errors
    at = np.abs(np.diag(values)) - np.diag(errors)
    np.fill_diagonal(largest, 0.0)
    return bool(np.all(at >= share * largest.max(axis=0) * _SLACK + _TINY))


def _with_one(values: Matrix, errors: Matrix, share: float) -> bool:
    """Try each owner with each colluder."""
    count = len(values)
    upper = np.abs(values) + errors
    at = np.abs(np.diag(values)) - np.diag(errors)
    if np.any(at <= 2.0**-200):
        return False
    beside = upper.copy()
    np.fill_diagonal(beside, 0.0)
    # |x_s| <= bound[s] (the sum of |x_i| over all others)
    bound = beside.max(axis=0) / at * _SLACK
    shown = _at_a_glance(values, errors, share, bound)
    everybody = np.arange(count)
    for colluder in np.flatnonzero(~shown.all(axis=1)):
        # Column j becomes z, which is exact for the factor that was rounded.
        factors = values[colluder] / values[colluder, colluder]
        z = np.abs(values - np.outer(values[:, colluder], factors))
        sizes = upper + np.outer(upper[:, colluder], np.abs(factors))
        error = (
            errors
            + np.outer(errors[:, colluder], np.abs(factors))
            + 8 * _UNIT * sizes
            + _TINY
        ) * _SLACK
        high = (z + error) * _SLACK
        left = high[colluder] * bound[colluder] * _SLACK
        low = (z - error)[everybody, everybody] - left
        high[everybody, everybody] = 0.0
        high[colluder] = 0.0
        enough = low >= share * (high.max(axis=0) + left) * _SLACK
        enough[colluder] = True
        if not enough.all():
            return False
    return True


def _at_a_glance(
    values: Matrix, errors: Matrix, share: float, bound: Matrix
) -> npt.NDArray[np.bool_]:
    """Return which pairs of colluder and owner need no closer look.

    Instead of each entry of z, the largest that it may have is looked at: that of the
    owner's vector and that of the colluder's, added.
    """
    upper = np.abs(values) + errors
    beside = upper.copy()
    np.fill_diagonal(beside, 0.0)
    most = beside.max(axis=0)
    # Row s, column j: the colluder s beside the owner j.
    factors = np.abs(values / np.diag(values)[:, None])
    high = most[None, :] + factors * most[:, None]
    ours = np.diag(upper)[None, :]
    low = ours - 2 * np.diag(errors)[None, :] - factors * upper.T
    low -= 16 * _UNIT * (ours + factors * upper.T) + _TINY
    left = errors + factors * np.diag(errors)[:, None]
    left += 8 * _UNIT * (upper + factors * np.diag(upper)[:, None]) + _TINY
    left *= bound[:, None] * _SLACK
    shown: npt.NDArray[np.bool_] = low - left >= share * (high + left) * _SLACK
    np.fill_diagonal(shown, True)
    return shown
