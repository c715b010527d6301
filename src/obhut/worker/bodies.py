"""What a program does to one batch, request by request, on tensors that are given.

::

    body = Body(program, lines, returned, 32)    # checked, for batches of 32 rows
    values = body.run(execution, inputs, step)   # of each id that it returns

It is how a program runs without values, how it is lowered, and how a batch runs that is
not worth lowering.

Rule: what a line does is what the same request does; only a step of an optimizer is
whoever calls's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import torch

from obhut.errors import ProgramError
from obhut.programs.program import (
    NO_COUNTS,
    STEP,
    Input,
    Kind,
    Line,
    Program,
    Size,
    Tally,
    number,
)
from obhut.programs.requests import request_of
from obhut.protocol.messages import AnyRequest, Ref

from .store import Store
from .tensors import DTYPES

Step: TypeAlias = Callable[
    [int, Sequence[torch.Tensor], Sequence[torch.Tensor | None]], None
]
"""Takes an optimizer's step: its number, its parameters and their gradients."""


class Applies(Protocol):
    """An execution, which applies requests to the tensors of a store."""

    store: Store

    def apply(self, request: AnyRequest, index: int, frames: Sequence[Any]) -> object:
        """Apply one request."""


Value: TypeAlias = torch.Tensor | int | float

Number: TypeAlias = Ref | Size | Tally | int | float
"""What a body returns: the id of a tensor, or a number."""


class Body:
    """Lines of a program, for batches of one size.

    Args:
        program: the program, checked.
        lines: of the program.
        returned: what they return.
        rows: the rows of a batch.
        counts: the rows and batches that the program's loops go through.
        carried: ids of what it is given that the batch before has made.
        hands_on: what becomes of what it returns: the ids under which later lines take
            it, if they do.
        detached: of these, whose graph nobody needs.

    Attributes:
        rows: as given.
        takes: the ids of what it is given: all inputs, what it reads of other lines,
            and what is carried.
        kinds: of each, whether it is rows, as what is carried is too: another tensor
            for each batch.
        inputs_only: whether it takes inputs and what is carried, and nothing that other
            lines made.
        counts: as given.
        hands_on: as given.
        detached: as given.

    Raises:
        ProgramError: if a line has arguments that its request has not.
    """

    def __init__(
        self,
        program: Program,
        lines: Sequence[Line],
        returned: Sequence[Number],
        rows: int,
        counts: Mapping[str, int] = NO_COUNTS,
        carried: Sequence[int] = (),
        hands_on: Sequence[int] = (),
        detached: Collection[int] = (),
    ) -> None:
        self.rows = rows
        self.counts = counts
        self.hands_on = tuple(hands_on)
        self.detached = detached
        self._program = program
        self._lines = Lines(program, [line.at(rows, counts) for line in lines])
        self._returned = [_number(one, rows, counts) for one in returned]
        inputs = range(1, len(program.inputs) + 1)
        made = {id for line in lines for id in line.makes}
        read = {id for line in lines for id in line.reads}
        read |= {one.id for one in returned if isinstance(one, Ref)}
        other = sorted(read - made - set(inputs) - set(carried))
        self.takes = (*inputs, *other, *carried)
        self.inputs_only = not other
        self.kinds = (
            *(one.kind for one in program.inputs),
            *(Kind.CONSTANT for _ in other),
            *(Kind.ROWS for _ in carried),
        )

    @property
    def inputs(self) -> int:
        """How many of what it takes are the program's inputs."""
        return len(self._program.inputs)

    def own(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return inputs of the same memory that have no gradient and no history."""
        return [
            one.detach().requires_grad_(kind is Kind.PARAMETER)
            for kind, one in zip(self.kinds, tensors, strict=True)
        ]

    def run(
        self, execution: Applies, tensors: Sequence[torch.Tensor], step: Step
    ) -> list[Value]:
        """Run the lines; return what they return.

        Args:
            execution: of a store that is empty.
            tensors: what it takes, in order. What gradients they have stays on them.
            step: takes the steps of optimizers.

        Raises:
            Exception: whatever a line raises.
        """
        store = execution.store
        for id, tensor in zip(self.takes, tensors, strict=True):
            store[id] = tensor
        self._lines.run(execution, step)
        return [
            store[one.id] if isinstance(one, Ref) else one for one in self._returned
        ]


class Lines:
    """Lines as requests.

    Args:
        program: the program that they are of, checked.
        lines: without ``$``.

    Raises:
        ProgramError: if a line has arguments that its request has not.
    """

    def __init__(self, program: Program, lines: Iterable[Line]) -> None:
        self._optimizers = program.optimizers
        self._steps: list[tuple[AnyRequest | None, int]] = []
        for line in lines:
            if line.name == STEP:
                self._steps.append((None, int(line.args[0])))  # type: ignore[arg-type] # checked
            else:
                self._steps.append((request_of(line), 0))

    def run(self, execution: Applies, step: Step) -> None:
        """Run them on what a store has.

        Raises:
            Exception: whatever a line raises.
        """
        store = execution.store
        for index, (request, stepped) in enumerate(self._steps):
            if request is not None:
                execution.apply(request, index, ())
                continue
            groups = self._optimizers[stepped].groups
            parameters = [store[id] for group in groups for id in group]
            step(stepped, parameters, [one.grad for one in parameters])


def check_input(one: Input, tensor: torch.Tensor, rows: int) -> None:
    """Check that a tensor is what a program was recorded with.

    Raises:
        ProgramError: if it is not.
    """
    shape = tuple(number(size, rows) for size in one.shape)
    if tensor.dtype is not DTYPES[one.dtype] or tensor.shape != shape:
        raise ProgramError(
            f"expected {one.name} to be {one.dtype}{list(shape)}, got "
            f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
        )


def check_scalar(name: str, value: Value) -> None:
    """Check that what is below a program's result is a scalar.

    Raises:
        ProgramError: if it is not.
    """
    if isinstance(value, torch.Tensor) and value.dim():
        raise ProgramError(
            f"expected a scalar below {name or 'a result'}, got shape "
            f"{list(value.shape)}"
        )


def _number(one: Number, rows: int, counts: Mapping[str, int]) -> Ref | int | float:
    if isinstance(one, Tally):
        return one.at(counts)
    return one.at(rows) if isinstance(one, Size) else one
