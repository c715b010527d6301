"""What a worker wants done that only its shell can do.

Duty of the shell: tell the core how each effect ended, with ``Worker.settle``, and send
what that returns as the reply.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from obhut.protocol.codec import Frame
from obhut.protocol.messages import (
    AnyMessage,
    Deliver,
    ReleaseQuestion,
    State,
    StateQuestion,
)


class Parcel(NamedTuple):
    """A message with its frames, as it travels."""

    message: AnyMessage
    frames: tuple[Frame, ...] = ()


@dataclass(frozen=True, slots=True)
class Delivery:
    """Carry objects straight to another worker, under this worker's identity.

    Attributes:
        to: the other worker's id.
        message: what is delivered.
        frames: its frames.
        index: the place of the request in its batch.
    """

    to: str
    message: Deliver
    frames: tuple[Frame, ...]
    index: int


@dataclass(frozen=True, slots=True)
class AskRelease:
    """Ask this worker's own guard whether something may leave.

    Attributes:
        asked: the question.
        index: the place of the request in its batch.
    """

    asked: ReleaseQuestion
    index: int


@dataclass(frozen=True, slots=True)
class Keeping:
    """Store values at this worker: a delivery to itself.

    Attributes:
        message: what is stored.
        frames: its frames.
        index: the place of the request in its batch.
    """

    message: State
    frames: tuple[Frame, ...]
    index: int


@dataclass(frozen=True, slots=True)
class Seeking:
    """Tell a session what is stored, with a ``StateAnswer``, before settling.

    Attributes:
        asked: the question.
        index: the place of the request in its batch.
    """

    asked: StateQuestion
    index: int


Leaving: TypeAlias = Delivery | Keeping
"""What takes values out of a session."""

Effect: TypeAlias = Leaving | AskRelease | Seeking
"""All that a worker can want done."""
