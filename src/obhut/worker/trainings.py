"""Runs programs on rows: the programs of one session, and their optimizers.

::

    trainings = Trainings(store, make)
    trainings.define(Define(text))
    trainings.run(RunProgram(...), rows)         # all batches of all epochs

Rules:

- A program is checked before it is kept, and called by its digest.
- A batch runs as a graph, lowered once in a process for each look of its inputs, if it
  takes no gradients from the batch before it and there are a few of its size; all else
  runs line by line. Where no values are each size runs once.
- Which rows a batch has is drawn from the seed and the worker's name, all else from the
  seed alone: the same at all owners. The process's generator is left as it was.
- What is carried from batch to batch looks the same after each.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from obhut.errors import LimitError, ProgramError
from obhut.programs.text import digest
from obhut.protocol import limits
from obhut.protocol.messages import Define, RunProgram

from .bodies import Body
from .definitions import Definition, defined
from .drawing import seeded
from .looks import Itself, Remembered
from .lowering import Lowered, lower, sizes
from .plans import Plan
from .provenance import Provenance, Step
from .runs import Run, Watch
from .shape_only import shape_only
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
        store: the session's tensors. From its worker's name the order of rows is drawn.
        device: where they are.
        make: makes an execution like the session's.
        watch: who looks after what runs.
        minimum_rows: that a part of a data set must have.
        exact: whether a graph does what the lines do, digit for digit.

    Attributes:
        device: as given.
        watch: as given.
    """

    def __init__(
        self,
        store: Store,
        device: torch.device,
        make: Make,
        watch: Watch | None = None,
        minimum_rows: int = 0,
        exact: bool = True,
    ) -> None:
        self._minimum_rows = minimum_rows
        self._exact = exact
        self._store = store
        self.device = device
        self._make = make
        self.watch = watch or Watch()
        self._programs: dict[str, Definition] = {}
        self._steppers: dict[int, Stepper] = {}

    def define(self, request: Define) -> None:
        """Take in a program.

        Raises:
            ProgramError: if it is none that workers run.
            LimitError: if there are too many.
        """
        if len(self._programs) < limits.PROGRAMS_PER_SESSION:
            definition = defined(request.text)
            self._programs[definition.digest] = definition
        elif digest(request.text) not in self._programs:
            raise LimitError(
                f"a session has at most {limits.PROGRAMS_PER_SESSION} programs"
            )

    def begin(self) -> None:
        """Begin anew: forget what all optimizers keep."""
        self._steppers.clear()

    def free(self, ids: Sequence[int]) -> None:
        """Forget what optimizers keep, by their ids; others are passed over."""
        for id in ids:
            self._steppers.pop(id, None)

    def run(
        self,
        request: RunProgram,
        rows: Sequence[torch.Tensor],
        hidden: bool = False,
        columns: Sequence[torch.Tensor | None] = (),
    ) -> None:
        """Run a program on all rows, and hold its results.

        Args:
            request: what is run.
            rows: the tensors of rows.
            hidden: whether how many rows there are is hidden.
            columns: of each tensor the places of the columns that are meant, None for
                all; nothing for all of all.

        Raises:
            ProgramError: if it does not go with what is given.
            Exception: whatever one of its operators raises.
        """
        definition = self._programs.get(request.program)
        if definition is None:
            raise ProgramError(
                f"no program of the digest {request.program[:16]} is defined here"
            )
        results = definition.program.results
        if request.count != 2 * len(results):
            raise ProgramError(f"a program of {len(results)} results is run")
        plan = self._plan(definition, request, rows, hidden, columns)
        self._carry_out(Run(self, definition, request, plan))

    def _plan(
        self,
        definition: Definition,
        request: RunProgram,
        rows: Sequence[torch.Tensor],
        hidden: bool,
        columns: Sequence[torch.Tensor | None],
    ) -> Plan:
        """Return what a run goes through."""
        least = self._minimum_rows
        plan = Plan(self._store, definition, request, rows, hidden, least, columns)
        if plan.lines > limits.LINES_PER_RUN:
            many = f", with {limits.HIDDEN_ROWS:,} rows for a number that is hidden"
            raise LimitError(
                f"a run has at most {limits.LINES_PER_RUN:,} lines over all batches, "
                f"this one {plan.lines:,}{many if hidden else ''}; go through the rows "
                "less often at once"
            )
        for one in plan.inputs:
            self._store.writes(one, "a program")  # which it may do
        return plan

    def execution(self) -> Any:
        """Return an execution like the session's, on an empty store."""
        return self._make(Store(self._store.worker, None))

    def _carry_out(self, run: Run) -> None:
        """Go through the rows."""
        steppers = self._optimizers(run.request, run.plan)
        try:
            order = self._order(run.request) if run.plan.shuffles else None
            with (
                seeded(run.request.seed, self.device)
                if run.definition.draws
                else contextlib.nullcontext()
            ):
                results = run.go(steppers, order)
        finally:
            torch.autograd.graph.increment_version(run.plan.stepped)
        for place, one in enumerate(results):
            self._store[run.request.out + place] = one

    def _order(self, request: RunProgram) -> torch.Generator:
        text = f"{request.seed} {self._store.worker}".encode()
        seed = int.from_bytes(hashlib.sha256(text).digest()[:7], "little")
        return torch.Generator().manual_seed(seed)

    def _optimizers(self, request: RunProgram, plan: Plan) -> list[Stepper]:
        """Return the program's optimizers, with what they kept from earlier runs."""
        found: list[Stepper] = []
        for one, groups in zip(request.optimizers, plan.groups, strict=True):
            kind, parameters = groups
            stepper = self._steppers.get(one.id)
            if stepper is None or not stepper.steps(kind, parameters):
                stepper = Stepper(kind, parameters, one.options)
                if one.id:
                    self._steppers[one.id] = stepper
            else:
                stepper.set(one.options)
            for _, options in one.later:
                check_options(kind, options, len(parameters))
            found.append(stepper)
        return found

    def sizes(self, body: Body, tensors: Sequence[torch.Tensor]) -> list[list[int]]:
        """Return the sizes of what a body returns, which is not run on values.

        Args:
            body: the body.
            tensors: what look like what it takes.
        """
        return sizes(body, [look_of(one) for one in tensors], self._make)

    def lowered(
        self,
        key: tuple[object, ...],
        body: Body,
        tensors: Sequence[torch.Tensor],
        times: int,
    ) -> Lowered | None:
        """Return a body's graph; None if it has none, or is not worth one yet.

        Args:
            key: the body's.
            body: the body.
            tensors: what it takes.
            times: how many batches run it now.
        """
        if self.device.type != "cpu":
            return None  # which kernels it would take is known of a CPU only
        looks = tuple(map(look_of, tensors))
        key = (*key, looks, torch.get_default_dtype(), self.device, self._exact)
        known = _lowered.get(key, 0)
        if not isinstance(known, int):
            return known
        if self._exact and known + times < _WORTH:
            _lowered[key] = known + times
            return None
        try:
            made = lower(body, looks, self._make, self._exact)
        except Exception:
            made = None  # line by line it runs all the same
        _lowered[key] = made
        return made


