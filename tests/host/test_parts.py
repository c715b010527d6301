"""Tables in several files, and folders that others could add a file to."""

from __future__ import annotations

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from obhut.errors import DatasetError, UnsafeFileError
from obhut.host.data import parts
from obhut.host.data.declaration import DatasetDeclaration
from obhut.host.data.parquet_source import ParquetSource

from .test_parquet_source import SETTINGS


@pytest.fixture
def root(tmp_path):
    """Return a folder for parts."""
    folder = tmp_path / "parts"
    folder.mkdir()
    return folder


def write(path, **columns):
    """Write a Parquet file, and the folders on the way to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def found(path, **declared):
    """Return a data set of this path, and the parts found of it."""
    declaration = DatasetDeclaration(
        name="d", path=path, **{"format": "parquet", "features": "*", **declared}
    )
    return declaration, parts.find(declaration)


def opened(path, **declared):
    """Return the source of a path's parts."""
    return parts.PartsSource(*found(path, **declared), ParquetSource)


def read(source):
    """Return all rows of a source."""
    places = range(len(source.names))
    return pa.Table.from_batches(source.batches(places)).to_pydict()


def names(path, **declared):
    """Return the ways to the parts, from the folder."""
    return [
        str(part.declaration.path.relative_to(path))
        for part in found(path, **declared)[1]
    ]


def test_files_come_in_the_order_of_their_numbers(root):
    """Of those in folders likewise; one that was written first does not come first."""
    for name in ("p-10", "p-9", "p-2", "p-02", "a", "B", "sub-10/a", "sub-9/b"):
        write(root / f"{name}.parquet", x=[name])
    order = ["B", "a", "p-02", "p-2", "p-9", "p-10", "sub-9/b", "sub-10/a"]
    assert names(root) == [f"{name}.parquet" for name in order]
    with opened(root) as source:
        assert read(source) == {"x": order}
        assert read(source) == {"x": order}
        assert source.notes[0] == "8 files, of which the first is B.parquet"


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("*.parquet", ["a.parquet", "b.parquet", "c.parquet"]),
        ("[b-z].parquet", ["b.parquet", "c.parquet"]),
        ("?.parquet", ["a.parquet", "b.parquet", "c.parquet"]),
        ("year=*/*.parquet", ["year=2023/a.parquet", "year=2024/a.parquet"]),
        ("year=*", ["year=2023/a.parquet", "year=2024/a.parquet"]),
        ("year=202[4]", ["year=2024/a.parquet"]),
        ("**/c.parquet", ["c.parquet", "d/c.parquet", "d/e/c.parquet"]),
    ],
)
def test_a_pattern_matches_files_or_folders(root, pattern, matched):
    """What does not match it may be anything."""
    for name in ("a", "b", "year=2023/a", "year=2024/a", "c", "d/c", "d/e/c"):
        write(root / f"{name}.parquet", x=[1])
    (root / "README.txt").write_text("read me")
    found_there = found(root / pattern)[1]
    assert [str(p.declaration.path.relative_to(root)) for p in found_there] == matched


def test_a_file_with_a_star_in_its_name_is_one_file(root):
    """A path that is there is no pattern."""
    write(root / "a*.parquet", x=[1])
    write(root / "ab.parquet", x=[1])
    assert found(root / "a*.parquet")[1] == ()


def test_hidden_files_and_checksums_are_no_parts(root):
    """As Spark and Hadoop write them."""
    write(root / "part-0.parquet", x=[1])
    write(root / "_temporary" / "part-1.parquet", x=[1])
    write(root / ".part-2.parquet", x=[1])
    write(root / ".git" / "part-3.parquet", x=[1])
    for name in ("_SUCCESS", ".part-0.parquet.crc", "part-0.parquet.crc", "_metadata"):
        (root / name).write_bytes(b"")
    assert names(root) == ["part-0.parquet"]
    assert len(found(root / "*")[1]) == 1
    assert len(found(root / "**" / "*.parquet")[1]) == 1


def test_a_file_without_an_ending_is_what_was_declared(root):
    """Hive writes such."""
    write(root / "000000_0", x=[1])
    assert names(root) == ["000000_0"]


@pytest.mark.parametrize("name", ["b.csv", "notes.txt", "b.npy", "b.parquet.gz.txt"])
def test_any_other_file_in_a_folder_is_refused(root, name):
    """It may be data; a pattern passes it over."""
    write(root / "a.parquet", x=[1])
    (root / name).write_text("x\n1\n")
    with pytest.raises(DatasetError) as caught:
        found(root)
    assert caught.value.file == str(root / name)
    assert 'path = "parts/*.parquet"' in caught.value.advice
    assert len(found(root / "*.parquet")[1]) == 1


def test_what_a_pattern_matches_is_read_whatever_it_is_called(root):
    """Unless its name says that it is something else."""
    write(root / "a.data", x=[1])
    assert len(found(root / "*.data")[1]) == 1
    (root / "b.data.csv").write_text("x\n1\n")
    with pytest.raises(DatasetError, match="is no parquet file by its name"):
        found(root / "*.data*")


