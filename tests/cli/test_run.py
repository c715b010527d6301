from __future__ import annotations

import sys
from pathlib import Path

import pytest

from .conftest import Invoke

TOY = """
import torch
import syft as sy
hook = sy.TorchHook(torch)
bob = sy.VirtualWorker(hook, id="bob")
x = torch.tensor([1.0, 2.0]).send(bob)
print((x + x).get())
"""


def _write(folder: Path, text: str) -> Path:
    file = folder / "program.py"
    file.write_text(text)
    return file


def test_import_syft_means_obhut(tmp_path: Path, invoke: Invoke) -> None:
    """A script that imports syft runs on obhut, unchanged."""
    result = invoke("run", _write(tmp_path, TOY))
    assert result.exit_code == 0, result.output
    assert result.stdout == "tensor([2., 4.])\n"


def test_a_script_finds_what_python_gives_it(tmp_path: Path, invoke: Invoke) -> None:
    """Name, arguments (options too) and neighbours are as ``python FILE`` has them."""
    (tmp_path / "neighbour_of_program.py").write_text("WORD = 'hello'")
    file = _write(
        tmp_path,
        "import sys\nfrom neighbour_of_program import WORD\n"
        "print(__name__, sys.argv[1:], WORD)",
    )
    before = sys.argv, sys.path[:]
    result = invoke("run", file, "a", "--help", "--rounds=3")
    assert result.stdout == "__main__ ['a', '--help', '--rounds=3'] hello\n"
    assert (sys.argv, sys.path) == before


@pytest.mark.parametrize(
    ("code", "expected", "said"),
    [("", 0, ""), ("3", 3, ""), ("'no data'", 1, "no data\n"), ("None", 0, "")],
)
def test_exit_codes_are_the_scripts_own(
    code: str, expected: int, said: str, tmp_path: Path, invoke: Invoke
) -> None:
    """What a script gives to sys.exit is what obhut exits with."""
    result = invoke("run", _write(tmp_path, f"import sys\nsys.exit({code})"))
    assert (result.exit_code, result.stderr) == (expected, said)


def test_an_exception_shows_the_scripts_lines(tmp_path: Path, invoke: Invoke) -> None:
    """An exception exits with 1, and its traceback begins in the script."""
    file = _write(tmp_path, "def fail():\n    return 1 / 0\n\nfail()\n")
    result = invoke("run", file)
    assert result.exit_code == 1
    first, where, *_ = result.stderr.splitlines()
    assert first == "Traceback (most recent call last):"
    assert where.strip() == f'File "{file}", line 4, in <module>'
    assert result.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_a_syntax_error_names_its_line(tmp_path: Path, invoke: Invoke) -> None:
    """What is not Python exits with 1 and shows the line."""
    result = invoke("run", _write(tmp_path, "x = 1\ny = = 2\n"))
    assert result.exit_code == 1
    assert "line 2" in result.stderr
    assert "y = = 2" in result.stderr
    assert "runpy" not in result.stderr


def test_a_file_that_is_not_there_is_the_callers_mistake(invoke: Invoke) -> None:
    """A missing file exits with 2, as other wrong usage does."""
    result = invoke("run", "missing.py")
    assert result.exit_code == 2
    assert "missing.py" in result.stderr


def test_a_script_may_show_its_exceptions_itself(
    tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ``sys.excepthook`` of the script's is called as Python calls it."""
    monkeypatch.setattr("sys.excepthook", sys.excepthook)
    file = _write(
        tmp_path,
        "import sys\n"
        "sys.excepthook = lambda kind, error, trace: print(kind.__name__, error)\n"
        "raise KeyError('x')",
    )
    result = invoke("run", file)
    assert (result.exit_code, result.stdout) == (1, "KeyError 'x'\n")


@pytest.mark.parametrize(
    ("raised", "expected"), [("KeyboardInterrupt", 130), ("GeneratorExit", 1)]
)
def test_a_script_can_be_interrupted(
    raised: str, expected: int, tmp_path: Path, invoke: Invoke
) -> None:
    """Ctrl-C shows where the script was, and exits as shells have it."""
    result = invoke("run", _write(tmp_path, f"x = 1\nraise {raised}"))
    assert result.exit_code == expected
    assert result.stderr.splitlines()[1].endswith('program.py", line 2, in <module>')


@pytest.mark.parametrize("option", ["--save", "--plots"])
def test_options_of_notebooks_are_refused_for_scripts(
    option: str, tmp_path: Path, invoke: Invoke
) -> None:
    """They would have no effect; a folder that is not there is refused as well."""
    file = _write(tmp_path, "print('not run')")
    result = invoke("run", option, tmp_path / "out", file)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "for notebooks" in result.stderr


def test_where_a_notebook_can_not_be_saved_is_refused(
    tmp_path: Path, invoke: Invoke
) -> None:
    """Before it is run."""
    file = tmp_path / "empty.ipynb"
    file.write_text('{"cells": []}')
    result = invoke("run", "--save", tmp_path / "missing" / "out.ipynb", file)
    assert result.exit_code == 2
    assert "no folder" in result.stderr


def test_without_ipython_a_notebook_says_what_to_install(
    tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one sentence, with the package's extra."""
    monkeypatch.setitem(sys.modules, "IPython", None)
    file = tmp_path / "empty.ipynb"
    file.write_text('{"cells": []}')
    result = invoke("run", file)
    assert result.exit_code == 1
    assert result.stderr == (
        "obhut run: a notebook needs IPython, which is not installed; install it with: "
        "pip install 'obhut[notebook]'\n"
    )
