"""What PyTorch would do in this process while autograd runs at a worker.

Rule: whatever would give no gradient, or another one, without anybody seeing it, is
refused by its name, with what to write instead.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn.modules._functions import BackwardHookFunction
from torch.utils.checkpoint import CheckpointFunction

from obhut.errors import UnsupportedError

from .call_site import custom_function

_BACKWARD_HOOK = (
    "a module's backward hook",
    "autograd runs at the worker; let a forward hook call output.retain_grad(), and "
    "read output.grad after backward()",
)

_FUNCTIONS: Mapping[type, tuple[str, str]] = {
    BackwardHookFunction: _BACKWARD_HOOK,
    CheckpointFunction: (
        "torch.utils.checkpoint with use_reentrant=True",
        "write use_reentrant=False",
    ),
}
"""PyTorch's own functions that it writes in Python: what they are to a user."""

_CUSTOM_FUNCTION = (
    "a custom autograd.Function",
    "write the forward pass with PyTorch's own operators",
)

_SAME_BITS = ("_checkpoint_hook.", "save_on_cpu.")
"""Whose hooks on saved tensors give back what they were given: none are needed."""

_tracing_state = torch._C._get_tracing_state
_forward_mode_enabled = torch._C._is_fwd_grad_enabled
_saved_tensors_hooks = torch._C._autograd._top_saved_tensors_default_hooks


def refuse_local_autograd(recorded: bool) -> None:
    """Refuse what would happen here to a call on what requires a gradient.

    Args:
        recorded: whether autograd records the call.

    Raises:
        UnsupportedError: if something would.
    """
    # Inside a custom function PyTorch switches forward mode off, and nobody else does
    # but inference mode. To look for it among all frames would cost more.
    if not _forward_mode_enabled():
        function = custom_function()
        if function is not None:
            raise UnsupportedError(*_FUNCTIONS.get(function, _CUSTOM_FUNCTION))
    hooks = _saved_tensors_hooks(False) if recorded else None
    if hooks is not None and not getattr(hooks[0], "__qualname__", "").startswith(
        _SAME_BITS
    ):
        raise UnsupportedError(
            "torch.autograd.graph.saved_tensors_hooks",
            "what is saved for backward stays at the worker; leave the hooks out",
        )


def refuse_tracing() -> None:
    """Refuse to be recorded by ``torch.jit.trace``, which would follow dead pointers.

    Raises:
        UnsupportedError: if that is what runs.
    """
    if _tracing_state() is not None:
        raise UnsupportedError(
            "torch.jit.trace", "trace the module before it is sent, or after get()"
        )


def refuse_anomaly_detection() -> None:
    """Refuse to look for NaN in a backward pass, which would happen here.

    Raises:
        UnsupportedError: if it is switched on.
    """
    if torch.is_anomaly_enabled():
        raise UnsupportedError(
            "torch.autograd.detect_anomaly",
            "look at the gradients after backward(): p.grad.isnan().any()",
        )
