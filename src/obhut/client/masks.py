"""What PyTorch's own transformers decide by the values of a mask.

Rules:

- ``nn.TransformerEncoder`` without gradients packs sequences into nested tensors, which
  do not travel, and fills what is padded with zeros. Here it runs unpacked, and the
  same is filled, where the masks' own values say so at the worker.
- Whether a mask is causal is a hint for kernels. Behind a guard nobody can tell, and
  the mask is applied as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

import torch
from torch import nn

# Any below: what modules take and return.


def _encode(
    forward: MethodType,
    guarded: bool,
    src: torch.Tensor,
    mask: torch.Tensor | None = None,
    src_key_padding_mask: torch.Tensor | None = None,
    is_causal: bool | None = None,
) -> Any:
    """Run an encoder; what is padded is zero where it would be."""
    if guarded and is_causal is None:
        is_causal = False
    part: nn.TransformerEncoder = forward.__self__  # type: ignore[assignment] # whose it is
    padding = src_key_padding_mask
    nests = getattr(part, "use_nested_tensor", False)
    part.use_nested_tensor = False
    try:
        encoded = forward(src, mask, padding, is_causal)
    finally:
        part.use_nested_tensor = nests
    if not nests or padding is None or mask is not None or not _is_fast(part, src):
        return encoded
    kept = padding.logical_not()
    # Nested are only sequences that are padded at their end.
    aligned = (kept.sum(1) == kept.cumprod(1).sum(1)).all()
    empty = encoded.new_zeros(())
    if part.norm is not None:
        empty = part.norm(torch.zeros_like(encoded))
    return torch.where((aligned & ~kept).unsqueeze(-1), empty, encoded)


def _is_fast(part: nn.TransformerEncoder, src: torch.Tensor) -> bool:
    """Tell whether an encoder would take the path for which sequences are packed.

    Source: ``nn.TransformerEncoder.forward``.
    """
    first = part.layers[0]
    tensors = (src, *first.parameters())
    return bool(
        torch.backends.mha.get_fastpath_enabled()
        and not first.training
        and src.dim() == 3
        and not torch.is_autocast_enabled()
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
    )


def _decode(
    forward: MethodType,
    guarded: bool,
    *args: Any,
    tgt_is_causal: bool | None = None,
    **kwargs: Any,
) -> Any:
    """Run a decoder."""
    if guarded and tgt_is_causal is None and len(args) < _TGT_IS_CAUSAL:
        tgt_is_causal = False
    if tgt_is_causal is not None:
        kwargs["tgt_is_causal"] = tgt_is_causal
    return forward(*args, **kwargs)


_TGT_IS_CAUSAL = 7
"""A decoder called with so many arguments was told by place."""

BY_MASKS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    nn.TransformerEncoder.forward: _encode,
    nn.TransformerDecoder.forward: _decode,
}
"""What runs in place of a module's ``forward``.

It takes the module's ``forward``, whether the worker is guarded, and what ``forward``
is called with.
"""