class ShapeOnlyTrainings(Trainings):
    """The programs of a session whose tensors have no values.

    Args:
        store: as for ``Trainings``.
        device: likewise.
        make: likewise.
        provenance: keeps how tensors are made; None if nobody asks.
        minimum_rows: as for ``Trainings``.
    """

    def __init__(
        self,
        store: Store,
        device: torch.device,
        make: Make,
        provenance: Provenance | None = None,
        minimum_rows: int = 0,
    ) -> None:
        super().__init__(store, device, make, minimum_rows=minimum_rows)
        self._provenance = provenance
        self._kept: dict[int, tuple[object, Step]] = {}

    def free(self, ids: Sequence[int]) -> None:
        """Forget of which runs optimizers keep something."""
        for id in ids:
            self._kept.pop(id, None)

    def _carry_out(self, run: Run) -> None:
        """Run each size once, for what is publicly wrong."""
        request, plan = run.request, run.plan
        for one, (kind, parameters) in zip(
            request.optimizers, plan.groups, strict=True
        ):
            for options in (one.options, *(options for _, options in one.later)):
                check_options(kind, options, len(parameters))
        before = [one._version for one in plan.inputs]
        made = self._made(request, plan)
        results = [
            shape_only(dense(sizes, torch.float64)) for sizes in run.look_once(_written)
        ]
        for place, result in enumerate(results):
            self._store[request.out + place] = result
        if made is None or self._provenance is None:
            return
        self._provenance.name(made, results)
        for place, (tensor, then) in enumerate(zip(plan.inputs, before, strict=True)):
            if tensor._version != then:
                self._provenance.wrote(tensor, made, place)
        for stepping, group in zip(request.optimizers, plan.groups, strict=True):
            self._kept[stepping.id] = (_key(group), made)

    def _made(self, request: RunProgram, plan: Plan) -> Step | None:
        """Return what stands for the run, as long as its inputs are what they were."""
        if self._provenance is None:
            return None
        kept: list[Step | None] = []
        for one, group in zip(request.optimizers, plan.groups, strict=True):
            known = self._kept.get(one.id) if one.id else None
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


_WORTH = 4
"""So many batches and more in this process are worth lowering."""

_lowered: Remembered[Lowered | int | None] = Remembered()
"""Graphs, by body and looks; None for what can't be lowered.

Of what was not worth it yet, how many batches ran.
"""
