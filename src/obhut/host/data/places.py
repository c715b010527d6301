"""Which files a data set is in.

Rules:

- A path is one file, a folder of files, or a pattern with ``*``, ``?`` or ``[`` that
  names match. A file of just that name goes before the pattern.
- Parts come in the order of their names. Hidden files are passed over.
- A file that others can change is not read, nor is what is none, such as a pipe.
"""

from __future__ import annotations

import glob
import stat
from collections.abc import Iterator
from pathlib import Path

from obhut.errors import DatasetError
from obhut.host import files

from .declaration import SUFFIXES, DatasetDeclaration


def find(declaration: DatasetDeclaration) -> tuple[Path, ...]:
    """Return a data set's files.

    Raises:
        DatasetError: if there are none, or one is no file.
        FileNotFoundError: if the path leads nowhere.
        UnsafeFileError: if others could change one.
    """
    path = declaration.path
    parts = [path]
    if path.is_dir():
        ends = [end for end, kind in SUFFIXES.items() if kind == declaration.kind]
        parts = [
            one for one in _visible(path) if one.name.lower().endswith(tuple(ends))
        ]
    elif not path.exists() and glob.has_magic(path.name):
        parts = [one for one in _visible(path.parent) if one.match(path.name)]
    if not parts:
        raise DatasetError(
            str(path),
            "no file is there",
            "check path, and the ends of the files' names",
        )
    for one in parts:
        # A pipe or a device would be waited for, without an end.
        if not stat.S_ISREG(one.stat().st_mode):
            raise DatasetError(str(one), "is not a file", "name a file")
        files.check(one)
    return tuple(parts)


def _visible(folder: Path) -> Iterator[Path]:
    files.check_folder(folder)
    return (one for one in sorted(folder.iterdir()) if not one.name.startswith("."))
