"""What one session holds at a worker.

Rules:

- An id names a tensor, or the failure that kept the tensor from being made.
- With a limit, no tensor is held whose storage would exceed it; storages that
  several ids share count once. What autograd keeps for the backward pass and
  what an operator uses while it runs are not counted: limiting a process's
  memory is its host's task.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from obhut.errors import (
    LimitError,
    MemoryLimitError,
    ObjectNotFoundError,
    RemoteProtocolError,
)
from obhut.protocol.limits import (
    LABEL_CHARACTERS_PER_SESSION,
    LABELLED_PER_SESSION,
    OBJECTS_PER_SESSION,
    TAGS,
)
from obhut.protocol.messages import Failed


class PoisonedError(Exception):
    """An object was asked for that a failed request should have made.

    Attributes:
        failure: the failure, as it was first answered.
    """

    def __init__(self, failure: Failed) -> None:
        super().__init__(failure)
        self.failure = failure


class _Counted:
    """A storage that ids name: kept, so that its address names no other."""

    __slots__ = ("names", "size", "storage")

    def __init__(self, storage: torch.UntypedStorage) -> None:
        self.storage = storage
        self.names = 0
        self.size = 0


class Store:
    """Tensors by id, with tags, and the ids that other workers may fill.

    Args:
        worker: the worker's id, for errors.
        limit: bytes that may be held, or None for no limit.
    """

    def __init__(self, worker: str, limit: int | None) -> None:
        self._worker = worker
        self._limit = limit
        self._objects: dict[int, torch.Tensor | Failed] = {}
        self._labels: dict[int, tuple[tuple[str, ...], str]] = {}
        self._label_characters = 0
        self._expected: dict[int, str] = {}
        self._delivered: dict[int, str] = {}
        self._counted: dict[int, int] = {}
        self._storages: dict[int, _Counted] = {}
        self._held = 0

    def __len__(self) -> int:
        return len(self._objects)

    @property
    def limited(self) -> bool:
        """Whether there is a limit to hold to."""
        return self._limit is not None

    def __getitem__(self, id: int) -> torch.Tensor:
        """Return the tensor of that id.

        Raises:
            PoisonedError: if the request that should have made it failed.
            ObjectNotFoundError: if the id names nothing.
        """
        held = self._objects.get(id)
        if held.__class__ is torch.Tensor:
            return held
        if isinstance(held, Failed):
            raise PoisonedError(held)
        if held is None:
            why = "never delivered" if id in self._expected else "forgotten or unknown"
            raise ObjectNotFoundError(id, self._worker, why)
        return held

    def __setitem__(self, id: int, tensor: torch.Tensor) -> None:
        """Hold a tensor.

        Raises:
            RemoteProtocolError: if the id is taken.
            MemoryLimitError: if the limit would be exceeded.
        """
        if id in self._objects or id in self._expected:
            raise RemoteProtocolError(f"object {id} exists already")
        self._check_room(1)
        if self._limit is not None:
            storage = tensor.untyped_storage()
            known = self._storages.get(storage._cdata)
            self.reserve(storage.nbytes() - (known.size if known else 0), "a result")
            self._count(id, tensor)
        self._objects[id] = tensor

    def poison(self, ids: Iterable[int], failure: Failed) -> None:
        """Let each of the ids that names nothing stand for a failure."""
        for id in ids:
            if len(self._objects) + len(self._expected) >= OBJECTS_PER_SESSION:
                return  # whoever asks for one learns that it is not there
            if id not in self._expected:
                self._objects.setdefault(id, failure)

    def reserve(self, asked: int, op: str) -> None:
        """Check, before an allocation, that so many bytes are left.

        Raises:
            MemoryLimitError: if they are not.
        """
        if self._limit is not None and self._held + asked > self._limit:
            raise MemoryLimitError(self._worker, asked, self._held, self._limit, op)

    def free(self, ids: Iterable[int], tagged: bool) -> None:
        """Forget objects; tagged ones only if ``tagged``, with all their tags."""
        for id in ids:
            if not tagged:
                if id not in self._labels:
                    self._drop(id)
                continue
            held = self._objects.get(id)
            self._drop(id)
            for other in list(self._labels):
                if self._objects[other] is held:
                    self._drop(other)

    def _drop(self, id: int) -> None:
        self._delivered.pop(id, None)
        self._expected.pop(id, None)
        if id in self._labels:
            self._label_characters -= _characters(self._labels.pop(id))
        if self._objects.pop(id, None) is not None and self._limit is not None:
            self._discount(id)

    def clear(self) -> None:
        """Forget everything."""
        for held in (self._objects, self._labels, self._expected, self._delivered):
            held.clear()
        self._counted.clear()
        self._storages.clear()
        self._label_characters = 0
        self._held = 0

    def label(self, id: int, tags: Sequence[str], description: str) -> None:
        """Add tags to an object, and replace its description if one is given.

        Raises:
            PoisonedError, ObjectNotFoundError: as for ``store[id]``.
        """
        self[id]
        old, said = self._labels.get(id, ((), ""))
        new = tuple(dict.fromkeys((*old, *tags))), description or said
        before, after = _characters((old, said)), _characters(new)
        if (
            len(new[0]) > TAGS
            or self._label_characters - before + after > LABEL_CHARACTERS_PER_SESSION
            or (id not in self._labels and len(self._labels) >= LABELLED_PER_SESSION)
        ):
            raise LimitError(
                f"tags and descriptions at {self._worker} are limited to {TAGS} an "
                f"object, {LABELLED_PER_SESSION:,} objects and "
                f"{LABEL_CHARACTERS_PER_SESSION:,} characters"
            )
        self._label_characters += after - before
        self._labels[id] = new

    def find(self, tags: Sequence[str]) -> Iterator[tuple[int, tuple[str, ...], str]]:
        """Yield id, tags and description of each object that has all the tags."""
        wanted = set(tags)
        for id, (have, description) in sorted(self._labels.items()):
            if wanted <= set(have):
                yield id, have, description

    def expect(self, ids: Sequence[int], sender: str) -> None:
        """Let one other worker fill these ids, once."""
        for id in ids:
            if id in self._objects or id in self._expected:
                raise RemoteProtocolError(f"object {id} exists already")
        self._check_room(len(ids))
        self._expected.update(dict.fromkeys(ids, sender))

    def deliver(
        self, ids: Sequence[int], sender: str, tensors: Sequence[torch.Tensor]
    ) -> None:
        """Hold what another worker delivered: all of it or nothing.

        Raises:
            RemoteProtocolError: if the session does not expect one of the ids
                from that sender.
            MemoryLimitError: if the limit would be exceeded.
        """
        self.check_expected(ids, sender)
        self.reserve(sum(t.untyped_storage().nbytes() for t in tensors), "move")
        for id, tensor in zip(ids, tensors, strict=True):
            del self._expected[id]
            self[id] = tensor
            self._delivered[id] = sender

    def was_delivered(self, ids: Sequence[int], sender: str) -> bool:
        """Tell whether that sender has delivered just these objects already.

        A delivery whose answer was lost comes again.
        """
        return bool(ids) and all(self._delivered.get(id) == sender for id in ids)

    def check_expected(self, ids: Sequence[int], sender: str) -> None:
        """Check that the session expects each of the ids from that sender.

        Raises:
            RemoteProtocolError: if it does not.
        """
        if len(set(ids)) != len(ids) or any(
            self._expected.get(id) != sender or id in self._objects for id in ids
        ):
            raise RemoteProtocolError(f"nothing of that kind is expected from {sender}")

    def recount(self, id: int) -> None:
        """Count a tensor again whose storage was replaced or resized.

        The memory is there already: whoever let it grow has asked before.
        """
        if self._limit is not None:
            self._discount(id)
            self._count(id, self[id])

    def _check_room(self, more: int) -> None:
        if len(self._objects) + len(self._expected) + more > OBJECTS_PER_SESSION:
            raise LimitError(
                f"a session at {self._worker} names at most {OBJECTS_PER_SESSION:,} "
                "objects; let go of some"
            )

    def _count(self, id: int, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        known = self._storages.get(key)
        if known is None:
            known = self._storages[key] = _Counted(storage)
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


def _characters(label: tuple[tuple[str, ...], str]) -> int:
    """Return how long an object's tags and description are together."""
    tags, description = label
    return sum(map(len, tags)) + len(description)