def test_nothing_there(root):
    """No folder, no match, and no file in it."""
    with pytest.raises(DatasetError, match="there is no file that matches it"):
        found(root / "*.parquet")
    with pytest.raises(DatasetError, match="has no files"):
        found(root)
    for none in (root / "none" / "*.parquet", root / "none.parquet"):
        with pytest.raises(FileNotFoundError):
            found(none)
    (root / "link.parquet").symlink_to(root / "none.parquet")
    with pytest.raises(DatasetError, match="is not a file"):
        found(root)


def test_folders_are_columns(root):
    """In the order of the way, as text, with none for what Hive calls so."""
    write(root / "year=2023" / "at=a%2Fb" / "0.parquet", x=[1, 2])
    write(root / "year=2024" / "at=__HIVE_DEFAULT_PARTITION__" / "0.parquet", x=[3])
    with opened(root) as source:
        assert [*source.names] == ["x", "year", "at"]
        assert [str(kind) for kind in source.types] == ["int64", "string", "string"]
        assert read(source) == {
            "x": [1, 2, 3],
            "year": ["2023", "2023", "2024"],
            "at": ["a/b", "a/b", None],
        }
        (first, second) = source.batches([1])
        assert first.to_pydict() == {"year": ["2023", "2023"]}
        assert second.num_rows == 1
        (first, _) = source.batches([2, 0, 1])
        assert first.schema.names == ["at", "x", "year"]


def test_what_the_path_itself_says_is_no_column(root):
    """Its owner chose that one year."""
    write(root / "year=2024" / "0.parquet", x=[1])
    with opened(root / "year=2024") as source:
        assert [*source.names] == ["x"]
    with opened(root / "year=2024" / "*.parquet") as source:
        assert [*source.names] == ["x"]


def test_folders_that_contradict_the_files(root):
    """Of other names in another part, or of the name of a column."""
    write(root / "year=2024" / "0.parquet", x=[1])
    write(root / "month=1" / "0.parquet", x=[1])
    with pytest.raises(DatasetError) as caught:
        found(root)
    assert caught.value.file == str(root / "year=2024" / "0.parquet")
    assert 'folders for "year", and the first part' in caught.value.problem
    write(root / "x=1" / "0.parquet", x=[1])
    with pytest.raises(DatasetError, match='column "x": is a column of the file'):
        opened(root / "x=*")


def test_columns_are_found_by_name_in_each(root):
    """Two in another order are put into that of the first."""
    write(root / "0.parquet", a=[1], b=[10.0])
    write(root / "1.parquet", b=[20.0], a=[2])
    with opened(root) as source:
        assert [*source.names] == ["a", "b"]
        assert read(source) == {"a": [1, 2], "b": [10.0, 20.0]}
        assert [b.to_pydict() for b in source.batches([1])] == [
            {"b": [10.0]},
            {"b": [20.0]},
        ]


def test_a_column_that_a_part_has_not(root):
    """It is refused where it is used, naming file and column."""
    write(root / "0.parquet", a=[1], b=[1])
    write(root / "1.parquet", a=[2])
    with opened(root, features="a") as source:
        assert [b.to_pydict() for b in source.batches([0])] == [{"a": [1]}, {"a": [2]}]
        with pytest.raises(DatasetError) as caught:
            next(source.batches([0, 1]))
    assert (caught.value.file, caught.value.column) == (str(root / "1.parquet"), "b")
    assert "there is no column of this name" in caught.value.problem


@pytest.mark.parametrize("features", ["*", {"m": "*"}])
def test_a_column_that_only_a_part_has(root, features):
    """All columns are those of all parts; who names columns does not miss it."""
    write(root / "0.parquet", a=[1])
    write(root / "1.parquet", c=[3], a=[2], d=[4])
    with pytest.raises(DatasetError) as caught:
        opened(root, features=features)
    assert (caught.value.file, caught.value.column) == (str(root / "1.parquet"), "c")
    assert "has 2 columns, this among them, that the first" in caught.value.problem
    for declared in ({"features": ["a"]}, {"exclude": ("c", "d")}):
        with opened(root, **declared) as source:
            assert read(source) == {"a": [1, 2]}


def test_two_columns_of_one_name(root):
    """They are the same ones where all parts have them alike, and else not used."""
    one, other = pa.array([1]), pa.array([2])
    pq.write_table(pa.Table.from_arrays([one, other], "aa"), root / "0.parquet")
    pq.write_table(pa.Table.from_arrays([one, other], "aa"), root / "1.parquet")
    with opened(root) as source:
        (first, _) = source.batches([1])
        assert first.column(0).to_pylist() == [2]
    table = pa.Table.from_arrays([other, one, one], "aab")
    pq.write_table(table, root / "2.parquet")
    with (
        opened(root, exclude=("b",)) as source,
        pytest.raises(DatasetError, match="expected one column of this name, got sev"),
    ):
        next(source.batches([1]))


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        (pa.array([1], pa.int8()), pa.array([300]), pa.int64()),
        (pa.array([1]), pa.array([1.5]), pa.float64()),
        (pa.nulls(1), pa.array([1.5]), pa.float64()),
        (pa.array(["a"]), pa.nulls(1), pa.string()),
        (pa.array(["a"]), pa.array(["b"]).dictionary_encode(), pa.string()),
        (pa.array(["a"]), pa.array(["b"], pa.large_string()), pa.large_string()),
        (
            pa.array([1], pa.timestamp("s")),
            pa.array([1], pa.timestamp("ns")),
            pa.timestamp("ns"),
        ),
    ],
)
def test_types_of_parts_are_widened(root, one, other, together):
    """So that cells of both are what they were."""
    write(root / "0.parquet", x=one)
    write(root / "1.parquet", x=other)
    with opened(root) as source:
        assert [*source.types] == [together]
        table = pa.Table.from_batches(source.batches([0]))
    assert table["x"].to_pylist() == [
        *one.cast(together).to_pylist(),
        *other.cast(together).to_pylist(),
    ]


