"""Parquet files, against the library that writes them."""

from __future__ import annotations

import decimal
import io
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from obhut.errors import DatasetError

from .test_tables import CELLS, SETTINGS, read


def parquet(**columns):
    """Return the bytes of a Parquet file with these columns."""
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


@pytest.mark.parametrize(
    "kind",
    [
        "uint8",
        "int8",
        "uint16",
        "int16",
        "uint32",
        "int32",
        "uint64",
        "int64",
        "halffloat",
        "float",
        "double",
    ],
)
def test_every_type_of_number_is_read(load_data, kind):
    """As float32, and as what it is."""
    values = np.array([1, 2, 3]).astype(pa.type_for_alias(kind).to_pandas_dtype())
    data = parquet(a=values, t=["x", "y", "z"], b=values)
    loaded = load_data("d.parquet", data, features=["b", "a"])
    features = loaded.tensors["features"]
    assert (features.dtype, features.shape) == ("float32", (3, 2))
    assert read(features).tolist() == [[1, 1], [2, 2], [3, 3]]
    loaded = load_data("d.pq", data, features="a", dtype="int16")
    assert read(loaded.tensors["features"]).tolist() == [1, 2, 3]


def test_booleans_decimals_and_what_is_missing(load_data):
    """They are numbers; what is missing is NaN by declaration only."""
    data = parquet(
        a=pa.array([True, None, False]),
        b=pa.array([decimal.Decimal("1.5"), None, decimal.Decimal("2.5")]),
        c=pa.array([None, 2**40, 7]),
        d=pa.nulls(3),
    )
    loaded = load_data("d.parquet", data, features="*", missing="nan", dtype="float64")
    assert np.array_equal(
        read(loaded.tensors["features"]),
        [
            [1, 1.5, math.nan, math.nan],
            [math.nan, math.nan, 2**40, math.nan],
            [0, 2.5, 7, math.nan],
        ],
        equal_nan=True,
    )
    with pytest.raises(DatasetError) as caught:
        load_data("d.parquet", data, features=["a"])
    assert (caught.value.row, caught.value.column) == (2, "a")
    assert 'missing = "nan", "drop"' in caught.value.advice
    with pytest.raises(DatasetError, match="got an empty cell"):
        load_data("d.parquet", data, features=["a"], dtype="int8")
    whole = parquet(b=pa.array([decimal.Decimal("1.5")]))
    loaded = load_data("d.parquet", whole, features="b")
    assert read(loaded.tensors["features"]).tolist() == [1.5]
    loaded = load_data("d.parquet", data, features="b", missing="nan")
    assert read(loaded.tensors["features"])[0] == 1.5
    with pytest.raises(DatasetError, match=r"a whole number, got 1\.5"):
        load_data("d.parquet", whole, features=["b"], dtype="int8")


def test_classes_are_numbered_in_order(load_data):
    """Of texts, of dictionaries, of integers and of booleans."""
    texts = pa.array(["M", "B", "M"])
    data = parquet(
        a=texts,
        b=texts.dictionary_encode(),
        c=pa.array([7, 5, 7]),
        d=pa.array([True, False, True]),
    )
    for name, classes in (
        ("a", ["B", "M"]),
        ("b", ["B", "M"]),
        ("c", [5, 7]),
        ("d", ["false", "true"]),
    ):
        loaded = load_data("d.parquet", data, target=name, classes=classes)
        target = loaded.tensors["target"]
        assert target.dtype == "int64"
        assert read(target).tolist() == [1, 0, 1]
    with pytest.raises(DatasetError, match=r'row 2, .*one of the 1 classes, got "B"'):
        load_data("d.parquet", data, target="a", classes=["M"])


