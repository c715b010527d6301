"""How a command says why it can not be carried out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import typer

from obhut.errors import FileError, ObhutError


@contextlib.contextmanager
def told(of: object, *others: type[Exception]) -> Iterator[None]:
    """Print an error in a line, and exit with 1.

    Args:
        of: what stands before it, the command or its configuration, unless the error
            says which file it is about.
        others: further errors that are told so.
    """
    errors: tuple[type[Exception], ...] = (ObhutError, *others)
    try:
        yield
    except errors as error:
        named = isinstance(error, FileError)
        typer.echo(str(error) if named else f"{of}: {error}", err=True)
        raise typer.Exit(1) from error
