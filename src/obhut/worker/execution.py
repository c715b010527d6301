"""Applies requests to one session's tensors.

::

    execution = Execution(store, executor, device, datasets, hidden)
    answer = execution.apply(request, index, frames)     # None where none is owed

Rules:

- It knows no policy: what may leave, and how it leaves, is its caller's.
- A request that fails raises, and its caller says what becomes of it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import assert_never

import torch

from obhut.errors import CallError, InternalError, RemoteProtocolError
from obhut.guard.kinds import Combining
from obhut.guard.provenance import UNKNOWN
from obhut.protocol.codec import Frame, frame_digest
from obhut.protocol.dtypes import nbytes
from obhut.protocol.messages import (
    NOWHERE,
    Aggregate,
    Alias,
    AnyAnswer,
    AnyRequest,
    Backward,
    Clear,
    Count,
    DatasetRows,
    Define,
    Describe,
    Described,
    Differentiate,
    Expect,
    Failed,
    Fetch,
    Find,
    Free,
    Label,
    ListState,
    Load,
    Move,
    Put,
    ReadData,
    ReadGrad,
    RecallState,
    RetainGrad,
    Run,
    RunProgram,
    SetRequiresGrad,
    StateAnswer,
    StoreState,
    TensorData,
    WriteData,
    WriteGrad,
)

from .adder import check_elementwise, check_sum
from .answers import describe
from .choosing import NAMELESS, Columns, places
from .evaluation import combine, elementwise
from .executor import Executor
from .names import apply_naming
from .objects import PoisonedError
from .provenance import Provenance
from .runs import Watch
from .shape_only import shape_only
from .shape_only_calls import Recording
from .shapes import dense
from .store import Store
from .tensors import DTYPES, from_frame, spec_of
from .trainings import Make, ShapeOnlyTrainings, Trainings


@contextlib.contextmanager
def computing(default_dtype: str) -> Iterator[None]:
    """Compute with a client's default dtype, and leave modes as they were.

    Raises:
        RemoteProtocolError: if it is no floating-point dtype.
    """
    mode, default = torch.is_grad_enabled(), torch.get_default_dtype()
    depth = torch._C._len_torch_dispatch_stack()
    wanted = DTYPES.get(default_dtype)
    if wanted is None or not wanted.is_floating_point:
        raise RemoteProtocolError("a default dtype is a floating-point one")
    if wanted is not default:
        torch.set_default_dtype(wanted)
    try:
        yield
    finally:
        while torch._C._len_torch_dispatch_stack() > depth:
            torch._C._pop_torch_dispatch_stack(None)  # Ctrl-C came while one was left
        torch._C._set_grad_enabled(mode)
        if wanted is not default:
            torch.set_default_dtype(default)


def _like(
    kind: type[Execution],
    executor: Executor,
    device: torch.device,
    store: Store,
    recording: Recording | None = None,
) -> Execution:
    """Return an execution like another one, on another store."""
    return kind(store, executor.on(store, recording), device, {})


class Execution:
    """Applies the requests of one session.

    Args:
        store: the session's tensors.
        executor: runs operators on them.
        device: where what comes is put.
        datasets: the worker's data, by name and part.
        hidden: the names of those whose number of rows is hidden: programs go through
            them, and nothing else does.
        minimum_rows: that a part of a data set must have for programs.
        columns: the public names of the data's columns.
        exact: whether programs do what their lines do, digit for digit.
        trainings: makes the session's programs.

    Attributes:
        store: as given.
        executor: as given.
        watch: who looks after what runs.
    """

    def __init__(
        self,
        store: Store,
        executor: Executor,
        device: torch.device,
        datasets: Mapping[str, Mapping[str, torch.Tensor]],
        hidden: Collection[str] = (),
        minimum_rows: int = 0,
        columns: Columns = NAMELESS,
        exact: bool = True,
        trainings: Callable[..., Trainings] = Trainings,
    ) -> None:
        self._minimum_rows = minimum_rows
        self._exact = exact
        self._kind = trainings
        self._columns = columns
        self.store = store
        self.executor = executor
        self._device = device
        self._datasets = datasets
        self._hidden = hidden
        self._no_backward: Failed | None = None
        self.watch = Watch()
        # Of no session that is gone: its tensors go with the last name of it.
        self._like: Make = functools.partial(_like, type(self), executor, device)

    @functools.cached_property
    def trainings(self) -> Trainings:
        """The session's programs."""
        return self._trainings()

    def _trainings(self) -> Trainings:
        return self._kind(
            self.store,
            self._device,
            self._like,
            watch=self.watch,
            minimum_rows=self._minimum_rows,
            exact=self._exact,
        )

    def begin(self) -> None:
        """Begin anew, on a store in which there is nothing."""
        self._no_backward = None
        self.trainings.begin()

    def free(self, request: Free) -> None:
        """Forget objects."""
        self.store.free(request.ids, request.tagged)
        if "trainings" in self.__dict__:
            self.trainings.free(request.ids)

    def made(self, tensors: Sequence[torch.Tensor]) -> tuple[bytes, ...]:
        """Return how tensors were made, as headers say it; nothing if nobody asks."""
        return ()

    def note(self, request: AnyRequest, failure: Failed) -> None:
        """Take in that a request failed: a backward pass leaves no gradients."""
        if isinstance(request, Backward):
            self._no_backward = failure

    def read(self, data: TensorData, frames: Sequence[Frame]) -> torch.Tensor:
        """Return a tensor that came."""
        tensor = from_frame(frames[data.frame], data.dtype, data.shape)
        return tensor.to(self._device).requires_grad_(data.requires_grad)

    def recalled(
        self, message: StateAnswer, frames: Sequence[Frame]
    ) -> list[torch.Tensor]:
        """Return tensors that were stored."""
        return [self.read(data, frames) for data in message.tensors]

    def apply(
        self, request: AnyRequest, index: int, frames: Sequence[Frame]
    ) -> AnyAnswer | None:
        """Apply a request by which nothing leaves; return what it is answered.

        Args:
            request: neither a ``Fetch`` nor a ``Move``, nor about what is stored.
            index: its place in its batch.
            frames: the batch's.

        Raises:
            Exception: whatever keeps it from being carried out.
        """
        store = self.store
        match request:
            case Run():
                result = self.executor.run(request)
                if not request.describe:
                    return None
                return describe(index, result)
            case Free():
                self.free(request)
            case Backward():
                self.executor.backward(request)
                self._no_backward = None
            case ReadGrad():
                return self._read_grad(request, index)
            case WriteGrad():
                grad = request.grad
                if grad is not None:
                    store.writes(store[grad], "a gradient")  # what is added to it
                store[request.id].grad = None if grad is None else store[grad]
            case Put():
                data = request.data
                store.reserve(nbytes(data.dtype, data.shape), "send")
                store[request.out] = self.read(request.data, frames)
                if request.tags or request.description:
                    store.label(request.out, request.tags, request.description)
            case Load():
                return Described(index, (spec_of(self._load(request)),))
            case ReadData():
                self.executor.read_data(request)
            case WriteData():
                self.executor.write_data(request)
            case SetRequiresGrad():
                store[request.id].requires_grad_(request.value)
            case RetainGrad():
                store[request.id].retain_grad()
            case Differentiate():
                grads = self.executor.differentiate(request)
                specs = tuple(None if g is None else spec_of(g) for g in grads)
                return Described(index, specs, sequence=True)
            case Clear() | Count() | Describe() | Expect() | Find() | Label():
                return apply_naming(store, request, index, spec_of)
            case Alias():
                store[request.out] = store[request.id]
            case Aggregate():
                store[request.out] = self._aggregate(request)
            case Define():
                self.trainings.define(request)
            case RunProgram():
                self._run_program(request)
            case Fetch() | Move() | StoreState() | RecallState() | ListState():
                raise InternalError("what leaves, or was stored, is not decided here")
            case _:
                assert_never(request)
        return None

    def _aggregate(self, request: Aggregate) -> torch.Tensor:
        """Combine tensors where no guard asks what they are combined of."""
        store = self.store
        values = [store[id] for id in request.ids]
        if request.kind == "sum":
            fractions, dtype = check_sum(request, values)
            size = dense(tuple(values[0].shape), dtype).nbytes
            copied = sum(one.nbytes for one in values if not one.is_contiguous())
            store.reserve(size + copied, request.kind)
            return self._combined(values, fractions, dtype)
        kind = check_elementwise(request, values)
        store.reserve(3 * sum(one.nbytes for one in values), request.kind)
        return self._elementwise(values, kind)

    def _combined(
        self,
        values: Sequence[torch.Tensor],
        coefficients: Sequence[Fraction],
        dtype: torch.dtype,
    ) -> torch.Tensor:
        return combine(values, coefficients, dtype)

    def _elementwise(
        self, values: Sequence[torch.Tensor], kind: Combining
    ) -> torch.Tensor:
        return elementwise(values, kind)

    def _run_program(self, request: RunProgram) -> None:
        rows = request.rows
        if isinstance(rows, DatasetRows):
            parts = [self._part(rows.dataset, *one) for one in rows.each()]
            tensors = [tensor for tensor, _ in parts]
            columns = [places for _, places in parts]
            hidden = rows.dataset in self._hidden
            self.trainings.run(request, tensors, hidden, columns)
        else:
            self.trainings.run(request, [self.store[id] for id in rows])

    def _load(self, request: Load) -> torch.Tensor:
        """Return part of a data set, which is held; or what it would look like."""
        dataset, looks = request.dataset, request.out == NOWHERE
        if dataset in self._hidden and not looks:
            raise CallError(_HIDDEN.format(repr(dataset)))
        tensor, places = self._part(dataset, request.part, request.columns)
        if places is not None:
            look = dense((len(tensor), len(places)), tensor.dtype)
            if not looks:
                self.store.reserve(look.nbytes, "load")
                self.store[request.out] = tensor = tensor.index_select(1, places)
            else:
                tensor = shape_only(look)
        elif not looks:
            self.store.lend(request.out, tensor)
        return tensor

    def _part(
        self, dataset: str, part: str, columns: Sequence[str]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return a tensor of the worker's data, by another name.

        Returns:
            It, whole, and the places of the columns that are meant; None for all.
        """
        parts = self._datasets.get(dataset)
        if parts is None or part not in parts:
            raise CallError(
                "expected a data set and one of its parts, got "
                f"{dataset!r} and {part!r}"
            )
        known = self._columns.get(dataset, {}).get(part, ())
        found = places(known, columns, parts[part])
        where = None if found is None else torch.tensor(found, device=self._device)
        # Its own name for the same memory: what is written stays this process's.
        return parts[part].detach(), where

    def _read_grad(self, request: ReadGrad, index: int) -> AnyAnswer | None:
        grad = self.store[request.id].grad
        if grad is not None:
            self.store[request.out] = grad
        elif not request.describe and self._no_backward is not None:
            raise PoisonedError(self._no_backward)
        elif not request.describe:
            raise CallError(
                "the tensor has no gradient: backward did not reach it, although its "
                "graph did; ask for `.grad` only where a gradient can flow"
            )
        if not request.describe:
            return None
        return Described(index, (None if grad is None else spec_of(grad),))


_HIDDEN = (
    "how many rows {0} has is hidden, and a tensor's shape would show it: run an "
    "@obhut.program over worker.dataset({0}), which needs no number"
)

_NAMED: frozenset[type[object]] = frozenset(
    (SetRequiresGrad, RetainGrad, Aggregate, Clear)
)
"""Requests of which the executor does not tell how what they make was made."""


class ShapeOnlyExecution(Execution):
    """Applies the requests of a session whose tensors have no values.

    Args:
        store: as for ``Execution``.
        executor: likewise.
        device: likewise.
        datasets: likewise. Those whose number of rows is hidden have as many as none
            has more than.
        hidden: likewise.
        provenance: keeps how tensors are made; None if nobody asks.
        minimum_rows: likewise.
        columns: likewise.
    """

    def __init__(
        self,
        store: Store,
        executor: Executor,
        device: torch.device,
        datasets: Mapping[str, Mapping[str, torch.Tensor]],
        hidden: Collection[str] = (),
        provenance: Provenance | None = None,
        minimum_rows: int = 0,
        columns: Columns = NAMELESS,
    ) -> None:
        super().__init__(
            store, executor, device, datasets, hidden, minimum_rows, columns
        )
        self._provenance = provenance

    def made(self, tensors: Sequence[torch.Tensor]) -> tuple[bytes, ...]:
        """Return how tensors were made, as headers say it; nothing if nobody asks."""
        return () if self._provenance is None else self._provenance.delivered(tensors)

    def _trainings(self) -> Trainings:
        return ShapeOnlyTrainings(
            self.store,
            self._device,
            self._like,
            self._provenance,
            self._minimum_rows,
        )

    def read(self, data: TensorData, frames: Sequence[Frame]) -> torch.Tensor:
        """Return what looks like a tensor that came; its frame is not kept."""
        tensor = _look(data)
        if self._provenance is not None:
            self._provenance.came(tensor, data, frame_digest(frames[data.frame]))
        return tensor

    def recalled(
        self, message: StateAnswer, frames: Sequence[Frame]
    ) -> list[torch.Tensor]:
        """Return what looks like tensors that were stored, made as they were."""
        tensors = [_look(data) for data in message.tensors]
        if self._provenance is not None:
            digests = message.digests or (UNKNOWN,) * len(tensors)
            for tensor, digest in zip(tensors, digests, strict=True):
                self._provenance.recalled(tensor, digest)
        return tensors

    def apply(
        self, request: AnyRequest, index: int, frames: Sequence[Frame]
    ) -> AnyAnswer | None:
        """Apply a request, and keep how what it makes was made."""
        answer = super().apply(request, index, frames)
        kept, store = self._provenance, self.store
        if kept is None or request.__class__ not in _NAMED:
            return answer
        if isinstance(request, SetRequiresGrad):
            kept.tracked(store[request.id], request.value)
        elif isinstance(request, RetainGrad):
            kept.retained(store[request.id])
        elif isinstance(request, Aggregate):
            given = [store[id] for id in request.ids]
            kept.aggregated(request, store[request.out], given)
        elif isinstance(request, Clear):
            kept.cleared()
        return answer

    def _part(
        self, dataset: str, part: str, columns: Sequence[str]
    ) -> tuple[torch.Tensor, None]:
        tensor, where = super()._part(dataset, part, columns)
        if where is not None:
            tensor = shape_only(dense((len(tensor), len(where)), tensor.dtype))
        if self._provenance is not None:
            self._provenance.loaded(tensor, dataset, part, columns)
        return tensor, None

    def _combined(
        self,
        values: Sequence[torch.Tensor],
        coefficients: Sequence[Fraction],
        dtype: torch.dtype,
    ) -> torch.Tensor:
        return shape_only(dense(tuple(values[0].shape), dtype))

    def _elementwise(
        self, values: Sequence[torch.Tensor], kind: Combining
    ) -> torch.Tensor:
        return shape_only(dense(tuple(values[0].shape), values[0].dtype))


def _look(data: TensorData) -> torch.Tensor:
    """Return what looks like a tensor that came."""
    look = dense(tuple(data.shape), DTYPES[data.dtype])
    return shape_only(look.tracked if data.requires_grad else look)
