"""The tutorials run, and print what their saved output says."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

TUTORIALS = Path(__file__).parents[2] / "docs" / "tutorials"
OLDER_LIBRARYS = ("tensor(0.3798)", "tensor(5.8271e-05)", "tensor(0.0187)")
"""From the first loop, from the last round, and the final loss."""

REFUSALS = (
    "rule place: an owner's values leave only for an aggregator",
    "rule quorum: 3 owners are needed, and this is a sum over alice (coefficients 1)",
    "this is a sum over alice, bob (coefficients 1, 1); add carol",
    "rule p-percent: ",
    "rule atoms: ",
    "1 contribution could not be used: a value was NaN or infinite, or its computation",
)
"""What is asked for, and does not leave; and the warning of NaN."""

TUTORIALS_SAY = {
    "trusted_aggregator": OLDER_LIBRARYS,
    "guarded_aggregator": REFUSALS,
}
"""What each must print, by its name."""

LANGUAGES = (".ipynb", ".de.ipynb")


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


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", TUTORIALS_SAY)
def test_a_tutorial_prints_what_it_says(name: str, language: str) -> None:
    """Run anew, it prints its saved output, and what it is there to show is in it."""
    saved = load(name + language)
    fresh = load(name + language)
    for cell in fresh.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    NotebookClient(fresh, timeout=100, kernel_name="python3").execute()
    assert printed(fresh) == printed(saved)
    for text in TUTORIALS_SAY[name]:
        assert text in printed(fresh)


@pytest.mark.parametrize("name", TUTORIALS_SAY)
def test_both_languages_run_the_same_code(name: str) -> None:
    """A German tutorial differs from the English one in its words only."""
    english, german = (load(name + language) for language in LANGUAGES)
    assert sources(english) == sources(german)
    kinds = [[cell.cell_type for cell in one.cells] for one in (english, german)]
    assert kinds[0] == kinds[1]


def test_every_tutorial_is_looked_at() -> None:
    """There is no notebook that these tests do not run."""
    found = {path.name for path in TUTORIALS.glob("*.ipynb")}
    assert found == {name + end for name in TUTORIALS_SAY for end in LANGUAGES}
