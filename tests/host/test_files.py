"""Files and folders that others could change, and the ways to them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from obhut.errors import UnsafeFileError
from obhut.host import files


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file that only its owner may change, some folders down."""
    folder = tmp_path / "a" / "b"
    files.make_folder(folder)
    files.write(folder / "c", b"x")
    return folder / "c"


def test_a_file_of_ones_own_is_used(file: Path) -> None:
    """In a folder of one's own below ``/tmp``, by whichever name."""
    files.check(file)
    files.check(file.parent)
    files.check(file.parent / ".." / "b" / "c")
    here = Path.cwd()
    os.chdir(file.parent)
    try:
        files.check(Path("c"))
        files.check(Path())
    finally:
        os.chdir(here)


@pytest.mark.parametrize("step", ["a", "a/b", "a/b/c"])
@pytest.mark.parametrize("mode", [0o020, 0o002])
def test_who_can_change_a_folder_on_the_way_can_replace_the_file(
    tmp_path: Path, file: Path, step: str, mode: int
) -> None:
    """The file, its folder and those above are looked at; the text says what to do."""
    path = tmp_path / step
    path.chmod(0o700 | mode)
    with pytest.raises(UnsafeFileError, match=f"chmod 0700 {path}"):
        files.check(file)


def test_others_may_put_their_own_files_beside_it(tmp_path: Path, file: Path) -> None:
    """As in ``/tmp``; but not into the folder that is asked about."""
    (tmp_path / "a").chmod(0o1777)
    files.check(file)
    file.parent.chmod(0o1777)
    files.check(file)
    with pytest.raises(UnsafeFileError, match="others may change it"):
        files.check(file.parent)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("step", ["a", "a/b", "a/b/c", "link"])
def test_what_is_somebody_elses_is_theirs_to_change(
    tmp_path: Path, file: Path, step: str
) -> None:
    """A file, a folder on the way, a link; whatever its mode."""
    (tmp_path / "link").symlink_to(file)
    files.check(tmp_path / "link")
    os.chown(tmp_path / step, 65534, -1, follow_symlinks=False)
    with pytest.raises(UnsafeFileError, match="belongs to user 65534"):
        files.check(tmp_path / "link")


@pytest.mark.parametrize("target", ["open/hop", "{root}/open/hop"])
def test_all_links_on_the_way_are_looked_at(
    tmp_path: Path, file: Path, target: str
) -> None:
    """Also one that leads through a folder of others and back."""
    (tmp_path / "open").mkdir(mode=0o700)
    (tmp_path / "open" / "hop").symlink_to("../a/b")
    (tmp_path / "link").symlink_to(target.format(root=tmp_path))
    files.check(tmp_path / "link" / "c")
    (tmp_path / "open").chmod(0o777)
    files.check(file)
    with pytest.raises(UnsafeFileError, match="open is not used"):
        files.check(tmp_path / "link" / "c")


def test_no_umask_opens_what_is_made(tmp_path: Path) -> None:
    """Neither a folder nor those on the way to it."""
    before = os.umask(0)
    try:
        files.make_folder(tmp_path / "x" / "y" / "z")
    finally:
        os.umask(before)
    files.check(tmp_path / "x" / "y" / "z")


def test_what_can_only_be_read_is_used_whoever_owns_it() -> None:
    """On a mount for reading nobody here changes it."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        folder, options = line.split()[1], line.split()[3].split(",")
        if "ro" in options and Path(folder).exists():
            files.check(Path(folder))
            return
    pytest.skip("nothing is mounted for reading here")
