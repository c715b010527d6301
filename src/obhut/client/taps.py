"""A worker of this process without values, and a way to it that keeps requests.

::

    worker, tap = worker_without_values()
    ...                                          # whatever is done with its tensors
    tap.log                                      # each request, with the user's line

Rule: what needs a value is refused, with the user's line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import structs

from obhut.errors import ProgramError
from obhut.guard.policy import Quorum
from obhut.programs.program import Line
from obhut.protocol.codec import Frame
from obhut.protocol.limits import INLINE_BYTES
from obhut.protocol.messages import (
    AnyMessage,
    AnyRequest,
    Backward,
    Batch,
    Described,
    Fetch,
    Inline,
    Put,
    ReadGrad,
    Results,
    Run,
)
from obhut.transports.local import Arrived, LocalNetwork, LocalShell, LocalTransport
from obhut.worker.core import Worker
from obhut.worker.roles import Owner

from .call_site import CallSite, current_call_site
from .workers import RemoteWorker


def at(site: CallSite | None, text: str) -> ProgramError:
    """Return what is wrong, with the user's line."""
    return ProgramError(f"{site}: {text}" if site else text)


VALUE = (
    "a value is read here, and a program has none: compute with the tensor itself, or "
    "return it"
)
"""What is said where a value is read."""


class Mark:
    """Something between requests that belongs in the log."""

    __slots__ = ()


class Tap(LocalTransport):
    """The way to the worker, which keeps what is asked for.

    Attributes:
        log: each request, or line of a step, with the user's line.
        now: the user's line of what is looked at.
        watched: ids of leaves.
        bare: by the place of each backward pass in the log, which of these have no
            gradient after it.
    """

    def __init__(self, shell: LocalShell, core: Worker) -> None:
        super().__init__(shell)
        self.log: list[tuple[AnyRequest | Line | Mark, CallSite | None]] = []
        self.now: CallSite | None = None
        self.watched: list[int] = []
        self.bare: dict[int, frozenset[int]] = {}
        self._core = core

    @property
    def store(self) -> Any:
        """The tensors of the one session."""
        (session,) = self._core._sessions.values()
        return session.store

    def submit(self, message: AnyMessage, frames: Sequence[Frame] = ()) -> Arrived:
        """Send a message, and keep what is asked for."""
        if not isinstance(message, Batch):
            return super().submit(message, frames)
        self.now = site = current_call_site()
        for request in message.requests:
            if isinstance(request, Fetch):
                raise at(site, VALUE)
        arrived = super().submit(message, frames)
        reply = arrived.result().message
        answers = reply.answers if isinstance(reply, Results) else ()
        described = {one.index: one for one in answers if isinstance(one, Described)}
        for index, request in enumerate(message.requests):
            found = described.get(index)
            if isinstance(request, Run) and request.describe and found:
                count = len(found.specs)
                request = structs.replace(request, describe=False, count=count)  # noqa: PLW2901
            if isinstance(request, ReadGrad) and request.describe:
                if found is None or found.specs[0] is None:
                    continue
                request = structs.replace(request, describe=False)  # noqa: PLW2901
            if isinstance(request, Backward) and len(message.requests) == 1:
                self.bare[len(self.log)] = self._bare()
            if isinstance(request, Put):
                self.log.append((_constant(request, frames, site), site))
            else:
                self.log.append((request, site))
        return arrived

    def _bare(self) -> frozenset[int]:
        store = self.store
        return frozenset(id for id in self.watched if store[id].grad is None)


def _constant(
    request: Put, frames: Sequence[Frame], site: CallSite | None
) -> AnyRequest:
    """Return what stands for a small tensor that the function wrote down."""
    data = request.data
    frame = bytes(frames[data.frame])
    if len(frame) > INLINE_BYTES or data.requires_grad:
        raise at(
            site,
            f"a tensor of {len(frame):,} bytes is sent here, and a program has at most "
            f"{INLINE_BYTES:,}: let it be a buffer of the module",
        )
    inline = Inline(data.dtype, data.shape, frame)
    return Run("aten.clone.default", [inline], {}, request.out, 1, False)


_POLICY = Quorum(aggregators=("nobody",), contributors=("one", "two", "three"))


def worker_without_values() -> tuple[RemoteWorker, Tap]:
    """Return a worker whose tensors have no values, and the way to it."""
    core = Worker("a program", role=Owner(_POLICY))
    shell = LocalShell(core, encode=False, network=LocalNetwork())
    tap = Tap(shell, core)
    worker = RemoteWorker(tap, blocking=True)
    worker.session.guarded()
    return worker, tap
