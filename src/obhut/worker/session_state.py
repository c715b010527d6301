"""What one client has at a worker: tensors, and where its batches stand.

Rule: each request is begun once. What was begun and whose end nobody saw is answered
as interrupted; a batch that is complete is answered as it was before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from msgspec import structs

from obhut.protocol import codec, limits
from obhut.protocol.codec import Frame
from obhut.protocol.messages import (
    AnyAnswer,
    AnyRequest,
    Failed,
    Fetch,
    Fetched,
    ListState,
    Move,
    RecallState,
    Results,
    StoreState,
)

from .aggregation import Aggregation, Wanted
from .answers import name_of
from .effects import Effect, Parcel
from .execution import Execution
from .objects import Objects
from .store import Store
from .tensors import to_frame


class Suspended(NamedTuple):
    """A request that waits for how its effects end.

    Attributes:
        request: the request.
        effects: what its shell was asked to do.
        asked: what was asked for, of a release.
    """

    request: Move | Fetch | StoreState | RecallState | ListState
    effects: tuple[Effect, ...]
    asked: Wanted | None = None


class SessionState:
    """What one client has at this worker.

    Attributes:
        owner: who opened it.
        objects: what it holds: its tensors, or at an aggregator its sums.
        store: its tensors; empty at an aggregator.
        number: the last batch that was begun.
        begun: how many of that batch's requests were begun.
        cut: the first of them that was cancelled, if one was.
        undone: the places of those that were not carried out.
        counted: the places of those that may tell how many owners' contributions could
            not be used.
        unusable: these owners, of all of them together.
        reply: the answer to it, once it is complete.
        answers: what is answered so far.
        frames: the frames of those answers.
        reply_bytes: bytes that were copied for frames of the reply.
        answer_bytes: bytes of the answers.
        execution: applies requests to its tensors.
        moves: the requests of that batch whose effects are under way.
        told: by the place of a request, what is answered about stored values.
        given_up: those of a batch that its owner gave up, under way all the same.
        aggregation: applies its requests at an aggregator; None elsewhere.
        seen: when its owner was last heard of, in seconds.
    """

    __slots__ = (
        "aggregation",
        "answer_bytes",
        "answers",
        "begun",
        "counted",
        "cut",
        "execution",
        "frames",
        "given_up",
        "moves",
        "number",
        "objects",
        "owner",
        "reply",
        "reply_bytes",
        "seen",
        "store",
        "told",
        "undone",
        "unusable",
    )

    def __init__(
        self,
        owner: str,
        store: Store,
        execution: Execution,
        aggregation: Aggregation | None = None,
    ) -> None:
        self.owner = owner
        self.store = store
        self.execution = execution
        self.aggregation = aggregation
        # Any: tensors, or the sums of an aggregator.
        self.objects: Objects[Any] = aggregation.store if aggregation else store
        self.number = 0
        self.begun = 0
        self.cut: int | None = None
        self.undone: set[int] = set()
        self.counted: set[int] = set()
        self.unusable: frozenset[str] = frozenset()
        self.reply: Parcel | None = None
        self.answers: list[AnyAnswer] = []
        self.frames: list[Frame] = []
        self.moves: list[Suspended] = []
        self.given_up: list[Suspended] = []
        self.told: dict[int, AnyAnswer] = {}
        self.reply_bytes = 0
        self.answer_bytes = 0
        self.seen = 0.0

    @property
    def effects(self) -> tuple[Effect, ...]:
        """What the shell has to do before the batch is answered, in order."""
        return tuple(effect for one in self.moves for effect in one.effects)

    @property
    def complete(self) -> bool:
        """Whether the last batch is done and its moves have ended."""
        return self.reply is not None or not self.number

    def answer(self, answer: AnyAnswer) -> None:
        """Add an answer to the reply, or that there is no room for it."""
        self.answer_bytes += codec.size(answer)
        if self.answer_bytes > limits.ANSWER_BYTES:
            if isinstance(answer, Fetched):
                self.frames.pop()
            text = "the reply is full; ask for less at once"
            index = answer.index
            answer = Failed(index, self.number, index, "LimitError", "batch", text)
        self.answers.append(answer)

    def count(self, index: int, bad: frozenset[str]) -> None:
        """Take in whose contributions could not be used, of what is released.

        One number is told for all of a batch: one a tensor would tell more of values.
        """
        self.counted.add(index)
        self.unusable |= bad

    def begin(self, number: int) -> None:
        """Begin a batch."""
        self.number, self.begun, self.cut, self.reply = number, 0, None, None
        self.answers, self.frames, self.moves, self.told = [], [], [], {}
        self.undone, self.counted, self.unusable = set(), set(), frozenset()
        self.reply_bytes = self.answer_bytes = 0

    def interrupt(self, request: AnyRequest, cancelled: bool) -> None:
        """Answer for a request that was begun and whose end nobody saw.

        In a batch that was cancelled its results do not stand for the failure: who
        uses one later did not ask for it in vain, and is told.
        """
        del self.frames[sum(isinstance(a, Fetched) for a in self.answers) :]
        index = self.begun - 1
        if any(answer.index == index for answer in self.answers):
            return
        self.undone.add(index)
        failure = Failed(
            index,
            self.number,
            index,
            "CancelledError" if cancelled else "RemoteExecutionError",
            name_of(request),
            "interrupted while it ran",
        )
        if not cancelled:
            self.objects.poison(request.makes(), failure)
        self.answers.append(failure)

    def finish(self) -> Parcel:
        """Return the answer to the batch, for as often as it is asked for."""
        if self.reply is None:
            told = len(self.unusable)
            found = tuple(
                structs.replace(one, nonfinite=told)
                if told and isinstance(one, Fetched) and one.index in self.counted
                else one
                for one in self.answers
            )
            answers = Results(self.number, found, self.cut)
            self.reply = Parcel(answers, tuple(self.frames))
            self.answers, self.frames = [], []
        return self.reply

    def export(self, tensor: torch.Tensor, later: Sequence[AnyRequest]) -> Frame:
        """Return a tensor's frame, which later requests of the batch can not change.

        Raises:
            MemoryLimitError: if it must be copied and the limit leaves no room.
        """
        settled = not any(request.writes for request in later)
        plain = not (tensor.is_conj() or tensor.is_neg())
        if not (settled and plain and tensor.is_contiguous() and tensor.is_cpu):
            self.store.reserve(self.reply_bytes + tensor.nbytes, "fetch")
            self.reply_bytes += tensor.nbytes
        frame = to_frame(tensor)
        return frame if settled else bytes(frame)
