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


def test_the_line_is_the_callers_and_no_librarys() -> None:
    """Where a library raises, it is the line that called it."""

    def read(name: str) -> object:
        return torch.load(f"/nowhere/{name}.pt")

    with pytest.raises(RemoteExecutionError, match=r"/nowhere/ann\.pt") as caught:
        Called(read, ["ann"])("ann")
    assert caught.value.site.startswith(__file__)
    nobody: object = lambda: X  # noqa: E731 # which takes no name
    with pytest.raises(RemoteExecutionError, match="1 was given") as caught:
        Called(nobody, ["ann"])("ann")  # type: ignore[arg-type] # so it is wrong
    assert not caught.value.site


def test_what_is_drawn_follows_from_the_name() -> None:
    """A client loads the same again, another other numbers; nobody's change."""
    source = Called(lambda name: {"features": torch.randn(3, 2)}, ["ann", "bob"])
    state = torch.get_rng_state()
    ann, bob, again = (source(name)["features"] for name in ("ann", "bob", "ann"))
    assert torch.equal(ann, again)
    assert not torch.equal(ann, bob)
    assert torch.equal(torch.get_rng_state(), state)
