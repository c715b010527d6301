from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest

from obhut.cli.notebook import Notebook, NotebookError

from .conftest import Invoke


def _write(folder: Path, *cells: object) -> Path:
    file = folder / "plain.ipynb"
    file.write_text(json.dumps({"cells": cells, "nbformat": 4}))
    return file


def _code(source: object, *tags: str) -> dict[str, object]:
    return {"cell_type": "code", "source": source, "metadata": {"tags": tags}}


def test_cells_that_are_run_are_numbered_as_jupyter_does(tmp_path: Path) -> None:
    """Text, blank cells and those to be skipped have no number."""
    file = _write(
        tmp_path,
        {"cell_type": "markdown", "source": "# A title"},
        _code(["x = 1\n", "print(x)"]),
        _code([]),
        _code("  \n"),
        _code("!rm it", "skip-execution"),
        _code("fail()", "raises-exception"),
        {"cell_type": "code", "source": "y"},
    )
    cells = Notebook(file).cells
    assert [(cell.number, cell.source, cell.may_fail) for cell in cells] == [
        (1, "x = 1\nprint(x)", False),
        (2, "fail()", True),
        (3, "y", False),
    ]


def test_a_notebook_is_saved_with_new_outputs_only(tmp_path: Path) -> None:
    """Old outputs go from every cell, and all else stays as it was."""
    old = nbformat.v4.new_output("stream", name="stdout", text="old\n")
    kernel = {"name": "python3", "display_name": "Python 3"}
    made = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    made.cells = [
        nbformat.v4.new_markdown_cell("# Größe"),
        nbformat.v4.new_code_cell("1", outputs=[old], execution_count=7),
        nbformat.v4.new_code_cell(" ", outputs=[old], execution_count=8),
    ]
    nbformat.write(made, tmp_path / "made.ipynb")
    notebook = Notebook(tmp_path / "made.ipynb")
    new = {"output_type": "stream", "name": "stdout", "text": ["new\n"]}
    notebook.cells[0].put_out([new])
    notebook.save(tmp_path / "saved.ipynb")
    saved = nbformat.read(tmp_path / "saved.ipynb", as_version=4)
    nbformat.validate(saved)
    assert saved.metadata == made.metadata
    assert [cell.source for cell in saved.cells] == ["# Größe", "1", " "]
    assert [cell.id for cell in saved.cells] == [cell.id for cell in made.cells]
    first, second = saved.cells[1:]
    assert (first.execution_count, second.execution_count) == (1, None)
    assert [output.text for output in first.outputs] == ["new\n"]
    assert second.outputs == []


def test_what_a_notebook_leaves_out_is_added(tmp_path: Path) -> None:
    """One without metadata and a minor version is valid once it is saved."""
    cell = {"cell_type": "code", "source": "1"}
    notebook = Notebook(_write(tmp_path, cell))
    notebook.save(tmp_path / "saved.ipynb")
    nbformat.validate(json.loads((tmp_path / "saved.ipynb").read_text()))


@pytest.mark.parametrize(
    "text", ["not json", "[]", '{"worksheets": []}', '{"cells": [1]}']
)
def test_another_format_is_refused(text: str, tmp_path: Path, invoke: Invoke) -> None:
    """A file that is no notebook of format 4 is named, without a traceback."""
    file = tmp_path / "old.ipynb"
    file.write_text(text)
    with pytest.raises(NotebookError):
        Notebook(file)
    result = invoke("run", file)
    assert result.exit_code == 1
    assert "old.ipynb is not a notebook of format 4" in result.stderr
    assert "Traceback" not in result.stderr
