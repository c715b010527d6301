"""Numbers as the elements of a tensor, with nothing lost unnoticed.

Rules:

- An integer that its type can not hold is refused, and so is a fraction where an
  integer is due. To a float type an integer goes only if the type holds it exactly.
- A number that a float type can not reach is refused; one that it can only come
  near to is rounded to the nearest, as everywhere. A column of floats that are whole
  numbers throughout holds integers: see ``WholeColumns``.
- NaN is refused unless missing values are NaN by declaration; infinity always.
- NumPy has no bfloat16: its elements are the upper halves of float32, as ``uint16``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from obhut.host.wording import quote

Elements: TypeAlias = npt.NDArray[Any]  # of any type of number: its dtype says which
"""Elements along one dimension."""

NAN = 'correct it, or write missing = "nan" to have NaN in its place'

DIGITS: Mapping[str, int] = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}
"""Binary digits of a float type: whole numbers of that many are exact."""


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
        dtype: the type, by its name in ``declaration``.
        nan: whether NaN is allowed.

    Raises:
        MisfitError: at the first number that the type can not hold.
    """
    with np.errstate(all="ignore"):  # what overflows is found
        if dtype in DIGITS:
            made = narrowed(values, dtype)
            read = widened(made, dtype)
            if values.dtype.kind in "iu":
                _check_exact(values, dtype)
            if _all_finite(read):
                return made
            fits = ~np.isinf(read) if nan else np.isfinite(read)
        else:
            kind = np.dtype(dtype)
            made = values.astype(kind)
            if kind.kind == "b":
                fits = (values == 0) | (values == 1)
            elif values.dtype.kind == "f":
                wide = values.astype(np.float64)  # which has both bounds
                low, high = float(np.iinfo(kind).min), float(np.iinfo(kind).max) + 1
                fits = (wide >= low) & (wide < high) & (wide == np.trunc(wide))
            else:
                fits = (made == values) & ((made < 0) == (values < 0))
    if not fits.all():
        index = int(fits.argmin())
        raise unfit(index, values[index].item(), dtype)
    return made


def narrowed(values: Elements, dtype: str) -> Elements:
    """Return numbers as a tensor of floats holds them, rounded to the nearest.

    Args:
        values: numbers.
        dtype: a type of floats; ``bfloat16`` becomes its bits, as uint16.
    """
    if dtype != "bfloat16":
        return values.astype(dtype)
    # By way of float32, as PyTorch does it.
    values = values.astype(np.float32)
    bits = values.view(np.uint32)
    nearest = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16  # ties to even
    return np.where(np.isnan(values), 0x7FC0, nearest).astype(np.uint16)


def widened(values: Elements, dtype: str) -> Elements:
    """Return what a tensor holds as numbers of a type that NumPy has."""
    if dtype != "bfloat16":
        return values
    return (values.astype(np.uint32) << 16).view(np.float32)


def _check_exact(values: Elements, dtype: str) -> None:
    """Refuse an integer that a float type rounds."""
    digits = DIGITS[dtype]
    if values.size and -(2**digits) <= values.min() <= values.max() <= 2**digits:
        return
    sizes = values.astype(np.uint64)
    if values.dtype.kind == "i":
        sizes = np.where(values < 0, np.uint64(0) - sizes, sizes)
    lowest = sizes & (np.uint64(0) - sizes)
    rounded = sizes >> np.uint64(digits) >= np.maximum(lowest, np.uint64(1))
    if rounded.any():
        index = int(rounded.argmax())
        raise inexact(index, values[index].item(), dtype)


def inexact(index: int, value: float, dtype: str) -> MisfitError:
    """Return the error for a whole number that a float type rounds."""
    whole = int(value)
    wider = ' or "float64"' if int(float(whole)) == whole else ""
    return MisfitError(
        index,
        f"expected a whole number that {dtype} holds exactly, got {quote(whole)}",
        f'choose dtype "int64"{wider}, or leave it out',
    )


def far(shown: str, index: int = 0) -> MisfitError:
    """Return the error for a number so large that float32 takes its fraction away."""
    return MisfitError(
        index,
        f"expected numbers whose fractions float32 can hold, got {shown}",
        'write dtype = "float64", or leave it out',
    )


