"""CSV files: UTF-8, a header, one row of data on each further line.

The format is that of RFC 4180, with a delimiter and a decimal mark of choice.

Rules:

- Every row has as many cells as the header; there are no blank lines but at the end.
- Rows are converted as they are read: the file is never in memory as a whole.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np

from obhut.errors import DatasetError
from obhut.host.wording import quote

from .arrays import Array, ArrayWriter
from .cells import NUMBER, Cells
from .declaration import DatasetDeclaration
from .numbers import MisfitError
from .tables import CELLS, Part, parts

Row: TypeAlias = list[str]


class _Parser(Protocol):
    """What ``csv.reader`` returns."""

    @property
    def line_num(self) -> int: ...

    def __iter__(self) -> Iterator[Row]: ...

    def __next__(self) -> Row: ...


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
    file = declaration.file
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
                        made = cells.convert(pick(rows))
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
                    writer.write(made.view(np.uint8).data)
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


def _check_header(declaration: DatasetDeclaration, header: Row, delimiter: str) -> None:
    file = declaration.file
    if not header:
        raise DatasetError(
            file, "expected names of columns, got nothing", "add a header", line=1
        )
    if all(NUMBER.fullmatch(name.strip()) for name in header):
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


def _chunks(file: str, reader: _Parser, width: int) -> Iterator[tuple[int, list[Row]]]:
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
        for line in stream:
            number += 1
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                break
    return number
