"""Values that stay at an owner between sessions, by requester, name and version.

::

    states.reserve(requester, header)            # LimitError, or nothing
    states.write(requester, message, frames)     # durable when it returns
    states.wait(requester, until)                # until all of it is there
    states.versions(requester, "run 7/head")
    told = states.answer(requester, session, seeking)    # what a session asks

Rules:

- Each requester has names of their own: nobody else sees, recalls or replaces what is
  stored under them.
- Of a name the two versions stay that were stored last. What is stored under a version
  that is there takes its place.
- A version is complete or not there, whenever the process is killed.
- What may be stored follows from what was accepted before, written or not: how fast
  values are computed decides nothing.
- What is reserved is written or released in the end; who asks waits for that.
- What was stored behind a guard is found behind one only.
"""

from __future__ import annotations

import abc
import hashlib
import logging
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec
from msgspec import Struct, structs

from obhut.errors import (
    CallError,
    InternalError,
    LimitError,
    ObhutError,
    UnsafeFileError,
)
from obhut.protocol.codec import Frame
from obhut.protocol.messages import Refused, State, StateAnswer
from obhut.worker.effects import Seeking

KEPT = 2
"""How many versions of a name stay. A round that is run again needs the one before."""

_BLOCK = 4_096
"""Bytes that a file takes at least, and a multiple of which it takes."""

_BEGIN = struct.Struct("<8sI")
_MAGIC = b"obhutst1"

_LOG = logging.getLogger("obhut.worker")


class Stored(Struct, frozen=True, forbid_unknown_fields=True):
    """What is written before the values.

    Attributes:
        requester: who stored them.
        time: when it was accepted, in seconds since 1970.
        guarded: whether a policy held.
        state: what the session said of them.
    """

    requester: str
    time: int
    guarded: bool
    state: State


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Stored)


class Entry(NamedTuple):
    """One version, seen from outside.

    Attributes:
        key: stands for its name.
        order: counts up with each that is stored.
        version: its number.
        size: bytes that it takes.
    """

    key: str
    order: int
    version: int
    size: int


class Told(NamedTuple):
    """What a session is told.

    Attributes:
        message: the answer.
        frames: its frames.
        spoilt: whether the values are missing: who answers is told nothing of that, and
            who has the rows gets none.
    """

    message: StateAnswer
    frames: tuple[Frame, ...] = ()
    spoilt: bool = False


class _Reserved(NamedTuple):
    """A version that is to be written."""

    entry: Entry
    stored: Stored


