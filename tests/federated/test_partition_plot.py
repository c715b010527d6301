from __future__ import annotations

import sys
from collections.abc import Iterator

import matplotlib
import pytest
import torch
from matplotlib import pyplot

import obhut
import obhut.federated
from obhut.errors import CallError, MissingExtraError
from obhut.federated import Partition


@pytest.fixture(autouse=True)
def no_screen() -> Iterator[None]:
    """Figures are drawn where there is no screen, and closed."""
    matplotlib.use("agg")
    yield
    pyplot.close("all")


def partition(clients: int, classes: int, rows: int = 600) -> Partition:
    """Return an uneven one."""
    target = torch.arange(rows) % classes if classes else torch.rand(rows)
    deal = obhut.dirichlet(0.5, clients) if classes else obhut.iid(clients)
    return deal(torch.zeros(rows, 1), target)


def test_a_bar_is_as_long_as_a_client_has_rows_of_a_class() -> None:
    """One bar for each client and class, end to end, in the order of clients."""
    found = partition(20, 4)
    axes = found.plot()
    axes.figure.canvas.draw()
    bars = axes.patches
    widths = torch.tensor([bar.get_width() for bar in bars]).view(4, 20).T
    assert torch.equal(widths.long(), found.counts())
    starts = torch.tensor([bar.get_x() for bar in bars]).view(4, 20).T
    assert torch.equal(starts, widths.cumsum(1) - widths)
    assert [label.get_text() for label in axes.get_yticklabels()] == list(found)
    assert axes.yaxis_inverted()
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["0", "1", "2", "3"]
    assert axes.get_title(loc="left") == found.title


def test_names_are_drawn_as_they_are() -> None:
    """No formula is seen in them, and long ones are cut off."""
    names = ["$\\frac{$", "a" * 200]
    deal = obhut.by_column([names[n % 2] for n in range(60)])
    axes = deal(torch.zeros(60, 1), torch.arange(60) % 3).plot()
    axes.figure.canvas.draw()
    drawn = [label.get_text() for label in axes.get_yticklabels()]
    assert drawn == [r"\$\frac{\$", "a" * 60 + "…"]


def test_a_file_is_no_axes() -> None:
    """It says how one is written."""
    with pytest.raises(CallError, match=r"figure.savefig"):
        partition(3, 2).plot("found.png")


def test_many_clients_are_a_map() -> None:
    """A column for each client: its shares of classes, which sum to 1."""
    found = partition(100, 10)
    axes = found.plot()
    (image,) = axes.images
    assert image.get_array().shape == (10, 100)
    assert torch.allclose(
        torch.tensor(image.get_array()).sum(0), torch.ones(100).double()
    )
    assert len(axes.get_yticks()) == 10


def test_many_classes_are_a_map_of_few_names() -> None:
    """A hundred classes have a hundred lines, and fewer labels."""
    axes = partition(5, 100).plot()
    assert axes.images[0].get_array().shape == (100, 5)
    assert len(axes.get_yticks()) == 25


def test_without_classes_rows_are_counted() -> None:
    """Bars for few clients, else how many clients have how many rows."""
    few, many = partition(3, 0), partition(40, 0, 410)
    assert [bar.get_width() for bar in few.plot().patches] == [200, 200, 200]
    heights = [bar.get_height() for bar in many.plot().patches]
    assert sum(heights) == 40
    assert max(heights) == 30


def test_given_axes_are_drawn_on() -> None:
    """They come back, and no other figure is made."""
    _, axes = pyplot.subplots()
    assert partition(3, 2).plot(axes) is axes
    assert len(pyplot.get_fignums()) == 1


def test_matplotlib_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it there is a sentence that says what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delattr(obhut.federated, "partition_plot", raising=False)
    monkeypatch.delitem(sys.modules, "obhut.federated.partition_plot", raising=False)
    with pytest.raises(MissingExtraError, match="plot"):
        partition(3, 2).plot()
