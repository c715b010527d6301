"""What a program does to one batch, request by request, on tensors that are given.

::

    body = Body(program, 32)                     # checked, for batches of 32 rows
    values = body.run(execution, inputs, step)   # of each result its two numbers

It is how a program runs without values, how it is lowered, and how a batch runs that is
not worth lowering.

Rule: what a line does is what the same request does; only a step of an optimizer is
whoever calls's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import torch

from obhut.errors import ProgramError
from obhut.programs.program import STEP, Kind, Program
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


class Body:
    """A program for batches of one size.

    Args:
        program: the program, checked.
        rows: the rows of a batch.

    Attributes:
        program: the program without ``$B``.
        rows: as given.

    Raises:
        ProgramError: if a line has arguments that its request has not.
    """

    def __init__(self, program: Program, rows: int) -> None:
        self.program = program.at(rows)
        self.rows = rows
        self._steps: list[tuple[AnyRequest | None, int]] = []
        for line in self.program.lines:
            if line.name == STEP:
                self._steps.append((None, int(line.args[0])))  # type: ignore[arg-type] # checked
            else:
                self._steps.append((request_of(line), 0))

    def check_inputs(self, tensors: Sequence[torch.Tensor]) -> None:
        """Check that tensors are what the program was recorded with.

        Raises:
            ProgramError: if they are not; it names the first that is another.
        """
        inputs = self.program.inputs
        if len(tensors) != len(inputs):
            raise ProgramError(
                f"expected {len(inputs)} inputs of a program, got {len(tensors)}"
            )
        for one, tensor in zip(inputs, tensors, strict=True):
            if tensor.dtype is not DTYPES[one.dtype] or tensor.shape != one.shape:
                raise ProgramError(
                    f"expected {one.name} to be {one.dtype}{list(one.shape)}, got "
                    f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
                )

    def own(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return inputs of the same memory that have no gradient and no history."""
        inputs = zip(self.program.inputs, tensors, strict=True)
        return [
            one.detach().requires_grad_(given.kind is Kind.PARAMETER)
            for given, one in inputs
        ]

    def run(
        self, execution: Applies, inputs: Sequence[torch.Tensor], step: Step
    ) -> list[tuple[torch.Tensor, Value]]:
        """Run the lines; return of each result its numerator and denominator.

        Args:
            execution: of a store that is empty.
            inputs: as ``own`` returned them. What gradients they have stays on them.
            step: takes the steps of optimizers.

        Raises:
            Exception: whatever a line raises.
        """
        store = execution.store
        for id, tensor in enumerate(inputs, 1):
            store[id] = tensor
        for index, (request, number) in enumerate(self._steps):
            if request is not None:
                execution.apply(request, index, ())
                continue
            groups = self.program.optimizers[number].groups
            parameters = [store[id] for group in groups for id in group]
            step(number, parameters, [one.grad for one in parameters])
        values: list[tuple[torch.Tensor, Value]] = []
        for result in self.program.results:
            above, below = store[result.numerator.id], result.denominator
            divisor = store[below.id] if isinstance(below, Ref) else below
            if isinstance(divisor, torch.Tensor) and divisor.dim():
                raise ProgramError(
                    "expected a scalar below "
                    f"{result.name or 'a result'}, got shape {list(divisor.shape)}"
                )
            values.append((above, divisor))  # type: ignore[arg-type] # without $B
        return values