class States(abc.ABC):
    """What is stored at one worker.

    Args:
        quota: bytes that one requester's may take; None for no limit.
        guarded: whether the worker is behind a policy.
        clock: the time in seconds since 1970.
    """

    def __init__(
        self,
        quota: int | None = None,
        *,
        guarded: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._quota = quota
        self._guarded = guarded
        self._clock = clock
        self._changed = threading.Condition()
        self._reserved: dict[str, list[_Reserved]] = {}

    @abc.abstractmethod
    def _entries(self, requester: str) -> list[Entry]:
        """Return what a requester has."""

    @abc.abstractmethod
    def _put(
        self, requester: str, entry: Entry, header: bytes, frames: Sequence[Frame]
    ) -> None:
        """Let an entry be there, complete, or not at all."""

    @abc.abstractmethod
    def _get(self, requester: str, entry: Entry) -> memoryview:
        """Return what was put there.

        Raises:
            OSError: if it is gone.
        """

    @abc.abstractmethod
    def _remove(self, requester: str, entry: Entry) -> None:
        """Let an entry be there no more, if it is."""

    def reserve(self, requester: str, state: State) -> None:
        """Accept what a session wants stored.

        Duty: ``write`` or ``release`` it.

        Raises:
            LimitError: if it would be too much.
        """
        stored = Stored(requester, int(self._clock()), self._guarded, state)
        size = len(_header(stored)) + sum(state.sizes)
        with self._changed:
            there = self._accepted(requester)
            order = 1 + max((one.order for one in there), default=0)
            entry = Entry(_key(state.name), order, state.version, blocks(size))
            left = sum(one.size for one in _staying([*there, entry]))
            if self._quota is not None and left > self._quota:
                raise LimitError(
                    f"with these {entry.size:,} bytes {left:,} would stay here for "
                    f"you, and at most {self._quota:,} may; store less, or ask the "
                    "worker's owner to delete older state (obhut state delete) or to "
                    "allow more (requester_state)"
                )
            self._reserved.setdefault(requester, []).append(_Reserved(entry, stored))

    def write(self, requester: str, state: State, frames: Sequence[Frame]) -> None:
        """Store what was reserved; it is durable when this returns.

        Args:
            requester: whose it is.
            state: as it was reserved, or spoilt.
            frames: the values, or as many zeros.

        Raises:
            InternalError: if it was not reserved.
            OSError: if it can not be written. It is not there then.
        """
        entry, stored = self._find_reserved(requester, state)
        try:
            if tuple(map(len, frames)) != state.sizes:
                raise InternalError("what is stored is not what was announced")
            stored = structs.replace(stored, state=state)
            self._put(requester, entry, _header(stored), frames)
            there = self._entries(requester)
            staying = set(_staying(there))
            for one in there:
                if one not in staying:
                    self._remove(requester, one)
        finally:
            self.release(requester, state)

    def bring(
        self, requester: str, state: State, frames: Sequence[Frame]
    ) -> Refused | None:
        """Store what was reserved, as ``write`` does; return None if it is there.

        If not, the worker's log says why, and the requester is told that it is not.
        """
        try:
            self.write(requester, state, frames)
        except (OSError, ObhutError) as error:
            _LOG.error("what was to be stored is not there: %s", error)
            return Refused("InternalError", _UNWRITTEN)
        return None

    def release(self, requester: str, state: State) -> None:
        """Give up what was reserved, if it was not written."""
        with self._changed:
            reserved = self._reserved.get(requester, [])
            for one in reserved:
                if _same(one.stored.state, state):
                    reserved.remove(one)
                    break
            if not reserved:
                self._reserved.pop(requester, None)
            self._changed.notify_all()

    def answer(self, requester: str, session: str, seeking: Seeking) -> Told:
        """Return what a session is told that asks what is stored.

        Raises:
            CallError: if the requester has no such version.
            InternalError: if it can not be read; the worker's log says why.
        """
        asked, index = seeking.asked, seeking.index
        there = self._named(requester, asked.name)
        versions = tuple(one.version for one in there)
        if asked.version is None:
            return Told(StateAnswer(session, index, versions=versions))
        for entry in there:
            if entry.version != asked.version:
                continue
            try:
                stored, frames = opened(self._get(requester, entry))
                state = stored.state
                if (stored.requester, state.name) != (requester, asked.name):
                    raise InternalError("a file of stored values is another one's")
            except FileNotFoundError:
                break  # deleted just now
            except (OSError, UnsafeFileError, InternalError) as error:
                _LOG.error("what is stored can not be read: %s", error)
                raise InternalError(_UNREAD) from error
            if stored.guarded and not self._guarded:
                raise CallError(_GUARDED.format(asked.name))
            message = StateAnswer(session, index, state.tensors, state.digests)
            return Told(message, frames, state.spoilt)
        raise CallError(
            f"you have no version {asked.version} of {asked.name!r} here; there is: "
            f"{', '.join(map(str, versions)) or 'none'}"
        )

    def wait(
        self, requester: str, until: Callable[[], bool], seconds: float | None = None
    ) -> None:
        """Wait until all is written that a requester has stored, or something else.

        Duty: ``look`` when the latter happens.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: requester not in self._reserved or until(), seconds
            )

    def finish(self, seconds: float) -> None:
        """Wait until all is written, but so long at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._reserved, seconds)

    def look(self) -> None:
        """Let those who wait look again."""
        with self._changed:
            self._changed.notify_all()

    def _accepted(self, requester: str) -> list[Entry]:
        """Return what a requester has, and what is to be written. Duty: the lock."""
        reserved = [one.entry for one in self._reserved.get(requester, ())]
        return [*{*self._entries(requester), *reserved}]

    def _named(self, requester: str, name: str) -> list[Entry]:
        """Return the versions of a name, the one that was stored last at the end."""
        there = [one for one in self._entries(requester) if one.key == _key(name)]
        return sorted(_staying(there), key=lambda one: one.order)

    def _find_reserved(self, requester: str, state: State) -> _Reserved:
        with self._changed:
            for one in self._reserved.get(requester, ()):
                if _same(one.stored.state, state):
                    return one
        raise InternalError("nothing of that kind was to be stored")


