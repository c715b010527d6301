"""Each row of the page's table of programs is what happens."""

import importlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import obhut

from .programs import ROWS, Location, fetched

for _module in sorted(Path(__file__).parent.glob("about_*.py")):
    importlib.import_module(f".{_module.stem}", __package__)

PAGE = Path(__file__).parents[2] / "docs" / "works.md"
SAME = "same as local"


def outcomes() -> dict[str, str]:
    """Return what the page says of each program."""
    _, _, rest = PAGE.read_text("utf-8").partition("| program | at a worker |\n")
    lines = rest.split("\n\n", 1)[0].splitlines()[1:]
    pairs = [re.split(r"(?<!\\)\|", line.strip()[1:-1]) for line in lines]
    assert all(len(pair) == 2 for pair in pairs)
    return {name.strip(): outcome.strip() for name, outcome in pairs}


@pytest.fixture
def bob() -> Iterator[obhut.VirtualWorker]:
    """A virtual worker that is closed afterwards."""
    worker = obhut.VirtualWorker(id="bob")
    yield worker
    worker.close()


def check_same(there: object, here: object) -> None:
    """Check that two results are equal, bit by bit."""
    if isinstance(here, torch.Tensor):
        torch.testing.assert_close(there, here, rtol=0, atol=0, equal_nan=True)
    elif isinstance(here, dict):
        assert isinstance(there, dict)
        assert there.keys() == here.keys()
        for key in here:
            check_same(there[key], here[key])
    elif isinstance(here, list):
        assert isinstance(there, list)
        assert len(there) == len(here)
        for one, other in zip(there, here, strict=True):
            check_same(one, other)
    else:
        assert there == here


def test_the_page_has_a_row_for_each_program() -> None:
    """There is no program without a row, and no row without a program."""
    assert outcomes().keys() == ROWS.keys()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if row.slow else [])
        for name, row in ROWS.items()
    ],
)
def test_a_program_does_as_its_row_says(name: str, bob: obhut.VirtualWorker) -> None:
    """What runs here runs there with the same result, or raises as its row says."""
    program, outcome = ROWS[name].program, outcomes()[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch's old names
        torch.manual_seed(0)
        here = fetched(program(Location(None)))
        torch.manual_seed(0)
        if outcome == SAME:
            check_same(fetched(program(Location(bob))), here)
            return
        kind, _, words = outcome.strip("`").partition(": ")
        with pytest.raises(Exception) as raised:  # noqa: PT011 # compared below
            fetched(program(Location(bob)))
    assert type(raised.value).__name__ == kind
    assert str(raised.value).splitlines()[0] == words.replace("\\|", "|")
