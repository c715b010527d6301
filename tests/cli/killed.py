"""Runs commands in processes that are killed at the n-th thing they do to files.

A request is a line of JSON, ``[n, folder, argument, …]``; n is 0 for none. The answer
is a line with the exit code, or with -9.
"""

from __future__ import annotations

import json
import os
import signal
import sys

from obhut.cli.main import app
from obhut.identity import joining, rotation

LOADED = (joining, rotation)
"""What commands import when they run: here once, and not in each process."""

EVENTS = ("open", "os.", "shutil.")


def main() -> None:
    """Answer requests."""
    for line in sys.stdin:
        at, folder, *arguments = json.loads(line)
        child = os.fork()
        if not child:
            os._exit(run(at, folder, arguments))
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def run(at: int, folder: str, arguments: list[str]) -> int:
    """Run a command, and return its exit code."""
    seen = 0

    def watch(event: str, told: tuple[object, ...]) -> None:
        nonlocal seen
        if event.startswith(EVENTS) and any(
            str(one).startswith(folder) for one in told
        ):
            seen += 1
            if seen == at:
                os.kill(os.getpid(), signal.SIGKILL)

    if at:
        sys.addaudithook(watch)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    code = app(arguments, standalone_mode=False)
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    main()
