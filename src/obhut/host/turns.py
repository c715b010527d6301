"""Whose turn it is, in the order in which they came.

Rule: who has just had a turn waits behind those who came meanwhile. With a plain lock,
a thread that takes it again and again keeps all others out.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator


class Turns:
    """A lock that is handed to whoever has waited longest."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Event] = deque()

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return len(self._waiting)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn, and have it."""
        called = threading.Event()
        with self._lock:
            if self._taken:
                self._waiting.append(called)
            else:
                self._taken = True
                called.set()
        try:
            called.wait()
            yield
        finally:
            with self._lock:
                if called in self._waiting:
                    # Something, such as a keyboard's interrupt, ended the wait.
                    self._waiting.remove(called)
                elif self._waiting:
                    self._waiting.popleft().set()
                else:
                    self._taken = False
