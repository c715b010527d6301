"""Refuses a declaration that contradicts itself.

::

    check_declaration(declaration, check)        # ConfigurationError, or nothing

Rule: it looks at the declaration alone, and at no file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

from obhut.errors import DatasetError
from obhut.host.strict_toml import Check
from obhut.host.wording import enumerate_names, quote
from obhut.protocol.limits import TAGS, TEXT_CHARACTERS

from .declaration import (
    SUFFIXES,
    TABLES,
    DatasetDeclaration,
    Encode,
    Fill,
    listed,
    of_tables,
)
from .where import parse
from .words import is_way


def check_declaration(one: DatasetDeclaration, check: Check) -> None:
    """Refuse a declaration that contradicts itself.

    Raises:
        ConfigurationError: naming the key.
    """
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
        columns = listed(chosen)
        check(
            chosen is None or (bool(columns) and all(columns)),
            key,
            "expected names of columns, got none",
            "name a column, or leave the key out",
        )
        _check_each_once(check, key, columns)
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
    _check_each_once(check, "requesters", named or ())
    check(
        one.missing != "nan" or any("float" in (kind or "float32") for kind in dtypes),
        "missing",
        f'"nan" needs a dtype with a NaN, and {dtypes[0]} has none',
        'write dtype = "float32", or missing = "refuse"',
    )
    _check_split(one, check)


def _check_each_once(
    check: Check, key: str, listed: Iterable[str | int], of: str = ""
) -> None:
    for name, times in Counter(map(str, listed)).items():
        check(times == 1, key, f"{quote(name)}{of} is listed twice", "remove one")


def _check_table(one: DatasetDeclaration, check: Check) -> None:
    check(
        one.features is not None or one.target is not None,
        "features",
        "is missing: a table's columns are used only if they are named",
        'add features = ["…"], or features = "*" for all but the target',
    )
    tensors = one.features if isinstance(one.features, dict) else {"": one.features}
    for tensor, chosen in tensors.items():
        columns = listed(chosen)
        check(
            tensor != "target",
            "features",
            "a tensor of features can not be called target",
            "give it another name",
        )
        check(
            not tensor or (bool(columns) and all(columns)),
            "features",
            f"expected names of columns for {quote(tensor)}, got none",
            "name a column",
        )
        check(
            "*" not in columns or chosen == "*",
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
    _check_each_once(check, "classes", one.classes)
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
        texts: tuple[str | int, ...] | None = None
        if isinstance(encoding, Encode):
            given = (encoding.one_hot, encoding.days, encoding.parts)
            check(
                sum(key is not None for key in given) == 1,
                "encode",
                f"expected one of one_hot, days and parts for {quote(name)}",
                'write it like { one_hot = ["a", "b"] } or { days = "%d.%m.%Y" }',
            )
            texts = encoding.one_hot
            for written in (encoding.days, encoding.parts):
                check(
                    written is None or is_way(written, encoding.parts is not None),
                    "encode",
                    f"expected how a whole date is written, got {quote(written)}",
                    'write it like "%d.%m.%Y", or "iso" for 2024-01-05',
                )
        elif isinstance(encoding, tuple):
            texts = encoding
        if texts is None:
            continue
        check(
            bool(texts),
            "encode",
            f"expected categories for {quote(name)}, got none",
            "list the texts of the column",
        )
        _check_each_once(check, "encode", texts, f" of {quote(name)}")


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


_OF_IMAGES: Mapping[str, object] = {"size": None, "color": None}


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
    _check_each_once(check, "classes", one.classes)
