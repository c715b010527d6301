"""Tables of text: what becomes which number, and what is refused where."""

from __future__ import annotations

import csv
import io
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from obhut.errors import DatasetError

CELLS = 65_536

SETTINGS = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


def read(array):
    """Return an array's elements, as NumPy sees them."""
    dtype = {"bool": "?"}.get(array.dtype, array.dtype)
    return np.frombuffer(array.data, dtype).reshape(array.shape)


def column(load_data, cells, **declared):
    """Load one column of cells; return its values."""
    text = io.StringIO()
    csv.writer(text).writerows([["a"], *([cell] for cell in cells)])
    declared.setdefault("features", "a")
    return read(load_data("d.csv", text.getvalue(), **declared).tensors["features"])


def test_columns_are_chosen_by_name_and_order(load_data):
    """Features come in the declared order, whatever is between them."""
    loaded = load_data("d.csv", "a,b,c\n1,x,3\n4,y,6\n", features=["c", "a"])
    features = loaded.tensors["features"]
    assert (features.dtype, features.shape) == ("float32", (2, 2))
    assert read(features).tolist() == [[3, 1], [6, 4]]


def test_a_star_is_all_but_the_target(load_data):
    """A column named alone has no second dimension, a list of one has."""
    loaded = load_data("d.csv", "a,y,b\n1,2,3\n", features="*", target="y")
    assert read(loaded.tensors["features"]).tolist() == [[1, 3]]
    assert read(loaded.tensors["target"]).tolist() == [2]
    loaded = load_data("d.csv", "a,y,b\n1,2,3\n", features="b", target=["y"])
    assert loaded.tensors["features"].shape == (1,)
    assert loaded.tensors["target"].shape == (1, 1)


def test_classes_are_numbered_in_order(load_data):
    """A column of texts becomes int64, the first class 0."""
    loaded = load_data(
        "d.csv", "a,y\n1,B\n2, M \n3,B\n", features="a", target="y", classes=["M", "B"]
    )
    target = loaded.tensors["target"]
    assert target.dtype == "int64"
    assert read(target).tolist() == [1, 0, 1]
    loaded = load_data(
        "d.csv", "y\n7\n5\n", target="y", classes=[5, 7], target_dtype="uint8"
    )
    assert loaded.tensors["target"].dtype == "uint8"
    assert read(loaded.tensors["target"]).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("dtype", "cells", "values"),
    [
        (
            "float32",
            ["1", "-2.5", "+3e2", " 4 ", ".5", "6."],
            [1, -2.5, 300, 4, 0.5, 6],
        ),
        ("float64", ["0.1", "1e300"], [0.1, 1e300]),
        ("float16", ["1.5", "65504"], [1.5, 65504]),
        ("int64", ["-9223372036854775808", "+7"], [-(2**63), 7]),
        ("int8", ["127", "3.0", "1e2"], [127, 3, 100]),
        ("uint8", ["255", "0"], [255, 0]),
        ("int16", ["-32768"], [-32768]),
        ("int32", ["2147483647"], [2147483647]),
        ("bool", ["yes", "No", "TRUE", "false", "0", "1"], [1, 0, 1, 0, 0, 1]),
        ("bool", ["0", "1"], [0, 1]),
        ("float32", ["yes", "no", "1", "0", "True"], [1, 0, 1, 0, 1]),
        ("int8", ["false", "true"], [0, 1]),
    ],
)
def test_cells_become_numbers(load_data, dtype, cells, values):
    """What people write for a number is that number."""
    assert column(load_data, cells, dtype=dtype).tolist() == values


@pytest.mark.parametrize(
    ("dtype", "cells", "row", "problem"),
    [
        ("float32", ["1", "x"], 2, 'expected a number, got "x"'),
        ("float32", ["1", "no"], 2, 'expected a number, got "no"'),
        ("float32", ["1", "1_0"], 2, 'got "1_0"'),
        ("float32", ["1", "٣"], 2, "expected a number"),
        ("float32", ["1", "1 2"], 2, "expected a number"),
        ("float32", ["1", "inf"], 2, "expected a number"),
        ("float32", ["1", "1e39"], 2, "a number that float32 can hold, got 1e+39"),
        ("float32", ["1", "9" * 50], 2, "a number that float32 can hold"),
        ("float64", ["1", "1e309"], 2, "a number that a float can hold"),
        ("float64", ["1", "9" * 5000], 2, "a number that a float can hold"),
        ("float16", ["65520"], 1, "a number that float16 can hold"),
        ("float16", ["9" * 30], 1, "a number that float16 can hold"),
        ("int16", ["3.0", "1e5"], 2, "a number that int16 can hold"),
        ("float32", ["1", "", "2"], 2, "expected a value, got an empty cell"),
        ("float32", ["1", "NA"], 2, 'expected a value, got "NA"'),
        ("float32", ["1", "nan"], 2, 'expected a value, got "nan"'),
        ("int8", ["128"], 1, "a number that int8 can hold, got 128"),
        ("uint8", ["-1"], 1, "a number that uint8 can hold, got -1"),
        ("int64", ["9223372036854775808"], 1, "a number that int64 can hold"),
        ("int64", ["9" * 4200], 1, "a number that int64 can hold"),
        ("int64", ["1e300"], 1, "a whole number in plain digits"),
        ("int64", ["1.5"], 1, "expected a whole number, got 1.5"),
        ("int64", ["", "1"], 1, "got an empty cell"),
        ("bool", ["yes", "2"], 2, "yes, no, true, false, 0 or 1"),
        ("bool", ["2", "1"], 1, "expected 0 or 1, got 2"),
        ("float32", ["yes", "2"], 2, "yes, no, true, false, 0 or 1"),
        ("float32", ["yes", "", "no"], 2, "got an empty cell"),
    ],
)
def test_what_is_no_such_number_is_named(load_data, dtype, cells, row, problem):
    """The error has file, row, line, column, the one cell and what to do."""
    with pytest.raises(DatasetError) as caught:
        column(load_data, cells, dtype=dtype)
    error = caught.value
    assert (error.row, error.line, error.column) == (row, row + 1, "a")
    assert problem in error.problem
    assert error.file.endswith("d.csv")
    assert f', row {row} (line {row + 1}), column "a": {error.problem}; ' in str(error)
    assert len(str(error)) - len(error.file) < 250


