"""The table of operators a worker may run, read from `obhut.ops.aten`.

Rules this module keeps:

- an operator without a row, or with a row of kind `REFUSED`, is not run;
- rows are data: no operator has code of its own here;
- no torch: a name is a string, so a parent process can read the table too.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from obhut.errors import OpNotAdmittedError

from .aten import OVERLOADS


class Kind(enum.StrEnum):
    """What an overload does with its arguments, as its schema says.

    Attributes:
        FUNCTION: Results are new tensors. A few update an argument beside that
            (running statistics); their note names it.
        VIEW: A result may alias an argument.
        INPLACE: Changes an argument and returns it, or returns nothing (the
            `_foreach_*_` family and fused optimizers).
        OUT: Writes its results into `out` arguments, resizing them if need be.
        FACTORY: Makes tensors and takes none.
        VALUE: Returns no tensor: a number, a truth, or nothing. Asking for it is
            a release.
        REFUSED: Known, and never run for a client; the note says why.
    """

    FUNCTION = "function"
    VIEW = "view"
    INPLACE = "inplace"
    OUT = "out"
    FACTORY = "factory"
    VALUE = "value"
    REFUSED = "refused"


class Flag(enum.StrEnum):
    """What a client or a worker must know before it runs an overload.

    Attributes:
        DYNAMIC: The result's shape depends on values: ask the worker for it.
        NO_META: Running it on meta tensors fails or answers wrongly: ask the
            worker for shapes.
        STRIDES: Meta tensors answer rightly for row-major arguments; where one is
            not, ask the worker for strides.
        RANDOM: Draws from the worker's generator, which the client seeds.
        ZEROED: The result would be uninitialised memory: fill it with zeros.
        FLOAT_SHAPE: Float arguments decide the result's shape, or whether it is an
            argument itself.
        RESHAPES: Changes sizes, strides or storage of its first argument.
        WHOLE: A composite that travels undecomposed.
        GUARD_REFUSED: Runs on an open worker; never admitted behind a guard. The
            note says why, after ``guard:``.
        GUARD_CHECKED: Behind a guard it runs only after its arguments were checked.
    """

    DYNAMIC = "dynamic"
    NO_META = "no_meta"
    STRIDES = "strides"
    RANDOM = "random"
    ZEROED = "zeroed"
    FLOAT_SHAPE = "float_shape"
    RESHAPES = "reshapes"
    WHOLE = "whole"
    GUARD_REFUSED = "guard_refused"
    GUARD_CHECKED = "guard_checked"


@dataclass(frozen=True, slots=True)
class Row:
    """One overload.

    Attributes:
        name: The packet and overload, such as `aten.add.Tensor`.
        kind: What it does with its arguments.
        flags: What must be known before it runs.
        note: For a refused overload the reason, a sentence's tail; else a remark,
            often empty.
    """

    name: str
    kind: Kind
    flags: frozenset[Flag]
    note: str

    @property
    def guard_reason(self) -> str:
        """Why it is not admitted behind a guard, a sentence's tail; else empty."""
        return self.note.partition(_GUARD)[2]


_GUARD = "guard: "
"""What precedes the reason for a guard's refusal, the last part of a note."""


def _read(overloads: tuple[tuple[str, str, str, str], ...]) -> Mapping[str, Row]:
    flags = {text: frozenset(map(Flag, text.split())) for _, _, text, _ in overloads}
    return MappingProxyType(
        {
            name: Row(name, Kind(kind), flags[text], note)
            for name, kind, text, note in overloads
        }
    )


ROWS: Mapping[str, Row] = _read(OVERLOADS)


def row(name: str) -> Row | None:
    """Returns the row of an overload, or None where the table has none.

    Args:
        name: The packet and overload, such as `aten.sum.default`.
    """
    return ROWS.get(name)


def admitted(name: str, *, guarded: bool = False) -> Row:
    """Returns the row of an overload that workers run.

    Args:
        name: The packet and overload, such as `aten.sum.default`.
        guarded: Whether the worker's data is behind a guard.

    Raises:
        OpNotAdmittedError: if the table has no such row, or refuses it.
    """
    found = row(name)
    if found is None:
        raise OpNotAdmittedError(name, "the op table has no such operator")
    if found.kind is Kind.REFUSED:
        raise OpNotAdmittedError(name, found.note)
    if guarded and Flag.GUARD_REFUSED in found.flags:
        raise OpNotAdmittedError(name, f"behind a guard {found.guard_reason}")
    return found