class Extent:
    """The least and the greatest of numbers, and how many are missing.

    ::

        extent.take(elements, nan=False)             # as often as there are some
        extent.least, extent.greatest, extent.missing

    Attributes:
        least: the smallest number so far; None before the first.
        greatest: the largest one.
        missing: how many were NaN.
    """

    def __init__(self) -> None:
        self.least: float | None = None
        self.greatest: float | None = None
        self.missing = 0

    def take(self, values: Elements, nan: bool) -> None:
        """Take elements in, and refuse infinity, and NaN unless it is allowed.

        Args:
            values: booleans, integers, floats or complex numbers, of which nothing but
                this is looked at.
            nan: whether NaN is allowed.

        Raises:
            MisfitError: at the first one.
        """
        if values.dtype.kind == "c":
            if not _all_finite(values.view(values.real.dtype)):
                self.missing += _check_each(values, nan)
            return
        if values.dtype == np.float16:
            values = values.astype(np.float32)  # whose extremes are found faster
        with np.errstate(invalid="ignore"):
            low, high = values.min(), values.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            missing = _check_each(values, nan)
            self.missing += missing
            if missing == len(values):
                return
            low, high = np.fmin.reduce(values), np.fmax.reduce(values)
        least, greatest = low.item(), high.item()
        self.least = least if self.least is None else min(self.least, least)
        self.greatest = (
            greatest if self.greatest is None else max(self.greatest, greatest)
        )


def _all_finite(values: Elements) -> bool:
    """Tell whether no float is NaN or infinite: twice as fast as asking each."""
    with np.errstate(invalid="ignore"):
        return not values.size or bool(
            np.isfinite(values.min()) and np.isfinite(values.max())
        )


def _check_each(values: Elements, nan: bool) -> int:
    """Return how many are NaN, or refuse the first that may not be there."""
    missing = np.isnan(values)
    wrong = np.isinf(values) if nan else ~np.isfinite(values)
    if wrong.any():
        index = int(wrong.argmax())
        what, advice = ("NaN", NAN) if missing[index] else ("infinity", "correct it")
        raise MisfitError(index, f"expected a finite number, got {what}", advice)
    return int(missing.sum())


class WholeColumns:
    """Finds columns of floats that hold integers and would be rounded.

    ::

        columns = WholeColumns(3, "float32")
        columns.take(values, done=0)      # row by row, elements of all columns
        columns.check()

    Rule: a column is refused if all its numbers are whole, or so large that float32
    keeps no fraction of them, and one of them is not exact in the new type.

    Args:
        count: how many there are.
        dtype: the float type that the elements become.
    """

    def __init__(self, count: int, dtype: str) -> None:
        self._count = count
        self._dtype = dtype
        self._bound = 2.0 ** DIGITS[dtype]
        self._whole = np.ones(count, np.bool_)
        self._far = np.full(count, dtype == "float32")
        self._rounded: dict[int, tuple[int, float]] = {}

    def take(self, values: Elements, done: int) -> None:
        """Take elements in.

        Args:
            values: floats: whole rows, or a piece of one row.
            done: elements before them.
        """
        if not (self._whole.any() or self._far.any()):
            return
        begin = done % self._count
        width = min(len(values), self._count)
        rows = values.reshape(-1, width)
        with np.errstate(invalid="ignore"):
            whole = (np.trunc(rows) == rows) | np.isnan(rows)
        here = self._whole[begin : begin + width]
        here &= whole.all(axis=0)
        far = self._far[begin : begin + width]
        with np.errstate(all="ignore"):
            large = np.abs(rows) > self._bound
            far &= (large | np.isnan(rows)).all(axis=0)
            large &= here | far
            if not large.any():
                return
            rounded = large & (
                widened(narrowed(rows, self._dtype), self._dtype) != rows
            )
        for column in np.flatnonzero(rounded.any(axis=0)):
            row = int(rounded[:, column].argmax())
            place = done + row * width + int(column)
            self._rounded.setdefault(
                begin + int(column), (place, rows[row, column].item())
            )

    def check(self) -> None:
        """Refuse the first column that holds integers, one of which is rounded.

        Raises:
            MisfitError: whose index counts all elements that were taken.
        """
        for column, (place, value) in sorted(self._rounded.items()):
            if self._whole[column]:
                raise inexact(place, value, self._dtype)
            if self._far[column]:
                raise far(quote(value), place)


def unfit(index: int, value: float, dtype: str) -> MisfitError:
    """Return the error for a number that an element of this type can not be."""
    expected = f"a number that {dtype} can hold"
    if dtype in DIGITS:
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
