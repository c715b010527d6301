"""Models and contributions that travel in half precision.

::

    wire = Wire(torch.bfloat16)
    packed = wire.packed(named)                       # here: what is sent
    taken, began = wire.unpacked(packed, model, owner)
    wire.rounded(taken["weight"] - began["weight"], 0, "weight")    # there
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

from obhut.client.functions import copy, send
from obhut.client.remote_dataset import RemoteDataset
from obhut.errors import CallError

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
        self._next_here, self._next_there = {}, {}
        packed: Tensors = {}
        for name, tensor in named.items():
            whole = tensor.detach()
            if name in self._here:
                whole = whole + self._here[name]
            packed[name] = whole.to(self.dtype)
            self._next_here[name] = whole - packed[name]
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
            What takes its place in a model, by name, and as much again, which stays as
            it was sent.
        """
        named = named_tensors(like)
        taken: Tensors = {}
        began: Tensors = {}
        for name, tensor in packed.items():
            model = named[name]
            with torch.no_grad():
                wide = send(tensor, owner.location).to(model.dtype)
            began[name] = wide
            taken[name] = copy(wide).requires_grad_(model.requires_grad)
            if isinstance(model, nn.Parameter):
                taken[name]._is_param = True
        return taken, began

    def rounded(self, product: torch.Tensor, place: int, name: str) -> torch.Tensor:
        """Return what an owner delivers of a tensor, there, and keep what that loses.

        Args:
            product: a change, weighed, float32 or more.
            place: the owner's number.
            name: the tensor's.
        """
        left = self._there.get(place, {}).get(name)
        with torch.no_grad():
            whole = product if left is None else product + left
            made = whole.to(self.dtype)
            self._next_there.setdefault(place, {})[name] = whole - made
        return made

    def commit(self) -> None:
        """Keep what rounding lost in a round that is over."""
        self._here, self._there = self._next_here, self._next_there

    def forget(self) -> None:
        """Begin anew: sessions were lost."""
        self._here, self._there = {}, {}
