"""Joins a socket and a relayed connection.

Rule: a piece is read when the one before has been taken, so that nothing piles up.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import TypeAlias

from .messages import Carried

PIECE_BYTES = 1 << 18
"""Bytes that are read from a socket at a time."""


class Source:
    """What is read from a socket, by one thread, until it is closed by another.

    Args:
        near: the socket.
    """

    def __init__(self, near: socket.socket) -> None:
        self._near = near
        self._reading = threading.Lock()
        self._over = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with self._reading:
            data = b""
            if not self._over:
                with contextlib.suppress(OSError):
                    data = self._near.recv(PIECE_BYTES)
            if not data:
                self._over = True
                raise StopIteration
            return data

    def end(self) -> None:
        """Shut the socket down, from whichever thread; the one that reads is woken."""
        with contextlib.suppress(OSError):
            self._near.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Shut the socket down, and let it go when nobody reads it any more."""
        self.end()
        with self._reading:  # else its number could be another's while it is read
            self._over = True
            self._near.close()


Dial: TypeAlias = Callable[[Source], Carried]
"""Opens a relayed connection that sends these, and returns what comes."""


class Splice:
    """A socket and a relayed connection, joined.

    Duty: close it, after ``run``.

    Args:
        near: the socket, which is the splice's from here on.
        dial: opens the connection.
    """

    def __init__(self, near: socket.socket, dial: Dial) -> None:
        self._near = near
        self._dial = dial
        self._source = Source(near)
        self._lock = threading.Lock()
        self._carried: Carried | None = None
        self._over = False

    def run(self) -> None:
        """Carry bytes both ways until a side ends.

        Raises:
            grpc.RpcError: if the relay ends the connection with an error.
            ObhutError: likewise.
        """
        with self._lock:
            if self._over:
                return
            self._carried = carried = self._dial(self._source)
        try:
            for data in carried:
                try:
                    self._near.sendall(data)
                except OSError:
                    return  # who was here has gone
        finally:
            carried.cancel()

    def end(self) -> None:
        """End it, from whichever thread."""
        with self._lock:
            self._over = True
            carried = self._carried
        self._source.end()
        if carried is not None:
            carried.cancel()

    def close(self) -> None:
        """End it and let the socket go."""
        self.end()
        self._source.close()
