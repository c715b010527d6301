"""A table in several files: those of a folder, or those that match a pattern.

::

    found = parts.find(declaration)              # path = "year=*/part-*.csv"
    with PartsSource(declaration, found, CsvSource) as rows:
        for batch in rows.batches([0, 1]):       # of one file after the other
            ...

Rules:

- Files come in the order of their names, in which numbers count as numbers: part-2
  before part-10.
- A column is found by its name in each file; the first file says the order. Who takes
  all columns with ``*`` takes files that all have the same.
- A folder called ``year=2024`` is a column ``year`` of the files in it.
- Hidden files, those that begin with ``_`` and checksums are no parts. Any other file
  in a folder that is no part is refused: it may be data.
- Nobody else may put a file where it would be a part.
"""

from __future__ import annotations

import bisect
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import msgspec

from obhut.errors import DatasetError
from obhut.host import files
from obhut.host.closing import Closing
from obhut.host.wording import enumerate_names, quote

from .arrow import pa
from .declaration import DatasetDeclaration
from .source import Arrow, Place, Source
from .words import values_of

_WILD = re.compile(r"[*?\[]")

_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
"""What Hive calls the folder of rows that have no value."""


@dataclass(frozen=True, slots=True)
class Part:
    """A file of several.

    Attributes:
        declaration: of a data set that would be made of it alone.
        folders: what the folders on the way to it say, by column; None for no value.
    """

    declaration: DatasetDeclaration
    folders: Mapping[str, str | None]


def find(declaration: DatasetDeclaration) -> Sequence[Part]:
    """Find the files that a data set is made of; none if its path is that of one.

    Raises:
        DatasetError: if there are none, or some are of another kind; see ``check``.
        FileNotFoundError: if there is no such file or folder.
        UnsafeFileError: if others could change them, or add some.
    """
    path = declaration.path
    places = path.parts
    wild = next((i for i, part in enumerate(places) if _WILD.search(part)), 0)
    if wild and not path.exists():
        root, pattern = Path(*places[:wild]), places[wild:]
    elif path.is_dir():
        root, pattern = path, ()
    else:
        check(path)
        return ()
    found = sorted(_files(declaration, root, pattern), key=lambda one: _key(one, root))
    if not found:
        raise DatasetError(
            declaration.file,
            "there is no file that matches it" if pattern else "has no files",
            "check path; it is relative to the configuration",
        )
    for one in found:
        files.check(one)
    parts = [Part(_alone(declaration, one), _folders(one, root)) for one in found]
    for part in parts[1:]:
        if [*part.folders] != [*parts[0].folders]:
            raise DatasetError(
                part.declaration.file,
                f"lies in folders for {_named(part.folders)}, and the first part in "
                f"folders for {_named(parts[0].folders)}",
                "put all parts into folders of the same names",
            )
    return parts


