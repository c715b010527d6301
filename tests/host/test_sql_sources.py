"""Rows of databases, and queries that try to do more than read them."""

from __future__ import annotations

import contextlib
import importlib
import sqlite3

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from obhut.errors import DatasetError
from obhut.host.data.declaration import DatasetDeclaration
from obhut.host.data.duckdb_source import DuckdbSource
from obhut.host.data.sqlite_source import SqliteSource

SETTINGS = settings(
    deadline=None,
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

SOURCES = {"sqlite": SqliteSource, "duckdb": DuckdbSource}

PEOPLE = (
    "CREATE TABLE people (age INTEGER, weight DOUBLE, name VARCHAR);"
    "INSERT INTO people VALUES (41, 70.5, 'ann'), (NULL, 80, NULL), (7, 20, 'bob');"
)


@pytest.fixture
def database(tmp_path):
    """Return what makes a database and returns its path."""

    def database(kind, script=PEOPLE, name="d"):
        path = tmp_path / f"{name}.{kind}"
        path.unlink(missing_ok=True)
        if kind == "sqlite":
            with contextlib.closing(sqlite3.connect(path)) as made:
                made.executescript(script)
        else:
            with duckdb.connect(str(path)) as made:
                made.execute(script)
        return path

    return database


def declared(path, query=None):
    """Return a data set of a database."""
    return DatasetDeclaration(name="d", path=path, query=query)


def read(path, query=None):
    """Return the rows that a query yields."""
    with SOURCES[path.suffix[1:]](declared(path, query)) as source:
        table = pa.Table.from_batches(source.batches(range(len(source.names))))
        assert table.schema.types == [*source.types]
        return table


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("query", [None, "people", "select * from people;", " people "])
def test_a_table_is_read_as_it_is(database, kind, query):
    """By its name, by a query, or as the only one there is; with what is missing."""
    table = read(database(kind), query)
    assert table.to_pydict() == {
        "age": [41, None, 7],
        "weight": [70.5, 80.0, 20.0],
        "name": ["ann", None, "bob"],
    }
    assert str(table.schema.field("weight").type) == "double"


@pytest.mark.parametrize("kind", SOURCES)
def test_columns_by_place_in_the_order_of_the_query(database, kind):
    """Two may have one name; a comment at the end ends nothing."""
    query = "select age, age, name from people where age > 0 order by age -- so"
    with SOURCES[kind](declared(database(kind), query)) as source:
        assert [*source.names] == ["age", "age", "name"]
        assert source.notes == ()
        for _ in range(2):
            (batch,) = source.batches([2, 0])
            assert [c.to_pylist() for c in batch.columns] == [["bob", "ann"], [7, 41]]


@pytest.mark.parametrize("kind", SOURCES)
def test_the_owner_hears_that_an_order_is_open(database, kind):
    """Only of a query, and only where it does not say one."""
    path = database(kind)
    for query, notes in (
        ("select age from people", 1),
        ("select age from people ORDER\n BY age", 0),
        ("people", 0),
        (None, 0),
    ):
        with SOURCES[kind](declared(path, query)) as source:
            assert len(source.notes) == notes


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("peeple", 'has no table "peeple"; it has "people"; did you mean "people"?'),
        ("zzz", "correct query"),
        ("select height from people", "height"),
        ("selec 1", "syntax error"),
        ("select 1; select 2", "one"),
    ],
)
def test_what_is_wrong_with_a_query_is_said(database, kind, query, words):
    """In the database's words, which quote the query and nothing else."""
    with pytest.raises(DatasetError) as caught:
        read(database(kind), query)
    assert words in str(caught.value)
    assert "ann" not in str(caught.value)


@pytest.mark.parametrize("kind", SOURCES)
def test_several_tables_need_a_name(database, kind):
    """They are listed, and none is chosen; of many only some are."""
    path = database(kind, "CREATE TABLE b (x INTEGER); CREATE TABLE a (x INTEGER);")
    with pytest.raises(DatasetError, match=r'has "a" and "b"; name one, such as query'):
        read(path)
    script = "".join(f"CREATE TABLE t{i} (x INTEGER);" for i in range(10, 30))
    with pytest.raises(DatasetError, match=r'20 tables, such as "t10", .* "t17"; name'):
        read(database(kind, script))
    with pytest.raises(DatasetError, match="has no tables"):
        read(database(kind, "SELECT 1;"))
    odd = 'we"ird; drop'
    script = """CREATE TABLE "we""ird; drop" (x INTEGER); CREATE TABLE b (x INTEGER);
        INSERT INTO "we""ird; drop" VALUES (7);"""
    assert read(database(kind, script), odd).to_pydict() == {"x": [7]}


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize(
    "query",
    [
        "drop table people",
        "delete from people",
        "insert into people values (1, 2, 'x')",
        "update people set age = 1",
        "create table more (x integer)",
        "attach 'other.db' as other",
        "select 1; drop table people",
        "select 1) union select (2",
        "pragma journal_mode = wal",
        "vacuum into 'copy.db'",
        "select load_extension('x')",
        "select * from read_csv('/etc/passwd')",
        "select * from read_blob('/etc/passwd')",
        "select * from '/etc/passwd'",
        "select readfile('/etc/passwd')",
        "copy people to 'people.csv'",
        "install httpfs",
        "load httpfs",
        "set threads = 8",
        "select random()",
        "select * from people order by random()",
    ],
)
def test_a_query_only_reads_the_database(database, kind, query, tmp_path, monkeypatch):
    """It changes nothing, opens no other file, and yields the same rows each time."""
    monkeypatch.chdir(tmp_path)
    path = database(kind)
    before = path.read_bytes()
    with pytest.raises(DatasetError):
        read(path, query)
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("kind", SOURCES)
def test_a_failure_among_the_rows_quotes_none(database, kind):
    """The library's words would."""
    query = {
        "sqlite": "select json_extract(name, '$') from people",
        "duckdb": "select name::integer from people",
    }[kind]
    with pytest.raises(DatasetError) as caught:
        read(database(kind), query)
    assert "ann" not in str(caught.value)
    assert "the query" in caught.value.problem


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("data", [b"", b"hello" * 1000])
def test_what_is_no_database(tmp_path, kind, data):
    """An empty file has no tables; none of another format is read."""
    path = tmp_path / f"d.{kind}"
    path.write_bytes(data)
    with pytest.raises(DatasetError) as caught:
        read(path)
    assert "hello" not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / f"none.{kind}")


