"""Rows of Parquet files, with the library that writes them as the judge."""

from __future__ import annotations

import datetime
import decimal
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from obhut.errors import DatasetError
from obhut.host.data.declaration import DatasetDeclaration
from obhut.host.data.parquet_source import ParquetSource

SETTINGS = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def opened(tmp_path):
    """Return what writes a table and opens it."""

    def opened(table, **how):
        path = tmp_path / "d.parquet"
        pq.write_table(table, path, **how)
        return ParquetSource(DatasetDeclaration(name="d", path=path))

    return opened


def rows(source, places):
    """Return all batches as one table."""
    return pa.Table.from_batches(source.batches(places))


def test_cells_come_as_they_are_stored(opened):
    """Of every type that an owner may have, with nulls, in the order asked for."""
    table = pa.table(
        {
            "half": pa.array(np.array([1, 2], "f2")),
            "flag": [True, None],
            "day": [datetime.date(2024, 1, 5), None],
            "at": pa.array([1, None], pa.timestamp("us", "UTC")),
            "money": [decimal.Decimal("1.50"), None],
            "sex": pa.array(["m", None]).dictionary_encode(),
            "codes": [[1, 2], []],
        }
    )
    with opened(table) as source:
        assert [*source.names] == table.column_names
        assert [*source.types] == table.schema.types
        found = rows(source, [6, 0, 5, 1, 2, 3, 4])
        assert found.to_pydict() == table.select(found.column_names).to_pydict()


def test_only_columns_that_are_asked_for_are_read(opened, tmp_path):
    """A page of another one may be damaged."""
    table = pa.table({"a": np.arange(1000.0), "b": np.arange(1000.0)})
    with opened(table, compression="none", use_dictionary=False):
        pass
    path = tmp_path / "d.parquet"
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(0).column(1).data_page_offset
    data[start : start + 20] = b"\xff" * 20
    path.write_bytes(data)
    with ParquetSource(DatasetDeclaration(name="d", path=path)) as source:
        assert rows(source, [0]).num_rows == 1000
        with pytest.raises(DatasetError, match="is not a Parquet file that can be"):
            rows(source, [1])


def test_rows_come_in_batches_and_again(opened):
    """A group of rows is not held as a whole; reading begins anew each time."""
    table = pa.table({"a": np.arange(200_000), "b": np.arange(200_000.0)})
    with opened(table, row_group_size=150_000) as source:
        for _ in range(2):
            batches = list(source.batches([0]))
            assert len(batches) > 2
            assert pa.Table.from_batches(batches)["a"] == table["a"]


def test_a_group_of_rows_is_read_by_pages(opened):
    """However large it is: neither what is stored nor what it becomes is held whole."""
    values = np.arange(2_000_000, dtype=np.float64)
    pool = pa.default_memory_pool()
    how = {"row_group_size": len(values), "use_dictionary": False}
    with opened(pa.table({"a": values}), compression="none", **how) as source:
        before, most = pool.bytes_allocated(), 0
        for _ in source.batches([0]):
            most = max(most, pool.bytes_allocated() - before)
    assert most < values.nbytes // 2


def test_an_iterator_that_is_left_waits_for_no_thread(opened, monkeypatch):
    """It may be cleared away in one that holds what the other needs to end."""

    def waits(*args, **kwargs):
        raise AssertionError("a thread was waited for")

    with opened(pa.table({"a": np.arange(200_000)})) as source:
        left = source.batches([0])
        assert next(left).num_rows
        with monkeypatch.context() as patched:
            patched.setattr(ThreadPoolExecutor, "shutdown", waits)
            left.close()


@pytest.mark.parametrize("named", [False, True])
def test_an_index_of_pandas_is_put_aside(opened, named):
    """Whether it has a name or not; one that is only counted up is no column."""
    frame = pd.DataFrame({"x": [1, 2]}, index=pd.Index([5, 7]))
    if named:
        frame.index.name = "patient"
    with opened(pa.Table.from_pandas(frame)) as source:
        name = "patient" if named else "__index_level_0__"
        assert [*source.names] == ["x", name]
        assert source.aside == {1: "pandas' index"}
    with opened(pa.Table.from_pandas(frame.reset_index(drop=True))) as source:
        assert ([*source.names], source.aside) == (["x"], {})


@pytest.mark.parametrize("text", ["[]", "{", '{"index_columns": 3}', "3", "{}"])
def test_what_others_write_as_if_they_were_pandas(opened, text):
    """It is passed over, and the name alone says what an index is."""
    table = pa.table({"x": [1], "__index_level_0__": [1]})
    with opened(table.replace_schema_metadata({"pandas": text})) as source:
        assert source.aside == {1: "pandas' index"}


def test_an_index_by_name_only_where_pandas_says_so(opened):
    """The metadata of pandas names it."""
    said = json.dumps({"index_columns": ["k", {"kind": "range"}]})
    table = pa.table({"k": [1], "x": [1]}).replace_schema_metadata({"pandas": said})
    with opened(table) as source:
        assert source.aside == {0: "pandas' index"}


def test_columns_are_told_apart_by_their_places(opened):
    """Two of one name, one without a name, and one called like a record's field."""
    table = pa.Table.from_arrays(
        [pa.array([{"b": 1}]), pa.array([2]), pa.array([3]), pa.array([4]), [5]],
        ["a", "a.b", "x", "x", ""],
    )
    with opened(table) as source:
        assert [*source.names] == ["a", "a.b", "x", "x", ""]
        for place in range(1, 5):
            (batch,) = source.batches([place])
            assert batch.column(0).to_pylist() == [place + 1]
        (batch,) = source.batches([4, 3, 1])
        assert [column.to_pylist() for column in batch.columns] == [[5], [4], [2]]


def test_no_rows_are_no_batches(opened):
    """Also where a group of rows has none."""
    table = pa.table({"a": pa.array([], pa.int64())})
    with opened(table) as source:
        assert list(source.batches([0])) == []


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" * 100, b"a,b\n1,2\n"])
def test_what_is_no_parquet_file(tmp_path, data):
    """The error has none of the library's words."""
    path = tmp_path / "d.parquet"
    path.write_bytes(data)
    with pytest.raises(DatasetError) as caught:
        ParquetSource(DatasetDeclaration(name="d", path=path))
    assert str(caught.value) == (
        f"{path}: is not a Parquet file that can be read; "
        "the file is cut off or damaged: get it anew"
    )


CELLS = {
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float32(): st.floats(width=32, allow_nan=False),
    pa.string(): st.text(max_size=5),
    pa.bool_(): st.booleans(),
}


@SETTINGS
@given(st.data())
def test_any_table_comes_as_pyarrow_reads_it(opened, data):
    """Whatever the sizes of pages and groups of rows."""
    length = data.draw(st.integers(1, 50))
    columns = [
        pa.array(
            data.draw(
                st.lists(st.none() | CELLS[kind], min_size=length, max_size=length)
            ),
            kind,
        )
        for kind in data.draw(st.lists(st.sampled_from([*CELLS]), min_size=1))
    ]
    names = data.draw(
        st.lists(
            st.sampled_from(["a", "b", "a.b", ""]),
            min_size=len(columns),
            max_size=len(columns),
        )
    )
    table = pa.Table.from_arrays(columns, names)
    places = data.draw(
        st.lists(st.integers(0, len(columns) - 1), min_size=1, unique=True)
    )
    size = data.draw(st.integers(1, 60))
    with opened(table, row_group_size=size) as source:
        assert rows(source, places).columns == table.select(places).columns
