"""Models and contributions that travel in half precision.

::

    wire = Wire(torch.bfloat16)
    packed = wire.packed(named)                       # here: what is sent
    taken, began = wire.unpacked(packed, model, owner)
    change = changed(taken["weight"], began["weight"])
    wire.rounded(change, 0, None, "weight")             # there
    wire.commit()                                     # the round was whole

Rules:

- A model is sent rounded, and what owners deliver is what training changed, rounded:
  that has as many digits as the whole of it.
- What rounding loses stays with whoever sends, and is added to what is sent next.
- What owners lose stays in their sessions: a new one begins without it.
- A round that fails leaves all that as it was.

Source: Seide et al. 2014, 1-bit stochastic gradient descent, section 3.2 (feedback of
the error); Tang et al. 2019, arXiv 1905.05957 (both ways).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from obhut.client.modules import send_copy
from obhut.client.remote_dataset import RemoteDataset
from obhut.errors import CallError

from .contributions import Share
from .parameters import named_tensors

Tensors = dict[str, torch.Tensor]

DTYPES = (torch.bfloat16, torch.float16)
"""What can be chosen."""


@dataclass(slots=True)
class Wire:
    """What travels in a dtype, and what its rounding loses.

    Args:
        dtype: ``torch.bfloat16`` or ``torch.float16``.

    Raises:
        CallError: if it is another.
    """

    dtype: torch.dtype
    _here: Tensors = field(default_factory=dict)
    _there: dict[int, Tensors] = field(default_factory=dict)
    _next_here: Tensors = field(default_factory=dict)
    _next_there: dict[int, Tensors] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise CallError(
                "expected wire_dtype of torch.bfloat16 or torch.float16, got "
                f"{self.dtype}"
            )

    def takes(self, tensor: torch.Tensor) -> bool:
        """Tell whether a tensor travels in another dtype than its own."""
        return tensor.is_floating_point() and tensor.itemsize > self.dtype.itemsize

    def packed(self, named: Mapping[str, torch.Tensor]) -> Tensors:
        """Return tensors as they are sent, here.

        Args:
            named: by name, those that it ``takes``.
        """
        packed: Tensors = {}
        # Of the round before the last, whose memory is written again.
        spare, self._next_here, self._next_there = self._next_here, {}, {}
        with torch.no_grad():
            for name, tensor in named.items():
                whole, left = tensor.detach(), self._here.get(name)
                lost = spare.get(name)
                if lost is None or lost is left:
                    lost = torch.empty_like(whole)
                if left is None:
                    lost.copy_(whole)
                else:
                    torch.add(whole, left, out=lost)
                packed[name] = lost.to(self.dtype)
                self._next_here[name] = lost.sub_(packed[name])
        return packed

    def unpacked(
        self, packed: Mapping[str, torch.Tensor], like: nn.Module, owner: RemoteDataset
    ) -> tuple[Tensors, Tensors]:
        """Send tensors, and return them there.

        Args:
            packed: as above.
            like: the model, here.
            owner: where to.

        Returns:
            What takes its place in a model, by name, and what it was rounded to.
        """
        named = named_tensors(like)
        parcel = nn.Module()
        for place, tensor in enumerate(packed.values()):
            parcel.register_buffer(str(place), tensor)
        sent = send_copy(parcel, owner.location).buffers()
        began = dict(zip(packed, sent, strict=True))
        taken: Tensors = {}
        for name, half in began.items():
            model = named[name]
            with torch.no_grad():
                wide = half.to(model.dtype)
            taken[name] = wide.requires_grad_(model.requires_grad)
            if isinstance(model, nn.Parameter):
                taken[name]._is_param = True
        return taken, began

    def rounded(
        self, change: torch.Tensor, place: int, share: Share, name: str
    ) -> torch.Tensor:
        """Return what an owner delivers of a change, there, and keep what that loses.

        Args:
            change: a tensor that is used up.
            place: the owner's number.
            share: what it is multiplied by.
            name: the tensor's.
        """
        left = self._there.get(place, {}).get(name)
        with torch.no_grad():
            if share is not None:
                change.mul_(share)
            if left is not None:
                change.add_(left)
            made = change.to(self.dtype)
            self._next_there.setdefault(place, {})[name] = change.sub_(made)
        return made

    def commit(self) -> None:
        """Keep what rounding lost in a round that is over."""
        self._here, self._next_here = self._next_here, self._here
        # What who took no part in it has lost before is sent with their next.
        self._there, self._next_there = self._there | self._next_there, {}

    def forget(self) -> None:
        """Begin anew: sessions were lost."""
        self._here, self._there = {}, {}


def changed(trained: torch.Tensor, began: torch.Tensor) -> torch.Tensor:
    """Return what training changed, there; the trained tensor is that then.

    Args:
        trained: an owner's.
        began: what came to it, in whatever dtype.
    """
    with torch.no_grad():
        return trained.detach().sub_(began)
