"""One column of a table as columns of a tensor: numbers, categories, words or dates.

::

    column = make(name, dtype, encoding, classes, marks)
    column.outputs                       # names: ("age",), or ("sex=m", "sex=f")
    values, missing = column.read(arrow_array)

Rules:

- What reads a column does not know where it comes from: text, Parquet, a database.
- A text that is declared as a category is one, also if it says "NA".
- What a cell becomes does not depend on other cells.
"""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from obhut.host.wording import quote, toml_key

from .arrow import pa, pc
from .declaration import Encode, Encoding
from .number_cells import Marks, NumberCells
from .numbers import Elements, MisfitError, misfit
from .source import Arrow
from .words import BOOLEANS, DATE, Mask, is_number, is_text, missing_mask, values_of

DAY = 86_400 * 10**6
"""Microseconds of a day."""

_EPOCH = datetime.datetime(1970, 1, 1)


class Column:
    """Reads a column as numbers.

    Attributes:
        name: its name in the table.
        outputs: the names of the tensor's columns that it becomes.
        counts: of categories, by name, how many rows have each.
        note: a few words for the report.
        inexact_at: as of ``NumberCells``.
        categories: their names in order; none if it has no categories.
        numeric: whether numbers of it are measured: a mean of it says something.
    """

    numeric = True
    categories: tuple[str, ...] = ()

    def __init__(self, name: str, dtype: str, marks: Marks) -> None:
        self.name = name
        self.outputs: tuple[str, ...] = (name,)
        self.counts: Counter[str] = Counter()
        self.note = ""
        self.inexact_at = -1
        self._dtype = dtype
        self._marks = marks
        self._kind = np.float64 if "float" in dtype else np.int64

    def read(self, cells: Arrow) -> tuple[Elements, Mask | None]:
        """Return the values of a block, and which cells have none.

        Returns:
            (rows,), or (outputs, rows); and (rows,).

        Raises:
            MisfitError: at a cell that it can not be.
        """
        raise NotImplementedError

    def count(self, values: Elements, missing: Mask | None) -> None:
        """Count the categories of rows that are used.

        Args:
            values: (outputs, rows), as they were read.
            missing: (rows,), or ``None``.
        """
        if not self.categories:
            return
        codes = values.argmax(axis=0) if len(values) > 1 else values[0].astype(np.int64)
        if missing is not None:
            codes = codes[~missing]
        for code in np.flatnonzero(times := np.bincount(codes)):
            self.counts[self.categories[code]] += int(times[code])


class Numbers(Column):
    """Numbers, as ``NumberCells`` reads them."""

    def __init__(self, name: str, dtype: str, marks: Marks) -> None:
        super().__init__(name, dtype, marks)
        self._cells = NumberCells(name, dtype, marks)

    def read(self, cells: Arrow) -> tuple[Elements, Mask | None]:
        """Return numbers; see ``Column.read``."""
        kind = values_of(cells.type)
        if not (is_text(kind) or is_number(kind)):
            raise MisfitError(
                -1, f"expected numbers, got {kind}", _type_advice(self.name, kind)
            )
        found = self._cells.read(cells)
        self.inexact_at = self._cells.inexact_at
        return found


