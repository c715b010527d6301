from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

import obhut
from obhut.errors import CallError
from obhut.federated import Partition, Partitioner
from obhut.federated.dealing import pieces


def labels(classes: int, rows: int, seed: int = 0) -> torch.Tensor:
    """Return labels, (rows,) int64, each class among them."""
    generator = torch.Generator().manual_seed(seed)
    more = torch.randint(classes, (rows - classes,), generator=generator)
    return torch.cat([torch.arange(classes), more])


def dealt(deal: Partitioner, target: torch.Tensor) -> Partition:
    """Return a partition of rows whose features do not matter."""
    return deal(torch.zeros(len(target), 3), target)


def check_whole(partition: Partition, rows: int, clients: int) -> None:
    """Check that each row is one client's, and no client without."""
    assert torch.cat([*partition.values()]).sort().values.tolist() == [*range(rows)]
    assert len(partition) == clients
    assert list(partition) == sorted(partition)
    for one in partition.values():
        assert one.dtype is torch.int64
        assert one.dim() == 1
        assert len(one) > 0
        assert one.tolist() == sorted(one.tolist())
    assert partition.notes == []


@given(rows=st.integers(1, 300), data=st.data())
def test_iid_deals_alike(rows: int, data: st.DataObject) -> None:
    """Every row is one client's, and clients have as many, but for one row."""
    clients = data.draw(st.integers(1, rows))
    partition = dealt(obhut.iid(clients), torch.zeros(rows))
    check_whole(partition, rows, clients)
    assert partition.sizes.max() - partition.sizes.min() <= 1


@given(
    alpha=st.floats(1e-4, 1e4),
    classes=st.integers(1, 12),
    clients=st.integers(1, 30),
    fewest=st.integers(1, 4),
    seed=st.integers(0, 5),
)
def test_dirichlet_deals_every_row(
    alpha: float, classes: int, clients: int, fewest: int, seed: int
) -> None:
    """Every row is one client's, and each has min_rows, whatever alpha is."""
    rows = clients * fewest + classes
    deal = obhut.dirichlet(alpha, clients, min_rows=fewest, seed=seed)
    partition = dealt(deal, labels(classes, rows, seed))
    check_whole(partition, rows, clients)
    assert partition.sizes.min() >= fewest


def test_dirichlet_follows_its_alpha() -> None:
    """Shares of a class scatter as the distribution's do, for both kinds of alpha."""
    clients, target = 50, torch.arange(40_000) % 20
    for alpha in (0.05, 0.5, 5.0):
        shares = dealt(obhut.dirichlet(alpha, clients), target).counts() / 2000
        assert shares.sum(0) == pytest.approx(torch.ones(20))
        # Of a share: mean m = 1/clients, variance m(1 - m) / (clients alpha + 1).
        expected = (1 - 1 / clients) / clients / (clients * alpha + 1)
        assert float(shares.var(0).mean()) == pytest.approx(expected, rel=0.35)


@given(data=st.data(), k=st.integers(1, 6), clients=st.integers(1, 40))
def test_by_class_deals_k_classes(data: st.DataObject, k: int, clients: int) -> None:
    """Every row is one client's, and each has rows of exactly k classes."""
    classes = data.draw(st.integers(k, min(12, k * clients)))
    rows = clients * classes
    target = labels(classes, rows, data.draw(st.integers(0, 9)))
    try:
        partition = dealt(obhut.by_class(k, clients), target)
    except CallError:
        most = torch.bincount(target).clamp(max=clients).sum()
        assert most < k * clients
        return
    check_whole(partition, rows, clients)
    having = partition.counts() > 0
    assert (having.sum(1) == k).all()
    sizes = torch.bincount(target).tolist()
    assert having.sum(0).tolist() == pieces(sizes, k, clients)


def test_by_class_deals_alike_where_classes_are() -> None:
    """Of classes that are equally large, pieces differ by a row, so clients by k."""
    partition = dealt(obhut.by_class(2, 100), torch.arange(3000) % 10)
    assert partition.sizes.tolist() == [30] * 100


def test_by_class_pairs_any_two() -> None:
    """Which classes come together is drawn: nearly all pairs do."""
    partition = dealt(obhut.by_class(2, 200), torch.arange(4000) % 10)
    pairs = {tuple(one.nonzero()[:, 0].tolist()) for one in partition.counts()}
    assert len(pairs) > 40  # of 45


def test_by_class_cuts_large_classes_more() -> None:
    """A class of most rows is at most clients, and a rare one at few."""
    target = torch.tensor([0] * 900 + [1] * 60 + [2] * 40)
    having = (dealt(obhut.by_class(1, 10), target).counts() > 0).sum(0)
    assert having.tolist() == [8, 1, 1]


DEALS = {
    "iid": lambda seed: obhut.iid(7, seed=seed),
    "dirichlet": lambda seed: obhut.dirichlet(0.3, 7, seed=seed),
    "by_class": lambda seed: obhut.by_class(2, 7, seed=seed),
}


