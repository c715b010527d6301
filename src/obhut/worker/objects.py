"""What one session names at a worker: objects by id, of whatever kind.

Rules:

- An id names an object, or the failure that kept the object from being made.
- An id that another worker may fill names nothing until it does, once. Forgotten
  before, it is filled all the same, and what came is dropped: it was under way.
- Room for what was announced is kept until it comes.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from obhut.errors import LimitError, ObjectNotFoundError, RemoteProtocolError
from obhut.protocol.limits import (
    LABEL_CHARACTERS_PER_SESSION,
    LABELLED_PER_SESSION,
    OBJECTS_PER_SESSION,
    TAGS,
)
from obhut.protocol.messages import Deliver, Failed

Held = TypeVar("Held")


class PoisonedError(Exception):
    """An object was asked for that a failed request should have made.

    Attributes:
        failure: the failure, as it was first answered.
    """

    def __init__(self, failure: Failed) -> None:
        super().__init__(failure)
        self.failure = failure


class Objects(Generic[Held]):
    """Objects by id, with tags, and the ids that other workers may fill.

    Args:
        worker: the worker's id, for errors.
        limit: bytes that may be held, or None for no limit.
    """

    def __init__(self, worker: str, limit: int | None) -> None:
        self.worker = worker
        self._limit = limit
        self._objects: dict[int, Held | Failed] = {}
        self._labels: dict[int, tuple[tuple[str, ...], str]] = {}
        self._label_characters = 0
        self._expected: dict[int, str] = {}
        self._unwanted: dict[int, str] = {}
        self._delivered: dict[int, str] = {}
        self._announced: dict[tuple[int, ...], Deliver] = {}
        self._coming = 0

    def __len__(self) -> int:
        return len(self._objects)

    @property
    def limited(self) -> bool:
        """Whether there is a limit to hold to."""
        return self._limit is not None

    def held(self) -> Iterator[Held]:
        """Yield the objects that are there, each under each of its ids."""
        for held in self._objects.values():
            if not isinstance(held, Failed):
                yield held

    def there(self, ids: Iterable[int]) -> list[Held]:
        """Return those of the objects that are there."""
        found = (self._objects.get(id) for id in ids)
        return [one for one in found if one is not None and not isinstance(one, Failed)]

    def drop_where(self, gone: Callable[[Held], bool]) -> None:
        """Forget objects, with all their tags."""
        for id, held in list(self._objects.items()):
            if not isinstance(held, Failed) and gone(held):
                self._drop(id)

    def named(self) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Yield the first id of each object that is there, with its tags."""
        seen: set[int] = set()
        for id, held in self._objects.items():
            if not isinstance(held, Failed) and builtins.id(held) not in seen:
                seen.add(builtins.id(held))
                yield id, self._labels.get(id, ((), ""))[0]

    def __getitem__(self, id: int) -> Held:
        """Return the object of that id.

        Raises:
            PoisonedError: if the request that should have made it failed.
            ObjectNotFoundError: if the id names nothing.
        """
        held = self._objects.get(id)
        if isinstance(held, Failed):
            raise PoisonedError(held)
        if held is None:
            why = "forgotten or unknown"
            if id in self._expected:
                came = any(id in ids for ids in self._announced)
                why = "still on its way" if came else "never delivered"
            raise ObjectNotFoundError(id, self.worker, why)
        return held

    def __setitem__(self, id: int, held: Held) -> None:
        """Hold an object.

        Raises:
            RemoteProtocolError: if the id is taken.
        """
        self._check_free(id)
        self._objects[id] = held

    def replace(self, id: int, held: Held) -> None:
        """Let an id name something else, of no other memory."""
        self._objects[id] = held

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
        raise NotImplementedError

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
        sender = self._expected.pop(id, None)
        if sender is not None and len(self._unwanted) < OBJECTS_PER_SESSION:
            self._unwanted[id] = sender  # it is under way, and goes when it comes
        if id in self._labels:
            self._label_characters -= _characters(self._labels.pop(id))
        self._objects.pop(id, None)

    def clear(self) -> None:
        """Forget everything."""
        for id in list(self._expected):
            self._drop(id)
        for held in (self._objects, self._labels, self._delivered):
            held.clear()
        self._label_characters = 0

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
                f"tags and descriptions at {self.worker} are limited to {TAGS} an "
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
            if id in self._objects or id in self._expected or id in self._unwanted:
                raise RemoteProtocolError(f"object {id} exists already")
        self._check_room(len(ids))
        self._expected.update(dict.fromkeys(ids, sender))

    def announce(self, header: Deliver, sender: str) -> None:
        """Keep room for what another worker is going to deliver.

        Raises:
            RemoteProtocolError: if the session does not expect one of the ids
                from that sender, or something else was announced for it.
            MemoryLimitError: if there is no room.
        """
        known = self._announced.get(header.ids)
        self.check_expected(header.ids, sender)
        if known is None:
            if any(not set(ids).isdisjoint(header.ids) for ids in self._announced):
                raise RemoteProtocolError(f"{sender} announced that otherwise before")
            coming = sum(header.sizes)
            self.reserve(coming, "move")
            self._announced[header.ids] = header
            self._coming += coming
        elif header != known:
            raise RemoteProtocolError(f"{sender} announced something else before")

    def arrived(self, header: Deliver) -> None:
        """Keep no more room for what was announced: it is there, or never will be."""
        if self._announced.pop(header.ids, None) is not None:
            self._coming -= sum(header.sizes)

    def deliver(self, ids: Sequence[int], sender: str, objects: Sequence[Held]) -> None:
        """Hold what another worker delivered: all of it or nothing.

        Raises:
            RemoteProtocolError: if the session does not expect one of the ids
                from that sender.
        """
        self.check_expected(ids, sender)
        for id, held in zip(ids, objects, strict=True):
            if self._settle(id, sender):
                self[id] = held

    def lack(self, ids: Sequence[int], sender: str, failure: Failed) -> None:
        """Let ids stand for the failure of a delivery.

        Raises:
            RemoteProtocolError: as ``deliver``.
        """
        self.check_expected(ids, sender)
        for id in ids:
            if self._settle(id, sender):
                self._objects[id] = failure

    def _settle(self, id: int, sender: str) -> bool:
        """Expect an id no more; tell whether it is wanted still."""
        self._delivered[id] = sender
        if self._unwanted.pop(id, None) is not None:
            return False
        del self._expected[id]
        return True

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
            self._expected.get(id, self._unwanted.get(id)) != sender
            or id in self._objects
            for id in ids
        ):
            raise RemoteProtocolError(f"nothing of that kind is expected from {sender}")

    def _check_free(self, id: int) -> None:
        if id in self._objects or id in self._expected:
            raise RemoteProtocolError(f"object {id} exists already")
        self._check_room(1)

    def _check_room(self, more: int) -> None:
        if len(self._objects) + len(self._expected) + more > OBJECTS_PER_SESSION:
            raise LimitError(
                f"a session at {self.worker} names at most {OBJECTS_PER_SESSION:,} "
                "objects; let go of some"
            )


def _characters(label: tuple[tuple[str, ...], str]) -> int:
    """Return how long an object's tags and description are together."""
    tags, description = label
    return sum(map(len, tags)) + len(description)