def check(path: Path) -> None:
    """Refuse what is no file, or what others could change.

    Raises:
        DatasetError: if it is a folder, a pipe or a device, which would be waited for
            without an end.
        FileNotFoundError, UnsafeFileError: likewise.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise DatasetError(str(path), "is not a file", "name a file")
    files.check(path)


def _files(
    declaration: DatasetDeclaration, root: Path, pattern: Sequence[str]
) -> Iterator[Path]:
    """Yield the parts, and refuse what is none and where others can add one."""
    files.check(root)
    matched = [root]
    for depth in range(1, len(pattern) + 1):
        matched = [
            one
            for one in root.glob(str(Path(*pattern[:depth])))
            if not _is_hidden(one.relative_to(root))
        ]
        if depth < len(pattern):
            for folder in filter(Path.is_dir, matched):
                files.check(folder)
    for one in matched:
        if not one.is_dir():
            yield _checked(declaration, one, named=True)
            continue
        for here, folders, names in os.walk(one, onerror=_refuse):
            files.check(Path(here))
            folders[:] = [name for name in folders if not _is_hidden(Path(name))]
            for name in names:
                if not _is_hidden(Path(name)):
                    yield _checked(declaration, Path(here, name), named=False)


def _refuse(error: OSError) -> None:
    raise error


def _checked(declaration: DatasetDeclaration, file: Path, *, named: bool) -> Path:
    """Return a file that is a part.

    Args:
        named: whether it is one that the declaration's pattern matches.
    """
    alone = msgspec.structs.replace(declaration, path=file, format=None)
    unknown = alone.kind is None and (named or not file.suffix)
    if not file.is_file():
        raise DatasetError(str(file), "is not a file", "take it out of the folder")
    if alone.kind != declaration.kind and not unknown:
        raise DatasetError(
            str(file),
            f"is no {declaration.kind} file by its name, and lies among the parts",
            "take it out of the folder, or write a pattern that passes it over, such "
            f'as path = "{file.parent.name}/*.{declaration.kind}"',
        )
    return file


def _is_hidden(way: Path) -> bool:
    return way.suffix == ".crc" or any(part[0] in "._" for part in way.parts)


def _key(file: Path, root: Path) -> tuple[object, ...]:
    """Return what files are sorted by."""
    way = file.relative_to(root).parts
    return (
        [
            [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces]
            for pieces in (re.split(r"([0-9]+)", part) for part in way)
        ],
        way,
    )


def _alone(declaration: DatasetDeclaration, file: Path) -> DatasetDeclaration:
    kind = declaration.kind
    return msgspec.structs.replace(declaration, path=file, format=kind)


def _folders(file: Path, root: Path) -> Mapping[str, str | None]:
    """Return what ``name=value`` folders say of a file."""
    said = {}
    for part in file.relative_to(root).parts[:-1]:
        name, sign, value = part.partition("=")
        if sign:
            said[unquote(name)] = None if value == _NO_VALUE else unquote(value)
    return said


def _named(names: Mapping[str, object] | Sequence[str]) -> str:
    return enumerate_names([quote(name) for name in names]) or "none"


@dataclass(frozen=True, slots=True)
class _Misfit:
    """Why a column of the first file can not be had of another."""

    file: str
    problem: str
    advice: str


class PartsSource(Closing):
    """Rows of several files, one after the other: a ``Source``.

    Args:
        declaration: the data set.
        parts: the files, as ``find`` found them; at least one.
        opened: opens one of them.
    """

    def __init__(
        self,
        declaration: DatasetDeclaration,
        parts: Sequence[Part],
        opened: Callable[[DatasetDeclaration], Source],
    ) -> None:
        self._parts = parts
        self._opened = opened
        self._open: list[Source] = []
        self._starts: list[int] = []
        self._misfits: dict[int, _Misfit] = {}
        self._places: list[Sequence[int]] = []
        notes: Counter[str] = Counter()
        with opened(parts[0].declaration) as first:
            own = list(first.names)
            types = list(first.types)
            self.aside: Mapping[int, str] = dict(first.aside)
            self.line: int = first.line
            notes.update(first.notes)
        for name in parts[0].folders:
            if name in own:
                raise DatasetError(
                    parts[0].declaration.file,
                    "is a column of the file, and the name of a folder as well",
                    "rename one of them",
                    name,
                )
        self._own = len(own)
        self._places.append(range(len(own)))
        for part in parts[1:]:
            with opened(part.declaration) as source:
                self._places.append(self._compare(declaration, own, part, source))
                for place, there in enumerate(self._places[-1]):
                    if there >= 0:
                        self._unify(types, place, own, part, source.types[there])
                notes.update(source.notes)
        self.names: Sequence[str] = [*own, *parts[0].folders]
        self.types: Sequence[Arrow] = [*types, *(pa.string() for _ in parts[0].folders)]
        self.notes: Sequence[str] = [
            f"{len(parts):,} files, of which the first is "
            f"{parts[0].declaration.path.name}",
            *(
                note if times == len(parts) else f"in {times:,} of the files: {note}"
                for note, times in notes.items()
            ),
        ]

    def close(self) -> None:
        """Close the files of which not all rows were read."""
        while self._open:
            self._open.pop().close()

    def batches(self, places: Sequence[int]) -> Iterator[Arrow]:
        """Yield record batches of the columns at these places, in this order.

        Raises:
            DatasetError: naming the file that has not all of them, or is damaged.
        """
        for place in places:
            if misfit := self._misfits.get(place):
                raise DatasetError(
                    misfit.file, misfit.problem, misfit.advice, self.names[place]
                )
        own = [place for place in places if place < self._own]
        self._starts = []
        done = 0
        for part, there in zip(self._parts, self._places, strict=True):
            self._starts.append(done)
            source = self._opened(part.declaration)
            self._open.append(source)
            # Rows are counted by a column, whether or not one is asked for.
            asked = [there[place] for place in own] or [0]
            for batch in source.batches(asked):
                yield self._completed(part, places, own, batch)
                done += batch.num_rows
            self._open.remove(source)
            source.close()

    def place_of(self, row: int) -> Place:
        """Return where a row is: one of the batches that were last read."""
        part = bisect.bisect_left(self._starts, row) - 1
        with self._opened(self._parts[part].declaration) as source:
            return source.place_of(row - self._starts[part])

    def _compare(
        self,
        declaration: DatasetDeclaration,
        own: Sequence[str],
        part: Part,
        source: Source,
    ) -> Sequence[int]:
        """Return where a file has the columns of the first, -1 for nowhere."""
        there = list(source.names)
        if there == own:
            return range(len(own))
        file = part.declaration.file
        more = [
            name
            for name, times in (Counter(there) - Counter(own)).items()
            if times and name not in declaration.exclude
        ]
        if more and _takes_all(declaration):
            raise DatasetError(
                file,
                f"has {_shown(len(more))} that the first part has not",
                'name the columns instead of "*", or name it in exclude',
                more[0],
            )
        places = []
        for place, name in enumerate(own):
            found = there.index(name) if there.count(name) == 1 else -1
            if found < 0 or own.count(name) > 1:
                self._misfits.setdefault(
                    place,
                    _Misfit(
                        file,
                        "expected one column of this name, got several"
                        if name in there
                        else "there is no column of this name, as in the first part",
                        "give all parts the same columns, or leave it out",
                    ),
                )
            places.append(found)
        return places

    def _unify(
        self,
        types: list[Arrow],
        place: int,
        own: Sequence[str],
        part: Part,
        kind: Arrow,
    ) -> None:
        """Widen the type of a column so that it holds this file's cells as well."""
        if types[place] == kind:
            return
        wider = _wider(types[place], kind)
        if wider is None:
            self._misfits.setdefault(
                place,
                _Misfit(
                    part.declaration.file,
                    f"is of type {kind}, and {types[place]} in the parts before",
                    "give all parts the same types, or leave it out",
                ),
            )
        else:
            types[place] = wider

    def _completed(
        self, part: Part, places: Sequence[int], own: Sequence[int], batch: Arrow
    ) -> Arrow:
        """Return a batch in the types of all files, with what the folders say."""
        columns = dict(zip(own, batch.columns, strict=False))
        said = list(part.folders.values())
        made = []
        for place in places:
            if place >= self._own:
                text = pa.scalar(said[place - self._own], pa.string())
                made.append(pa.repeat(text, batch.num_rows))
                continue
            column = columns[place]
            if column.type != self.types[place]:
                try:
                    column = column.cast(self.types[place])
                except pa.ArrowException as error:
                    raise DatasetError(
                        part.declaration.file,
                        f"has a cell of type {column.type} that is not the same as "
                        f"{self.types[place]}, which it is in other parts",
                        "give all parts the same types",
                        self.names[place],
                    ) from error
            made.append(column)
        return pa.RecordBatch.from_arrays(made, [self.names[one] for one in places])


def _takes_all(declaration: DatasetDeclaration) -> bool:
    chosen = declaration.features
    return chosen == "*" or (isinstance(chosen, dict) and "*" in chosen.values())


def _shown(columns: int) -> str:
    return "a column" if columns == 1 else f"{columns:,} columns, this among them,"


def _wider(one: Arrow, other: Arrow) -> Arrow | None:
    """Return a type that holds cells of both as they are, or None."""
    one, other = values_of(one), values_of(other)
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    for together in (
        (pa.types.is_integer, pa.types.is_floating),
        (pa.types.is_decimal,),
        (pa.types.is_string, pa.types.is_large_string),
        (pa.types.is_timestamp,),
    ):
        if all(any(are(kind) for are in together) for kind in (one, other)):
            schemas = [pa.schema([("", kind)]) for kind in (one, other)]
            try:
                return pa.unify_schemas(schemas, promote_options="permissive").types[0]
            except pa.ArrowException:
                return None
    return None
