"""One program of several recordings that differ in the rows of a batch alone.

::

    program = fit({29: one, 31: two, 37: three})  # with $B where the numbers differ
    program.at(29) == one

Rule: a number that is not affine in the rows, or a float that is not a constant divided
by them, is a branch on the batch size, and refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from obhut.errors import ProgramError

from .program import Argument, Atom, Input, Line, Program, Result, Share, Size


class BranchError(ProgramError):
    """What is done depends on the batch size.

    Attributes:
        line: the place of the first line that does, from 0; None if the recordings
            have not the same lines.
    """

    def __init__(self, line: int | None, text: str) -> None:
        self.line = line
        super().__init__(text)


def fit(recorded: Mapping[int, Program]) -> Program:
    """Return the program that all recordings are of.

    Args:
        recorded: three recordings or more, by the rows of their batch.

    Raises:
        BranchError: if there is no such program.
    """
    rows, programs = tuple(recorded), tuple(recorded.values())
    first = programs[0]
    forms = [[(line.name, line.out, line.count) for line in p.lines] for p in programs]
    for place, form in enumerate(zip(*forms, strict=False)):
        if len({*form}) > 1:
            raise BranchError(place, "another operator runs in a batch of another size")
    if len({*map(len, forms)}) > 1:
        raise BranchError(None, "more is done in a batch of another size")
    lines: list[Line] = []
    for place, same in enumerate(zip(*(p.lines for p in programs), strict=True)):
        try:
            lines.append(_line(rows, same))
        except ProgramError as error:
            raise BranchError(place, str(error)) from None
    inputs = [
        _input(rows, same) for same in zip(*(p.inputs for p in programs), strict=True)
    ]
    results = [
        _result(rows, same) for same in zip(*(p.results for p in programs), strict=True)
    ]
    made = Program(tuple(inputs), first.optimizers, tuple(lines), tuple(results))
    for size, program in recorded.items():
        if made.at(size) != program:
            raise BranchError(None, "what is done depends on the size of a batch")
    return made


def _line(rows: Sequence[int], lines: Sequence[Line]) -> Line:
    first = lines[0]
    if any(len(one.args) != len(first.args) for one in lines):
        raise ProgramError("it has other arguments in a batch of another size")
    args = [
        _argument(rows, same) for same in zip(*(one.args for one in lines), strict=True)
    ]
    names = [name for name, _ in first.kwargs]
    if any([name for name, _ in one.kwargs] != names for one in lines):
        raise ProgramError("it has other arguments in a batch of another size")
    values = zip(*([value for _, value in one.kwargs] for one in lines), strict=True)
    kwargs = [
        (name, _argument(rows, same)) for name, same in zip(names, values, strict=True)
    ]
    return replace(first, args=tuple(args), kwargs=tuple(kwargs))


def _argument(rows: Sequence[int], values: Sequence[Argument]) -> Argument:
    lists = [one for one in values if isinstance(one, list)]
    if not lists:
        return fit_atom(rows, values)
    if len(lists) < len(values) or len({*map(len, lists)}) > 1:
        raise ProgramError("a list is longer in a batch of another size")
    return [fit_atom(rows, same) for same in zip(*lists, strict=True)]


def divisor_of(program: Program) -> int:
    """Return into how many parts a program divides a batch at most; 1 for none.

    So many sizes that follow one another tell how each part is rounded.
    """
    atoms = [atom for line in program.lines for atom in line.atoms]
    atoms += [one.denominator for one in program.results]
    return max((one.divisor for one in atoms if isinstance(one, Size)), default=1)


# Any: values that are compared, whatever they are.
def fit_atom(rows: Sequence[int], values: Sequence[Any]) -> Atom:
    """Return what an argument is in batches of all sizes.

    Args:
        rows: of the batches.
        values: what it was in each.

    Raises:
        ProgramError: if it follows from the rows in no known way.
    """
    first: Atom = values[0]
    kind = type(first)
    if any(type(one) is not kind for one in values):
        raise ProgramError("an argument is of another kind in a batch of another size")
    if all(one == first or (one != one and first != first) for one in values):  # noqa: PLR0124 # NaN
        return first
    if kind is int:
        return _size(rows, values)
    if kind is float:
        above = values[0] * rows[0]
        near = zip(rows, values, strict=True)
        if all(
            math.isclose(value * size, above, rel_tol=1e-12) for size, value in near
        ):
            for share in (Share(above), Share(float(round(above)))):
                if all(share.at(s) == v for s, v in zip(rows, values, strict=True)):
                    return share
    raise ProgramError(
        "a number depends on the batch size in another way than n or 1/n"
    )


def _size(rows: Sequence[int], values: Sequence[int]) -> Size:
    slope, rest = divmod(values[1] - values[0], rows[1] - rows[0])
    forms = [] if rest else [Size(slope, values[0] - slope * rows[0])]
    for parts in range(2, _PARTS + 1):
        # rounded up, or down, or in turn
        forms += [Size(1, more, parts) for more in (parts - 1, *range(parts - 1))]
    for fitted in forms:
        if all(fitted.at(s) == v for s, v in zip(rows, values, strict=True)):
            return fitted
    raise ProgramError(
        "a number depends on the batch size in another way than n, or a part of it"
    )


_PARTS = 64
"""Into so many equal parts a batch may be divided."""


def _input(rows: Sequence[int], inputs: Sequence[Input]) -> Input:
    shape = [
        same[0] if len({*same}) == 1 else _size(rows, same)
        for same in zip(*(one.shape for one in inputs), strict=True)
    ]
    return replace(inputs[0], shape=tuple(shape))


def _result(rows: Sequence[int], results: Sequence[Result]) -> Result:
    below = fit_atom(rows, [one.denominator for one in results])
    return replace(results[0], denominator=below)  # type: ignore[arg-type] # as it was
