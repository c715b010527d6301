"""Data sets of databases and of several files, from the declaration to the tensor."""

from __future__ import annotations

import contextlib
import sqlite3

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from obhut.errors import DatasetError, UnsafeFileError
from obhut.host.data.datasets import load_one
from obhut.host.data.declaration import DatasetDeclaration, Public
from obhut.transports.grpc.description import describe

from .test_tables import read


def write(root, **files):
    """Write text files by their ways."""
    for way, text in files.items():
        (root / way).parent.mkdir(parents=True, exist_ok=True)
        (root / way).write_text(text)


def test_a_folder_of_text_files_is_one_table(load_data, tmp_path):
    """With the columns of each found by name, and one of the folders' names."""
    write(
        tmp_path / "parts",
        **{
            "year=2023/a.csv": "age,sex\n41,m\n7,f\n",
            "year=2024/a.csv": "sex,age\nf,12\n",
            "year=2024/_SUCCESS": "",
        },
    )
    declared = {"encode": {"sex": ["m", "f"]}, "format": "csv"}
    loaded = load_data("parts", None, features="*", **declared)
    assert loaded.public.names is None
    assert read(loaded.tensors["features"]).tolist() == [
        [41, 0, 2023],
        [7, 1, 2023],
        [12, 1, 2024],
    ]
    report = loaded.report
    assert [one.name for one in report.columns] == ["age", "sex", "year"]
    assert report.notes[0] == "2 files, of which the first is a.csv"
    loaded = load_data(
        "parts/year=*",
        None,
        features="age",
        where="year >= 2024",
        **declared | {"encode": {}},
    )
    assert read(loaded.tensors["features"]).tolist() == [12]


def test_an_error_names_the_part(load_data, tmp_path):
    """With the row and line that it is there."""
    second = "a,b\n3,0\n\nx,0\n"
    write(
        tmp_path, **{"0.csv": "a,b\n1,0\n2,0\n", "1.csv": second, "2.csv": "a,b\n5,0\n"}
    )
    with pytest.raises(DatasetError) as caught:
        load_data("[0-9].csv", None, features="a")
    error = caught.value
    assert error.file == str(tmp_path / "1.csv")
    assert (error.row, error.line, error.column) == (2, 4, "a")
    write(tmp_path, **{"1.csv": "b,a\n0,3\n", "2.csv": "b\n5\n"})
    with pytest.raises(DatasetError) as caught:
        load_data("[0-9].csv", None, features="a")
    error = caught.value
    assert (error.file, error.row, error.column) == (str(tmp_path / "2.csv"), 0, "a")


def test_parts_that_pandas_wrote(load_data, tmp_path):
    """Their index is put aside in all of them."""
    write(tmp_path, **{"0.csv": ",a\n0,1\n1,2\n", "1.csv": ",a\n2,3\n3,4\n"})
    loaded = load_data("[0-9].csv", None, features="*")
    assert read(loaded.tensors["features"]).tolist() == [[1], [2], [3], [4]]


def test_a_whole_number_that_one_part_loses(load_data, tmp_path):
    """It is refused by the part that has it."""
    for number, value in enumerate((1, 2**24 + 1)):
        table = pa.table({"a": [value, value]})
        pq.write_table(table, tmp_path / f"{number}.parquet")
    with pytest.raises(DatasetError) as caught:
        load_data("*.parquet", None, features="a")
    assert (caught.value.file, caught.value.row) == (str(tmp_path / "1.parquet"), 1)


def test_a_part_that_others_can_change_is_refused(load_data, tmp_path):
    """As a single file is."""
    write(tmp_path, **{"0.csv": "a\n1\n", "1.csv": "a\n2\n"})
    (tmp_path / "1.csv").chmod(0o666)
    with pytest.raises(UnsafeFileError, match=r"1\.csv"):
        load_data("*.csv", None, features="a")


