"""Conditions over a table's columns, which say which rows are used.

::

    condition = where.parse(file, 'year >= 2020 and sex in ["m", "f"]')
    condition.names                          # ("year", "sex")
    check(file, condition, source.names)     # each is a column
    condition.meets(arrays, marks)           # (rows,) bool

The language: ``name``, or a name with spaces in backticks; ``==``, ``!=``, ``<``,
``<=``, ``>``, ``>=``; ``in [...]``; ``is missing``; ``and``, ``or``, ``not`` and
parentheses. Values are numbers, texts in quotes, ``true``, ``false`` and dates such as
2024-01-05.

Rules:

- Numbers compare as numbers, texts as texts, and ISO dates as dates.
- A row whose cell is missing meets no comparison, nor its contrary, as in SQL.
- A cell that can not be compared is refused, and is not merely unequal.
"""

from __future__ import annotations

import datetime
import decimal
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from obhut.errors import DatasetError
from obhut.host.wording import nearest, quote

from .arrow import pa, pc
from .number_cells import Marks, NumberCells
from .numbers import MisfitError
from .source import Arrow
from .words import BOOLEANS, Mask, is_number, is_text, missing_mask, values_of

Literal: TypeAlias = float | str | bool | datetime.datetime
"""What a column is compared with."""

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2}(?:T[0-9:.]+)?)
    | (?P<number>[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?)(?!\w)
    | (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    | `(?P<quoted>[^`]+)`
    | (?P<sign>==|!=|<=|>=|<|>|\(|\)|\[|\]|,)
    | (?P<word>[^\W\d]\w*(?:\.\w+)*)
    )""",
    re.VERBOSE,
)

_OPERATORS: Mapping[str, str] = {
    "==": "equal",
    "!=": "not_equal",
    "<": "less",
    "<=": "less_equal",
    ">": "greater",
    ">=": "greater_equal",
}
"""Arrow's names of comparisons."""

_LITERALS: Mapping[str, bool] = {"true": True, "false": False}

_RESERVED = frozenset({"and", "or", "not", "in", "is", *_LITERALS})

_ISO = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[T ][0-9:.]+)?", re.ASCII)

_UNORDERED = re.compile(
    r"[+-]?(0|[1-9][0-9]*)([.,][0-9]*)?|[0-9]{1,2}([./-])[0-9]{1,2}\3[0-9]{2,4}.*",
    re.ASCII,
)
"""Numbers, and dates with the year at the end: their order as texts is another."""

_EXACT = 2**53
"""From here on a float64 may be another whole number."""

_DEEP = 100
"""Parentheses in each other."""


class _Cells:
    """Columns by name, with null for what is missing."""

    def __init__(self, columns: Mapping[str, Arrow], marks: Marks) -> None:
        self._columns = columns
        self._marks = marks
        self._missing: dict[str, Mask] = {}

    def missing(self, name: str) -> Arrow:
        """Return which cells have no value, as an Arrow array."""
        if name not in self._missing:
            texts = self._marks.missing
            self._missing[name] = missing_mask(self._columns[name], texts)
        return pa.array(self._missing[name])

    def __getitem__(self, name: str) -> Arrow:
        cells = self._columns[name]
        return pc.if_else(self.missing(name), pa.scalar(None, cells.type), cells)

    def numbers(self, name: str) -> Arrow:
        """Return cells as numbers."""
        values, missing = NumberCells(name, "float64", self._marks).read(self[name])
        return pa.array(values, mask=missing)


_Node: TypeAlias = Callable[[_Cells], Arrow]
"""What says of each row whether it meets a condition: true, false or null."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Which rows are used.

    Attributes:
        names: the columns that it looks at.
    """

    names: tuple[str, ...]
    _node: _Node

    def meets(self, columns: Mapping[str, Arrow], marks: Marks) -> Mask:
        """Return which rows are used: (rows,) bool.

        Args:
            columns: Arrow arrays by name.
            marks: how numbers and missing values are written.

        Raises:
            CellError: at a cell that can not be compared.
        """
        cells = _Cells(columns, marks)
        made = pc.fill_null(self._node(cells), False)
        mask: Mask = made.to_numpy(zero_copy_only=False)
        return mask


class CellError(Exception):
    """A cell can not be compared.

    Attributes:
        name: its column.
        misfit: where and why.
    """

    def __init__(self, name: str, misfit: MisfitError) -> None:
        super().__init__(name, misfit)
        self.name = name
        self.misfit = misfit


def check(file: str, condition: Condition, known: Sequence[str]) -> None:
    """Refuse a condition over columns that are not there.

    Raises:
        DatasetError: with names near to it.
    """
    for name in condition.names:
        if known.count(name) == 1:
            continue
        like = nearest(name, known)
        raise DatasetError(
            file,
            "where names a column that is there more than once"
            if name in known
            else f"where names a column, and none of {len(known)} has this name",
            f"did you mean {quote(like)}?" if like else "correct the name",
            column=quote(name)[1:-1],
        )


def parse(file: str, text: str) -> Condition:
    """Return the condition that a text says.

    Args:
        file: for errors.
        text: the condition.

    Raises:
        DatasetError: pointing at the place that can not be read.
    """
    parser = _Parser(file, text)
    node = parser.either(0)
    if parser.kind:
        raise parser.error("and, or, or the end")
    return Condition(tuple(parser.names), node)


class _Parser:
    """Recursive descent, one token ahead."""

    def __init__(self, file: str, text: str) -> None:
        self._file = file
        self._text = text
        self._at = self._end = 0
        self.names: dict[str, None] = {}
        self.kind = self.token = ""
        self._next()

    def error(self, expected: str) -> DatasetError:
        """Return the error for the token that is next."""
        got = quote(self.token) if self.kind else "its end"
        return DatasetError(
            self._file,
            f"where: expected {expected} at character {self._at + 1}, got {got}",
            'write it like: year >= 2020 and sex in ["m", "f"]',
        )

    def either(self, depth: int) -> _Node:
        """Read ``a or b``."""
        found = [self._both(depth)]
        while self._skip("or"):
            found.append(self._both(depth))
        return _joined("or_kleene", found)

    def _both(self, depth: int) -> _Node:
        found = [self._one(depth)]
        while self._skip("and"):
            found.append(self._one(depth))
        return _joined("and_kleene", found)

    def _one(self, depth: int) -> _Node:
        if depth > _DEEP:
            raise self.error("fewer parentheses")
        if self._skip("not"):
            inner = self._one(depth + 1)
            return lambda cells: pc.invert(inner(cells))
        if self._skip("("):
            inner = self.either(depth + 1)
            self._expect(")")
            return inner
        return self._comparison()

    def _comparison(self) -> _Node:
        name = self.token
        if self.kind not in ("word", "quoted") or (
            self.kind == "word" and name in _RESERVED
        ):
            raise self.error("the name of a column (in backticks if it has spaces)")
        self.names[name] = None
        self._next()
        if self._skip("is"):
            contrary = self._skip("not")
            self._expect("missing")
            return lambda cells: pc.xor(cells.missing(name), contrary)
        contrary = self._skip("not")
        if self._skip("in"):
            self._expect("[")
            values = [self._literal()]
            while self._skip(","):
                values.append(self._literal())
            self._expect("]")
            found = [_compared(name, "equal", value) for value in values]
            inner = _joined("or_kleene", found)
            return (lambda cells: pc.invert(inner(cells))) if contrary else inner
        if contrary or self.token not in _OPERATORS or self.kind != "sign":
            raise self.error("in" if contrary else "==, !=, <, <=, >, >=, in or is")
        operator = _OPERATORS[self.token]
        self._next()
        value = self._literal()
        ordered = operator not in ("equal", "not_equal")
        if ordered and isinstance(value, str) and _UNORDERED.fullmatch(value):
            raise DatasetError(
                self._file,
                f"where: {quote(value)} is in quotes, and texts are ordered by letters",
                "write numbers without quotes, and dates as 2024-01-05",
            )
        return _compared(name, operator, value)

    def _literal(self) -> Literal:
        kind, token = self.kind, self.token
        value: Literal
        if kind == "number":
            value = float(token) if not token.lstrip("+-").isdigit() else int(token)
            if isinstance(value, int) and abs(value) >= 2**64:
                raise self.error("a whole number of at most 64 bits")
        elif kind == "text":
            value = re.sub(r"\\(.)", r"\1", token[1:-1])
        elif kind == "date":
            value = self._date(token)
        elif kind == "word" and token in _LITERALS:
            value = _LITERALS[token]
        else:
            raise self.error("a number, a text in quotes, or a date")
        self._next()
        return value

    def _date(self, token: str) -> datetime.datetime:
        try:
            return datetime.datetime.fromisoformat(token)
        except ValueError:
            raise self.error("a date that there is") from None

    def _skip(self, token: str) -> bool:
        if self.kind in ("word", "sign") and self.token == token:
            self._next()
            return True
        return False

    def _expect(self, token: str) -> None:
        if not self._skip(token):
            raise self.error(token)

    def _next(self) -> None:
        rest = self._text[self._end :]
        self._at = self._end + len(rest) - len(rest.lstrip())
        if not rest.strip():
            self.kind = self.token = ""
            return
        match = _TOKEN.match(self._text, self._end)
        if match is None or match.lastgroup is None:
            self.kind, self.token = "other", self._text[self._at :][:20]
            raise self.error("a name, a value or a sign")
        self.kind, self.token = match.lastgroup, match[match.lastgroup]
        self._end = match.end()


def _joined(how: str, nodes: Sequence[_Node]) -> _Node:
    def node(cells: _Cells) -> Arrow:
        found = nodes[0](cells)
        for other in nodes[1:]:
            found = getattr(pc, how)(found, other(cells))
        return found

    return node


def _compared(name: str, operator: str, value: Literal) -> _Node:
    def node(cells: _Cells) -> Arrow:
        try:
            compared, other = _alike(cells, name, value, operator)
        except MisfitError as error:
            raise CellError(name, error) from None
        return getattr(pc, operator)(compared, other)

    return node


def _alike(
    columns: _Cells, name: str, value: Literal, operator: str
) -> tuple[Arrow, Arrow]:
    """Return cells and a value in one type that compares as the value does."""
    cells = columns[name]
    kind = values_of(cells.type)
    cells = cells.cast(kind)
    text = is_text(kind)
    if text:
        cells = pc.utf8_trim_whitespace(cells)
    if isinstance(value, bool):
        if text:
            cells = _looked_up(cells)
        return _cast(cells, pa.bool_(), "true or false"), pa.scalar(value)
    if isinstance(value, str) and text:
        orders = operator not in ("equal", "not_equal")
        if not (orders and _ISO.fullmatch(value)):
            return cells, pa.scalar(value, kind)
    if isinstance(value, str):
        if not _ISO.fullmatch(value):
            raise _unlike(cells, f"a text, as {quote(value)} is")
        value = datetime.datetime.fromisoformat(value)
    if isinstance(value, datetime.datetime):
        zone = getattr(kind, "tz", None) and "UTC"
        made = _cast(cells, pa.timestamp("us", zone), "a date such as 2024-01-05")
        if zone:
            value = value.replace(tzinfo=datetime.UTC)
        return made, pa.scalar(value, made.type)
    if isinstance(value, int) and pa.types.is_integer(kind):
        if str(kind) != "uint64" and abs(value) < 2**63:
            return cells, pa.scalar(value)
        wide = pa.decimal128(20, 0)
        return cells.cast(wide), pa.scalar(decimal.Decimal(value), wide)
    if not (text or is_number(kind)):
        raise _unlike(cells, "a number", -1)
    if abs(value) >= _EXACT:
        raise MisfitError(
            -1,
            "expected a number below 2**53 to compare with, which is exact",
            "write it in quotes, to compare texts, or correct where",
        )
    # As the column stores it: 0.1 as a float32 is a little more than 0.1.
    stored = kind.to_pandas_dtype() if pa.types.is_floating(kind) else float
    return columns.numbers(name), pa.scalar(float(stored(value)))


def _looked_up(cells: Arrow) -> Arrow:
    """Return words for true and false as such; others as they are."""
    lower = pc.utf8_lower(cells)
    for value, word in ((1, "true"), (0, "false")):
        words = [one for one, meant in BOOLEANS.items() if meant == value]
        found = pc.is_in(lower, pa.array(words, lower.type))
        lower = pc.if_else(found, pa.scalar(word, lower.type), lower)
    return lower


def _cast(cells: Arrow, kind: Arrow, expected: str) -> Arrow:
    try:
        return cells.cast(kind, safe=not pa.types.is_integer(cells.type))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    for place, cell in enumerate(cells):
        try:
            pa.array([cell.as_py()], cells.type).cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise _unlike(cells[place:], expected, place) from None
    raise _unlike(cells, expected)


def _unlike(cells: Arrow, expected: str, place: int = 0) -> MisfitError:
    shown = quote(cells[0].as_py()) if is_text(cells.type) else str(cells.type)
    return MisfitError(
        place,
        f"expected {expected}, got {shown}",
        "correct where, or the cell",
    )
