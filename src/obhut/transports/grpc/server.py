"""The gRPC server in front of a node: authenticates, admits and cuts up streams.

Rules:

- The sender of a message is who the certificate says; no field names it.
- Who it is is asked again for each parcel: a peer can be removed meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from typing import TypeAlias

import grpc

from obhut.errors import LimitError, RemoteProtocolError, TransportError

from . import wire
from .client import EXCHANGE
from .node import Node, refusal

DESCRIBE = "/obhut.Worker/Describe"
"""Who the worker is and which data sets it has, as far as they are public."""

HEALTH = "/grpc.health.v1.Health/Check"
"""The health service that load balancers ask."""

_SERVING = b"\x08\x01"
"""``HealthCheckResponse(status=SERVING)``. Source: grpc/health/v1/health.proto."""

STREAMS_EACH = 32
"""Connections of one principal that are served at a time."""

Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"
"""What serves one method."""


class Server:
    """The gRPC server in front of a node.

    Args:
        node: where parcels go.
        listen: ``host:port``; port 0 for any.
        credentials: which demand a certificate of every client.
        principal: tells who a call is from, or ends it.
        describe: returns what ``Describe`` answers to a principal.
        frame_bytes: bytes of tensors in one parcel.
        threads: streams that are served at a time.
    """

    def __init__(
        self,
        node: Node,
        listen: str,
        credentials: grpc.ServerCredentials,
        principal: Callable[[grpc.ServicerContext], str],
        describe: Callable[[str], bytes],
        *,
        frame_bytes: int = 1 << 36,
        threads: int = 256,
    ) -> None:
        self._node = node
        self._principal = principal
        self._describe = describe
        self._frame_bytes = frame_bytes
        self._lock = threading.Lock()
        self._streams: list[_Stream] = []
        self._stopping = False
        self._pool = futures.ThreadPoolExecutor(threads, thread_name_prefix="obhut")
        self._server = grpc.server(
            self._pool,
            handlers=[_Methods(self._methods())],
            maximum_concurrent_rpcs=threads,
            options=(
                ("grpc.max_receive_message_length", wire.MESSAGE_BYTES),
                ("grpc.max_send_message_length", wire.MESSAGE_BYTES),
                ("grpc.so_reuseport", 0),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.keepalive_time_ms", 20_000),
                ("grpc.keepalive_timeout_ms", 10_000),
            ),
        )
        host = listen.rpartition(":")[0]
        try:
            self.port = self._server.add_secure_port(listen, credentials)
        except RuntimeError as error:
            raise TransportError(
                f"nobody can listen at {listen}: the port is taken, or the address is "
                "not this machine's"
            ) from error
        self.address = f"{host}:{self.port}"

    def start(self) -> None:
        """Begin to serve."""
        self._server.start()

    def stop(self, grace: float = 10.0) -> None:
        """Take no more, finish what was accepted for ``grace`` seconds, and end."""
        ended = self._server.stop(grace)
        with self._lock:
            self._stopping = True
            idle = [stream for stream in self._streams if not stream.busy]
        for stream in idle:
            stream.context.cancel()
        ended.wait()
        self._node.close()
        self._pool.shutdown(wait=False)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the server has ended, for ``timeout`` seconds at most."""
        self._server.wait_for_termination(timeout)

    def _methods(self) -> Mapping[str, Handler]:
        return {
            EXCHANGE: grpc.stream_stream_rpc_method_handler(self._exchange),
            DESCRIBE: grpc.unary_unary_rpc_method_handler(self._described),
            HEALTH: grpc.unary_unary_rpc_method_handler(lambda *_: _SERVING),
        }

    def _exchange(
        self, chunks: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        stream = _Stream(self._principal(context), context)
        if not self._node.knows(stream.principal):
            context.abort(
                grpc.StatusCode.PERMISSION_DENIED, "this worker has nothing for you"
            )
        self._admit(stream)
        assembler = wire.Assembler(self._frame_bytes, reuse=True)
        try:
            for chunk in chunks:
                try:
                    complete = assembler.feed(chunk)
                except LimitError as error:
                    self._principal(context)
                    yield from wire.cut(refusal(error))
                    continue
                if complete is None:
                    continue
                stream.busy = True
                # Asked again for each: a peer can be removed meanwhile.
                sender = self._principal(context)
                yield from wire.cut(*self._node.exchange(sender, *complete))
                stream.busy = False
                if self._stopping:
                    return
        except RemoteProtocolError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        finally:
            with self._lock:
                self._streams.remove(stream)

    def _admit(self, stream: _Stream) -> None:
        """Count a stream; end it if its principal has too many."""
        with self._lock:
            theirs = sum(s.principal == stream.principal for s in self._streams)
            if theirs < STREAMS_EACH and not self._stopping:
                self._streams.append(stream)
                return
        if self._stopping:
            stream.context.abort(grpc.StatusCode.UNAVAILABLE, "the worker stops")
        stream.context.abort(
            grpc.StatusCode.UNAVAILABLE,  # dead ones among them will be noticed
            f"at most {STREAMS_EACH} connections of one client are served",
        )

    def _described(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        return self._describe(self._principal(context))


class _Stream:
    """A connection that is being served."""

    def __init__(self, principal: str, context: grpc.ServicerContext) -> None:
        self.principal = principal
        self.context = context
        self.busy = False


class _Methods(grpc.GenericRpcHandler):
    """Finds a method by its name; there is no generated code."""

    def __init__(self, methods: Mapping[str, Handler]) -> None:
        self._methods = methods

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """Return the method's handler, or None where there is none."""
        return self._methods.get(handler_call_details.method)
