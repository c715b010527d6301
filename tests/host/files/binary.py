"""Parquet, databases, arrays, and folders of images."""

from __future__ import annotations

import datetime
import io
import sqlite3
import zipfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import torch
from PIL import Image
from safetensors.torch import save

from .cases import Cases

PARQUET = Cases("d.parquet")
DATABASES = Cases("d.sqlite")
NPY = Cases("d.npy")
NPZ = Cases("d.npz")
SAFETENSORS = Cases("d.safetensors")
IMAGES = Cases("i")

nan = float("nan")
DAY = datetime.date(2024, 1, 5)


# --- Parquet ----------------------------------------------------------------------


def parquet(**columns: object) -> Callable[[Path], None]:
    """Return what writes columns."""
    return lambda path: pyarrow.parquet.write_table(pa.table(columns), path)


def of(frame: pd.DataFrame) -> Callable[[Path], None]:
    """Return what writes a table of pandas'."""
    return frame.to_parquet


_, no = PARQUET.loads, PARQUET.refuses
_("parquet", parquet(a=[1.5, 2.5], b=[3, 4]), features=[[1.5, 3], [2.5, 4]])
_("parquet, one column", parquet(a=[1.5, 2.5], b=[3, 4]), 'features = "b"', [3, 4])
_("parquet, booleans", parquet(a=[True, False]), features=[[1], [0]])
_(
    "parquet, decimals",
    parquet(a=[Decimal("1.25"), Decimal("-3.50")]),
    features=[[1.25], [-3.5]],
)
_(
    "parquet, half floats",
    parquet(a=pa.array(np.array([0.5, 2], np.float16))),
    features=[[0.5], [2]],
)
_(
    "parquet, small integers",
    parquet(a=pa.array([1, 255], pa.uint8())),
    'features = "*"\ndtype = "uint8"',
    [[1], [255]],
    dtypes={"features": "uint8"},
)
_(
    "parquet, categories",
    of(pd.DataFrame({"g": pd.Categorical(["x", "y", "x"])})),
    'features = "*"\nencode = { g = ["x", "y"] }',
    [[0], [1], [0]],
)
_(
    "parquet, texts as codes",
    parquet(g=["x", "y"]),
    'features = "*"\nencode = { g = ["y", "x"] }',
    [[1], [0]],
)
_(
    "parquet, texts as columns",
    parquet(g=["x", "y"]),
    'features = "*"\nencode = { g = { one_hot = ["x", "y"] } }',
    [[1, 0], [0, 1]],
)
_(
    "parquet, classes",
    parquet(a=[1.0, 2.0], y=["u", "v"]),
    'features = ["a"]\ntarget = "y"\nclasses = ["v", "u"]',
    [[1], [2]],
    target=[1, 0],
    dtypes={"target": "int64"},
)
_(
    "parquet, dates",
    parquet(d=[DAY]),
    'features = "*"\nencode = { d = "days" }',
    [[19727]],
)
_(
    "parquet, parts of dates",
    parquet(d=[DAY]),
    'features = "*"\nencode = { d = "parts" }',
    [[2024, 1, 5]],
)
no("parquet, dates, not told", parquet(d=[DAY]), 'features = "*"', 'column "d"')
no("parquet, text", parquet(g=["x"]), 'features = "*"', 'column "g"')
no("parquet, a null", parquet(a=[1.0, None]), 'features = "*"', 'row 2, column "a"')
no("parquet, NaN", parquet(a=[1.0, nan]), 'features = "*"', 'row 2, column "a"')
_(
    "parquet, nulls and NaN",
    parquet(a=[1.0, None, nan]),
    'features = "*"\nmissing = "nan"',
    [[1], [nan], [nan]],
)
_(
    "parquet, nulls dropped",
    parquet(a=[1.0, None, nan], b=[1, 2, 3]),
    'features = "*"\nmissing = "drop"',
    [[1, 1]],
)
_(
    "parquet, nulls of integers",
    parquet(a=[1, None]),
    'features = "*"\nmissing = { fill = 0 }',
    [[1], [0]],
)
no("parquet, ids", parquet(id=[123456789, 5]), 'features = "*"', 'column "id"')
no(
    "parquet, ids that pandas made floats",
    parquet(id=[123456789.0, None]),
    'features = "*"\nmissing = "nan"',
    'column "id"',
)
_(
    "parquet, ids as integers",
    parquet(id=[123456789, 5]),
    'features = "*"\ndtype = "int64"',
    [[123456789], [5]],
    dtypes={"features": "int64"},
)
_(
    "parquet, pandas' index",
    of(pd.DataFrame({"a": [1.0, 2.0]}, index=[7, 9])),
    features=[[1], [2]],
    noted="index",
)
_(
    "parquet, an index with a name",
    of(pd.DataFrame({"a": [1.0, 2.0]}, index=pd.Index([7, 9], name="pid"))),
    features=[[1], [2]],
    noted="index",
)
_(
    "parquet, lists of one length",
    parquet(x=[[1.0, 2.0], [3.0, 4.0]]),
    'features = "x"',
    [[1, 2], [3, 4]],
)
no(
    "parquet, lists of several lengths",
    parquet(x=[[1.0, 2.0], [3.0]]),
    'features = "x"',
    "pad",
)
_(
    "parquet, sequences",
    parquet(x=[[1, 2, 3], [4]]),
    'features = "x"\npad = 3',
    [[1, 2, 3], [4, 0, 0]],
    d__lengths=[3, 1],
    dtypes={"lengths": "int64"},
)
_(
    "parquet, sequences with another value",
    parquet(x=[[1, 2], []]),
    'features = "x"\npad = { to = 2, value = -1 }',
    [[1, 2], [-1, -1]],
    d__lengths=[2, 0],
    dtypes={"lengths": "int64"},
)
no(
    "parquet, a sequence that is too long",
    parquet(x=[[1, 2, 3]]),
    'features = "x"\npad = 2',
    "row 1",
)
_(
    "parquet, a condition",
    parquet(y=[2019, 2020], a=[1, 2]),
    'features = ["a"]\nwhere = "y >= 2020"',
    [[2]],
)
_(
    "parquet, an empty column without a name",
    parquet(**{"a": [1.0, 2.0], "": pa.nulls(2)}),
    features=[[1], [2]],
)
_(
    "parquet, rows of nulls at the end",
    parquet(a=[1.0, None], b=[2.0, None]),
    'features = "*"\nmissing = "nan"',
    [[1, 2], [nan, nan]],
)
_(
    "parquet, an empty text at the end",
    parquet(g=["x", ""]),
    'features = "*"\nencode = { g = ["x"] }\nmissing = "nan"',
    [[0], [nan]],
)
_(
    "parquet, lists of lists",
    parquet(x=[[[1.0, 2.0], [3.0, 4.0]]]),
    'features = "x"',
    [[[1, 2], [3, 4]]],
)
no(
    "parquet, a list beside numbers",
    parquet(x=[[1.0]], a=[1.0]),
    'features = "*"',
    "a tensor of their own",
)
no("parquet, cut off", b"PAR1" + bytes(100), 'features = "*"', "d.parquet")
no("parquet, that is text", "a,b\n1,2\n", 'features = "*"', "d.parquet")
no(
    "parquet, no rows",
    parquet(a=pa.array([], pa.float64())),
    'features = "*"',
    "no rows",
)
_(
    "parquet, wide",
    parquet(**{f"c{i}": [i] for i in range(3_000)}),
    features=[list(range(3_000))],
)
_(
    "partitions",
    {
        "p/year=2019/x.parquet": parquet(a=[1.0]),
        "p/year=2020/x.parquet": parquet(a=[2.0]),
    },
    'path = "p"\nformat = "parquet"\nfeatures = ["a", "year"]',
    [[1, 2019], [2, 2020]],
)

