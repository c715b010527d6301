"""How an owner declares a data set: where it is, and what of it is used.

Rule: columns that are not named are not loaded; metadata that is not declared
public is not.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

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
        return tuple(name for one in chosen for name in listed(one))

    @property
    def target_columns(self) -> tuple[str, ...]:
        """The columns that are named as the target."""
        return listed(self.target)

    def dtype_of(self, tensor: str) -> TableDtype | None:
        """Return what a tensor's elements become, if it is declared."""
        if tensor == "target":
            return self.target_dtype
        return self.dtype.get(tensor) if isinstance(self.dtype, dict) else self.dtype


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


def of_tables(one: DatasetDeclaration) -> str:
    """Return a key that says something of columns; empty if none does."""
    return next(
        (key for key, absent in _OF_TABLES.items() if getattr(one, key) != absent), ""
    )


def listed(chosen: str | Iterable[str] | None) -> tuple[str, ...]:
    """Return the columns that a key names, be it one, several or none."""
    return (chosen,) if isinstance(chosen, str) else tuple(chosen or ())
