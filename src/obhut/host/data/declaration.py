"""How an owner declares a data set: where it is, and what of it is used.

Rule: columns that are not named are not loaded; metadata that is not declared
public is not.
"""

from __future__ import annotations

import datetime
import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from obhut.errors import DatasetError
from obhut.host.strict_toml import Document, Keys
from obhut.host.wording import enumerate_names, quote
from obhut.protocol.limits import TAGS, TEXT_CHARACTERS

from .where import parse
from .words import is_way

TableDtype: TypeAlias = Literal[
    "float32",
    "float64",
    "float16",
    "bfloat16",
    "bool",
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
]
"""What cells and elements can be converted to."""

Format: TypeAlias = Literal[
    "csv",
    "parquet",
    "npy",
    "npz",
    "safetensors",
    "images",
    "sqlite",
    "duckdb",
]

TABLES: frozenset[Format | None] = frozenset({"csv", "parquet", "sqlite", "duckdb"})
"""Those that have columns."""

SUFFIXES: Mapping[str, Format] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".npy": "npy",
    ".npz": "npz",
    ".safetensors": "safetensors",
    ".sqlite": "sqlite",
    ".db": "sqlite",
    ".duckdb": "duckdb",
}
"""What a file is, by the end of its name."""

INDEX = ".safetensors.index.json"
"""The end of the name of a file that says in which safetensors file what is."""

COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
"""Ends of names of text files that are compressed, behind the end that says what."""


class Name(str):
    """A name of a worker, a peer or a data set."""

    __slots__ = ()


class Public(Struct, frozen=True, kw_only=True):
    """What others may know of a data set without computing with it.

    Leak: this goes to whoever may open a session.

    Attributes:
        names: the names of columns and arrays.
        types: the element types.
        classes: the texts of classes and categories, in order.
        units: what columns are measured in.
        rows: the number of rows; ``rounded`` to two significant digits, and never
            finer than tens. What is ``hidden`` behind a policy is gone through by
            programs, whose types and sizes of a row are public then.
    """

    names: bool = False
    types: bool = False
    classes: bool = False
    units: bool = False
    rows: Literal["exact", "rounded", "hidden"] = "hidden"


class Encode(Struct, frozen=True, forbid_unknown_fields=True):
    """What a column's cells become, where one word does not say it: one key of three.

    Attributes:
        one_hot: categories, each of which becomes a column of 0 and 1, in this order.
        days: how a date is written, as in ``strptime``, or ``iso`` for 2024-01-05. It
            becomes a number of days.
        since: the date whose number of days is 0.
        parts: how a date is written, likewise. It becomes year, month and day, in a
            column each.
    """

    one_hot: tuple[str | int, ...] | None = None
    days: str | None = None
    since: datetime.date = datetime.date(1970, 1, 1)
    parts: str | None = None


Encoding: TypeAlias = (
    tuple[str | int, ...] | Encode | Literal["boolean", "number", "days", "parts"]
)
"""A list of categories, which become their places in it; ``boolean`` for 1 and 0;
``number`` for numbers that look like names; ``days`` and ``parts`` of dates, in ISO."""


class Fill(Struct, frozen=True, forbid_unknown_fields=True):
    """What a cell without a value becomes.

    Attributes:
        fill: a number, or one by column; or what is computed of the owner's own rows
            that have a value.
    """

    fill: float | dict[str, float] | Literal["mean", "median", "most frequent"]


class Pad(Struct, frozen=True, forbid_unknown_fields=True):
    """How sequences of several lengths become rows of one.

    Attributes:
        to: elements of a row; a longer sequence is refused.
        value: what stands behind the end of a shorter one.
    """

    to: Annotated[int, Meta(ge=1, le=2**31)]
    value: float = 0