class Categories(Column):
    """Texts or whole numbers that become their places in a list."""

    numeric = False

    def __init__(
        self,
        name: str,
        dtype: str,
        marks: Marks,
        listed: Sequence[str | int],
        one_hot: bool = False,
        called: str = "categories",
    ) -> None:
        super().__init__(name, dtype, marks)
        self._called = called
        self._codes = {str(one): code for code, one in enumerate(listed)}
        self.categories = tuple(self._codes)
        self._one_hot = one_hot
        if one_hot:
            self.outputs = tuple(f"{name}={one}" for one in listed)
        self._missing = marks.missing | {
            f"{one:g}" if one.is_integer() else str(one)
            for one in marks.missing_numbers
        }

    def read(self, cells: Arrow) -> tuple[Elements, Mask | None]:
        """Return codes, or a row of 0 and 1 for each category; see ``Column.read``."""
        kind = values_of(cells.type)
        if not (is_text(kind) or is_number(kind)):
            raise MisfitError(
                -1,
                f"expected texts or whole numbers, got {kind}",
                "convert the column, or leave it out",
            )
        if pa.types.is_dictionary(cells.type) and cells.null_count == 0:
            coded = cells
        else:
            coded = cells.dictionary_encode()
        indices = coded.indices
        missing: Mask = indices.is_null().to_numpy(zero_copy_only=False)
        places = indices.fill_null(0).to_numpy()
        kinds = [_named(one) for one in coded.dictionary.to_pylist()]
        known = np.array([self._code(one) for one in kinds] or [0], np.int64)
        codes = known[places] if len(places) else known[:0]
        unknown = (codes < 0) & ~missing
        if unknown.any():
            absent = missing_mask(pa.array([one or "" for one in kinds]), self._missing)
            missing |= absent[places]
            unknown &= ~missing
        if unknown.any():
            at = int(unknown.argmax())
            raise self._misfit(at, kinds[int(places[at])])
        codes = np.where(missing, 0, codes)
        nothing = missing if missing.any() else None
        if not self._one_hot:
            return codes.astype(self._kind), nothing
        rows = np.arange(len(self._codes))[:, np.newaxis] == codes
        return rows.astype(self._kind), nothing

    def _code(self, text: str) -> int:
        code = self._codes.get(text)
        if code is None:
            text = text.strip()
            # pandas writes 1.0 for 1 where a cell of the column is missing.
            if re.fullmatch(r"-?(0|[1-9][0-9]*)\.0+", text) and text not in self._codes:
                text = text.partition(".")[0]
            code = self._codes.get(text, -1)
        return code

    def _misfit(self, at: int, text: str) -> MisfitError:
        if self._called == "classes":
            advice = "correct the cell, or add it to classes"
        else:
            advice = f"correct the cell, or add it to {toml_key(self.name)} in encode"
        return MisfitError(
            at,
            f"expected one of the {len(self._codes)} {self._called}, got {quote(text)}",
            advice,
        )


class Booleans(Column):
    """Words for true and false, which become 1 and 0."""

    numeric = False
    categories = ("false", "true")

    def read(self, cells: Arrow) -> tuple[Elements, Mask | None]:
        """Return 0 and 1; see ``Column.read``."""
        coded = cells.dictionary_encode()
        indices = coded.indices
        kinds = [_named(one) for one in coded.dictionary.to_pylist()]
        values = [BOOLEANS.get(one.strip().lower(), -1) for one in kinds]
        absent = missing_mask(pa.array(kinds, pa.string()), self._marks.missing)
        for place, one in enumerate(kinds):
            if values[place] < 0 and _number(one) in self._marks.missing_numbers:
                absent[place] = True
        missing: Mask = indices.is_null().to_numpy(zero_copy_only=False)
        places = indices.fill_null(0).to_numpy()
        if kinds:
            missing = missing | absent[places]
        made = np.array(values or [0], np.int64)[places]
        wrong = (made < 0) & ~missing
        if wrong.any():
            at = int(wrong.argmax())
            raise MisfitError(
                at,
                "expected a word for true or false, such as yes, no, 0 or 1, got "
                f"{quote(kinds[int(places[at])])}",
                "correct the cell, or list the texts in encode",
            )
        made = np.where(missing, 0, made).astype(self._kind)
        return made, missing if missing.any() else None


