"""Which columns of a table are used.

::

    chosen, unnamed = select(declaration, source)
    chosen[0].tensor, chosen[0].places

Rules:

- A column is used if it is named, or if features are ``*`` and it is no target, not
  excluded and not put aside. A column named alone makes a tensor of shape (rows,).
- A column without a name is no feature of ``*``: it must be an index, or empty, which
  is known when all its rows were seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from obhut.errors import DatasetError
from obhut.host.wording import nearest, quote, toml_key

from .arrow import pa
from .declaration import DatasetDeclaration, Fill
from .lists import is_list
from .source import Arrow, Source
from .words import blank_mask

_NOBODYS = re.compile(r"Unnamed: [0-9]+|")
"""Names that nobody gave; the first is pandas'."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A tensor and the places of its columns in the table.

    Attributes:
        tensor: its name.
        places: of its columns.
        alone: whether there is no dimension for the columns.
        dtype: the element type.
        counts: whether it is of how many elements the column's lists have.
    """

    tensor: str
    places: tuple[int, ...]
    alone: bool
    dtype: str
    counts: bool = False


def select(
    declaration: DatasetDeclaration, source: Source
) -> tuple[Sequence[Chosen], Sequence[int]]:
    """Find the declared columns.

    Returns:
        The tensors; and places of columns without a name, which ``*`` takes neither
        nor knows yet what they are.

    Raises:
        DatasetError: if a column is missing, or there more than once.
    """
    names = source.names
    find = _Finder(declaration.file, names, source.line)
    features, target = declaration.features, declaration.target
    tensors = dict(features) if isinstance(features, dict) else {"features": features}
    targets = find.all(target)
    excluded = {*find.any_of(declaration.exclude)}
    unnamed = []
    found = []
    for tensor, chosen in (*tensors.items(), ("target", target)):
        if chosen is None:
            continue
        if chosen == "*":
            left = [
                place
                for place in range(len(names))
                if place not in {*targets, *excluded} and place not in source.aside
            ]
            unnamed = [one for one in left if _NOBODYS.fullmatch(names[one])]
            places = tuple(one for one in left if one not in unnamed)
            if not places:
                raise DatasetError(
                    declaration.file,
                    "has no columns beside the target"
                    if targets
                    else "has no columns that are used",
                    'leave features = "*" out',
                    line=source.line,
                )
            for place in places:
                find.one(names[place])
        else:
            places = find.all(chosen)
        dtype: str = declaration.dtype_of(tensor) or "float32"
        if tensor == "target":
            coded = isinstance(chosen, str) and declaration.encode.get(chosen)
            is_class = declaration.classes or isinstance(coded, tuple)
            plain = "int64" if is_class else None
            features_dtype = declaration.dtype
            if isinstance(features_dtype, dict):
                features_dtype = None
            dtype = declaration.target_dtype or plain or features_dtype or "float32"
        alone = isinstance(chosen, str) and chosen != "*"
        found.append(Chosen(tensor, places, alone, dtype))
    found += _lengths(declaration, source, found)
    used = {names[place] for one in found for place in one.places}
    keys: dict[str, Iterable[str]] = {"encode": declaration.encode}
    if isinstance(declaration.missing, Fill) and isinstance(
        declaration.missing.fill, dict
    ):
        keys["missing"] = declaration.missing.fill
    for key, given in keys.items():
        for name in given:
            find.one(name)
            if name not in used:
                raise DatasetError(
                    declaration.file,
                    f"{key} says something of a column that is not used",
                    "name it in features, or take it out there",
                    column=quote(name)[1:-1],
                )
    return found, unnamed


def _lengths(
    declaration: DatasetDeclaration, source: Source, found: Sequence[Chosen]
) -> Sequence[Chosen]:
    """Return the tensors of how long sequences are that are filled up.

    Raises:
        DatasetError: if lists are no tensor of their own, or there are none to pad.
    """
    file, made = declaration.file, []
    for one in found:
        listed = [place for place in one.places if is_list(source.types[place])]
        if listed and not one.alone:
            name = toml_key(source.names[listed[0]])
            raise DatasetError(
                file,
                "is a column of lists, which are a tensor of their own",
                f"write features = {{ {name} = {quote(source.names[listed[0]])}, … }}, "
                "or exclude it",
                source.names[listed[0]],
            )
        if listed and declaration.pad is not None:
            name = "lengths"
            if one.tensor != "features":
                name = f"{one.tensor}_lengths"
            made.append(Chosen(name, one.places, True, "int64", counts=True))
    taken = {one.tensor for one in found} & {one.tensor for one in made}
    if taken:
        raise DatasetError(
            file,
            f"{quote(min(taken))} of features is what the lengths of sequences are "
            "called",
            "give it another name",
        )
    if declaration.pad is not None and not made:
        raise DatasetError(
            file,
            "pad says something of sequences, and no column that is used has lists",
            "leave it out",
        )
    return made


class _Finder:
    """Finds columns by name."""

    def __init__(self, file: str, names: Sequence[str], line: int) -> None:
        self._file = file
        self._line = line
        self._places: dict[str, list[int]] = {}
        for place, name in enumerate(names):
            self._places.setdefault(name, []).append(place)
        self._width = len(names)

    def all(self, chosen: str | Sequence[str] | None) -> tuple[int, ...]:
        """Return the places of one or several columns."""
        names = (chosen,) if isinstance(chosen, str) else chosen or ()
        return tuple(map(self.one, names))

    def any_of(self, names: Iterable[str]) -> Iterator[int]:
        """Yield the places of columns, of which several may have one name."""
        for name in names:
            if name not in self._places:
                self.one(name)
            yield from self._places[name]

    def one(self, name: str) -> int:
        """Return where a column is.

        Of a file without a header the first row of data may be taken for one: hence
        the error quotes at most one of its names.
        """
        places = self._places.get(name, [])
        if len(places) == 1:
            return places[0]
        if places:
            problem = f"expected one column of this name, got {len(places)}"
            advice = "give each column a name of its own"
        else:
            like = nearest(name, self._places)
            problem = f"the file has {self._width} columns, and none of this name"
            advice = f"did you mean {quote(like)}?" if like else "correct the name"
        raise DatasetError(
            self._file, problem, advice, column=quote(name)[1:-1], line=self._line
        )


class Unnamed:
    """Looks whether a column without a name is an index, or empty."""

    def __init__(self) -> None:
        self._done = 0
        self._first: int | None = None
        self._is_empty = self._is_index = True

    def take(self, cells: Arrow) -> None:
        """Look at a block."""
        if self._is_empty:
            empty = cells.null_count == len(cells)
            self._is_empty = empty or bool(blank_mask(cells).all())
        if self._is_index:
            try:
                numbers = cells.cast(pa.int64())
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                self._is_index = False
                return
            if numbers.null_count:
                self._is_index = False
                return
            values = numbers.to_numpy()
            if self._first is None:
                self._first = int(values[0])
            begin = self._first + self._done
            self._done += len(values)
            self._is_index = self._first in (0, 1) and bool(
                (values == np.arange(begin, begin + len(values))).all()
            )

    @property
    def reason(self) -> str:
        """Why it is put aside; empty if it has values."""
        if self._is_empty:
            return "has no name and no values"
        return "counts the rows, as an index does" if self._is_index else ""