def test_without_duckdb_it_says_what_to_install(database, monkeypatch):
    """The extra is named."""
    path = database("duckdb")

    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(DatasetError, match=r"pip install 'obhut\[duckdb\]'"):
        read(path)


def test_what_duckdb_has_comes_typed(database):
    """Enumerations, dates, lists and arrays are Arrow's."""
    table = read(
        database("duckdb", "CREATE TABLE t (x INTEGER)"),
        "select 'a'::enum('a', 'b') e, date '2024-01-05' d, [1, 2] l, "
        "[1.0, 2.0]::float[2] f, 1.5::decimal(9, 2) m",
    )
    assert [str(kind).split("[")[0].split("<")[0] for kind in table.schema.types] == [
        "dictionary",
        "date32",
        "list",
        "fixed_size_list",
        "decimal128(9, 2)",
    ]


def test_a_database_that_sqlite_logs_to_is_read_with_its_log(database, tmp_path):
    """What another program has written is there, and nothing is left beside it."""
    path = database("sqlite", f"PRAGMA journal_mode = wal; {PEOPLE}")
    assert read(path).num_rows == 3
    assert [*tmp_path.iterdir()] == [path]
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("INSERT INTO people VALUES (1, 2, 'eve')")
        other.commit()
        assert read(path).num_rows == 4


def test_a_query_sees_one_moment(database):
    """Rows that come meanwhile are in none of its passes."""
    path = database("sqlite", f"PRAGMA journal_mode = wal; {PEOPLE}")
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("UPDATE people SET age = 1")
        other.commit()
        with SqliteSource(declared(path)) as source:
            other.execute("UPDATE people SET age = 'x'")
            other.commit()
            (batch,) = source.batches([0])
            assert batch.column(0).to_pylist() == [1, 1, 1]


def test_numbers_and_text_in_one_column_are_text(database):
    """As in a text file: what they become is decided where text is."""
    script = (
        "CREATE TABLE t (a, b, c, d, e); INSERT INTO t VALUES "
        "(1, 1, 1, x'00', NULL), ('', 2.5, 9007199254740993, x'01', NULL)"
    )
    table = read(database("sqlite", script))
    assert table.to_pydict() == {
        "a": ["1", ""],
        "b": [1.0, 2.5],
        "c": [1, 2**53 + 1],
        "d": [b"\0", b"\1"],
        "e": [None, None],
    }
    assert [str(kind) for kind in table.schema.types] == [
        "string",
        "double",
        "int64",
        "binary",
        "null",
    ]


def test_a_whole_number_among_others_keeps_its_digits(database):
    """Or is refused by its row."""
    script = "CREATE TABLE t (x); INSERT INTO t VALUES (1), (0.5), (9007199254740993)"
    with pytest.raises(DatasetError, match=r'row 3, column "x": .*9007199254740993'):
        read(database("sqlite", script))


VALUES = st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)


@SETTINGS
@given(
    st.lists(VALUES, min_size=1, max_size=20)
    | st.lists(VALUES | st.text("ab1.", max_size=3), min_size=1, max_size=20)
)
def test_no_value_of_sqlite_changes(tmp_path, values):
    """A whole number that its column can not hold exactly is refused."""
    path = tmp_path / "d.sqlite"
    path.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as made:
        made.execute("CREATE TABLE t (x)")
        made.executemany("INSERT INTO t VALUES (?)", [(value,) for value in values])
        made.commit()
    text = any(isinstance(value, str) for value in values)
    broken = any(isinstance(value, float) for value in values) and not text
    rough = [
        row
        for row, value in enumerate(values, 1)
        if broken and isinstance(value, int) and int(float(value)) != value
    ]
    if rough:
        with pytest.raises(DatasetError) as caught:
            read(path)
        assert caught.value.row == rough[0]
        return
    assert read(path)["x"].to_pylist() == [
        str(value) if text and value is not None else value for value in values
    ]
