"""What arrays become: the rules on numbers, parts and reports."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from obhut.errors import DatasetError
from obhut.host.data.datasets import load
from obhut.host.data.declaration import DatasetDeclaration
from obhut.host.data.numbers import MisfitError, fit

from .test_array_files import npy, npz
from .test_tables import SETTINGS, read

BITS = {"float16": np.float16, "float32": np.float32, "float64": np.float64}


@SETTINGS
@given(st.lists(st.floats(allow_nan=False, width=32), min_size=1))
def test_bfloat16_is_rounded_as_pytorch_rounds_it(values):
    """To the nearest, ties to even; what would be infinite is refused."""
    array = np.array(values, np.float32)
    expected = torch.from_numpy(array).to(torch.bfloat16)
    if torch.isinf(expected).any():
        with pytest.raises(MisfitError):
            fit(array, "bfloat16", nan=False)
    else:
        made = fit(array, "bfloat16", nan=False)
        assert made.tobytes() == expected.view(torch.uint16).numpy().tobytes()


def test_a_missing_value_is_one_in_bfloat16_too(load_data):
    """NaN of any bits, the lower half's alone among them."""
    odd = np.array([0x7F800001, 0xFFFFFFFF, 0x3F800000], np.uint32).view(np.float32)
    loaded = load_data("d.npy", npy(odd), dtype="bfloat16", missing="nan")
    halves = np.frombuffer(loaded.tensors["features"].data, np.uint16)
    floats = (halves.astype(np.uint32) << 16).view(np.float32)
    assert np.isnan(floats).tolist() == [True, True, False]


@SETTINGS
@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4),
    st.sampled_from(sorted(BITS)),
    st.integers(0, 62),
)
def test_an_integer_becomes_a_float_only_if_it_stays_itself(values, dtype, shift):
    """Whatever its type can hold, as Python's own integers tell it."""
    array = np.array([value >> shift for value in values], np.int64)
    with np.errstate(over="ignore"):
        made = array.astype(BITS[dtype])
    exact = all(
        np.isfinite(one) and int(one) == int(value)
        for one, value in zip(made, array, strict=True)
    )
    if exact:
        assert fit(array, dtype, nan=False).tobytes() == made.tobytes()
    else:
        with pytest.raises(MisfitError):
            fit(array, dtype, nan=False)


def test_a_date_that_float32_rounds_is_refused(load_data):
    """Integers, and floats that are whole numbers throughout their column."""
    words = r"row 2.*: expected a whole number that float32 holds exactly, got 20240105"
    dates = np.array([20240104, 20240105])
    for source in ("i4", "f8"):
        with pytest.raises(DatasetError, match=words) as caught:
            load_data("d.npy", npy(dates.astype(source)), dtype="float32")
        assert caught.value.advice.startswith('choose dtype "int64" or "float64"')
    table = np.array([[0.5, 20240104], [1, 20240105], [2, 3]])
    for array in (table, np.asfortranarray(table)):
        with pytest.raises(DatasetError, match=r'row 2, column "\[:, 1\]"'):
            load_data("d.npy", npy(array), dtype="float32")


def test_fractions_are_rounded_as_everywhere(load_data):
    """A column with one fraction holds measurements, of which any may be rounded."""
    array = np.array([[16777217.0, 1], [0.5, 2]])
    loaded = load_data("d.npy", npy(array), dtype="float32").tensors["features"]
    assert read(loaded).tolist() == array.astype(np.float32).tolist()