class DatasetDeclaration(Struct, frozen=True, kw_only=True):
    """A data set and how to read it.

    Attributes:
        name: what it is found by.
        path: the file; a folder of parts, or a pattern with ``*`` that they match. An
            own loader needs none.
        format: what the file is; by default the end of its name says so.
        loader: an own function that returns the data: ``module:function``, of a module
            in the configuration's folder, or installed.
        loader_network: whether that function may open connections.
        query: what is asked of a database, in SQL.
        features: columns of a table, in order; ``*`` for all but the target. Of an
            ``.npz`` or ``.safetensors`` file, the name of one array. A table of names
            and columns makes a tensor of each name.
        target: the column or array to predict.
        exclude: columns that ``*`` leaves out.
        dtype: what features become; ``float32`` for tables, as stored for arrays. Of
            several feature tensors, one by name.
        target_dtype: what the target becomes; like ``dtype``, and ``int64`` where it
            has ``classes`` or is a column of categories.
        classes: the target's texts; the first becomes 0, the second 1, …
        encode: what columns of categories, words and dates become, by column.
        where: which rows are used: a condition such as ``year >= 2020``.
        split: shares by name, and ``seed``: a data set each.
        missing: whether cells without a value are refused, become NaN, are filled, or
            their rows are left out.
        missing_values: cells that have no value, besides empty ones and ``NA``.
        header: whether a text file's first row has names; by default found out.
        skip: lines above that, which are passed over.
        comment: what a line that is passed over begins with.
        encoding: a text file's encoding.
        delimiter: what separates the cells of a CSV file.
        decimal: the decimal mark of a CSV file.
        thousands: what groups the digits of a number of a CSV file.
        pad: how sequences of several lengths become rows of one.
        size: height and width of images.
        color: whether images become one channel or three.
        units: what a column is measured in, by column.
        keep: whether tensors are kept in memory or on the disk; by default what fits
            into a session's memory is in memory.
        requesters: who may use it; by default who may open a session.
        tags: what it is searched by.
        description: a sentence for others to read.
        public: what others may know of it.
    """

    name: Name
    path: Path = Path()
    format: Format | None = None
    loader: Path | None = None
    loader_network: bool = False
    query: str | None = None
    features: str | tuple[str, ...] | dict[str, str | tuple[str, ...]] | None = None
    target: str | tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    dtype: TableDtype | dict[str, TableDtype] | None = None
    target_dtype: TableDtype | None = None
    classes: tuple[str | int, ...] = ()
    encode: dict[str, Encoding] = {}
    where: str | None = None
    split: dict[str, float] = {}
    missing: Literal["refuse", "nan", "drop"] | Fill = "refuse"
    missing_values: tuple[str | int | float, ...] = ()
    header: bool | None = None
    skip: Annotated[int, Meta(ge=0)] = 0
    comment: str | None = None
    encoding: str | None = None
    delimiter: str | None = None
    decimal: Literal[".", ","] = "."
    thousands: Literal[",", ".", "'", " ", "_"] | None = None
    pad: Pad | int | None = None
    size: tuple[int, int] | None = None
    color: Literal["gray", "rgb"] | None = None
    units: dict[str, str] = {}
    keep: Literal["memory", "disk"] | None = None
    requesters: tuple[str, ...] | None = None
    tags: tuple[str, ...] = ()
    description: str = ""
    public: Public = Public()

    @property
    def kind(self) -> Format | None:
        """What the file is, as declared, else as its name ends."""
        if self.format is not None:
            return self.format
        path = self.path
        if path.name.lower().endswith(INDEX):
            return "safetensors"
        if path.suffix.lower() in COMPRESSED:
            path = path.with_suffix("")
        return SUFFIXES.get(path.suffix.lower())

    @property
    def file(self) -> str:
        """What errors call the place of the data, its path or its loader."""
        return str(self.path) if self.loader is None else self.loader.name

    @property
    def feature_columns(self) -> tuple[str, ...]:
        """The columns that are named as features, of all tensors."""
        tensors = self.features
        chosen = tensors.values() if isinstance(tensors, dict) else [tensors or ()]
        return tuple(
            name for one in chosen for name in ((one,) if isinstance(one, str) else one)
        )

    @property
    def target_columns(self) -> tuple[str, ...]:
        """The columns that are named as the target."""
        target = self.target
        return (target,) if isinstance(target, str) else target or ()

    def dtype_of(self, tensor: str) -> TableDtype | None:
        """Return what a tensor's elements become, if it is declared."""
        if tensor == "target":
            return self.target_dtype
        return self.dtype.get(tensor) if isinstance(self.dtype, dict) else self.dtype


