"""Columns of every kind: what becomes which number, and what is never lost."""

from __future__ import annotations

import datetime
import decimal
import io
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from obhut.errors import DatasetError

from .test_tables import SETTINGS, column, read
from .test_typed_columns import parquet


def typed(load_data, cells, **declared):
    """Load one column of an Arrow array; return its values."""
    declared.setdefault("features", "a")
    loaded = load_data("d.parquet", parquet(a=cells), **declared)
    return read(loaded.tensors["features"])


@pytest.mark.parametrize(
    ("dtype", "cells", "shown"),
    [
        ("float32", ["20240105", "20240106"], "20240105"),
        ("float32", ["20240105.0", "1"], "20240105"),
        ("float16", ["2049", "1"], "2049"),
        ("bfloat16", ["257", "2"], "257"),
        ("float64", ["9007199254740993", "1"], "9007199254740993"),
        ("float64", ["100000000000000000001"], "100000000000000000001"),
        ("float32", ["-16777217", ""], "-16777217"),
    ],
)
def test_a_whole_number_is_never_rounded(load_data, dtype, cells, shown):
    """A column of whole numbers that its type does not hold is refused."""
    with pytest.raises(DatasetError) as caught:
        column(load_data, ["1", *cells, "3"], dtype=dtype, missing="nan")
    assert f"whole numbers that {dtype} can hold, got {shown}" in str(caught.value)
    assert caught.value.row == 2
    assert "encode" in caught.value.advice
    if dtype != "bfloat16":
        # Beside a fraction it is a measurement, and rounded as everywhere.
        values = column(load_data, [*cells, "0.5"], dtype=dtype, missing="nan")
        assert values[-1] == 0.5


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ([1, 20240105], pa.int64()),
        ([1, 20240105], pa.uint32()),
        ([1, 20240105], pa.float64()),
        ([1, decimal.Decimal(20240105)], pa.decimal128(20, 2)),
        ([1, 2**53 + 1], pa.int64()),
        ([1, 2**64 - 1], pa.uint64()),
    ],
)
def test_nor_is_one_of_a_type(load_data, cells, kind):
    """Integers, whole doubles and decimals alike, and int64 holds them."""
    cells = pa.array(cells, kind)
    with pytest.raises(DatasetError, match="whole numbers that float32") as caught:
        typed(load_data, cells)
    assert caught.value.row == 2
    if cells[1].as_py() < 2**63:
        found = typed(load_data, cells, dtype="int64").tolist()
        assert found == [1, int(cells[1].as_py())]
    else:
        with pytest.raises(DatasetError, match="a number that int64 can hold"):
            typed(load_data, cells, dtype="int64")


@SETTINGS
@given(
    st.lists(st.integers(-(2**66), 2**66) | st.integers(-(2**25), 2**25), min_size=1),
    st.sampled_from(["float16", "float32", "float64", "int64", "int32"]),
)
def test_integers_come_back_or_are_refused(load_data, cells, dtype):
    """Of text as of Parquet, there is no third way."""
    with np.errstate(over="ignore"):
        exact = all(
            -(2**63) <= int(one) < 2**63
            if dtype == "int64"
            else abs(one) < 2**70
            and np.isfinite(np.dtype(dtype).type(float(one)))
            and int(np.dtype(dtype).type(float(one))) == one
            if "float" in dtype
            else -(2**31) <= one < 2**31
            for one in cells
        )
    for load in (
        lambda: column(load_data, map(str, cells), dtype=dtype),
        lambda: typed(load_data, pa.array(cells, pa.int64()), dtype=dtype),
    )[: 1 + all(-(2**63) <= one < 2**63 for one in cells)]:
        try:
            values = load()
        except DatasetError:
            assert not exact
        else:
            assert exact
            assert [int(one) for one in values] == cells


@pytest.mark.parametrize("cell", ["007", "-01", "00", "+08.5", " 01", "0x1F", "00e1"])
@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_a_leading_zero_is_not_lost(load_data, cell, dtype):
    """It is refused with the choices; one before a point is none."""
    with pytest.raises(DatasetError) as caught:
        column(load_data, ["1", cell], dtype=dtype)
    assert caught.value.row == 2
    if cell != "0x1F":
        assert 'encode = { a = "number" }' in caught.value.advice
    if "float" in dtype:
        fine = ["0", "0.5", "-0.25", "0e3", ".5", "10"]
        assert column(load_data, fine)[1] == 0.5


