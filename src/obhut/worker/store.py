"""The tensors that one session holds at a worker.

::

    store = Store("bob", limit)
    store.reserve(nbytes, "send")                # MemoryLimitError, or nothing
    store[1] = tensor
    store.free((1,), tagged=False)

Rules:

- With a limit, no tensor is held whose storage would exceed it; storages that
  several ids share count once. The worker's own data counts from when it is written:
  then the session has a copy, until it ends.
- What autograd keeps for the backward pass and what an operator uses while it runs are
  not counted: limiting a process's memory is its host's task, and an allocator that
  fails there is told like a limit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from obhut.errors import MemoryLimitError

from .objects import Objects
from .shape_only import ShapeOnly


class _HeldStorage:
    """A storage that ids name: kept, so that its address names no other."""

    __slots__ = ("lent", "names", "size", "storage")

    def __init__(self, storage: torch.UntypedStorage, lent: int = 0) -> None:
        self.storage = storage
        self.names = int(lent > 0)  # the worker's own
        self.size = 0
        self.lent = lent  # bytes of the worker's data, which don't count


class Store(Objects[torch.Tensor]):
    """Tensors by id.

    Args:
        worker: the worker's id, for errors.
        limit: bytes that may be held, or None for no limit.
    """

    def __init__(self, worker: str, limit: int | None) -> None:
        super().__init__(worker, limit)
        self._counted: dict[int, int] = {}
        self._storages: dict[int, _HeldStorage] = {}
        self._lent: dict[int, _HeldStorage] = {}
        self._held = 0

    def __getitem__(self, id: int) -> torch.Tensor:
        """Return the tensor of that id, as ``Objects`` does."""
        held = self._objects.get(id)
        kind = held.__class__
        if kind is torch.Tensor or kind is ShapeOnly:
            return held  # type: ignore[return-value] # the class was compared
        return super().__getitem__(id)

    def __setitem__(self, id: int, tensor: torch.Tensor) -> None:
        """Hold a tensor.

        Raises:
            RemoteProtocolError: if the id is taken.
            MemoryLimitError: if the limit would be exceeded.
        """
        if self._limit is None:
            super().__setitem__(id, tensor)
            return
        self._check_free(id)
        storage = tensor.untyped_storage()
        known = self._storages.get(storage._cdata)
        there = known.size + known.lent if known else 0
        self.reserve(storage.nbytes() - there, "a result")
        super().__setitem__(id, tensor)
        self._count(id, tensor)

    def lend(self, id: int, tensor: torch.Tensor) -> None:
        """Hold a tensor of the worker's data.

        Raises:
            RemoteProtocolError: if the id is taken.
        """
        if self._limit is not None:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._storages:
                self._storages[key] = self._lent[key] = _HeldStorage(storage, size)
        self[id] = tensor

    @property
    def lends(self) -> bool:
        """Whether it holds tensors of the worker's data, to which writes count."""
        return bool(self._lent)

    def writes(self, tensor: torch.Tensor, op: str) -> None:
        """Count a tensor that is about to be written, if it is the worker's data.

        Raises:
            MemoryLimitError: if the limit would be exceeded.
        """
        known = self._lent.get(tensor.untyped_storage()._cdata)
        if known is not None and known.lent:
            self.reserve(known.lent, op)
            self._held += known.lent
            known.size, known.lent = known.size + known.lent, 0

    def reserve(self, asked: int, op: str) -> None:
        """Check, before an allocation, that so many bytes are left.

        Raises:
            MemoryLimitError: if they are not.
        """
        held = self._held + self._coming
        if self._limit is not None and held + asked > self._limit:
            raise MemoryLimitError(self.worker, asked, held, self._limit, op)

    def ran_out(self, error: Exception, op: str) -> Exception:
        """Return an allocator's failure as a limit's; any other error as it is."""
        if not isinstance(error, MemoryError | RuntimeError):
            return error
        found = _NO_MEMORY.search(str(error))
        if found is None and not isinstance(error, MemoryError):
            return error
        asked = int(found["bytes"] or 0) if found else 0
        limit = self._limit or 0
        return MemoryLimitError(self.worker, asked, self._held, limit, op)

    def deliver(
        self, ids: Sequence[int], sender: str, objects: Sequence[torch.Tensor]
    ) -> None:
        """Hold what another worker delivered: all of it or nothing.

        Raises:
            RemoteProtocolError: if the session does not expect one of the ids
                from that sender.
            MemoryLimitError: if the limit would be exceeded.
        """
        self.check_expected(ids, sender)
        self.reserve(sum(t.untyped_storage().nbytes() for t in objects), "move")
        super().deliver(ids, sender, objects)

    def _drop(self, id: int) -> None:
        super()._drop(id)
        if self._limit is not None:
            self._discount(id)

    def clear(self) -> None:
        """Forget everything."""
        super().clear()
        self._counted.clear()
        for one in self._lent.values():
            one.names = 1
        self._storages = dict(self._lent)
        self._held = sum(one.size for one in self._lent.values())

    def recount(self, id: int) -> None:
        """Count a tensor again whose storage was replaced or resized.

        The memory is there already: whoever let it grow has asked before.
        """
        if self._limit is not None:
            self._discount(id)
            self._count(id, self[id])

    def _count(self, id: int, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = self._storages.get(key)
        if known is None:
            known = self._storages[key] = _HeldStorage(storage)
        size = storage.nbytes() - known.lent
        known.names += 1
        self._held += size - known.size
        known.size = size
        self._counted[id] = key

    def _discount(self, id: int) -> None:
        key = self._counted.pop(id, None)
        if key is None:
            return
        known = self._storages[key]
        known.names -= 1
        if not known.names:
            del self._storages[key]
            self._held -= known.size


_NO_MEMORY = re.compile(
    r"can't allocate memory(?:.*?tried to allocate (?P<bytes>\d+) bytes)?|out of memory"
)
"""What PyTorch's allocators say. Source: alloc_cpu.cpp, CUDACachingAllocator.cpp."""
