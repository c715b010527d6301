"""A ``[[dataset]]`` table for a file, from a look into it.

::

    suggested = suggest(Path("export.csv"))
    suggested.declaration                        # can be loaded as it is
    print(suggested.toml)                        # to be pasted into worker.toml

Rules:

- What is suggested loads, as far as the rows show that were looked at; what can't be
  decided from a file, such as which column is to be predicted, is a comment.
- Columns whose texts are many, and those that look like names of rows, are left out.
- Owners of a study must list categories in one order: they are suggested sorted.

Leak: a suggestion quotes texts of the data. It is for its owner alone.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from obhut.errors import DatasetError
from obhut.host.wording import quote

from . import image_folders, opening, parts, sql
from .arrow import pa
from .declaration import TABLES, DatasetDeclaration, Format, Name
from .source import Arrow, Source
from .text_blocks import byte_order, open_bytes
from .words import BOOLEANS, DATES, MISSING, is_number, is_text

ROWS = 200_000
"""Rows that are looked at."""

CATEGORIES = 20
"""Different texts at most that make a column one of categories."""

_TEXTS = frozenset({".txt", ".dat", ".data", ".tab", ".asc"})
"""Ends of names of files that are looked at as if they were CSV."""

_HEAD = 2**20
"""Bytes that encoding and delimiter are found by."""

_SEEN = 1_000
"""Different cells of a column that are told apart."""

_MARKS: Mapping[tuple[str, str | None], str] = {
    (".", None): r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?",
    (",", None): r"[+-]?(\d+,?\d*|,\d+)([eE][+-]?\d+)?",
    (".", ","): r"[+-]?(\d{1,3}(,\d{3})*|\d+)(\.\d*)?",
    (",", "."): r"[+-]?(\d{1,3}(\.\d{3})*|\d+)(,\d*)?",
    (".", "'"): r"[+-]?(\d{1,3}(['\u2019]\d{3})*|\d+)(\.\d*)?",
    (",", " "): r"[+-]?(\d{1,3}([ \u00a0\u202f]\d{3})*|\d+)(,\d*)?",
}
"""How numbers are written, by decimal mark and what groups digits; plainest first."""

_NONE = re.compile(
    r"[-?.*/\\_#]{1,5}|x{2,5}|\\n|#[a-z]+(/[a-z0-9]+)?[!?]?|"
    r"\(?k\. ?a\.?\)?|n\.? ?a\.?|#n/a|<na>|nil|unknown|unbekannt|"
    r"missing|fehlt|keine? angaben?|not available|inconnu",
    re.IGNORECASE,
)
"""Texts that stand for no value, where they come among numbers or categories."""

_WITH_TIME = re.compile(r"\d[T ](?!00:00(:00(\.0*)?)?(Z|[+-]00:?(00)?)?$)\d\d:\d\d")
"""A date with a time of day that is not midnight."""

_NAMES = re.compile(
    r"(.*[_ .-])?(id|nr|no|num|number|uuid|guid|key|mrn|index)", re.IGNORECASE
)
"""Names of columns that name rows."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A data set, as its file looks.

    Attributes:
        declaration: what can be loaded.
        toml: that as a table of a configuration, with comments.
    """

    declaration: DatasetDeclaration
    toml: str


@dataclass(slots=True)
class _Plan:
    """What a table is to say, and why."""

    keys: dict[str, object] = field(default_factory=dict)
    comments: list[str] = field(default_factory=list)


def suggest(path: Path) -> Suggestion:
    """Return a table for a file or a folder.

    Args:
        path: the file.

    Raises:
        DatasetError: if nothing is known of such a file, or it can't be read.
        OSError: if it can't be opened.
    """
    bare = DatasetDeclaration(name=_name(path), path=path)
    plan = _Plan()
    if path.is_dir() and bare.kind is None:
        _folder(path, plan)
    if path.suffix.lower() in _TEXTS:
        plan.keys["format"] = "csv"
    kind = _declared(bare, plan).kind
    if kind is None:
        raise DatasetError(str(path), "does not say what it is", "declare its format")
    if kind == "csv":
        _text(_declared(bare, plan), plan)
    elif kind in sql.LISTING:
        _database(_declared(bare, plan), kind, plan)
    if kind in TABLES:
        plan.keys["features"] = "*"
        try:
            with opening.opened(_declared(bare, plan), kind) as source:
                _table(source, plan)
        except DatasetError as error:
            if "header = true" not in error.advice:
                raise
            plan.keys["header"] = True
            plan.comments.append(f"header: or false, for {error.problem}")
            with opening.opened(_declared(bare, plan), kind) as source:
                _table(source, plan)
    return Suggestion(_declared(bare, plan), _toml(bare, plan))


def _declared(bare: DatasetDeclaration, plan: _Plan) -> DatasetDeclaration:
    told = {"name": str(bare.name), "path": str(bare.path), **plan.keys}
    return msgspec.convert(
        told, DatasetDeclaration, dec_hook=lambda kind, value: kind(value)
    )


def _name(path: Path) -> Name:
    stem = path.name.split(".")[0] or path.resolve().name
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-_.")
    return Name(name[:40] or "data")


# --- folders and databases --------------------------------------------------------


def _folder(path: Path, plan: _Plan) -> None:
    """Say what a folder holds, if it is of images; else its parts say it."""
    inside = sorted(one for one in path.rglob("*") if not one.name.startswith("."))
    kinds = Counter(one.suffix.lower() for one in inside if one.is_file())
    if not kinds:
        raise DatasetError(str(path), "has no files", "name a file or a folder of some")
    most, _ = kinds.most_common(1)[0]
    if most in image_folders.ENDS:
        plan.keys["format"] = "images"
        plan.keys["size"] = [224, 224]
        plan.comments.append("size: height and width that all images are brought to")
    else:
        kind = DatasetDeclaration(name=Name("x"), path=Path("x" + most)).kind
        if kind is not None:
            plan.keys["format"] = kind


def _database(declaration: DatasetDeclaration, kind: Format, plan: _Plan) -> None:
    """Name the first table of a database, and the others in a comment."""
    listing = msgspec.structs.replace(declaration, query=sql.LISTING[kind])
    with opening.opened(listing, kind) as source:
        tables = [
            str(name)
            for batch in source.batches([0])
            for name in batch.column(0).to_pylist()
        ]
    if not tables:
        raise DatasetError(
            declaration.file, "has no tables", "fill it, or name another file"
        )
    plan.keys["query"] = f"select * from {sql.quoted(tables[0])}"  # noqa: S608 # the owner's own
    if tables[1:]:
        plan.comments.append(
            "it has more tables: " + ", ".join(map(quote, tables[1:9]))
        )


# --- text files -------------------------------------------------------------------


def _text(declaration: DatasetDeclaration, plan: _Plan) -> None:
    """Find a text file's encoding, delimiter, comments and lines above the table."""
    found = parts.find(declaration)
    path = found[0].declaration.path if found else declaration.path
    with open_bytes(path) as stream:
        head = stream.read(_HEAD)
    encoding = _encoding(head)
    if encoding is not None:
        plan.keys["encoding"] = encoding
    decoder = codecs.getincrementaldecoder(encoding or _by_mark(head))(errors="replace")
    text = decoder.decode(head).removeprefix("\ufeff")
    lines = text.splitlines()[:500]
    if len(head) == _HEAD:
        lines = lines[:-1]
    plain = [line for line in lines if not line.startswith("#")]
    if len(plain) < len(lines) and not _rows_begin_so(lines, plain):
        plan.keys["comment"] = "#"
        lines = plain
    told = re.fullmatch("sep=(.)", lines[0]) if lines else None
    delimiter, width, skip = _delimiter(lines[1:] if told else lines)
    skip += bool(told)
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    if delimiter != usual and width > 1:
        plan.keys["delimiter"] = delimiter
    if skip:
        plan.keys["skip"] = skip


