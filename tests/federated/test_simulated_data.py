from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset, TensorDataset

import obhut
from obhut.errors import CallError, NotSendableError, RemoteExecutionError
from obhut.federated import Partition
from obhut.federated.simulated_data import (
    check_alike,
    looks_of,
    simulated_data,
)
from obhut.transports.sources import Called, Divided, Given
from obhut.worker.shapes import dense

X, Y = torch.arange(24.0).view(12, 2), torch.arange(12) % 3
NAMES = ("client-0", "client-1")
LOOKS = {"features": dense((2,), torch.float32), "target": dense((), torch.int64)}


def test_each_client_may_be_given() -> None:
    """By name, in any form of a data set, and as they are: nothing is copied."""
    found = simulated_data(
        {
            "bob": (X[:2], Y[:2]),
            "alice": TensorDataset(X[2:5], Y[2:5]),
            "carol": obhut.LocalDataset(X[5:], Y[5:]),
            "dan": {"features": X, "target": Y},
        }
    )
    assert isinstance(found.source, Given)
    assert list(found.source.names) == ["bob", "alice", "carol", "dan"]
    assert [found.source.count(name) for name in found.source.names] == [2, 3, 7, 12]
    assert found.looks is not None
    check_alike("", found.looks, "", LOOKS)
    assert found.source("alice")["features"].data_ptr() == X[2:].data_ptr()


@pytest.mark.parametrize("dealing", ["partitioner", "partition", "numbers"])
def test_one_data_set_may_be_dealt(dealing: str) -> None:
    """By a partitioner, by what it returns, or by numbers of rows."""
    deal = obhut.by_class(1, 3)
    partition = deal(X, Y)
    lists = {name: rows.tolist() for name, rows in partition.items()}
    clients = {"partitioner": deal, "partition": partition, "numbers": lists}[dealing]
    found = simulated_data((X, Y), clients)
    assert isinstance(found.source, Divided)
    assert found.source.names == ("client-0", "client-1", "client-2")
    assert found.looks is not None
    check_alike("", found.looks, "", LOOKS)
    for name in found.source.names:
        parts = found.source(name)
        assert torch.equal(parts["features"], X[partition[name]])
        assert torch.equal(parts["target"], Y[partition[name]])
        assert found.source.count(name) == 4


def test_a_mapping_of_parts_is_one_data_set() -> None:
    """All its parts are dealt, those beside features and target too."""
    parts = {"features": X, "target": Y, "site": Y * 10}
    found = simulated_data(parts, obhut.by_column("site"))
    assert found.source.names == ("0", "10", "20")
    assert found.source("20")["site"].tolist() == [20] * 4


