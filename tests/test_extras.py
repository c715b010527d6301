"""What is said of a library that is not installed."""

from pathlib import Path

import pytest

from obhut.errors import MissingExtraError
from obhut.extras import import_extra


def test_a_library_is_named_as_it_is_installed() -> None:
    """By its own name, or by the module's where that is the same."""
    with pytest.raises(MissingExtraError, match=r"^this needs no_such_library, .*x\]'"):
        import_extra("no_such_library.part", "this", "x")
    with pytest.raises(MissingExtraError, match=r"^this needs no-such-library, "):
        import_extra("no_such_library", "this", "x", "no-such-library")


def test_what_a_library_lacks_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that is there but lacks another raises its own error."""
    (tmp_path / "broken_library.py").write_text("import missing_library")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="missing_library") as caught:
        import_extra("broken_library", "this", "x")
    assert not isinstance(caught.value, MissingExtraError)
