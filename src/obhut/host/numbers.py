"""Numbers packed as the elements of a tensor, with nothing lost unnoticed.

Rules:

- An integer that its type can not hold is refused, and so is a fraction where an
  integer is due.
- A number that a float type can not reach is refused; one that it can only come
  near to is rounded to the nearest, as everywhere.
- NaN is refused unless missing values are NaN by declaration; infinity always.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence

from .wording import quote

CODES: Mapping[str, str] = {
    "bool": "B",
    "uint8": "B",
    "int8": "b",
    "uint16": "H",
    "int16": "h",
    "uint32": "I",
    "int32": "i",
    "uint64": "Q",
    "int64": "q",
    "float16": "e",
    "float32": "f",
    "float64": "d",
}
"""Codes of the module ``struct``, by the name of the type."""

NAN = 'correct it, or write missing = "nan" to have NaN in its place'


class MisfitError(Exception):
    """An element is not what it must be.

    Leak: ``problem`` quotes it.

    Attributes:
        index: its place among the elements that were given.
        problem: what was expected, and what came.
        advice: what to do.
    """

    def __init__(self, index: int, problem: str, advice: str) -> None:
        super().__init__(index, problem, advice)
        self.index = index
        self.problem = problem
        self.advice = advice


def pack(values: Sequence[float], dtype: str, nan: bool) -> bytes:
    """Return the elements' bytes.

    Args:
        values: the elements.
        dtype: their type, one of ``CODES``.
        nan: whether NaN is allowed.

    Raises:
        MisfitError: at the first element that the type can not hold.
    """
    try:
        return _pack(values, dtype, nan)
    except (struct.error, OverflowError, ValueError):
        pass
    # Slower, element by element: integers written as 3.0 pass, and what does not
    # is found.
    return b"".join(
        _pack_one(index, one, dtype, nan) for index, one in enumerate(values)
    )


def _pack(values: Sequence[float], dtype: str, nan: bool) -> bytes:
    if dtype == "bool":
        if not {*values} <= {0, 1}:
            raise ValueError
        return bytes(map(int, values))
    if dtype.startswith("float"):
        check_finite(values, nan)
    return struct.pack(f"={len(values)}{CODES[dtype]}", *values)


def _pack_one(index: int, value: float, dtype: str, nan: bool) -> bytes:
    if dtype.startswith("float"):
        try:
            return _pack((value,), dtype, nan)
        except OverflowError:
            expected = f"a number that {dtype} can hold"
        except ValueError:
            if math.isnan(value):
                raise MisfitError(index, "expected a number, got NaN", NAN) from None
            expected = "a finite number"
    elif dtype == "bool":
        if value in (0, 1):
            return bytes((int(value),))
        expected = "0 or 1"
    elif isinstance(value, float) and not value.is_integer():
        raise MisfitError(
            index,
            f"expected a whole number, got {quote(value)}",
            "correct it, or choose a dtype with fractions, such as float32",
        )
    else:
        try:
            return struct.pack(f"={CODES[dtype]}", int(value))
        except struct.error:
            expected = f"a number that {dtype} can hold"
    raise misfit(index, expected, quote(value))


def misfit(index: int, expected: str, shown: str) -> MisfitError:
    """Return the error for an element that another dtype might hold."""
    return MisfitError(
        index,
        f"expected {expected}, got {shown}",
        "correct it, or choose another dtype",
    )


def check_finite(values: Sequence[float], nan: bool) -> None:
    """Refuse infinity, and NaN unless it is allowed.

    Raises:
        ValueError: if there is one.
    """
    # A sum is not finite if one of its terms is not: one pass at C speed.
    if math.isfinite(sum(values)):
        return
    infinite = math.inf in values or -math.inf in values
    if infinite or (not nan and any(map(math.isnan, values))):
        raise ValueError
