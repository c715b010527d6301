"""The same values twice, here and at a worker, for two runs that start alike.

Rule: both are dense copies, laid out alike to the stride, and the samples that they
are made from stay as they are.
"""

from __future__ import annotations

import enum
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import _pytree as pytree

import obhut
from obhut.client.workers import RemoteWorker

# Any below: samples hold whatever PyTorch's functions take.

SEED = 20_260_707
"""What both runs, and the making of samples, start from."""


@contextmanager
def seeded() -> Iterator[None]:
    """Start every generator of this process from the same seed, and be quiet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(SEED)
        random.seed(SEED)
        yield


class Layout(enum.StrEnum):
    """In which order the elements of samples lie.

    Attributes:
        ROW_MAJOR: the last dimension's next to each other.
        TRANSPOSED: in matrices and larger ones, the first dimension's.
        FIRST_TRANSPOSED: likewise, in the first tensor of a sample only.
        CHANNELS_LAST: in those of four and more, the second dimension's.
    """

    ROW_MAJOR = "row-major"
    TRANSPOSED = "transposed"
    FIRST_TRANSPOSED = "first transposed"
    CHANNELS_LAST = "channels last"

    def order(self, dimensions: int, first: bool) -> list[int]:
        """Return a tensor's dimensions from the widest stride to the narrowest."""
        straight = list(range(dimensions))
        match self:
            case Layout.TRANSPOSED if dimensions > 1:
                return [straight[-1], *straight[1:-1], straight[0]]
            case Layout.FIRST_TRANSPOSED if dimensions > 1 and first:
                return [straight[-1], *straight[1:-1], straight[0]]
            case Layout.CHANNELS_LAST if dimensions > 3:
                return [0, *straight[2:], 1]
        return straight


class Pairs:
    """Pairs of equal tensors, one here and one at a worker.

    Each is a dense leaf; the same tensor twice has the same twin twice.

    Args:
        worker: where the remote ones are.
        layout: how their elements lie.
    """

    def __init__(self, worker: RemoteWorker, layout: Layout = Layout.ROW_MAJOR) -> None:
        self._worker = worker
        self._layout = layout
        # The originals stay referred to, so that their ids stay theirs.
        self._originals: list[torch.Tensor] = []
        self._local: dict[int, torch.Tensor] = {}
        self._remote: dict[int, torch.Tensor] = {}

    @property
    def local(self) -> list[torch.Tensor]:
        """The local ones, in the order in which they were made."""
        return list(self._local.values())

    @property
    def remote(self) -> list[torch.Tensor]:
        """The remote ones, in the same order."""
        return list(self._remote.values())

    def local_one(self, value: Any) -> Any:
        """Return a nested value with local twins for its tensors."""
        return pytree.tree_map_only(torch.Tensor, self._make_local, value)

    def remote_one(self, value: Any) -> Any:
        """Return a nested value with remote twins for its tensors.

        Raises:
            NotSendableError: if a tensor can not travel.
        """
        return pytree.tree_map_only(torch.Tensor, self._make_remote, value)

    def _make_local(self, tensor: torch.Tensor) -> torch.Tensor:
        made = self._local.get(id(tensor))
        if made is None:
            made = self._made(tensor, lambda copy: copy, not self._local)
            self._originals.append(tensor)
            self._local[id(tensor)] = made
        return made

    def _make_remote(self, tensor: torch.Tensor) -> torch.Tensor:
        made = self._remote.get(id(tensor))
        if made is None:
            made = self._made(
                tensor, lambda copy: obhut.send(copy, self._worker), not self._remote
            )
            self._originals.append(tensor)
            self._remote[id(tensor)] = made
        return made

    def _made(
        self,
        tensor: torch.Tensor,
        place: Callable[[torch.Tensor], torch.Tensor],
        first: bool,
    ) -> torch.Tensor:
        copy = tensor.detach().clone()
        if tensor.layout is not torch.strided:
            return place(copy).requires_grad_(tensor.requires_grad)
        copy = copy.resolve_conj().resolve_neg()
        order = self._layout.order(copy.dim(), first)
        # Not contiguous(): that leaves the stride of a size of 1 as it is.
        dense = copy.permute(order).clone(memory_format=torch.contiguous_format)
        made = place(dense)
        if order != sorted(order):
            made = made.permute([order.index(d) for d in range(copy.dim())])
        return made.requires_grad_(tensor.requires_grad)