@pytest.mark.parametrize("kind", ["db", "duckdb"])
def test_a_query_is_a_table(load_data, tmp_path, kind):
    """With everything that a table has."""
    script = (
        "CREATE TABLE lab (id INTEGER, value DOUBLE, sex VARCHAR, day VARCHAR);"
        "INSERT INTO lab VALUES (1, 0.5, 'm', '1970-01-03'), (2, NULL, 'f', "
        "'1970-01-02'), (3, -1, 'm', '1970-01-11');"
    )
    path = tmp_path / f"d.{kind}"
    if kind == "db":
        with contextlib.closing(sqlite3.connect(path)) as made:
            made.executescript(script)
    else:
        with duckdb.connect(str(path)) as made:
            made.execute(script)
    loaded = load_data(
        path.name,
        None,
        query="SELECT * FROM lab ORDER BY id DESC",
        features=["value", "day"],
        target="sex",
        classes=["f", "m"],
        encode={"day": "days"},
        missing="drop",
    )
    assert read(loaded.tensors["features"]).tolist() == [[-1, 10], [0.5, 2]]
    assert read(loaded.tensors["target"]).tolist() == [1, 1]
    assert loaded.report.notes == ("rows with a missing value, left out: 1",)
    loaded = load_data(path.name, None, features="id", dtype="int64")
    assert read(loaded.tensors["features"]).tolist() == [1, 2, 3]
    with pytest.raises(DatasetError) as caught:
        load_data(path.name, None, query="lab", features=["id", "value"])
    assert (caught.value.row, caught.value.column) == (2, "value")


def test_an_odd_token_of_a_database_is_missing_by_declaration(load_data, tmp_path):
    """A column of numbers in which somebody wrote text is read as in a text file."""
    with contextlib.closing(sqlite3.connect(tmp_path / "d.db")) as made:
        made.executescript(
            "CREATE TABLE t (a); INSERT INTO t VALUES (1),('?'),(''),(4)"
        )
    with pytest.raises(DatasetError, match=r'row 2.* got "\?"; write missing_values'):
        load_data("d.db", None, features="a", missing="nan")
    loaded = load_data("d.db", None, features="a", missing="drop", missing_values=["?"])
    assert read(loaded.tensors["features"]).tolist() == [1, 4]


def test_several_tensors_of_a_table(load_data, tmp_path):
    """Each with its own columns and type; hidden rows go with all of them."""
    table = pa.table(
        {"bp": [1.0, 2.0], "hr": [3, 4], "ids": [[7], [8, 9]], "y": [0, 1]}
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    data = sink.getvalue().to_pybytes()
    declared = {
        "features": {"vitals": ["bp", "hr"], "history": "ids"},
        "dtype": {"vitals": "float64", "history": "int32"},
        "target": "y",
        "target_dtype": "int64",
        "pad": 3,
    }
    loaded = load_data("d.parquet", data, **declared)
    assert {
        name: (one.dtype, read(one).tolist()) for name, one in loaded.tensors.items()
    } == {
        "vitals": ("float64", [[1, 3], [2, 4]]),
        "history": ("int32", [[7, 0, 0], [8, 9, 0]]),
        "history_lengths": ("int64", [1, 2]),
        "target": ("int64", [0, 1]),
    }
    said = describe(load_data("d.parquet", data, **declared, public={"names": True}))
    assert said.parts == ("history", "history_lengths", "target", "vitals")
    assert said.columns == {
        "vitals": ("bp", "hr"),
        "history": (),
        "history_lengths": (),
        "target": ("y",),
    }
    assert "vitals" not in str(describe(loaded))
    declaration = DatasetDeclaration(
        name="d", path=tmp_path / "d.parquet", public=Public(names=True), **declared
    )
    said = describe(load_one(declaration, guarded=True))
    assert (said.hidden, said.rows) == (True, None)
    assert said.shapes == {
        "vitals": (2,),
        "history": (3,),
        "history_lengths": (),
        "target": (),
    }


def test_lengths_tell_nothing_of_a_file(load_data):
    """All data sets of sequences have them."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"codes": [[1], [2, 3]]}), sink)
    loaded = load_data(
        "d.parquet", sink.getvalue().to_pybytes(), features="codes", pad=2
    )
    said = describe(loaded)
    assert said.parts == ("features", "lengths")
    assert "codes" not in str(said)


def test_columns_of_many_parts_are_read_once_each(load_data, tmp_path):
    """As many parts as there may be open files are no limit."""
    for number in range(300):
        np.savetxt(tmp_path / f"p-{number}.csv", [[number]], header="a", comments="")
    loaded = load_data("p-*.csv", None, features="a")
    assert read(loaded.tensors["features"]).tolist() == [*range(300)]