def check_declaration(document: Document, keys: Keys, one: DatasetDeclaration) -> None:
    """Refuse a declaration that contradicts itself.

    Args:
        document: the configuration that it stands in.
        keys: the way to it.
        one: the declaration.

    Raises:
        ConfigurationError: naming the key.
    """

    def check(ok: bool, key: str, problem: str, advice: str) -> None:
        if not ok:
            raise document.error((*keys, key), problem, advice)

    if one.loader is not None:
        _check_loader(one, check)
    check(
        one.loader is not None or not one.loader_network,
        "loader_network",
        "says something of a loader, and there is no loader",
        "leave it out",
    )
    check(
        one.kind is not None or one.loader is not None,
        "path",
        f"{quote(one.path.name)} does not say what it is",
        f"end its name in {enumerate_names(tuple(SUFFIXES), 'or')}, add format = …, or "
        "let a loader of your own read it: loader = …",
    )
    check(
        len(one.tags) <= TAGS and all(len(t) <= TEXT_CHARACTERS for t in one.tags),
        "tags",
        f"expected at most {TAGS} tags of at most {TEXT_CHARACTERS:,} characters",
        "shorten them",
    )
    check(
        len(one.description) <= TEXT_CHARACTERS,
        "description",
        f"expected at most {TEXT_CHARACTERS:,} characters",
        "shorten it",
    )
    for key, chosen in (("features", one.features), ("target", one.target)):
        listed = (chosen,) if isinstance(chosen, str) else tuple(chosen or ())
        check(
            chosen is None or (bool(listed) and all(listed)),
            key,
            "expected names of columns, got none",
            "name a column, or leave the key out",
        )
        for name, times in Counter(listed).items():
            check(times == 1, key, f"{quote(name)} is listed twice", "remove one")
    if one.kind in TABLES:
        _check_table(one, check)
    elif one.loader is None:
        _check_arrays(one, check)
    dtypes = [*one.dtype.values()] if isinstance(one.dtype, dict) else [one.dtype]
    named = one.requesters
    check(
        named is None or bool(named),
        "requesters",
        "expected names or ids, got none",
        "name who may use it, or leave the key out for all who may open a session",
    )
    for name, times in Counter(named or ()).items():
        check(times == 1, "requesters", f"{quote(name)} is listed twice", "remove one")
    check(
        one.missing != "nan" or any("float" in (kind or "float32") for kind in dtypes),
        "missing",
        f'"nan" needs a dtype with a NaN, and {dtypes[0]} has none',
        'write dtype = "float32", or missing = "refuse"',
    )
    _check_split(one, check)


Check: TypeAlias = Callable[[bool, str, str, str], None]


def _check_table(one: DatasetDeclaration, check: Check) -> None:
    check(
        one.features is not None or one.target is not None,
        "features",
        "is missing: a table's columns are used only if they are named",
        'add features = ["…"], or features = "*" for all but the target',
    )
    tensors = one.features if isinstance(one.features, dict) else {"": one.features}
    for tensor, chosen in tensors.items():
        listed = (chosen,) if isinstance(chosen, str) else chosen or ()
        check(
            tensor != "target",
            "features",
            "a tensor of features can not be called target",
            "give it another name",
        )
        check(
            not tensor or (bool(listed) and all(listed)),
            "features",
            f"expected names of columns for {quote(tensor)}, got none",
            "name a column",
        )
        check(
            "*" not in listed or chosen == "*",
            "features",
            '"*" stands for all columns, beside which none is named',
            'write features = "*"',
        )
    target = one.target_columns
    both = sorted({*one.feature_columns} & {*target})
    check(
        not both,
        "features",
        f"{', '.join(map(quote, both))} is both a feature and the target",
        "name it in one of them",
    )
    check(
        one.target is not None or (one.target_dtype is None and not one.classes),
        "classes" if one.classes else "target_dtype",
        "says something of a target, and there is none",
        'add target = "…"',
    )
    for name, times in Counter(map(str, one.classes)).items():
        check(times == 1, "classes", f"{quote(name)} is listed twice", "remove one")
    check(
        not one.classes or not (one.target_dtype or "int64").startswith(("f", "b")),
        "target_dtype",
        f"expected an integer type for numbers of classes, got {one.target_dtype}",
        'write target_dtype = "int64", or leave it out',
    )
    check(
        not one.classes or len(target) == 1,
        "classes",
        f"expected one target column, got {len(target)}",
        "name one column",
    )
    bits = {"int8": 7, "uint8": 8}.get(one.target_dtype or "", 15)
    check(
        len(one.classes) <= 2**bits,
        "classes",
        f"{len(one.classes)} classes do not fit {one.target_dtype or 'here'}",
        'write target_dtype = "int64"' if bits < 15 else "list at most 32,768",
    )
    check(
        "*" in one.feature_columns or not one.exclude,
        "exclude",
        'says what "*" leaves out, and features are not "*"',
        'write features = "*", or leave exclude out',
    )
    _check_encode(one, target, check)
    _check_missing(one, check)
    if one.where is not None:
        problem = advice = ""
        try:
            parse("", one.where)
        except DatasetError as error:
            problem, advice = error.problem.removeprefix("where: "), error.advice
        check(not problem, "where", problem, advice)
    _check_text(one, check)