class StatesInMemory(States):
    """What is stored at a worker in this process; it goes with the worker."""

    def __init__(self, quota: int | None = None, *, guarded: bool = False) -> None:
        super().__init__(quota, guarded=guarded)
        self._there: dict[str, dict[Entry, bytes]] = {}

    def _entries(self, requester: str) -> list[Entry]:
        return list(self._there.get(requester, ()))

    def _put(
        self, requester: str, entry: Entry, header: bytes, frames: Sequence[Frame]
    ) -> None:
        whole = b"".join((header, *frames))
        self._there.setdefault(requester, {})[entry] = whole

    def _get(self, requester: str, entry: Entry) -> memoryview:
        return memoryview(self._there[requester][entry])

    def _remove(self, requester: str, entry: Entry) -> None:
        del self._there[requester][entry]


def _key(name: str) -> str:
    """Return what stands for a name in a file's: it is never part of a path."""
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def blocks(size: int) -> int:
    """Return how many bytes a file of such a size takes."""
    return -(-size // _BLOCK) * _BLOCK


def _staying(entries: Iterable[Entry]) -> list[Entry]:
    """Return those that stay: of each name the last ones, each version once."""
    kept: dict[str, dict[int, Entry]] = {}
    for one in sorted(entries, key=lambda one: -one.order):
        of_name = kept.setdefault(one.key, {})
        if len(of_name) < KEPT:
            of_name.setdefault(one.version, one)
    return [one for of_name in kept.values() for one in of_name.values()]


def _same(one: State, other: State) -> bool:
    """Tell whether they are one, spoilt or not."""
    return structs.replace(one, spoilt=other.spoilt) == other


def _header(stored: Stored) -> bytes:
    """Return what is written before the values; as long whether or not it is spoilt."""
    text = _encoder.encode(stored)
    return _BEGIN.pack(_MAGIC, len(text)) + text


def opened(whole: memoryview) -> tuple[Stored, tuple[memoryview, ...]]:
    """Cut up what was written.

    Raises:
        InternalError: if it is nothing that was written here.
    """
    try:
        magic, length = _BEGIN.unpack_from(whole)
        at = _BEGIN.size + length
        if magic != _MAGIC:
            raise ValueError("it begins otherwise")
        stored = _decoder.decode(whole[_BEGIN.size : at])
        frames = []
        for size in stored.state.sizes:
            frames.append(whole[at : at + size])
            at += size
        if at != len(whole):
            raise ValueError("it has another length")
    except (struct.error, ValueError, msgspec.DecodeError) as error:
        raise InternalError(f"a file of stored values is none: {error}") from error
    return stored, tuple(frames)


_GUARDED = "{!r} was stored behind a policy, and comes back behind one only"

_UNWRITTEN = "it could not be written; the worker's owner learns why from its log"

_UNREAD = (
    "what is stored under that name can not be read; the worker's owner learns why "
    "from its log"
)
