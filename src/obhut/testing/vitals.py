"""What a process takes from its machine, as Linux tells it.

Rule: nothing is asked of the process itself.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Vitals:
    """What a process took at one moment.

    Attributes:
        pss: bytes of memory, with shared pages divided among those who share them.
        rss: bytes of memory, shared pages included.
        threads: how many threads it had.
        files: how many files and sockets it had open.
        children: how many processes came from it, and from those in turn.
    """

    pss: int
    rss: int
    threads: int
    files: int
    children: int


def vitals(pid: int) -> Vitals:
    """Return what a process takes now.

    Raises:
        FileNotFoundError, ProcessLookupError: if it has ended.
    """
    process = Path(f"/proc/{pid}")
    memory = (process / "smaps_rollup").read_text()
    return Vitals(
        _kilobytes(memory, "Pss"),
        _kilobytes(memory, "Rss"),
        len(os.listdir(process / "task")),
        len(os.listdir(process / "fd")),
        len(descendants(pid)),
    )


def descendants(pid: int) -> list[int]:
    """Return the processes that come from a process."""
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *descendants(child)]
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        pass
    return found


def _kilobytes(text: str, key: str) -> int:
    said = re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(said[1]) * 1024 if said is not None else 0
