"""What a recorded program is.

::

    program = Program(inputs, optimizers, lines, results)
    write(program)                               # its text, canonical; what travels
    program.at(32)                               # the same, for batches of 32 rows

A program is what is done to one batch of rows: forward operators, backward passes and
steps of optimizers, on inputs that have names.

Rules:

- Plain data: no tensor, no torch type, no function.
- Ids are the program's own, from 1: first the inputs, then results in order.
- What gradients a batch leaves the next one finds, as in a loop of PyTorch's.
- What an optimizer keeps, and its learning rate, are no part of the text.
- ``$B`` is the number of rows of a batch; whole numbers are affine in it, or that
  divided by a constant, and a float is a constant, or one divided by it.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

from obhut.ops.table import Flag, row
from obhut.protocol.messages import Complex, Here, Inline, Ref, Symbol

VERSION = 1
"""The text's; whoever reads one knows one version."""


@dataclass(frozen=True, slots=True)
class Size:
    """A whole number that follows from the rows of a batch.

    It is ``(per_row * $B + fixed) // divisor``, as half of a batch is.
    """

    per_row: int
    fixed: int = 0
    divisor: int = 1

    def at(self, rows: int) -> int:
        """Return it for a batch of so many rows."""
        return (self.per_row * rows + self.fixed) // self.divisor


@dataclass(frozen=True, slots=True)
class Share:
    """A number divided by the rows of a batch: ``numerator / $B``."""

    numerator: float

    def at(self, rows: int) -> float:
        """Return it for a batch of so many rows."""
        return self.numerator / rows


Atom: TypeAlias = (
    bool
    | int
    | float
    | str
    | Ref
    | Symbol
    | Complex
    | Inline
    | Here
    | Size
    | Share
    | None
)
"""An argument that holds no others."""

Argument: TypeAlias = Atom | list[Atom]
"""An argument of a line."""


class Kind(enum.StrEnum):
    """What an input is.

    Attributes:
        PARAMETER: requires gradients.
        CONSTANT: a parameter or a buffer that requires none.
        ROWS: a batch of an owner's rows.
    """

    PARAMETER = "parameter"
    CONSTANT = "constant"
    ROWS = "rows"


@dataclass(frozen=True, slots=True)
class Input:
    """One input.

    Attributes:
        name: as in the user's code, such as ``layers.0.weight``.
        kind: what it is.
        dtype: its dtype's name.
        shape: its sizes; of rows the first is ``$B``.
    """

    name: str
    kind: Kind
    dtype: str
    shape: tuple[int | Size, ...]


@dataclass(frozen=True, slots=True)
class Optimizer:
    """One optimizer.

    Attributes:
        kind: its class in ``torch.optim``.
        groups: of each parameter group, the ids of its parameters.
    """

    kind: str
    groups: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that is done.

    Attributes:
        name: an operator's, such as ``aten.add.Tensor``, or a word of ``WORDS``.
        args: its arguments.
        kwargs: its arguments by name.
        out: the first result's id; 0 for none.
        count: how many results there are.
        grad: whether autograd records it.
    """

    name: str
    args: tuple[Argument, ...]
    kwargs: tuple[tuple[str, Argument], ...] = ()
    out: int = 0
    count: int = 0
    grad: bool = True

    @property
    def values(self) -> Iterator[Argument]:
        """All arguments."""
        yield from self.args
        for _, value in self.kwargs:
            yield value

    @property
    def reads(self) -> Iterator[int]:
        """The ids among its arguments."""
        for value in self.values:
            for atom in value if isinstance(value, list) else (value,):
                if isinstance(atom, Ref):
                    yield atom.id


BACKWARD, DIFFERENTIATE, STEP = "backward", "differentiate", "step"
READ_GRAD, WRITE_GRAD = "grad", "set_grad"
READ_DATA, WRITE_DATA = "data", "set_data"
REQUIRES_GRAD, RETAIN_GRAD, ALIAS = "requires_grad", "retain_grad", "alias"

WORDS = {
    # (results, arguments): None for any number of results
    BACKWARD: (0, 5),
    DIFFERENTIATE: (None, 5),
    STEP: (0, 1),
    READ_GRAD: (1, 1),
    WRITE_GRAD: (0, 2),
    READ_DATA: (1, 1),
    WRITE_DATA: (0, 2),
    REQUIRES_GRAD: (0, 2),
    RETAIN_GRAD: (0, 1),
    ALIAS: (1, 1),
}
"""How many results and arguments a line has that is no operator's.