def _rows_begin_so(lines: Sequence[str], plain: Sequence[str]) -> bool:
    """Return whether lines with # are rows: a name such as #id, or #N/A of Excel."""
    delimiter, width, _ = _delimiter(plain)
    return any(
        re.match("#[^ ]", line)
        and (line.count(delimiter) + 1 == width > 1 or bool(_NONE.fullmatch(line)))
        for line in lines
    )


def _by_mark(head: bytes) -> str:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    return "utf-8-sig"


def _encoding(head: bytes) -> str | None:
    """Return an encoding that has to be named; None for those that are found."""
    if _by_mark(head) == "utf-16":
        return None
    if b"\0" in head:
        return "utf-16" + byte_order(head)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        try:
            head.decode("cp1252")
        except UnicodeDecodeError:
            return "latin-1"
        return "cp1252"
    return None


def _delimiter(lines: Sequence[str]) -> tuple[str, int, int]:
    """Return what separates cells, how many a row has, and lines above the table."""
    best = (",", 1, 0)
    most = 0.0
    for one in ",;\t|":
        rows = list(csv.reader(io.StringIO("\n".join(lines)), delimiter=one))
        widths = [len(row) for row in rows if row]
        if not widths:
            continue
        width, times = Counter(widths).most_common(1)[0]
        score = (width > 1) * times / len(widths) + width / 1e4
        if score > most:
            skip = 0
            if times > 2 and width > 1:
                skip = next(i for i, row in enumerate(rows) if len(row) == width)
            best, most = (one, width, skip), score
    return best


