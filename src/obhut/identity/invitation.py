"""An invitation as one text to copy, and the proofs and messages that redeem it.

Rules:

- Whoever holds the text can redeem it, once, so it is passed on as a password is.
- A proof is an HMAC-SHA256, keyed with the secret, over who proves it and both
  certificates. It convinces of nothing but those two certificates, in those two
  parts, so it is useless to whoever overhears or forwards it.
- A message is small, and is decoded by table.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import math
import re
import secrets
import socket
import time
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import msgspec

from obhut.errors import InviteError, TransportError

from .certificates import fingerprint

Part: TypeAlias = Literal["host", "guest"]
"""The host made the invitation, the guest redeems it."""

_SECRET = 20
_LARGEST = 8192
_ADDRESS = r"[A-Za-z0-9._:\[\]-]{1,255}:[0-9]{1,5}"
_TEXT = re.compile(
    rf"(?P<body>obhut1/(?P<address>{_ADDRESS})"
    r"/(?P<id>[a-z2-7]{52})/(?P<secret>[a-z2-7]{32}))/(?P<sum>[a-z2-7]{8})",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Invitation:
    """What the guest has to know.

    Leak: ``str`` of it contains the secret; ``repr`` does not.

    Attributes:
        address: where the host listens, as ``host:port``.
        fingerprint: the host's id, the hash of its public key.
        secret: 20 random bytes.
    """

    address: str
    fingerprint: str
    secret: bytes = field(repr=False)

    @classmethod
    def to(cls, address: str, fingerprint: str) -> Invitation:
        """Make an invitation with a new secret.

        Raises:
            InviteError: if a guest could not make out the address.
        """
        split(address)
        return cls(address, fingerprint, secrets.token_bytes(_SECRET))

    @classmethod
    def parse(cls, text: str) -> Invitation:
        """Read the text again. White space that a mail put into it does no harm.

        Raises:
            InviteError: if it is no invitation, or was damaged.
        """
        found = _TEXT.fullmatch("".join(text.split()))
        if found is None:
            raise InviteError(
                "expected a text such as obhut1/host:port/…; copy all of it"
            )
        if not hmac.compare_digest(_sum(found["body"]), found["sum"]):
            raise InviteError("a letter of it was changed or lost; copy it again")
        split(found["address"])
        secret = base64.b32decode(found["secret"].upper())
        return cls(found["address"], found["id"], secret)

    def __str__(self) -> str:
        body = f"obhut1/{self.address}/{self.fingerprint}/{_base32(self.secret)}"
        return f"{body}/{_sum(body)}"

    def prove(self, part: Part, host: bytes, guest: bytes) -> bytes:
        """Return the proof of one part that it knows the secret.

        Args:
            part: who proves.
            host: the host's certificate, in PEM.
            guest: the guest's.
        """
        said = b"obhut invitation 1 " + part.encode("ascii")
        both = fingerprint(host) + fingerprint(guest)
        return hmac.digest(self.secret, said + both, "sha256")

    def proves(self, proof: bytes, part: Part, host: bytes, guest: bytes) -> bool:
        """Tell whether a proof is that of one part; see ``prove``."""
        return hmac.compare_digest(proof, self.prove(part, host, guest))


class Hello(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The guest's certificate, in PEM; TLS asks for its key next."""

    certificate: bytes


class Continue(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The host has asked, in TLS, for the certificate."""


class Proof(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The guest's proof, or the host's."""

    proof: bytes


class Pinned(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The sender has pinned the other."""


class TurnedAway(
    msgspec.Struct, frozen=True, tag="Refused", forbid_unknown_fields=True
):
    """The host won't go on."""

    why: str


Message: TypeAlias = Hello | Continue | Proof | Pinned | TurnedAway

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Message)


class Conversation:
    """Messages over a connection, which end at a given moment in any case.

    Attributes:
        connection: over which.
        began: when it began; seconds of the monotonic clock.
        proved: whether the other side has shown that it knows the secret.
    """

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        """Take over a connection, for so many seconds altogether."""
        self.connection = connection
        self.proved = False
        self.began = time.monotonic()
        self._end = self.began + seconds

    def limit(self, seconds: float = math.inf) -> None:
        """Let what is done with the connection next end in time.

        Args:
            seconds: how long that may take, if there is so much left.

        Raises:
            TransportError: if the time is over.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise TransportError("the other side took too long")
        self.connection.settimeout(min(left, seconds))

    def send(self, message: Message) -> None:
        """Send a message.

        Raises:
            OSError: if the connection is broken.
            TransportError: if the time is over.
        """
        content = _ENCODER.encode(message)
        self.limit()
        self.connection.sendall(len(content).to_bytes(4, "big") + content)

    def receive(self) -> Message:
        """Wait for a message.

        Raises:
            InviteError: if what came is none.
            OSError: if the connection is broken.
            TransportError: if the time is over, or the other side has gone.
        """
        size = int.from_bytes(self._exactly(4), "big")
        if size > _LARGEST:
            raise InviteError("the other side does not keep to the protocol")
        content = self._exactly(size)
        try:
            message: Message = _DECODER.decode(content)
        except (msgspec.DecodeError, RecursionError) as error:
            raise InviteError("the other side does not keep to the protocol") from error
        return message

    def cut(self) -> None:
        """Break the conversation off, from another thread than that which holds it."""
        with contextlib.suppress(OSError):
            # Not SSLSocket's: that takes TLS away under the other thread's hands.
            socket.socket.shutdown(self.connection, socket.SHUT_RDWR)

    def close(self) -> None:
        """End the conversation, in the thread that holds it."""
        self.cut()
        self.connection.close()

    def _exactly(self, size: int) -> bytes:
        got = bytearray()
        while len(got) < size:
            self.limit()
            piece = self.connection.recv(size - len(got))
            if not piece:
                raise TransportError("the other side has gone")
            got += piece
        return bytes(got)


def split(address: str) -> tuple[str, int]:
    """Return host and port of ``host:port``, or of ``[host]:port`` for IPv6.

    Raises:
        InviteError: if it is neither.
    """
    host, _, port = address.rpartition(":")
    spelt = re.fullmatch(_ADDRESS, address) is not None
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    paired = not set(host) & set("[]") and bracketed == (":" in host)
    if not (spelt and host and paired and int(port) <= 65535):
        raise InviteError(f"expected an address as host:port, got {address!r}")
    return host, int(port)


def join(host: str, port: int) -> str:
    """Return the address that ``split`` takes apart."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _base32(content: bytes) -> str:
    return base64.b32encode(content).decode("ascii").lower()


def _sum(body: str) -> str:
    """Return what tells a damaged text from a wrong one; it keeps nothing safe."""
    return _base32(hashlib.sha256(body.encode("ascii")).digest()[:5])
