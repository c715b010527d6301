from __future__ import annotations

import json
import sys
from pathlib import Path

import nbformat
import pytest

from .conftest import Invoke


def _write(folder: Path, *cells: str) -> Path:
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_markdown_cell("# A title"),
        *(nbformat.v4.new_code_cell(cell) for cell in cells),
    ]
    file = folder / "tutorial.ipynb"
    nbformat.write(notebook, file)
    return file


def test_cells_share_a_namespace_and_syft_is_obhut(
    tmp_path: Path, invoke: Invoke
) -> None:
    """Code cells run in order, as one program that may import syft."""
    file = _write(
        tmp_path,
        "import torch\nimport syft as sy\nhook = sy.TorchHook(torch)",
        "bob = sy.VirtualWorker(hook, id='bob')",
        "x = torch.tensor([1.0, 2.0]).send(bob)\nprint((x * 3).get())",
        "print(__name__)",
    )
    before = sys.modules["__main__"]
    result = invoke("run", file)
    assert result.exit_code == 0, result.output
    assert result.stdout == "tensor([3., 6.])\n__main__\n"
    assert sys.modules["__main__"] is before


def test_an_exception_names_cell_and_line(tmp_path: Path, invoke: Invoke) -> None:
    """A traceback names each cell it passes, and shows the lines."""
    file = _write(tmp_path, "def fail():\n    return 1 / 0", "x = 1\nfail()")
    result = invoke("run", file)
    assert result.exit_code == 1
    lines = [line.strip() for line in result.stderr.splitlines()]
    assert lines[1] == f'File "{file}, cell 2", line 2, in <module>'
    assert lines[2] == "fail()"
    assert f'File "{file}, cell 1", line 2, in fail' in lines
    assert "return 1 / 0" in lines


def test_a_failure_at_a_worker_names_the_cell(tmp_path: Path, invoke: Invoke) -> None:
    """An error of a remote operator names the cell and line that asked for it."""
    file = _write(
        tmp_path,
        "import torch\nimport syft as sy\nbob = sy.VirtualWorker(id='bob')",
        "import obhut\nx = obhut.send(torch.zeros(2), bob)\n"
        "i = obhut.send(torch.tensor([7]), bob)\ny = x[i]\ny.get()",
    )
    result = invoke("run", file)
    assert result.exit_code == 1
    assert f"{file}, cell 2:4" in result.stderr


@pytest.mark.parametrize(
    ("cell", "left_out"),
    [
        ("%matplotlib inline\nprint('on')", "%matplotlib inline"),
        ("if True:\n    !pip install it's \\\n      more\nprint('on')", "!pip install"),
        ("%%time\nprint('on')", "%%time"),
        ("a = (7\n% 4)\n!ls\nprint('on' if a == 3 else 'off')", "!ls"),
    ],
)
def test_what_only_notebooks_understand_is_left_out(
    cell: str, left_out: str, tmp_path: Path, invoke: Invoke
) -> None:
    """Magics and shell commands are skipped with a warning; Python's % is not."""
    result = invoke("run", _write(tmp_path, cell))
    assert result.exit_code == 0, result.output
    assert result.stdout == "on\n"
    assert result.stderr.count("left out") == 1
    assert left_out in result.stderr
    assert "cell 1, line" in result.stderr


def test_a_cell_in_another_language_is_left_out(tmp_path: Path, invoke: Invoke) -> None:
    """A cell under %%bash is skipped as a whole; the next one runs."""
    result = invoke("run", _write(tmp_path, "\n%%bash\nrm it", "print('on')"))
    assert result.stdout == "on\n"
    assert "left out the cell '%%bash'" in result.stderr


def test_a_syntax_error_names_the_cell(tmp_path: Path, invoke: Invoke) -> None:
    """What is not Python, and no magic either, fails with cell and line."""
    result = invoke("run", _write(tmp_path, "x = 1", "y = 1\nz = = 2"))
    assert result.exit_code == 1
    assert 'cell 2", line 2' in result.stderr
    assert "z = = 2" in result.stderr


def test_sources_may_be_lists_of_lines(tmp_path: Path, invoke: Invoke) -> None:
    """A notebook's cells may keep their source as a string or as lines."""
    file = tmp_path / "plain.ipynb"
    cells = [
        {"cell_type": "code", "source": source}
        for source in (["x = 1\n", "print(x)"], "print(x + 1)", [], "  \n")
    ]
    file.write_text(json.dumps({"cells": cells, "nbformat": 4}))
    assert invoke("run", file).stdout == "1\n2\n"


@pytest.mark.parametrize("text", ["not json", "[]", '{"worksheets": []}'])
def test_another_format_is_refused(text: str, tmp_path: Path, invoke: Invoke) -> None:
    """A file that is no notebook of format 4 is named, without a traceback."""
    file = tmp_path / "old.ipynb"
    file.write_text(text)
    result = invoke("run", file)
    assert result.exit_code == 1
    assert "old.ipynb is not a notebook of format 4" in result.stderr
    assert "Traceback" not in result.stderr
