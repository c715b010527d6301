"""A file run as the main program, with ``import syft`` meaning obhut.

Rules:

- It finds what it would find if ``python FILE`` ran it: ``__name__``, ``sys.argv``
  and its own folder on the path.
- The exit code is its own: what ``sys.exit`` was given, 1 after an exception.
- A traceback shows the file's lines and what they called, nothing of this.
"""

from __future__ import annotations

import runpy
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import obhut

from .notebook import NotebookError, run_notebook


def run_file(file: Path, args: Sequence[str]) -> int:
    """Run a script or notebook and return its exit code.

    Args:
        file: a notebook if it ends in ``.ipynb``, else a script.
        args: its arguments.
    """
    obhut.install_as_syft()
    argv, path = sys.argv, sys.path[:]
    sys.argv = [str(file), *args]
    sys.path.insert(0, str(file.resolve().parent))
    try:
        if file.suffix == ".ipynb":
            run_notebook(file)
        else:
            runpy.run_path(str(file), run_name="__main__")
    except NotebookError as error:
        print(f"obhut run: {error}", file=sys.stderr)  # noqa: T201 # the command's output
        return 1
    except SystemExit as error:
        return _exit_code(error)
    except Exception as error:
        _print_traceback(error, str(file))
        return 1
    finally:
        sys.argv, sys.path[:] = argv, path
    return 0


def _exit_code(error: SystemExit) -> int:
    """Return the code that Python itself would exit with."""
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code
    print(error.code, file=sys.stderr)  # noqa: T201 # as Python does
    return 1


def _print_traceback(error: Exception, file: str) -> None:
    """Print a traceback that begins in the file."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.startswith(file):
            break
        trace = trace.tb_next
    traceback.print_exception(type(error), error, trace)