def _check_encode(
    one: DatasetDeclaration, target: tuple[str, ...], check: Check
) -> None:
    check(
        not one.classes or not {*target} & {*one.encode},
        "encode",
        "says something of the target, of which classes does already",
        "leave one of them out",
    )
    for name, encoding in one.encode.items():
        listed: tuple[str | int, ...] | None = None
        if isinstance(encoding, Encode):
            given = (encoding.one_hot, encoding.days, encoding.parts)
            check(
                sum(key is not None for key in given) == 1,
                "encode",
                f"expected one of one_hot, days and parts for {quote(name)}",
                'write it like { one_hot = ["a", "b"] } or { days = "%d.%m.%Y" }',
            )
            listed = encoding.one_hot
            for written in (encoding.days, encoding.parts):
                check(
                    written is None or is_way(written, encoding.parts is not None),
                    "encode",
                    f"expected how a whole date is written, got {quote(written)}",
                    'write it like "%d.%m.%Y", or "iso" for 2024-01-05',
                )
        elif isinstance(encoding, tuple):
            listed = encoding
        if listed is None:
            continue
        check(
            bool(listed),
            "encode",
            f"expected categories for {quote(name)}, got none",
            "list the texts of the column",
        )
        for text, times in Counter(map(str, listed)).items():
            problem = f"{quote(text)} of {quote(name)} is listed twice"
            check(times == 1, "encode", problem, "remove one")


def _check_missing(one: DatasetDeclaration, check: Check) -> None:
    if not isinstance(one.missing, Fill):
        return
    fill = one.missing.fill
    numbers = [*fill.values()] if isinstance(fill, dict) else [fill]
    check(
        bool(numbers),
        "missing",
        "expected a number for each column, got none",
        'write it like { fill = { age = 0 } }, or { fill = "mean" }',
    )
    check(
        all(isinstance(number, str) or math.isfinite(number) for number in numbers),
        "missing",
        "expected numbers in fill, got one that is not finite",
        'write missing = "nan", if it is to be NaN',
    )


def _check_split(one: DatasetDeclaration, check: Check) -> None:
    shares = {name: share for name, share in one.split.items() if name != "seed"}
    seed = one.split.get("seed", 0)
    check(
        bool(shares) or not one.split,
        "split",
        "expected shares, got none",
        "write it like { train = 0.8, test = 0.2, seed = 1 }",
    )
    check(
        all(share > 0 for share in shares.values()) and sum(shares.values()) < 1 + 1e-9,
        "split",
        "expected shares above 0 that are 1 together, or less",
        "write it like { train = 0.8, test = 0.2, seed = 1 }",
    )
    check(
        seed >= 0 and seed % 1 == 0,
        "split",
        f"expected a whole number for seed, got {quote(seed)}",
        "write seed = 1",
    )