@pytest.mark.parametrize("kind", DEALS)
def test_the_seed_decides_all(kind: str) -> None:
    """The same seed deals the same, another another, and nobody's state is touched."""
    target, before = labels(5, 200), torch.get_rng_state()
    first, other = (dealt(DEALS[kind](seed), target) for seed in (0, 1))
    torch.randn(3)
    again = dealt(DEALS[kind](0), target)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    torch.set_rng_state(before)
    dealt(DEALS[kind](0), target)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_seed_deals_what_it_dealt() -> None:
    """Results can be had again: these were dealt when this was written."""
    target = torch.arange(12) % 3
    found = {
        deal.made: [one.tolist() for one in dealt(deal, target).values()]
        for deal in (obhut.iid(3), obhut.dirichlet(0.5, 3), obhut.by_class(2, 3))
    }
    assert found == {
        "iid(clients=3, seed=0)": [[0, 5, 8, 9], [2, 4, 7, 10], [1, 3, 6, 11]],
        "dirichlet(0.5, clients=3, seed=0)": [
            [2, 5, 8],
            [0, 3, 7, 9, 11],
            [1, 4, 6, 10],
        ],
        "by_class(2, clients=3, seed=0)": [[0, 5, 8, 9], [2, 4, 7, 11], [1, 3, 6, 10]],
    }


def test_by_column_makes_a_client_of_each_value() -> None:
    """By number of a column, by part, or by values of any kind; named by them."""
    x = torch.tensor([[0.0, 3.0], [1.0, -1.5], [2.0, 3.0], [5.0, 3.0]])
    y = torch.tensor([7, 10, 7, 10])
    hospitals = ["St. Mary", "Charité", "St. Mary", "elm"]
    cases: list[tuple[Any, dict[str, list[int]]]] = [
        (1, {"-1.5": [1], "3": [0, 2, 3]}),
        (-1, {"-1.5": [1], "3": [0, 2, 3]}),
        ("target", {"7": [0, 2], "10": [1, 3]}),
        (torch.tensor([True, False, True, True]), {"False": [1], "True": [0, 2, 3]}),
        (hospitals, {"Charité": [1], "St. Mary": [0, 2], "elm": [3]}),
        (
            np.array(hospitals, dtype=object),
            {"Charité": [1], "St. Mary": [0, 2], "elm": [3]},
        ),
        (
            torch.tensor([[1.0], [2.0], [1.0], [1.0]]).bfloat16(),
            {"1": [0, 2, 3], "2": [1]},
        ),
    ]
    for column, expected in cases:
        partition = obhut.by_column(column)(x, y)
        assert {name: one.tolist() for name, one in partition.items()} == expected
        assert list(partition) == list(expected)
    parts = {"features": x, "target": y, "site": torch.tensor([1, 1, 2, 2])}
    assert list(obhut.by_column("site")(parts)) == ["1", "2"]


def test_a_data_set_has_several_forms() -> None:
    """A pair, two data sets' classes and a mapping are dealt alike."""
    x, y = torch.randn(30, 2), labels(3, 30)
    deal = obhut.by_class(2, 5)
    first = deal(x, y)
    for data in (
        (x, y),
        [x, y],
        obhut.LocalDataset(x, y),
        TensorDataset(x, y),
        {"features": x, "target": y},
    ):
        again = deal(data)
        assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("shape", [(60,), (60, 1)])
