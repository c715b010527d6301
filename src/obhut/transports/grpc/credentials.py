"""TLS as gRPC takes it, with exactly the pinned certificates as roots.

Rules:

- A server asks every client for a certificate, and the handshake fails unless it is
  a pinned one. The peers are read anew for every handshake.
- A client accepts exactly one certificate, that of the peer it means.
- A handshake says who may come in; ``caller`` says who is there, and says it again
  whenever it is asked: peers can be removed while they are connected. The certificate
  is the connection's, and is read once a call.
- What can't be found out is refused.

TLS is of version 1.2 or later, which gRPC can't be told otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import NoReturn, Protocol

import grpc

from obhut.errors import CertificateError, PeerNotFoundError, UnsafeFileError
from obhut.identity.certificates import HOST, id_of
from obhut.identity.identity import Identity
from obhut.identity.peers import Peer, PeerBook

_LOG = logging.getLogger(__name__)


class ServicerContext(Protocol):
    """What is needed of a ``grpc.ServicerContext``."""

    def auth_context(self) -> Mapping[str, object]:
        """Return what the handshake found out."""

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """End the call by raising."""


def server_credentials(identity: Identity, peers: PeerBook) -> grpc.ServerCredentials:
    """Return what a server shows and asks for.

    Duty: ask ``caller`` or ``principal`` for every call, before its first message is
    looked at.

    Args:
        identity: the server's own.
        peers: whom to let in. Changes hold from the next handshake on.

    Raises:
        UnsafeFileError: if the peers' folder is not safe.
    """
    current = _Configuration(identity, peers)
    return grpc.dynamic_ssl_server_credentials(
        current.build(), current, require_client_authentication=True
    )


def channel_credentials(
    identity: Identity, peer: Peer
) -> tuple[grpc.ChannelCredentials, list[tuple[str, str]]]:
    """Return a channel's credentials, and the options that belong to them.

    Args:
        identity: the client's own.
        peer: whom to reach; nobody else is accepted at the address.
    """
    credentials = grpc.ssl_channel_credentials(
        peer.certificate, identity.key, identity.certificate
    )
    return credentials, [("grpc.ssl_target_name_override", HOST)]


def principal(call: ServicerContext, peers: PeerBook) -> Peer:
    """Return who makes a call, as far as they are still known; else end the call.

    Args:
        call: the ``grpc.ServicerContext``.
        peers: who is known.
    """
    return caller(call, peers)()


def caller(call: ServicerContext, peers: PeerBook) -> Callable[[], Peer]:
    """Return what tells who makes a call, as ``principal`` does.

    Duty: on a stream, ask it with each message.

    Args:
        call: the ``grpc.ServicerContext``; ended at once if it proves no certificate.
        peers: who is known.
    """
    try:
        id = _id(call.auth_context())
    except CertificateError as error:
        _refuse(call, error)

    def who() -> Peer:
        try:
            return peers.find(id)
        except PeerNotFoundError as error:
            _refuse(call, error)
        except (OSError, UnsafeFileError):
            _LOG.exception("refused a call, since peers can not be read")
            _end(call)

    return who


def _refuse(call: ServicerContext, error: Exception) -> NoReturn:
    _LOG.warning("refused a call: %s", error)
    _end(call)


def _end(call: ServicerContext) -> NoReturn:
    call.abort(grpc.StatusCode.UNAUTHENTICATED, "this worker does not know you")


def _id(found: Mapping[str, object]) -> str:
    """Return the id of the certificate that a handshake proved.

    Raises:
        CertificateError: if there wasn't exactly one.
    """
    match found.get("transport_security_type"), found.get("x509_pem_cert"):
        case [b"ssl"], [bytes(certificate)]:
            return id_of(certificate)
        case _:
            raise CertificateError("the connection proves none")


class _Configuration:
    """What gRPC asks for before every handshake.

    It never raises, since gRPC would go on with what it had before: peers who were
    removed. It answers even if nothing changed: with what is built for a handshake of
    its own, no session ticket of an earlier one holds, and with it no removed peer.
    """

    def __init__(self, identity: Identity, peers: PeerBook) -> None:
        self._identity = identity
        self._peers = peers
        self._nobody = Identity.create().certificate
        """A root whose key is gone: for when there is nobody to let in."""

    def build(self) -> grpc.ServerCertificateConfiguration:
        return self._with(self._peers.roots())

    def __call__(self) -> grpc.ServerCertificateConfiguration:
        try:
            return self.build()
        except Exception:
            _LOG.exception("nobody is let in, since peers can not be read")
            return self._with(b"")

    def _with(self, roots: bytes) -> grpc.ServerCertificateConfiguration:
        pair = (self._identity.key, self._identity.certificate)
        return grpc.ssl_server_certificate_configuration([pair], roots or self._nobody)
