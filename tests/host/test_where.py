"""Conditions on rows: what they take, and where they can not be read."""

from __future__ import annotations

import datetime

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from obhut.errors import ConfigurationError, DatasetError
from obhut.host.data import where

from .conftest import HEAD
from .test_tables import SETTINGS, read
from .test_typed_columns import parquet

CSV = """k,age,sex,blood type,when,smoker,t
0,17,f,A,2019-12-31,yes,x
1,18,m,B,2020-01-01,no,x
2,,f,0,2020-06-01,TRUE,x
3,91,f,AB,,0,x
4, 40 ,NA,A,2021-01-01T10:00,1,x
"""

TYPED = parquet(
    k=range(5),
    age=pa.array([17, 18, None, 91, 40]),
    sex=pa.array(["f", "m", "f", "f", None]).dictionary_encode(),
    **{"blood type": ["A", "B", "0", "AB", "A"]},
    when=pa.array(
        [
            datetime.datetime(2019, 12, 31),
            datetime.datetime(2020, 1, 1),
            datetime.datetime(2020, 6, 1),
            None,
            datetime.datetime(2021, 1, 1, 10),
        ]
    ),
    smoker=[True, False, True, False, True],
)


@pytest.mark.parametrize("name", ["d.csv", "d.parquet"])
@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("age >= 18", [1, 3, 4]),
        ("age > 17.5 and age < 91", [1, 4]),
        ("age == 40", [4]),
        ("age != 40", [0, 1, 3]),
        ("not age == 40", [0, 1, 3]),
        ("not (age < 18 or age > 90)", [1, 4]),
        ('sex == "f" and not (age < 18 or age > 90)', []),
        ("sex == 'f'", [0, 2, 3]),
        ('sex != "f"', [1]),
        ('`blood type` in ["A", "0"]', [0, 2, 4]),
        ('`blood type` not in ["A", "0"]', [1, 3]),
        ("age in [17, 18]", [0, 1]),
        ("age is missing", [2]),
        ("age is not missing and k > 0", [1, 3, 4]),
        ("sex is missing or when is missing", [3, 4]),
        ("when >= 2020-01-01", [1, 2, 4]),
        ('when > "2020-12-31"', [4]),
        ("when == 2021-01-01T10:00", [4]),
        ("smoker == true", [0, 2, 4]),
        ("smoker != true", [1, 3]),
        ("age < 18 or age > 90 and sex == 'f'", [0, 3]),
        ("not not age < 18", [0]),
        ("k >= -1e0 and k<=+3", [0, 1, 2, 3]),
    ],
)
def test_rows_are_taken(load_data, name, text, rows):
    """A missing cell meets no comparison, nor its contrary."""
    data = CSV if name == "d.csv" else TYPED
    if not rows:
        with pytest.raises(DatasetError, match="none is used; correct where"):
            load_data(name, data, features="k", where=text)
        return
    loaded = load_data(name, data, features="k", where=text)
    assert read(loaded.tensors["features"]).tolist() == rows
    assert (loaded.report.rows, loaded.report.used) == (5, len(rows))


def test_errors_name_rows_of_the_file(load_data):
    """Also of those that are left by a condition."""
    with pytest.raises(DatasetError) as caught:
        load_data("d.csv", CSV, features=["k", "age"], where="k == 0 or k == 2")
    assert (caught.value.row, caught.value.line, caught.value.column) == (3, 4, "age")
    # What is left out is not looked at.
    assert load_data("d.csv", CSV, features=["k", "age"], where="k != 2")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sex > 3", 'row 1 (line 2), column "sex": expected a number, got "f"'),
        (
            "age == true",
            'row 1 (line 2), column "age": expected true or false, got "17"',
        ),
        ("sex >= 2020-01-01", 'column "sex": expected a date such as 2024-01-05'),
        ("sexx == 'f'", 'did you mean "sex"?'),
        ("t.u == 1", "none of 7 has this name"),
    ],
)
def test_what_can_not_be_compared_is_named(load_data, text, words):
    """It is not merely unequal."""
    with pytest.raises(DatasetError) as caught:
        load_data("d.csv", CSV, features="k", where=text)
    assert words in str(caught.value)


def test_marks_of_numbers_hold_in_conditions(load_data):
    """And so do declared missing values."""
    text = "k;a\n1;1.000,5\n2;?\n3;2,5\n"
    declared = {
        "delimiter": ";",
        "decimal": ",",
        "thousands": ".",
        "missing_values": ["?"],
    }
    loaded = load_data("d.csv", text, features="k", where="a > 2.5", **declared)
    assert read(loaded.tensors["features"]).tolist() == [1]
    loaded = load_data("d.csv", text, features="k", where="a is missing", **declared)
    assert read(loaded.tensors["features"]).tolist() == [2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the name of a column (in backticks if it has spaces) at character 1"),
        ("age >=", "a number, a text in quotes, or a date at character 7, got its end"),
        ("age = 3", "a name, a value or a sign at character 5"),
        ("age > 3 sex", 'and, or, or the end at character 9, got "sex"'),
        ("age > 3 &", "at character 9"),
        ("(age > 3", "expected ) at character 9"),
        ("age in []", "at character 9"),
        ("age in (1)", "expected [ at character 8"),
        ("age not 3", "expected in at character 9"),
        ("age is 3", "expected missing at character 8"),
        ("when > 2020-02-30", "a date that there is at character 8"),
        ("age > x", "at character 7"),
        ("and > 3", "at character 1"),
        ("3 > age", "at character 1"),
        ('sex == "f', "at character 8"),
        ("(" * 300 + "a > 1" + ")" * 300, "fewer parentheses"),
        ("not " * 5_000 + "a > 1", "fewer parentheses"),
    ],
)
def test_what_is_no_condition_is_pointed_at(configure, text, words):
    """Before the file is opened."""
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    with pytest.raises(ConfigurationError) as caught:
        configure(
            f'{HEAD}[[dataset]]\nname = "d"\npath = "d.csv"\nfeatures = "k"\n'
            f'where = "{quoted}"\n'
        )
    assert "where" in caught.value.key
    assert words in str(caught.value)


def test_long_conditions(load_data):
    """As long as a configuration may be."""
    many = " or ".join(f"k == {k}" for k in range(2, 3_000))
    assert read(
        load_data("d.csv", CSV, features="k", where=many).tensors["features"]
    ).tolist() == [2, 3, 4]
    listed = ", ".join(map(str, range(2, 3_000)))
    assert read(
        load_data("d.csv", CSV, features="k", where=f"k in [{listed}]").tensors[
            "features"
        ]
    ).tolist() == [2, 3, 4]


@SETTINGS
@given(st.text("ab01\"'`()[],.<>=!- \\notrdis", max_size=40))
def test_any_text_is_a_condition_or_is_refused(text):
    """In one line."""
    try:
        said = str(where.parse("d", text).names)
    except DatasetError as error:
        said = str(error)
    assert said
    assert "\n" not in said
