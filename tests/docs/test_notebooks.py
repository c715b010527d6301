"""The pages that are notebooks: what they are there to show is what they print.

They are run when the pages are made (`make docs`), which shows their output and ends at
a cell that fails. Here their code is run as one program.
"""

import io
import re
import runpy
from contextlib import redirect_stdout
from pathlib import Path

import matplotlib
import pytest
from matplotlib import pyplot

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "docs" / "tutorials"
GALLERY = ROOT / "docs" / "gallery"
EXAMPLES = ROOT / "examples"
CELL = re.compile(r"^```\{code-cell\} python\n(.*?)^```$", re.DOTALL | re.MULTILINE)

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
    "combined_gradients": (
        "RemoteTensor(secure_worker:",
        "(rule quorum): 3 owners are needed, and this is a sum over bob",
        "SGD      loss 0.01",
    ),
}
"""What each must print, by its name."""

EXAMPLES_SAY = {
    "look_first": (
        "tumours   169   features  area, radius (mm), texture, perimeter",
        "1: mm                       2: mm                       order (put right)",
        "569 rows",
        "{'accuracy': 0.89",
    ),
    "statistics_first": (
        "radius               569        0    14.13    3.524",
        "569 rows; of classes 0: 212, 1: 357",
        "elm's own mean is refused: an owner's values leave only for an aggregator",
    ),
    "tabular": (
        "569 rows; worst area varies most, by 569 around 881",
        "AUC of rows held out at all three: 0.99",
    ),
    "images": ("reads 98.",),
    "text": ("is like argparse", "is like tarfile"),
    "lora": ("trainable params: 4,608 || all params: 64,960",),
    "many_clients": (
        "100 clients, 1,437 rows: by_class(2, clients=100, seed=0)",
        "FedAvg: 8",
        "SCAFFOLD: 9",
    ),
    "personal": ("all shared: 2", "a head of its own at each: 9"),
    "half_precision": (
        "torch.float32: loss 0.49",
        "torch.bfloat16: loss 0.49",
    ),
}
"""Likewise of the gallery: there is no other."""

LANGUAGES = (".md", ".de.md")

ENGLISH_ONLY = {"combined_gradients"}
"""Tutorials that are not there in German."""


def cells(page: Path) -> list[str]:
    """Return the code of each of a notebook's cells."""
    return CELL.findall(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", TUTORIALS_SAY)
def test_a_tutorial_prints_what_it_says(name: str, tmp_path: Path) -> None:
    """What a tutorial is there to show is in what it prints."""
    program = tmp_path / f"{name}.py"
    program.write_text("\n".join(cells(TUTORIALS / f"{name}.md")), encoding="utf-8")
    printed = output_of(program)
    for text in TUTORIALS_SAY[name]:
        assert text in printed


@pytest.mark.parametrize("name", sorted(TUTORIALS_SAY.keys() - ENGLISH_ONLY))
def test_both_languages_run_the_same_code(name: str) -> None:
    """A German tutorial differs from the English one in its words only."""
    english, german = (cells(TUTORIALS / (name + language)) for language in LANGUAGES)
    assert len(english) > 10
    assert english == german


def test_every_tutorial_is_looked_at() -> None:
    """There is no tutorial that these tests do not know."""
    found = {page.name for page in TUTORIALS.glob("*.md")} - {"index.md"}
    assert found == {
        name + end
        for name in TUTORIALS_SAY
        for end in (LANGUAGES if name not in ENGLISH_ONLY else LANGUAGES[:1])
    }


@pytest.mark.parametrize("name", EXAMPLES_SAY)
def test_an_example_prints_what_it_says(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A program of the gallery runs by itself, where there is no screen."""
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    printed = output_of(EXAMPLES / f"{name}.py")
    pyplot.close("all")
    for text in EXAMPLES_SAY[name]:
        assert text in printed


@pytest.mark.parametrize("name", EXAMPLES_SAY)
def test_an_example_is_short(name: str) -> None:
    """It has less than 60 lines."""
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60


def test_every_example_has_a_page_that_shows_it() -> None:
    """The page runs the example's own file, and there is no other."""
    shown = {
        page.stem: re.findall(r":load: \.\./\.\./examples/(\w+)\.py$", cell)
        for page in GALLERY.glob("*.md")
        for cell in cells(page)
    }
    assert shown == {name: [name] for name in EXAMPLES_SAY}
    assert {file.stem for file in EXAMPLES.iterdir()} == set(EXAMPLES_SAY)


def output_of(program: Path) -> str:
    """Return what a program prints, run in this process."""
    with redirect_stdout(io.StringIO()) as printed:
        runpy.run_path(str(program), run_name="__main__")
    return printed.getvalue()
