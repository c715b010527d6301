"""Says how a training comes along: lines in a terminal, a table in a notebook.

::

    with reporting(30, 5, workers, history) as reporter:
        reporter.begins(1)
        reporter.over(report)                    # round 1/30  5/5 owners  loss 0.156

Rules:

- Lines go to standard error, never to standard output: one a round. Within a round
  whoever waits says how much is done (``obhut.host.waiting``).
- In a notebook the same display changes, and has all that is said. A thread asks the
  workers how much is done, where they may tell, twice a second at most.
"""

from __future__ import annotations

import contextlib
import html
import importlib
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from obhut.client.registry import Place
from obhut.errors import ObhutError
from obhut.host.waiting import in_notebook

from .history import History, Round

_ASK_SECONDS = 0.5
"""How often workers are asked how much is done."""


class Reporter:
    """Who says how a training comes along; this one says nothing."""

    def begins(self, number: int) -> None:
        """Say that a round begins."""

    def over(self, report: Round) -> None:
        """Say that a round is over."""

    def says(self, text: str) -> None:
        """Say something else, once."""

    def done(self, share: float) -> None:
        """Say what share of the round is done, from 0 to 1."""


class _Lines(Reporter):
    """Says each round in a line.

    Args:
        rounds: how many there are.
        owners: how many.
    """

    def __init__(self, rounds: int, owners: int) -> None:
        self._rounds, self._owners = rounds, owners

    def over(self, report: Round) -> None:
        """Write a line."""
        self.says(line_of(report, self._rounds, self._owners))

    def says(self, text: str) -> None:
        """Write a line."""
        print(text, file=sys.stderr, flush=True)  # noqa: T201 # for who reads it


class _Cell(_Lines):
    """A table in a notebook, which changes in place.

    Args:
        rounds: how many there are.
        owners: how many.
        history: the rounds.
    """

    def __init__(self, rounds: int, owners: int, history: History) -> None:
        super().__init__(rounds, owners)
        display: Any = importlib.import_module("IPython.display")  # in a notebook only
        self._html = display.HTML
        self._history = history
        self._number, self._share = 0, 0.0
        self._said: list[str] = []
        self._line = ""
        self._shown = display.display(display.HTML(""), display_id=True)

    def _show(self) -> None:
        said = "".join(f"<p>{html.escape(one)}</p>" for one in self._said)
        self._shown.update(
            self._html(
                f"{said}<p><progress max='{self._rounds}' value='{self._share:.2f}' "
                f"style='width:15em'></progress> {html.escape(self._line)}</p>"
                f"{self._history._repr_html_()}"
            )
        )

    def says(self, text: str) -> None:
        """Write a line above the bar."""
        self._said.append(text)
        self._show()

    def begins(self, number: int) -> None:
        """Take in which round runs."""
        self._number = max(number, 1)

    def done(self, share: float) -> None:
        """Move the bar within a round."""
        self._share = self._number - 1 + share
        self._show()

    def over(self, report: Round) -> None:
        """Show the rounds that are over."""
        self._line = line_of(report, self._rounds, self._owners)
        self._share = report.number
        self._show()


def line_of(report: Round, rounds: int, owners: int) -> str:
    """Return what is said of a round that is over.

    Args:
        report: the round.
        rounds: how many there are.
        owners: how many.
    """
    first, *rest = str(report).split("  ")
    took_part = f"{owners - report.non_finite}/{owners} owners"
    if not report.number:
        return "  ".join([f"{first}/{rounds}", *rest])
    return "  ".join([f"{first}/{rounds}", took_part, *rest])


@contextlib.contextmanager
def reporting(
    rounds: int,
    owners: int,
    workers: Sequence[Place],
    history: History,
    *,
    progress: bool = True,
) -> Iterator[Reporter]:
    """Say how a training comes along, until the end of a ``with`` block.

    Args:
        rounds: how many there are.
        owners: how many take part in each.
        workers: theirs, as far as they are open.
        history: the rounds that are over.
        progress: False to say nothing.
    """
    if not progress:
        yield Reporter()
        return
    if in_notebook():
        cell = _Cell(rounds, owners, history)
        with _asking(workers, cell):
            yield cell
        return
    yield _Lines(rounds, owners)


@contextlib.contextmanager
def _asking(workers: Sequence[Place], reporter: Reporter) -> Iterator[None]:
    """Ask workers how much is done, in a thread, and say it."""
    over = threading.Event()

    def ask() -> None:
        while not over.wait(_ASK_SECONDS):
            shares: list[float] = []
            for worker in workers:
                with contextlib.suppress(ObhutError):
                    share = worker.session.progress()
                    shares += [] if share is None else [share]
            if shares and not over.is_set():
                reporter.done(sum(shares) / len(shares))

    thread = threading.Thread(target=ask, name="obhut progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
