"""Numbers as the elements of a tensor, with nothing lost unnoticed.

Rules:

- An integer that its type can not hold is refused, and so is a fraction where an
  integer is due.
- A number that a float type can not reach is refused; one that it can only come
  near to is rounded to the nearest, as everywhere.
- NaN is refused unless missing values are NaN by declaration; infinity always.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from obhut.host.wording import quote

Elements: TypeAlias = npt.NDArray[Any]  # of any type of number: its dtype says which
"""Elements along one dimension."""

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


def fit(values: Elements, dtype: str, nan: bool) -> Elements:
    """Return numbers as elements of another type.

    Args:
        values: the numbers: booleans, integers or floats.
        dtype: the type, by NumPy's name.
        nan: whether NaN is allowed.

    Raises:
        MisfitError: at the first number that the type can not hold.
    """
    kind = np.dtype(dtype)
    with np.errstate(all="ignore"):  # what overflows is found
        made = values.astype(kind)
        if kind.kind == "f":
            fits = _is_finite(made, nan)
        elif kind.kind == "b":
            fits = (values == 0) | (values == 1)
        elif values.dtype.kind == "f":
            wide = values.astype(np.float64)  # which has both bounds
            low, high = float(np.iinfo(kind).min), float(np.iinfo(kind).max) + 1
            fits = (wide >= low) & (wide < high) & (wide == np.trunc(wide))
        else:
            fits = made == values
    if not fits.all():
        index = int(fits.argmin())
        raise unfit(index, values[index].item(), dtype)
    return made


def check(values: Elements, nan: bool) -> None:
    """Refuse infinity, and NaN unless it is allowed, among floats or complex numbers.

    Raises:
        MisfitError: at the first one.
    """
    fits = _is_finite(values, nan)
    if not fits.all():
        index = int(fits.argmin())
        what, advice = "infinity", "correct it"
        if np.isnan(values[index]):
            what, advice = "NaN", NAN
        raise MisfitError(index, f"expected a finite number, got {what}", advice)


def _is_finite(values: Elements, nan: bool) -> npt.NDArray[np.bool_]:
    return ~np.isinf(values) if nan else np.isfinite(values)


def unfit(index: int, value: float, dtype: str) -> MisfitError:
    """Return the error for a number that an element of this type can not be."""
    expected = f"a number that {dtype} can hold"
    if dtype.startswith("float"):
        if math.isnan(value):
            return MisfitError(index, "expected a number, got NaN", NAN)
        if math.isinf(value):
            expected = "a finite number"
    elif dtype == "bool":
        expected = "0 or 1"
    elif isinstance(value, float) and not value.is_integer():
        return MisfitError(
            index,
            f"expected a whole number, got {quote(value)}",
            "correct it, or choose a dtype with fractions, such as float32",
        )
    return misfit(index, expected, quote(value))


def misfit(index: int, expected: str, shown: str) -> MisfitError:
    """Return the error for an element that another dtype might hold."""
    return MisfitError(
        index,
        f"expected {expected}, got {shown}",
        "correct it, or choose another dtype",
    )


def narrowed(values: Elements, dtype: str) -> Elements:
    """Return floats as a tensor of floats holds them, rounded to the nearest.

    Args:
        values: floats.
        dtype: a type of floats; ``bfloat16`` becomes its bits, as uint16.
    """
    if dtype != "bfloat16":
        return values.astype(dtype)
    values = values.astype(np.float32)
    bits = values.view(np.uint32)
    nearest = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16  # ties to even
    return np.where(np.isnan(values), 0x7FC0, nearest).astype(np.uint16)


def widened(values: Elements, dtype: str) -> Elements:
    """Return what a tensor holds as numbers of a type that NumPy has."""
    if dtype != "bfloat16":
        return values
    return (values.astype(np.uint32) << 16).view(np.float32)
