"""Columns of lists as tensors, with NumPy as the judge."""

from __future__ import annotations

import io
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from obhut.errors import DatasetError

from .test_parquet_source import SETTINGS
from .test_tables import read


def parquet(**columns):
    """Return the bytes of a Parquet file with these columns."""
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, row_group_size=2)
    return file.getvalue()


def tensors(load_data, column, features="x", **declared):
    """Return the tensors of a table that has one column, x."""
    loaded = load_data("d.parquet", parquet(x=column), features=features, **declared)
    return {name: read(array).tolist() for name, array in loaded.tensors.items()}


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.int64()),
        pa.large_list(pa.float32()),
        pa.list_(pa.int16(), 3),
        pa.list_(pa.float64()),
    ],
)
def test_lists_of_one_length_are_a_dimension(load_data, kind):
    """However Arrow holds them."""
    rows = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    loaded = load_data("d.parquet", parquet(x=pa.array(rows, kind)), features="x")
    features = loaded.tensors["features"]
    assert (features.dtype, features.shape) == ("float32", (3, 3))
    assert read(features).tolist() == rows
    assert tensors(load_data, pa.array(rows, kind), dtype="int16") == {"features": rows}


def test_lists_in_lists_are_more_dimensions(load_data):
    """In the order in which they are written."""
    rows = np.arange(24).reshape(2, 4, 3).tolist()
    loaded = load_data("d.parquet", parquet(x=rows), features="x", dtype="int64")
    assert loaded.tensors["features"].shape == (2, 4, 3)
    assert read(loaded.tensors["features"]).tolist() == rows


def test_sequences_are_filled_up(load_data):
    """How long they were is a tensor of its own."""
    rows = [[1, 2], [], [3]]
    assert tensors(load_data, rows, dtype="int64", pad=3) == {
        "features": [[1, 2, 0], [0, 0, 0], [3, 0, 0]],
        "lengths": [2, 0, 1],
    }
    loaded = load_data(
        "d.parquet", parquet(x=rows), features="x", pad={"to": 2, "value": -1}
    )
    assert loaded.tensors["features"].dtype == "float32"
    assert read(loaded.tensors["features"]).tolist() == [[1, 2], [-1, -1], [3, -1]]
    assert loaded.tensors["lengths"].dtype == "int64"


def test_sequences_of_vectors(load_data):
    """The outer lists are filled up; those in them have one length."""
    rows = [[[1, 2]], [[3, 4], [5, 6]], []]
    assert tensors(load_data, rows, dtype="int64", pad=2) == {
        "features": [[[1, 2], [0, 0]], [[3, 4], [5, 6]], [[0, 0], [0, 0]]],
        "lengths": [1, 2, 0],
    }
    with pytest.raises(DatasetError) as caught:
        tensors(load_data, [[[1, 2]], [[3, 4], [5, 6]], [[7]]], pad=2)
    assert (caught.value.row, caught.value.column) == (3, "x")
    assert "expected lists of 2 in it" in caught.value.problem


@pytest.mark.parametrize(
    ("rows", "pad", "words"),
    [
        (
            [[1, 2], [3], [4, 5, 6]],
            None,
            "expected as many elements as before: 2, got 1; write pad = 3: the longest "
            "has 3 elements",
        ),
        (
            [[1], [2, 3, 4], [1] * 1500],
            2,
            "expected at most 2, got 3; write pad = 1500: the longest has 1,500",
        ),
    ],
)
def test_another_length_is_refused_with_the_longest(load_data, rows, pad, words):
    """By its row; nothing is cut off."""
    with pytest.raises(DatasetError) as caught:
        tensors(load_data, rows, pad=pad)
    assert (caught.value.row, caught.value.column) == (2, "x")
    assert words in str(caught.value)


