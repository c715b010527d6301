"""The execution that has an owner's rows, and answers nobody: high.

::

    high = High("bob", policy, datasets=datasets, log=log)
    deliveries = high.follow(batch, frames, undone)      # what low did not carry out
    high.take(sender, delivery, frames)                  # what another worker delivers
    high.recall(answer, frames)                          # what a batch to come recalls

Low, which holds tensors without values, gives every answer; high runs the same requests
after it. What it returns is the bytes of deliveries whose headers low has declared, to
others or, of what stays here beyond the session, to the owner's own process.

Rules:

- What fails here is dropped: its results, and all that shares memory with what it
  writes. What reads something that is missing fails too.
- A backward pass that fails drops all that autograd knows of, and all gradients, since
  it may have come anywhere; what needs no gradient, such as the rows, stays.
- Of a delivery of which something is missing nothing is returned: its shell says then
  that it is spoilt. What was stored so is missing when it is recalled.
- A batch that was interrupted goes on after the request that was begun, which has
  failed. Where low ran requests that did not come, everything is dropped: what they
  would have changed is not known.
- Where the policy compares programs, a process that took another's place, or has lost a
  draw, draws nothing before it was seeded: it would draw something else.
- What a requester cancels ends as what fails does, between two requests or two batches
  of a program. What names stand for, and what was sent, is kept all the same.
- What goes wrong is told to the worker's owner alone, without values.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch

from obhut.errors import InternalError, ObjectNotFoundError
from obhut.guard.policy import SAME, Quorum, encode
from obhut.protocol.codec import Frame
from obhut.protocol.messages import (
    Aggregate,
    AnyRequest,
    Backward,
    Batch,
    Deliver,
    Differentiate,
    ListState,
    Move,
    ReadGrad,
    RecallState,
    Run,
    RunProgram,
    State,
    StateAnswer,
    StoreState,
    TensorData,
    WriteData,
    WriteGrad,
    refs,
)

from .answers import declare, name_of
from .choosing import NAMELESS, Columns
from .effects import Delivery, Keeping, Leaving
from .execution import Execution, computing
from .executor import Executor, operator
from .runs import StoppedError
from .store import Store
from .tensors import to_frame

_COMPUTING = (Run, RunProgram, Backward, Differentiate, Aggregate)
"""Requests that take time, and are not carried out in a batch that was cancelled."""

_GRADIENTS = 4096
"""Gradients that are remembered before those that are gone are forgotten."""


class High:
    """One session's tensors.

    Args:
        id: the worker's id.
        policy: the owner's, which travels with what is delivered.
        device: where it computes.
        datasets: the worker's data, by name and part.
        hidden: the names of those whose number of rows is hidden.
        columns: the public names of the data's columns.
        log: takes a line for the worker's owner.
        cancelled: tells whether a batch of that number was cancelled meanwhile. It is
            asked before each request that computes.
    """

    def __init__(
        self,
        id: str,
        policy: Quorum,
        *,
        device: str = "cpu",
        datasets: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
        hidden: Collection[str] = (),
        columns: Columns = NAMELESS,
        log: Callable[[str], None] = lambda line: None,
        cancelled: Callable[[int], bool] = lambda number: False,
    ) -> None:
        place = torch.device(device)
        self._store = Store(id, None)
        executor = Executor(self._store, place, high=True)
        self._execution = Execution(
            self._store,
            executor,
            place,
            datasets or {},
            hidden,
            policy.minimum_rows,
            columns,
        )
        self._policy = encode(policy)
        self._log = log
        self._cancelled = cancelled
        self._stopped = 0  # the last batch of which something was cancelled
        self._strict, self._unseeded = policy.programs == SAME, False
        self._gradients: list[weakref.ref[torch.Tensor]] = []
        self._number = 0
        self._begun: int | None = None  # of a batch that has not ended
        self._recalled: dict[int, list[torch.Tensor]] = {}  # by place in what is next

    def follow(
        self, batch: Batch, frames: Sequence[Frame], undone: Collection[int]
    ) -> list[Leaving]:
        """Run a batch after low has, once; return what it delivers, in order.

        What was delivered before an interruption is not returned again.

        Args:
            batch: the batch.
            frames: its frames.
            undone: the places of the requests that low did not carry out.
        """
        if batch.number == self._number and self._begun is not None:
            begun = self._begun
            for request in batch.requests[max(begun - 1, 0) : begun]:
                self._fail(request, KeyboardInterrupt())
        elif batch.number <= self._number:
            return []
        else:
            lost = self._begun is not None
            lost |= any(index >= len(batch.requests) for index in undone)
            if not self._number and batch.number > 1:
                self._unseeded = self._strict  # another process was here before
            self._number, self._begun, begun = batch.number, 0, 0
            if lost:
                self._unseeded = self._strict
                self._log("a batch was given up on its way; what there was is dropped")
                self._store.clear()
        leaving: list[Leaving] = []
        cancelled = functools.partial(self._cancelled, batch.number)
        self._execution.watch.cancelled = cancelled
        with computing(batch.default_dtype):
            for index in range(begun, len(batch.requests)):
                self._begun = index + 1
                request = batch.requests[index]
                if index in undone:
                    continue
                if isinstance(request, Move | StoreState):
                    later = batch.requests[index + 1 :]
                    leaving += self._leave(request, index, later)
                    continue
                try:
                    if isinstance(request, _COMPUTING) and cancelled():
                        raise StoppedError
                    self._check_seeded(request)
                    if isinstance(request, RecallState):
                        self._hold(request, index)
                    elif not isinstance(request, ListState):
                        self._execution.apply(request, index, frames)
                        self._note(request)
                except Exception as error:
                    self._fail(request, error)
        self._begun = None
        self._recalled.clear()
        return leaving

    def take(self, sender: str, message: Deliver, frames: Sequence[Frame]) -> None:
        """Hold what another worker delivers, if it is wanted still."""
        try:
            tensors = [self._execution.read(one, frames) for one in message.tensors]
            self._store.deliver(message.ids, sender, tensors)
        except Exception as error:
            self._log(f"a delivery of {sender} is missing: {type(error).__name__}")

    def recall(self, message: StateAnswer, frames: Sequence[Frame]) -> None:
        """Take what was stored, for a request of the batch that comes next."""
        try:
            self._recalled[message.index] = self._execution.recalled(message, frames)
        except Exception as error:
            self._log(f"what was stored is missing: {type(error).__name__}")

    def _hold(self, request: RecallState, index: int) -> None:
        """Hold what is recalled, if it was not spoilt."""
        for id, tensor in enumerate(self._recalled.pop(index, ()), request.out):
            self._store[id] = tensor

    def _check_seeded(self, request: AnyRequest) -> None:
        """Check that what is drawn follows from a seed, if it has to.

        Raises:
            InternalError: if it does not.
        """
        if not self._unseeded or not isinstance(request, Run):
            return
        if request.seed is not None:
            self._unseeded = False
        elif _draws(request):
            raise InternalError("this process was never seeded")

    def _note(self, request: AnyRequest) -> None:
        """Take in which tensors are gradients."""
        match request:
            case ReadGrad(out=id) | WriteGrad(grad=int(id)):
                if len(self._gradients) >= _GRADIENTS:
                    there = [ref for ref in self._gradients if ref() is not None]
                    self._gradients = there
                self._gradients += map(weakref.ref, self._store.there((id,)))
            case _:
                pass

    def _fail(self, request: AnyRequest, error: BaseException) -> None:
        """Drop what a request that failed would have changed."""
        if isinstance(error, StoppedError):
            if self._stopped < self._number:
                self._log("what was under way was cancelled, and is dropped")
            self._stopped = self._number
        elif not isinstance(error, ObjectNotFoundError):
            self._log(f"{name_of(request)} failed: {type(error).__name__}")
        if isinstance(request, Run):
            self._unseeded |= self._strict and _draws(request)
        if isinstance(request, Backward):
            changed = [t for t in self._store.held() if t.requires_grad]
            changed += [t.grad for t in changed if t.is_leaf and t.grad is not None]
            changed += [one for ref in self._gradients if (one := ref()) is not None]
        else:
            changed = self._store.there(_written(request))
        memory = {_memory(tensor) for tensor in changed}
        if memory:
            self._store.drop_where(lambda tensor: _memory(tensor) in memory)

    def _leave(
        self, request: Move | StoreState, index: int, later: Sequence[AnyRequest]
    ) -> list[Leaving]:
        """Return what leaves: nothing, if something of it is missing."""
        leaving: list[Leaving] = []
        settled = not any(request.writes for request in later)
        try:
            tensors = [self._store[id] for id in request.ids]
            frames: tuple[Frame, ...] = tuple(map(to_frame, tensors))
            if not settled:
                frames = tuple(bytes(frame) for frame in frames)
        except Exception as error:
            self._fail(request, error)
        else:
            looks = tuple(
                declare(tensor, place) for place, tensor in enumerate(tensors)
            )
            leaving.append(self._left(request, looks, frames, index))
        if isinstance(request, Move):
            self._store.free(request.ids, tagged=True)
        return leaving

    def _left(
        self,
        request: Move | StoreState,
        looks: tuple[TensorData, ...],
        frames: tuple[Frame, ...],
        index: int,
    ) -> Leaving:
        if isinstance(request, StoreState):
            return Keeping(State(request.name, request.version, looks), frames, index)
        message = Deliver(request.session, request.out, looks, self._policy)
        return Delivery(request.to, message, frames, index)


def _draws(request: Run) -> bool:
    """Tell whether a request seeds, or draws."""
    how = operator(request.op).behind
    return request.seed is not None or how.draws(request.args, request.kwargs)


def _memory(tensor: torch.Tensor) -> int:
    """Return a number for a tensor's memory, which whatever shares it has too."""
    return int(tensor.untyped_storage()._cdata)


def _written(request: AnyRequest) -> Iterator[int]:
    """Yield the ids of what a request writes into."""
    match request:
        case Run():
            how = operator(request.op).behind
            for _, value in how.changed(request.args, request.kwargs):
                yield from refs(value)
        case WriteGrad(id=id) | WriteData(id=id):
            yield id
        case RunProgram():
            yield from request.inputs
        case _:
            return
