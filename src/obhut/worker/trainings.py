"""Runs programs on rows: the programs of one session, and their optimizers.

::

    trainings = Trainings(store, make)
    trainings.define(Define(text))
    trainings.run(RunProgram(...))               # all batches of all epochs

Rules:

- A program is checked before it is kept, and called by its digest.
- A full batch runs as a graph, lowered once for each look of its inputs; the rows that
  are left run line by line. So does everything where no values are: each size once.
- Which rows a batch has is drawn from the seed and the worker's name, all else from the
  seed alone: the same at all owners. The process's generator is left as it was.
- Inputs share no memory with each other, so that a graph may change one.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from obhut.errors import CallError, LimitError, ProgramError
from obhut.programs.checks import check
from obhut.programs.program import Kind, Program
from obhut.programs.text import digest, read
from obhut.protocol import limits
from obhut.protocol.messages import Define, RunProgram

from .bodies import Body, Value
from .looks import Itself, Remembered
from .lowering import Lowered, lower
from .provenance import Provenance, Step
from .shape_only import ShapeOnly, shape_only
from .shape_only_calls import Recording, shape_only_mode
from .shapes import dense, look_of
from .stepping import Stepper, check_options
from .store import Store

# Any below: an execution, which is defined above this module.


class Make(Protocol):
    """Makes an execution like the session's, on another store."""

    def __call__(self, store: Store, recording: Recording | None = None) -> Any:
        """Return it, or one whose operators are recorded."""


