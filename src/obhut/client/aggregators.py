"""Named aggregators: what combines values in a way that is no sum.

Rule: they run at the worker, as one request, so that an aggregator under a policy
knows what is combined, and how.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from obhut.errors import LocationError
from obhut.protocol.messages import Aggregate
from obhut.worker import evaluation
from obhut.worker.shapes import dense

from .dispatch import wrap
from .held import Held
from .remote_tensor import RemoteTensor


def trimmed_mean(values: Sequence[torch.Tensor], trim: int) -> torch.Tensor:
    """Return each element's mean without its smallest and its largest values.

    Args:
        values: floating-point tensors of one shape and dtype, all at one place.
        trim: how many are left out at each end.

    Raises:
        LocationError: if not all are at one place.
    """
    helds = [one._held for one in values if isinstance(one, RemoteTensor)]
    if not helds:
        with torch.no_grad():
            return evaluation.trimmed_mean(values, trim)
    session = helds[0].session
    for held in helds:
        held.check()
    if len(helds) < len(values) or any(held.session is not session for held in helds):
        places = dict.fromkeys(held.session.worker for held in helds)
        here = ["this process"] if len(helds) < len(values) else []
        raise LocationError(
            "trimmed_mean",
            [*places, *here],
            "move each to the same worker first: obhut.move(x, worker)",
        )
    out = session.new_id()
    session.post(Aggregate("trimmed_mean", tuple(h.id for h in helds), trim, out))
    spec = helds[0].spec
    return wrap(RemoteTensor, Held(session, out, dense(spec.shape, spec.dtype)))
