"""What a worker says of its data sets to whoever may open a session."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from obhut.host.data.datasets import load_one
from obhut.host.data.declaration import DatasetDeclaration
from obhut.transports.grpc.description import DatasetDescription, describe


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """A file of arrays that have names of their own."""
    file = tmp_path / "data.npz"
    np.savez(file, hiv_status=np.ones(3, "f4"), features=np.ones((3, 2), "f4"))
    return file


def described(
    file: Path, guarded: bool = False, **declared: object
) -> DatasetDescription:
    """Return what is said of a file that is declared so."""
    table = {"name": "d", "path": file, **declared}
    hook = lambda kind, value: kind(value)  # noqa: E731 # msgspec wants a function
    declaration = msgspec.convert(table, DatasetDeclaration, dec_hook=hook)
    return describe(load_one(declaration, guarded=guarded))


@pytest.mark.parametrize("types", [False, True])
@pytest.mark.parametrize("names", [False, True])
def test_names_of_arrays_are_told_with_names_only(
    arrays: Path, names: bool, types: bool
) -> None:
    """Without ``names = true`` they are nowhere, whatever else is public."""
    said = described(arrays, public={"names": names, "types": types, "rows": "exact"})
    assert (b"hiv_status" in msgspec.json.encode(said)) is names
    assert said.parts == ("features", "hiv_status")[: 1 + names]
    assert set(said.dtypes) == (set(said.parts) if types else set())


def test_features_and_target_are_no_names_of_the_owners(arrays: Path) -> None:
    """All data sets have them, and the array that they are made of is not named."""
    said = described(arrays, target="hiv_status", public={"types": True})
    assert said.parts == ("target",)
    assert said.dtypes == {"target": "float32"}
    assert b"hiv_status" not in msgspec.json.encode(said)


def test_of_hidden_rows_is_told_how_one_looks(arrays: Path) -> None:
    """Behind a policy, and not how many there are; open workers tell nothing more."""
    said = described(arrays, True, target="hiv_status", features="features")
    assert (said.hidden, said.rows) == (True, None)
    assert said.shapes == {"features": (2,), "target": ()}
    assert said.dtypes == {"features": "float32", "target": "float32"}
    assert b"3" not in msgspec.json.encode(said).replace(b"float32", b"")
    said = described(arrays, target="hiv_status", features="features")
    assert (said.hidden, said.shapes, said.dtypes) == (False, {}, {})
    assert described(arrays, True).shapes == {"features": (2,)}
