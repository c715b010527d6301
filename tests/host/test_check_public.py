"""What is told of columns tells no private name, and only what is declared."""

from __future__ import annotations

from pathlib import Path

import pytest

from obhut.errors import ConfigurationError
from obhut.host.data.datasets import (
    PublicMetadata,
    _categories,
    _units,
    load_one,
)

from .test_configuration import HEAD

TABLE = """[[dataset]]
name = "d"
path = "d.csv"
features = ["age", "sex", "day"]
target = "y"
units = { age = "years" }
classes = ["no", "yes"]
encode = { sex = ["m", "f"], day = "days" }
"""


@pytest.mark.parametrize(
    ("public", "more", "problem"),
    [
        ("units = true", "", "units are told by column, and the names of columns"),
        ("classes = true", "", 'categories of "sex" are told by column'),
        ("names = true", "smoker = { one_hot = ['n', 'y'] }", 'that "smoker" becomes'),
    ],
)
def test_what_would_tell_a_private_name_is_refused(configure, public, more, problem):
    """At the check of the configuration, with what to write."""
    table = TABLE.replace('day = "days"', f'day = "days"{", " * bool(more)}{more}')
    with pytest.raises(ConfigurationError, match=problem) as caught:
        configure(HEAD + table + f"public = {{ {public} }}\n")
    assert "write" in str(caught.value)
    configure(HEAD + table + "public = { names = true, classes = true, units = true }")


def test_classes_of_the_target_need_no_names(configure):
    """There is one target, of which everybody knows."""
    table = TABLE.replace("encode", "# ")
    assert configure(HEAD + table + "public = { classes = true }").datasets


def test_units_are_of_columns_that_are_used(configure):
    """A misspelt name is told; with ``*`` the columns are known later."""
    table = TABLE.replace("age = ", "agee = ")
    with pytest.raises(ConfigurationError, match='did you mean "age"'):
        configure(HEAD + table)
    every = TABLE.replace('["age", "sex", "day"]', '"*"').replace("age = ", "agee = ")
    assert configure(HEAD + every).datasets


@pytest.fixture
def loaded(configure, tmp_path):
    """What is public of a small table, by what its owner declares public."""

    def load(public: str) -> PublicMetadata:
        file: Path = tmp_path / "d.csv"
        file.write_text("age,y\n1,no\n2,yes\n")
        table = TABLE.replace(', "sex", "day"', "").replace("encode", "# ")
        (one,) = configure(HEAD + table + f"public = {{ {public} }}\n").datasets
        return load_one(one).public

    return load


def test_what_is_declared_is_told_and_nothing_else(loaded):
    """Classes, categories and units, each by its own key."""
    assert loaded("").classes is None
    told = loaded("classes = true")
    assert (told.classes, told.categories, told.units) == (("no", "yes"), {}, None)
    told = loaded("names = true, units = true")
    assert (told.classes, told.categories) == (None, None)
    assert told.units == {"age": "years"}


def test_dates_are_in_days_since_a_day(configure):
    """Which is their unit, so that two beginnings are told apart."""
    text = TABLE + "public = { names = true, classes = true, units = true }\n"
    (one,) = configure(HEAD + text).datasets
    assert _units(one) == {"age": "years", "day": "days since 1970-01-01"}
    assert _categories(one) == {"sex": ("m", "f")}
    since = text.replace('"days"', '{ days = "iso", since = 2000-01-01 }')
    (one,) = configure(HEAD + since).datasets
    assert _units(one)["day"] == "days since 2000-01-01"