``backward(roots, gradients, inputs, retain_graph, create_graph)``, the same for
``differentiate``; ``step(number of the optimizer)``; the rest take a tensor first.
"""


@dataclass(frozen=True, slots=True)
class Result:
    """One of the ratios that a batch adds to.

    Attributes:
        name: its name; empty if the program returns one alone.
        numerator: the id of a tensor.
        denominator: the id of a scalar, or a number.
    """

    name: str
    numerator: Ref
    denominator: Ref | Size | int | float


@dataclass(frozen=True, slots=True)
class Program:
    """What is done to one batch.

    Attributes:
        inputs: they have the ids from 1 on.
        optimizers: by number, from 0.
        lines: what is done, in order.
        results: what the batch adds to.
        least: of how many rows a batch is at least: some layers take no single one, or
            do something else with few.
    """

    inputs: tuple[Input, ...]
    optimizers: tuple[Optimizer, ...]
    lines: tuple[Line, ...]
    results: tuple[Result, ...]
    least: int = 1

    @property
    def rows(self) -> tuple[int, ...]:
        """The ids of the inputs that are rows."""
        return tuple(
            id for id, one in enumerate(self.inputs, 1) if one.kind is Kind.ROWS
        )

    def at(self, rows: int) -> Program:
        """Return the program for batches of so many rows, without ``$B``."""

        def atom(value: Atom) -> Atom:
            return value.at(rows) if isinstance(value, Size | Share) else value

        def argument(value: Argument) -> Argument:
            if isinstance(value, list):
                return [atom(one) for one in value]
            return atom(value)

        return Program(
            tuple(
                replace(one, shape=tuple(number(size, rows) for size in one.shape))
                for one in self.inputs
            ),
            self.optimizers,
            tuple(
                replace(
                    line,
                    args=tuple(map(argument, line.args)),
                    kwargs=tuple((name, argument(one)) for name, one in line.kwargs),
                )
                for line in self.lines
            ),
            tuple(
                replace(one, denominator=one.denominator.at(rows))
                if isinstance(one.denominator, Size)
                else one
                for one in self.results
            ),
            self.least,
        )

    @property
    def draws(self) -> bool:
        """Whether an operator draws random numbers."""
        found = (row(line.name) for line in self.lines if "." in line.name)
        return any(one is not None and Flag.RANDOM in one.flags for one in found)

    @property
    def carries_gradients(self) -> bool:
        """Whether a batch needs the gradients that the one before it has left."""
        needed: set[int] = set()
        cleared: dict[int, bool] = {}  # whether nothing came since
        for line in self.lines:
            if line.name == WRITE_GRAD:
                (id,) = [one.id for one in line.args[:1] if isinstance(one, Ref)]
                cleared[id] = line.args[1] is None
            elif line.name == BACKWARD:
                cleared = dict.fromkeys(cleared, False)
            elif line.name == READ_GRAD:
                needed.update(id for id in line.reads if id not in cleared)
            elif line.name == STEP:
                groups = self.optimizers[line.args[0]].groups  # type: ignore[index] # checked
                needed.update(
                    id for group in groups for id in group if id not in cleared
                )
        return not all(cleared.get(id, False) for id in needed)


def number(size: int | Size, rows: int) -> int:
    """Return a size for a batch of so many rows."""
    return size.at(rows) if isinstance(size, Size) else size
