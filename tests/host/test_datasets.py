"""Data sets as a whole: all or none, sealed, and as public as declared."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from obhut.errors import DatasetError, FileError, ObhutError
from obhut.host.data.arrays import ArrayWriter, map_private
from obhut.host.data.datasets import load, load_one, rounded
from obhut.host.data.declaration import DatasetDeclaration

from .conftest import HEAD
from .test_tables import read

CSV = "a,b,y\n1,2,M\n3,4,B\n"


def test_all_load_or_none_does(configure, tmp_path):
    """One bad file, and nothing is loaded; its error says which."""
    (tmp_path / "good.csv").write_text(CSV)
    (tmp_path / "bad.csv").write_text("a\nx\n")
    text = HEAD + '[[dataset]]\nname = "{0}"\npath = "{0}.csv"\nfeatures = ["a"]\n'
    good = text.format("good")
    loaded = load(configure(good).datasets)
    assert list(loaded) == ["good"]
    with pytest.raises(TypeError):
        loaded["more"] = loaded["good"]
    both = good + text.format("bad").removeprefix(HEAD)
    del loaded
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(DatasetError, match=r"bad.csv, row 1 \(line 2\), column \"a\""):
        load(configure(both).datasets)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_names_tags_and_description_are_kept(load_data):
    """What it is found by is what was declared."""
    loaded = load_data("d.csv", CSV, features="a", tags=("#x",), description="about it")
    assert (loaded.name, loaded.tags, loaded.description) == ("d", ("#x",), "about it")


def test_metadata_is_private_unless_declared(load_data):
    """By default nobody learns names, types or rows."""
    public = load_data("d.csv", CSV, features="a").public
    assert public.names is None
    assert public.dtypes is None
    assert public.rows is None
    public = load_data(
        "d.csv",
        CSV,
        features=["a", "b"],
        target="y",
        classes=["M", "B"],
        public={"names": True, "types": True, "rows": "exact"},
    ).public
    assert public.names == {"features": ("a", "b"), "target": ("y",)}
    assert public.dtypes == {"features": "float32", "target": "int64"}
    assert (public.rows, public.rounded) == (2, False)
    public = load_data("d.csv", CSV, features="a", public={"rows": "rounded"}).public
    assert (public.names, public.rows, public.rounded) == (None, 10, True)


@pytest.mark.parametrize(
    ("rows", "shown"),
    [
        (1, 10),
        (9, 10),
        (14, 10),
        (15, 20),
        (94, 90),
        (95, 100),
        (569, 570),
        (565, 570),
        (1_797, 1_800),
        (123_456, 120_000),
        (995, 1_000),
    ],
)
def test_rows_are_rounded_to_two_digits(rows, shown):
    """And never finer than tens, so that one row more or less is rarely seen."""
    assert rounded(rows) == shown


@given(st.integers(1, 10**12))
def test_rounding_is_near_and_coarse(rows):
    """The error is at most half a unit of the second digit, or of tens."""
    shown = rounded(rows)
    assert shown % 10 == 0
    assert abs(shown - rows) <= max(9, rows // 20 + 1)
    assert len(str(shown).rstrip("0")) <= 2


def test_behind_a_policy_a_shape_says_no_more_than_is_public(configure, tmp_path):
    """A rounded number of rows is what is used, and of a hidden one no tensor is."""
    rows = "".join(f"{k},{k},M\n" for k in range(567))
    (tmp_path / "d.csv").write_text("a,b,y\n" + rows)
    text = HEAD + (
        '[[dataset]]\nname = "d"\npath = "d.csv"\nfeatures = ["a", "b"]\n'
        'target = "y"\nclasses = ["M"]\n'
    )

    def loaded(public: str):
        declared = configure(text + public).datasets
        return load(declared, guarded=True)["d"]

    one = loaded('public = { rows = "rounded" }\n')
    assert one.tensors["features"].shape == (560, 2)
    assert one.tensors["target"].shape == (560,)
    assert (one.public.rows, one.public.rounded) == (560, True)
    # The rows that are left out are not in the memory that a session sees.
    for array in one.tensors.values():
        assert os.fstat(array.fd).st_size == len(array.data)
    assert loaded('public = { rows = "exact" }\n').tensors["features"].shape == (567, 2)
    for public in ('public = { rows = "hidden" }\n', ""):
        one = loaded(public)
        assert one.hidden
        assert one.tensors["features"].shape == (567, 2)
        assert one.public.rows is None
        assert one.public.shapes == {"features": (2,), "target": ()}
        assert one.public.dtypes == {"features": "float32", "target": "int64"}
        open_ = load(configure(text + public).datasets)["d"]
        assert not open_.hidden
        assert (open_.public.dtypes, open_.public.shapes) == (None, None)
    (tmp_path / "d.csv").write_text("a,b,y\n1,2,M\n")
    with pytest.raises(DatasetError, match="ten rows"):
        loaded('public = { rows = "rounded" }\n')


def test_rows_that_can_not_be_hidden_are_refused(tmp_path, monkeypatch):
    """Arrays of several numbers of rows, single numbers, and too many rows."""
    file = tmp_path / "d.npz"

    def loads(**arrays):
        np.savez(file, **arrays)
        return load_one(DatasetDeclaration(name="d", path=file), guarded=True)

    three, two = np.zeros((3, 2)), np.zeros(2)
    for wrong in ({"a": two}, {"a": np.float64(1)}, {"x": np.float64(1)}):
        with pytest.raises(DatasetError, match="serve them as data sets of their own"):
            loads(**{"x": three} | wrong)
    assert loads(x=three, y=three).hidden
    monkeypatch.setattr("obhut.host.data.datasets.HIDDEN_ROWS", 2)
    with pytest.raises(DatasetError, match="has more than 2 rows, and no more"):
        loads(x=three)


def test_fewer_rows_than_the_policy_asks_for_are_not_hidden(tmp_path):
    """``minimum_rows`` holds whatever of them is public."""
    file = tmp_path / "d.npy"
    np.save(file, np.zeros((3, 2)))
    declared = DatasetDeclaration(name="d", path=file)
    assert load_one(declared, 3, guarded=True).hidden
    with pytest.raises(DatasetError, match="minimum_rows"):
        load_one(declared, 4, guarded=True)


def test_the_memory_is_sealed(load_data):
    """Whoever gets the descriptor can neither write, shrink nor grow it."""
    array = load_data("d.csv", CSV, features=["a", "b"]).tensors["features"]
    assert array.data.readonly
    for change in (
        lambda: os.pwrite(array.fd, b"x", 0),
        lambda: os.ftruncate(array.fd, 1),
        lambda: os.ftruncate(array.fd, 100),
        lambda: mmap.mmap(array.fd, len(array.data)),
    ):
        with pytest.raises(OSError) as caught:  # noqa: PT011  (errno says which)
            change()
        assert caught.value.errno in (errno.EPERM, errno.EACCES)
    again = os.open(f"/proc/self/fd/{array.fd}", os.O_RDWR)
    with pytest.raises(PermissionError):
        os.write(again, b"x")
    os.close(again)
    assert not os.get_inheritable(array.fd)


def test_a_session_writes_into_its_own_copy(load_data):
    """The data set, and what another session maps, stay as they are."""
    array = load_data("d.csv", CSV, features=["a", "b"]).tensors["features"]
    fd = os.dup(array.fd)
    mine, other = (map_private(fd, len(array.data)) for _ in range(2))
    os.close(fd)
    np.frombuffer(mine, np.float32)[:] = 0
    assert not any(mine)
    assert read(array).tolist() == [[1, 2], [3, 4]]
    assert other == array.data


def test_only_sealed_memory_of_the_right_size_is_mapped(load_data):
    """A descriptor that somebody else can write to is refused."""
    array = load_data("d.csv", CSV, features="a").tensors["features"]
    with pytest.raises(ValueError, match="expected 9 bytes, got 8"):
        map_private(array.fd, 9)
    fd = os.memfd_create("open", os.MFD_ALLOW_SEALING)
    with pytest.raises(ValueError, match="expected sealed"):
        map_private(fd, 1)
    os.close(fd)


def test_the_descriptor_lives_as_long_as_the_array(load_data):
    """It is closed when nobody holds the array, though a view of it may live on."""
    array = load_data("d.csv", CSV, features="a").tensors["features"]
    fd, data = array.fd, array.data
    del array
    gc.collect()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
    assert np.frombuffer(data, np.float32).tolist() == [1, 3]


def test_what_was_written_must_be_the_shape():
    """No array is larger or smaller than it says, or empty."""
    for shape, data in (((3,), b"12345678"), ((0,), b"")):
        with ArrayWriter("float32") as writer:
            writer.write(data)
            with pytest.raises(ValueError, match="bytes"):
                writer.finish(shape)


def test_files_that_are_none_are_refused(load_data, tmp_path):
    """A missing file, a folder and a pipe, which would be waited for."""
    with pytest.raises(DatasetError, match="there is no such file; check path"):
        load_data("none.csv", None, features="a")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "folder.db").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    for name in ("folder.db", "pipe.csv"):
        with pytest.raises(DatasetError, match="is not a file"):
            load_data(name, None, features="a")
    with pytest.raises(DatasetError, match="has no files"):
        load_data("folder.csv", None, features="a")
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="can not be read: Not a directory"):
        load_data("file/d.csv", None, features="a")
    with pytest.raises(DatasetError, match="does not say what it is"):
        load_data("d.xyz", "", features="a")


def test_memory_that_is_not_there_is_said(load_data, monkeypatch):
    """The owner learns that it is the memory."""

    def full(fd, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("obhut.host.data.arrays.os.write", full)
    with pytest.raises(DatasetError, match="No space left on device; check"):
        load_data("d.csv", CSV, features="a")


def test_the_format_may_be_declared(load_data):
    """A name that says nothing is no obstacle."""
    assert load_data("d.data", CSV, format="csv", features="a").tensors


def test_features_and_target_have_as_many_rows(load_data, tmp_path):
    """Arrays of different lengths are no data set."""
    np.savez(tmp_path / "d.npz", x=np.zeros((3, 2)), y=np.zeros(4))
    with pytest.raises(DatasetError, match="3 rows of features and 4 of the target"):
        load_data("d.npz", None, features="x", target="y")


def test_errors_are_about_files():
    """One class for what an owner mends in a file."""
    assert issubclass(DatasetError, FileError)
    assert issubclass(FileError, ObhutError)
    assert str(DatasetError("f", "p", "a", line=3)) == "f, line 3: p; a"
    assert str(DatasetError("f", "p", "a", "c", 2)) == 'f, row 2, column "c": p; a'


def test_loading_needs_no_torch_and_no_pyarrow(tmp_path):
    """A worker's parent starts with neither, unless it reads a table."""
    np.save(tmp_path / "d.npy", np.ones((2, 2)))
    program = (
        "import sys, pathlib; from obhut.host import configuration, explanation; "
        "from obhut.host.data import datasets; "
        "from obhut.host.data.declaration import DatasetDeclaration as D; "
        f"path = pathlib.Path({str(tmp_path / 'd.npy')!r}); "
        "datasets.load([D(name='d', path=path)]); "
        "sys.exit(bool({'torch', 'pyarrow', 'grpc'} & {*sys.modules}))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_what_is_as_it_was_is_not_read_again(tmp_path):
    """With all its shares, and who may use them; a folder is, each time."""
    (tmp_path / "d.csv").write_text("a\n" + "".join(f"{k}\n" for k in range(20)))
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "1.csv").write_text("a\n1\n")
    single = DatasetDeclaration(
        name="d",
        path=tmp_path / "d.csv",
        features="a",
        split={"train": 0.5, "test": 0.5},
        requesters=("anna",),
    )
    several = DatasetDeclaration(
        name="p", path=tmp_path / "parts", format="csv", features="a"
    )
    first = load([single, several])
    again = load([single, several], before=first)
    assert [*first] == [*again] == ["d-train", "d-test", "p"]
    same = [again[name] is first[name] for name in first]
    assert same == [True, True, False]
    assert [one.requesters for one in again.values()] == [("anna",), ("anna",), None]
    (tmp_path / "d.csv").write_text("a\n" + "7\n" * 20)
    changed = load([single, several], before=again)
    assert changed["d-test"] is not again["d-test"]
