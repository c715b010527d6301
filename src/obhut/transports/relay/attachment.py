"""A worker that dials out: it attaches to a relay and takes its connections.

Rules:

- The relay is one pinned peer, and who comes through it is nobody yet: each
  connection leads into the worker's own server, where its TLS begins.
- What breaks is made anew: at once at first, then after longer and longer pauses of
  a few seconds at most. A path that is dead is noticed in 30 seconds.
- The relay is not trusted with this machine: it has a number of connections at a
  time, and what it says beyond the protocol ends the attachment.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc

from obhut.errors import ObhutError, RemoteProtocolError, TransportError
from obhut.identity.identity import Identity
from obhut.identity.peers import Peer
from obhut.transports.grpc import proxies
from obhut.transports.grpc.client import channel
from obhut.transports.grpc.credentials import channel_credentials

from . import messages as relay_messages
from .messages import ACCEPT, ATTACH, NUMBER_KEY, Attached, Called, Carried
from .splice import Source, Splice

CONNECTIONS = 256
"""Connections that are taken from the relay at a time."""

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 3.0
"""Seconds before another try: after the first that failed, and at most."""

_LASTED = 10.0
"""Seconds after which an attachment that ends counts as a good one."""


class Attachment:
    """A worker's place at a relay.

    Duty: close it.

    Args:
        relay: ``host:port``.
        identity: the worker's.
        peer: returns who the relay is, or raises if it is not pinned.
        server: the socket at which the worker's own server listens.
        attached: called each time the worker is attached.
        log: takes a line for the operator.
    """

    def __init__(
        self,
        relay: str,
        identity: Identity,
        peer: Callable[[], Peer],
        server: Path,
        *,
        attached: Callable[[], None] = lambda: None,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._relay = relay
        self._identity = identity
        self._peer = peer
        self._server = str(server)
        self._attached = attached
        self._log = log
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._call: grpc.Call | None = None
        self._open: dict[Splice, threading.Thread] = {}
        self._thread = threading.Thread(
            target=self._run, name="obhut-attach", daemon=True
        )

    def start(self) -> None:
        """Begin to attach."""
        self._thread.start()

    def close(self) -> None:
        """Leave the relay, and cut what came through it."""
        with self._lock:
            self._closing.set()
            call = self._call
        if call is not None:
            call.cancel()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        pause, said = FIRST_PAUSE, ""
        while not self._closing.is_set():
            began = time.monotonic()
            was = False
            try:
                for notice in self._notices():
                    if isinstance(notice, Attached):
                        was = True
                        self._log(f"attached to {self._relay} as {notice.name}")
                        self._attached()
            except grpc.RpcError as failure:
                # A failed stream is its own exception, which the stubs do not know.
                call: Any = failure
                why = f"{call.details()}{proxies.through(self._relay)}"
            except ObhutError as error:
                why = str(error)
            else:
                why = "it ended that"
            if self._closing.is_set():
                return
            if was and time.monotonic() - began > _LASTED:
                pause = FIRST_PAUSE
            if was or why != said:  # once, and not at each try
                state = "is no longer" if was else "can not be"
                self._log(f"{state} attached to {self._relay}, will try again: {why}")
                said = why
            self._closing.wait(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    def _notices(self) -> Iterator[relay_messages.Notice]:
        """Attach, yield what the relay says, and take its connections meanwhile."""
        credentials, options = channel_credentials(self._identity, self._peer())
        with channel(self._relay, credentials, options) as opened:
            method: grpc.UnaryStreamMultiCallable[bytes, bytes]
            method = opened.unary_stream(ATTACH)
            call = method(b"", wait_for_ready=False)
            with self._lock:
                if self._closing.is_set():
                    call.cancel()
                self._call = call
            try:
                first = True
                for text in call:
                    notice = relay_messages.decode(text)
                    if isinstance(notice, Attached) != first:
                        raise RemoteProtocolError("the relay's notices are in disorder")
                    first = False
                    if isinstance(notice, Called):
                        self._take(opened, notice.number)
                    yield notice
            finally:
                call.cancel()
                self._cut()

    def _take(self, opened: grpc.Channel, number: str) -> None:
        """Begin to serve a connection."""
        method: grpc.StreamStreamMultiCallable[bytes, bytes]
        method = opened.stream_stream(ACCEPT)

        def dial(source: Source) -> Carried:
            return method(source, metadata=((NUMBER_KEY, number),))

        near = socket.socket(socket.AF_UNIX)
        splice = Splice(near, dial)
        thread = threading.Thread(target=self._carry, args=(splice,), daemon=True)
        with self._lock:
            admitted = len(self._open) < CONNECTIONS
            if admitted:
                self._open[splice] = thread
        try:
            if not admitted:
                raise TransportError(f"at most {CONNECTIONS} connections are taken")
            near.setblocking(False)  # a server that is busy is no reason to wait here
            near.connect(self._server)
            near.setblocking(True)
        except (OSError, TransportError) as error:
            self._log(f"a connection through {self._relay} was not taken: {error}")
            with self._lock:
                self._open.pop(splice, None)
            splice.close()
            return
        thread.start()

    def _carry(self, splice: Splice) -> None:
        try:
            # What ends it is seen by both sides, and each says so where it matters.
            with contextlib.suppress(grpc.RpcError):
                splice.run()
        finally:
            splice.close()
            with self._lock:
                del self._open[splice]

    def _cut(self) -> None:
        """End all connections, and wait until they have."""
        with self._lock:
            connections = dict(self._open)
        for splice, thread in connections.items():
            splice.end()
            thread.join()