# --- databases --------------------------------------------------------------------


def sqlite(*statements: str) -> Callable[[Path], None]:
    """Return what writes a database."""

    def write(path: Path) -> None:
        base = sqlite3.connect(path)
        for one in statements:
            base.execute(one)
        base.commit()
        base.close()

    return write


def duckdb_of(*statements: str) -> Callable[[Path], None]:
    """Return what writes a database of DuckDB's."""

    def write(path: Path) -> None:
        with duckdb.connect(str(path)) as base:
            for one in statements:
                base.execute(one)

    return write


_, no = DATABASES.loads, DATABASES.refuses
TABLE = sqlite(
    "create table t (a real, g text)", "insert into t values (1.5, 'x'), (2.5, 'y')"
)
_(
    "sqlite",
    TABLE,
    'query = "select a from t order by a"\nfeatures = "*"',
    [[1.5], [2.5]],
)
_(
    "sqlite, categories",
    TABLE,
    'query = "select * from t order by a"\nfeatures = "*"\nencode = { g = ["x", "y"] }',
    [[1.5, 0], [2.5, 1]],
)
no(
    "sqlite, a table that is not there",
    TABLE,
    'query = "select * from u"\nfeatures = "*"',
    "query",
)
_("sqlite, the only table", TABLE, 'features = ["a"]', [[1.5], [2.5]])
no("sqlite that writes", TABLE, 'query = "delete from t"\nfeatures = "*"', "query")
no(
    "sqlite, a null",
    sqlite("create table t (a real)", "insert into t values (1), (null)"),
    'query = "select a from t"\nfeatures = "*"',
    "row 2",
)
no("sqlite, no database", "a,b\n", 'query = "select 1"\nfeatures = "*"', "d.sqlite")
_(
    "duckdb",
    duckdb_of("create table t as select i::double as a, i * 2 as b from range(3) r(i)"),
    'query = "select * from t order by a"\nfeatures = "*"',
    [[0, 0], [1, 2], [2, 4]],
    file="d.duckdb",
)

