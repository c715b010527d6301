"""What is said about relayed connections; what goes through them is opaque.

Rules:

- Who attaches, connects or accepts is who the certificate says; no field names it.
- Bytes of a connection travel as they are, one gRPC message a piece.

``Attach`` is called by a worker that dials out. It answers for as long as the worker
is attached: ``Attached`` first, then ``Called`` for each connection that somebody
wants. ``Connect`` is called by who wants one, with the worker's id in the metadata;
``Accept`` by the worker, with the connection's number. From there on whatever one of
them sends the other receives.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeAlias

import msgspec
from msgspec import Struct

from obhut.errors import RemoteProtocolError

ATTACH = "/obhut.Relay/Attach"
CONNECT = "/obhut.Relay/Connect"
ACCEPT = "/obhut.Relay/Accept"

WORKER_KEY = "obhut-worker"
"""The metadata of ``Connect`` that says which worker is wanted, by id."""

NUMBER_KEY = "obhut-connection"
"""The metadata of ``Accept`` that says which connection is accepted."""


class Attached(Struct, frozen=True, tag=True):
    """The worker is attached.

    Attributes:
        name: what the relay calls it.
    """

    name: str


class Called(Struct, frozen=True, tag=True):
    """Somebody wants a connection.

    Attributes:
        number: by which the worker accepts it, once.
    """

    number: str


Notice: TypeAlias = Attached | Called


class Carried(Protocol):
    """What comes out of a relayed connection."""

    def __iter__(self) -> Iterator[bytes]:
        """Return what yields the bytes as they come.

        Raises:
            grpc.RpcError: from its ``next``, if the relay ends it with an error.
            ObhutError: likewise, if the relay is in this process.
        """

    def cancel(self) -> object:
        """End the connection, from whichever thread."""


def encode(notice: Notice) -> bytes:
    """Write a notice."""
    return msgspec.json.encode(notice)


def decode(text: bytes) -> Notice:
    """Read a notice.

    Raises:
        RemoteProtocolError: if it is none.
    """
    try:
        return _DECODER.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RemoteProtocolError("the relay says what is not a notice") from error


_DECODER: msgspec.json.Decoder[Notice] = msgspec.json.Decoder(Notice)
