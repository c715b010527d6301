"""What a notebook shows of a training, in its own shell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell

from obhut.federated import History, Round
from obhut.federated.reporting import _Cell


@pytest.fixture
def shown() -> Iterator[list[dict[str, Any]]]:
    """What is displayed, each time that it is."""
    shell = InteractiveShell.instance()
    shell.display_pub = CapturingDisplayPublisher()
    yield shell.display_pub.outputs
    InteractiveShell.clear_instance()


def test_a_notebook_has_all_in_one_display(
    shown: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """What is said stays above the bar, as text, and nothing is on standard error."""
    history = History()
    cell = _Cell(4, 3, history)
    cell.says("2 tensors <travel>")
    cell.begins(2)
    history.append(Round(1, 0.5, {"f1": 0.25}, 0.1))
    cell.over(history[0])
    cell.done(0.5)
    page = shown[-1]["data"]["text/html"]
    assert page.startswith("<p>2 tensors &lt;travel&gt;</p>")
    assert "max='4' value='1.50'" in page
    assert "round 1/4  3/3 owners  loss 0.500  f1 0.250" in page
    assert len({one["transient"]["display_id"] for one in shown}) == 1
    assert capsys.readouterr().err == ""