@pytest.mark.parametrize("rows", [400_000, 3])
def test_the_whole_column_decides(load_data, rows):
    """Also if it comes in pieces, or a row does."""
    array = np.zeros((rows, 1_200_000 // rows))
    array[1, -1], array[-1, -2] = 16777217, 2**24 + 2
    with pytest.raises(DatasetError, match=r"row 2.* got 16777217"):
        load_data("d.npy", npy(array), dtype="float32")
    array[-1, -1] = 0.25
    loaded = load_data("d.npy", npy(array), dtype="float32").tensors["features"]
    assert np.array_equal(read(loaded), array.astype(np.float32))


def test_a_dtype_by_tensor(load_data):
    """A table names tensors; what it does not name stays as it is."""
    data = npz(x=np.ones((2, 3)), y=np.arange(2))
    loaded = load_data("d.npz", data, dtype={"x": "float32"})
    assert {n: a.dtype for n, a in loaded.tensors.items()} == {
        "x": "float32",
        "y": "int64",
    }
    with pytest.raises(DatasetError, match='column "z": dtype names a tensor'):
        load_data("d.npz", data, dtype={"z": "float32"})


def test_arrays_under_other_names(load_data):
    """A table of features names a tensor for each."""
    data = npz(x=np.ones((2, 3)), z=np.ones((2, 4)), y=np.arange(2))
    loaded = load_data("d.npz", data, features={"a": "x", "b": "z"}, target="y")
    shapes = {name: array.shape for name, array in loaded.tensors.items()}
    assert shapes == {"a": (2, 3), "b": (2, 4), "target": (2,)}


def test_a_report_tells_of_each_array(load_data):
    """Type, shape, what it becomes, extremes and missing values."""
    x = np.array([[1.5, np.nan], [-2, 9]], np.float32)
    data = npz(x=x, y=np.array([3, 1]), c=np.ones(2, np.complex64))
    report = load_data("d.npz", data, missing="nan").report
    assert (report.rows, report.used) == (2, 2)
    first, second, third = report.columns
    assert (first.name, first.stored) == ("x", "float32, 2 x 2")
    assert first.becomes == "x, float32"
    assert (first.missing, first.least, first.greatest) == (1, -2.0, 9.0)
    assert (second.missing, second.least, second.greatest) == (0, 1, 3)
    assert (third.least, third.greatest) == (None, None)


def test_parts_of_one_set_follow_each_other(load_data, tmp_path):
    """A pattern's or a folder's files, in the order of their names."""
    folder = tmp_path / "parts"
    folder.mkdir()
    for i in range(3):
        arrays = {"x": np.full((i + 1, 2), i, np.float32), "y": np.full(i + 1, i)}
        (folder / f"{i}.npz").write_bytes(npz(**arrays))
    (folder / ".hidden.npz").write_bytes(b"no array")
    for path, kind in (("parts/*.npz", None), ("parts", "npz")):
        loaded = load_data(path, None, format=kind, features="x", target="y")
        target = np.frombuffer(loaded.tensors["target"].data, np.int64)
        assert target.tolist() == [0, 1, 1, 2, 2, 2]
        assert loaded.tensors["features"].shape == (6, 2)
        assert loaded.report.rows == 6
    (folder / "3.npz").write_bytes(npz(x=np.ones((1, 2), np.float32)))
    with pytest.raises(DatasetError, match=r'3.npz: has no array "y", which is in "0'):
        load_data("parts/*.npz", None)
    (folder / "3.npz").write_bytes(npz(x=np.ones((1, 3), np.float32), y=np.ones(1)))
    with pytest.raises(DatasetError, match=r"is float32, 1 x 3, and in .*0.npz it is"):
        load_data("parts/*.npz", None)
    with pytest.raises(DatasetError, match="no file that matches"):
        load_data("parts/*.npy", None)


def test_a_model_in_pieces_is_read_by_its_index(load_data, tmp_path):
    """Or as a pattern of files, none of which has another's tensors."""
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    x, y = np.ones((2, 3), np.float32), np.arange(4)
    (tmp_path / names[0]).write_bytes(save({"x": x}))
    (tmp_path / names[1]).write_bytes(save({"y": y}))
    index = {"metadata": {}, "weight_map": {"x": names[0], "y": names[1]}}
    for path, data in (
        ("model.safetensors.index.json", json.dumps(index)),
        ("model-*.safetensors", None),
    ):
        loaded = load_data(path, data)
        assert {n: a.shape for n, a in loaded.tensors.items()} == {
            "x": (2, 3),
            "y": (4,),
        }


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"weight_map": {"x": "../m.safetensors"}}, "is no index"),
        ({"weight_map": {"x": "m.npy"}}, "is no index"),
        ({"weight_map": {}}, "has no arrays"),
        ({"x": 1}, "is no index"),
        ({"weight_map": {"x": "n.safetensors"}}, "there is no such file"),
        ({"weight_map": {"z": "m.safetensors"}}, 'index says that "z" is in it'),
    ],
)
def test_an_index_that_is_none_is_refused(load_data, tmp_path, index, words):
    """It names tensors of files beside it, and nothing else."""
    (tmp_path / "m.safetensors").write_bytes(save({"x": np.ones(2)}))
    with pytest.raises(DatasetError, match=words):
        load_data("m.safetensors.index.json", json.dumps(index))


def test_damage_in_an_array_that_is_not_packed(load_data):
    """The checksum of an archive is compared, in each order of axes."""
    for array in (np.ones((2, 2)), np.asfortranarray(np.ones((2, 2)))):
        data = bytearray(npz(x=array))
        at = data.index(np.float64(1).tobytes())
        data[at : at + 8] = np.float64(2).tobytes()
        with pytest.raises(DatasetError, match="CRC"):
            load_data("d.npz", bytes(data))


def test_arrays_are_split_as_tables_are(tmp_path):
    """Features and target by the same rows; images and loaders' arrays likewise."""
    x = np.arange(30, dtype=np.float32).reshape(10, 3)
    (tmp_path / "d.npz").write_bytes(npz(x=x, y=np.arange(10)))
    declaration = DatasetDeclaration(
        name="d",
        path=tmp_path / "d.npz",
        features="x",
        target="y",
        split={"train": 0.8, "test": 0.2, "seed": 1},
    )
    found = load([declaration])
    assert [*found] == ["d-train", "d-test"]
    rows = []
    for one in found.values():
        target = np.frombuffer(one.tensors["target"].data, np.int64)
        assert np.array_equal(read(one.tensors["features"]), x[target])
        rows += target.tolist()
    assert sorted(rows) == list(range(10))
