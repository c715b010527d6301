"""A batch that workers carry out one after the other, in memory that stays.

::

    repeated = Repeated(batch, frames)           # of tensors that all workers get
    failed = repeated.turn("ann", datasets)      # None, or what went wrong
    (weight,) = repeated.held(7)
    failed = repeated.turn("bob", others)        # ann's tensors are gone

It is for simulated clients, whose shell is their requester's own.

Rules:

- A turn comes to what a new worker with a session of its own would come to: it begins
  with new tensors, and optimizers that have kept nothing.
- What comes in a frame is copied into the memory that it had in the turn before: graphs
  and steps of optimizers stay bound to it.
- What a turn leaves lasts until the next.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from msgspec import structs

from obhut.errors import InternalError
from obhut.protocol.codec import Frame
from obhut.protocol.messages import Batch, Failed, Put, RunProgram, TensorData

from .answers import failed, name_of
from .definitions import Definition
from .execution import Execution, computing
from .executor import Executor
from .plans import Plan
from .runs import Run
from .stepping import Stepper
from .store import Store
from .tensors import from_frame
from .trainings import Trainings


class Repeated:
    """A batch, carried out by one worker after the other.

    Args:
        batch: none of its requests asks for a value, or moves or stores one. Its frames
            are those of a turn, and after them those that all get.
        frames: those that all get.
        device: where it is computed.
        exact: whether programs do what their lines do, digit for digit.
    """

    def __init__(
        self,
        batch: Batch,
        frames: Sequence[Frame],
        device: torch.device | str = "cpu",
        *,
        exact: bool = True,
    ) -> None:
        self._batch, self._frames = batch, tuple(frames)
        self._device, self._exact = torch.device(device), exact
        self._given: dict[tuple[object, ...], torch.Tensor] = {}
        self._memory: dict[int, torch.Tensor] = {}
        self._shared: dict[int, TensorData] = {}  # of what all get, by id
        self._store = Store("", None)
        self._datasets: dict[str, Mapping[str, torch.Tensor]] = {}
        self._execution = self._made()

    def _made(self) -> Execution:
        """Return an execution that is bound to nothing yet."""
        return Execution(
            self._store,
            Executor(self._store, self._device),
            self._device,
            self._datasets,
            exact=self._exact,
            trainings=functools.partial(_Trainings, memory=self._memory),
        )

    def turn(
        self,
        worker: str,
        datasets: Mapping[str, Mapping[str, torch.Tensor]],
        own: Sequence[Frame] = (),
    ) -> Failed | None:
        """Carry it out; return why it failed, if it did.

        Args:
            worker: the worker's name.
            datasets: its data, by name and part.
            own: the frames that only it gets.
        """
        store, execution = self._store, self._execution
        store.clear()
        store.worker = worker
        self._datasets.clear()
        self._datasets.update(datasets)
        execution.begin()
        if self._shared:
            given = [self.given(data) for data in self._shared.values()]
            torch._foreach_copy_([self._memory[id] for id in self._shared], given)
        frames = (*own, *self._frames)
        with computing(self._batch.default_dtype):
            for index, request in enumerate(self._batch.requests):
                try:
                    if isinstance(request, Put):
                        self._put(request, own)
                    else:
                        execution.apply(request, index, frames)
                except Exception as error:
                    self._execution = self._made()  # who knows how far it came
                    known = store.ran_out(error, name_of(request))
                    return failed(known, index, 1, request)
        return None

    def held(self, *ids: int) -> list[torch.Tensor]:
        """Return tensors that the last turn left."""
        return [self._store[id] for id in ids]

    def given(self, data: TensorData) -> torch.Tensor:
        """Return what all get in a frame; nobody writes to it.

        Args:
            data: what it looks like, and which of the frames that all get is its.
        """
        key = (data.frame, data.dtype, data.shape)
        found = self._given.get(key)
        if found is None:
            found = from_frame(self._frames[data.frame], data.dtype, data.shape)
            found = self._given[key] = found.to(self._device)
        return found

    def _put(self, request: Put, own: Sequence[Frame]) -> None:
        """Hold what came, in the memory that it has in each turn."""
        data, place = request.data, request.data.frame - len(own)
        memory = self._memory.get(request.out)
        if memory is None or place < 0:
            frame = self._frames[place] if place >= 0 else own[data.frame]
            came = from_frame(frame, data.dtype, data.shape).to(self._device)
            if memory is None:
                memory = self._memory[request.out] = came
            else:
                memory.copy_(came)
            if place >= 0:
                self._shared[request.out] = structs.replace(data, frame=place)
        # Another tensor of it, of which nothing is known from the turn before.
        tensor = memory.detach().requires_grad_(data.requires_grad)
        self._store[request.out] = tensor
        if request.tags or request.description:
            self._store.label(request.out, request.tags, request.description)


class _Trainings(Trainings):
    """Programs that run again and again, on tensors of the same memory.

    What they are bound to is kept if every program's inputs are what comes in frames,
    as it came or changed in place; else each turn binds anew.

    Args:
        given: as for ``Trainings``, likewise ``named``.
        memory: of what comes in frames, by id.
    """

    def __init__(
        self, *given: Any, memory: Mapping[int, torch.Tensor], **named: Any
    ) -> None:
        super().__init__(*given, **named)
        self._memory = memory
        self._stays = True
        self._runs: dict[int, Run] = {}
        self._bound: dict[int, list[Stepper]] = {}

    def begin(self) -> None:
        """Begin again: no optimizer has kept anything."""
        super().begin()
        if not self._stays:
            self._runs.clear()
            self._bound.clear()
        for stepper in {one for bound in self._bound.values() for one in bound}:
            stepper.reset()

    def _plan(
        self,
        definition: Definition,
        request: RunProgram,
        rows: Sequence[torch.Tensor],
        hidden: bool,
        columns: Sequence[torch.Tensor | None],
    ) -> Plan:
        """Return the plan of the turn before, where that goes with the rows."""
        last, plan = self._runs.get(id(request)), None
        if self._stays and not self._is_there(request.inputs):
            if last is not None:
                raise InternalError("a batch was not carried out as it was before")
            self._stays = False
        if last is not None:
            inputs = [self._store[one] for one in request.inputs]
            plan = last.plan.again(inputs, rows, columns)
        return plan or super()._plan(definition, request, rows, hidden, columns)

    def _is_there(self, ids: Sequence[int]) -> bool:
        """Tell whether tensors are the memory that stays, whole and in order."""
        store, memory = self._store, self._memory
        for id in ids:
            tensor, there = store[id], memory.get(id)
            if there is None or not (
                tensor.data_ptr() == there.data_ptr()
                and tensor.shape == there.shape
                and tensor.stride() == there.stride()
                and tensor.dtype is there.dtype
            ):
                return False
        return True

    def _carry_out(self, run: Run) -> None:
        key = id(run.request)
        if key in self._runs:
            run.graphs = self._runs[key].graphs
        self._runs[key] = run
        super()._carry_out(run)

    def _optimizers(self, request: RunProgram, plan: Plan) -> list[Stepper]:
        """Return the program's optimizers, bound to the memory that stays."""
        bound = self._bound.get(id(request))
        if bound is None:
            bound = self._bound[id(request)] = super()._optimizers(request, plan)
        else:
            for one, stepper in zip(request.optimizers, bound, strict=True):
                stepper.set(one.options)
        return bound