def test_numbers_that_look_like_names(load_data):
    """By declaration."""
    encode = {"a": "number"}
    assert column(load_data, ["007", "1"], encode=encode).tolist() == [7, 1]
    values = column(load_data, ["007", "-08"], encode=encode, dtype="int16")
    assert values.tolist() == [7, -8]
    with pytest.raises(DatasetError, match="expected a number"):
        column(load_data, ["0x1F"], encode=encode, dtype="int16")


@pytest.mark.parametrize(
    ("thousands", "mark", "cells", "values"),
    [
        (",", ".", ["1,234.5", "12", "1,234,567.25"], [1234.5, 12, 1234567.25]),
        (".", ",", ["1.234,5", "12", "-1.234.567,25"], [1234.5, 12, -1234567.25]),
        (" ", ".", ["1 234", "2.5"], [1234, 2.5]),
        ("'", ".", ["1'234", "2"], [1234, 2]),
        ("_", ".", ["1_234", "2"], [1234, 2]),
    ],
)
def test_digits_in_groups(load_data, thousands, mark, cells, values):
    """Groups are of three, or it is no number."""
    declared = {
        "thousands": thousands,
        "decimal": mark,
        "delimiter": ";",
        "features": "a",
    }
    text = "a;t\n" + "".join(f"{one};x\n" for one in cells)
    loaded = load_data("d.csv", text, dtype="float64", **declared)
    assert read(loaded.tensors["features"]).tolist() == values
    for cell in ("1,23", "12,3456", "1,2,3", ",123", "1,234,56", "1,,234"):
        wrong = cell.replace(",", thousands)
        if wrong.startswith(" "):
            continue
        with pytest.raises(DatasetError, match="expected a number"):
            load_data("d.csv", f"{text}{wrong};x\n", **declared)


def test_advice_depends_on_the_column(load_data):
    """Categories, words, dates, one odd token, or marks."""
    for cells, advice in (
        (["m", "f", "m"], 'encode = { a = ["m", "f"] }'),
        (
            ["1", "?", "2", "?"],
            'write missing_values = ["?"] if it stands for no value',
        ),
        (["y", "n"], 'encode = { a = "boolean" }'),
        (["2024-01-05", "2024-01-06"], 'encode = { a = "days" }'),
        (["1,234", "2"], 'write thousands = ","'),
        (["1,5", "2"], 'write decimal = ","'),
        ([f"name {k}" for k in range(20)], "correct the cell, or leave the column out"),
    ):
        with pytest.raises(DatasetError) as caught:
            column(load_data, cells)
        assert advice in caught.value.advice
    with pytest.raises(DatasetError) as caught:
        column(load_data, [*"abcdefghijk"])
    assert '"b"' not in str(caught.value)


def test_missing_values_are_declared(load_data):
    """Texts and numbers, of text and of types."""
    declared = {"missing": "nan", "missing_values": ["?", -999, "k.A."]}
    values = column(
        load_data, ["1", "?", "-999", "-999.0", " k.A. ", "None"], **declared
    )
    assert values[0] == 1
    assert np.isnan(values[1:-1]).all()
    values = typed(load_data, pa.array([1.0, -999.0, None, math.nan]), **declared)
    assert np.array_equal(values, [1, *[math.nan] * 3], equal_nan=True)
    values = typed(load_data, pa.array([1, -999]), **declared)
    assert np.array_equal(values, [1, math.nan], equal_nan=True)
    with pytest.raises(DatasetError, match=r'row 2 .*expected a value, got "-999"'):
        column(load_data, ["1", "-999"], missing_values=[-999])


