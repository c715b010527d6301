"""Packing and padding of sequences whose lengths are here.

Rule: lengths that are here are the program's own. Which row goes where follows from
them, so that it is found here and packing is an index.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .dispatch import dispatch, wrap
from .held import Held
from .transfer import put


def pack_padded(
    cls: type[torch.Tensor],
    x: torch.Tensor,
    lengths: torch.Tensor,
    batch_first: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stand in for what ``pack_padded_sequence`` is made of.

    Args:
        cls: the class of remote tensors.
        x: (time, batch, *) or, with ``batch_first``, (batch, time, *).
        lengths: (batch,) int64, in descending order; at a worker only that knows what
            the result looks like.
        batch_first: which.

    Returns:
        The rows in the order of time, and how many there are at each time.
    """
    if isinstance(lengths, cls):
        func = torch.ops.aten._pack_padded_sequence.default
        data, sizes = dispatch(cls, func, (x, lengths, batch_first), {})
        return data, sizes
    first, second, *rest = x.shape
    places = torch.arange(first * second).view(first, second, 1)
    found, sizes = torch._VF._pack_padded_sequence(places, lengths, batch_first)
    return x.reshape(first * second, *rest)[found.flatten()], sizes


def pad_packed(
    cls: type[torch.Tensor],
    data: torch.Tensor,
    batch_sizes: torch.Tensor,
    batch_first: bool,
    padding_value: float,
    total_length: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stand in for what ``pad_packed_sequence`` is made of.

    Args:
        cls: the class of remote tensors.
        data: (rows, *).
        batch_sizes: (time,) int64; at a worker they come here, since they decide sizes.
        batch_first: whether the result is (batch, time, *).
        padding_value: what fills the shorter sequences.
        total_length: the time of the result.

    Returns:
        The padded sequences, and their lengths: where the sizes are.
    """
    sizes = (
        torch.tensor(batch_sizes.tolist())
        if isinstance(batch_sizes, cls)
        else batch_sizes
    )
    # Row 0 is what pads.
    rows = torch.arange(1, len(data) + 1).view(-1, 1)
    places, lengths = torch._VF._pad_packed_sequence(
        rows, sizes, batch_first, 0, total_length
    )
    if isinstance(batch_sizes, cls):
        held: Held = batch_sizes._held  # type: ignore[attr-defined] # of the class
        lengths = wrap(cls, put(held.session, lengths))
    padding = [0, 0] * (data.dim() - 1) + [1, 0]
    return F.pad(data, padding, value=padding_value)[places.squeeze(-1)], lengths
