"""CSV files: UTF-8, a header, one row of data on each further line.

The format is that of RFC 4180, with a delimiter and a decimal mark of choice.

Rules:

- Every row has as many cells as the header; there are no blank lines but at the end.
- A column is one of numbers, or one of words (yes, no, true, false, beside 0
  and 1), as its first cell says: a "no" among numbers is not a 0.
- Rows are converted as they are read: the file is never in memory as a whole.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path
from typing import Protocol, TypeAlias

from obhut.errors import DatasetError

from .arrays import Array, ArrayWriter
from .declaration import DatasetDeclaration
from .numbers import NAN, MisfitError, misfit, pack
from .tables import CELLS, Part, parts
from .wording import quote

Row: TypeAlias = list[str]

WORDS: Mapping[str, int] = {"yes": 1, "no": 0, "true": 1, "false": 0}

MISSING = frozenset({"", "na", "n/a", "nan", "null"})
"""Cells that say that there is no value, in lower case."""

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,6})?", re.ASCII)

_SEPARATOR = "\x1f"

_PLAIN_FLOAT = b"0123456789+-.eE \x1f"
_PLAIN_INT = b"0123456789+- \x1f"


class _Reader(Protocol):
    """What ``csv.reader`` returns."""

    @property
    def line_num(self) -> int: ...

    def __iter__(self) -> Iterator[Row]: ...

    def __next__(self) -> Row: ...


class Cells:
    """Turns the cells of one tensor into bytes, some rows at a time."""

    def __init__(self, part: Part, decimal: str) -> None:
        self._part = part
        self._decimal = decimal
        self._is_word: list[bool | None] = [None] * len(part.columns)

    def convert(self, cells: Sequence[str]) -> bytes:
        """Return the elements' bytes.

        Args:
            cells: whole rows of the tensor, one after the other.

        Raises:
            MisfitError: at the first cell that can not be converted.
        """
        part = self._part
        if part.classes:
            return pack(self._classes(cells), part.dtype, nan=False)
        values = self._plain(cells)
        if values is None:
            values = [self._value(index, cell) for index, cell in enumerate(cells)]
        return pack(values, part.dtype, part.nan)

    def _classes(self, cells: Sequence[str]) -> list[int]:
        codes = list(map(self._part.classes.get, map(str.strip, cells)))
        if None in codes:
            index = codes.index(None)
            known = len(self._part.classes)
            raise MisfitError(
                index,
                f"expected one of the {known} classes, got {quote(cells[index])}",
                "correct the cell, or add it to classes",
            )
        return [code for code in codes if code is not None]

    def _plain(self, cells: Sequence[str]) -> list[float] | None:
        """Return the values if all cells are plain numbers, quickly, else nothing."""
        text = _SEPARATOR.join(cells)
        if self._decimal != ".":
            if "." in text:
                return None
            text = text.replace(self._decimal, ".")
            cells = text.split(_SEPARATOR)
        number: Callable[[str], float] = float
        plain = _PLAIN_FLOAT
        if not self._part.dtype.startswith("float"):
            number, plain = int, _PLAIN_INT
        # float() and int() take more than plain numbers: 1_000, other digits, nan.
        if text.encode().translate(None, plain):
            return None
        try:
            values = list(map(number, cells))
        except ValueError:
            return None
        if None in self._is_word:
            self._is_word = [bool(word) for word in self._is_word]
        return values if True not in self._is_word else None

    def _value(self, index: int, cell: str) -> float:
        """Return the value of one cell, or say what is wrong with it."""
        text = cell.strip()
        lower = text.lower()
        if lower in MISSING:
            if self._part.nan:
                return float("nan")
            what = "an empty cell" if not text else quote(cell)
            advice = NAN if self._part.dtype.startswith("float") else "fill it in"
            raise MisfitError(index, f"expected a number, got {what}", advice)
        column = index % len(self._is_word)
        is_word = self._is_word[column]
        if is_word is None:
            is_word = self._is_word[column] = lower in WORDS
        # Where the result is true or false, a column may have both.
        if is_word or self._part.dtype == "bool":
            value = WORDS.get(lower, {"0": 0, "1": 1}.get(lower))
            if value is None:
                raise misfit(index, "yes, no, true, false, 0 or 1", quote(cell))
            return value
        if self._decimal != ".":
            text = "?" if "." in text else text.replace(self._decimal, ".")
        if not _NUMBER.fullmatch(text):
            raise MisfitError(
                index, f"expected a number, got {quote(cell)}", self._advice(lower)
            )
        if text.lstrip("+-").isdigit() and len(text) < 4_000:
            return int(text)
        value = float(text)
        if value in (float("inf"), float("-inf")):
            raise misfit(index, "a number that a float can hold", quote(cell))
        if not self._part.dtype.startswith("float") and abs(value) >= 2**53:
            raise misfit(index, "a whole number in plain digits", quote(cell))
        return value

    def _advice(self, lower: str) -> str:
        if lower in WORDS:
            return "it is a column of numbers, as its first cell says: correct the cell"
        if self._decimal == "." and re.fullmatch(r"[+-]?[0-9]*,[0-9]+", lower):
            return 'correct it, or write decimal = ","'
        if self._decimal == "," and "." in lower:
            return 'correct it, or leave decimal = "," out'
        if len(self._part.columns) == 1 and self._part.tensor == "target":
            return "correct the cell, or list the texts in classes"
        return "correct the cell, or leave the column out"


def read(declaration: DatasetDeclaration) -> tuple[tuple[Part, Array], ...]:
    """Read the declared columns.

    Raises:
        DatasetError: naming line, row and column.
        OSError: if the file can not be read.
    """
    path = declaration.path
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return _read(declaration, stream)
    except UnicodeDecodeError as error:
        raise DatasetError(
            str(path),
            "is not UTF-8",
            'save it as "CSV UTF-8"',
            line=_undecodable_line(path),
        ) from error


def _read(
    declaration: DatasetDeclaration, stream: Iterator[str]
) -> tuple[tuple[Part, Array], ...]:
    file = str(declaration.path)
    tab = declaration.path.suffix.lower() == ".tsv"
    delimiter = declaration.delimiter or ("\t" if tab else ",")
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        _check_header(declaration, header, delimiter)
        found = parts(declaration, header, line=1)
        with ExitStack() as stack:
            columns = [
                (
                    part,
                    _picker(part.places, len(header)),
                    Cells(part, declaration.decimal),
                    stack.enter_context(ArrayWriter(part.dtype)),
                )
                for part in found
            ]
            done = 0
            for line, rows in _chunks(file, reader, len(header)):
                for part, pick, cells, writer in columns:
                    try:
                        writer.write(cells.convert(pick(rows)))
                    except MisfitError as error:
                        row, column = divmod(error.index, len(part.columns))
                        raise DatasetError(
                            file,
                            error.problem,
                            error.advice,
                            part.columns[column],
                            done + row + 1,
                            line + _lines(rows[:row]) + 1,
                        ) from None
                done += len(rows)
            if not done:
                raise DatasetError(file, "has a header and no rows", "add rows to it")
            return tuple(
                (part, writer.finish(part.shape(done)))
                for part, _, _, writer in columns
            )
    except csv.Error as error:
        raise DatasetError(
            file,
            f"expected cells, quoted where they need it, got what is none: {error}",
            "correct the quotes at that line, or in lines above it",
            line=reader.line_num,
        ) from error


def _check_header(
    declaration: DatasetDeclaration, header: Row, delimiter: str
) -> None:
    file = str(declaration.path)
    if not header:
        raise DatasetError(
            file, "expected names of columns, got nothing", "add a header", line=1
        )
    if all(_NUMBER.fullmatch(name.strip()) for name in header):
        raise DatasetError(
            file,
            "expected names of columns, got numbers only",
            "add a header above the first row",
            line=1,
        )
    for other in ",;\t":
        if len(header) == 1 and other != delimiter and other in header[0]:
            raise DatasetError(
                file,
                f"expected columns with {quote(delimiter)} between them, got only one",
                f"if {quote(other)} is between them, write delimiter = {quote(other)}",
                line=1,
            )
    for name, times in Counter(header).items():
        if name and times > 1:
            raise DatasetError(
                file,
                f"expected one column of this name, got {times}",
                "give each column a name of its own",
                column=quote(name)[1:-1],
                line=1,
            )


def _chunks(
    file: str, reader: _Reader, width: int
) -> Iterator[tuple[int, list[Row]]]:
    """Yield rows, some at a time, each with the number of the line before them.

    Raises:
        DatasetError: at a row that has not ``width`` cells.
    """
    size = max(1, CELLS // width)
    done, line, blank = 0, reader.line_num, 0
    while rows := list(islice(reader, size)):
        if blank and any(rows):
            raise _blank(file, blank)
        if {*map(len, rows)} != {width}:
            index = next(i for i, row in enumerate(rows) if len(row) != width)
            at = line + _lines(rows[:index]) + 1
            if rows[index]:
                raise DatasetError(
                    file,
                    f"expected {width} cells as in the header, got {len(rows[index])}",
                    "check delimiters and quotes in that line",
                    row=done + index + 1,
                    line=at,
                )
            if any(rows[index:]):
                raise _blank(file, at)
            blank = blank or at
            rows = rows[:index]
        if rows:
            yield line, rows
        done += len(rows)
        line = reader.line_num


def _blank(file: str, line: int) -> DatasetError:
    return DatasetError(
        file, "expected a row, got a blank line", "remove the line", line=line
    )


def _lines(rows: Sequence[Row]) -> int:
    """Return how many lines rows take: quoted cells may have several."""
    text = "".join(chain.from_iterable(rows))
    breaks = text.count("\n") + text.count("\r") - text.count("\r\n")
    return len(rows) + breaks


def _picker(
    places: Sequence[int], width: int
) -> Callable[[Sequence[Row]], Sequence[str]]:
    """Return what picks the cells at these places, row by row."""
    if len(places) == 1:
        (place,) = places
        return lambda rows: [row[place] for row in rows]
    if tuple(places) == tuple(range(width)):
        return lambda rows: list(chain.from_iterable(rows))
    pick = itemgetter(*places)
    return lambda rows: list(chain.from_iterable(map(pick, rows)))


def _undecodable_line(path: Path) -> int:
    """Return the first line that is not UTF-8, read anew."""
    number = 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                break
    return number
