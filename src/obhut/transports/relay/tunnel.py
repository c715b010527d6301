"""A way to a worker that is attached to a relay, as an address on this machine.

Rules:

- What goes through is TLS with the worker itself: the relay can lose it, and that is
  all. Who the worker is decides the certificate that the channel is pinned to.
- The address is a socket in a folder that only this user can enter.
- Each connection to it is one through the relay, over a channel of its own: what
  broke is made anew when who uses it connects again.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc

from obhut.errors import ObhutError, TransportError
from obhut.identity.identity import Identity
from obhut.identity.peers import Peer
from obhut.transports.grpc.client import LASTING, GrpcTransport, channel
from obhut.transports.grpc.credentials import channel_credentials

from .messages import CONNECT, WORKER_KEY, Carried
from .splice import Dial, Source, Splice

_LONGEST_PATH = 100
"""Bytes of a socket's path. The system's limit is 107."""


def private_folder() -> Path:
    """Make a folder for a socket, which only this user can enter.

    Duty: remove it.
    """
    folder = tempfile.mkdtemp(prefix="obhut-")
    if len(folder) + 2 > _LONGEST_PATH:
        Path(folder).rmdir()
        folder = tempfile.mkdtemp(prefix="obhut-", dir="/tmp")  # mode 0700
    return Path(folder)


class Dialler:
    """Connects to an attached worker through a relay elsewhere.

    Args:
        relay: ``host:port``.
        identity: who connects.
        peer: who the relay is.
        worker: the attached worker's id.
    """

    def __init__(self, relay: str, identity: Identity, peer: Peer, worker: str) -> None:
        self._relay = relay
        self._credentials, self._options = channel_credentials(identity, peer)
        self._worker = worker

    def __call__(self, source: Source) -> Carried:
        """Connect."""
        return _Call(
            channel(self._relay, self._credentials, self._options),
            source,
            self._worker,
        )


class _Call:
    """A connection over a channel of its own."""

    def __init__(self, channel: grpc.Channel, source: Source, worker: str) -> None:
        method: grpc.StreamStreamMultiCallable[bytes, bytes]
        method = channel.stream_stream(CONNECT)
        self._channel = channel
        self._call = method(
            source, metadata=((WORKER_KEY, worker),), wait_for_ready=False
        )

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._call)

    def cancel(self) -> None:
        """End the connection and its channel."""
        self._call.cancel()
        self._channel.close()


class Tunnel:
    """An address on this machine that leads to an attached worker.

    Duty: close it.

    Args:
        dial: connects to the worker.
        through: what the relay is called in texts.

    Attributes:
        target: the address, as gRPC takes it.
        through: likewise.
        trouble: why the last connection could not be made; None if it could.
    """

    def __init__(self, dial: Dial, through: str) -> None:
        self.through = through
        self.trouble: grpc.RpcError | ObhutError | None = None
        self._dial = dial
        folder = private_folder()
        self._remove = weakref.finalize(self, shutil.rmtree, folder, True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / "s"))
        self._listener.listen()
        self.target = f"unix:{folder / 's'}"
        self._lock = threading.Lock()
        self._open: dict[Splice, threading.Thread] = {}
        self._closed = False
        self._thread = threading.Thread(
            target=self._admit, name="obhut-tunnel", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Cut all connections and take no more."""
        with self._lock:
            self._closed = True
            connections = dict(self._open)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for splice, thread in connections.items():
            splice.end()
            thread.join()
        self._remove()

    def _admit(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            splice = Splice(near, self._begun)
            thread = threading.Thread(target=self._carry, args=(splice,), daemon=True)
            with self._lock:
                if self._closed:
                    splice.close()
                    return
                self._open[splice] = thread
                thread.start()

    def _carry(self, splice: Splice) -> None:
        try:
            splice.run()
        except (grpc.RpcError, ObhutError) as error:
            if not _is_cut(error):
                self.trouble = error  # before who is here can see that it ends
        finally:
            splice.close()
            with self._lock:
                del self._open[splice]

    def _begun(self, source: Source) -> Carried:
        self.trouble = None
        return self._dial(source)


def _is_cut(error: grpc.RpcError | ObhutError) -> bool:
    """Tell whether one of the ends let a connection go, and not the relay."""
    # A failed call is its own exception, which the stubs do not know.
    code = getattr(error, "code", lambda: None)()
    return code is grpc.StatusCode.CANCELLED


class TunnelTransport(GrpcTransport):
    """A client's way to a worker through a relay.

    Args:
        tunnel: leads to the worker; it is closed with the way.
        credentials, options, worker, address: as for ``GrpcTransport``.
        reconnect_seconds, reply_bytes: likewise.
    """

    def __init__(
        self,
        tunnel: Tunnel,
        credentials: grpc.ChannelCredentials,
        options: Sequence[tuple[str, str | int]] = (),
        **more: Any,  # as GrpcTransport takes them, which is about to take others
    ) -> None:
        super().__init__(tunnel.target, credentials, options, **more)
        self._tunnel = tunnel

    def close(self) -> None:
        """Give the way up, and the tunnel."""
        super().close()
        self._tunnel.close()

    def _translated(self, failure: grpc.RpcError) -> tuple[ObhutError, bool]:
        """Return what the relay says, or else what came from the worker."""
        trouble = self._tunnel.trouble
        if trouble is None:
            return super()._translated(failure)
        return relayed(trouble, self.worker, self._tunnel.through)

    @property
    def _place(self) -> str:
        return f"through {self._tunnel.through}"


def relayed(
    trouble: grpc.RpcError | ObhutError, worker: str, through: str
) -> tuple[ObhutError, bool]:
    """Return the error for a connection that a relay did not make.

    Args:
        trouble: what came of it.
        worker: who was to be reached.
        through: what the relay is called.

    Returns:
        the error, and whether a retry can not mend it.
    """
    begin = f"{worker} through {through}"
    if isinstance(trouble, ObhutError):
        return TransportError(f"{begin}: {trouble}"), False
    # A failed call is its own exception, which the stubs do not know.
    call: Any = trouble
    kind = LASTING.get(call.code())
    text = f"{begin}: {call.details()}"
    return (TransportError(text), False) if kind is None else (kind(text), True)