# --- arrays -----------------------------------------------------------------------


def npy(array: object) -> bytes:
    """Return an array as NumPy saves it."""
    stream = io.BytesIO()
    np.save(stream, np.asarray(array))
    return stream.getvalue()


def npz(compressed: bool = False, **arrays: object) -> bytes:
    """Return arrays as NumPy saves them."""
    stream = io.BytesIO()
    save = np.savez_compressed if compressed else np.savez
    save(stream, **arrays)  # type: ignore[arg-type] # arrays only
    return stream.getvalue()


_, no = NPY.loads, NPY.refuses
_("npy", npy(np.array([[1.5], [2.5]], np.float32)), "", [[1.5], [2.5]])
_("npy, doubles", npy([[0.1]]), "", [[0.1]], dtypes={"features": "float64"})
_("npy, converted", npy([[0.5]]), 'dtype = "float32"', [[0.5]])
_(
    "npy, to bfloat16",
    npy([[0.5, 3.0]]),
    'dtype = "bfloat16"',
    [[0.5, 3]],
    dtypes={"features": "bfloat16"},
)
_(
    "npy, columns first",
    npy(np.asfortranarray(np.arange(6.0, dtype=np.float32).reshape(2, 3))),
    "",
    [[0, 1, 2], [3, 4, 5]],
)
_("npy, the other order of bytes", npy(np.array([1.5, 2.5], ">f4")), "", [1.5, 2.5])
_(
    "npy, half floats",
    npy(np.array([0.5], np.float16)),
    "",
    [0.5],
    dtypes={"features": "float16"},
)
_("npy, NaN", npy(np.array([1, nan], np.float32)), 'missing = "nan"', [1, nan])
no("npy, NaN, not told", npy(np.array([1, nan], np.float32)), "", "row 2")
no("npy, infinity", npy(np.array([1, np.inf], np.float32)), 'missing = "nan"', "row 2")
no("npy, ids converted", npy(np.array([123456789])), 'dtype = "float32"', "row 1")
no(
    "npy, doubles that are ids",
    npy(np.array([123456789.0])),
    'dtype = "float32"',
    "row 1",
)
no("npy, objects", npy(np.array([{}], object)), "", "pickled")
no("npy, texts", npy(np.array(["a"])), "", "text")
no("npy, records", npy(np.zeros(1, [("a", "f4")])), "", "records")
no("npy, dates", npy(np.array(["2024-01-05"], "M8[D]")), "", "dates")
no("npy, empty", npy(np.zeros((0, 3), np.float32)), "", "no elements")
no("npy, cut off", npy(np.zeros((9, 3), np.float32))[:-7], "", "cut off")