class Dates(Column):
    """Dates, which become numbers of days, or year, month and day.

    Days are in UTC where times have a zone; year, month and day are as written. Times
    without a date become shares of a day.
    """

    def __init__(
        self,
        name: str,
        dtype: str,
        marks: Marks,
        written: str,
        since: datetime.date | None,
    ) -> None:
        super().__init__(name, dtype, marks)
        self._written = written
        self._since = since
        self._zoned: bool | None = None
        if since is not None and not DATE.search(written) and written != "iso":
            self._since = datetime.date(1900, 1, 1)  # what strptime says then
        if since is None:
            self.numeric = False
            self.outputs = tuple(f"{name}.{one}" for one in ("year", "month", "day"))

    def read(self, cells: Arrow) -> tuple[Elements, Mask | None]:
        """Return days, or three rows of parts; see ``Column.read``."""
        made = self._times(cells)
        mask: Mask = made.is_null().to_numpy(zero_copy_only=False)
        missing = mask if mask.any() else None
        made = made.fill_null(_EPOCH)
        micros: Elements = made.cast(pa.int64()).to_numpy()
        if self._since is None:
            if (micros % DAY).any():
                self._say("the time of day is left out")
            parts = [getattr(pc, one)(made) for one in ("year", "month", "day")]
            return np.stack([one.to_numpy() for one in parts]).astype(
                self._kind
            ), missing
        since = (self._since - _EPOCH.date()).days
        days, rest = np.divmod(micros, DAY)
        if self._kind is np.int64:
            if rest.any():
                raise self._time(int((rest != 0).argmax()), cells)
            return days - since, missing
        values = (days - since) + rest / DAY
        if rest.any():
            self._check_times(values, days - since, rest, cells)
        return values, missing

    def _check_times(
        self, values: Elements, days: Elements, rest: Elements, cells: Arrow
    ) -> None:
        """Refuse times of day that the tensor's type can not hold."""
        kind = "float32" if self._dtype == "bfloat16" else self._dtype
        held = values.astype(kind).astype(np.float64)
        # Seconds where there are only those, else microseconds.
        unit = 1 if (rest % 10**6).any() else 10**6
        back = np.rint((held - days) * (DAY // unit))
        wrong = back != rest // unit
        if self._dtype == "bfloat16":
            wrong = rest != 0
        if wrong.any():
            raise self._time(int(wrong.argmax()), cells)

    def _time(self, at: int, cells: Arrow) -> MisfitError:
        return MisfitError(
            at,
            f"expected a date whose time of day {self._dtype} can hold, got "
            f"{_shown(cells[at])}",
            'write dtype = "float64", or "parts" for the date alone, or leave the '
            "column out",
        )

    def _times(self, cells: Arrow) -> Arrow:
        """Return the cells as timestamps in microseconds, null where missing."""
        kind = values_of(cells.type)
        cells = cells.cast(kind)
        if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
            return self._typed(cells)
        if pa.types.is_integer(kind):
            cells = cells.cast(pa.string())
        elif pa.types.is_null(kind):
            return cells.cast(pa.timestamp("us"))
        elif not is_text(kind):
            raise MisfitError(
                -1, f"expected dates, got {kind}", "leave encode out for this column"
            )
        trimmed = pc.utf8_trim_whitespace(cells)
        texts = self._marks.missing | {
            f"{one:g}" for one in self._marks.missing_numbers
        }
        missing = missing_mask(trimmed, frozenset(texts))
        text = pc.if_else(pa.array(missing), pa.scalar(None, trimmed.type), trimmed)
        if self._written == "iso":
            try:
                found = text.cast(pa.timestamp("us"))
            except pa.ArrowInvalid:
                pass
            else:
                if not missing.all():
                    at = int(missing.argmin())
                    self._check_zone(False, at, text[at].as_py())
                return found
        coded = text.dictionary_encode()
        found = []
        for place, one in enumerate(coded.dictionary.to_pylist()):
            at = int(pc.index(coded.indices, place).as_py())
            try:
                found.append(self._time_of(one, at))
            except ValueError:
                expected = (
                    "as 2024-01-05" if self._written == "iso" else "of its format"
                )
                raise MisfitError(
                    at,
                    f"expected a date {expected}, got {quote(one)}",
                    "correct the cell, or say in encode how dates are written, such as "
                    '{ days = "%d.%m.%Y" }',
                ) from None
        return pa.array(found, pa.timestamp("us")).take(coded.indices)

    def _time_of(self, text: str, at: int) -> datetime.datetime:
        if self._written != "iso":
            made = datetime.datetime.strptime(text, self._written)
        elif re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text, re.ASCII):
            if re.search(r"\.[0-9]{6}[0-9]*[1-9]", text, re.ASCII):
                raise misfit(at, "a time in microseconds at most", quote(text))
            made = datetime.datetime.fromisoformat(text)
        else:
            raise ValueError(text)
        self._check_zone(made.tzinfo is not None, at, text)
        if made.tzinfo is not None and self._since is not None:
            self._say("times are in UTC")
            made = made.astimezone(datetime.UTC)
        return made.replace(tzinfo=None)

    def _typed(self, cells: Arrow) -> Arrow:
        """Return dates and times of Arrow's types in microseconds."""
        zone = getattr(cells.type, "tz", None)
        kind = pa.timestamp("us", zone)
        try:
            made = cells.cast(kind)
        except pa.ArrowInvalid:
            at = next(at for at in range(len(cells)) if not _casts(cells[at], kind))
            expected = "a time in microseconds at most"
            raise misfit(at, expected, _shown(cells[at])) from None
        if zone and self._since is None:
            self._say(f"dates are those of {zone}")
            return pc.local_timestamp(made)
        if zone:
            self._say("times are in UTC")
        return made.cast(pa.timestamp("us"))

    def _check_zone(self, zoned: bool, at: int, text: str) -> None:
        """Refuse a time without a zone among some with one, and the other way."""
        if self._zoned is None:
            self._zoned = zoned
        if self._zoned != zoned:
            with_or_without = "with a zone, as" if self._zoned else "without a zone, as"
            raise MisfitError(
                at,
                f"expected a time {with_or_without} those above, got {quote(text)}",
                "write all in one way, or leave the column out",
            )

    def _say(self, note: str) -> None:
        if note not in self.note:
            self.note = "; ".join(filter(None, (self.note, note)))


def _shown(cell: Arrow) -> str:
    try:
        return quote(str(cell))
    except (ValueError, OverflowError):
        return "one beyond the year 9999"


def _casts(cell: Arrow, kind: Arrow) -> bool:
    try:
        cell.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def make(
    name: str,
    dtype: str,
    encoding: Encoding | None,
    classes: Sequence[str | int],
    marks: Marks,
) -> Column:
    """Return what reads a column.

    Args:
        name: its name in the table.
        dtype: the tensor's element type.
        encoding: what its cells become, if they are no numbers.
        classes: the target's texts, if it is the target and has some.
        marks: how numbers and missing values are written.
    """
    if classes:
        return Categories(name, dtype, marks, classes, called="classes")
    match encoding:
        case None:
            return Numbers(name, dtype, marks)
        case "number":
            zeros = Marks(
                marks.decimal,
                marks.thousands,
                marks.missing,
                marks.missing_numbers,
                zeros=True,
            )
            return Numbers(name, dtype, zeros)
        case "boolean":
            return Booleans(name, dtype, marks)
        case "days":
            return Dates(name, dtype, marks, "iso", _EPOCH.date())
        case "parts":
            return Dates(name, dtype, marks, "iso", None)
        case Encode(one_hot=tuple() as listed):
            return Categories(name, dtype, marks, listed, one_hot=True)
        case Encode(days=str() as written, since=since):
            return Dates(name, dtype, marks, written, since)
        case Encode(parts=written):
            return Dates(name, dtype, marks, written or "iso", None)
        case tuple():
            return Categories(name, dtype, marks, encoding)


def _type_advice(name: str, kind: Arrow) -> str:
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        key = toml_key(name)
        return f'write encode = {{ {key} = "days" }}, or "parts", or leave it out'
    return "convert the column to numbers, or leave it out"


def _named(value: object) -> str:
    """Return what a category's cell is called."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
