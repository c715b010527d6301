"""Owners' data sets, compared column by column by what is public of them."""

from __future__ import annotations

import pickle
import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import obhut
from obhut.errors import AlignmentError, CallError, DatasetNotFoundError
from obhut.federated import LocalTraining, RemoteDataset, compare, metrics
from obhut.transports.grpc.description import DatasetDescription

NAMES = ("bob", "alice", "carol")
POLICY = obhut.Quorum(aggregators=("hub",), contributors=NAMES)
COLUMNS = ("age", "sex", "bp")
WAYS = {
    "open": (None, "exact"),
    "same": (POLICY, "exact"),
    "hidden": (POLICY, "hidden"),
}


def cells(place: int) -> torch.Tensor:
    """Return an owner's rows, (20, 3): age, sex, bp."""
    return torch.randn(20 + place, 3, generator=torch.Generator().manual_seed(place))


def served(
    way: str,
    orders: Any = (COLUMNS,) * 3,
    said: Any = ({}, {}, {}),
    dtype: torch.dtype = torch.float32,
) -> tuple[dict[str, RemoteDataset], Any]:
    """Return owners with columns in some orders, None for private names."""
    policy, rows = WAYS[way]
    owners = {}
    for place, (name, order) in enumerate(zip(NAMES, orders, strict=True)):
        own = order or COLUMNS
        x = cells(place)
        wide = {"age": x[:, 0], "sex": x[:, 1], "bp": x[:, 2], "more": x[:, 0]}
        features = torch.stack([wide[one] for one in own], 1)
        data = {"features": features.to(dtype if place else torch.float32)}
        data["target"] = x.sum(1)
        columns = None if order is None else {"features": own, "target": ("y",)}
        worker = obhut.VirtualWorker(
            name,
            policy=policy,
            rows=rows,
            datasets={"d": data},
            described=[DatasetDescription("d", columns=columns, **said[place])],
        )
        owners[name] = worker.dataset("d")
    return owners, obhut.VirtualWorker("hub", policy=policy)


MIXED = (COLUMNS, ("bp", "age", "sex"), ("sex", "bp", "age"))


def figures(owners: dict[str, RemoteDataset], hub: Any, **how: Any) -> list[Any]:
    """Return a model of two rounds, its metric, and the columns' means."""
    federation = obhut.Federation(owners, hub, **how)
    columns = len(how.get("columns", COLUMNS))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(columns, 1), nn.Flatten(0))
    training = LocalTraining(
        partial(torch.optim.SGD, lr=0.1),
        nn.functional.mse_loss,
        batch_size=8,
        shuffle=True,
    )
    federation.fit(
        model, training, rounds=2, seed=1, held_out=0.2, progress=False, retries=1
    )
    found = federation.evaluate(model, {"mse": metrics.mse()})["mse"]
    described = federation.describe()
    return [*model.parameters(), torch.tensor(found), described.mean, described.names]


@pytest.mark.parametrize("way", WAYS)
def test_another_order_is_put_right(way: str) -> None:
    """Model, metric and means are digit for digit those of one order."""
    wanted = figures(*served(way))
    for mine, known in zip(figures(*served(way, MIXED)), wanted, strict=True):
        assert torch.equal(mine, known) if isinstance(mine, torch.Tensor) else True
    assert wanted[-1] == COLUMNS


@pytest.mark.parametrize("way", WAYS)
def test_columns_can_be_chosen(way: str) -> None:
    """Two of three, in an order of one's own; also where names differ in number."""
    more = (COLUMNS, ("more", *MIXED[1]), MIXED[2])
    found = figures(*served(way, more), columns=["bp", "age"])
    pooled = torch.cat([cells(place) for place in range(3)])
    torch.testing.assert_close(found[-2], pooled[:, [2, 0]].double().mean(0))
    assert found[-1] == ("bp", "age")


def test_what_agrees_is_returned_and_prints() -> None:
    """As a table, also in a notebook, with what was put right."""
    said = ({"units": {"age": "years"}, "categories": {"sex": ("m", "<f>")}}, {}, {})
    owners, hub = served("hidden", MIXED, said)
    federation = obhut.Federation(owners, hub)
    found = federation.align()
    assert found.agrees
    assert {(one.owner, one.kind, one.mended) for one in found.differences} == {
        ("alice", "order", True),
        ("carol", "order", True),
    }
    lines = [re.split(r"  +", line.rstrip()) for line in str(found).splitlines()]
    assert lines[0] == ["column", *NAMES, "differs in"]
    assert lines[2] == ["age", "1: years", "2", "3", "order (put right)"]
    assert lines[3] == ["sex", "2: m, <f>", "3", "1", "order (put right)"]
    assert "<td>2: m, &lt;f&gt;</td>" in found._repr_html_()
    before = compare(owners)
    assert not before.agrees
    with pytest.raises(AlignmentError, match="in another order than bob, from 'bp'"):
        before.check()


