"""Says what is waited for, to whoever would see nothing happen otherwise.

::

    with Waiting("waiting for bob to join"):
        peer = listener.wait()

Rules:

- Nothing is said in the first two seconds, nor where nothing waits.
- It goes to standard error, never to standard output: in a terminal one line, which
  goes when all waits are over; in a notebook a line each; else a warning of the log
  ``obhut.waiting``.
- Where lines stay, the same is not said twice within ten seconds, whatever was done
  meanwhile; how much is done is said in tenths there.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.status import Status

SECONDS = 2.0
"""How long a wait may be before it is spoken of."""

AGAIN_SECONDS = 10.0
"""How long the same is not said again where lines stay."""

_LOG = logging.getLogger("obhut.waiting")


class _Board:
    """What is waited for at present by all threads, where a person can see it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._texts: list[str] = []
        self._status: Status | None = None
        self._said: dict[str, float] = {}

    def add(self, text: str, about: str = "") -> None:
        """Say that something is waited for.

        Args:
            text: what.
            about: the same of whatever is the same wait; by default the text.
        """
        with self._lock:
            self._texts.append(text)
            if _is_terminal():
                self._show()
            else:
                self._say(text, about or text)

    def remove(self, text: str) -> None:
        """Say of it no more."""
        with self._lock:
            self._texts.remove(text)
            if self._status is not None:
                self._show()

    def _show(self) -> None:
        """Let the line of a terminal say what is on the board."""
        if not self._texts:
            if self._status is not None:
                self._status.stop()
                self._status = None
            return
        # Loaded when there is something to say.
        from rich.console import Console  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        line = Text("; ".join(dict.fromkeys(self._texts)))
        if self._status is None:
            self._status = Console(stderr=True).status(line)
            self._status.start()
        else:
            self._status.update(line)

    def _say(self, text: str, about: str) -> None:
        now = time.monotonic()
        if now - self._said.get(about, -AGAIN_SECONDS) < AGAIN_SECONDS:
            return
        self._said = {
            one: when for one, when in self._said.items() if now - when < AGAIN_SECONDS
        } | {about: now}
        if in_notebook():
            print(text, file=sys.stderr, flush=True)  # noqa: T201 # for who reads it
        else:
            _LOG.warning("%s", text)


def in_notebook() -> bool:
    """Tell whether this process is a notebook's kernel; others may load it too."""
    kernel = sys.modules.get("ipykernel.kernelapp")
    return kernel is not None and bool(kernel.IPKernelApp.initialized())


_BOARD = _Board()


class Waiting:
    """A wait that is spoken of when it takes long. Use it as a context manager.

    Args:
        text: what is waited for.
        seconds: how long nothing is said.
    """

    def __init__(self, text: str, seconds: float = SECONDS) -> None:
        self._text = text
        self._lock = threading.Lock()
        self._said = self._over = False
        self._timer = threading.Timer(seconds, self._begin)
        self._timer.daemon = True

    def start(self) -> Self:
        """Begin to wait."""
        self._timer.start()
        return self

    def end(self) -> None:
        """Wait no more. May be called again, and from any thread."""
        self._timer.cancel()
        with self._lock:
            said, self._said, self._over = self._said, False, True
        if said:
            _BOARD.remove(self._text)

    def _begin(self) -> None:
        with self._lock:
            if not self._over:
                _BOARD.add(self._text)
                self._said = True

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()


def wait_for(
    event: threading.Event,
    text: Callable[[], str],
    timeout: float | None = None,
    done: Callable[[], float | None] = lambda: None,
) -> bool:
    """Wait for an event as ``event.wait`` does, and say so when it takes long.

    Args:
        event: the event.
        text: returns what is waited for; it is asked again from time to time.
        timeout: seconds to wait at most.
        done: returns what share is done, from 0 to 1, None if that is not known; it is
            asked as often, and must not wait.

    Returns:
        whether the event has come.
    """
    end = float("inf") if timeout is None else time.monotonic() + timeout
    said = ""
    try:
        while not event.wait(max(0.0, min(SECONDS, end - time.monotonic()))):
            if time.monotonic() >= end:
                return False
            about = text()
            now = about + _share(done())
            if now != said:
                _BOARD.add(now, about)
                if said:
                    _BOARD.remove(said)
                said = now
        return True
    finally:
        if said:
            _BOARD.remove(said)


def _share(done: float | None) -> str:
    """Say what share is done, if that is known and any is."""
    step = 1 if _is_terminal() else 10
    percent = round(1000 * (done or 0.0)) // (10 * step) * step
    return f": {percent} % done" if percent else ""


def _is_terminal() -> bool:
    """Tell whether somebody sees standard error in a terminal."""
    # None where there is none, and a notebook's own has no isatty in some versions.
    return bool(getattr(sys.stderr, "isatty", bool)())
