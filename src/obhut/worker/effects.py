"""What a worker wants done that only its shell can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from obhut.protocol.codec import Frame
from obhut.protocol.messages import AnyMessage


class Parcel(NamedTuple):
    """A message with its frames, as it travels."""

    message: AnyMessage
    frames: tuple[Frame, ...] = ()


@dataclass(frozen=True, slots=True)
class Delivery:
    """Carry a parcel straight to another worker, under this worker's identity.

    Or ask this worker's own guard whether something may leave: then the parcel is a
    ``Release`` and goes to nobody.

    Duty: tell the core how it ended, with ``Worker.settle``, and send what that
    returns as the reply.

    Attributes:
        to: the other worker's id; empty for the guard.
        parcel: a ``Deliver`` message with its frames, or a ``Release``.
        index: the place of the request in its batch.
    """

    to: str
    parcel: Parcel
    index: int


Effect: TypeAlias = Delivery
"""All that a worker can want done."""