@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int32, torch.float32, torch.bfloat16]
)
def test_a_target_of_whole_numbers_has_classes(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Also zeros and ones as floats, as BCEWithLogitsLoss takes them."""
    target = labels(2, 60).to(dtype).reshape(shape)
    partition = dealt(obhut.by_class(1, 4), target)
    assert partition.classes is not None
    assert partition.classes.names == ("0", "1")


# --- what is refused ------------------------------------------------------------------

BAD_CALLS = [
    (lambda: obhut.iid(0), "clients to be a number from 1, got 0"),
    (lambda: obhut.iid(True), "clients to be a number from 1, got True"),
    (lambda: obhut.iid(2.0), "clients to be a number from 1, got 2.0"),  # type: ignore[arg-type] # shown
    (lambda: obhut.iid(2, seed=-1), "seed to be a number from 0, got -1"),
    (lambda: obhut.iid(2, seed=2**64), "seed of up to 18446744073709551615"),
    (lambda: obhut.dirichlet([1, 2], 2), "alpha above 0 and finite, got \\[1, 2"),  # type: ignore[arg-type] # so it is wrong
    (lambda: obhut.dirichlet(0, 2), "alpha above 0 and finite, got 0"),
    (lambda: obhut.dirichlet(math.nan, 2), "alpha above 0 and finite, got nan"),
    (lambda: obhut.dirichlet(1, 2, min_rows=0), "min_rows to be a number from 1"),
    (lambda: obhut.by_class(0, 2), "k to be a number from 1, got 0"),
]


@pytest.mark.parametrize(("call", "said"), BAD_CALLS)
def test_arguments_are_checked_at_once(call: Any, said: str) -> None:
    """Before there is a data set."""
    with pytest.raises(CallError, match=said):
        call()


BAD_DEALS = [
    (obhut.iid(21), "a row or more for each of 21 clients, got 20 rows.*clients=20"),
    (obhut.dirichlet(1, 5, min_rows=5), "5 rows or more for each of 5.*clients=4"),
    (obhut.by_class(5, 20), "k of at most 4 classes, got 5"),
    (obhut.by_class(1, 3), "4 clients or more.*got 3; or choose a k of 2"),
    (obhut.by_class(2, 11), "20 rows in 4 classes, of which 20 pieces"),
    (obhut.by_column("site"), "one of features, target, got 'site'"),
    (obhut.by_column(3), "features' 3 columns, got number 3"),
    (obhut.by_column(torch.zeros(5)), r"each of 20 rows, got shape \[5\]"),
    (obhut.by_column([math.nan, None, *range(18)]), "got none in 2 rows"),
    (obhut.by_column([math.nan, *"ab" * 9, "a"]), "got none in 1 rows"),
    (obhut.by_column([1, "1"] * 10), "values of one kind"),
    (obhut.by_column(np.int64(3)), "features' 3 columns, got number 3"),  # type: ignore[arg-type] # as NumPy counts
    (obhut.by_column(np.array([1, "a"] * 10, dtype=object)), "values of one kind"),
    (obhut.by_column([" a", "a "] * 10), "1 read like another"),
    (obhut.by_column(["", "a"] * 10), "one is empty"),
]


@pytest.mark.parametrize(("deal", "said"), BAD_DEALS)
def test_what_can_not_be_dealt_is_told(deal: Partitioner, said: str) -> None:
    """With numbers, and what to change."""
    with pytest.raises(CallError, match=said):
        dealt(deal, labels(4, 20))


@pytest.mark.parametrize(
    "target", [torch.rand(20), torch.zeros(20, 3), torch.full((20,), math.nan)]
)
def test_a_target_without_classes_is_told(target: torch.Tensor) -> None:
    """Partitioners by classes need some; others do not."""
    for deal in (obhut.dirichlet(1, 2), obhut.by_class(1, 2)):
        with pytest.raises(CallError, match="needs a class for each row"):
            dealt(deal, target)
    assert dealt(obhut.iid(2), target).classes is None


def test_images_have_no_columns() -> None:
    """Their clients need values of their own."""
    with pytest.raises(CallError, match=r"by_column\(hospitals\)"):
        obhut.by_column(0)(torch.zeros(4, 1, 2, 2), torch.zeros(4))


# --- how it is shown ------------------------------------------------------------------


def test_a_partitioner_reads_as_its_call() -> None:
    """It is made anew by what it prints, with the seed; and is not changed."""
    for deal in (obhut.iid(3, seed=2), obhut.dirichlet(0.1, 2), obhut.by_class(2, 5)):
        assert repr(eval(repr(deal))) == repr(deal)
    assert repr(obhut.by_column("site")) == "obhut.by_column('site')"
    assert repr(copy.copy(obhut.iid(3))) == "obhut.iid(clients=3, seed=0)"
    with pytest.raises(AttributeError):
        obhut.iid(3).made = ""  # type: ignore[misc] # which is refused


def test_a_partition_prints_as_a_table() -> None:
    """Clients, rows and classes of a client, on few lines."""
    partition = dealt(obhut.by_class(2, 4), torch.arange(20) % 4)
    assert str(partition).splitlines() == [
        "4 clients, 20 rows: by_class(2, clients=4, seed=0)",
        "of a client  min  median  max",
        "rows           4       5    6",
        "classes        2       2    2",
    ]
    assert "<table>" in partition._repr_html_()


def test_an_own_partition_says_what_it_leaves_out() -> None:
    """Rows of no client, or of several, are no error and no secret."""
    partition = Partition({"bob": [0, 1], "alice": np.array([1, 2])}, torch.rand(5))
    assert partition["alice"].tolist() == [1, 2]
    assert partition.counts().tolist() == [[2], [2]]
    assert str(partition).splitlines()[-2:] == [
        "rows of no client: 2",
        "rows of several clients: 1",
    ]


@pytest.mark.parametrize(
    ("indices", "said"),
    [
        ({}, "a client or more"),
        ({"bob": []}, r"for bob, one or more"),
        ({"bob": [0.5]}, r"for bob.*float32 \[1\]"),
        ({"bob": [True, False]}, r"for bob.*bool \[2\]"),
        ({"bob": [[1]]}, r"for bob.*int64 \[1, 1\]"),
        ({"bob": [3]}, "from 0 to 2"),
        ({"bob": [-1]}, "from 0 to 2"),
        ({"bob": [1, 1]}, "each row of a client once"),
    ],
)
def test_an_own_partition_is_checked(indices: dict[str, Any], said: str) -> None:
    """Numbers of rows that are there, once for a client, and some for each."""
    with pytest.raises(CallError, match=said):
        Partition(indices, torch.zeros(3))
