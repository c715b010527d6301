"""One batch of a session, from its first request until its answers are in."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import TypeAlias

import torch
from msgspec import structs

from obhut.errors import ObhutError
from obhut.protocol.codec import Frame
from obhut.protocol.messages import (
    AnyRequest,
    Counted,
    Described,
    Failed,
    Found,
    Put,
    Returned,
    RunProgram,
    Versions,
)
from obhut.transports import Pending

from .call_site import CallSite

REQUESTS_WAITING = 8_192
"""With so many requests in the next batch, whoever makes one more waits."""

BYTES_MADE = 256 << 20
"""So do those who make one more when the results of the next batch have so many
bytes: the worker is busy with them for longer than an exchange takes."""

BYTES_CARRIED = 4 << 20
"""And when the next batch carries so many bytes itself, in small frames, indices and
lists."""

Reply: TypeAlias = torch.Tensor | Described | Returned | Found | Counted | Versions
"""What a request can be answered with, a fetched tensor or the answer itself."""

Item: TypeAlias = tuple[AnyRequest, CallSite | None, Frame | None]
"""A request, the line that made it, and its frame."""


class Flight:
    """One batch.

    Attributes:
        number: the batch's number.
        dtype: the default dtype under which it was begun.
        items: its requests.
        carried: bytes that they carry, in small frames, indices and lists.
        made: bytes that their results take.
        pending: the reply that is under way, once the batch was sent.
        results: whether its answers are in.
        refused: why the whole of it was not accepted.
        replies: the answers, by index.
        failures: the failures, by index.
        cancelled: whether it shall compute no more.
        cut: the first request that was cancelled.
        reshaped: weak references to what was given other looks by it.
    """

    __slots__ = (
        "cancelled",
        "carried",
        "cut",
        "dtype",
        "failures",
        "items",
        "made",
        "number",
        "pending",
        "refused",
        "replies",
        "reshaped",
        "results",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.dtype = torch.get_default_dtype()
        self.items: list[Item] = []
        self.carried = 0
        self.made = 0
        self.pending: Pending | None = None
        self.results = False
        self.refused: ObhutError | None = None
        self.replies: dict[int, Reply] = {}
        self.failures: dict[int, Failed] = {}
        self.cancelled = False
        self.cut: int | None = None
        self.reshaped: list[weakref.ref[object]] = []

    @property
    def full(self) -> bool:
        """Whether nothing may be added before the worker has gone on."""
        return (
            len(self.items) >= REQUESTS_WAITING
            or self.made >= BYTES_MADE
            or self.carried >= BYTES_CARRIED
        )

    @property
    def runs(self) -> bool:
        """Whether programs go through rows in it."""
        # Another thread may add to it meanwhile.
        return any(isinstance(request, RunProgram) for request, *_ in self.items[:])

    def cancel(self) -> None:
        """Let it compute no more, though some of it may be done."""
        self.cancelled = True
        if self.pending is None:  # it is sent again, without what is not read any more
            self.items[:] = map(_emptied, self.items)

    def makes(self) -> Iterator[range]:
        """Yield the ids that its requests make, those in a row together."""
        first = last = 0
        for request, _, _ in self.items:
            ids = request.makes()
            if not ids:
                continue
            if ids[0] != last:
                if last:
                    yield range(first, last)
                first = ids[0]
            last = ids[-1] + 1
        if last:
            yield range(first, last)


def _emptied(item: Item) -> Item:
    """Return an item whose frame, if it has one, is empty."""
    request, site, frame = item
    if frame is None or not isinstance(request, Put):
        return item
    data = structs.replace(request.data, shape=(0,))
    return structs.replace(request, data=data), site, b""
