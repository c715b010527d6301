"""Calls an owner's function, in the loader's process, and says what came of it.

Rules:

- What it raises is shown on the owner's console, with the owner's part of the trace.
  The worker is told the kind of error and the line, and no value.
- A module is found in the declaration's folder first, then among installed ones.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

from obhut.errors import DatasetError

from .loader_messages import Done, Failed, Request, write
from .loader_values import ReturnedError, send

_HOME = str(Path(__file__).parents[2])


def run(request: Request, pipe: int) -> int:
    """Call a function and say what it returned.

    Args:
        request: which.
        pipe: where it is said.

    Returns:
        the process's exit code.
    """
    if request.folder:
        sys.path.insert(0, request.folder)
    arguments = [] if request.path is None else [Path(request.path)]
    try:
        function = _found(request)
        send(pipe, function(*arguments, *request.arguments))
        said: Done | Failed = Done()
    except ReturnedError as error:
        said = Failed(str(error), "see the documentation of loader")
    except DatasetError as error:
        said = Failed(error.problem, error.advice, error.file, error.column, error.row)
    except BrokenPipeError:
        return 1  # nobody wants it any more
    except BaseException as error:  # SystemExit, too
        # All of it is the owner's to see, and nobody else's.
        frames = error.__traceback__ and _own(error.__traceback__)
        traceback.print_exception(type(error), error, frames, file=sys.stderr)
        said = Failed(
            f"raised {type(error).__name__}{_place(frames)}",
            "correct it; what it said is above",
        )
    sys.stderr.flush()
    sys.stdout.flush()
    write(pipe, said)
    return 0


# Any: it is what the owner wrote.
def _found(request: Request) -> Any:
    """Return the function.

    Raises:
        DatasetError: if there is none.
        Exception: whatever its module raises when it is imported.
    """
    module, name = request.module, request.function
    try:
        function = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise DatasetError(
            "",
            f"there is no module {module} in {request.folder}, and none is installed",
            "correct loader, or put the module there",
        ) from error
    if not callable(function):
        raise DatasetError(
            "", f"{module} has no function {name}", "correct loader, or define it"
        )
    return function


def _own(trace: TracebackType) -> TracebackType | None:
    """Return the part of a trace that is the owner's: what comes behind this module's.

    None where nothing does: the module was not found, or has no such function.
    """
    left: TracebackType | None = trace
    while left is not None and _ours(left.tb_frame.f_code.co_filename):
        left = left.tb_next
    return left


def _ours(file: str) -> bool:
    return file.startswith((_HOME, "<frozen importlib")) or file == importlib.__file__


def _place(trace: TracebackType | None) -> str:
    """Say where something was raised, in the owner's own file."""
    if trace is None:
        return ""
    code = trace.tb_frame.f_code
    return f" in {Path(code.co_filename).name}, line {trace.tb_lineno}, {code.co_name}"
