"""Where a node's folder is found when nobody names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from obhut.identity.folders import VARIABLE, default_folder
from obhut.identity.identity import Identity


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home, whose current folder is another and empty."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    return tmp_path


def test_a_user_has_one_folder(home: Path) -> None:
    """Wherever they are; files of others' there change nothing."""
    (home / "work" / "other.toml").touch()
    assert default_folder() == home / ".config" / "obhut"


def test_the_folder_of_a_worker_is_its_own(home: Path) -> None:
    """With a configuration before there is a key, and with a key."""
    (home / "work" / "worker.toml").touch()
    assert default_folder() == home / "work"
    (home / "work" / "worker.toml").unlink()
    Identity.create().save(home / "work")
    assert default_folder() == home / "work"


def test_the_environment_comes_first(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``OBHUT_FOLDER`` holds in a worker's folder too."""
    (home / "work" / "worker.toml").touch()
    monkeypatch.setenv(VARIABLE, "/srv/me")
    assert default_folder() == Path("/srv/me")
