"""A log that does not grow as fast as somebody likes."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from obhut.cli.logs import AT_ONCE, Indented, Steady


class Log:
    """A log, and the time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._text = io.StringIO()
        self._handler = logging.StreamHandler(self._text)
        self._handler.setFormatter(Indented())
        self._handler.addFilter(Steady(lambda: self.now))
        self._logger = logging.Logger("a test")
        self._logger.addHandler(self._handler)

    def often(self, what: str) -> None:
        """Write a line that comes often."""
        self._logger.info("%s is refused", what)

    def rare(self) -> None:
        """Write a line of another kind."""
        self._logger.info("crashed: %s", "bob")

    def failed(self, what: str) -> None:
        """Write a line with an error."""
        try:
            raise ValueError(what)
        except ValueError:
            self._logger.exception("it failed")

    def lines(self) -> list[str]:
        """Return what was written since the last time."""
        said = self._text.getvalue().splitlines()
        self._text.seek(0)
        self._text.truncate()
        return said


@pytest.fixture
def log() -> Iterator[Log]:
    """Return a log."""
    return Log()


def test_a_line_that_comes_too_often_hides_no_other(log: Log) -> None:
    """Whatever it says; one that is rare is written."""
    for k in range(10 * AT_ONCE):
        log.often(f"number {k}")
    log.rare()
    assert log.lines() == [
        *(f"number {k} is refused" for k in range(AT_ONCE)),
        "crashed: bob",
    ]


def test_what_was_left_out_is_counted(log: Log) -> None:
    """One a second is written, and says how many were not; then all as before."""
    for _ in range(AT_ONCE + 1_000):
        log.often("x")
    log.lines()
    log.now += 1
    for _ in range(3):
        log.often("x")
    assert log.lines() == ["x is refused (1,000 lines such as this were left out)"]
    log.now += AT_ONCE
    log.often("x")
    log.often("x")
    assert log.lines() == [
        "x is refused (2 lines such as this were left out)",
        "x is refused",
    ]


def test_a_line_has_an_end(log: Log) -> None:
    """However long the words of others in it are."""
    log.often("x" * 1_000_000)
    assert len(log.lines()[0]) <= 2_000


FORGED = "x\n2026-01-01 00:00:00 INFO all is well\u2028\x1b[2Kreally"


def test_nobody_begins_a_line_of_their_own(log: Log) -> None:
    """Line breaks, and what a terminal would obey, are escaped in words of others."""
    log.often(FORGED)
    (line,) = log.lines()
    assert line == (
        r"x\n2026-01-01 00:00:00 INFO all is well\u2028\x1b[2Kreally is refused"
    )


def test_an_error_begins_no_line_of_its_own(log: Log) -> None:
    """Where it came from, and its words, stand to the right of where lines begin."""
    log.failed(FORGED)
    first, *others = log.lines()
    assert first == "it failed"
    assert len(others) > 3
    assert all(line.startswith("    ") and line.isprintable() for line in others)