# --- columns ----------------------------------------------------------------------


class _Profile:
    """What the cells of a column of text look like."""

    def __init__(self) -> None:
        self.rows = 0
        self.missing = 0
        self.seen: Counter[str] = Counter()
        self.many = False
        self.matches: Counter[object] = Counter()
        self.zeros = 0
        self.long = 0
        self.far = 0
        self.timed = False

    def add(self, cells: Iterable[str | None]) -> None:
        """Take cells in."""
        for cell in cells:
            self.rows += 1
            text = "" if cell is None else cell.strip()
            if text.lower() in MISSING:
                self.missing += 1
            elif text in self.seen or len(self.seen) < _SEEN:
                self.seen[text] += 1
            else:
                self.many = True
                self._match(text, 1)

    def finish(self) -> None:
        """Count of all cells what they look like."""
        for text, times in self.seen.items():
            self._match(text, times)

    def _match(self, text: str, times: int) -> None:
        for mark, pattern in _NUMBERS.items():
            if pattern.fullmatch(text):
                self.matches[mark] += times
        for way, pattern in DATES.items():
            if pattern.fullmatch(text):
                self.matches[way] += times
        if _WITH_TIME.search(text):
            self.timed = True
        if re.fullmatch(r"[+-]?[1-9]\d{7,}[.,]\d*", text, re.ASCII):
            self.far += times
        if re.fullmatch(r"[+-]?0\d+", text):
            self.zeros += times
        digits = text.lstrip("+-")
        if digits.isascii() and digits.isdigit() and int(digits[:400]) > 2**24:
            self.long += times

    @property
    def values(self) -> int:
        """How many cells have a value."""
        return self.rows - self.missing


_NUMBERS = {mark: re.compile(one, re.ASCII) for mark, one in _MARKS.items()}


def _table(source: Source, plan: _Plan) -> None:
    """Look at rows, and say what their columns become."""
    places = [p for p in range(len(source.names)) if p not in source.aside]
    texts = {
        place: _Profile()
        for place in places
        if is_text(source.types[place]) or pa.types.is_dictionary(source.types[place])
    }
    typed = {p: _Typed(source.types[p]) for p in places if p not in texts}
    rows = 0
    for batch in source.batches(places):
        left = batch.slice(0, ROWS - rows)
        for column, place in zip(left.columns, places, strict=True):
            if place in texts:
                texts[place].add(column.to_pylist())
            else:
                typed[place].add(column)
        rows += left.num_rows
        if rows == ROWS:
            plan.comments.append(f"the first {ROWS:,} rows were looked at")
            break
    if not rows:
        raise DatasetError("", "has no rows", "add rows to it")
    for one in texts.values():
        one.finish()
    decimal, thousands = _mark(texts.values())
    if decimal != ".":
        plan.keys["decimal"] = decimal
    if thousands is not None:
        plan.keys["thousands"] = thousands
    chooser = _Chooser((decimal, thousands))
    times = Counter(source.names)
    for place in places:
        name = str(source.names[place])
        if times[name] > 1:
            chooser.leave(name, "more than one column has this name")
        elif place in texts:
            chooser.take(name, texts[place])
        else:
            typed[place].choose(name, chooser)
    chooser.write(plan, len({source.names[place] for place in places}))