def test_rows_without_a_value_may_be_left_out(load_data):
    """Of all columns that are used, and of no other."""
    text = "a,b,y,t\n1,,0,\n2,3,NA,x\n4,5,1,\n,6,1,\n7,8,0,y\n"
    loaded = load_data(
        "d.csv",
        text,
        features=["a", "b"],
        target="y",
        missing="drop",
        target_dtype="int8",
    )
    assert read(loaded.tensors["features"]).tolist() == [[4, 5], [7, 8]]
    assert read(loaded.tensors["target"]).tolist() == [1, 0]
    assert (loaded.report.rows, loaded.report.used) == (5, 2)
    assert "rows with a missing value, left out: 3" in loaded.report.notes
    assert [one.missing for one in loaded.report.columns[:3]] == [0, 0, 0]
    with pytest.raises(DatasetError, match="5 rows, of which none is used"):
        load_data("d.csv", text, features="a", where="t == 'z'", missing="drop")


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "int32"])
@pytest.mark.parametrize(
    ("fill", "value"),
    [("mean", 4), ("median", 2), ("most frequent", 1), (7, 7), ({"a": 8, "b": 9}, 8)],
)
def test_what_is_missing_is_filled(load_data, dtype, fill, value):
    """With what is computed of rows that have a value, or with a number."""
    text = "a,b\n1,1\n,2\n1,3\n10,4\n3,5\n5,6\nNA,7\n"
    loaded = load_data(
        "d.csv",
        text.replace("\n5,6", "\n,6") + "5,8\n",
        features=["a", "b"],
        dtype=dtype,
        missing={"fill": fill},
    )
    array = loaded.tensors["features"]
    found = torch.frombuffer(
        bytearray(array.data), dtype=getattr(torch, dtype)
    ).reshape(array.shape)
    cells = [1, None, 1, 10, 3, None, None, 5]
    known = [one for one in cells if one is not None]
    if fill == "median":
        value = float(np.median(known))
    expected = [value if one is None else one for one in cells]
    if fill == "mean":
        assert np.mean(known) == value
    assert found[:, 0].tolist() == expected
    assert found[:, 1].tolist() == [*range(1, 9)]
    assert loaded.report.columns[0].missing == 3


def test_a_fill_that_is_none_is_refused(load_data):
    """Of categories, of types that do not hold it, of columns without a value."""
    text = "a,b,s\n1,x,m\n,y,\n2,z,f\n4,z,f\n"
    sex = {"encode": {"s": ["m", "f"]}}
    for declared, words in (
        (
            {"features": "a", "dtype": "int8", "missing": {"fill": "mean"}},
            "has mean 2.33",
        ),
        ({"features": "a", "dtype": "int8", "missing": {"fill": 0.5}}, "int8 can hold"),
        ({"features": "a", "dtype": "float16", "missing": {"fill": 1e9}}, "float16"),
        ({"features": "s", "missing": {"fill": "mean"}, **sex}, "categories have no"),
        (
            {"features": ["a", "s"], "missing": {"fill": {"a": 1}}, **sex},
            "add s to fill",
        ),
        ({"features": "a", "missing": {"fill": {"b": 1}}}, "not used"),
        (
            {"features": "a", "where": "a is missing", "missing": {"fill": "mean"}},
            "has no value in any row",
        ),
    ):
        with pytest.raises(DatasetError, match=words):
            load_data("d.csv", text, **declared)
    loaded = load_data(
        "d.csv",
        text,
        features="s",
        missing={"fill": "most frequent"},
        encode={"s": {"one_hot": ["m", "f"]}},
    )
    assert read(loaded.tensors["features"]).tolist() == [[1, 0], [0, 1], [0, 1], [0, 1]]


def test_categories_become_codes_or_columns(load_data):
    """In the declared order; the report counts them."""
    text = "sex,smoker,x\nm,yes,1\nf,N,2\nm,0,3\nNA,t,4\n"
    loaded = load_data(
        "d.csv",
        text,
        features="*",
        public={"names": True},
        encode={"sex": ["f", "m", "NA"], "smoker": "boolean"},
    )
    rows = [[1, 1, 1], [0, 0, 2], [1, 0, 3], [2, 1, 4]]
    assert read(loaded.tensors["features"]).tolist() == rows
    first, second = loaded.report.columns[:2]
    assert first.classes == (("f", 1), ("m", 2), ("NA", 1))
    assert second.classes == (("false", 2), ("true", 2))
    loaded = load_data(
        "d.csv",
        text,
        features=["x", "sex"],
        missing="nan",
        public={"names": True},
        encode={"sex": {"one_hot": ["f", "m"]}},
    )
    assert loaded.public.names == {"features": ("x", "sex=f", "sex=m")}
    values = read(loaded.tensors["features"])
    assert values[:3].tolist() == [[1, 0, 1], [2, 1, 0], [3, 0, 1]]
    assert np.isnan(values[3, 1:]).all()
    with pytest.raises(
        DatasetError, match=r'one of the 1 categories, got "f"; .*sex in'
    ):
        load_data("d.csv", text, features="sex", encode={"sex": ["m"]}, missing="nan")
    with pytest.raises(DatasetError, match=r'true or false, such as yes, .*got "m"'):
        load_data("d.csv", text, features="sex", encode={"sex": "boolean"})
    # pandas writes whole numbers with a point where one is missing.
    values = column(load_data, ["1.0", "0", "1"], encode={"a": [0, 1]})
    assert values.tolist() == [1, 0, 1]
    with pytest.raises(DatasetError, match='got "01"'):
        column(load_data, ["1", "01"], encode={"a": [0, 1]})


