"""The code cells of a notebook, run in order in one namespace.

Rules:

- A traceback names ``FILE.ipynb, cell N`` and shows the line; N counts code cells
  from 1, as ``In [N]`` does where all were run once.
- What only a notebook's own shell understands (``%magic``, ``!command``) is left
  out with a warning. A line is taken for that only where Python can't read it.

Source: https://nbformat.readthedocs.io, notebook format 4.
"""

from __future__ import annotations

import json
import linecache
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, ModuleType

_RUN_ANYWAY = frozenset(("%%time", "%%timeit", "%%capture", "%%prun"))
"""Cell magics around Python code; what else begins with %% is no Python."""


class NotebookError(Exception):
    """The file is no notebook of a known format."""


def run_notebook(file: Path) -> None:
    """Run a notebook's code cells as the module ``__main__``.

    Raises:
        NotebookError: if the file is no notebook of format 4.
        Exception: what a cell raised.
    """
    module = ModuleType("__main__")
    module.__dict__["__file__"] = str(file)
    before = sys.modules["__main__"]
    sys.modules["__main__"] = module
    try:
        for number, source in enumerate(read_cells(file), 1):
            code = compile_cell(source, f"{file}, cell {number}")
            exec(code, module.__dict__)  # noqa: S102 # running it is the purpose
    finally:
        sys.modules["__main__"] = before


def read_cells(file: Path) -> Iterator[str]:
    """Return the source of each code cell.

    Raises:
        NotebookError: if the file is no notebook of format 4.
    """
    try:
        notebook = json.loads(file.read_text(encoding="utf-8"))
        cells = notebook["cells"]
        sources = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
        # A source is a string or a list of lines that keep their ends.
        return iter(["".join(source) for source in sources])
    except (ValueError, KeyError, TypeError) as error:
        raise NotebookError(
            f"{file} is not a notebook of format 4; open it in Jupyter and save it"
        ) from error


def compile_cell(source: str, name: str) -> CodeType:
    """Compile a cell, without what only a notebook's shell understands.

    Args:
        source: the cell.
        name: what tracebacks call it.

    Raises:
        SyntaxError: if what is left is not Python.
    """
    lines = source.splitlines(keepends=True)
    linecache.cache[name] = (len(source), None, lines, name)
    first = next((i for i, line in enumerate(lines) if line.strip()), 0)
    magic = lines[first].split()[0] if source.strip() else ""
    if magic.startswith("%%") and magic not in _RUN_ANYWAY:
        _warn(name, first, lines[first], "the cell")
        return compile("", name, "exec")
    while True:
        try:
            return compile("".join(lines), name, "exec", dont_inherit=True)
        except SyntaxError as error:
            at = (error.lineno or 1) - 1
            if not lines[at:] or lines[at].lstrip()[:1] not in ("%", "!"):
                raise
            _leave_out(lines, at, name)


def _leave_out(lines: list[str], at: int, name: str) -> None:
    """Put ``pass`` in the place of a line, and of those that continue it."""
    _warn(name, at, lines[at], "the line")
    line = lines[at]
    lines[at] = line[: len(line) - len(line.lstrip())] + "pass\n"
    while line.rstrip().endswith("\\") and at + 1 < len(lines):
        at += 1
        line, lines[at] = lines[at], "\n"


def _warn(name: str, at: int, line: str, what: str) -> None:
    print(  # noqa: T201 # the command's output
        f"obhut run: {name}, line {at + 1}: left out {what} {line.strip()!r}, "
        "which is not Python",
        file=sys.stderr,
    )
