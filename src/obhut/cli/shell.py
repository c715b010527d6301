"""A notebook's code cells, run in order by IPython in this process.

Rules:

- Outputs come as in Jupyter: what a cell prints, its last expression's value, what it
  displays, its figures. So do ``raises-exception``, ``input()`` and the folder.
- A traceback names ``FILE.ipynb, cell N`` and shows the cell's line, under a cell
  magic too; IPython's own frames are left out.
- Nothing is installed or removed: such lines, and magics that IPython does not know,
  are left out with a note.
- A user's profile and history are neither read nor written.
"""

from __future__ import annotations

import ast
import atexit
import contextlib
import importlib.util
import linecache
import os
import re
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import IPython
from IPython.core.compilerop import CachingCompiler
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from traitlets import Type
from traitlets.config import Config

from .notebook import Cell, Notebook
from .outputs import Outputs

# Any below: what IPython's own methods take and return.

_INSTALLERS = frozenset(("conda", "mamba", "micromamba", "pip", "uv"))
_INSTALLS = re.compile(
    r"\b(pip3?|conda|mamba|apt|apt-get|brew)\b[^;&|\n]*"
    r"\b(install|uninstall|remove|update|upgrade)\b"
)
_SHELLS = frozenset(("!", "bash", "script", "sh", "sx", "system"))
"""Cell magics whose text goes to a shell."""

_OWN = (str(Path(IPython.__file__).parent) + os.sep, __file__)
"""What a traceback leaves out: the beginnings of files' names."""


class CellError(Exception):
    """A cell raised; its traceback was shown."""


def run_notebook(
    file: Path, *, save: Path | None = None, plots: Path | None = None
) -> None:
    """Run a notebook's code cells as the module ``__main__``, in its folder.

    Args:
        file: the notebook.
        save: where to write it with its outputs, however it ends; None for nowhere.
        plots: the folder for its pictures; None if they are not to be files.

    Raises:
        NotebookError: if the file is no notebook of format 4.
        CellError: from what a cell raised.
        SystemExit: if a cell exits.
    """
    notebook = Notebook(file)
    save = None if save is None else save.absolute()
    plots = None if plots is None else plots.absolute()
    outputs = Outputs(sys.stdout, sys.stderr, plots)
    with _shell(file, outputs) as shell:
        try:
            for cell in notebook.cells:
                _run(shell, cell)
        finally:
            if save is not None:
                notebook.save(save)


def _run(shell: CellShell, cell: Cell) -> None:
    """Run a cell.

    Raises:
        CellError: if it raises and may not.
        SystemExit: if it exits.
    """
    try:
        error = shell.run(cell.number, cell.source)
    finally:
        cell.put_out(shell.outputs.take())
    if isinstance(error, SystemExit):
        raise error
    if error is not None and not (cell.may_fail and isinstance(error, Exception)):
        raise CellError from error


@contextlib.contextmanager
def _shell(file: Path, outputs: Outputs) -> Iterator[CellShell]:
    """Make a shell that ``get_ipython()`` finds, and take all of it back."""
    config = Config()
    config.HistoryManager.enabled = False
    config.HistoryManager.hist_file = ":memory:"
    config.InteractiveShell.display_page = True
    before = os.environ.get("MPLBACKEND")
    with tempfile.TemporaryDirectory() as folder:
        shell: CellShell = CellShell.instance(
            config=config, ipython_dir=folder, user_module=ModuleType("__main__")
        )
        shell.file, shell.outputs = file, outputs
        # As Jupyter does for its kernels; matplotlib need not be there.
        os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
        try:
            with (
                contextlib.chdir(file.absolute().parent),
                contextlib.redirect_stdout(outputs.stdout),
                contextlib.redirect_stderr(outputs.stderr),
            ):
                yield shell
        finally:
            os.environ.pop("MPLBACKEND")
            if before is not None:
                os.environ["MPLBACKEND"] = before
            atexit.unregister(shell.atexit_operations)
            shell.restore_sys_module_state()
            CellShell.clear_instance()


class CellCompiler(CachingCompiler):
    """Compiles a cell, and what a magic takes from it, under the cell's name."""

    def begin(self, name: str, source: str) -> None:
        """Let what follows be a cell's.

        Args:
            name: what tracebacks call it.
            source: the cell, as they show it.
        """
        self.name = name
        # Python's tracebacks mark the right columns of lines that end.
        self._lines = [line + "\n" for line in source.splitlines()]
        self._blank = next(i for i, line in enumerate(self._lines) if line.strip())
        self._magic = self._lines[self._blank].startswith("%%")
        linecache.cache[name] = (len(source), None, self._lines, name)

    def cache(
        self, transformed_code: str, number: int = 0, raw_code: str | None = None
    ) -> str:
        """Return the cell's name; its lines are known already."""
        return self.name

    def ast_parse(
        self, source: str, filename: str = "<unknown>", symbol: str = "exec"
    ) -> ast.AST:
        """Parse the cell or its part, with the cell's line numbers.

        Raises:
            SyntaxError: if it is not Python.
        """
        above = self._above(source)
        try:
            tree = super().ast_parse(source, self.name, symbol)
        except SyntaxError as error:
            error.lineno = (error.lineno or 1) + above
            error.end_lineno = (error.end_lineno or 1) + above
            raise
        return ast.increment_lineno(tree, above)

    def _above(self, source: str) -> int:
        """Return how many of the cell's lines stand above a part of it."""
        # IPython leaves out blank lines at the top.
        if self._magic and not source.startswith("get_ipython().run_cell_magic("):
            return len(self._lines) - len(source.splitlines())
        return self._blank

    def __call__(self, source: Any, filename: str, symbol: str, **options: Any) -> Any:
        """Compile; what ``%%time`` times is the cell's."""
        timed = self._magic and filename.startswith("<timed ")
        return super().__call__(
            source, self.name if timed else filename, symbol, **options
        )