@pytest.mark.parametrize(
    "clients", [2, np.int64(2), ["client-0", "client-1"], np.unique([*NAMES])]
)
def test_a_function_may_load_each(clients: Any) -> None:
    """It is called with the client's name when the data is asked for, not before."""
    asked: list[str] = []

    def load(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(name)
        return X[:5], Y[:5]

    found = simulated_data(load, clients)
    assert isinstance(found.source, Called)
    assert found.source.names == ("client-0", "client-1")
    assert found.looks is None
    assert not asked
    check_alike("", looks_of(dict(found.source("client-1"))), "", LOOKS)
    assert asked == ["client-1"]


def test_what_a_function_raises_names_the_client() -> None:
    """And the line that raised it; what it returns is checked as if given."""

    def load(name: str) -> Any:
        return {"client-0": (X, Y[:3])}[name]

    found = simulated_data(load, 2)
    with pytest.raises(CallError, match=r"of client-0 .*same rows.*\[12, 2\]"):
        found.source("client-0")
    with pytest.raises(RemoteExecutionError, match="KeyError: 'client-1'") as raised:
        found.source("client-1")
    assert raised.value.site.startswith(__file__)


def test_what_is_alike_is_so_in_a_long_process() -> None:
    """A look is remembered for a while, and may be another object afterwards."""
    again = {name: copy.copy(look) for name, look in LOOKS.items()}
    assert again["features"] is not LOOKS["features"]
    check_alike("bob", again, "alice", LOOKS)


def test_clients_that_differ_are_named() -> None:
    """Which, in which part, and how."""
    cases = [
        ((X.double(), Y), r"features float32 \[2\] of bob, and float64 .* alice"),
        ((X, Y[:, None]), r"target int64 \[\] of bob, and int64 \[1\] of alice"),
        ({"features": X, "target": Y, "site": Y}, "features, target, site of alice"),
    ]
    for other, said in cases:
        with pytest.raises(CallError, match=said):
            simulated_data({"bob": (X, Y), "alice": other})
        check_alike("bob", LOOKS, "alice", LOOKS)


@pytest.mark.parametrize(
    ("data", "clients", "said"),
    [
        ((X, Y), None, r"obhut.simulate\(data, obhut.iid\(100\)\), .* got None"),
        ((X, Y), 100, r"obhut.simulate\(data, obhut.iid\(100\)\), .* got 100"),
        ((X, Y), [[0], [1]], "by name, .* got a list of 2"),
        ((X, Y), {"bob": {0, 1}}, "numbers of rows for bob, .* got a set"),
        (Subset(TensorDataset(X, Y), [0]), None, r"a Subset; .*DataLoader\("),
        ({"features": X, "target": Y}, None, "how one data set is dealt"),
        ({"features": X}, obhut.iid(2), "got parts features"),
        ({"bob": (X, Y)}, obhut.iid(2), "got parts bob"),
        (X, obhut.iid(2), "a pair .* got a Tensor"),
        (7, None, "a pair .* got a int"),
        ((X, Y, Y), obhut.iid(2), "got a tuple of 3"),
        ((np.zeros((12, 2)), Y), obhut.iid(2), "as 'features', got a ndarray"),
        ((X, Y[:3]), obhut.iid(2), r"features \[12, 2\], target \[3\]"),
        ((X, torch.tensor(1.0)), obhut.iid(2), "same rows"),
        ((X[:0], Y[:0]), obhut.iid(2), "same rows, one or more"),
        ((X, Y), Partition({"bob": [0]}, Y[:5]), "of 12 rows.* got one of 5"),
        ({}, None, "a client or more"),
        ({"bob": (X, Y), "alice": (X[:0], Y[:0])}, None, "parts of alice"),
        ({"": (X, Y)}, None, "names to be text, .* got ''"),
        ({3: (X, Y)}, None, "names to be text, .* got 3"),
        ({"a\nb": (X, Y)}, None, r"names to be text, .* got 'a\\nb'"),
        ({"a" * 5000: (X, Y)}, None, "at most 4,096 characters, got one of 5,000"),
        (print, None, "names of the clients whose data is loaded.* got None"),
        (print, "bob", "names of the clients whose data is loaded.* got 'bob'"),
        (print, {"bob"}, "names of the clients.* got a set"),
        (print, 2.0, "names of the clients.* got a float"),
        (print, 0, "names of the clients.* got 0"),
        (print, [], "a client or more"),
        (print, ["a", "b", "a"], "each client once, got a again"),
    ],
)
def test_what_is_none_of_these_is_told(data: Any, clients: Any, said: str) -> None:
    """With what came, and the line to write."""
    with pytest.raises(CallError, match=said):
        simulated_data(data, clients)


def test_samples_are_a_data_set_as_the_error_says() -> None:
    """The line that it gives makes a pair of what another Dataset has."""
    samples = Subset(TensorDataset(X, Y), [3, 1])
    pair = next(iter(DataLoader(samples, len(samples))))
    found = simulated_data(pair, {"bob": [0, 1]})
    assert torch.equal(found.source("bob")["features"], X[[3, 1]])


def test_a_part_that_can_not_travel_is_told() -> None:
    """As when it is sent: for instance a sparse tensor."""
    with pytest.raises(NotSendableError):
        simulated_data({"bob": (X.to_sparse(), Y)})
