"""The mark beside a ledger: what it survives, and whose it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from obhut.errors import UnsafeFileError
from obhut.guard.ledger import Head
from obhut.host.mark import FILE, Mark

from .test_ledger import SIGNER


def mark(folder: Path, whose: str = "hub") -> Mark:
    """Return the mark of a folder."""
    return Mark(folder / FILE, SIGNER._replace(id=whose))


def head(number: int, whose: str = "hub") -> Head:
    """Return the head of a ledger with so many entries."""
    return Head(whose, number, f"{number:064}")


def test_what_is_written_last_is_read(tmp_path: Path) -> None:
    """However often, and by whoever opens it anew; its file does not grow."""
    assert mark(tmp_path).read() is None
    writing = mark(tmp_path)
    for number in range(5):
        writing.write(head(number))
        assert mark(tmp_path).read() == head(number)
    again = mark(tmp_path)
    assert again.read() == head(4)
    again.write(head(5))
    assert mark(tmp_path).read() == head(5)
    assert (tmp_path / FILE).stat().st_size == 1024


@pytest.mark.parametrize("written", range(0, 512, 37))
def test_a_write_that_was_broken_off_leaves_the_one_before(
    tmp_path: Path, written: int
) -> None:
    """At any byte of it, the mark is the last one or the one before, never none."""
    writing = mark(tmp_path)
    for number in (7, 8):
        writing.write(head(number))
    before = (tmp_path / FILE).read_bytes()
    writing.write(head(9))
    after = (tmp_path / FILE).read_bytes()
    places = [at for at in range(1024) if before[at] != after[at]]
    start = places[0] // 512 * 512
    torn = before[:start] + after[start : start + written] + before[start + written :]
    (tmp_path / FILE).write_bytes(torn)
    assert mark(tmp_path).read() in (head(8), head(9))
    again = mark(tmp_path)
    again.read()
    again.write(head(9))
    assert mark(tmp_path).read() == head(9)


def test_a_mark_of_somebody_else_is_none(tmp_path: Path) -> None:
    """Another worker's, another key's, the signature of a head, what is no mark."""
    mark(tmp_path, "bub").write(head(3, "bub"))
    spoilt = [(tmp_path / FILE).read_bytes(), b"", b"\xff" * 1024, b"{}"]
    other = Mark(tmp_path / FILE, SIGNER._replace(sign=lambda data: b"x" * 32))
    other.write(head(3))
    spoilt.append((tmp_path / FILE).read_bytes())
    only_a_head = Mark(
        tmp_path / FILE,
        SIGNER._replace(sign=lambda _: SIGNER.sign(head(3).signed_bytes())),
    )
    only_a_head.write(head(3))
    spoilt.append((tmp_path / FILE).read_bytes())
    for content in spoilt:
        (tmp_path / FILE).write_bytes(content)
        with pytest.raises(ValueError, match="not what this worker wrote"):
            mark(tmp_path).read()


def test_a_mark_that_others_may_touch_is_not_used(tmp_path: Path) -> None:
    """They could put back an earlier one."""
    mark(tmp_path).write(head(3))
    (tmp_path / FILE).chmod(0o640)
    with pytest.raises(UnsafeFileError, match="chmod 0600"):
        mark(tmp_path).read()
