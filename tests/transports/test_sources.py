"""Data of many clients, however it is given."""

from __future__ import annotations

import pytest
import torch

from obhut.errors import RemoteExecutionError
from obhut.transports.sources import Called, Divided, Given, Kept, Source, Tensors

X, Y = torch.arange(12.0).view(6, 2), torch.arange(6)

PLACES = {"ann": torch.tensor([4, 0]), "bob": torch.tensor([1, 2, 3])}


def load(name: str) -> Tensors:
    """Return a client's features and target."""
    return {"features": X[PLACES[name]], "target": Y[PLACES[name]]}


GIVEN = Given({name: load(name) for name in PLACES})

DIVIDED = Divided({"features": X, "target": Y}, PLACES)

CALLED = Called(load, list(PLACES))


@pytest.mark.parametrize("source", [GIVEN, DIVIDED, CALLED])
def test_all_forms_are_the_same_data(source: Source) -> None:
    """Names are in order, and each client has its rows."""
    rows = Kept(source)
    assert list(source.names) == ["ann", "bob"]
    assert "ann" in rows
    assert "cid" not in rows
    for name, places in PLACES.items():
        assert torch.equal(rows(name)["features"], X[places])
        assert torch.equal(rows(name)["target"], Y[places])
        assert source.count(name) in (len(places), None)


def test_tensors_that_are_given_are_not_copied() -> None:
    """What is there already is returned as it is, and kept by nobody else."""
    assert Kept(GIVEN)("ann")["features"] is GIVEN.data["ann"]["features"]


@pytest.mark.parametrize("source", [DIVIDED, CALLED])
def test_what_was_used_last_is_kept_up_to_a_limit(source: Source) -> None:
    """It is read once; beyond the limit whoever was used longest ago goes."""
    rows = Kept(source, limit=200)
    ann, bob = rows("ann"), rows("bob")
    assert rows("ann") is ann
    assert rows("bob") is bob
    small = Kept(source, limit=1)
    bob = small("bob")
    assert small("bob") is bob
    assert small("ann") is small("ann")
    assert small("bob") is not bob


def test_a_mapping_has_parts_of_any_names() -> None:
    """A function may return more than features and a target."""
    source = Called(lambda name: {"users": Y, "items": Y}, ["ann"])
    assert set(source("ann")) == {"users", "items"}


def test_a_function_that_fails_names_the_client_and_the_line() -> None:
    """Who reads the error knows whose data was not there, and where it was wanted."""
    with pytest.raises(RemoteExecutionError, match="KeyError: 'cid'") as caught:
        Called(load, ["cid"])("cid")
    assert caught.value.worker == "cid"
    assert "test_sources.py:" in caught.value.site
