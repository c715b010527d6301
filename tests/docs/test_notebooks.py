"""The tutorials run, and print what their saved output says."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

TUTORIALS = Path(__file__).parents[2] / "docs" / "tutorials"
NAMES = ("trusted_aggregator.ipynb", "trusted_aggregator.de.ipynb")
FIGURES = ("tensor(0.3798)", "tensor(5.8271e-05)", "tensor(0.0187)")
"""From the first loop, from the last round, and the final loss."""


def load(name: str) -> NotebookNode:
    """Return a notebook as it is saved."""
    return nbformat.read(TUTORIALS / name, as_version=4)


def sources(notebook: NotebookNode) -> list[str]:
    """Return the code of each code cell."""
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook: NotebookNode) -> str:
    """Return all that its cells printed and returned."""
    parts: list[str] = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                assert output.name == "stdout", output.text
                parts.append(output.text)
            else:
                parts.append(output.data["text/plain"] + "\n")
    return "".join(parts)


@pytest.mark.parametrize("name", NAMES)
def test_a_tutorial_prints_what_it_says(name: str) -> None:
    """Run anew, it prints its saved output, with the older library's figures in it."""
    saved = load(name)
    fresh = load(name)
    for cell in fresh.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    NotebookClient(fresh, timeout=100, kernel_name="python3").execute()
    assert printed(fresh) == printed(saved)
    for figure in FIGURES:
        assert figure in printed(fresh)


def test_both_languages_run_the_same_code() -> None:
    """The German tutorial differs from the English one in its words only."""
    english, german = map(load, NAMES)
    assert sources(english) == sources(german)
    kinds = [[cell.cell_type for cell in one.cells] for one in (english, german)]
    assert kinds[0] == kinds[1]
