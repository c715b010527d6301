"""Cells of text: which of them have no value, and which are words for true and false.

Rule: spaces around a cell, and upper and lower case, make no difference here.
"""

from __future__ import annotations

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
}
"""Words of a column that is declared as ``boolean``."""

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none"})
"""Cells that say that there is no value."""


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
    """Return which cells are empty."""
    empty = cells.is_null()
    if is_text(cells.type):
        trimmed = pc.utf8_trim_whitespace(cells)
        empty = pc.or_(empty, pc.fill_null(pc.equal(trimmed, ""), True))
    mask: Mask = empty.to_numpy(zero_copy_only=False)
    return mask