def _mark(profiles: Iterable[_Profile]) -> tuple[str, str | None]:
    """Return how most numbers are written: decimal mark, and what groups digits."""
    score: Counter[tuple[str, str | None]] = Counter()
    for one in profiles:
        if any(one.matches[way] >= 0.9 * one.values > 0 for way in DATES):
            continue
        for mark in _MARKS:
            if one.matches[mark] >= 0.5 * one.values > 0:
                score[mark] += one.matches[mark]
    best = max(score.values(), default=0)
    return next((mark for mark in _MARKS if score[mark] == best), (".", None))


class _Typed:
    """What a column looks like that has a type."""

    def __init__(self, kind: Arrow) -> None:
        self._kind = kind
        self._whole, self._lost, self._timed = True, False, False
        self._nearest = np.inf
        self._values = 0
        self.missing = 0

    def add(self, column: Arrow) -> None:
        """Take values in."""
        types, kind = pa.types, self._kind
        self.missing += column.null_count
        column = column.drop_null()
        self._values += len(column)
        if types.is_timestamp(kind):
            day = column.cast(pa.date32()).cast(kind)
            self._timed |= not column.equals(day)
        elif types.is_integer(kind) or types.is_floating(kind):
            values = column.to_numpy(zero_copy_only=False).astype(np.float64)
            nan = np.isnan(values)
            self.missing += int(nan.sum())
            values = values[~nan]
            with np.errstate(over="ignore"):
                self._lost |= bool((values.astype(np.float32) != values).any())
            self._whole &= bool((values == np.rint(values)).all())
            self._nearest = min(self._nearest, np.abs(values).min(initial=np.inf))

    def choose(self, name: str, chooser: _Chooser) -> None:
        """Say what it becomes."""
        types, kind = pa.types, self._kind
        if not self._values:
            return chooser.leave(name, "no values")
        chooser.missing += self.missing
        if types.is_list(kind):
            chooser.lists.append(name)
        if self._timed:
            chooser.leave(name, _TIMED)
        elif types.is_date(kind) or types.is_timestamp(kind):
            chooser.encode[name] = "days"
        elif self._lost and (self._whole or self._nearest >= 2**24):
            chooser.leave(name, "numbers that float32 would change")
        elif not is_number(kind):
            chooser.leave(name, f"{kind}: name it alone, or as a tensor of its own")
        return None


_TIMED = 'times: encode as "parts", or as "days" with dtype = "float64"'