_, no = NPZ.loads, NPZ.refuses
X, Y = np.array([[1.5], [2.5]], np.float32), np.array([0, 1])
_(
    "npz",
    npz(x=X, y=Y),
    'features = "x"\ntarget = "y"',
    [[1.5], [2.5]],
    target=[0, 1],
    dtypes={"target": "int64"},
)
_(
    "npz, compressed",
    npz(True, x=X, y=Y),
    'features = "x"\ntarget = "y"',
    [[1.5], [2.5]],
    target=[0, 1],
    dtypes={"target": "int64"},
)
_(
    "npz, by their own names",
    npz(x=X, y=Y),
    "",
    d__x=[[1.5], [2.5]],
    d__y=[0, 1],
    dtypes={"y": "int64"},
)
no(
    "npz, a name that is not there",
    npz(x=X, y=Y),
    'features = "xs"',
    "none of this name",
)
no("npz, other rows", npz(x=X, y=Y[:1]), 'features = "x"\ntarget = "y"', "rows")
no(
    "npz, with something else in it",
    lambda path: zipfile.ZipFile(path, "w").writestr("a.txt", "a"),
    "",
    "d.npz",
)

_, no = SAFETENSORS.loads, SAFETENSORS.refuses
T = torch.tensor([[1.5], [2.5]])
_(
    "safetensors",
    save({"x": T, "y": torch.tensor([0, 1])}),
    'features = "x"\ntarget = "y"',
    [[1.5], [2.5]],
    target=[0, 1],
    dtypes={"target": "int64"},
)
_(
    "safetensors, bfloat16",
    save({"x": T.bfloat16()}),
    'features = "x"',
    [[1.5], [2.5]],
    dtypes={"features": "bfloat16"},
)
_(
    "safetensors, from bfloat16",
    save({"x": T.bfloat16()}),
    'features = "x"\ndtype = "float32"',
    [[1.5], [2.5]],
)
no("safetensors, cut off", save({"x": T})[:-3], "", "d.safetensors")
no("safetensors, NaN", save({"x": torch.tensor([1.0, nan])}), "", "row 2")

# --- images -----------------------------------------------------------------------


def image(
    color: object, mode: str = "RGB", size: tuple[int, int] = (2, 2), kind: str = "PNG"
) -> bytes:
    """Return an image of one color."""
    stream = io.BytesIO()
    Image.new(mode, size, color).save(stream, kind)  # type: ignore[arg-type] # a color
    return stream.getvalue()


_, no = IMAGES.loads, IMAGES.refuses
RED, BLUE = (
    [[[255] * 2] * 2, [[0] * 2] * 2, [[0] * 2] * 2],
    [[[0] * 2] * 2, [[0] * 2] * 2, [[255] * 2] * 2],
)
_(
    "images",
    {"i/cat/1.png": image((255, 0, 0)), "i/dog/1.png": image((0, 0, 255))},
    'path = "i"\nformat = "images"\nsize = [2, 2]',
    [RED, BLUE],
    target=[0, 1],
    dtypes={"features": "uint8", "target": "int64"},
)
_(
    "images, gray",
    {"i/cat/1.png": image(7, "L"), "i/dog/1.png": image(9, "L")},
    'path = "i"\nformat = "images"\nsize = [2, 2]\ncolor = "gray"\nclasses = ["dog", "cat"]',
    [[[[9] * 2] * 2], [[[7] * 2] * 2]],
    target=[0, 1],
    dtypes={"features": "uint8", "target": "int64"},
)
no(
    "images, one that is none",
    {"i/cat/1.png": b"\x89PNG\r\n\x1a\n...", "i/dog/1.png": image(9, "L")},
    'path = "i"\nformat = "images"\nsize = [2, 2]',
    "cat/1.png",
)
no(
    "images, none",
    {"i/readme.txt": "x"},
    'path = "i"\nformat = "images"\nsize = [2, 2]',
    "i",
)