def test_elements_are_read_as_a_column_is(load_data):
    """As categories, dates, booleans or numbers in text."""
    rows = [["a", "b"], ["b"]]
    assert tensors(load_data, rows, encode={"x": ["b", "a"]}, pad=3) == {
        "features": [[1, 0, 0], [0, 0, 0]],
        "lengths": [2, 1],
    }
    assert tensors(load_data, [["1.5", " 2"]])["features"] == [[1.5, 2]]
    assert tensors(load_data, [["yes"], ["no"]], encode={"x": "boolean"}) == {
        "features": [[1], [0]]
    }
    days = [["1970-01-02"], ["1970-02-01"]]
    assert tensors(load_data, days, encode={"x": "days"})["features"] == [[1], [31]]
    loaded = load_data(
        "d.parquet", parquet(y=rows), target="y", pad=2, classes=["a", "b"]
    )
    assert loaded.tensors["target"].dtype == "int64"
    assert read(loaded.tensors["target"]).tolist() == [[0, 1], [1, 0]]
    assert read(loaded.tensors["target_lengths"]).tolist() == [2, 1]


@pytest.mark.parametrize(
    ("rows", "declared", "row", "words"),
    [
        ([[1, 2], [3, None]], {}, 2, "a list with an element that has none"),
        ([[1, 2], None, [3, 4]], {}, 2, "expected a value, got an empty cell"),
        ([[1], None, [1]], {"pad": 2}, 2, "expected a list, got an empty cell"),
        (
            [[1], None, [1]],
            {"pad": 2, "missing": "nan"},
            2,
            "expected a list, got an empty",
        ),
        ([[1], [], ["x"]], {"pad": 2}, 3, 'got "x"'),
        ([["1"], ["1", "", "7", "x"]], {"pad": 9, "missing": "nan"}, 2, 'got "x"'),
        ([[1], [2**24 + 1]], {}, 2, "expected whole numbers that float32 can hold"),
        ([[1], [2**53 + 1]], {"dtype": "float64"}, 2, "whole numbers that float64"),
        ([[1], [300]], {"dtype": "int8"}, 2, "a number that int8 can hold, got 300"),
        ([[1.0], [math.inf]], {}, 2, "expected a finite number"),
        ([[b"x"]], {}, 0, "expected numbers, got binary"),
        ([[{"a": 1}]], {}, 0, "expected numbers, got struct"),
    ],
)
def test_an_element_that_is_none_is_named_by_its_row(
    load_data, rows, declared, row, words
):
    """As a cell is."""
    rows = [[str(e) for e in one] if one == [] else one for one in rows]
    kind = pa.list_(pa.string()) if any(one and "x" in one for one in rows) else None
    if kind:
        rows = [one and [None if e is None else str(e) for e in one] for one in rows]
    with pytest.raises(DatasetError) as caught:
        tensors(load_data, pa.array(rows, kind), **declared)
    assert (caught.value.row, caught.value.column) == (row, "x")
    assert words in str(caught.value)


def test_what_is_missing_in_a_list(load_data):
    """It is NaN, filled, or its row is left out; what is filled up is none of it."""
    rows = [[1.0, None], None, [2.0, math.nan], [3.0, 4.0]]
    got = tensors(load_data, rows, missing="nan")["features"]
    nan = math.nan
    want = [[1, nan], [nan, nan], [2, nan], [3, 4]]
    assert np.array_equal(got, want, equal_nan=True)
    assert tensors(load_data, rows, missing={"fill": 9})["features"] == [
        [1, 9],
        [9, 9],
        [2, 9],
        [3, 4],
    ]
    assert tensors(load_data, rows, missing="drop")["features"] == [[3, 4]]
    rows = [[1.0, None, 2.0], None, [3.0]]
    assert tensors(load_data, rows, missing="drop", pad=3) == {
        "features": [[3, 0, 0]],
        "lengths": [1],
    }
    got = tensors(load_data, [[1.0, None], [2.0]], missing="nan", pad=3)
    want = [[1, nan, 0], [2, 0, 0]]
    assert np.array_equal(got["features"], want, equal_nan=True)
    assert got["lengths"] == [2, 1]


@pytest.mark.parametrize("fill", ["mean", "median", "most frequent"])
def test_lists_have_no_mean(load_data, fill):
    """What stands in their places may be anything."""
    with pytest.raises(DatasetError, match=f"lists, which have no {fill}"):
        tensors(load_data, [[1]], missing={"fill": fill})


