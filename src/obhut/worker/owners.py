"""An owner's worker in one process: low answers, high follows.

::

    worker = OwnersWorker("bob", Owner(policy, log), datasets=datasets)
    reply, effects = worker.handle("me", parcel, now)    # from low, as of any worker
    reply = worker.settle("me", "s", outcomes)
    deliveries = worker.follow("me", parcel, reply)      # from high

Rule: nothing of what high does reaches a reply or a header.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import ClassVar

import torch

from obhut.protocol.limits import HIDDEN_ROWS
from obhut.protocol.messages import (
    AnyMessage,
    Batch,
    Close,
    Deliver,
    Done,
    Results,
    StateAnswer,
)

from .choosing import NAMELESS, Columns
from .core import Worker
from .effects import Leaving, Parcel
from .high import High
from .roles import Owner
from .shape_only import like, shape_only
from .shapes import dense


class OwnersWorker(Worker):
    """Holds an owner's tensors, and tensors that look like them.

    Args:
        id: as for a worker.
        role: the owner's policy, and their log.
        device: where high computes.
        memory_limit: bytes that a session may hold, by the sizes of its tensors.
        session_seconds: as for a worker.
        datasets: the owner's data, by name and part.
        hidden: the names of those whose number of rows is hidden.
        columns: the public names of the data's columns.
    """

    follows: ClassVar[bool] = True

    def __init__(
        self,
        id: str,
        role: Owner,
        *,
        device: str = "cpu",
        memory_limit: int | None = None,
        session_seconds: float | None = None,
        datasets: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
        hidden: Collection[str] = (),
        columns: Columns = NAMELESS,
    ) -> None:
        rows = datasets or {}
        super().__init__(
            id,
            memory_limit=memory_limit,
            session_seconds=session_seconds,
            datasets={
                name: {
                    part: _uncounted(one) if name in hidden else like(one)
                    for part, one in parts.items()
                }
                for name, parts in rows.items()
            },
            role=role,
            hidden=hidden,
            columns=columns,
        )
        self._make: Callable[[], High] = lambda: High(
            id,
            role.policy,
            device=device,
            datasets=rows,
            hidden=hidden,
            columns=columns,
            log=role.log,
        )
        self._highs: dict[str, High] = {}

    def follow(
        self, sender: str, parcel: Parcel, reply: AnyMessage
    ) -> Sequence[Leaving]:
        """Let high do what low has answered; return what it delivers."""
        message = parcel.message
        match message, reply:
            case Batch(session=name), Results():
                undone = self.undone(name)
                return self._high(name).follow(message, parcel.frames, undone)
            case StateAnswer(session=name), Done() if parcel.frames:
                self._high(name).recall(message, parcel.frames)
            case Deliver(session=name), Done() if parcel.frames:
                if name in self._highs:
                    self._highs[name].take(sender, message, parcel.frames)
            case Close(session=name), Done():
                self._highs.pop(name, None)
            case _:
                pass
        return ()

    def _high(self, name: str) -> High:
        """Return a session's, a new one if there is none."""
        if name not in self._highs:
            self._highs = {k: h for k, h in self._highs.items() if self.has(k)}
            self._highs[name] = self._make()
        return self._highs[name]


def _uncounted(tensor: torch.Tensor) -> torch.Tensor:
    """Return what looks like a tensor, but for how many rows it has."""
    return shape_only(dense((HIDDEN_ROWS, *tensor.shape[1:]), tensor.dtype))