def test_dates_become_days_or_parts(load_data):
    """Of text in ISO or as declared, of integers and of types."""
    day = (datetime.date(2024, 2, 29) - datetime.date(1970, 1, 1)).days
    for cells, encoding in (
        (["2024-02-29", "2024-03-01T00:00"], "days"),
        (["29.02.2024", "01.03.2024"], {"days": "%d.%m.%Y"}),
        (["20240229", "20240301"], {"days": "%Y%m%d"}),
        (["2024-02-29T00:00Z", "2024-03-01 00:00:00Z"], {"days": "iso"}),
    ):
        values = column(load_data, cells, encode={"a": encoding}, dtype="int32")
        assert values.tolist() == [day, day + 1]
    encode = {"a": {"days": "iso", "since": datetime.date(2024, 1, 1)}}
    assert column(load_data, ["2023-12-31", "2024-01-02"], encode=encode).tolist() == [
        -1,
        1,
    ]
    text = "a,b\n2024-02-29,1\n,2\n1969-12-31,3\n"
    loaded = load_data(
        "d.csv",
        text,
        features=["b", "a"],
        encode={"a": "parts"},
        missing="nan",
        public={"names": True},
    )
    assert loaded.public.names["features"] == ("b", "a.year", "a.month", "a.day")
    values = read(loaded.tensors["features"])
    assert values[[0, 2]].tolist() == [[1, 2024, 2, 29], [3, 1969, 12, 31]]
    assert np.isnan(values[1, 1:]).all()
    for cells in (
        pa.array([None, datetime.date(2024, 2, 29)]),
        pa.array([None, datetime.datetime(2024, 2, 29)]),
        pa.array([None, datetime.datetime(2024, 2, 29)], pa.timestamp("ns", "UTC")),
        pa.array([None, 20240229]),
    ):
        encoding = {"days": "%Y%m%d"} if cells.type == pa.int64() else "days"
        values = typed(load_data, cells, encode={"a": encoding}, missing="nan")
        assert np.array_equal(values, [math.nan, day], equal_nan=True)
    with pytest.raises(DatasetError, match=r'encode = \{ a = "days" \}'):
        typed(load_data, pa.array([datetime.date(2024, 2, 29)]))


@pytest.mark.parametrize(
    "cell", ["2024-02-30", "20240105", "5.1.2024", "x", "2024-01-05T25:00", "24-01-05"]
)
def test_what_is_no_date_is_named(load_data, cell):
    """A day that is not in the calendar, or another way to write it."""
    with pytest.raises(DatasetError, match="expected a date as 2024-01-05") as caught:
        column(load_data, ["2024-01-05", cell], encode={"a": "days"})
    assert caught.value.row == 2


def test_a_time_of_day_is_kept_or_refused(load_data):
    """A float32 does not hold seconds of this century; parts leave them out."""
    cells = ["2024-01-05T10:20:30", "2024-01-05T12:00"]
    with pytest.raises(DatasetError, match="time of day float32 can hold") as caught:
        column(load_data, cells, encode={"a": "days"})
    assert caught.value.row == 1
    assert column(load_data, cells[1:], encode={"a": "days"})[0] % 1 == 0.5
    values = column(load_data, cells, encode={"a": "days"}, dtype="float64")
    seconds = (values - np.floor(values)) * 86_400
    assert np.rint(seconds).tolist() == [37_230, 43_200]
    with pytest.raises(DatasetError, match="time of day int32 can hold"):
        column(load_data, cells, encode={"a": "days"}, dtype="int32")
    loaded = load_data(
        "d.csv", "a\n" + "\n".join(cells), features="a", encode={"a": "parts"}
    )
    assert read(loaded.tensors["features"]).tolist() == [[2024, 1, 5]] * 2
    assert loaded.report.columns[0].note == "the time of day is left out"


