"""One run of a program: blocks in order, batch after batch.

::

    run = Run(trainings, definition, request, plan)
    results = run.go(steppers, order)            # on values
    shape = run.look_once(step)                  # or without, each size of a batch once

Rules:

- What is outside of loops, and what a loop's first batch does by itself, runs in one
  store for the whole run; a batch has one of its own, with what it reads.
- A batch runs as a graph only if nothing shows the difference: no gradient and no graph
  of autograd's goes from batch to batch, and tensors share no memory.
- What is carried from batch to batch looks the same after each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from obhut.errors import ProgramError
from obhut.programs.program import Kind, Line, Loop, Part
from obhut.protocol.messages import Ref, RunProgram

from .bodies import Body, Lines, Number, Step, Value, check_scalar
from .definitions import Definition
from .lowering import Lowered
from .plans import Plan, are_apart
from .shapes import Spec, look_of
from .stepping import Stepper

# Any below: an execution, which is defined above this module, and what is remembered.


class StoppedError(Exception):
    """A run was cancelled between two of its batches."""


class Watch:
    """Who looks after what runs.

    Attributes:
        cancelled: tells whether the batch of requests was cancelled meanwhile, which
            programs ask between their batches.
        tell: takes what share of a program's run is done, from 0 to 1.
    """

    __slots__ = ("cancelled", "tell")

    def __init__(self) -> None:
        self.cancelled: Callable[[], bool] = lambda: False
        self.tell: Callable[[RunProgram, float], None] = lambda request, done: None


class Tools(Protocol):
    """What a run needs of a session's programs."""

    @property
    def device(self) -> torch.device:
        """Where tensors are."""

    @property
    def watch(self) -> Watch:
        """Who looks after the run."""

    def execution(self) -> Any:
        """Return an execution like the session's, on an empty store."""

    def sizes(self, body: Body, tensors: Sequence[torch.Tensor]) -> list[list[int]]:
        """Return the sizes of what a body returns, which is not run on values."""

    def lowered(
        self,
        key: tuple[object, ...],
        body: Body,
        tensors: Sequence[torch.Tensor],
        times: int,
    ) -> Lowered | None:
        """Return a body's graph for so many batches; None if there is none for them."""


