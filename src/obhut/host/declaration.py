"""How an owner declares a data set: where it is, and what of it is used.

Rule: columns that are not named are not loaded; metadata that is not declared
public is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, TypeAlias

from msgspec import Struct

from obhut.protocol.limits import TAGS, TEXT_CHARACTERS

from .strict_toml import Document, Keys
from .wording import enumerate_names, quote

TableDtype: TypeAlias = Literal[
    "float32",
    "float64",
    "float16",
    "bool",
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
]
"""What cells and elements can be converted to."""

Format: TypeAlias = Literal["csv", "parquet", "npy", "npz", "safetensors"]

SUFFIXES: Mapping[str, Format] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".npy": "npy",
    ".npz": "npz",
    ".safetensors": "safetensors",
}
"""What a file is, by the end of its name."""


class Name(str):
    """A name of a worker, a peer or a data set."""

    __slots__ = ()


class Public(Struct, frozen=True, kw_only=True):
    """What others may know of a data set without computing with it.

    Leak: this goes to whoever may open a session.

    Attributes:
        names: the names of columns and arrays.
        types: the element types.
        rows: the number of rows; ``rounded`` to two significant digits, and never
            finer than tens. What is ``hidden`` behind a policy is gone through by
            programs, whose types and sizes of a row are public then.
    """

    names: bool = False
    types: bool = False
    rows: Literal["exact", "rounded", "hidden"] = "hidden"


class DatasetDeclaration(Struct, frozen=True, kw_only=True):
    """A data set and how to read it.

    Attributes:
        name: what it is found by.
        path: the file.
        format: what the file is; by default the end of its name says so.
        features: columns of a table, in order; ``*`` for all but the target. Of an
            ``.npz`` or ``.safetensors`` file, the name of one array.
        target: the column or array to predict.
        dtype: what features become; ``float32`` for tables, as stored for arrays.
        target_dtype: what the target becomes; like ``dtype``, and ``int64`` with
            ``classes``.
        classes: the target's texts; the first becomes 0, the second 1, …
        delimiter: what separates the cells of a CSV file.
        decimal: the decimal mark of a CSV file.
        missing: whether empty cells are refused, or become NaN.
        tags: what it is searched by.
        description: a sentence for others to read.
        public: what others may know of it.
    """

    name: Name
    path: Path
    format: Format | None = None
    features: str | tuple[str, ...] | None = None
    target: str | tuple[str, ...] | None = None
    dtype: TableDtype | None = None
    target_dtype: TableDtype | None = None
    classes: tuple[str | int, ...] = ()
    delimiter: str | None = None
    decimal: Literal[".", ","] = "."
    missing: Literal["refuse", "nan"] = "refuse"
    tags: tuple[str, ...] = ()
    description: str = ""
    public: Public = Public()

    @property
    def kind(self) -> Format | None:
        """What the file is, as declared, else as its name ends."""
        return self.format or SUFFIXES.get(self.path.suffix.lower())


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

    check(
        one.kind is not None,
        "path",
        f"{quote(one.path.name)} does not say what it is",
        f"end its name in {enumerate_names(tuple(SUFFIXES), 'or')}, or add format = …",
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
        listed = (chosen,) if isinstance(chosen, str) else chosen or ()
        check(
            chosen is None or (bool(listed) and all(listed)),
            key,
            "expected names of columns, got none",
            "name a column, or leave the key out",
        )
        for name, times in Counter(listed).items():
            check(times == 1, key, f"{quote(name)} is listed twice", "remove one")
    if one.kind in ("csv", "parquet"):
        _check_table(one, check)
    else:
        _check_arrays(one, check)
    check(
        one.missing == "refuse" or (one.dtype or "float32").startswith("float"),
        "missing",
        f'"nan" needs a dtype with a NaN, and {one.dtype} has none',
        'write dtype = "float32", or missing = "refuse"',
    )


Check: TypeAlias = Callable[[bool, str, str, str], None]


def _check_table(one: DatasetDeclaration, check: Check) -> None:
    check(
        one.features is not None or one.target is not None,
        "features",
        "is missing: a table's columns are used only if they are named",
        'add features = ["…"], or features = "*" for all but the target',
    )
    features = (one.features,) if isinstance(one.features, str) else one.features or ()
    target = (one.target,) if isinstance(one.target, str) else one.target or ()
    both = sorted({*features} & {*target})
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
        one.kind == "csv" or (one.delimiter is None and one.decimal == "."),
        "delimiter" if one.delimiter is not None else "decimal",
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
    check(
        one.decimal == "." or delimiter != ",",
        "decimal",
        "a comma can not separate cells and be the decimal mark as well",
        'add delimiter = ";", if that is what separates them',
    )


def _check_arrays(one: DatasetDeclaration, check: Check) -> None:
    for key, given in (
        ("classes", bool(one.classes)),
        ("delimiter", one.delimiter is not None),
        ("decimal", one.decimal != "."),
        ("features", one.kind == "npy" and one.features is not None),
        ("target", one.kind == "npy" and one.target is not None),
    ):
        check(
            not given,
            key,
            f"has no meaning for {one.kind} files",
            "save an .npz file of two named arrays"
            if key in ("features", "target")
            else "leave it out",
        )
    for key, chosen in (("features", one.features), ("target", one.target)):
        check(
            not isinstance(chosen, tuple),
            key,
            f"expected the name of one array of the {one.kind} file, got a list",
            f'write {key} = "…"',
        )
    check(
        one.target is not None or one.target_dtype is None,
        "target_dtype",
        "says something of a target, and there is none",
        'add target = "…"',
    )
