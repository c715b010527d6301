"""The worker's hold on the process in which an owner's loader runs.

::

    run = Loading(secrets=(folder / "identity.key",))
    with run(request) as running:
        message = loader_messages.read(running.pipe)
        ...
        running.end()                            # how it ended, if it says no more

Rules:

- The process is gone when the block is left, with all that it started.
- What it prints goes to the owner's console, line by line, under the data set's name.
- It may take its time: who waits can end it with Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from obhut.host.configuration import WorkerConfiguration
from obhut.host.data.loader_messages import Request
from obhut.host.state_files import FOLDER as STATES
from obhut.host.wording import printable
from obhut.identity.identity import KEY

from .loader import Task
from .parent import ending

COMMAND = (sys.executable, "-P", "-m", f"{__package__}.loader")

_VARIABLES = {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}

_LINE = 2_000
"""Characters of a line that are shown."""

_END_SECONDS = 10.0


def loading(configuration: WorkerConfiguration) -> Loading:
    """Return what starts a worker's loaders."""
    folder = Path(configuration.folder)
    secrets = (folder / KEY, folder / STATES)
    return Loading(secrets, walled=configuration.sandbox != "none")


class Running:
    """A loader's process.

    Attributes:
        pipe: what it says.
    """

    def __init__(self, pipe: IO[bytes], process: subprocess.Popen[bytes]) -> None:
        self.pipe = pipe
        self._process = process

    def end(self) -> str:
        """Wait for its end, if it hung up; say how it ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        code = self._process.poll()
        if code is None:
            return "it said no more"
        return ending(128 - code if code > 128 else code)


@dataclass(frozen=True, slots=True)
class Loading:
    """Starts loaders.

    Attributes:
        secrets: files and folders that they may not read.
        walled: whether they are walled in.
        command: how a loader's process is started; its pipe's number is added.
    """

    secrets: Sequence[Path] = ()
    walled: bool = True
    command: Sequence[str] = COMMAND

    @contextlib.contextmanager
    def __call__(self, request: Request) -> Iterator[Running]:
        """Start a loader; end it when the block is left.

        Raises:
            OSError: if no process can be had.
        """
        with contextlib.ExitStack() as stack:
            scratch = stack.enter_context(
                tempfile.TemporaryDirectory(
                    prefix="obhut-loader-", ignore_cleanup_errors=True
                )
            )
            theirs, process = _start(self.command, request, scratch, stack)
            task = Task(request, tuple(map(str, self.secrets)), scratch, self.walled)
            with contextlib.suppress(BrokenPipeError), _given(process.stdin) as told:
                told.write(msgspec.json.encode(task))
            yield Running(theirs, process)


def _start(
    command: Sequence[str], request: Request, scratch: str, stack: contextlib.ExitStack
) -> tuple[IO[bytes], subprocess.Popen[bytes]]:
    """Start the process; return its pipe and it. The stack ends both."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    ours = stack.enter_context(os.fdopen(reading, "rb", buffering=0))
    try:
        process = subprocess.Popen(  # noqa: S603 # no shell, our own words
            [*command, str(writing)],
            env={**os.environ, **_VARIABLES, "TMPDIR": scratch},
            pass_fds=[writing],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=request.folder or "/",
            start_new_session=True,  # not for the terminal's Ctrl-C, nor its input
        )
    finally:
        os.close(writing)
    with _given(process.stdout) as said:
        relay = threading.Thread(
            target=_relay, args=(os.dup(said.fileno()), request.data), daemon=True
        )
    relay.start()
    stack.callback(relay.join, _END_SECONDS)
    stack.callback(_end, process)
    return ours, process


def _given(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise ValueError("expected a pipe")
    return stream


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started."""
    process.terminate()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _relay(said: int, name: str) -> None:
    """Show what a loader prints."""
    with open(said, "rb", buffering=0) as stream:
        left = b""
        while True:
            data = stream.read(2**16)
            # A progress bar goes back to the beginning of its line.
            *lines, left = re.split(rb"[\r\n]+", left + data)
            if not data or len(left) > _LINE:
                lines, left = [*lines, left], b""
            for line in filter(None, lines):
                text = printable(line.decode(errors="replace")[:_LINE])
                sys.stderr.write(f"{printable(name)}: {text}\n")
            sys.stderr.flush()
            if not data:
                return
