"""Write all the files: ``python -m tests.host.files.make FOLDER``.

Each case becomes a folder with its files and a ``dataset.toml``, to be looked at, or to
be tried at a worker.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from .binary import DATABASES, IMAGES, NPY, NPZ, PARQUET, SAFETENSORS
from .cases import Case
from .odd import ODD
from .text import TEXT

CASES: list[Case] = [
    *TEXT,
    *PARQUET,
    *DATABASES,
    *NPY,
    *NPZ,
    *SAFETENSORS,
    *IMAGES,
    *ODD,
]


def write(case: Case, folder: Path) -> str:
    """Write a case's files; return its ``[[dataset]]`` table."""
    for name, content in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8", newline="")
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content(path)
    declared = re.search(r"^path = ", case.toml, re.MULTILINE)
    path_key = "" if declared else f'path = "{next(iter(case.files))}"\n'
    return f'[[dataset]]\nname = "d"\n{path_key}{case.toml}\n'


def write_all(folder: Path) -> Iterator[Path]:
    """Write each case into a folder of its own; yield it."""
    for number, case in enumerate(CASES):
        words = re.sub(r"[^a-z0-9]+", "-", case.name.lower()).strip("-")
        own = folder / f"{number:03}-{words}"
        own.mkdir(parents=True, exist_ok=True)
        (own / "dataset.toml").write_text(write(case, own), encoding="utf-8")
        yield own


if __name__ == "__main__":
    for written in write_all(Path(sys.argv[1])):
        print(written)