def test_nothing_is_asked_of_an_owner_whose_columns_agree() -> None:
    """It is made of what is known."""
    owners, hub = served("hidden")
    before = [one.location.session._flights[-1].number for one in owners.values()]
    obhut.Federation(owners, hub).align()
    after = [one.location.session._flights[-1].number for one in owners.values()]
    assert after == before


SEX = [{"categories": {"sex": one}} for one in (("m", "f"), ("f", "m"))]
CLASSES = [{"classes": one} for one in (("a", "b"), ("a", "c"))]
AGE = [{"units": {"age": one}} for one in ("years", "months")]
DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "missing": (
        {"orders": (COLUMNS, ("age", "bp"), COLUMNS)},
        "alice has no column 'sex' in features, as bob, carol has",
    ),
    "more": (
        {"orders": (COLUMNS, COLUMNS, ("more", *COLUMNS))},
        "bob has no column 'more' in features, as carol has",
    ),
    "type": (
        {"dtype": torch.float64},
        "alice's features are float64, bob's are float32",
    ),
    "unit": (
        {"said": (AGE[0], {}, AGE[1])},
        "carol's 'age' in features has the unit months, bob's has years",
    ),
    "categories": (
        {"said": (*SEX, {})},
        "alice's 'sex' in features has the classes f, m, bob's has m, f",
    ),
    "classes": (
        {"said": ({}, *CLASSES)},
        "carol's target has the classes a, c, alice's has a, b",
    ),
    "private order": (
        {"orders": (COLUMNS, None, ("bp", "age", "sex"))},
        "carol has the columns of features in another order than bob, from 'bp' on",
    ),
}
"""What differs, and how it is said."""


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_differs_is_named_before_anything_is_done(name: str) -> None:
    """By each way to begin, with owner and column; the model is as it was."""
    how, words = DIFFERENT[name]
    owners, hub = served("hidden", **how)
    federation = obhut.Federation(owners, hub)
    model = nn.Linear(3, 1)
    training = LocalTraining(partial(torch.optim.SGD, lr=0.1), nn.functional.mse_loss)
    for call in (
        federation.align,
        lambda: federation.fit(model, training, rounds=1, progress=False),
        lambda: federation.rounds(model, training, rounds=1),
        lambda: federation.evaluate(model, {"mse": metrics.mse()}),
        federation.describe,
    ):
        with pytest.raises(AlignmentError, match=re.escape(words)) as caught:
            call()
    assert "columns=[" in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.differences == caught.value.differences
    found = compare(owners)
    assert not found.agrees
    assert any(one.text.startswith(words[:20]) for one in found.differences)


def test_what_is_private_is_unknown_and_neither_equal_nor_different() -> None:
    """It is said so, and a training goes on with what is there."""
    owners, hub = served("same", (COLUMNS, None, COLUMNS))
    federation = obhut.Federation(owners, hub)
    found = federation.align()
    assert found.unknown == ("alice",)
    assert str(found).splitlines()[-1].startswith("?: the names of columns of alice")
    assert re.split(r"  +", str(found).splitlines()[2].rstrip()) == [
        "age",
        "1",
        "?",
        "1",
    ]
    assert federation.describe().names == ("0", "1", "2")
    units = ({"units": {"age": "years"}}, {}, {"units": {}})
    assert obhut.Federation(*served("same", said=units)).align().agrees


def test_sizes_are_compared_where_names_are_not_known() -> None:
    """Of rows that were sent, say."""
    bob, alice, hub = map(obhut.VirtualWorker, ("bob", "alice", "hub"))
    owners = {
        "bob": RemoteDataset.send(torch.ones(4, 3), torch.ones(4), bob),
        "alice": RemoteDataset.send(torch.ones(4, 2), torch.ones(4), alice),
    }
    federation = obhut.Federation(owners, hub)
    with pytest.raises(AlignmentError, match=r"alice's features has the sizes \[2\]"):
        federation.align()
    with pytest.raises(AlignmentError, match="rows were sent"):
        obhut.Federation(owners, hub, columns=["age"])


def test_columns_that_an_owner_does_not_tell_are_an_error() -> None:
    """A wrong name is said with what there is, the nearest first."""
    owners, hub = served("hidden", (COLUMNS, None, COLUMNS))
    with pytest.raises(CallError, match="not public, so that none is found by its"):
        obhut.Federation(owners, hub, columns=["age"])
    owners, hub = served("hidden")
    with pytest.raises(DatasetNotFoundError, match="no column 'agee'; it has: age"):
        obhut.Federation(owners, hub, columns=["agee"])


def test_by_name_and_as_they_are_is_put_right() -> None:
    """The same columns in the same order, taken by name at one owner only."""
    owners, hub = served("same")
    bob = owners["bob"].location
    owners["bob"] = bob.dataset("d", columns=COLUMNS).split(0.5)[0]
    owners |= {name: owners[name].split(0.5)[0] for name in ("alice", "carol")}
    federation = obhut.Federation(owners, hub)
    assert federation.describe().rows == 32
    assert federation.align().differences == ()