def test_lists_are_a_tensor_of_their_own(load_data):
    """One among other columns is refused with how to write it."""
    data = parquet(a=[1, 2], x=[[1, 2], [3, 4]])
    for features in ("*", ["a", "x"], ["x"]):
        with pytest.raises(DatasetError) as caught:
            load_data("d.parquet", data, features=features)
        assert caught.value.column == "x"
        assert 'write features = { x = "x", … }, or exclude it' in caught.value.advice
    loaded = load_data("d.parquet", data, features="*", exclude=["x"])
    assert loaded.tensors["features"].shape == (2, 1)
    loaded = load_data("d.parquet", data, features={"m": ["a"], "h": "x"})
    assert {name: one.shape for name, one in loaded.tensors.items()} == {
        "m": (2, 1),
        "h": (2, 2),
    }


def test_lengths_of_several_tensors(load_data):
    """Each has one by its name, unless the name is taken."""
    data = parquet(a=[[1], []], b=[[2, 3], [4]], c=[7, 8])
    loaded = load_data(
        "d.parquet", data, features={"h": "a", "k": "b", "m": "c"}, pad=2
    )
    assert {name: read(one).tolist() for name, one in loaded.tensors.items()} == {
        "h": [[1, 0], [0, 0]],
        "h_lengths": [1, 0],
        "k": [[2, 3], [4, 0]],
        "k_lengths": [2, 1],
        "m": [7, 8],
    }
    with pytest.raises(DatasetError, match='"h_lengths" of features is what the'):
        load_data("d.parquet", data, features={"h": "a", "h_lengths": "c"}, pad=2)


def test_pad_without_sequences(load_data):
    """It is refused, as it would say nothing."""
    with pytest.raises(DatasetError, match="no column that is used has lists"):
        load_data("d.parquet", parquet(a=[1]), features="a", pad=3)


@pytest.mark.parametrize(
    ("value", "dtype"), [(0.5, "int64"), (math.nan, "float32"), (256, "uint8")]
)
def test_what_fills_up_is_a_number_of_the_type(load_data, value, dtype):
    """It is not rounded either; nor is it what is missing."""
    declared = {"pad": {"to": 3, "value": value}, "dtype": dtype}
    with pytest.raises(DatasetError, match=f"pad: expected a number that {dtype}"):
        tensors(load_data, [[1]], **declared)
    loaded = tensors(load_data, [[1.5, None]], pad=3, missing={"fill": 0.5})
    assert loaded == {"features": [[1.5, 0.5, 0]], "lengths": [2]}


@pytest.mark.parametrize("encoding", [{"one_hot": ["a", "b"]}, "parts"])
def test_elements_become_one_number_each(load_data, encoding):
    """Not several."""
    with pytest.raises(DatasetError, match="whose elements can not become several"):
        tensors(load_data, [["a"]], encode={"x": encoding})


@pytest.mark.parametrize("pad", [None, 3])
@pytest.mark.parametrize("rows", [[[], []], [None, None], []])
def test_lists_without_elements(load_data, rows, pad):
    """Nobody knows what they are, and they are nothing."""
    with pytest.raises(DatasetError, match="has no list with elements"):
        tensors(load_data, pa.array(rows, pa.list_(pa.int64())), pad=pad)


def test_a_report_of_lists(load_data):
    """They are one column of it."""
    data = parquet(x=[[1, 5], [None, 2], [9, None]])
    report = load_data("d.parquet", data, features="x", missing="nan").report
    (column,) = report.columns
    assert (column.name, column.missing) == ("x", 1)
    assert (column.least, column.greatest) == (1, 9)


@SETTINGS
@given(st.data())
def test_filling_up_is_what_numpy_does(load_data, data):
    """Whatever the lengths and groups of rows."""
    rows = data.draw(
        st.lists(
            st.lists(st.integers(-100, 100), max_size=5), min_size=1, max_size=9
        ).filter(any)
    )
    to = data.draw(st.integers(max(map(len, rows)), 7))
    want = np.full((len(rows), to), 4)
    for place, row in enumerate(rows):
        want[place, : len(row)] = row
    kind = data.draw(
        st.sampled_from([pa.list_, pa.large_list]).map(lambda of: of(pa.int16()))
    )
    got = tensors(
        load_data, pa.array(rows, kind), dtype="int16", pad={"to": to, "value": 4}
    )
    assert got == {"features": want.tolist(), "lengths": [*map(len, rows)]}