class Run:
    """One run of a program.

    Args:
        tools: the session's programs.
        definition: the program.
        request: what is run.
        plan: what it goes through.

    Attributes:
        tools: as given, likewise the next three.
        program: the program itself.
        key: of all that is remembered of it.
        own: the inputs that are no rows.
        step: takes a step of an optimizer.
        steppers: the optimizers; none where there are no values.
        graphs: bound to its inputs and its optimizers alone, by body. One may be given
            those of an earlier run that had the same.
    """

    def __init__(
        self,
        tools: Tools,
        definition: Definition,
        request: RunProgram,
        plan: Plan,
    ) -> None:
        self.tools = tools
        self.definition = definition
        self.program = definition.program
        self.request = request
        self.plan = plan
        self.key = (request.program, *plan.counts.values())
        self.own = plan.own()
        self.step: Step
        self.steppers: Sequence[Stepper] | None = None
        self.graphs: dict[tuple[object, ...], Graph] = {}
        self._turns, self._telling = 0, plan.turns // _TELLINGS + 1

    @functools.cached_property
    def main(self) -> Any:
        """The execution of what is in no batch."""
        found = self.tools.execution()
        for id, tensor in zip(self.plan.own_ids, self.own, strict=True):
            found.store[id] = tensor
        return found

    def go(
        self, steppers: Sequence[Stepper], order: torch.Generator | None
    ) -> list[torch.Tensor]:
        """Go through all rows; return each result's two numbers.

        Args:
            steppers: the optimizers.
            order: what the order of rows is drawn from, where one is.

        Returns:
            Of a step (epochs,), of a whole training (); float64.

        Raises:
            StoppedError: if it was cancelled; what was changed stays changed.
        """

        def step(
            number: int, parameters: object, gradients: Sequence[torch.Tensor | None]
        ) -> None:
            steppers[number].take(gradients)

        self.step, self.steppers = step, steppers
        sums: list[list[torch.Tensor]] = []
        epochs = loops = 0
        for place, block in enumerate(self.plan.blocks):
            self._begin(2 * epochs)
            if not isinstance(block, Loop):
                self._straight(place, block)
                continue
            loop = LoopRun(self, loops, block)
            for epoch in range(block.epochs):
                self._begin(2 * epochs + 1)
                batches = self._watched(self.plan.batches[loops].epoch(order))
                values = [
                    loop.run(batch, number, is_first=not (epoch or number))
                    for number, batch in enumerate(batches)
                ]
                columns = list(zip(*values, strict=True)) or loop.nothing()
                sums.append([_sum(one, self.tools.device) for one in columns])
                epochs += 1
            loop.end()
            loops += 1
        device = self.tools.device
        if self.definition.loops:
            return [
                torch.as_tensor(one, device=device).detach().to(torch.float64).clone()
                for one in self._results()
            ]
        if epochs == 1:
            return [one.unsqueeze(0) for one in sums[0]]
        return [torch.stack(column) for column in zip(*sums, strict=True)]

    def look_once(self, step: Step) -> list[tuple[int, ...]]:
        """Run all once that is done, on tensors without values.

        Args:
            step: takes the steps of optimizers.

        Returns:
            The sizes of each result's two numbers.
        """
        self.step = step
        values: list[Value] = []
        loops = 0
        for place, block in enumerate(self.plan.blocks):
            if not isinstance(block, Loop):
                self._straight(place, block)
                continue
            loop = LoopRun(self, loops, block)
            for number, size, is_first in _each_once(self.plan, loops, block):
                batch = self.plan.first(loops, size)
                values = loop.run(batch, number, is_first=is_first)
            loops += 1
        if self.definition.loops:
            return [_sizes(one) for one in self._results()]
        return [(self.request.epochs, *_sizes(one)) for one in values]

    def _watched(
        self, batches: Iterator[Sequence[torch.Tensor]]
    ) -> Iterator[Sequence[torch.Tensor]]:
        """Yield batches until the run is cancelled, and tell how many are done."""
        watch = self.tools.watch
        for batch in batches:
            if watch.cancelled():
                raise StoppedError
            yield batch
            self._turns += 1
            if self._turns % self._telling == 0:
                watch.tell(self.request, self._turns / self.plan.turns)

    def _begin(self, stage: int) -> None:
        """Let optimizers have the hyperparameters of a stage."""
        if stage in self.plan.changes and self.steppers is not None:
            for number, stepper in enumerate(self.steppers):
                stepper.set(self.plan.options(number, stage))

    def _results(self) -> list[Value]:
        """Return what a whole training returns."""
        found: list[Value] = []
        for result in self.program.results:
            for one in (result.numerator, result.denominator):
                value: Any = one
                if isinstance(one, Ref):
                    value = self.main.store[one.id]
                elif not isinstance(one, int | float):
                    value = one.at(self.plan.counts)  # type: ignore[arg-type] # checked
                if one is result.denominator:
                    check_scalar(result.name, value)
                found.append(value)
        return found

    def _straight(self, place: int, lines: Sequence[Line]) -> None:
        """Run lines that are in no loop."""
        self.lines((place,), lines, 0).run(self.main, self.step)

    def lines(self, key: tuple[object, ...], lines: Sequence[Line], rows: int) -> Lines:
        """Return lines as requests."""
        counts, program = self.plan.counts, self.program
        made: Lines = self.definition.remember(
            (*self.key, "lines", *key, rows),
            lambda: Lines(program, [line.at(rows, counts) for line in lines]),
        )
        return made


def _each_once(plan: Plan, number: int, loop: Loop) -> Iterator[tuple[int, int, bool]]:
    """Yield each kind of batch that a loop has once, and how it ends.

    Yields:
        The batch's number, its rows, and whether it is the first of all.
    """
    batches, turns = plan.batches[number], len(loop.parts)
    if batches.empty:
        yield 0, batches.size, True
        return
    full = [(place, batches.size) for place in range(min(batches.full, turns))]
    last = [(batches.full, batches.rest)] * bool(batches.rest)
    each = full + last
    yield (*each[0], True)
    if loop.first:
        for place, size in each[1:]:
            yield place, size, False
        if loop.epochs > 1:
            yield (*each[0], False)
        elif batches.full > turns:
            yield turns, batches.size, False
    else:
        for place, size in each[1:]:
            yield place, size, False
    end = len(batches) - 1
    if end:
        yield end, batches.rest or batches.size, False