class Trainings:
    """The programs of one session.

    Args:
        store: the session's tensors.
        device: where they are.
        make: makes an execution like the session's.
        name: the worker's, from which the order of its rows is drawn.
        log: takes a line for the worker's owner.
    """

    def __init__(
        self,
        store: Store,
        device: torch.device,
        make: Make,
        name: str = "",
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._store = store
        self._device = device
        self._make = make
        self._name = name
        self._log = log
        self._programs: dict[str, Program] = {}
        self._bodies: dict[tuple[str, int], Body] = {}
        self._steppers: dict[int, Stepper] = {}

    def define(self, request: Define) -> None:
        """Take in a program.

        Raises:
            ProgramError: if it is none that workers run.
            LimitError: if there are too many.
        """
        key = digest(request.text)
        if key in self._programs:
            return
        if len(self._programs) >= limits.PROGRAMS_PER_SESSION:
            raise LimitError(
                f"a session has at most {limits.PROGRAMS_PER_SESSION} programs"
            )
        program = read(request.text)
        check(program)
        self._programs[key] = program

    def free(self, ids: Sequence[int]) -> None:
        """Forget what optimizers keep, by their ids; others are passed over."""
        for id in ids:
            self._steppers.pop(id, None)

    def run(self, request: RunProgram) -> None:
        """Run a program on all rows, and hold its results.

        Raises:
            ProgramError: if it does not go with what is given.
            Exception: whatever one of its operators raises.
        """
        program = self._programs.get(request.program)
        if program is None:
            raise ProgramError(
                f"no program of the digest {request.program[:16]} is defined here"
            )
        if request.count != 2 * len(program.results):
            raise ProgramError(f"a program of {len(program.results)} results is run")
        plan = _Plan(self._store, program, request)
        bodies = {size: self._body(request.program, size) for size in plan.sizes}
        for size, body in bodies.items():
            body.check_inputs(plan.first(size))
        self._carry_out(request, plan, bodies)

    def _body(self, key: str, size: int) -> Body:
        found = self._bodies.get((key, size))
        if found is None:
            if len(self._bodies) >= limits.PROGRAMS_PER_SESSION:
                self._bodies.clear()
            found = self._bodies[key, size] = Body(self._programs[key], size)
        return found

    def _carry_out(
        self, request: RunProgram, plan: _Plan, bodies: Mapping[int, Body]
    ) -> None:
        """Go through the rows."""
        steppers = self._optimizers(request, plan)
        run = self._replay(request, plan, bodies, steppers)
        sums: list[list[torch.Tensor]] = [[] for _ in range(request.count)]
        before = torch.default_generator.get_state()
        torch.manual_seed(request.seed)
        try:
            for batches in plan.epochs(self._order(request)):
                values = [run(batch) for batch in batches]
                for made, column in zip(sums, zip(*values, strict=True), strict=True):
                    made.append(_sum(column, self._device))
        finally:
            torch.default_generator.set_state(before)
            torch.autograd.graph.increment_version(plan.stepped)
        for place, made in enumerate(sums):
            self._store[request.out + place] = torch.stack(made)

    def _order(self, request: RunProgram) -> torch.Generator:
        text = f"{request.seed} {self._name}".encode()
        seed = int.from_bytes(hashlib.sha256(text).digest()[:7], "little")
        return torch.Generator().manual_seed(seed)

    def _optimizers(self, request: RunProgram, plan: _Plan) -> list[Stepper]:
        """Return the program's optimizers, with what they kept from earlier runs."""
        found: list[Stepper] = []
        for one, groups in zip(request.optimizers, plan.groups, strict=True):
            kind, parameters = groups
            stepper = self._steppers.get(one.id)
            if stepper is None or not stepper.steps(kind, parameters):
                stepper = Stepper(kind, parameters, one.options)
                self._steppers[one.id] = stepper
            stepper.set(one.options)
            found.append(stepper)
        return found

    def _replay(
        self,
        request: RunProgram,
        plan: _Plan,
        bodies: Mapping[int, Body],
        steppers: Sequence[Stepper],
    ) -> Callable[[Sequence[torch.Tensor]], list[Value]]:
        """Return what runs a batch."""

        def step(
            number: int, parameters: object, gradients: Sequence[torch.Tensor | None]
        ) -> None:
            steppers[number].take(gradients)

        own = plan.own

        def line_by_line(batch: Sequence[torch.Tensor]) -> list[Value]:
            body = bodies[len(batch[0])]
            execution = self._make(Store(self._name, None))
            copies = [one.clone() for one in batch]
            values = body.run(execution, plan.given(copies, own), step)
            return [
                one.detach() if isinstance(one, torch.Tensor) else one
                for pair in values
                for one in pair
            ]

        size = plan.sizes[0]
        if plan.batches(size) < _WORTH or bodies[size].program.carries_gradients:
            return line_by_line
        lowered = self._lower(request.program, bodies[size], plan.first(size))
        if lowered is None:
            return line_by_line
        held = [tensor.detach() for tensor in plan.inputs]
        graph = lowered.source.compile()(*held, *(one.take for one in steppers))
        copies = lowered.rows_written

        def replay(batch: Sequence[torch.Tensor]) -> list[Value]:
            if len(batch[0]) != size:
                return line_by_line(batch)
            given = [one.clone() for one in batch] if copies else batch
            with torch._C._AutoDispatchBelowAutograd():
                return graph(*given)

        return replay

    def _lower(
        self, program: str, body: Body, inputs: Sequence[torch.Tensor]
    ) -> Lowered | None:
        looks = tuple(map(look_of, inputs))
        key = (program, body.rows, looks, torch.get_default_dtype(), self._device)
        known = _lowered.get(key, _UNSEEN)
        if self._device.type != "cpu":
            return None  # which kernels it would take is known of a CPU only
        if isinstance(known, Lowered) or known is None:
            return known
        try:
            made = lower(body, looks, self._make)
        except Exception as error:
            self._log(f"a program runs line by line: {type(error).__name__}: {error}")
            made = None
        _lowered[key] = made
        return made


class ShapeOnlyTrainings(Trainings):
    """The programs of a session whose tensors have no values.

    Args:
        store: as for ``Trainings``.
        device: likewise.
        make: likewise.
        name: likewise.
        provenance: keeps how tensors are made; None if nobody asks.
    """

    def __init__(
        self,
        store: Store,
        device: torch.device,
        make: Make,
        name: str = "",
        provenance: Provenance | None = None,
    ) -> None:
        super().__init__(store, device, make, name)
        self._provenance = provenance
        self._kept: dict[int, tuple[object, Step]] = {}

    def free(self, ids: Sequence[int]) -> None:
        """Forget of which runs optimizers keep something."""
        for id in ids:
            self._kept.pop(id, None)

    def _carry_out(
        self, request: RunProgram, plan: _Plan, bodies: Mapping[int, Body]
    ) -> None:
        """Run each size once, for what is publicly wrong."""
        for one, (kind, parameters) in zip(
            request.optimizers, plan.groups, strict=True
        ):
            check_options(kind, one.options, len(parameters))
        before = [one._version for one in plan.inputs]
        made = self._made(request, plan)
        for size, body in bodies.items():
            execution = self._make(Store(self._name, None))
            with shape_only_mode():
                given = body.own(plan.first(size))
            pairs = body.run(execution, given, _written)
        shapes = [tuple(above.shape) for above, _ in pairs]  # of one text, so of all
        for place in range(request.count):
            shape = () if place % 2 else shapes[place // 2]
            look = dense((request.epochs, *shape), torch.float64)
            result = self._store[request.out + place] = shape_only(look)
            if made is not None and self._provenance is not None:
                self._provenance.name(made, [None] * place + [result])
        if made is None or self._provenance is None:
            return
        for place, (tensor, then) in enumerate(zip(plan.inputs, before, strict=True)):
            if tensor._version != then:
                self._provenance.wrote(tensor, made, place)
        for one, group in zip(request.optimizers, plan.groups, strict=True):
            self._kept[one.id] = (_key(group), made)

    def _made(self, request: RunProgram, plan: _Plan) -> Step | None:
        """Return what stands for the run, as long as its inputs are what they were."""
        if self._provenance is None:
            return None
        kept: list[Step | None] = []
        for one, group in zip(request.optimizers, plan.groups, strict=True):
            known = self._kept.get(one.id)
            kept.append(known[1] if known and known[0] == _key(group) else None)
        return self._provenance.program(request, plan.all, kept)


def _key(group: tuple[str, Sequence[Sequence[torch.Tensor]]]) -> object:
    """Return what an optimizer is of, and keep it: the same tensors, by their names."""
    kind, parameters = group
    return kind, [[Itself(one) for one in several] for several in parameters]


def _written(
    number: int,
    parameters: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor | None],
) -> None:
    """Let parameters that are stepped be written."""
    with torch.no_grad(), shape_only_mode():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.add_(gradient)


class _Plan:
    """What one run goes through.

    Attributes:
        inputs: the tensors that are no rows.
        sizes: of the batches, that of a full one first.
        groups: of each optimizer, its kind and the parameters of its groups.
        stepped: the parameters that optimizers step.
    """

    def __init__(self, store: Store, program: Program, request: RunProgram) -> None:
        self._program, self._request = program, request
        self.inputs = [store[id] for id in request.inputs]
        self._rows = [store[id] for id in request.rows]
        if len(self._rows) != len(program.rows) or not all(
            one.dim() for one in self._rows
        ):
            raise ProgramError(
                f"a program of {len(program.rows)} tensors of rows is run"
            )
        counts = {len(one) for one in self._rows}
        if len(counts) > 1:
            raise ProgramError("expected as many rows of each")
        if len(self.inputs) + len(self._rows) != len(program.inputs):
            raise ProgramError(
                f"a program of {len(program.inputs)} inputs is run, and "
                f"{len(self.inputs) + len(self._rows)} are given"
            )
        (self._count,) = counts
        _check_apart([*self.inputs, *self._rows])
        size = request.batch_size or self._count
        whole, rest = divmod(self._count, size) if size else (0, 0)
        self.sizes = [size] if whole else []
        if rest and not request.drop_last:
            self.sizes.append(rest)
        if not self.sizes:
            raise CallError(
                f"expected {size or 1} rows or more for a batch, got {self._count}; "
                "choose a smaller batch size, or drop_last=False"
            )
        small = min(self.sizes)
        if small < program.least:
            raise CallError(
                f"the last batch has {small} row, of {self._count} in batches of "
                f"{size}, and the program takes {program.least} or more; leave it out "
                "with drop_last=True, or choose another batch_size"
            )
        if len(request.optimizers) != len(program.optimizers):
            raise ProgramError(
                f"a program of {len(program.optimizers)} optimizers is run"
            )
        places = iter(range(len(self.inputs)))
        rows = set(program.rows)
        by_id = {
            id: self.inputs[next(places)]
            for id in range(1, len(program.inputs) + 1)
            if id not in rows
        }
        self.groups = [
            (one.kind, [[by_id[id] for id in group] for group in one.groups])
            for one in program.optimizers
        ]
        self.stepped = [t for _, groups in self.groups for g in groups for t in g]

    @property
    def own(self) -> list[torch.Tensor]:
        """Inputs of the same memory, whose gradients are the run's."""
        kinds = [one.kind for one in self._program.inputs if one.kind is not Kind.ROWS]
        return [
            one.detach().requires_grad_(kind is Kind.PARAMETER)
            for one, kind in zip(self.inputs, kinds, strict=True)
        ]

    @property
    def all(self) -> list[torch.Tensor]:
        """All inputs, and all rows."""
        return [*self.inputs, *self._rows]

    def given(
        self, batch: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Return all inputs in the program's order, with a batch of rows."""
        rows, own = iter(batch), iter(inputs)
        are_rows = set(self._program.rows)
        return [
            next(rows) if id in are_rows else next(own)
            for id in range(1, len(self._program.inputs) + 1)
        ]

    def first(self, size: int) -> list[torch.Tensor]:
        """Return all inputs with a batch of the first rows."""
        with shape_only_mode() if self._is_shape_only else contextlib.nullcontext():
            batch = [_batch(one.detach(), 0, size).clone() for one in self._rows]
            return self.given(batch, self.inputs)

    @property
    def _is_shape_only(self) -> bool:
        return isinstance(self._rows[0], ShapeOnly)

    def batches(self, size: int) -> int:
        """Return how many batches of a size there are in all."""
        return self._count // size * self._request.epochs

    def epochs(
        self, generator: torch.Generator
    ) -> Iterator[Iterator[Sequence[torch.Tensor]]]:
        """Yield the batches of each epoch."""
        for _ in range(self._request.epochs):
            yield self._epoch(generator)

    def _epoch(self, generator: torch.Generator) -> Iterator[Sequence[torch.Tensor]]:
        size = self._request.batch_size or self._count
        rows = [one.detach() for one in self._rows]
        stop = self._count
        if self._request.drop_last:
            stop -= stop % size
        if not self._request.shuffle:
            for start in range(0, stop, size):
                end = min(start + size, stop)
                yield [_batch(one, start, end - start) for one in rows]
            return
        order = torch.randperm(self._count, generator=generator)[:stop]
        for places in order.to(rows[0].device).split(size):
            yield [one.index_select(0, places) for one in rows]


def _batch(rows: torch.Tensor, start: int, size: int) -> torch.Tensor:
    return rows.narrow(0, start, size).contiguous()


def _check_apart(tensors: Sequence[torch.Tensor]) -> None:
    """Check that no two tensors share memory.

    Raises:
        ProgramError: if two do.
    """
    memory = {one.untyped_storage()._cdata for one in tensors}
    if len(memory) < len(tensors):
        raise ProgramError(
            "inputs of a program share memory: pass each once, or copies: x.clone()"
        )


def _sum(values: Sequence[Value], device: torch.device) -> torch.Tensor:
    """Return a sum in float64."""
    tensors = [one for one in values if isinstance(one, torch.Tensor)]
    if len(tensors) < len(values):
        return torch.tensor(float(sum(values)), dtype=torch.float64, device=device)
    return torch.stack(tensors).to(torch.float64).sum(0)


_WORTH = 4
"""So many full batches and more are worth lowering."""

_UNSEEN = object()

_lowered: Remembered[Any] = Remembered()
"""Graphs, by body and looks; None for what can't be lowered."""
