"""The process in which a client's script is rehearsed, with walls around it.

Rules:

- It never has a private value: it is told what data look like, and no more.
- The script reads Python's own files, the system's (``SYSTEM``) and those of its
  folder, and nothing else: no data, no keys; ``rehearse`` refuses where those lie in
  one of these. It writes into a scratch folder, starts no program, has no network.
  Where the kernel can not see to that, it does not run, unless it was asked for
  without.
"""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from obhut.errors import SandboxError
from obhut.transports.pipe import landlock
from obhut.transports.pipe.libc import call

from .outlines import Plan

SYSTEM = ("/usr", "/lib", "/lib64", "/etc", "/proc", "/sys", "/dev")
"""Folders of which any program reads something."""

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_NO_NEW_PRIVS = 38


def main() -> int:
    """Rehearse the plan that comes on the standard input; return the exit code."""
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    if plan.walls:
        try:
            wall_in(Path(plan.script).parent, Path(tempfile.gettempdir()))
        except SandboxError as error:
            sys.stderr.write(f"obhut policy rehearse: {error}\n")
            return 1
    # Only now: libraries start threads of their own, which walls would not be around.
    code: int = importlib.import_module("obhut.cli.rehearsal.trial").run(plan)
    return code


def wall_in(folder: Path, scratch: Path) -> None:
    """Keep this process from the network, and from files that are private.

    Python's, the system's and a folder's can be read.

    Duty: call it with one thread.

    Args:
        folder: what may be read.
        scratch: an empty folder, for what libraries write.

    Raises:
        SandboxError: if the kernel can not.
    """
    try:
        call("unshare", _CLONE_NEWUSER | _CLONE_NEWNET)
        call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        landlock.restrict([*_readable(), folder], [scratch])
    except OSError as error:
        raise SandboxError(
            "wall around the script",
            str(error),
            "allow user namespaces and Landlock, or rehearse with --without-walls on a "
            "machine that has nothing to protect",
        ) from error


def _readable() -> Iterator[Path]:
    """Yield what any Python program reads."""
    yield from (Path(place) for place in sys.path if place)
    yield from (Path(place) for place in sysconfig.get_paths().values())
    yield Path(__file__).parents[1]
    yield from installed()


def installed() -> Iterator[Path]:
    """Yield the folders of the system and of Python, with all that is below them."""
    yield from (Path(place) for place in (*SYSTEM, sys.prefix, sys.base_prefix))


if __name__ == "__main__":
    sys.exit(main())
