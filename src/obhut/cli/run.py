"""A file run as the main program, with ``import syft`` meaning obhut.

Rules:

- It finds what it would find if ``python FILE`` ran it: ``__name__``, ``sys.argv``
  and its own folder on the path.
- The exit code is its own: what ``sys.exit`` was given, 1 after an exception, 130
  after Ctrl-C.
- A traceback shows the file's lines and what they called, nothing of this.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import obhut
from obhut.errors import MissingExtraError
from obhut.extras import import_extra

from .notebook import NotebookError

_INTERRUPTED = 130
"""As shells have it: 128 and the number of the signal."""


def run_file(
    file: Path,
    args: Sequence[str],
    *,
    save: Path | None = None,
    plots: Path | None = None,
) -> int:
    """Run a script or notebook and return its exit code.

    Args:
        file: a notebook if it ends in ``.ipynb``, else a script.
        args: its arguments.
        save: where to write a notebook with its outputs.
        plots: the folder for a notebook's pictures.
    """
    obhut.install_as_syft()
    argv, path = sys.argv, sys.path[:]
    sys.argv = [str(file), *args]
    sys.path.insert(0, str(file.resolve().parent))
    try:
        if file.suffix == ".ipynb":
            return _run_notebook(file, save, plots)
        runpy.run_path(str(file), run_name="__main__")
    except (MissingExtraError, NotebookError) as error:
        print(f"obhut run: {error}", file=sys.stderr)  # noqa: T201 # the command's output
        return 1
    except SystemExit as error:
        return _exit_code(error)
    except BaseException as error:
        _show_traceback(error, str(file))
        return _INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
    finally:
        sys.argv, sys.path[:] = argv, path
    return 0


def _run_notebook(file: Path, save: Path | None, plots: Path | None) -> int:
    """Run a notebook and return its exit code.

    Raises:
        MissingExtraError: if IPython is not installed.
        NotebookError: if the file is no notebook of format 4.
        SystemExit: if a cell exits.
    """
    import_extra("IPython", "a notebook", "notebook")
    from .shell import CellError, run_notebook

    try:
        run_notebook(file, save=save, plots=plots)
    except CellError as error:
        return _INTERRUPTED if isinstance(error.__cause__, KeyboardInterrupt) else 1
    return 0


def _exit_code(error: SystemExit) -> int:
    """Return the code that Python itself would exit with."""
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code
    print(error.code, file=sys.stderr)  # noqa: T201 # as Python does
    return 1


def _show_traceback(error: BaseException, file: str) -> None:
    """Show a traceback that begins in the file, as the file wants it shown."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            break
        trace = trace.tb_next
    sys.excepthook(type(error), error.with_traceback(trace), trace)