def test_missing_cells_become_nan_by_declaration_only(load_data):
    """All ways of saying nothing are NaN; the rest of the row stays."""
    loaded = load_data(
        "d.csv",
        "a,b\n,yes\nNA,1\n n/a ,\nNaN,0\nnull,no\n2,1\n",
        features="*",
        missing="nan",
    )
    values = read(loaded.tensors["features"])
    assert np.isnan(values[:5, 0]).all()
    assert values[5, 0] == 2
    with pytest.raises(DatasetError, match=r"row 1 \(line 2\), column \"a\""):
        load_data("d.csv", "a,b\n,1\nNA,2\n", features="*")
    values = column(load_data, ["", "yes", "", "no"], missing="nan")
    assert np.array_equal(values, [math.nan, 1, math.nan, 0], equal_nan=True)


def test_a_target_of_texts_needs_classes(load_data):
    """The error says so."""
    with pytest.raises(DatasetError, match="or list the texts in classes"):
        load_data("d.csv", "y\nM\n", target="y")


def test_a_missing_class_is_refused(load_data):
    """There is no NaN among the int64 of classes."""
    with pytest.raises(DatasetError, match=r"row 2 .*an empty cell; int64 has no"):
        load_data("d.csv", 'y\nM\n""\nM\n', target="y", classes=["M"], missing="nan")


def test_a_comma_may_be_the_decimal_mark(load_data):
    """And then a point is refused, since it may mean thousands."""
    german = {"delimiter": ";", "decimal": ",", "features": ["a", "b"]}
    values = read(load_data("d.csv", "a;b\n1,5;-2\n", **german).tensors["features"])
    assert values.tolist() == [[1.5, -2]]
    with pytest.raises(DatasetError, match=r'got "1.234"; correct it, or write thou'):
        load_data("d.csv", "a;b\n1,5;1.234\n", **german)
    with pytest.raises(DatasetError, match=r'or write decimal = ","'):
        load_data("d.csv", "a;b\n1;1,5\n", features=["b"], delimiter=";")


def test_quotes_tabs_and_marks_at_the_beginning(load_data):
    """Quoted delimiters and line breaks, .tsv and a byte order mark are read."""
    data = '\ufeff"a","b,\nc"\r\n1,"2"\r\n"3",4\r\n\r\n\r\n'
    loaded = load_data("d.csv", data, features=["a", "b,\nc"])
    assert read(loaded.tensors["features"]).tolist() == [[1, 2], [3, 4]]
    loaded = load_data("d.tsv", "a\tb\n1\t2\n", features="*")
    assert read(loaded.tensors["features"]).tolist() == [[1, 2]]


def test_lines_are_counted_as_an_editor_does(load_data):
    """A cell with line breaks moves the lines after it."""
    with pytest.raises(DatasetError) as caught:
        load_data("d.csv", 'a,t\n1,"x\ny\r\nz"\n2,b\nq,c\n', features="a")
    assert (caught.value.row, caught.value.line) == (3, 6)


def test_rows_are_counted_across_chunks(load_data):
    """The fault in a late chunk is found where it is."""
    rows = ["1"] * (CELLS + 10)
    rows[CELLS + 5] = "x"
    with pytest.raises(DatasetError) as caught:
        load_data("d.csv", "a\n" + "\n".join(rows), features="a")
    assert (caught.value.row, caught.value.line) == (CELLS + 6, CELLS + 7)


