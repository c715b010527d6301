"""Files of arrays as the tensors of a data set: one file, or several parts.

Rules:

- Parts come in the order of their names. If they hold arrays of the same names, the
  rows of each follow those of the part before; if no name comes twice, all arrays are
  taken. Anything in between is refused.
- Of a model that is stored in pieces, the index file says what is where.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeAlias

from obhut.errors import DatasetError
from obhut.host import files
from obhut.host.wording import quote

from . import numpy_files, safetensors_files
from .archive import Archive
from .declaration import DatasetDeclaration
from .selection import ArrayTensors, Loaded

Opener: TypeAlias = Callable[[Path], AbstractContextManager[Archive]]

OPENERS: Mapping[str, Opener] = {
    "npy": numpy_files.open_npy,
    "npz": numpy_files.open_npz,
    "safetensors": safetensors_files.open,
}
"""What reads a file of arrays, by its kind."""


def read(declaration: DatasetDeclaration, paths: Sequence[Path]) -> Loaded:
    """Read the declared arrays, or all of them.

    Args:
        declaration: the data set.
        paths: its files, in order.

    Raises:
        DatasetError: naming the array, and the row where it is one.
        OSError: if a file can not be read.
        UnsafeFileError: if others could change one that an index names.
    """
    opener = OPENERS[str(declaration.kind)]
    index = next(filter(safetensors_files.is_index, paths), None)
    if index is not None:
        places = safetensors_files.read_index(index)
        for path in {*places.values()}:
            files.check(path)
        parts: Mapping[str, tuple[Path, ...]] = {
            name: (path,) for name, path in places.items()
        }
    else:
        parts = _parts(opener, paths)
    with ArrayTensors(declaration) as tensors:
        for choice in tensors.choose(tuple(parts)):
            for path in parts[choice.stored]:
                with opener(path) as archive:
                    if choice.stored not in archive.names:
                        raise DatasetError(
                            str(path),
                            f"the index says that {quote(choice.stored)} is in it",
                            "get index and files anew",
                        )
                    with archive.opened(choice.stored) as (stored, stream):
                        tensors.append(choice, stored, stream, str(path))
        return tensors.finish()


def _parts(opener: Opener, paths: Sequence[Path]) -> Mapping[str, tuple[Path, ...]]:
    """Return in which files each array is."""
    found: dict[str, tuple[Path, ...]] = {}
    for path in paths:
        with opener(path) as archive:
            for name in archive.names:
                found[name] = (*found.get(name, ()), path)
    counts = {len(places) for places in found.values()}
    if counts <= {1} or counts == {len(paths)}:
        return found
    name, places = min(found.items(), key=lambda one: len(one[1]))
    without = next(path for path in paths if path not in places)
    raise DatasetError(
        str(without),
        f"has no array {quote(name)}, which is in {quote(places[0].name)}",
        "save all parts with arrays of the same names, or each with names of its own",
    )