def test_a_dictionary_of_numbers_is_read(load_data):
    """However Arrow holds them, they are numbers."""
    data = parquet(a=pa.array([1.5, 2.5, 1.5]).dictionary_encode())
    loaded = load_data("d.parquet", data, features="a")
    assert read(loaded.tensors["features"]).tolist() == [1.5, 2.5, 1.5]


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (
            pa.array(["x", "y"]),
            'got "x"; write encode = { a = ["x", "y"] }, or leave the column out',
        ),
        (pa.array([[1], [2]]), "is a column of lists, which are a tensor of"),
        (pa.array([{"x": 1}, {"x": 2}]), "expected numbers, got struct"),
        (pa.array([1, 2], pa.timestamp("s")), "expected numbers, got timestamp"),
        (pa.array([b"x", b"y"]), "expected numbers, got binary"),
        (pa.array([1.0, 1e39]), "row 2, column"),
        (pa.array([1.0, math.inf]), "expected a finite number, got inf"),
        (pa.array([1.0, math.nan]), "expected a value, got NaN"),
    ],
)
def test_what_makes_no_number_is_named(load_data, column, words):
    """By its type, or by the cell."""
    with pytest.raises(DatasetError) as caught:
        load_data("d.parquet", parquet(a=column), features=["a"])
    assert words in str(caught.value)
    assert caught.value.column == "a"


def test_a_text_target_needs_classes(load_data):
    """The error says so."""
    with pytest.raises(DatasetError, match=r"or list the texts in classes = \[.x.\]"):
        load_data("d.parquet", parquet(a=["x"]), target="a")
    dates = parquet(a=pa.array([1], pa.timestamp("s")))
    with pytest.raises(DatasetError, match="texts or whole numbers, got timestamp"):
        load_data("d.parquet", dates, target="a", classes=["x"])


def test_rows_are_counted_across_batches(load_data):
    """A fault far down is found where it is, and a slice of a batch is its own."""
    values = np.arange(3 * CELLS, dtype=np.float64)
    loaded = load_data("d.parquet", parquet(a=values), features="a", dtype="float64")
    assert read(loaded.tensors["features"]).tolist() == values.tolist()
    values[2 * CELLS + 5] = math.inf
    with pytest.raises(DatasetError) as caught:
        load_data("d.parquet", parquet(a=values), features="a")
    assert caught.value.row == 2 * CELLS + 6


def test_a_column_with_a_point_in_its_name(load_data):
    """It is not taken for a field of a record."""
    data = parquet(**{"a.b": [1.0], "a": pa.array([{"b": 2.0}])})
    loaded = load_data("d.parquet", data, features=["a.b"])
    assert read(loaded.tensors["features"]).tolist() == [[1]]


def test_empty_missing_and_damaged(load_data):
    """No rows, no such column, no Parquet."""
    with pytest.raises(DatasetError, match="has no rows"):
        load_data("d.parquet", parquet(a=pa.array([], pa.float32())), features="a")
    with pytest.raises(DatasetError, match=r'column "b": .*1 columns, and none'):
        load_data("d.parquet", parquet(a=[1.0]), features="b")
    with pytest.raises(DatasetError, match="is not a Parquet file"):
        load_data("d.parquet", b"PAR1", features="a")


def test_two_columns_of_one_name(load_data):
    """Nobody knows which is meant."""
    file = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], "aa"), file)
    with pytest.raises(DatasetError, match="expected one column of this name, got 2"):
        load_data("d.parquet", file.getvalue(), features=["a"])


SAMPLE = parquet(a=[1.0, 2.0, 3.0], b=[4, None, 6])


@SETTINGS
@given(st.data())
def test_any_damage_loads_or_is_refused(load_data, data):
    """A file with bytes changed, or cut, is a ``DatasetError`` or another data set."""
    bad = bytearray(SAMPLE)
    places = st.integers(0, len(bad) - 1)
    for place, byte in data.draw(
        st.lists(st.tuples(places, st.integers(0, 255)), max_size=4)
    ):
        bad[place] = byte
    cut = data.draw(st.none() | places)
    try:
        load_data("d.parquet", bytes(bad[:cut]), features=["a", "b"], missing="nan")
    except DatasetError as error:
        text = str(error)
    else:
        text = ""
    assert "\n" not in text
