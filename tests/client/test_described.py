"""What a worker's data sets print as, and columns that are chosen by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import obhut
from obhut.errors import CallError, DatasetError, DatasetNotFoundError
from obhut.transports.grpc.description import DatasetDescription

X = torch.arange(12.0).reshape(4, 3)
POLICY = obhut.Quorum(
    aggregators=("hub",), contributors=("bob", "alice", "carol"), requesters=("me",)
)
SAID = DatasetDescription(
    "diagnosis",
    tags=("#heart",),
    description="<b>One</b> clinic\x1b[2J",
    columns={"features": ("age", "sex", "bp"), "target": ("outcome",)},
    classes=("benign", "malignant"),
    categories={"sex": ("m", "f")},
    units={"age": "years"},
)


def worker(described: DatasetDescription = SAID, **how: object) -> obhut.VirtualWorker:
    """Return a worker with two data sets, of which one is described."""
    data = {"features": X, "target": torch.zeros(4)}
    plain = {"pixels": torch.ones(4, 2), "label": torch.zeros(4)}
    return obhut.VirtualWorker(
        "bob",
        datasets={"diagnosis": data, "scans": plain},
        described=[described],
        **how,
    )


def test_data_sets_print_as_a_table() -> None:
    """A line for each part, with units and classes; it stays a mapping."""
    found = worker().datasets
    assert list(found) == ["diagnosis", "scans"]
    assert dict(found)["scans"].parts == ("label", "pixels")
    assert repr(found).splitlines() == [
        "data set   rows  part      columns               classes            tags",
        "diagnosis  4     features  age (years), sex, bp                     #heart  "
        "<b>One</b> clinic\\x1b[2J",
        "                 target    outcome               benign, malignant",
        "scans      4     label",
        "                 pixels",
    ]
    html = found._repr_html_()
    assert "&lt;b&gt;One&lt;/b&gt;" in html
    assert "<b>data sets at bob</b>" in html
    none = obhut.VirtualWorker("alice").datasets
    assert repr(none) == "no data sets at alice are public"


def test_a_description_prints_as_a_table() -> None:
    """A line for each column; hidden rows with types."""
    found = worker(policy=POLICY, rows="hidden").datasets["diagnosis"]
    assert repr(found).splitlines() == [
        "diagnosis: rows hidden, #heart, <b>One</b> clinic\\x1b[2J",
        "part      column   type     unit   classes",
        "features  age      float32  years",
        "features  sex      float32         m, f",
        "features  bp       float32",
        "target    outcome  float32         benign, malignant",
    ]
    assert "<td>years</td>" in found._repr_html_()
    wide = DatasetDescription(
        "w", parts=("x",), columns={"x": tuple(map(str, range(99)))}
    )
    assert repr(wide).splitlines()[-1] == "and 39 columns more"
    assert len(repr(wide).splitlines()) == 63
    private = DatasetDescription("p", parts=("features",), rows=560, rounded=True)
    assert repr(private).splitlines() == [
        "p: about 560 rows",
        "part",
        "features",
        "the names of its columns are not public",
    ]


def test_a_wrong_name_is_said_with_what_there_is() -> None:
    """The nearest first; of a data set, a part and a column."""
    bob = worker()
    calls: dict[str, Callable[[], object]] = {
        "bob has no data set 'diagnosi'; it has: diagnosis, scans; did you mean "
        "'diagnosis'?": lambda: bob["diagnosi"],
        "it has: scans, diagnosis; did you mean 'scans'?": lambda: bob["scan"],
        "'scans' at bob has no part 'pixel'; it has: pixels, label": (
            lambda: bob["scans", "pixel"]
        ),
        "of 'diagnosis' at bob has no column 'b'; it has: bp, age, sex": (
            lambda: bob.dataset("diagnosis", columns=["b"])
        ),
    }
    for said, call in calls.items():
        with pytest.raises(DatasetNotFoundError) as caught:
            call()
        assert said in str(caught.value)
    assert bob.datasets.get("diagnosi") is None
    wide = DatasetDescription("w", columns={"x": tuple(map(str, range(99)))})
    data = {"w": {"x": torch.ones(4, 99), "y": torch.ones(4)}}
    bob = obhut.VirtualWorker("bob", datasets=data, described=[wide])
    with pytest.raises(DatasetNotFoundError, match="and 79 more"):
        bob.dataset("w", "x", "y", columns=["q"])


@pytest.mark.parametrize("rows", ["exact", "hidden"])
def test_a_data_set_has_columns_in_the_order_of_a_study(rows: str) -> None:
    """As features, or as what a program goes through; a part of them, too."""

    @obhut.program
    def summed(x: torch.Tensor, y: torch.Tensor) -> obhut.Ratio:
        return obhut.Ratio(x.sum(0), len(x))

    bob = worker(policy=POLICY if rows == "hidden" else None, rows=rows)
    data = bob.dataset("diagnosis", columns=["bp", "age"])
    ratio = summed.run(data=data)
    assert ratio.numerator.shape == (1, 2)
    assert data.source is not None
    assert data.source.columns == (("bp", "age"), ())
    assert data.count().shape == ()
    if rows == "exact":
        assert torch.equal(data.features.get(), X[:, [2, 0]])
        assert ratio.numerator.tolist() == [X[:, [2, 0]].sum(0).tolist()]
        assert torch.equal(bob.load("diagnosis", columns=["sex"]).get(), X[:, 1:2])
    both = bob.dataset(
        "diagnosis", columns={"features": ["sex"], "target": ["outcome"]}
    )
    assert summed.run(data=both).numerator.shape == (1, 1)
    assert both.count().shape == ()


def test_columns_that_can_not_be_chosen() -> None:
    """Text for a list, none, one twice, of no part of it, of private names."""
    bob = worker()
    for columns, said in (
        ("age", r'expected a list of columns, got \'age\': columns=\["age", "sex"\]'),
        ([], "expected a list of columns"),
        (["age", "age"], "expected each column once, got"),
        ({"label": ["age"]}, "expected columns of features or target, got some of"),
    ):
        with pytest.raises(CallError, match=said):
            bob.dataset("diagnosis", columns=columns)
    private = worker(DatasetDescription("diagnosis"))
    with pytest.raises(CallError, match="of 'diagnosis' at bob are not public"):
        private.dataset("diagnosis", columns=["age"])


@pytest.mark.parametrize("rows", ["exact", "hidden"])
def test_names_that_the_owner_told_can_be_used_where_they_are_private(
    rows: str,
) -> None:
    """They are listed nowhere; who has them writes them."""
    bob = worker(DatasetDescription("scans"), policy=POLICY, rows=rows)
    assert bob.datasets["scans"].parts == ()
    assert bob.search() == [] or rows == "exact"
    data = bob.dataset("scans", "pixels", "label")
    assert data.count().shape == ()
    with pytest.raises(CallError) as caught:
        bob.dataset("scans", "pixel", "label")
    assert "label" not in str(caught.value)
    assert "pixels" not in str(caught.value)


def test_what_is_said_must_go_with_the_data() -> None:
    """As many names as columns, of parts and data sets that there are."""
    for said, words in (
        (DatasetDescription("diagnosi"), "is described and not given"),
        (DatasetDescription("diagnosis", columns={"features": ("age",)}), "1 names of"),
        (DatasetDescription("diagnosis", columns={"x": ("age",)}), "name each of its"),
    ):
        with pytest.raises(DatasetError, match=words):
            worker(said)