class _Chooser:
    """Decides what each column becomes."""

    def __init__(self, mark: tuple[str, str | None]) -> None:
        self._mark = mark
        self.encode: dict[str, object] = {}
        self.missing = 0
        self.lists: list[str] = []
        self._left: dict[str, str] = {}
        self._none: dict[str, None] = {}

    def leave(self, name: str, why: str) -> None:
        """Leave a column out."""
        self._left[name] = why

    def take(self, name: str, one: _Profile) -> None:
        """Decide on a column of text."""
        self.missing += one.missing
        if not one.values:
            return self.leave(name, "no values")
        odd = self._odd(one, _NUMBERS[self._mark])
        dates = self._dates(one)
        if dates is not None and one.timed:
            return self.leave(name, _TIMED)
        if dates is not None:
            return self._date(name, dates)
        if odd is not None:
            return self._number(name, one, odd)
        texts = [text for text in one.seen if not _NONE.fullmatch(text)]
        if len(texts) < 2:
            texts = [*one.seen]  # such as - and +
        none = [text for text in one.seen if text not in texts]
        lower = {text.lower() for text in texts}
        if not one.many and len(lower) <= 2 and lower <= BOOLEANS.keys() and lower:
            self._forget(none, one)
            self.encode[name] = "boolean"
        elif not one.many and 0 < len(texts) <= CATEGORIES and len(texts) < one.values:
            self._forget(none, one)
            self.encode[name] = sorted(texts)
        else:
            many = f"more than {_SEEN:,}" if one.many else f"{len(texts):,}"
            return self.leave(name, f"text, {many} different")
        return None

    def _number(self, name: str, one: _Profile, odd: Sequence[str]) -> None:
        counts_up = not one.many and len(one.seen) == one.values == one.rows
        named = _NAMES.fullmatch(name.strip()) is not None
        if one.zeros:
            self.leave(name, "numbers with leading zeros, such as codes have")
        elif one.long or one.far == one.values:
            self.leave(name, "numbers that float32 would change")
        elif named and (counts_up or one.many):
            self.leave(name, "it names the rows")
        else:
            self._forget(odd, one)

    def _date(self, name: str, ways: Sequence[str]) -> None:
        if len(ways) > 1:
            formats = " or ".join(f'{{ days = "{way}" }}' for way in ways)
            self.leave(name, f"dates; which is the month? encode it as {formats}")
        else:
            self.encode[name] = "days" if ways[0] == "iso" else {"days": ways[0]}

    def _dates(self, one: _Profile) -> list[str] | None:
        for way, pattern in DATES.items():
            odd = self._odd(one, pattern)
            if odd is not None:
                self._forget(odd, one)
                other = {"%d/%m/%Y": "%m/%d/%Y"}.get(way)
                if other and one.matches[other] == one.matches[way]:
                    return [way, other]
                return [way]
        return None

    def _odd(self, one: _Profile, fits: re.Pattern[str]) -> list[str] | None:
        """Return the texts that don't fit, if they are few and stand for no value."""
        odd = [text for text in one.seen if not fits.fullmatch(text)]
        if len(odd) > 3 or len(odd) == len(one.seen):
            return None
        if not all(_NONE.fullmatch(text) for text in odd):
            return None
        return odd

    def _forget(self, texts: Iterable[str], one: _Profile) -> None:
        for text in texts:
            self._none[text] = None
            self.missing += one.seen[text]

    def write(self, plan: _Plan, columns: int) -> None:
        """Write all that was decided, of so many columns."""
        if self.lists and len(self._left) == columns:
            plan.keys["features"] = self.lists[0]
            self._left = {}
        if self._none:
            plan.keys["missing_values"] = list(self._none)
        if self.missing:
            plan.keys["missing"] = "nan"
            plan.comments.append(
                'cells have no value: missing may be "nan", "drop", or { fill = … }'
            )
        if self.encode:
            plan.keys["encode"] = self.encode
        if self._left:
            plan.keys["exclude"] = list(self._left)
            plan.comments += [
                f"left out: {quote(name)}: {why}" for name, why in self._left.items()
            ]


# --- the table's text -------------------------------------------------------------


def _toml(bare: DatasetDeclaration, plan: _Plan) -> str:
    keys: dict[str, object] = {"name": str(bare.name), "path": str(bare.path)}
    keys |= plan.keys
    lines = ["[[dataset]]"]
    lines += [f"{_key(name)} = {_value(value)}" for name, value in keys.items()]
    if keys.get("features") == "*":
        lines.append('# target = "…"          # which column is to be predicted')
    lines.append('# public = { names = true, rows = "rounded" }')
    lines += [f"# {comment}" for comment in plan.comments]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    bare = re.fullmatch(r"[A-Za-z0-9_-]+", name, re.ASCII)
    return name if bare else _value(name)


def _value(value: object) -> str:
    if isinstance(value, dict):
        inside = (f"{_key(str(key))} = {_value(one)}" for key, one in value.items())
        return "{ " + ", ".join(inside) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str):
        # TOML has JSON's escapes, and wants one more character escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
