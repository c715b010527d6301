"""Keys of a declaration that do not fit where its rows come from."""

from __future__ import annotations

import pytest

from obhut.errors import ConfigurationError

from .conftest import HEAD

TABLE = '[[dataset]]\nname = "d"\n'


@pytest.mark.parametrize(
    ("lines", "key", "words"),
    [
        ('path = "d.csv"\nfeatures = "*"\nquery = "t"', "query", "for csv files"),
        ('path = "d.npz"\nquery = "t"', "query", "for npz files"),
        ('path = "d.db"\nfeatures = "*"\nquery = " "', "query", "got nothing"),
        (
            'path = "d.db"\nfeatures = "*"\nquery = "select * from t"\n'
            "split = { train = 0.5, test = 0.5 }",
            "query",
            "add ORDER BY",
        ),
        ('path = "d.csv"\nfeatures = "a"\npad = 3', "pad", "whose cells are no lists"),
        ('path = "d.db"\nfeatures = "a"\npad = 3', "pad", "whose cells are no lists"),
        ('path = "d.npy"\npad = 3', "pad", "whose cells are no lists"),
        ('path = "d.parquet"\nfeatures = "a"\npad = 0', "pad", "got 0"),
        ('path = "d.parquet"\nfeatures = "a"\npad = { to = 0 }', "pad", "1"),
        (
            'path = "d.csv"\nfeatures = { target = "x" }',
            "features",
            "give it another name",
        ),
        (
            'path = "d.csv"\nfeatures = { a = "*", b = "*" }',
            "features",
            '"a" and "b" are the same columns',
        ),
        ('path = "d.csv"\nfeatures = { a = [] }', "features", "got none"),
        ('path = "d.csv"\nfeatures = { a = ["x", ""] }', "features", "got none"),
        ('path = "d.csv"\nfeatures = { a = ["x", "x"] }', "features", "listed twice"),
        (
            'path = "d.csv"\nfeatures = { a = ["x", "y"] }\ntarget = "y"',
            "features",
            '"y" is both a feature and the target',
        ),
        (
            'path = "d.csv"\nfeatures = "a"\ndtype = { a = "int8" }',
            "dtype",
            "features are one tensor",
        ),
        (
            'path = "d.csv"\nfeatures = { abc = "a" }\ndtype = { abx = "int8" }',
            "dtype",
            'did you mean "abc"?',
        ),
    ],
)
def test_a_key_that_does_not_fit_is_named(configure, lines, key, words):
    """With what it may be."""
    with pytest.raises(ConfigurationError) as caught:
        configure(f"{HEAD}{TABLE}{lines}\n")
    assert caught.value.key.split(" of ")[0].split(".")[0] in (key, "to")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "lines",
    [
        'path = "d.db"\nfeatures = "*"\nquery = "t"\nsplit = { a = 0.5, b = 0.5 }',
        'path = "d.db"\nfeatures = "*"\nquery = "select a from t ORDER  BY a"\n'
        "split = { a = 0.5, b = 0.5 }",
        'path = "d.duckdb"\nfeatures = "x"\npad = 7',
        'path = "parts"\nformat = "csv"\nfeatures = "x"',
        'path = "d.npz"\nfeatures = { a = "x" }\ndtype = { a = "float32" }',
        'path = "d.npz"\ndtype = { x = "float32" }',
        'path = "year=*/part-*.parquet"\nfeatures = { x = "a", y = ["b", "a"] }\n'
        'dtype = { x = "int64" }\ntarget = "x"\npad = { to = 9, value = -1 }',
    ],
)
def test_what_fits_is_taken(configure, lines):
    """Tables of every kind."""
    assert configure(f"{HEAD}{TABLE}{lines}\n").datasets


def test_a_folder_says_what_it_is_by_format_only(configure):
    """The error says so."""
    with pytest.raises(ConfigurationError, match="add format"):
        configure(f'{HEAD}{TABLE}path = "parts"\nfeatures = "x"\n')
