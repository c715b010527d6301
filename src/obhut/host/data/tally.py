"""What is known of a tensor's columns while their blocks come by.

::

    tally = Tally(("age", "weight"), "float32")
    tally.take(values, missing, rows)        # of each block
    tally.check()                            # at the end
    tally.least, tally.sentinels(0)

Rules:

- All columns of a tensor are looked at together: a table may have thousands of them.
- A column of whole numbers, of which the type can not hold one, is refused at the end:
  that it has no fractions is known then. Fractions are rounded to the nearest, unless
  all numbers are so large that none of them keeps its fraction, as times may be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from obhut.host.wording import quote

from .numbers import DIGITS, Elements, MisfitError, far, narrowed, unfit, widened
from .words import Mask

_EXACT: Mapping[str, float] = {
    "bfloat16": 2.0**8,
    "float16": 2.0**11,
    "float32": 2.0**24,
    "float64": 2.0**53,
}
"""Up to here every whole number is a float of this type."""

SENTINELS = (-9999.0, -999.0, -99.0, -9.0, -1.0, 99.0, 999.0, 9999.0)
"""Numbers that often stand for no value."""


class ColumnError(Exception):
    """A column can not become what it is to be.

    Attributes:
        place: which of the tally's columns.
        row: of data, from 1; 0 if it is none in particular.
        misfit: what is wrong.
    """

    def __init__(self, place: int, row: int, misfit: MisfitError) -> None:
        super().__init__(place, row, misfit)
        self.place = place
        self.row = row
        self.misfit = misfit


class Tally:
    """Extremes and losses of some columns.

    Attributes:
        least: (columns,) float64, of cells that have a value; inf where there is none.
        greatest: (columns,) float64, likewise.
        missing: (columns,) int64, how many cells have none.
        count: (columns,) int64, how many have one.
        sums: (columns,) float64, of those.
    """

    def __init__(self, names: Sequence[str], dtype: str) -> None:
        self._names = names
        self._dtype = dtype
        self._is_float = "float" in dtype
        width = len(names)
        self.least = np.full(width, math.inf)
        self.greatest = np.full(width, -math.inf)
        self.missing = np.zeros(width, np.int64)
        self.count = np.zeros(width, np.int64)
        self.sums = np.zeros(width)
        self._whole = np.ones(width, np.bool_)
        self._lost: dict[int, tuple[int, str]] = {}
        self._far: dict[int, tuple[int, str]] = {}
        self._odd: dict[tuple[int, float], int] = {}
        # The extremes without those of SENTINELS.
        self._low = np.full(width, math.inf)
        self._high = np.full(width, -math.inf)

    def take(self, values: Elements, missing: Mask | None, rows: Elements) -> None:
        """Take a block into account.

        Args:
            values: (columns, rows) float32, float64 or int64.
            missing: (columns, rows), which have no value; ``None`` for none.
            rows: (rows,) int64, their numbers, from 1.

        Raises:
            ColumnError: at a number that the type can not hold.
        """
        if not values.shape[1]:
            return
        low = high = values
        if missing is not None:
            nothing = missing.sum(axis=1)
            self.missing += nothing
            self.count += values.shape[1] - nothing
            if self._is_float:
                low = np.where(missing, math.inf, values)
                high = np.where(missing, -math.inf, values)
            else:
                info = np.iinfo(np.int64)
                low = np.where(missing, info.max, values)
                high = np.where(missing, info.min, values)
            some = nothing < values.shape[1]
        else:
            self.count += values.shape[1]
            some = np.ones(len(values), np.bool_)
        least, greatest = low.min(axis=1), high.max(axis=1)
        self._check_bounds(values, missing, rows, least, greatest, some)
        if self._is_float:
            self._check_whole(values, missing, rows, least, greatest)
            self._check_far(values, missing, rows, np.maximum(least, -greatest))
        wide_least = np.where(some, least.astype(np.float64), math.inf)
        wide_greatest = np.where(some, greatest.astype(np.float64), -math.inf)
        self.least = np.minimum(self.least, wide_least)
        self.greatest = np.maximum(self.greatest, wide_greatest)
        self._look_for_sentinels(values, missing, wide_least, wide_greatest)

    def sum(self, values: Elements, missing: Mask | None) -> None:
        """Add a block to the sums."""
        self.sums += values.sum(
            axis=1, dtype=np.float64, where=True if missing is None else ~missing
        )

    def lose(self, place: int, row: int, shown: str) -> None:
        """Take down that a column's whole number was not exact in the first place."""
        self._lost.setdefault(place, (row, shown))

    def check(self) -> None:
        """Refuse columns of whole numbers that have lost one.

        Raises:
            ColumnError: at the first column, and its first such number.
        """
        for place in sorted(self._lost):
            if self._whole[place]:
                row, shown = self._lost[place]
                raise ColumnError(place, row, self._lossy(shown))
        nearest = np.maximum(self.least, -self.greatest)
        for place, (row, shown) in sorted(self._far.items()):
            if nearest[place] >= _EXACT["float32"]:
                raise ColumnError(place, row, far(shown))

    def sentinels(self, place: int) -> Sequence[tuple[float, int]]:
        """Return numbers that seem to stand for no value, and how many cells each."""
        found = []
        low, high = self._low[place], self._high[place]
        for number in SENTINELS:
            times = self._odd.get((place, number), 0)
            if not times or not low < high:
                continue
            is_least = number == self.least[place] and low >= 0
            gap = number - high if number > 0 else low - number
            if is_least or (
                number in (self.least[place], self.greatest[place])
                and gap > (high - low) / 2
            ):
                found.append((number, times))
        return found

    def step(self, place: int) -> float:
        """Return how far apart float32 puts numbers, if that is much of their range."""
        least, greatest = self.least[place], self.greatest[place]
        if self._dtype != "float32" or self._whole[place] or not least < greatest:
            return 0
        most = max(-least, greatest)
        step = math.ldexp(1.0, math.frexp(most)[1] - DIGITS["float32"])
        coarse = step > (greatest - least) / 1000 and greatest - least > most * 1e-9
        return step if coarse else 0

    def _check_bounds(
        self,
        values: Elements,
        missing: Mask | None,
        rows: Elements,
        least: Elements,
        greatest: Elements,
        some: Mask,
    ) -> None:
        """Refuse what is beyond the type."""
        if self._is_float:
            bound = 2.0**127 if self._dtype == "bfloat16" else None
            limit = bound or float(np.finfo(self._dtype).max)
            outside = (least < -limit) | (greatest > limit)
        elif self._dtype == "bool":
            outside = (least < 0) | (greatest > 1)
        else:
            info = np.iinfo(self._dtype)
            outside = (least < info.min) | (greatest > info.max)
        for place in np.flatnonzero(outside & some):
            column = values[place]
            if self._is_float:
                with np.errstate(all="ignore"):
                    fits = np.isfinite(self._held(column))
            elif self._dtype == "bool":
                fits = (column == 0) | (column == 1)
            else:
                fits = (column >= info.min) & (column <= info.max)
            if missing is not None:
                fits |= missing[place]
            if not fits.all():
                at = int(fits.argmin())
                misfit = unfit(at, column[at].item(), self._dtype)
                raise ColumnError(int(place), int(rows[at]), misfit)

    def _check_whole(
        self,
        values: Elements,
        missing: Mask | None,
        rows: Elements,
        least: Elements,
        greatest: Elements,
    ) -> None:
        """Find columns with fractions; and in others what the type does not hold."""
        places = np.flatnonzero(self._whole)
        if not places.size:
            return
        # A fraction is mostly found in the first rows.
        for end in (64, values.shape[1]):
            some = values[places, :end]
            with np.errstate(invalid="ignore"):
                whole = some == np.rint(some)
            if missing is not None:
                whole |= missing[places, :end]
            places = places[whole.all(axis=1)]
            if not places.size:
                break
        self._whole[:] = False
        self._whole[places] = True
        exact = _EXACT[self._dtype]
        large = np.maximum(greatest[places], -least[places]) > exact
        for place in places[large]:
            if int(place) in self._lost:
                continue
            column = values[place]
            with np.errstate(all="ignore"):
                lost = self._held(column) != column
            if missing is not None:
                lost &= ~missing[place]
            if lost.any():
                at = int(lost.argmax())
                self.lose(int(place), int(rows[at]), quote(int(column[at])))

    def _check_far(
        self, values: Elements, missing: Mask | None, rows: Elements, nearest: Elements
    ) -> None:
        """Find what loses its fraction where all numbers are far from 0."""
        if self._dtype != "float32" or values.dtype != np.float64:
            return
        for place in np.flatnonzero(nearest >= _EXACT["float32"]):
            if self._whole[place] or int(place) in self._far:
                continue
            lost = self._held(values[place]) != values[place]
            if missing is not None:
                lost &= ~missing[place]
            if lost.any():
                at = int(lost.argmax())
                shown = quote(values[place, at].item())
                self._far[int(place)] = (int(rows[at]), shown)

    def _held(self, values: Elements) -> Elements:
        """Return floats as they are in the tensor."""
        return widened(narrowed(values, self._dtype), self._dtype)

    def _lossy(self, shown: str) -> MisfitError:
        wider = 'dtype = "float64" or "int64"'
        if self._dtype == "float64":
            wider = 'dtype = "int64"'
        return MisfitError(
            0,
            f"expected whole numbers that {self._dtype} can hold, got {shown}",
            f'write {wider}; or in encode what it is, such as "days" for dates or a '
            "list of categories; or leave the column out",
        )

    def _look_for_sentinels(
        self,
        values: Elements,
        missing: Mask | None,
        least: npt.NDArray[np.float64],
        greatest: npt.NDArray[np.float64],
    ) -> None:
        """Count extremes that may stand for no value."""
        hit = np.isin(least, SENTINELS) | np.isin(greatest, SENTINELS)
        self._low = np.where(hit, self._low, np.minimum(self._low, least))
        self._high = np.where(hit, self._high, np.maximum(self._high, greatest))
        for place in np.flatnonzero(hit):
            column = values[place]
            if missing is not None:
                column = column[~missing[place]]
            odd = np.isin(column, SENTINELS)
            for number, times in zip(
                *np.unique(column[odd], return_counts=True), strict=True
            ):
                key = (int(place), float(number))
                self._odd[key] = self._odd.get(key, 0) + int(times)
            rest = column[~odd]
            if rest.size:
                self._low[place] = min(self._low[place], rest.min())
                self._high[place] = max(self._high[place], rest.max())
