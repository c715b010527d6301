"""The gRPC server in front of a node: authenticates, admits and cuts up streams.

Rules:

- The sender of a message is who the certificate says; no field names it.
- Who it is is asked again for each parcel: a peer can be removed meanwhile.
- What a stream may cost, and how long it may stand still, is for ``streams``.
- No thread waits for a message before it is known who is to send it, and that they
  have something to do here: each method is served as one that takes a stream. What a
  message could not change is answered without it.
- Who asks whether the worker is well is answered by threads of their own.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import TypeAlias

import grpc

from obhut.errors import LimitError, RemoteProtocolError, TransportError
from obhut.host.wording import printable
from obhut.protocol.codec import Frame

from . import wire
from .arriving import Arriving
from .client import CANCEL, CANCELS, EXCHANGE, SESSION, WATCH, WATCHES
from .node import Node, refusal
from .streams import State, Stream, Streams

_LOG = logging.getLogger("obhut.worker")

DESCRIBE = "/obhut.Worker/Describe"
"""Who the worker is and which data sets it has, as far as they are public."""

HEALTH = "/grpc.health.v1.Health/Check"
"""The health service that load balancers ask."""

_SERVING = b"\x08\x01"
"""``HealthCheckResponse(status=SERVING)``. Source: grpc/health/v1/health.proto."""

_SPARE = 16
"""Threads for calls that are about to be refused."""

_PROBES = 4
"""Threads that answer health checks."""

_STREAMS_EACH = 1024
"""Calls that one connection may have at a time; an attached worker's has the most."""

HANDSHAKE_SECONDS = 10
"""How long a connection may take to show who it is from."""

Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"
"""What serves one method."""