def test_a_number_that_stands_for_none_is_noted(load_data):
    """If it is an extreme, and far from the rest."""

    def notes(*cells):
        text = "a,b\n" + "".join(f"{one},1\n" for one in cells)
        return load_data("d.csv", text, features="a").report.columns[0].note

    assert notes(30, -999, 45, 61, -999) == "-999 in 2 rows: missing_values = [-999]?"
    assert notes(30, 999, 45, 61) == "999 in 1 rows: missing_values = [999]?"
    assert notes(30, -9, 45, 61) == "-9 in 1 rows: missing_values = [-9]?"
    for usual in ((90, 95, 99, 85), (-2, -1, 0, 1), (-9, -8, -7, 3), (1, 2, 3)):
        assert notes(*usual) == ""


def test_bfloat16_is_what_torch_makes(load_data):
    """Bit for bit."""
    values = np.random.default_rng(0).standard_normal(1_000).astype(np.float32)
    loaded = load_data(
        "d.csv",
        "a\n" + "\n".join(map(repr, values.tolist())),
        features="a",
        dtype="bfloat16",
    )
    array = loaded.tensors["features"]
    found = torch.frombuffer(bytearray(array.data), dtype=torch.bfloat16)
    assert torch.equal(found, torch.from_numpy(values).bfloat16())


def test_several_tensors_of_features(load_data):
    """Each with its name, its columns and its type."""
    loaded = load_data(
        "d.csv",
        "a,b,c,y\n1,2,0.5,1\n4,5,6,0\n",
        features={"ids": ["a", "b"], "weight": "c"},
        target="y",
        dtype={"ids": "int64"},
        target_dtype="int8",
        public={"names": True},
    )
    found = {name: read(array).tolist() for name, array in loaded.tensors.items()}
    assert found == {"ids": [[1, 2], [4, 5]], "weight": [0.5, 6], "target": [1, 0]}
    assert loaded.tensors["ids"].dtype == "int64"
    assert loaded.public.names["weight"] == ("c",)


def test_names_that_are_not_there(load_data):
    """In exclude, encode, missing and where as in features."""
    for declared in (
        {"features": "*", "exclude": ["raduis"]},
        {"features": "*", "encode": {"raduis": "boolean"}},
        {"features": "*", "missing": {"fill": {"raduis": 1}}},
        {"features": "*", "where": "raduis > 1"},
    ):
        with pytest.raises(DatasetError, match='did you mean "radius"'):
            load_data("d.csv", "radius,y\n1,2\n3,4\n", **declared)
    with pytest.raises(DatasetError, match="a column that is not used"):
        load_data("d.csv", "a,b\n1,x\n", features="a", encode={"b": ["x"]})


@SETTINGS
@given(
    st.lists(
        st.tuples(
            st.none() | st.floats(allow_infinity=False, allow_nan=False),
            st.none() | st.booleans(),
            st.none() | st.sampled_from(["x", "y", " z", "a,b", '"']),
        ),
        min_size=1,
    )
)
def test_a_frame_of_pandas_comes_back(load_data, rows):
    """As CSV and as Parquet, it is the same tensor, with the same NaN.

    Of CSV without rows at the end that are empty throughout.
    """
    frame = pd.DataFrame(rows, columns=["a", "b", "c"])
    frame["a"] = frame["a"].astype("float64")
    frame["b"] = frame["b"].astype("boolean")
    file = io.BytesIO()
    frame.to_parquet(file)
    declared = {
        "features": ["a", "b", "c"],
        "dtype": "float64",
        "missing": "nan",
        "encode": {"b": "boolean", "c": ["x", "y", " z", "a,b", '"']},
    }
    codes = {"x": 0, "y": 1, " z": 2, "a,b": 3, '"': 4, None: math.nan}
    expected = np.array(
        [
            [math.nan if a is None else a, math.nan if b is None else b, codes[c]]
            for a, b, c in rows
        ],
        np.float64,
    )
    for name, data in (
        ("d.csv", frame.to_csv(index=False)),
        ("d.parquet", file.getvalue()),
    ):
        wanted = expected
        if name == "d.csv":
            kept = len(rows)
            while kept and all(one is None for one in rows[kept - 1]):
                kept -= 1
            wanted = expected[:kept]
            if not kept:
                continue
        found = read(load_data(name, data, **declared).tensors["features"])
        assert np.array_equal(found, wanted, equal_nan=True)