def _check_text(one: DatasetDeclaration, check: Check) -> None:
    """Check what is said of text files."""
    given: tuple[tuple[str, bool], ...] = (
        ("delimiter", one.delimiter is not None),
        ("header", one.header is not None),
        ("skip", one.skip != 0),
        ("comment", one.comment is not None),
        ("encoding", one.encoding is not None),
        ("decimal", one.decimal != "."),
        ("thousands", one.thousands is not None),
    )
    for key, is_given in given:
        check(
            one.kind == "csv" or not is_given,
            key,
            "is for CSV files only",
            "leave it out",
        )
    delimiter = one.delimiter or ","
    check(
        len(delimiter) == 1 and delimiter not in '"\r\n\0 ' and not delimiter.isalnum(),
        "delimiter",
        f"expected one character such as , ; or \\t, got {quote(delimiter)}",
        'write delimiter = ";"',
    )
    comment = "#" if one.comment is None else one.comment
    check(
        bool(comment) and comment[0] not in f'"\r\n {delimiter}',
        "comment",
        f"expected a mark such as #, got {quote(comment)}",
        'write comment = "#", or leave it out',
    )
    known = True
    try:
        "".encode(one.encoding or "utf-8")
    except LookupError:
        known = False
    check(
        known,
        "encoding",
        f"{quote(one.encoding)} is no encoding of text",
        'write encoding = "cp1252", or another one that Python knows',
    )
    check(
        one.thousands != one.decimal,
        "thousands",
        f"{quote(one.thousands)} can not group digits and be the decimal mark as well",
        'add decimal = ",", if that is the decimal mark',
    )
    check(
        one.kind != "csv" or one.decimal == "." or delimiter != ",",
        "decimal",
        "a comma can not separate cells and be the decimal mark as well",
        'add delimiter = ";", if that is what separates them',
    )


def _check_loader(one: DatasetDeclaration, check: Check) -> None:
    name = "" if one.loader is None else one.loader.name
    parts = name.replace(":", ".").split(".")
    check(
        name.count(":") == 1
        and "." not in name.partition(":")[2]
        and all(part.isidentifier() for part in parts),
        "loader",
        f"expected a module and a function of it, got {quote(name)}",
        'write loader = "clinic:load" for the function load of clinic.py',
    )
    for key in ("format", "query", "delimiter", "encoding", "comment", "header"):
        check(
            getattr(one, key) is None,
            key,
            "says how a file is read, and the loader does that",
            "leave it out",
        )


_OF_TABLES: Mapping[str, object] = {
    "exclude": (),
    "encode": {},
    "where": None,
    "missing_values": (),
    "header": None,
    "skip": 0,
    "comment": None,
    "encoding": None,
    "delimiter": None,
    "decimal": ".",
    "thousands": None,
    "query": None,
    "pad": None,
    "units": {},
}
"""Keys that only tables have, with what stands for their absence."""

_OF_IMAGES: Mapping[str, object] = {"size": None, "color": None}


def of_tables(one: DatasetDeclaration) -> str:
    """Return a key that says something of columns; empty if none does."""
    return next(
        (key for key, absent in _OF_TABLES.items() if getattr(one, key) != absent), ""
    )


def _check_arrays(one: DatasetDeclaration, check: Check) -> None:
    images = one.kind == "images"
    what = "images" if images else f"{one.kind} files"
    key = of_tables(one)
    check(
        not key,
        key,
        f"has no meaning for {what}, which have no columns",
        "leave it out",
    )
    check(
        isinstance(one.missing, str) and one.missing != "drop",
        "missing",
        f"is filled, or left out, in tables only, and not in {what}",
        'write missing = "nan", or do it in a loader of your own',
    )
    for key in _OF_IMAGES if not images else ():
        check(
            getattr(one, key) is None,
            key,
            'has no meaning without format = "images"',
            "leave it out",
        )
    for key, given in (
        ("classes", bool(one.classes) and not images),
        ("features", one.kind in ("npy", "images") and one.features is not None),
        ("target", one.kind in ("npy", "images") and one.target is not None),
        ("missing", images and one.missing != "refuse"),
    ):
        check(
            not given,
            key,
            f"has no meaning for {what}",
            "save an .npz file of two named arrays"
            if key in ("features", "target") and not images
            else "leave it out",
        )
    for name in ("features", "target"):
        chosen = getattr(one, name)
        names = chosen.values() if isinstance(chosen, dict) else (chosen,)
        check(
            not any(isinstance(each, tuple) for each in names),
            name,
            f"expected the name of one array of the {one.kind} file, got a list",
            f'write {name} = "…"',
        )
    check(
        one.target is not None or images or one.target_dtype is None,
        "target_dtype",
        "says something of a target, and there is none",
        'add target = "…"',
    )
    check(
        one.size is None or min(one.size) > 0,
        "size",
        "expected height and width in pixels",
        "write size = [64, 64]",
    )
    for name, times in Counter(map(str, one.classes)).items():
        check(times == 1, "classes", f"{quote(name)} is listed twice", "remove one")