class LoopRun:
    """One loop of a run.

    Args:
        run: the run.
        number: the loop's, from 0.
        loop: the loop.
    """

    def __init__(self, run: Run, number: int, loop: Loop) -> None:
        self._run = run
        self._number = number
        self._loop = loop
        batches = run.plan.batches[number]
        self._size = batches.sizes[0]
        self._held: set[int] = set()
        self._bodies: dict[tuple[int, int], Body] = {}
        self._seen: set[Body] = set()
        results = () if run.definition.loops else run.program.results
        self._adds = [one.name for one in results for _ in range(2)]  # of a step
        self._alone = (
            run.steppers is not None and run.definition.keeps_to_itself[number]
        )
        self._graphs: dict[int, Graph | None] = {}
        if not loop.first:
            self._take_initial()

    @property
    def _store(self) -> Any:
        """What later lines have."""
        return self._run.main.store

    @functools.cached_property
    def _reads(self) -> set[int]:
        """What a batch reads."""
        return _read(self._loop.parts)

    def run(
        self, batch: Sequence[torch.Tensor], number: int, *, is_first: bool
    ) -> list[Value]:
        """Run a batch.

        Args:
            batch: its rows.
            number: its place in the epoch, from 0.
            is_first: whether it is the first of all.

        Returns:
            Of a step the numbers that it adds to its results.
        """
        if is_first and self._loop.first:
            self._run_first(batch)
            return []
        place = number % len(self._loop.parts)
        values = None
        body = self._body(place, batch[0].shape[0])
        if self._alone:
            values = self._by_graph(place, body, batch)
        if values is None:
            values = self._line_by_line(body, batch)
        if not self._adds:
            self._carry(body, values)
            return []
        if body not in self._seen:  # all its batches look the same
            for name, one in zip(self._adds[1::2], values[1::2], strict=True):
                check_scalar(name, one)
            self._seen.add(body)
        return values

    def _line_by_line(self, body: Body, batch: Sequence[torch.Tensor]) -> list[Value]:
        if self._run.steppers is not None:
            batch = [one.clone() for one in batch]  # a body may write into its rows
        execution = self._run.tools.execution()
        values = body.run(execution, self._tensors(body, batch), self._run.step)
        if not self._adds:
            return values
        return [
            one.detach() if isinstance(one, torch.Tensor) else one for one in values
        ]

    def nothing(self) -> list[list[torch.Tensor]]:
        """Return what a step adds to its results that has no batch: zeros."""
        if not self._adds:
            return []
        run = self._run
        body = self._body(0, self._size)
        tensors = self._tensors(body, run.plan.first(self._number, self._size))
        return [
            [torch.zeros(size, dtype=torch.float64, device=run.tools.device)]
            for size in run.tools.sizes(body, tensors)
        ]

    def end(self) -> None:
        """Let the run go on after the loop."""
        if any(self._graphs.values()):
            for one in self._run.own:
                one.grad = None  # the graph kept its gradients to itself

    def _run_first(self, batch: Sequence[torch.Tensor]) -> None:
        """Run what only the first batch does."""
        run, store, size = self._run, self._store, len(batch[0])
        rows = run.program.rows
        for id, one in zip(rows, batch, strict=True):
            store[id] = one.clone() if run.steppers is not None else one
        run.lines(("first", self._number), self._loop.first, size).run(
            run.main, run.step
        )
        store.free(rows, tagged=False)
        self._take_initial()

    def _take_initial(self) -> None:
        for id, initial in self._loop.carried:
            if initial is not None:
                self._hold(id, self._store[initial])

    def _body(self, place: int, size: int) -> Body:
        """Return a part for batches of one size."""
        found = self._bodies.get((place, size))
        if found is None:
            found = self._bodies[place, size] = self._find_body(place, size)
        return found

    def _find_body(self, place: int, size: int) -> Body:
        key = (*self._run.key, "body", self._number, place, size)
        run = self._run
        body: Body = run.definition.remember(key, lambda: self._make_body(place, size))
        return body

    def _make_body(self, place: int, size: int) -> Body:
        part, run = self._loop.parts[place], self._run
        returned: list[Number] = [Ref(id) for _, id in part.carried]
        if not run.definition.loops:
            for one in run.program.results:
                returned += [one.numerator, one.denominator]
        read = _read((part,)) | {id for _, id in part.carried}
        return Body(
            run.program,
            part.lines,
            returned,
            size,
            run.plan.counts,
            carried=[id for id, _ in self._loop.carried if id in read],
            hands_on=[id for id, _ in part.carried],
            detached=run.definition.detached,
        )

    def _tensors(self, body: Body, batch: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return what a body takes."""
        given = self._run.plan.given(batch, self._run.own)
        return given + [self._store[id] for id in body.takes[len(given) :]]

    def _carry(self, body: Body, values: Sequence[Value]) -> None:
        """Take what a batch hands on.

        Raises:
            ProgramError: if it looks otherwise than what the batch was given.
        """
        for id, value in zip(body.hands_on, values, strict=True):
            if not isinstance(value, torch.Tensor):
                raise ProgramError("a batch hands on tensors")
            if id in self._held:
                before = self._store[id]
                if id in self._reads and (before.shape, before.dtype) != (
                    value.shape,
                    value.dtype,
                ):
                    raise ProgramError(
                        "what is carried from batch to batch was "
                        f"{_described(before)}, and a batch makes {_described(value)} "
                        "of it: add to a sum, which stays as large as it is"
                    )
                self._store.free((id,), tagged=False)
            self._hold(id, value)

    def _hold(self, id: int, value: torch.Tensor) -> None:
        self._store[id] = value
        self._held.add(id)

    def _by_graph(
        self, place: int, body: Body, batch: Sequence[torch.Tensor]
    ) -> list[Value] | None:
        """Run a batch as a graph; None if it must run line by line."""
        if body.rows not in self._graphs:
            tensors = self._tensors(body, batch)
            self._graphs[body.rows] = self._bound(place, body, tensors)
        graph = self._graphs[body.rows]
        if graph is None:
            return None
        carried: list[torch.Tensor] = []
        if graph.carried:
            carried = [self._store[id] for id in graph.carried]
            if [look_of(one) for one in carried] != graph.looks:
                return None
        if graph.copies:
            batch = [one.clone() for one in batch]
        with torch._C._AutoDispatchBelowAutograd():
            return graph.call(*batch, *carried)

    def _bound(
        self, place: int, body: Body, tensors: Sequence[torch.Tensor]
    ) -> Graph | None:
        """Return a body's graph, bound to what this run has; None if it has none."""
        run = self._run
        key = (*run.key, self._number, place, body.rows)
        found = run.graphs.get(key)
        if found is None:
            found = self._lowered(key, body, tensors)
            if found is not None and body.inputs_only:
                run.graphs[key] = found
        return found

    def _lowered(
        self, key: tuple[object, ...], body: Body, tensors: Sequence[torch.Tensor]
    ) -> Graph | None:
        tracked = [kind is Kind.PARAMETER for kind in body.kinds]
        if [one.requires_grad for one in tensors] != tracked or not are_apart(tensors):
            return None
        run = self._run
        batches = run.plan.batches[self._number]
        times = batches.times(body.rows) * self._loop.epochs
        lowered = run.tools.lowered(key, body, tensors, times)
        if lowered is None or run.steppers is None:
            return None
        held = [
            one.detach()
            for one, kind in zip(tensors, body.kinds, strict=True)
            if kind is not Kind.ROWS
        ]
        call = lowered.make(*held, *run.steppers)
        last = len(tensors) - sum(
            kind is Kind.ROWS for kind in body.kinds[body.inputs :]
        )
        looks = [look_of(one) for one in tensors[last:]]
        return Graph(call, body.takes[last:], looks, lowered.rows_written)


class Graph(NamedTuple):
    """A batch as a graph, bound to a run.

    Attributes:
        call: runs a batch.
        carried: the ids of what it takes of the batch before, after the rows.
        looks: how these look.
        copies: whether rows must be copied, since they are written.
    """

    call: Callable[..., list[Value]]
    carried: Sequence[int]
    looks: list[Spec]
    copies: bool


def _read(parts: Iterable[Part]) -> set[int]:
    return {id for part in parts for line in part.lines for id in line.reads}


def _described(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _sizes(value: Value) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def _sum(values: Sequence[Value], device: torch.device) -> torch.Tensor:
    """Return a sum in float64."""
    tensors = [one for one in values if isinstance(one, torch.Tensor)]
    if len(tensors) < len(values):
        return torch.tensor(float(sum(values)), dtype=torch.float64, device=device)
    return torch.stack(tensors).to(torch.float64).sum(0)


_TELLINGS = 1_000
"""How often a run tells at most what share of it is done."""
