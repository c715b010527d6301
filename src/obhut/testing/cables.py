"""A TCP network in front of an address, which fails where a test says so.

Rules:

- Where a connection breaks is a number of bytes in one direction: exactly so many
  go through, whatever they belong to, and then both ends are reset.
- A network that swallows keeps its connections open and lets nothing through.
"""

from __future__ import annotations

import contextlib
import enum
import socket
import struct
import threading
from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import NamedTuple

from obhut.host.closing import Closing

_AT_ONCE = 1 << 16
_PATIENCE_SECONDS = 15.0


class Direction(enum.Enum):
    """Which way bytes go.

    Attributes:
        THERE: to the address.
        BACK: from it.
    """

    THERE = enum.auto()
    BACK = enum.auto()


class Cut(NamedTuple):
    """Where one connection breaks.

    Attributes:
        direction: the way whose bytes are counted.
        after: how many of them go through.
    """

    direction: Direction
    after: int


def random_cuts(
    seed: int, count: int, where: Mapping[Direction, Sequence[range]]
) -> list[Cut]:
    """Return where so many connections break, the same for the same seed.

    Args:
        seed: what the positions come from.
        count: how many connections break.
        where: for each direction, the ranges in one of which each position is.
    """
    random = Random(seed)  # noqa: S311 # a test's, not a secret
    ways = tuple(where)
    cuts = []
    for _ in range(count):
        way = random.choice(ways)
        cuts.append(Cut(way, random.choice(random.choice(where[way]))))
    return cuts


class Cable(Closing):
    """A network that can be cut and that can swallow.

    Duty: close it.

    Args:
        target: ``host:port`` that it forwards to.
        cuts: where each next connection breaks; those after the last don't.

    Attributes:
        address: where it listens, as ``host:port``.
        connections: how many connections were made through it.
        broken: how many of them broke where ``cuts`` says.
        cut_by_hand: how often ``cut_next`` did.
    """

    def __init__(self, target: str, cuts: Iterable[Cut] = ()) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._cuts = iter(cuts)
        self._lock = threading.Condition()
        self._swallowing = False
        self._closed = False
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.connections = 0
        self.broken = 0
        self.cut_by_hand = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def swallow(self) -> None:
        """Let nothing through from now on, and keep all connections open."""
        with self._lock:
            self._swallowing = True

    def pass_on(self) -> None:
        """Let through what came meanwhile, and what comes."""
        with self._lock:
            self._swallowing = False
            self._lock.notify_all()

    def cut(self) -> None:
        """Break all connections now."""
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for one in sockets:
            _reset(one)

    def cut_next(self) -> None:
        """Break all connections, as soon as there is one.

        Raises:
            TimeoutError: if there is none in time.
        """
        with self._lock:
            if not self._lock.wait_for(lambda: self._sockets, _PATIENCE_SECONDS):
                raise TimeoutError("nobody connects")
            self.cut_by_hand += 1
        self.cut()

    def close(self) -> None:
        """Break all connections and take no more."""
        with self._lock:
            self._closed = True
            self._swallowing = False
            self._lock.notify_all()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        self.cut()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target)
            except OSError:
                _reset(near)
                near.close()
                continue
            with self._lock:
                self.connections += 1
                cut = next(self._cuts, None)
                self._sockets |= {near, far}
                self._lock.notify_all()
            for source, sink, way in (
                (near, far, Direction.THERE),
                (far, near, Direction.BACK),
            ):
                left = cut.after if cut is not None and cut.direction is way else None
                thread = threading.Thread(
                    target=self._pump, args=(source, sink, left), daemon=True
                )
                self._threads.append(thread)
                thread.start()

    def _pump(
        self, source: socket.socket, sink: socket.socket, left: int | None
    ) -> None:
        """Pass on what comes, ``left`` bytes of it at most."""
        with contextlib.suppress(OSError):
            while left is None or left > 0:
                data = source.recv(_AT_ONCE if left is None else min(left, _AT_ONCE))
                if not data:
                    break
                with self._lock:
                    self._lock.wait_for(lambda: not self._swallowing)
                sink.sendall(data)
                left = None if left is None else left - len(data)
        with self._lock:
            ours = source in self._sockets
            self._sockets -= {source, sink}
            if left == 0 and ours:
                self.broken += 1
        for one in (source, sink):
            _reset(one)
        # Only who read from it closes it, so that no number is used twice.
        source.close()


def _reset(connection: socket.socket) -> None:
    """End a connection as a network does that breaks: with a reset, if at all."""
    with contextlib.suppress(OSError):
        linger = struct.pack("ii", 1, 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        connection.shutdown(socket.SHUT_RDWR)
