"""Data sets in memory, and on the worker's disk."""

from __future__ import annotations

import errno
import fcntl
import gc
import mmap
import os
from pathlib import Path

import numpy as np
import pytest

from obhut.errors import DatasetError
from obhut.host.data.arrays import Array, ArrayWriter, map_private
from obhut.host.data.datasets import Dataset, load_one
from obhut.host.data.declaration import DatasetDeclaration, Public
from obhut.host.data.room import FOLDER, DiskError, Space
from obhut.host.unnamed import unnamed

ROWS = 40
ROW = 8
"""Bytes of two float32."""


def on_disk(array: Array) -> bool:
    """Tell whether an array lies in a file of a disk."""
    return "memfd:" not in os.readlink(f"/proc/self/fd/{array.fd}")


def csv(folder: Path) -> Path:
    """Write a table of three columns; return it."""
    file = folder / "d.csv"
    lines = (f"{row},{row / 2},{row % 2}\n" for row in range(ROWS))
    file.write_text("a,b,y\n" + "".join(lines))
    return file


def npy(folder: Path) -> Path:
    """Write an array of two columns; return it."""
    values = np.arange(2 * ROWS, dtype=np.float32).reshape(ROWS, 2)
    np.save(folder / "d.npy", values)
    return folder / "d.npy"


def loaded(folder: Path, file: Path, memory: int | None, **declared: object) -> Dataset:
    """Load a file where so much memory may be taken."""
    if file.suffix == ".csv":
        declared = {"features": ("a", "b"), "target": "y", **declared}
    one = DatasetDeclaration(name="d", path=file, **declared)  # type: ignore[arg-type] # a test's
    return load_one(one, space=Space(memory, folder))


@pytest.mark.parametrize("make", [csv, npy])
def test_what_a_session_may_not_hold_is_on_the_disk(make, tmp_path):
    """The values are the same, and no file is left with a name."""
    file, folder = make(tmp_path), tmp_path / "bob"
    folder.mkdir()
    fits = loaded(folder, file, 2**20).tensors
    larger = loaded(folder, file, ROWS * ROW - 1).tensors
    for name, array in fits.items():
        assert not on_disk(array)
        assert array.data == larger[name].data
    features = larger["features"]
    assert on_disk(features)
    assert os.fstat(features.fd).st_dev == tmp_path.stat().st_dev
    assert os.fstat(features.fd).st_nlink == 0
    assert not list(folder.iterdir())


def test_what_fits_beside_it_is_in_memory(tmp_path):
    """A set of features and a target takes no more memory than a session may hold."""
    found = loaded(tmp_path, csv(tmp_path), ROWS * ROW).tensors
    assert [on_disk(found[name]) for name in ("features", "target")] == [False, True]


@pytest.mark.parametrize("keep", ["memory", "disk"])
def test_the_owner_may_choose(keep, tmp_path):
    """Whatever the size."""
    memory = ROW if keep == "memory" else 2**20
    found = loaded(tmp_path, npy(tmp_path), memory, keep=keep)
    assert on_disk(found.tensors["features"]) is (keep == "disk")


def test_rows_that_are_left_are_kept_likewise(tmp_path):
    """Of a rounded number of rows, in a file that has no others."""
    np.save(tmp_path / "d.npy", np.ones((47, 2), np.float32))
    declared = DatasetDeclaration(
        name="d", path=tmp_path / "d.npy", keep="disk", public=Public(rows="rounded")
    )
    found = load_one(declared, guarded=True, space=Space(2**20, tmp_path))
    array = found.tensors["features"]
    assert array.shape == (40, 2)
    assert on_disk(array)
    assert os.fstat(array.fd).st_size == 40 * ROW


def test_another_disk_may_be_mounted(tmp_path, monkeypatch):
    """A folder ``data`` in the worker's own takes the files, if it is there."""
    opened = []
    monkeypatch.setattr(
        "obhut.host.data.room.unnamed",
        lambda folder: opened.append(folder) or unnamed(folder),
    )
    file, folder = npy(tmp_path), tmp_path / "bob"
    for there in ((), (folder,), (folder / FOLDER,)):
        for one in there:
            one.mkdir()
        loaded(folder, file, ROW)
    assert opened == [tmp_path, folder, folder / FOLDER]


