"""Cells of text: which of them have no value, and which are words for true and false.

Rule: spaces around a cell, and upper and lower case, make no difference here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .arrow import pa, pc
from .source import Arrow

Mask: TypeAlias = npt.NDArray[np.bool_]
"""What is true of each row."""

WORDS: Mapping[str, int] = {"yes": 1, "no": 0, "true": 1, "false": 0}
"""Words that are numbers without being declared."""

BOOLEANS: Mapping[str, int] = {
    **dict.fromkeys(("1", "1.0", "yes", "y", "true", "t", "on"), 1),
    **dict.fromkeys(("0", "0.0", "no", "n", "false", "f", "off"), 0),
    **dict.fromkeys(("ja", "j", "wahr", "oui", "vrai", "si", "sí"), 1),
    **dict.fromkeys(("nein", "falsch", "non", "faux"), 0),
    **dict.fromkeys(("sì", "vero", "verdadero", "s", "sim", "verdadeiro", "waar"), 1),
    **dict.fromkeys(("falso", "não", "nao", "onwaar", "nee", "nej", "nei"), 0),
    **dict.fromkeys(("tak", "prawda", "ano", "evet", "igen", "kyllä", "да", "是"), 1),
    **dict.fromkeys(("nie", "fałsz", "ne", "hayır", "nem", "ei", "нет", "否"), 0),  # noqa: RUF001 # Turkish
}
"""Words of a column that is declared as ``boolean``."""

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none"})
"""Cells that say that there is no value."""

DATES: Mapping[str, re.Pattern[str]] = {
    "iso": re.compile(
        r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?)?", re.ASCII
    ),
    "%d.%m.%Y": re.compile(r"\d{1,2}\.\d{1,2}\.\d{4}", re.ASCII),
    "%d/%m/%Y": re.compile(r"(0?[1-9]|[12]\d|3[01])/(0?[1-9]|1[0-2])/\d{4}", re.ASCII),
    "%m/%d/%Y": re.compile(r"(0?[1-9]|1[0-2])/(0?[1-9]|[12]\d|3[01])/\d{4}", re.ASCII),
    "%d-%m-%Y": re.compile(r"\d{1,2}-\d{1,2}-\d{4}", re.ASCII),
    "%Y/%m/%d": re.compile(r"\d{4}/\d{1,2}/\d{1,2}", re.ASCII),
    "%d%b%Y": re.compile(
        r"\d{1,2}(?i:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)\d{4}", re.ASCII
    ),
    "%H:%M": re.compile(r"([01]?\d|2[0-3]):[0-5]\d", re.ASCII),
    "%H:%M:%S": re.compile(r"([01]?\d|2[0-3])(:[0-5]\d){2}", re.ASCII),
    "%Y%m%d": re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])", re.ASCII),
}
"""How dates are written, as ``encode`` calls it; what fits two of them is either."""


DATE = re.compile("%[-aAbBcdDFgGhjmuUVwWxyY]")
"""What makes the way a date is written one that has more than a time of day."""

_YEAR = re.compile("%[cDFgGxyY]")


def is_way(written: str, parts: bool) -> bool:
    """Return whether dates can be written so: with a year, or as times of day.

    Args:
        written: as in ``strptime``, or ``iso``.
        parts: whether year, month and day are asked for.
    """
    is_time = "%" in written and not DATE.search(written) and not parts
    return written == "iso" or bool(_YEAR.search(written)) or is_time


def is_text(kind: Arrow) -> bool:
    """Return whether a type is one of texts."""
    return str(kind) in ("string", "large_string", "string_view")


def is_number(kind: Arrow) -> bool:
    """Return whether a type is one of numbers, or of nothing."""
    types = pa.types
    return bool(
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_boolean(kind)
        or types.is_decimal(kind)
        or types.is_null(kind)
    )


def values_of(kind: Arrow) -> Arrow:
    """Return the type of a column's values, each of which a dictionary has once."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def missing_mask(cells: Arrow, others: frozenset[str] = frozenset()) -> Mask:
    """Return which cells have no value: null, NaN, or a text that says so.

    Args:
        cells: an Arrow array.
        others: further texts that say so.
    """
    missing = cells.is_null(nan_is_null=True)
    if is_text(cells.type):
        trimmed = pc.utf8_trim_whitespace(cells)
        words = pa.array(sorted(MISSING), cells.type)
        missing = pc.or_(missing, pc.is_in(pc.utf8_lower(trimmed), words))
        if others:
            words = pa.array(sorted(others), cells.type)
            missing = pc.or_(missing, pc.is_in(trimmed, words))
    mask: Mask = missing.to_numpy(zero_copy_only=False)
    return mask


def blank_mask(cells: Arrow) -> Mask:
    """Return which cells are text without a letter; those without a value are not."""
    if not is_text(cells.type):
        return np.zeros(len(cells), np.bool_)
    empty = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(cells), ""), False)
    mask: Mask = empty.to_numpy(zero_copy_only=False)
    return mask
