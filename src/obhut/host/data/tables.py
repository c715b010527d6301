"""Which columns of a table become which tensor.

Rules:

- A column is used if it is named, or if features are ``*`` and it is no target.
- A column named alone makes a tensor of shape (rows,), a list of columns one of
  shape (rows, columns).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from obhut.errors import DatasetError
from obhut.host.wording import nearest, quote

from .declaration import DatasetDeclaration
from .numbers import Elements, MisfitError

CELLS = 65_536
"""Cells that are converted at a time."""


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor that is made of a table.

    Attributes:
        tensor: its name: ``features`` or ``target``.
        columns: the names of its columns, in order.
        places: where they are in a row of the table, from 0.
        alone: whether there is no dimension for the columns.
        dtype: the element type.
        classes: the number of each text, if it is a column of texts.
        nan: whether a missing value becomes NaN.
    """

    tensor: str
    columns: tuple[str, ...]
    places: tuple[int, ...]
    alone: bool
    dtype: str
    classes: Mapping[str, int]
    nan: bool

    def shape(self, rows: int) -> tuple[int, ...]:
        """Return the tensor's shape."""
        return (rows,) if self.alone else (rows, len(self.columns))


def parts(
    declaration: DatasetDeclaration, header: Sequence[str], line: int = 0
) -> tuple[Part, ...]:
    """Find the declared columns in a table.

    Args:
        declaration: the data set.
        header: the names of the table's columns.
        line: the line that they stand in, if there is one.

    Raises:
        DatasetError: if a column is missing, or there more than once.
    """
    file = declaration.file
    features, target = declaration.features, declaration.target
    targets = (target,) if isinstance(target, str) else target or ()
    if features == "*":
        features = tuple(name for name in header if name not in targets)
        if not features:
            raise DatasetError(
                file,
                "has no columns beside the target",
                'leave features = "*" out',
                line=line,
            )
    where: dict[str, list[int]] = {}
    for place, name in enumerate(header):
        where.setdefault(name, []).append(place)
    missing_is_nan = declaration.missing == "nan"
    found = []
    dtype: str = declaration.dtype_of("features") or "float32"
    target_dtype: str = declaration.target_dtype or dtype
    classes: dict[str, int] = {}
    if declaration.classes:
        target_dtype = declaration.target_dtype or "int64"
        classes = {str(text): code for code, text in enumerate(declaration.classes)}
    for tensor, chosen, kind, texts in (
        ("features", features, dtype, {}),
        ("target", target, target_dtype, classes),
    ):
        if chosen is None or isinstance(chosen, dict):
            continue
        names = (chosen,) if isinstance(chosen, str) else chosen
        places = tuple(_place(file, where, name, line) for name in names)
        nan = missing_is_nan and kind.startswith("float")
        alone = isinstance(chosen, str)
        found.append(Part(tensor, names, places, alone, kind, texts, nan))
    return tuple(found)


def codes(part: Part, texts: Sequence[str]) -> Elements:
    """Return the number of each text, of a column of classes.

    Raises:
        MisfitError: at the first that is no class.
    """
    found = [part.classes.get(text.strip(), -1) for text in texts]
    if -1 in found:
        index = found.index(-1)
        raise MisfitError(
            index,
            f"expected one of the {len(part.classes)} classes, got "
            f"{quote(texts[index])}",
            "correct the cell, or add it to classes",
        )
    return np.array(found, np.int64)


def _place(file: str, where: Mapping[str, list[int]], name: str, line: int) -> int:
    """Return where a column is.

    Of a file without a header the first row of data is taken for one: hence the
    error quotes at most one of its names.
    """
    places = where.get(name, [])
    if len(places) == 1:
        return places[0]
    if places:
        problem = f"expected one column of this name, got {len(places)}"
        advice = "give each column a name of its own"
    else:
        like = nearest(name, where)
        problem = f"the file has {len(where)} columns, and none of this name"
        advice = f"did you mean {quote(like)}?" if like else "correct the name"
    raise DatasetError(file, problem, advice, column=name, line=line)