class Server:
    """The gRPC server in front of a node.

    Args:
        node: where parcels go.
        listen: ``host:port``; port 0 for any; None to listen at ``socket`` only.
        credentials: which demand a certificate of every client.
        caller: returns what tells who a call is from each time it is asked, or ends
            it.
        describe: returns what ``Describe`` answers to a principal.
        socket: a socket's path, to listen there too. All that is asked of who comes
            over the network is asked of who comes here.
        more: methods of others that are served at the same port, by name.
        frame_bytes: bytes of tensors in one parcel.
        requester_bytes: bytes of all parcels of one principal that are under way.
        waiting_seconds: how long a stream is kept on which nothing is said, and no
            session is used.
        clock: tells the time in seconds, and does not go back.
        streams: streams of parcels that are served at a time.
        threads: those that ``more`` may keep at a time.
    """

    def __init__(
        self,
        node: Node,
        listen: str | None,
        credentials: grpc.ServerCredentials,
        caller: Callable[[grpc.ServicerContext], Callable[[], str]],
        describe: Callable[[str], bytes],
        *,
        socket: Path | None = None,
        more: Mapping[str, Handler] = {},
        frame_bytes: int = 1 << 36,
        requester_bytes: int = 1 << 36,
        waiting_seconds: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
        streams: int = 256,
        threads: int = 0,
    ) -> None:
        self._node = node
        self._caller = caller
        self._describe = describe
        self._more = more
        self._frame_bytes = frame_bytes
        self._streams = Streams(
            requester_bytes, waiting_seconds, clock, streams, node.attends
        )
        threads += streams + _SPARE
        self._pool = futures.ThreadPoolExecutor(threads, thread_name_prefix="obhut")
        self._probes = futures.ThreadPoolExecutor(_PROBES, thread_name_prefix="obhut")
        self._server = grpc.server(
            self._pool,
            handlers=[_Methods(self._methods())],
            # Far more than are served: who is about to be refused waits in line, and
            # is no reason to refuse a health check.
            maximum_concurrent_rpcs=2 * threads,
            options=(
                ("grpc.max_receive_message_length", wire.MESSAGE_BYTES),
                ("grpc.max_send_message_length", wire.MESSAGE_BYTES),
                ("grpc.max_concurrent_streams", _STREAMS_EACH),
                ("grpc.so_reuseport", 0),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.keepalive_time_ms", 20_000),
                ("grpc.keepalive_timeout_ms", 10_000),
                ("grpc.http2.ping_timeout_ms", 10_000),
                # Who connects and says nothing must not keep a socket for 2 minutes.
                ("grpc.server_handshake_timeout_ms", HANDSHAKE_SECONDS * 1_000),
            ),
        )
        self.address = ""
        if listen is not None:
            port = self._listen(listen, credentials)
            self.address = f"{listen.rpartition(':')[0]}:{port}"
        if socket is not None:
            self._listen(f"unix:{socket}", credentials)

    def _listen(self, at: str, credentials: grpc.ServerCredentials) -> int:
        try:
            return self._server.add_secure_port(at, credentials)
        except RuntimeError as error:
            raise TransportError(
                f"nobody can listen at {at}: the port is taken, or the address is "
                "not this machine's"
            ) from error

    def start(self) -> None:
        """Begin to serve."""
        self._server.start()

    def stop(self, grace: float = 10.0) -> None:
        """Take no more, finish what was accepted for ``grace`` seconds, and end."""
        ended = self._server.stop(grace)
        self._streams.close()
        ended.wait()
        self._node.close()
        self._pool.shutdown(wait=False)
        self._probes.shutdown(wait=False)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the server has ended, for ``timeout`` seconds at most."""
        self._server.wait_for_termination(timeout)

    def _methods(self) -> Mapping[str, Handler]:
        def healthy(_: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            self._caller(context)()
            return _SERVING

        # Where gRPC does not know this, the other threads answer.
        vars(healthy)["experimental_thread_pool"] = self._probes
        return {
            EXCHANGE: grpc.stream_stream_rpc_method_handler(self._exchange),
            # gRPC sends an only answer by itself: no thread waits until it is taken.
            DESCRIBE: grpc.stream_unary_rpc_method_handler(self._described),
            CANCEL: grpc.stream_unary_rpc_method_handler(self._cancelled),
            WATCH: grpc.stream_unary_rpc_method_handler(self._watched),
            HEALTH: grpc.stream_unary_rpc_method_handler(healthy),
            **self._more,
        }

    def _exchange(
        self, chunks: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        who = self._caller(context)
        stream = self._admitted(who(), context)

        def place(header: bytes, lengths: tuple[int, ...]) -> Arriving:
            return self._node.place(who(), header, lengths)

        assembler = wire.Assembler(self._frame_bytes, place)
        complete: tuple[bytes, Arriving | tuple[memoryview, ...]] | None = None
        try:
            self._attend(stream, context)
            for chunk in chunks:
                stream.receive(len(chunk))
                try:
                    complete = assembler.feed(chunk)
                except LimitError as error:
                    who()
                    yield from _sent(stream, refusal(error))
                    stream.finish()
                    continue
                if complete is None:
                    continue
                stream.turn(State.COMPUTING)
                # Asked again for each: a peer can be removed meanwhile.
                sender = who()
                came, complete = complete, None
                yield from self._answered(stream, sender, *came)
                del came
                stream.finish()
                if self._streams.closed:
                    return
        except RemoteProtocolError as error:
            called = self._node.called(stream.principal)
            _LOG.info("%s: %s", called, printable(str(error)))
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except LimitError as error:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        finally:
            assembler.drop()
            if complete is not None and isinstance(complete[1], Arriving):
                complete[1].drop()  # all had come, and nobody took it
            self._streams.remove(stream)
            self._node.hung_up(stream)

    def _attend(self, stream: Stream, context: grpc.ServicerContext) -> None:
        """Take in which session a stream is for, if it says so; end it without one."""
        name = dict(context.invocation_metadata() or ()).get(SESSION)
        if name is None:
            return
        if not self._node.attend(stream.principal, str(name), stream):
            context.abort(grpc.StatusCode.NOT_FOUND, "the session is not there")
        stream.turn(State.WAITING)

    def _answered(
        self,
        stream: Stream,
        sender: str,
        header: bytes,
        frames: Arriving | tuple[memoryview, ...],
    ) -> Iterator[bytes]:
        """Yield the answer to a parcel. What was held for it is let go of in the end.

        Raises:
            LimitError: if the answer is too much, with what else is under way.
        """
        with contextlib.ExitStack() as sent:
            said, body = self._node.exchange(sender, header, frames, sent, stream)
            del header, frames
            stream.answer(len(said) + sum(map(len, body)))
            yield from _sent(stream, said, body)
            del said, body

    def expire(self) -> None:
        """End the streams that stand still."""
        self._streams.expire()

    def _admitted(self, principal: str, context: grpc.ServicerContext) -> Stream:
        """Return a stream that is served, or end the call."""
        if not self._node.knows(principal):
            denied = self._node.turned_away(principal)
            context.abort(grpc.StatusCode.PERMISSION_DENIED, str(denied))
        try:
            return self._streams.admit(principal, context.cancel)
        except LimitError as error:
            context.abort(grpc.StatusCode.UNAVAILABLE, str(error))

    def _cancelled(self, _: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        self._node.cancel(*self._beside(context, CANCELS))
        return b""

    def _watched(self, _: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        return self._node.watch(*self._beside(context, WATCHES))

    def _beside(self, context: grpc.ServicerContext, key: str) -> tuple[str, bytes]:
        """Return who says something beside the streams, and the message."""
        principal = self._caller(context)()
        if not self._node.admits(principal):
            denied = self._node.turned_away(principal)
            context.abort(grpc.StatusCode.PERMISSION_DENIED, str(denied))
        said = dict(context.invocation_metadata()).get(key, b"")
        return principal, said if isinstance(said, bytes) else b""

    def _described(self, _: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        return self._describe(self._caller(context)())


def _sent(
    stream: Stream, header: bytes, frames: Sequence[Frame] = ()
) -> Iterator[bytes]:
    """Yield the chunks of an answer, each as soon as the last one was taken."""
    for chunk in wire.cut(header, frames):
        stream.turn(State.SENDING)
        yield chunk


class _Methods(grpc.GenericRpcHandler):
    """Finds a method by its name; there is no generated code."""

    def __init__(self, methods: Mapping[str, Handler]) -> None:
        self._methods = methods

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """Return the method's handler, or None where there is none."""
        return self._methods.get(handler_call_details.method)
