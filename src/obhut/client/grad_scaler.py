"""``torch.amp.GradScaler`` over gradients at workers.

The scaler keeps its scale, and whether a gradient was infinite, as numbers in this
process, and decides by them whether the optimizer steps.

Leak: whether all gradients are finite comes to this process, at each step; a policy
does not let it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from obhut.errors import OpNotAdmittedError, UnsupportedError

from .dispatch import wrap
from .held import Held
from .session import Session
from .transfer import put

UNSCALE = torch._amp_foreach_non_finite_check_and_unscale_
"""The function that divides gradients by the scale and looks whether all are finite."""


def unscale(
    cls: type[torch.Tensor],
    grads: Sequence[torch.Tensor],
    found_inf: torch.Tensor,
    inv_scale: torch.Tensor,
) -> None:
    """Stand in for ``UNSCALE`` where a gradient is remote.

    Args:
        cls: the class of remote tensors.
        grads: changed in place; here or at workers.
        found_inf: () float32; becomes 1 if a gradient is not finite.
        inv_scale: () float32, what to multiply by.

    Raises:
        UnsupportedError: if a policy does not tell whether gradients are finite.
    """
    if isinstance(found_inf, cls):
        torch._C._disabled_torch_function_impl(
            UNSCALE, (), (grads, found_inf, inv_scale), {}
        )
        return
    by_place: dict[Session | None, list[torch.Tensor]] = {}
    for grad in grads:
        by_place.setdefault(_session(cls, grad), []).append(grad)
    for session, some in by_place.items():
        if session is None:
            UNSCALE(some, found_inf, inv_scale)
            continue
        found = wrap(cls, put(session, torch.zeros(())))
        torch._C._disabled_torch_function_impl(
            UNSCALE, (), (some, found, inv_scale), {}
        )
        try:
            found_inf.fill_(max(found_inf.item(), found.item()))
        except OpNotAdmittedError as error:
            raise UnsupportedError(
                "torch.amp.GradScaler behind a policy",
                "whether gradients are finite is a value; compute in bfloat16, which "
                "needs no scale: GradScaler(enabled=False)",
            ) from error


def _session(cls: type[torch.Tensor], tensor: torch.Tensor) -> Session | None:
    if not isinstance(tensor, cls):
        return None
    held: Held = tensor._held  # type: ignore[attr-defined] # of the class
    return held.session
