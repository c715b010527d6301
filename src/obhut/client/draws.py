"""What random operators at a worker draw from.

Rules:

- A worker in this process draws from this process's generator, in the order of the
  program: what draws there leaves at once.
- Any other gets a seed with each operator that draws. It follows from the state of
  this process's generator, which goes on by it: whoever seeds, saves or restores that
  generator decides what is drawn at workers too. Workers get different seeds, also
  where the state is the same.
- Inside ``with worker:`` what is drawn there after ``torch.manual_seed`` is what would
  be drawn here, and so is what is drawn from a generator that is passed.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import weakref
from collections.abc import Iterator

import torch

from obhut.errors import (
    SessionLostError,
    TransportError,
    UnsupportedError,
    WorkerClosedError,
)

from .session import Session

_PASSED_AT_MOST = 1 << 14

_SEED_BYTES = 8
"""The state of a generator begins with the seed that ``initial_seed()`` tells."""


class Draws:
    """How a program's draws at one worker go on.

    Args:
        worker: the worker's id.
    """

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._entered = threading.local()
        self._left = b""
        self._passed: dict[int, None] = {}

    def enter(self) -> None:
        """Let the draws of this thread be those that would be made here."""
        self._entered.depth = self._depth + 1

    def leave(self) -> None:
        """Undo one ``enter``."""
        self._entered.depth = self._depth - 1

    @property
    def _depth(self) -> int:
        depth: int = getattr(self._entered, "depth", 0)
        return depth

    def seed(self, generator: torch.Generator | None) -> int | None:
        """Return the seed that the next operator carries; None to go on.

        Args:
            generator: what it is drawn from, which goes on; None for this process's.

        Raises:
            UnsupportedError: if it was set back to where the worker can not go back.
        """
        source = torch.default_generator if generator is None else generator
        state = _state(source)
        digest = hashlib.blake2b(state, digest_size=16).digest()
        # Far from what it would draw, and telling the same initial seed.
        after = state[:_SEED_BYTES] + _fresh(_number(digest, "\0"))[_SEED_BYTES:]
        seed: int | None
        if generator is None and not self._depth:
            seed, follows = _number(digest, self._worker), False
        elif state == self._left:
            seed, follows = None, True
        elif state == _fresh(source.initial_seed()):
            seed, follows = source.initial_seed(), True
            self._passed.clear()
        elif hash(state) in self._passed:
            raise UnsupportedError(
                "setting back a generator that was seeded inside `with worker:`",
                "the worker's goes on; seed it before, outside",
            )
        else:
            seed, follows = _number(digest, ""), False
        _set(source, after)
        self._left = after if follows else b""
        if follows:
            if len(self._passed) >= _PASSED_AT_MOST:
                del self._passed[next(iter(self._passed))]
            self._passed[hash(state)] = None
        return seed


_draws: weakref.WeakKeyDictionary[Session, Draws] = weakref.WeakKeyDictionary()


def draws_of(session: Session) -> Draws:
    """Return how the draws of a session go on."""
    found = _draws.get(session)
    if found is None:
        found = _draws[session] = Draws(session.worker)
    return found


@contextlib.contextmanager
def drawing(
    session: Session, generator: torch.Generator | None
) -> Iterator[int | None]:
    """Yield the seed of an operator that draws, and let it leave if it must.

    Args:
        session: with the worker.
        generator: what the program passed, or None.

    Raises:
        UnsupportedError: if the worker can not draw from it.
    """
    if generator is torch.default_generator:
        generator = None
    if generator is not None and generator.device.type != "cpu":
        raise UnsupportedError(
            f"a generator on {generator.device}", "use torch.Generator()"
        )
    if not session.shared:
        yield draws_of(session).seed(generator)
        return
    with contextlib.nullcontext() if generator is None else _lent(generator):
        yield None
        try:
            session.flush()
        except (SessionLostError, WorkerClosedError):
            raise
        except TransportError:
            pass  # whoever asks for a value will hear of it


@contextlib.contextmanager
def _lent(generator: torch.Generator) -> Iterator[None]:
    """Let this process's generator draw what another one would, and that go on."""
    ours = _state(torch.default_generator)
    _set(torch.default_generator, _state(generator))
    try:
        yield
    finally:
        _set(generator, _state(torch.default_generator))
        _set(torch.default_generator, ours)


def _state(generator: torch.Generator) -> bytes:
    with torch._C.DisableTorchFunction():
        return generator.get_state().numpy().tobytes()


def _set(generator: torch.Generator, state: bytes) -> None:
    with torch._C.DisableTorchFunction():
        generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


def _fresh(seed: int) -> bytes:
    """Return the state of a generator that was seeded and has drawn nothing."""
    return _state(torch.Generator().manual_seed(seed))


def _number(digest: bytes, salt: str) -> int:
    salted = hashlib.blake2b(digest + salt.encode(), digest_size=8).digest()
    return int.from_bytes(salted, "little")
