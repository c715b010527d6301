"""A program's lines as the requests that a worker's execution applies, and back.

::

    request_of(line)                             # Run, Backward, ...
    line_of(request, ids)                        # of what a client asked for

Rule: a program has no request of its own but for the steps of optimizers: what a line
does is what the same request does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from obhut.errors import ProgramError
from obhut.protocol.messages import (
    NOWHERE,
    Alias,
    AnyRequest,
    Backward,
    Differentiate,
    Leaf,
    ReadData,
    ReadGrad,
    Ref,
    RetainGrad,
    Run,
    SetRequiresGrad,
    Value,
    WriteData,
    WriteGrad,
)

from .program import (
    ALIAS,
    BACKWARD,
    DIFFERENTIATE,
    READ_DATA,
    READ_GRAD,
    REQUIRES_GRAD,
    RETAIN_GRAD,
    WRITE_DATA,
    WRITE_GRAD,
    Argument,
    Atom,
    Line,
)


def request_of(line: Line) -> AnyRequest:
    """Return the request of a line, which has no ``$B`` and is no step.

    Raises:
        ProgramError: if its arguments are not of the kinds that it takes.
    """
    try:
        request = _request(line)
        # Types and bounds are held to where a message is decoded: as here.
        return msgspec.convert(msgspec.to_builtins(request), type(request), strict=True)
    except (msgspec.ValidationError, TypeError, ValueError) as error:
        raise ProgramError(f"{line.name} takes other arguments: {error}") from None


def _request(line: Line) -> AnyRequest:
    if "." in line.name:
        return Run(
            line.name,
            list(line.args),  # type: ignore[arg-type] # checked when it is converted
            dict(line.kwargs),  # type: ignore[arg-type] # likewise
            line.out or NOWHERE,
            line.count,
            line.grad,
        )
    return _REQUESTS[line.name](line, line.args)


def _id(value: Argument) -> int:
    if not isinstance(value, Ref):
        raise ProgramError("expected a tensor")
    return value.id


def _ids(value: Argument) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise ProgramError("expected tensors")
    return tuple(map(_id, value))


def _perhaps(value: Argument) -> int | None:
    return None if value is None else _id(value)


def _all_perhaps(value: Argument) -> tuple[int | None, ...]:
    if not isinstance(value, list):
        raise ProgramError("expected tensors, or None for some")
    return tuple(map(_perhaps, value))


# Any: arguments of all kinds, which the requests' own types are held to.
_REQUESTS: Mapping[str, Callable[[Line, Sequence[Any]], AnyRequest]] = {
    BACKWARD: lambda line, a: Backward(
        _ids(a[0]), _all_perhaps(a[1]), None if a[2] is None else _ids(a[2]), a[3], a[4]
    ),
    DIFFERENTIATE: lambda line, a: Differentiate(
        _ids(a[0]), _all_perhaps(a[1]), _ids(a[2]), line.out, a[3], a[4]
    ),
    READ_GRAD: lambda line, a: ReadGrad(_id(a[0]), line.out),
    WRITE_GRAD: lambda line, a: WriteGrad(_id(a[0]), _perhaps(a[1])),
    READ_DATA: lambda line, a: ReadData(_id(a[0]), line.out),
    WRITE_DATA: lambda line, a: WriteData(_id(a[0]), _id(a[1])),
    REQUIRES_GRAD: lambda line, a: SetRequiresGrad(_id(a[0]), a[1]),
    RETAIN_GRAD: lambda line, a: RetainGrad(_id(a[0])),
    ALIAS: lambda line, a: Alias(_id(a[0]), line.out),
}


def line_of(request: AnyRequest, name: Callable[[int], Ref]) -> Line:
    """Return the line of a request.

    Args:
        request: what a client asked for.
        name: returns what an id is called in the program. Results have none yet: the
            line's ``out`` is the request's.

    Raises:
        ProgramError: if programs have nothing like it.
    """

    def value(one: Value) -> Argument:
        return [leaf(each) for each in one] if isinstance(one, list) else leaf(one)

    def leaf(one: Leaf) -> Atom:
        if isinstance(one, float) and math.isnan(one):
            return math.nan  # always the same, so that programs can be compared
        return name(one.id) if isinstance(one, Ref) else one

    def optional(ids: Sequence[int | None]) -> list[Any]:
        return [None if id is None else name(id) for id in ids]

    match request:
        case Run(op, args, kwargs, out, count, grad):
            if request.seed is not None or request.describe:
                raise ProgramError(f"{op} can not be recorded: its shape is not known")
            named = tuple((key, value(one)) for key, one in kwargs.items())
            given = tuple(map(value, args))
            return Line(op, given, named, out, count if out else 0, grad)
        case Backward(roots, grads, inputs, retain, create):
            within = None if inputs is None else optional(inputs)
            return Line(
                BACKWARD, (optional(roots), optional(grads), within, retain, create)
            )
        case Differentiate(roots, grads, inputs, out, retain, create):
            given = (optional(roots), optional(grads), optional(inputs), retain, create)
            return Line(DIFFERENTIATE, given, (), out, len(inputs))
        case ReadGrad(id, out):
            return Line(READ_GRAD, (name(id),), (), out, 1)
        case WriteGrad(id, grad):
            return Line(WRITE_GRAD, (name(id), None if grad is None else name(grad)))
        case ReadData(id, out):
            return Line(READ_DATA, (name(id),), (), out, 1)
        case WriteData(id, data):
            return Line(WRITE_DATA, (name(id), name(data)))
        case SetRequiresGrad(id, on):
            return Line(REQUIRES_GRAD, (name(id), on))
        case RetainGrad(id):
            return Line(RETAIN_GRAD, (name(id),))
        case Alias(id, out):
            return Line(ALIAS, (name(id),), (), out, 1)
        case _:
            what = type(request).__name__
            raise ProgramError(f"a program has no {what}: it works on what is there")
