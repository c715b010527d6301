"""What a recorded program is.

::

    program = Program(inputs, optimizers, lines, results)
    write(program)                               # its text, canonical; what travels
    program.at(32)                               # the same, for batches of 32 rows
    program.loops                                # none: it is a step

A program is what is done to one batch of rows: forward operators, backward passes and
steps of optimizers, on inputs that have names. Or it is a whole training: such lines,
and loops over the rows of such lines.

Rules:

- Plain data: no tensor, no torch type, no function.
- Ids are the program's own, from 1: first the inputs, then results in order.
- What gradients a batch leaves the next one finds, as in a loop of PyTorch's.
- What an optimizer keeps, and its learning rate, are no part of the text.
- ``$B`` is the number of rows of a batch; whole numbers are affine in it, or that
  divided by a constant, and a float is a constant, or one divided by it.
- ``$N0`` and ``$K0`` are the rows and the batches that loop 0 goes through in an epoch.
- What a loop makes is its batch's alone, but for what it carries to the next batch, and
  what its first batch makes where that is written by itself.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from obhut.ops.table import Flag, row
from obhut.protocol.messages import Complex, Here, Inline, Ref, Symbol

VERSION = 1
"""The text's; whoever reads one knows one version."""


NO_COUNTS: Mapping[str, int] = {}
"""Of a program that has no loops."""


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


@dataclass(frozen=True, slots=True)
class Tally:
    """A whole number that follows from the rows and batches that loops go through.

    Attributes:
        terms: of each term its factor, and what it multiplies: ``N0``, ``K1``.
        fixed: what is added.
    """

    terms: tuple[tuple[int, str], ...]
    fixed: int = 0

    def at(self, counts: Mapping[str, int]) -> int:
        """Return it where loops go through so many rows and batches."""
        return self.fixed + sum(factor * counts[name] for factor, name in self.terms)


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
    | Tally
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
    def atoms(self) -> Iterator[Atom]:
        """All that its arguments are made of, in order."""
        for value in self.values:
            if isinstance(value, list):
                yield from value
            else:
                yield value

    @property
    def reads(self) -> Iterator[int]:
        """The ids among its arguments."""
        return (atom.id for atom in self.atoms if isinstance(atom, Ref))

    @property
    def makes(self) -> range:
        """The ids of its results."""
        return range(self.out, self.out + self.count)

    def mapped(self, change: Callable[[Atom], Atom]) -> Line:
        """Return it with other atoms."""

        def argument(value: Argument) -> Argument:
            if isinstance(value, list):
                return [change(one) for one in value]
            return change(value)

        return replace(
            self,
            args=tuple(map(argument, self.args)),
            kwargs=tuple((name, argument(one)) for name, one in self.kwargs),
        )

    def at(self, rows: int, counts: Mapping[str, int] = NO_COUNTS) -> Line:
        """Return it for batches of so many rows, without ``$``."""

        def number(value: Atom) -> Atom:
            if isinstance(value, Tally):
                return value.at(counts)
            return value.at(rows) if isinstance(value, Size | Share) else value

        return self.mapped(number)


@dataclass(frozen=True, slots=True)
class Part:
    """What a loop does to a batch.

    Attributes:
        lines: what is done.
        carried: what is carried on, and the id of what it becomes; the rest stays.
    """

    lines: tuple[Line, ...]
    carried: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop over the rows in batches.

    Attributes:
        size: rows of a batch; 0 for all.
        shuffle: whether in another order each time.
        drop_last: whether rows that fill no batch are left out.
        epochs: how often it goes through the rows.
        first: what is done to the first batch of all, if that is something else.
            Whatever comes later may read what it makes.
        carried: ids of what is carried from batch to batch, and of what each is at
            first; None for what no batch reads before another made it.
        parts: what is done to the batches of an epoch, in turn.
    """

    size: int
    shuffle: bool
    drop_last: bool
    epochs: int
    first: tuple[Line, ...]
    carried: tuple[tuple[int, int | None], ...]
    parts: tuple[Part, ...]

    @property
    def lines(self) -> Iterator[Line]:
        """All its lines."""
        yield from self.first
        for part in self.parts:
            yield from part.lines

    @property
    def count(self) -> int:
        """How many lines it has."""
        return len(self.first) + sum(len(part.lines) for part in self.parts)

    @property
    def made(self) -> set[int]:
        """The ids that only its own lines read."""
        return {id for part in self.parts for line in part.lines for id in line.makes}


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
    denominator: Ref | Size | Tally | int | float


@dataclass(frozen=True, slots=True)
class Program:
    """What is done to one batch, or a whole training.

    Attributes:
        inputs: they have the ids from 1 on.
        optimizers: by number, from 0.
        blocks: what is done, in order: lines, and loops in a whole training.
        results: what the batch adds to, or what the training returns.
        least: of how many rows a batch is at least: some layers take no single one, or
            do something else with few.
    """

    inputs: tuple[Input, ...]
    optimizers: tuple[Optimizer, ...]
    blocks: tuple[Line | Loop, ...]
    results: tuple[Result, ...]
    least: int = 1

    @property
    def rows(self) -> tuple[int, ...]:
        """The ids of the inputs that are rows."""
        return tuple(
            id for id, one in enumerate(self.inputs, 1) if one.kind is Kind.ROWS
        )

    @property
    def loops(self) -> tuple[Loop, ...]:
        """Its loops; none if it is a step."""
        return tuple(one for one in self.blocks if isinstance(one, Loop))

    @property
    def lines(self) -> tuple[Line, ...]:
        """All its lines, those of loops too."""
        return tuple(
            line
            for one in self.blocks
            for line in (one.lines if isinstance(one, Loop) else (one,))
        )

    def at(self, rows: int) -> Program:
        """Return a step for batches of so many rows, without ``$B``."""
        return Program(
            tuple(
                replace(one, shape=tuple(number(size, rows) for size in one.shape))
                for one in self.inputs
            ),
            self.optimizers,
            tuple(line.at(rows) for line in self.lines),
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


def number(size: int | Size, rows: int) -> int:
    """Return a size for a batch of so many rows."""
    return size.at(rows) if isinstance(size, Size) else size