class _LastValues(DisplayHook):
    """Hands over the values of last expressions."""

    def write_output_prompt(self) -> None:
        """Write none."""

    def write_format_data(
        self, format_dict: Mapping[str, Any], md_dict: Mapping[str, Any] | None = None
    ) -> None:
        """Hand over a value's looks."""
        shell: Any = self.shell
        shell.outputs.result(format_dict, md_dict or {})


class _Displays(DisplayPublisher):
    """Hands over what is displayed."""

    def publish(
        self,
        data: Mapping[str, Any],
        metadata: Mapping[str, Any] | None = None,
        source: Any = None,
        *,
        transient: Mapping[str, Any] | None = None,
        update: bool = False,
        **_: Any,
    ) -> None:
        """Hand over its looks."""
        shell: Any = self.shell
        id = (transient or {}).get("display_id")
        shell.outputs.display(data, metadata or {}, id, update)

    def clear_output(self, wait: bool = False) -> None:
        """Hand over that what was displayed is over."""
        shell: Any = self.shell
        shell.outputs.clear(wait)


class CellShell(InteractiveShell):
    """IPython's shell, for the cells of a file.

    Attributes:
        file: the notebook.
        outputs: takes what cells put out.
    """

    compiler_class = Type(CellCompiler)
    displayhook_class = Type(_LastValues)
    display_pub_class = Type(_Displays)
    compile: CellCompiler
    file: Path
    outputs: Outputs

    def run(self, number: int, source: str) -> BaseException | None:
        """Run a cell and return what it raised.

        Args:
            number: the cell's.
            source: its text, not blank.
        """
        self.compile.begin(f"{self.file}, cell {number}", source)
        self.outputs.begin(number)
        # IPython says this of every SystemExit.
        warnings.filterwarnings("ignore", "To exit: use")
        self._raised: BaseException | None = None
        self.run_cell(source, store_history=True)
        return self._raised

    def init_virtualenv(self) -> None:
        """Leave ``sys.path`` as it is."""

    def enable_gui(self, gui: Any = None) -> None:
        """Open no windows."""

    def enable_matplotlib(self, gui: Any = None) -> Any:
        """Show figures as Jupyter does, whichever way ``%matplotlib`` names."""
        if importlib.util.find_spec("matplotlib") is None:
            self._leave_out("%matplotlib")
            return "inline", None
        return super().enable_matplotlib("inline")

    def ask_exit(self) -> None:
        """Exit, as ``exit()`` asks for."""
        raise SystemExit

    def showtraceback(self, exc_tuple: Any = None, *args: Any, **options: Any) -> None:
        """Show what a cell, a magic or a figure raised, without IPython's frames."""
        _, error, trace = self._get_exc_info(exc_tuple)
        self._raised = error
        if not isinstance(error, SystemExit):
            told = traceback.TracebackException(type(error), error, trace)
            _leave_out_frames(told)
            self.outputs.error(error, "".join(told.format()))

    def showsyntaxerror(self, *args: Any, **options: Any) -> None:
        """Show that a cell is not Python."""
        self.showtraceback()

    def system(self, cmd: str) -> None:
        """Run what follows ``!``, unless it installs something."""
        if _INSTALLS.search(cmd):
            self._leave_out(f"!{cmd}")
        else:
            command = self.var_expand(cmd, depth=1)
            self.user_ns["_exit_code"] = _system(command)

    def run_line_magic(
        self, magic_name: str, line: str, _stack_depth: int = 1
    ) -> object:
        """Run what follows ``%``, unless it is unknown or installs something."""
        if magic_name in _INSTALLERS or self.find_line_magic(magic_name) is None:
            self._leave_out(f"%{magic_name} {line}".rstrip())
            return None
        return super().run_line_magic(magic_name, line, _stack_depth + 1)

    def run_cell_magic(self, magic_name: str, line: str, cell: str) -> object:
        """Run what is under ``%%``, unless it is unknown or installs something."""
        installs = magic_name in _SHELLS and _INSTALLS.search(cell)
        if installs or self.find_cell_magic(magic_name) is None:
            self._leave_out(f"%%{magic_name} {line}".rstrip())
            return None
        return super().run_cell_magic(magic_name, line, cell)

    def _leave_out(self, what: str) -> None:
        sys.stderr.write(
            f"obhut run: {self.compile.name}: left out {what!r}; if it is needed, "
            "do it before\n"
        )


def _system(command: str) -> int:
    """Run a command in the user's shell; what it writes is shown as it comes.

    IPython's own reads from a pseudo-terminal and loses the output of a command that
    ends before the terminal has handed it on.

    Returns:
        Its exit status; the negative number of the signal that ended it.
    """
    reading, writing = os.pipe()
    # Progress bars end their lines by "\r".
    with open(reading, errors="replace", newline="") as lines:
        try:
            process = subprocess.Popen(  # noqa: S603 # the user's own line
                [os.environ.get("SHELL", "/bin/sh"), "-c", command],
                stdout=writing,
                stderr=writing,
            )
        finally:
            os.close(writing)
        with process:
            for line in lines:
                sys.stdout.write(line)
                sys.stdout.flush()
    return process.returncode


def _leave_out_frames(told: traceback.TracebackException) -> None:
    """Leave IPython's frames out of a traceback and those that it names."""
    told.stack[:] = [one for one in told.stack if not one.filename.startswith(_OWN)]
    for other in (told.__cause__, told.__context__, *(told.exceptions or ())):
        if other is not None:
            _leave_out_frames(other)
