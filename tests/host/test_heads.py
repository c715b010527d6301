"""What an owner saw of a record of releases, and what goes on from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from obhut.errors import LedgerError, RemoteProtocolError, UnsafeFileError
from obhut.host.heads import Heads, Seen
from obhut.protocol.messages import Recalled

HUB = "a2" * 26


def hashed(text: str) -> str:
    """Return something that looks like a hash."""
    return (text * 64)[:64]


A, B, C = map(hashed, "abc")


@pytest.fixture
def heads(tmp_path: Path) -> Heads:
    """What was seen, in a new folder."""
    return Heads(tmp_path / "heads")


def test_what_comes_first_is_kept(heads: Heads, tmp_path: Path) -> None:
    """And is there after a restart, for its owner only."""
    assert heads.read(HUB) is None
    heads.follow(HUB, None, Recalled(3, A, B))
    assert Heads(tmp_path / "heads").read(HUB) == Seen(3, A)
    (file,) = (tmp_path / "heads").iterdir()
    assert file.name == f"{HUB}.json"
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("told", "kept"),
    [(Recalled(3, A, A), Seen(3, A)), (Recalled(9, B, A), Seen(9, B))],
)
def test_what_goes_on_is_followed(heads: Heads, told: Recalled, kept: Seen) -> None:
    """With as many entries that end so, or with more, that ended so then."""
    heads.follow(HUB, None, Recalled(3, A, ""))
    heads.follow(HUB, heads.read(HUB), told)
    assert heads.read(HUB) == kept


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (Recalled(2, B, ""), "ends with entry 2"),
        (Recalled(2, A, A), "ends with entry 2"),
        (Recalled(0, C, ""), "ends with entry 0"),
        (Recalled(3, B, B), "there it is another"),
        (Recalled(3, B, A), "there it is another"),
        (Recalled(9, B, C), "there it is another"),
        (Recalled(9, B, ""), "there it is another"),
        (Recalled(9, A, B), "there it is another"),
    ],
)
def test_what_does_not_go_on_is_refused(
    heads: Heads, told: Recalled, words: str
) -> None:
    """Shorter, or another: with what was expected, what came and what to do."""
    heads.follow(HUB, None, Recalled(3, A, ""))
    with pytest.raises(LedgerError, match=words) as caught:
        heads.follow(HUB, heads.read(HUB), told)
    assert heads.read(HUB) == Seen(3, A)
    said = str(caught.value)
    assert "expected a record of releases that goes on from entry 3 (aaaa" in said
    assert f"{HUB}.json" in said
    assert "Ask its operator" in said


@pytest.mark.parametrize(
    "told", [Recalled(-1, A, A), Recalled(3, "", A), Recalled(3, A + "a", A)]
)
def test_what_is_no_answer_is_refused(heads: Heads, told: Recalled) -> None:
    """Whatever was seen before."""
    with pytest.raises(RemoteProtocolError):
        heads.follow(HUB, None, told)
    assert heads.read(HUB) is None


def test_what_was_seen_last_stays(heads: Heads) -> None:
    """An answer that comes late, to another session, puts nothing back."""
    heads.follow(HUB, None, Recalled(9, B, ""))
    heads.follow(HUB, Seen(3, A), Recalled(5, C, A))
    assert heads.read(HUB) == Seen(9, B)


def test_a_file_that_can_not_be_read_is_refused(heads: Heads, tmp_path: Path) -> None:
    """It is not taken for none; nor is one that others may change."""
    heads.follow(HUB, None, Recalled(3, A, ""))
    file = tmp_path / "heads" / f"{HUB}.json"
    file.write_text("{")
    with pytest.raises(LedgerError, match="can not be read"):
        heads.read(HUB)
    file.chmod(0o666)
    with pytest.raises(UnsafeFileError):
        heads.read(HUB)


def test_no_other_file_is_read(heads: Heads) -> None:
    """An id is one, and leads to no other folder."""
    for id in ("../worker", "", "a/b"):
        with pytest.raises(LedgerError, match="no aggregator"):
            heads.read(id)