def test_types_that_have_no_cells_in_common(root):
    """They are refused where they are used, naming file and column."""
    write(root / "0.parquet", x=["a"], y=[1])
    write(root / "1.parquet", x=[1], y=[1])
    with opened(root) as source:
        assert len(list(source.batches([1]))) == 2
        with pytest.raises(DatasetError) as caught:
            next(source.batches([0]))
    assert (caught.value.file, caught.value.column) == (str(root / "1.parquet"), "x")
    assert "is of type int64, and string in the parts" in caught.value.problem


def test_a_whole_number_that_another_parts_type_can_not_hold(root):
    """It is refused, and not rounded, and its digits are not shown."""
    write(root / "0.parquet", x=[2**53 + 1])
    write(root / "1.parquet", x=[0.5])
    with opened(root) as source, pytest.raises(DatasetError) as caught:
        read(source)
    assert (caught.value.file, caught.value.column) == (str(root / "0.parquet"), "x")
    assert str(2**53 + 1) not in str(caught.value)


def test_a_row_is_named_by_its_file(root):
    """Counted there from 1, whichever batch it came in."""
    write(root / "0.parquet", x=[1, 2, 3])
    write(root / "1.parquet", x=pa.array([], pa.int64()))
    write(root / "2.parquet", x=[4, 5])
    with opened(root) as source:
        read(source)
        assert [source.place_of(row) for row in range(1, 6)] == [
            *((str(root / "0.parquet"), row, 0) for row in (1, 2, 3)),
            *((str(root / "2.parquet"), row, 0) for row in (1, 2)),
        ]


def test_a_part_that_is_damaged_is_named(root):
    """And not the first."""
    write(root / "0.parquet", x=[1])
    (root / "1.parquet").write_bytes(b"PAR1")
    with pytest.raises(DatasetError) as caught:
        opened(root)
    assert caught.value.file == str(root / "1.parquet")


@pytest.mark.parametrize("place", ["", "a", "a/b", "empty", "part"])
@pytest.mark.parametrize("pattern", ["", "*", "*/*", "*/*/*.parquet", "**/*.parquet"])
def test_nobody_else_can_add_or_change_a_part(root, place, pattern):
    """A folder that others may write to is refused, also one that has no part yet."""
    write(root / "a" / "b" / "0.parquet", x=[1])
    (root / "empty").mkdir()
    at = root / "a" / "b" / "0.parquet" if place == "part" else root / place
    at.chmod(0o777)
    with pytest.raises(UnsafeFileError):
        found(root / pattern)
    at.chmod(0o755)
    assert len(found(root / pattern)[1]) == 1


def test_a_part_in_a_folder_that_nobody_may_list(root, monkeypatch):
    """It is not passed over."""
    write(root / "a" / "0.parquet", x=[1])
    write(root / "b" / "0.parquet", x=[1])
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "no", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError):
        found(root)


def test_a_pass_that_is_left_closes_with_its_source(root):
    """No thread waits for another where an iterator is cleared away."""
    for number in range(3):
        write(root / f"{number}.parquet", x=[number])
    source = opened(root)
    left = source.batches([0])
    assert next(left).to_pydict() == {"x": [0]}
    assert read(source) == {"x": [0, 1, 2]}
    (first,) = source._open
    assert not first._stream.closed
    source.close()
    assert first._stream.closed
    assert not source._open


@SETTINGS
@given(st.lists(st.lists(st.integers(0, 9), max_size=5), min_size=1, max_size=12))
def test_parts_are_one_table_cut_into_pieces(root, pieces):
    """Whatever the pieces."""
    for old in root.iterdir():
        old.unlink()
    for number, piece in enumerate(pieces):
        write(root / f"{number}.parquet", x=pa.array(piece, pa.int64()))
    rows = [row for piece in pieces for row in piece]
    with opened(root) as source:
        batches = list(source.batches([0]))
        got = [row for batch in batches for row in batch.column(0).to_pylist()]
        assert got == rows
        for row in range(1, len(rows) + 1):
            file, place, _ = source.place_of(row)
            number = int(file.rsplit("/", 1)[1].partition(".")[0])
            assert sum(map(len, pieces[:number])) + place == row
            assert place <= len(pieces[number])
