"""What is said of a wait, where, and when nothing is."""

from __future__ import annotations

import logging
import os
import select
import sys
import threading
import types
from collections.abc import Iterator

import pytest

from obhut.host import waiting
from obhut.host.waiting import Waiting, wait_for

PATIENCE = 30.0


class Heard(logging.Handler):
    """Takes the log's lines, and tells when there is one.

    Attributes:
        lines: what was said.
        some: set when something was.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.some = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line."""
        self.lines.append(record.getMessage())
        self.some.set()


@pytest.fixture
def heard() -> Iterator[Heard]:
    """What the log says."""
    handler = Heard()
    log = logging.getLogger("obhut.waiting")
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)


def test_a_short_wait_is_not_spoken_of(
    heard: Heard, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither of a block that ends in time nor of an event that has come."""
    event = threading.Event()
    event.set()
    with Waiting("waiting for nothing"):
        assert wait_for(event, lambda: "waiting for nothing")
    assert not wait_for(threading.Event(), lambda: "waiting for nothing", 0.01)
    assert heard.lines == []
    assert capsys.readouterr() == ("", "")


def test_a_long_one_is_a_line_of_the_log(
    heard: Heard, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default of level warning, so that it is seen where no log is set up."""
    with Waiting("waiting for a log", 0.0):
        assert heard.some.wait(PATIENCE)
    assert heard.lines == ["waiting for a log"]
    assert capsys.readouterr().out == ""


def test_the_same_is_not_said_again_and_again(heard: Heard) -> None:
    """A loop whose every step is slow fills no log."""
    for text in ("waiting for one", "waiting for one", "waiting for two"):
        heard.some.clear()
        with Waiting(text, 0.0) as waiting:
            waiting._timer.join(PATIENCE)
    assert heard.lines == ["waiting for one", "waiting for two"]


def test_an_event_is_waited_for_with_what_is_true_then(heard: Heard) -> None:
    """What is said is asked anew: a connection may break meanwhile."""
    event, texts = threading.Event(), iter(("waiting for bob", "bob is away"))

    def text() -> str:
        found = next(texts, "")
        if not found:
            event.set()
        return found or "bob is away"

    assert wait_for(event, text, PATIENCE)
    assert heard.lines == ["waiting for bob", "bob is away"]


def test_how_much_is_done_is_a_line_each_tenth(
    heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where lines stay; and what is not known, or has not begun, is not said."""
    monkeypatch.setattr(waiting, "SECONDS", 0.01)
    monkeypatch.setattr(waiting, "AGAIN_SECONDS", 0.0)
    event, shares = threading.Event(), [None, 0.0, 0.099, 0.1, 0.199, 0.29, 0.999, 1.0]

    def done() -> float | None:
        if len(shares) == 1:
            event.set()
        return shares.pop(0)

    assert wait_for(event, lambda: "waiting for dave", PATIENCE, done)
    shown = ["", ": 10 % done", ": 20 % done", ": 90 % done", ": 100 % done"]
    assert heard.lines == [f"waiting for dave{one}" for one in shown]


def test_however_much_is_done_lines_are_ten_seconds_apart(
    heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds of a few seconds each leave no more lines than before."""
    monkeypatch.setattr(waiting, "SECONDS", 0.01)
    event, shares = threading.Event(), [0.1, 0.2, 0.3]

    def done() -> float | None:
        if len(shares) == 1:
            event.set()
        return shares.pop(0)

    assert wait_for(event, lambda: "waiting for carol", PATIENCE, done)
    assert heard.lines == ["waiting for carol: 10 % done"]


def test_in_a_notebook_it_is_one_line(
    heard: Heard,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On standard error, below the cell."""
    kernel = types.SimpleNamespace(
        IPKernelApp=types.SimpleNamespace(initialized=lambda: True)
    )
    monkeypatch.setitem(sys.modules, "ipykernel.kernelapp", kernel)
    with Waiting("waiting for a cell", 0.0) as waiting:
        waiting._timer.join(PATIENCE)
    assert capsys.readouterr() == ("", "waiting for a cell\n")
    assert heard.lines == []


def read_until(terminal: int, text: str) -> None:
    """Read what a terminal shows until a text has come."""
    shown = ""
    while text not in shown:
        ready, _, _ = select.select([terminal], [], [], PATIENCE)
        assert ready, shown
        shown += os.read(terminal, 1 << 16).decode()


def test_in_a_terminal_it_is_a_line_that_goes(
    heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What several threads wait for shares it; what it says is no markup."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    ours, theirs = os.openpty()
    with open(theirs, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with Waiting("waiting for bob", 0.0) as first:
            first._timer.join(PATIENCE)
            read_until(ours, "waiting for bob")
            with Waiting("waiting for [red]alice", 0.0) as second:
                second._timer.join(PATIENCE)
                read_until(ours, "waiting for bob; waiting for [red]alice")
        read_until(ours, "\x1b[?25h\r\x1b[1A\x1b[2K")  # and the line is gone
    os.close(ours)
    assert heard.lines == []