def test_a_column_of_numbers_stays_one(load_data):
    """A word in a later chunk is no number, nor is a number in a column of words."""
    many = ["1"] * CELLS
    with pytest.raises(DatasetError, match="a column of numbers, as its first cell"):
        column(load_data, [*many, "yes"])
    with pytest.raises(DatasetError, match="yes, no, true"):
        column(load_data, ["yes", *many, "2"])
    assert column(load_data, [*[""] * CELLS, "yes"], missing="nan")[-1] == 1


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("", "line 1: expected a table, got nothing"),
        ("\n1\n", 'column "a": the file has 1 columns, and none of this name'),
        ("1,2\n3,4\n", "line 1: the first row may have names or data"),
        ("a,b\n", "has a header and no rows"),
        ("a,b\n\n\n", "has a header and no rows"),
        ("a,c\n1,2\n", 'line 1, column "b": the file has 2 columns, and none'),
        ("a,b,b\n1,2,3\n", 'line 1, column "b": expected one column of this name, got'),
        ("a;b\n1;2\n", 'if ";" is between them, write delimiter = ";"'),
        ("a,b\n1,2\n3\n", "row 2 (line 3): expected 2 cells as in the header, got 1"),
        ("a,b\n1,2,3\n", "row 1 (line 2): expected 2 cells as in the header, got 3"),
        ('a,b\n1,"2"3\n', "line 2: expected cells, quoted where they need it"),
        ('a,b\n1,"2\n', "line 2: expected cells, quoted where they need it"),
        (b"a,b\n1,2\n\xff,2\n", 'line 3: is not UTF-8; write encoding = "cp1252"'),
        ("a,b\n1," + "2" * 200_000 + "\n", "a number that a float can hold"),
    ],
)
def test_what_is_no_table_is_refused(load_data, data, words):
    """The error names the line."""
    with pytest.raises(DatasetError) as caught:
        load_data("d.csv", data, features=["a", "b"])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_blank_lines_are_passed_over(load_data):
    """And counted for the report; in a file of one column they are missing cells."""
    loaded = load_data("d.csv", "\n\na,b\n1,2\n\n \n3,4\n\n", features="*")
    assert read(loaded.tensors["features"]).tolist() == [[1, 2], [3, 4]]
    assert "blank lines, passed over: 3" in loaded.report.notes
    with pytest.raises(DatasetError, match=r"row 2 \(line 3\).* an empty cell"):
        load_data("d.csv", "a\n1\n\n2\n", features="a")
    values = column(load_data, ["1", "", "2", "", ""], missing="nan")
    assert np.array_equal(values, [1, math.nan, 2], equal_nan=True)


def test_a_star_needs_another_column(load_data):
    """A table of the target only has no features."""
    with pytest.raises(DatasetError, match="no columns beside the target"):
        load_data("d.csv", "y\n1\n", features="*", target="y")


def test_the_nearest_column_is_proposed(load_data):
    """One name at most is quoted: the header may be a row of data."""
    with pytest.raises(DatasetError) as caught:
        load_data("d.csv", "radius,texture\n1,2\n", features=["raduis"])
    assert 'did you mean "radius"?' in str(caught.value)
    assert "texture" not in str(caught.value)


def test_an_error_shows_one_cell_and_nothing_else(load_data):
    """Neither its neighbours, nor the end of a long cell, nor a line break."""
    secret = "12345.678"
    cell = "x\n\x1b[31m" + "y" * 100 + "END"
    with pytest.raises(DatasetError) as caught:
        load_data(
            "d.csv",
            f'a,b,c\n{secret},{secret},{secret}\n{secret},"{cell}",{secret}\n',
            features="*",
        )
    text = str(caught.value)
    assert secret not in text
    assert "END" not in text
    assert "\x1b" not in text
    assert 'got "x\\n\\x1b[31myyy' in text


NUMBERS = st.floats(allow_nan=False, allow_infinity=False, width=32)


@SETTINGS
@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1))
def test_numbers_written_are_read(load_data, rows):
    """What Python writes for a float32 comes back bit for bit."""
    text = "a,b,c\n" + "\n".join(",".join(map(repr, row)) for row in rows)
    values = read(load_data("d.csv", text, features="*").tensors["features"])
    assert values.tobytes() == np.array(rows, np.float32).tobytes()


@SETTINGS
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_integers_written_are_read(load_data, rows):
    """Every int64 comes back."""
    values = column(load_data, map(str, rows), dtype="int64")
    assert values.tolist() == rows


TEXT = st.lists(
    st.sampled_from(
        ["a", "b", ",", "\n", "\r\n", '"', "1", "-", ".", "e", "no", " ", "\x1f", "é"]
    ),
    max_size=30,
).map("".join)


@SETTINGS
@given(
    TEXT.map(str.encode) | st.binary(max_size=60),
    st.sampled_from(["float32", "int8", "bool"]),
    st.booleans(),
)
def test_any_bytes_load_or_are_refused(load_data, data, dtype, nan):
    """Garbage is a ``DatasetError`` in one line."""
    declared = {"missing": "nan"} if nan and dtype == "float32" else {}
    try:
        load_data("d.csv", b"a,b\n" + data, features="*", dtype=dtype, **declared)
    except DatasetError as error:
        text = str(error)
    else:
        text = ""
    assert "\n" not in text
