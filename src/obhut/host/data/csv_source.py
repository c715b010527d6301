"""Rows of a text file, as RFC 4180 has it, with marks of choice.

::

    with CsvSource(declaration) as rows:
        rows.names, rows.notes
        for batch in rows.batches([0, 2]): ...

Rules:

- pyarrow takes blocks of the file apart, one in advance. The file is never in memory
  as a whole.
- pyarrow says little of what is no table, and quotes much: so the fault is looked for
  in the one block that has it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from obhut.errors import DatasetError
from obhut.host.closing import Closing
from obhut.host.wording import quote

from .arrow import pa, pa_csv
from .declaration import COMPRESSED, DatasetDeclaration
from .header import ROWS, decide
from .source import Arrow, Place
from .text_blocks import Block, TextBlocks
from .where import parse

_HEAD_CELLS = 200_000
"""Cells that are looked at for a header, at most."""


class CsvSource(Closing):
    """Rows of a text file: a ``Source``.

    Raises:
        DatasetError: if it is empty, or its first row may be names or data.
        OSError: if it can not be opened.
    """

    def __init__(self, declaration: DatasetDeclaration) -> None:
        self._declared = declaration
        self._file = declaration.file
        path = declaration.path
        if path.suffix.lower() in COMPRESSED:
            path = path.with_suffix("")
        tab = path.suffix.lower() == ".tsv"
        self._delimiter = declaration.delimiter or ("\t" if tab else ",")
        # Not in `batches`: a generator that nobody ends is ended in any thread.
        self._pool = ThreadPoolExecutor(1)
        self._text = TextBlocks(declaration, self._delimiter)
        self.aside: Mapping[int, str] = {}
        self._names: Sequence[str] = ()
        self._notes: list[str] = []
        self._header = False
        self._blank = 0
        self.line = 0
        first = next(self._text.blocks(), None)
        rows = [] if first is None else list(islice(self._text.rows(first), ROWS + 1))
        if first is None or not rows:
            raise DatasetError(
                self._file, "expected a table, got nothing", "add rows to it", line=1
            )
        _, begin, end = rows[0]
        self._width = self._text.cells(first.data[begin:end])
        self._find_header(first, rows)

    def close(self) -> None:
        """End the thread that reads in advance."""
        self._pool.shutdown()

    @property
    def names(self) -> Sequence[str]:
        """The columns' names; their places from 1 where there is no header."""
        return self._names

    @property
    def types(self) -> Sequence[Arrow]:
        """Text for all."""
        return [pa.string()] * self._width

    @property
    def notes(self) -> Sequence[str]:
        """What was found out: complete after the rows were read."""
        blank = self._blank
        passed = [f"blank lines, passed over: {blank:,}"] if blank else []
        return [*self._notes, *passed]

    def batches(self, places: Sequence[int]) -> Iterator[Arrow]:
        """Yield record batches of the columns at these places; see ``source.Source``.

        Raises:
            DatasetError: naming row and line, at what is no row.
            OSError: if the file can not be read.
        """
        rows = self._blank = 0
        for block, future in self._parsed(places):
            try:
                table = future()
            except pa.ArrowInvalid:
                raise self._explain(block, rows) from None
            if table is not None and table.num_rows:
                rows += table.num_rows
                yield table.combine_chunks().to_batches()[0]

    def place_of(self, row: int) -> Place:
        """Return where a row of data is, with the line in which it begins."""
        left = row
        for block in self._blocks():
            for line, _, _ in self._text.rows(block, self._width == 1):
                left -= 1
                if not left:
                    return Place(self._file, row, line)
        return Place(self._file, row)

    def _blocks(self) -> Iterator[Block]:
        """Yield blocks without the header."""
        header = self._header
        for block in self._text.blocks():
            if header:
                for _, _, end in self._text.rows(block):
                    header = False
                    yield block.after(end)
                    break
            else:
                yield block

    def _parsed(
        self, places: Sequence[int]
    ) -> Iterator[tuple[Block, Callable[[], Arrow]]]:
        """Yield blocks, and what waits for their cells; the next is begun before."""
        waiting: list[tuple[Block, Callable[[], Arrow]]] = []
        for block in self._blocks():
            future = self._pool.submit(self._parse, block, places)
            waiting.append((block, future.result))
            if len(waiting) > 1:
                yield waiting.pop(0)
        yield from waiting

    def _parse(
        self, block: Block, places: Sequence[int], kind: str = "string"
    ) -> Arrow:
        """Return the cells of these columns, as a table; ``None`` if there are none."""
        data = block.data
        if self._width == 1:
            data = self._text.without_blanks(block, one_column=True)
        if not data or (data.isspace() and not data.strip(b" \r\n")):
            self._blank += data.count(b"\n")
            return None
        try:
            table = self._read(block, data, places, kind)
        except pa.ArrowInvalid:
            cleaned = self._text.without_blanks(block, one_column=False)
            if cleaned == data:
                raise
            table = self._read(block, cleaned, places, kind)
        if table.num_rows != data.count(b"\n"):
            rows = sum(1 for _ in self._text.rows(block, blanks=True))
            self._blank += max(0, rows - table.num_rows)
        return table

    def _read(
        self, block: Block, data: bytes, places: Sequence[int], kind: str
    ) -> Arrow:
        quoted = len(block.quotes) > 0 or self._width == 1
        names = [str(place) for place in range(self._width)]
        used = [names[place] for place in places]
        return pa_csv.read_csv(
            pa.BufferReader(data),
            pa_csv.ReadOptions(column_names=names, block_size=len(data) + 1),
            pa_csv.ParseOptions(
                delimiter=self._delimiter,
                quote_char='"' if quoted else False,
                newlines_in_values=quoted,
            ),
            pa_csv.ConvertOptions(
                include_columns=used,
                column_types=dict.fromkeys(used, pa.type_for_alias(kind)),
            ),
        )

    def _find_header(self, block: Block, rows: Sequence[tuple[int, int, int]]) -> None:
        """Decide whether the first row is a header, and take the names from it."""
        declared = self._declared
        line = rows[0][0]
        first = self._texts(block, rows[0], rows[0])
        if first is None:
            raise self._explain(block, 0)
        cells = [column[0] for column in first]
        told = re.fullmatch(rb"sep=(.)\s*", block.data[rows[0][1] : rows[0][2]])
        if told:
            mark = quote(told[1].decode("ascii", "replace"))
            raise DatasetError(
                self._file,
                "expected a table, got a line on how it is written",
                f"write skip = {self._declared.skip + 1} and delimiter = {mark}",
                line=line,
            )
        self._check_delimiter(cells, line)
        header = declared.header
        if header is None:
            few = max(10, _HEAD_CELLS // self._width)
            last = rows[-1:] if len(rows) <= few else [rows[few]]
            below = (
                self._texts(block, rows[1], last[0]) if len(rows) > 1 else None
            ) or [[] for _ in cells]
            found = decide(
                cells, below, _used(declared), map(str, declared.missing_values)
            )
            if found.doubt:
                raise DatasetError(
                    self._file,
                    f"the first row may have names or data: {found.why}",
                    "write header = true, or header = false",
                    line=line,
                )
            header = found.header
            what = "names" if header else "data: columns are called 1, 2, …"
            self._notes.append(f"the first row has {what} ({found.why})")
        if header and "*" in declared.feature_columns and "\ufffd" in "".join(cells):
            raise self._explain(block, 0)
        self._header = header
        self.line = line if header else 0
        self._names = (
            cells if header else [str(place + 1) for place in range(self._width)]
        )

    def _texts(
        self, block: Block, first: tuple[int, int, int], last: tuple[int, int, int]
    ) -> list[list[str]] | None:
        """Return the cells of some rows by column, trimmed; none if they are broken."""
        begin, end = first[1], last[2]
        quotes = block.quotes
        quotes = quotes[(quotes >= begin) & (quotes < end)] - begin
        part = Block(block.data[begin:end], first[0], quotes)
        try:
            table = self._parse(part, range(self._width), "binary")
        except pa.ArrowInvalid:
            return None
        return [
            [cell.decode("utf-8", "replace").strip() for cell in column.to_pylist()]
            for column in table.columns
        ]

    def _check_delimiter(self, cells: Sequence[str], line: int) -> None:
        for other in ",;\t|":
            if len(cells) == 1 and other != self._delimiter and other in cells[0]:
                raise DatasetError(
                    self._file,
                    f"expected columns with {quote(self._delimiter)} between them, got "
                    "only one",
                    f"if {quote(other)} is between them, write delimiter = "
                    f"{quote(other)}",
                    line=line,
                )

    def _explain(self, block: Block, before: int) -> DatasetError:
        """Return the error for a block that pyarrow can not take apart."""
        try:
            block.data.decode()
        except UnicodeDecodeError as error:
            found = block.after(block.data.rfind(b"\n", 0, error.start) + 1)
            return DatasetError(
                self._file,
                "is not UTF-8",
                'write encoding = "cp1252" if it is from Excel, or save it as '
                '"CSV UTF-8"',
                line=found.line,
            )
        for row, (line, begin, end) in enumerate(
            self._text.rows(block, self._width == 1)
        ):
            cells = self._text.cells(block.data[begin:end])
            if cells != self._width:
                what = "the header" if self._header else "the first row"
                return DatasetError(
                    self._file,
                    f"expected {self._width} cells as in {what}, got {cells}",
                    "check delimiters and quotes in that line",
                    row=before + row + 1,
                    line=line,
                )
        return DatasetError(
            self._file,
            "has rows that can not be read",
            "check quotes and ends of lines",
            line=block.line,
        )


def _used(declared: DatasetDeclaration) -> set[str]:
    """Return the names of columns that a declaration uses, conditions aside."""
    names = {*declared.feature_columns, *declared.target_columns, *declared.exclude}
    names |= {*declared.encode, *declared.units}
    if declared.where is not None:
        names |= {*parse(declared.file, declared.where).names}
    return names - {"*"}
