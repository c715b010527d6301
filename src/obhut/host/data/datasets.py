"""The data sets of a worker, loaded and ready for its sessions.

Rules:

- All of them load, or none: a worker does not start half-loaded.
- What others learn of a data set without computing is its name, tags and
  description, and of the rest what its owner declared public.
- A remote tensor has a shape. Behind a policy a number of rows that is not exactly
  public does not show in it: of a rounded one as many rows are used as it says, and
  where it is hidden no tensor is held, and programs go through all rows.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

from obhut.errors import DatasetError
from obhut.host.sizes import Size
from obhut.host.waiting import Waiting
from obhut.host.wording import quote
from obhut.protocol.limits import HIDDEN_ROWS

from . import array_files, images, opening, own_loader, parts, split, table
from .arrays import Array, first_rows
from .declaration import INDEX, DatasetDeclaration, Encode, Format
from .loader_rows import LoaderRows
from .own_loader import Run
from .report import Report
from .room import FOLDER, IN_MEMORY, DiskError, Space
from .selection import Choice
from .tensor_maker import Part

Loaded: TypeAlias = Sequence[tuple[Part | Choice, Array]]


@dataclass(frozen=True, slots=True)
class PublicMetadata:
    """What others may know of a data set: nothing that is not here.

    Leak: all of it goes to whoever may open a session.

    Attributes:
        names: by tensor, the names of its columns; none where it has no columns.
            ``None`` if the names are private.
        dtypes: by tensor, its element type; ``None`` if the types are private. Those
            of tensors whose names are private are not told.
        rows: how many there are; ``None`` if that is private.
        rounded: whether ``rows`` is rounded.
        shapes: behind a policy that hides the rows, the sizes of one by tensor, without
            which no program is recorded; then the types are public too. Else ``None``.
        classes: the texts of the target's classes, in order; none if it has none.
            ``None`` if they are private, and so for those that follow.
        categories: the texts of columns' categories, in order, by column.
        units: what columns are measured in, by column.
    """

    names: Mapping[str, tuple[str, ...]] | None = None
    dtypes: Mapping[str, str] | None = None
    rows: int | None = None
    rounded: bool = False
    shapes: Mapping[str, tuple[int, ...]] | None = None
    classes: tuple[str, ...] | None = None
    categories: Mapping[str, tuple[str, ...]] | None = None
    units: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """A data set in memory.

    Attributes:
        name: what it is found by.
        tensors: ``features`` and ``target``, or arrays by their own names.
        tags: what it is searched by.
        description: a sentence for others to read.
        public: what others may know of it besides.
        left_out: how many rows are not used, so that their number is the public one.
        report: what it is made of, for its owner alone.
        declaration: what it was loaded as.
        stamp: what its file was like then; None if it may have changed at any time.
    """

    name: str
    tensors: Mapping[str, Array]
    tags: tuple[str, ...]
    description: str
    public: PublicMetadata
    left_out: int = 0
    report: Report = field(default_factory=Report)
    declaration: DatasetDeclaration | None = None
    stamp: tuple[int, ...] | None = None

    @property
    def requesters(self) -> tuple[str, ...] | None:
        """Who may use it, by name or id; None for who may open a session."""
        return None if self.declaration is None else self.declaration.requesters

    @property
    def rows(self) -> int:
        """How many rows are used, which is for its owner alone."""
        return next((one.shape[0] for one in self.tensors.values() if one.shape), 1)

    def still(self, declaration: DatasetDeclaration) -> bool:
        """Tell whether it would be the same if it was loaded again."""
        unchanged = self.stamp is not None and self.stamp == _stamp(declaration)
        return unchanged and self.declaration == declaration

    @property
    def hidden(self) -> bool:
        """Whether nobody is to learn how many rows there are, by any way."""
        return self.public.shapes is not None


def load(
    declarations: Iterable[DatasetDeclaration],
    minimum_rows: int = 0,
    *,
    guarded: bool = False,
    space: Space = IN_MEMORY,
    run: Run | None = None,
    before: Mapping[str, Dataset] = MappingProxyType({}),
) -> Mapping[str, Dataset]:
    """Load data sets, in order; return them by name.

    Args:
        declarations: which.
        minimum_rows: what the owner's policy asks of each.
        guarded: whether they are used behind a policy.
        space: what memory each may take, and where the rest goes.
        run: runs own loaders, and what decodes images.
        before: what was loaded before, by name. What was declared as it is now, and
            whose file is as it was, is not read again.

    Raises:
        DatasetError: if one of them can not be loaded; then none is.
        UnsafeFileError: likewise, if others could change it.
    """
    found: dict[str, Dataset] = {}
    for declaration in declarations:
        made = [one for one in before.values() if one.still(declaration)] or load_each(
            declaration, minimum_rows, guarded, space=space, run=run
        )
        for one in made:
            if one.name in found:
                raise DatasetError(
                    declaration.file,
                    f"split makes a data set {quote(one.name)}, and there is one",
                    "rename one of them",
                )
            found[one.name] = one
    return MappingProxyType(found)


def load_one(
    declaration: DatasetDeclaration,
    minimum_rows: int = 0,
    guarded: bool = False,
    *,
    space: Space = IN_MEMORY,
    run: Run | None = None,
) -> Dataset:
    """Load a data set that is not split; see ``load_each``."""
    (one,) = load_each(declaration, minimum_rows, guarded, space=space, run=run)
    return one


def load_each(
    declaration: DatasetDeclaration,
    minimum_rows: int = 0,
    guarded: bool = False,
    *,
    space: Space = IN_MEMORY,
    run: Run | None = None,
) -> tuple[Dataset, ...]:
    """Load what is declared: one data set, or one for each share of a split.

    Args:
        declaration: which.
        minimum_rows: as for ``load``.
        guarded: likewise.
        space: likewise.
        run: likewise.

    Raises:
        DatasetError: naming file, column and row, as far as there are any.
        UnsafeFileError: if others could change it.
    """
    file = declaration.file
    stamp = _stamp(declaration)
    try:
        with (
            Waiting(f"reading data set {declaration.name} from {file}"),
            space.entered(declaration.keep),
        ):
            loaded, report = _read(declaration, run)
            shares = _split(declaration, loaded)
    except FileNotFoundError as error:
        raise DatasetError(
            file,
            "there is no such file",
            "check path; it is relative to the configuration",
        ) from error
    except DiskError as error:
        raise _no_disk(file, error) from error
    except (OSError, MemoryError) as error:
        why = error.strerror if isinstance(error, OSError) else "out of memory"
        raise DatasetError(
            file,
            f"can not be read: {why or 'unknown'}",
            "check who may read it, and the memory that is free",
        ) from error
    return tuple(
        _dataset(declaration, name, share, report, minimum_rows, guarded, space, stamp)
        for name, share in shares
    )


def _split(
    declaration: DatasetDeclaration, loaded: Loaded
) -> Sequence[tuple[str, Loaded]]:
    """Return what was loaded by the names of data sets."""
    name, shares = declaration.name, declaration.split
    if not shares:
        return [(name, loaded)]
    file = declaration.file
    counts = {array.shape[0] if array.shape else 0 for _, array in loaded}
    if len(counts) != 1 or counts == {0}:
        raise DatasetError(
            file, "has tensors of several numbers of rows", "leave split out"
        )
    found: list[tuple[str, Loaded]] = []
    for share, rows in split.draw(counts.pop(), shares):
        if not len(rows):
            raise DatasetError(
                file, f"has no row for {quote(share)} of split", "add rows to it"
            )
        parts = [(source, split.take(array, rows)) for source, array in loaded]
        found.append((f"{name}-{share}", parts))
    return found


def _dataset(
    declaration: DatasetDeclaration,
    name: str,
    loaded: Loaded,
    report: Report,
    minimum_rows: int,
    guarded: bool,
    space: Space,
    stamp: tuple[int, ...] | None,
) -> Dataset:
    """Return a data set of which no more is public than is declared."""
    file = declaration.file
    tensors: Mapping[str, Array] = MappingProxyType(
        {source.tensor: array for source, array in loaded}
    )
    rows = next((array.shape[0] for array in tensors.values() if array.shape), 1)
    _check_minimum(file, tensors, minimum_rows)
    _check_row(file, tensors, space.memory)
    if "features" in tensors and "target" in tensors:
        _check_rows(file, tensors["features"], tensors["target"])
    stored, hidden = rows, guarded and declaration.public.rows == "hidden"
    if hidden:
        check_hidden(
            file,
            [array.shape[0] if array.shape else 0 for array in tensors.values()],
            'serve them as data sets of their own, or write rows = "exact"',
            'write rows = "rounded" in its public metadata, or rows = "exact"',
        )
    elif guarded:
        with space.entered(declaration.keep):
            tensors = _of_public_length(declaration, tensors)
        rows = next((array.shape[0] for array in tensors.values() if array.shape), 1)
        _check_minimum(file, tensors, minimum_rows, " left by rounding")
    names = {
        source.tensor: source.columns if isinstance(source, Part) else ()
        for source, _ in loaded
    }
    return Dataset(
        name,
        tensors,
        declaration.tags,
        declaration.description,
        _public(declaration, names, tensors, rows, hidden),
        stored - rows,
        report,
        declaration=declaration,
        stamp=stamp,
    )


def _read(declaration: DatasetDeclaration, run: Run | None) -> tuple[Loaded, Report]:
    """Read what is declared, from wherever it is.

    Raises:
        DatasetError: if it can not be read as it is declared.
    """
    kind = declaration.kind
    if declaration.loader is not None or kind == "images":
        if run is None:
            raise DatasetError(
                declaration.file,
                "needs a process of its own, and there is none here",
                "start the worker, or check its configuration",
            )
        if kind == "images":
            return images.read(declaration, run)
        asked = own_loader.request(declaration)
        found = own_loader.read(declaration, asked, run)
        if not isinstance(found, LoaderRows):
            return found
        with found:
            return table.read(declaration, found)
    if kind is None:
        raise DatasetError(
            declaration.file, "does not say what it is", "declare its format"
        )
    if kind in array_files.OPENERS:
        paths = [part.declaration.path for part in parts.find(declaration)]
        return array_files.read(declaration, paths or [declaration.path])
    with opening.opened(declaration, kind) as source:
        return table.read(declaration, source)


def _stamp(declaration: DatasetDeclaration) -> tuple[int, ...] | None:
    """Return what changes when a data set's file does; None if there is no telling.

    Of several files, a database or an own loader there is not.
    """
    if declaration.kind not in _SINGLE or declaration.loader is not None:
        return None
    if declaration.path.name.lower().endswith(INDEX):
        return None
    try:
        found = declaration.path.stat()
    except OSError:
        return None  # who reads it says why
    if not stat.S_ISREG(found.st_mode):
        return None
    times = (found.st_mtime_ns, found.st_ctime_ns)
    return (found.st_dev, found.st_ino, found.st_size, *times)


_SINGLE: frozenset[Format | None] = frozenset(
    {"csv", "parquet", "npy", "npz", "safetensors"}
)
"""What is one file, if it is no folder."""


def _of_public_length(
    declaration: DatasetDeclaration, tensors: Mapping[str, Array]
) -> Mapping[str, Array]:
    """Return arrays whose shapes say no more of their rows than is public."""
    file, known = declaration.file, declaration.public.rows
    if known == "exact":
        return tensors
    counts = {name: a.shape[0] for name, a in tensors.items() if a.shape}
    kept = {name: rows // _unit(rows) * _unit(rows) for name, rows in counts.items()}
    if not all(kept.values()):
        raise DatasetError(
            file,
            "has fewer than ten rows, of which none is left by rounding",
            'add rows, or write rows = "exact"',
        )
    try:
        return MappingProxyType(
            {
                name: array
                if kept.get(name) == counts.get(name)
                else first_rows(array, kept[name])
                for name, array in tensors.items()
            }
        )
    except DiskError as error:
        raise _no_disk(file, error) from error
    except OSError as error:
        raise DatasetError(
            file, "does not fit into memory", "free some, or serve fewer rows"
        ) from error


def _no_disk(file: str, error: DiskError) -> DatasetError:
    return DatasetError(
        file,
        f"is kept on the disk of {error.folder}, which has no room for it: {error.why}",
        f"make room there, mount another disk at its folder {FOLDER}, or write "
        'keep = "memory"',
    )


def _check_row(file: str, tensors: Mapping[str, Array], memory: int | None) -> None:
    """Refuse rows of which no session can hold one."""
    row = sum(
        len(one.data) // (one.shape[0] if one.shape else 1) for one in tensors.values()
    )
    if memory is not None and row > memory:
        raise DatasetError(
            file,
            f"a row takes {Size(row)}, and a session may hold {Size(memory)}",
            "write a larger memory in [limits]",
        )


def _check_minimum(
    file: str, tensors: Mapping[str, Array], minimum: int, how: str = ""
) -> None:
    """Refuse data of which fewer rows are used than a policy asks for."""
    fewest = min((a.shape[0] for a in tensors.values() if a.shape), default=1)
    if fewest < minimum:
        raise DatasetError(
            file,
            f"has {fewest:,} rows{how}, and minimum_rows of [policy] is {minimum:,}",
            "add rows, leave the data set out, or lower minimum_rows",
        )


def _check_rows(file: str, features: Array, target: Array) -> None:
    rows = [array.shape[0] if array.shape else 0 for array in (features, target)]
    if rows[0] != rows[1]:
        raise DatasetError(
            file,
            f"has {rows[0]:,} rows of features and {rows[1]:,} of the target",
            "save as many of both",
        )


def check_hidden(what: str, rows: Iterable[int], apart: str, fewer: str) -> None:
    """Refuse data whose number of rows is hidden, of which a program can't take each.

    Args:
        what: the file or the data set.
        rows: of each tensor how many, 0 for a scalar.
        apart: what to do with tensors of several numbers of rows.
        fewer: what to do with more rows than can be hidden.

    Raises:
        DatasetError: if they have several, none, or too many.
    """
    counts = {*rows}
    if len(counts) > 1 or counts == {0}:
        raise DatasetError(
            what,
            "has tensors of several numbers of rows, or of none, and the number is "
            "hidden",
            apart,
        )
    if max(counts) > HIDDEN_ROWS:
        raise DatasetError(
            what,
            f"has more than {HIDDEN_ROWS:,} rows, and no more can be hidden",
            fewer,
        )


def _public(
    declaration: DatasetDeclaration,
    names: Mapping[str, tuple[str, ...]],
    tensors: Mapping[str, Array],
    rows: int,
    hidden: bool,
) -> PublicMetadata:
    declared = declaration.public
    dtypes = {name: array.dtype for name, array in tensors.items()}
    shapes = {name: array.shape[1:] for name, array in tensors.items()}
    known = {"exact": rows, "rounded": rounded(rows), "hidden": None}
    return PublicMetadata(
        names=MappingProxyType(dict(names)) if declared.names else None,
        dtypes=MappingProxyType(dtypes) if declared.types or hidden else None,
        rows=known[declared.rows],
        rounded=declared.rows == "rounded",
        shapes=MappingProxyType(shapes) if hidden else None,
        classes=_texts(declaration.classes) if declared.classes else None,
        categories=_categories(declaration) if declared.classes else None,
        units=_units(declaration) if declared.units else None,
    )


def _texts(listed: Iterable[str | int]) -> tuple[str, ...]:
    return tuple(map(str, listed))


def _categories(declaration: DatasetDeclaration) -> Mapping[str, tuple[str, ...]]:
    """Return the categories of columns that became their places in a list."""
    return {
        column: _texts(how)
        for column, how in declaration.encode.items()
        if isinstance(how, tuple)
    }


def _units(declaration: DatasetDeclaration) -> Mapping[str, str]:
    """Return what columns are measured in; dates in days since a day."""
    found = {}
    for column, how in declaration.encode.items():
        dates = Encode(days="iso") if how == "days" else how
        if isinstance(dates, Encode) and dates.days is not None:
            found[column] = f"days since {dates.since.isoformat()}"
    return found | declaration.units


def rounded(rows: int) -> int:
    """Return a number of rows to two significant digits, and no finer than tens.

    So 569 is 570, and 42 is 40; of fewer than ten it says 10, as zero would say
    that there are none.
    """
    unit = _unit(rows)
    return max(unit, (rows + unit // 2) // unit * unit)


def _unit(rows: int) -> int:
    """Return how finely a number of rows is told."""
    return int(max(10, 10 ** (len(str(rows)) - 2)))
