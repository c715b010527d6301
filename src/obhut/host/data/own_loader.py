"""What an owner's loader returned, as the tensors of a data set.

::

    asked = own_loader.request(declaration)
    found = own_loader.read(declaration, asked, run)     # tensors, or rows of a table

Rules:

- The function runs in a process of its own (``run``, which transports have); nothing
  that it returns is taken on trust: arrays are checked as those of files are.
- Several pieces are alike: each has the same arrays, or is a table.
- What its process says of itself is not quoted further than one line.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import IO, Protocol, TypeAlias

from obhut.errors import DatasetError, SandboxError
from obhut.host import files
from obhut.host.wording import printable, quote

from .declaration import DatasetDeclaration, of_tables
from .loader_messages import (
    Done,
    Failed,
    Head,
    Message,
    Request,
    Rows,
    Values,
    Walled,
)
from .loader_messages import read as read_message
from .loader_rows import LoaderRows
from .selection import ArrayTensors, Loaded
from .stored import READ, Stored


class Running(Protocol):
    """A loader's process, while it runs.

    Attributes:
        pipe: what it says, as ``loader_messages``.
    """

    pipe: IO[bytes]

    def end(self) -> str:
        """Wait for its end, if it hung up; say how it ended."""


Run: TypeAlias = Callable[[Request], AbstractContextManager[Running]]
"""Starts a loader's process, which ends with the block."""

_SAID = 300
"""Characters that are quoted of a failure."""

_ANEW = "correct the loader; see its documentation"


def request(declaration: DatasetDeclaration) -> Request:
    """Return what is run for a declaration.

    Raises:
        UnsafeFileError: if others could change the owner's module.
    """
    place = declaration.loader
    if place is None:
        raise ValueError("expected a declaration with a loader")
    module, _, function = place.name.partition(":")
    top = place.parent / module.partition(".")[0]
    for file in (top.with_suffix(".py"), top):
        if file.exists():
            files.check(file)
    return Request(
        data=str(declaration.name),
        module=module,
        function=function,
        folder=str(place.parent),
        path=None if declaration.path == Path() else str(declaration.path),
        network=declaration.loader_network,
    )


def read(
    declaration: DatasetDeclaration, asked: Request, run: Run
) -> Loaded | LoaderRows:
    """Run a loader and make tensors of its arrays, or a source of its rows.

    Duty: close the source.

    Args:
        declaration: the data set.
        asked: what is run.
        run: runs it.

    Raises:
        DatasetError: if it fails, or what it returns is no data.
        SandboxError: if it can not be walled in.
        OSError: if there is no process or memory for it.
    """
    with run(asked) as running:
        said = _Said(declaration.file, running)
        notes = (said.walls(),)
        first = said.next()
        match first:
            case Rows():
                if declaration.features is None and declaration.target is None:
                    raise said.error(
                        "returned a table, whose columns are used only if they are "
                        "named",
                        'add features = ["…"], or features = "*" for all but the '
                        "target",
                    )
                return _rows(said, first, notes)
            case Values():
                loaded = _arrays(declaration, said, first)
            case _:
                raise said.error("returned nothing", _ANEW)
    return Loaded(loaded.tensors, replace(loaded.report, notes=notes))


def _rows(said: _Said, message: Message, notes: tuple[str, ...]) -> LoaderRows:
    with contextlib.ExitStack() as stack:
        rows = stack.enter_context(LoaderRows(said.file, notes))
        while not isinstance(message, Done):
            if not isinstance(message, Rows):
                raise said.error("returned arrays after a table", _ANEW)
            rows.take(said.pipe, message.size)
            message = said.next()
        stack.pop_all()
        return rows


def _arrays(declaration: DatasetDeclaration, said: _Said, first: Values) -> Loaded:
    """Make tensors of all that comes."""
    key = of_tables(declaration)
    if key:
        raise said.error(
            f"returned arrays, and {key} is for tables",
            f"leave {key} out, or return a table of pandas or pyarrow",
        )
    names = [head.name for head in first.arrays]
    if len({*names}) != len(names):
        raise said.error("returned two arrays of one name", _ANEW)
    with ArrayTensors(declaration) as tensors:
        chosen = {one.stored: one for one in tensors.choose(names)}
        message: Message = first
        while not isinstance(message, Done):
            if not isinstance(message, Values):
                raise said.error("returned a table after arrays", _ANEW)
            if [head.name for head in message.arrays] != names:
                raise said.error("returned pieces with arrays of other names", _ANEW)
            for head in message.arrays:
                stored = said.stored(head)
                if head.name not in chosen:
                    said.skip(stored)
                elif stored.nbytes:
                    choice = chosen[head.name]
                    tensors.append(choice, stored, said.pipe, said.file, ahead=False)
            message = said.next()
        return tensors.finish()


class _Said:
    """What a loader's process says, one message after the other."""

    def __init__(self, file: str, running: Running) -> None:
        self.file = file
        self._running = running

    @property
    def pipe(self) -> IO[bytes]:
        """What it says, for the bytes that follow a message."""
        return self._running.pipe

    def error(self, problem: str, advice: str) -> DatasetError:
        """Return the error that names the loader."""
        return DatasetError(self.file, problem, advice)

    def walls(self) -> str:
        """Take in that it is behind its walls, and say which stand.

        Raises:
            SandboxError: if too few do.
        """
        message = self.next()
        if not isinstance(message, Walled):
            raise self.error("said something else than it must", "report it")
        if message.refused is not None:
            raise SandboxError(*message.refused)
        walls = ", ".join(message.walls) or "none"
        return f"read behind these walls: {walls}"

    def next(self) -> Message:
        """Return the next message, which is no failure.

        Raises:
            DatasetError: if it failed, ended or said what is no message.
        """
        try:
            message = read_message(self._running.pipe)
        except EOFError as error:
            how = self._running.end()
            raise self.error(
                f"ended before it returned: {how}", "see what it said above"
            ) from error
        except ValueError as error:
            raise self.error(
                "wrote into the pipe of its result", "write to standard output only"
            ) from error
        if isinstance(message, Failed):
            raise DatasetError(
                printable(message.file)[:_SAID] or self.file,
                printable(message.problem)[:_SAID],
                printable(message.advice)[:_SAID],
                printable(message.column)[:_SAID],
                message.row,
            )
        return message

    def skip(self, stored: Stored) -> None:
        """Pass over an array that nobody asked for."""
        left = stored.nbytes
        while left:
            data = self._running.pipe.read(min(left, 2**20))
            if not data:
                raise stored.error(self.file, "ends too early", _ANEW)
            left -= len(data)

    def stored(self, head: Head) -> Stored:
        """Return what an array is.

        Raises:
            DatasetError: if it can not be a tensor.
        """
        if head.dtype not in READ:
            raise self.error(f"returned elements of type {quote(head.dtype)}", _ANEW)
        stored = Stored(head.name, head.dtype, head.shape)
        if stored.nbytes:
            stored.check(self.file, stored.nbytes)
        return stored
