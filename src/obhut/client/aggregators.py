"""Named aggregators: what combines values element by element, and rounds once.

Rule: they run at the worker, as one request, so that a sum is made of more digits than
it is kept in, and an aggregator under a policy knows what is combined, and how.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch

from obhut.errors import LocationError
from obhut.guard.kinds import Combining
from obhut.protocol.limits import REQUESTS_PER_BATCH
from obhut.protocol.messages import Aggregate
from obhut.worker import evaluation
from obhut.worker.shapes import dense
from obhut.worker.tensors import DTYPE_NAMES

from .dispatch import wrap
from .held import Held
from .remote_tensor import RemoteTensor

_AT_ONCE = REQUESTS_PER_BATCH // 4
"""Values of one request, which fit into one message with their weights."""


def weighted_sum(
    values: Sequence[torch.Tensor],
    weights: Sequence[int] | None = None,
    divisor: int = 1,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the sum of values times weights, divided by a number and rounded once.

    Args:
        values: tensors of one shape, all at one place.
        weights: whole numbers of at most 53 bits, one a value; None for 1.
        divisor: from 1.
        dtype: the result's; None for the values'. Whole numbers are rounded to the
            nearest.

    Raises:
        LocationError: if not all are at one place.
    """
    given = values[0].dtype if dtype is None else dtype
    numbers = [1] * len(values) if weights is None else list(weights)
    if len(values) > _AT_ONCE:
        starts = range(0, len(values), _AT_ONCE)
        wide = torch.complex128 if given.is_complex else torch.float64
        parts = [
            weighted_sum(values[s : s + _AT_ONCE], numbers[s : s + _AT_ONCE], 1, wide)
            for s in starts
        ]
        return weighted_sum(parts, None, divisor, given)
    helds = _helds("sum", values)
    if not helds:
        shares = [Fraction(number, divisor) for number in numbers]
        return evaluation.combine(values, shares, given)
    ids = tuple(held.id for held in helds)
    session, out = helds[0].session, helds[0].session.new_id()
    session.post(
        Aggregate("sum", ids, 0, out, tuple(numbers), divisor, DTYPE_NAMES[given])
    )
    return wrap(RemoteTensor, Held(session, out, dense(helds[0].spec.shape, given)))


def elementwise(values: Sequence[torch.Tensor], kind: Combining) -> torch.Tensor:
    """Return what values are combined into, each element by itself.

    Args:
        values: floating-point tensors of one shape and dtype, all at one place.
        kind: how.

    Raises:
        LocationError: if not all are at one place.
    """
    helds = _helds(kind.name, values)
    if not helds:
        return evaluation.elementwise(values, kind)
    session, out = helds[0].session, helds[0].session.new_id()
    session.post(Aggregate(kind.name, tuple(h.id for h in helds), kind.trim, out))
    spec = helds[0].spec
    return wrap(RemoteTensor, Held(session, out, dense(spec.shape, spec.dtype)))


def _helds(op: str, values: Sequence[torch.Tensor]) -> list[Held]:
    """Return the holds on values that are all at one worker; none if all are here."""
    helds = [one._held for one in values if isinstance(one, RemoteTensor)]
    for held in helds:
        held.check()
    sessions = dict.fromkeys(held.session for held in helds)
    if sessions and (len(helds) < len(values) or len(sessions) > 1):
        here = ["this process"] if len(helds) < len(values) else []
        raise LocationError(
            op,
            [*(session.worker for session in sessions), *here],
            "move each to the same worker first: obhut.move(x, worker)",
        )
    return helds
