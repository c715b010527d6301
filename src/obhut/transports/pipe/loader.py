"""The process in which an owner's loader runs: ``python -m …loader PIPE``.

Rules:

- The walls stand before the owner's module is imported. What it starts ends with it.
- It says what the function returned through the pipe, and nothing else says anything
  there: standard output and error are the owner's console.
- It loads no torch, unless the owner's function does.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import msgspec
from msgspec import Struct

from obhut.errors import SandboxError
from obhut.host.data.loader_messages import Request, Walled, write

from . import loader_walls


class Task(Struct, frozen=True):
    """What the process is told, on its standard input.

    Attributes:
        request: what to run.
        secrets: files and folders that it may not read.
        scratch: the folder that it may write into.
        walled: whether it is walled in.
    """

    request: Request
    secrets: tuple[str, ...]
    scratch: str
    walled: bool


def main(pipe: int) -> int:
    """Run the task that comes on the standard input; return the exit code."""
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    walls, why = frozenset[str](), ""
    if task.walled:
        walls, why = loader_walls.separate(task.request.network)
    loader_walls.lead()
    # The first process of a namespace ends it, and is deaf to its own signals: that
    # is not the loader.
    for _ in range(2):
        pid = os.fork()
        if pid:
            os.close(pipe)
            return loader_walls.wait(pid)
        loader_walls.follow()
    try:
        if task.walled:
            walls = loader_walls.enter(
                task.request.network,
                map(Path, task.secrets),
                Path(task.scratch),
                walls,
                why,
            )
        else:
            loader_walls.harden()
    except SandboxError as error:
        write(pipe, Walled((), (error.wall, error.why, error.advice)))
        return 1
    write(pipe, Walled(tuple(sorted(walls))))
    # Only now: NumPy starts threads when it is loaded, which walls would not be around.
    code: int = importlib.import_module("obhut.host.data.loader_call").run(
        task.request, pipe
    )
    return code


if __name__ == "__main__":
    # Not sys.exit, which would wait for threads that the function left behind.
    _code = main(int(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_code)