def test_nobody_can_change_what_is_on_the_disk(tmp_path):
    """The one descriptor that is left can neither write nor shorten nor map so."""
    array = loaded(tmp_path, npy(tmp_path), ROW).tensors["features"]
    for change in (
        lambda: os.pwrite(array.fd, b"x", 0),
        lambda: os.ftruncate(array.fd, 0),
        lambda: mmap.mmap(array.fd, 0, mmap.MAP_SHARED, mmap.PROT_WRITE),
    ):
        with pytest.raises(OSError, match=r"Bad file|Invalid|denied|not permitted"):
            change()
    name = os.readlink(f"/proc/self/fd/{array.fd}")
    mine = [int(one) for one in os.listdir("/proc/self/fd")]
    ways = {
        fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        for fd in mine
        if _readlink(f"/proc/self/fd/{fd}") == name
    }
    assert ways == {os.O_RDONLY}
    assert os.fstat(array.fd).st_mode & 0o777 == 0o400
    assert not os.get_inheritable(array.fd)


def _readlink(path: str) -> str:
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return ""


def test_a_session_writes_into_its_own_copy(tmp_path):
    """The file, and what another session maps, stay as they are."""
    array = loaded(tmp_path, npy(tmp_path), ROW).tensors["features"]
    mine, other = (map_private(array.fd, len(array.data)) for _ in range(2))
    np.frombuffer(mine, np.float32)[:] = -1
    assert other == array.data
    assert mine != other


def test_a_file_that_can_be_changed_is_not_mapped(tmp_path):
    """One with a name, one that can be opened to write, and a way to write."""
    file = tmp_path / "named"
    file.write_bytes(b"12345678")
    file.chmod(0o400)
    writable = unnamed(tmp_path)
    os.write(writable, b"12345678")
    loose = os.open(f"/proc/self/fd/{writable}", os.O_RDONLY)
    os.fchmod(writable, 0o600)
    named = os.open(file, os.O_RDONLY)
    for fd in (named, writable, loose):
        with pytest.raises(ValueError, match="expected sealed memory, or a file"):
            map_private(fd, 8)
        os.close(fd)


def test_a_full_disk_is_said_with_what_can_be_done(tmp_path, monkeypatch):
    """And which disk it is; nothing stays open."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    gc.collect()
    file, before = npy(tmp_path), len(os.listdir("/proc/self/fd"))
    for name in ("arrays.os.write", "room.unnamed"):
        with monkeypatch.context() as patched:
            patched.setattr(f"obhut.host.data.{name}", full)
            with pytest.raises(DatasetError) as caught:
                loaded(tmp_path, file, ROW)
        assert f"kept on the disk of {tmp_path}, which has no" in str(caught.value)
        assert "No space left" in str(caught.value)
        assert 'or write keep = "memory"' in str(caught.value)
    monkeypatch.setattr("obhut.host.data.arrays.os.sendfile", full)
    with Space(4, tmp_path).entered(), ArrayWriter("uint8") as writer:
        writer.write(b"1234")
        with pytest.raises(DiskError) as full_disk:
            writer.write(b"5")
    assert full_disk.value.folder == tmp_path
    del writer, caught
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_row_that_no_session_can_hold_is_refused(tmp_path):
    """At the start, with the choice, however the rows are kept."""
    for keep in (None, "memory", "disk"):
        with pytest.raises(DatasetError, match=r"a row takes 8 bytes, .* a larger mem"):
            loaded(tmp_path, npy(tmp_path), ROW - 1, keep=keep)
        loaded(tmp_path, npy(tmp_path), ROW, keep=keep)


def test_memory_that_is_given_up_is_there_again(tmp_path):
    """What went to the disk leaves its memory to others of the same data set."""
    with Space(10, tmp_path).entered():
        with ArrayWriter("uint8") as first:
            first.write(b"123456")
            first.write(b"7890a")  # more than there is
            assert on_disk(array := first.finish((11,)))
        assert bytes(array.data) == b"1234567890a"
        with ArrayWriter("uint8") as second:
            second.expect(10)
            second.write(b"1234567890")
            assert not on_disk(second.finish((10,)))
