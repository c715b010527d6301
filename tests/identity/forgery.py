"""Certificates that obhut would not make, and a client and server to try them on."""

from __future__ import annotations

import contextlib
import socket
import ssl
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from obhut.identity.identity import Identity, id_of
from obhut.identity.peers import PeerBook
from obhut.transports.grpc.credentials import caller, principal

NOW = datetime.now(UTC)


def key_of(identity: Identity) -> Any:
    """Return an identity's key."""
    return load_pem_private_key(identity.key, None)


def certificate_of(identity: Identity) -> x509.Certificate:
    """Return an identity's certificate."""
    return x509.load_pem_x509_certificate(identity.certificate)


def forge(
    *,
    key: Any = None,
    name: str = "obhut",
    hosts: Sequence[str] = ("obhut",),
    ca: bool | None = False,
    signs: bool = False,
    critical: bool = True,
    usages: Sequence[x509.ObjectIdentifier] = (
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    ),
    issuer: Identity | None = None,
    copied: Identity | None = None,
    start: datetime = NOW - timedelta(days=1),
    end: datetime = NOW + timedelta(days=3652),
    algorithm: Any = None,
    extra: Sequence[x509.ExtensionType] = (),
) -> Identity:
    """Make a certificate like obhut's, but for what is given.

    Args:
        issuer: who signs it; by default itself.
        copied: whose serial number and key identifiers it shows as its own.
    """
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    shown = key_of(copied) if copied else key
    signer = key_of(issuer) if issuer else key
    known = key_of(issuer) if issuer else shown
    usage = [True, False, False, False, False, signs, False, False, False]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(certificate_of(issuer).subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(
            certificate_of(copied).serial_number
            if copied
            else x509.random_serial_number()
        )
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.KeyUsage(*usage), critical)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(shown.public_key()), False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(known.public_key()),
            False,
        )
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, None), critical)
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), False)
    if hosts:
        names = x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts])
        builder = builder.add_extension(names, False)
    for extension in extra:
        builder = builder.add_extension(extension, False)
    made = builder.sign(signer, algorithm or hashes.SHA256())
    certificate = made.public_bytes(Encoding.PEM)
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Identity(id_of(certificate), certificate, text)


def rsa_key() -> Any:
    """Return a key of another kind."""
    return rsa.generate_private_key(65537, 2048)


def with_chain(leaf: Identity, *issuers: Identity) -> Identity:
    """Return an identity that shows its issuers' certificates after its own."""
    chain = b"".join(one.certificate for one in (leaf, *issuers))
    return Identity(leaf.id, chain, leaf.key)


@dataclass
class Door:
    """A server, and what came through its door.

    Attributes:
        read: every message of which its program saw a byte.
    """

    address: str
    read: list[bytes] = field(default_factory=list)


@contextlib.contextmanager
def served(
    credentials: grpc.ServerCredentials | None,
    peers: PeerBook,
    more: Mapping[str, Callable[[bytes, grpc.ServicerContext], bytes]] | None = None,
) -> Iterator[Door]:
    """Serve ``/door/name``, and ``/door/names`` for streams: they say who calls.

    Args:
        more: other methods, by name.
    """
    door = Door("")

    def read(message: bytes) -> bytes:
        door.read.append(message)
        return message

    def name(request: bytes, context: grpc.ServicerContext) -> bytes:
        return principal(context, peers).name.encode()

    def names(
        requests: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        who = caller(context, peers)
        for _ in requests:
            yield who().name.encode()

    handlers = {
        "name": grpc.unary_unary_rpc_method_handler(name, read),
        "names": grpc.stream_stream_rpc_method_handler(names, read),
    }
    for method, behaviour in (more or {}).items():
        handlers[method] = grpc.unary_unary_rpc_method_handler(behaviour)
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("door", handlers)]
    )
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    door.address = f"127.0.0.1:{port}"
    server.start()
    try:
        yield door
    finally:
        server.stop(None).wait()


def careless(identity: Identity, roots: bytes) -> grpc.ServerCredentials:
    """Return what a server shows and asks for that trusts any roots it is given."""
    return grpc.ssl_server_credentials(
        [(identity.key, identity.certificate)], roots, require_client_auth=True
    )


def ask(channel: grpc.Channel) -> bytes:
    """Ask a door for one's name."""
    answer: bytes = channel.unary_unary("/door/name")(b"who am I?", timeout=20)
    return answer


def refusal(request: Callable[[], object]) -> grpc.StatusCode:
    """Return the status with which a call fails."""
    try:
        answer = request()
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    raise AssertionError(f"let in, with {answer!r}")


@contextlib.contextmanager
def connected(
    address: str,
    identity: Identity | None = None,
    version: ssl.TLSVersion | None = None,
    session: ssl.SSLSession | None = None,
    context: ssl.SSLContext | None = None,
) -> Iterator[ssl.SSLSocket]:
    """Connect with the standard library's TLS, which takes orders that gRPC doesn't."""
    context = context or careless_context(identity, version)
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), 20) as plain,
        context.wrap_socket(
            plain, server_hostname="obhut", session=session
        ) as connection,
    ):
        yield connection


def careless_context(
    identity: Identity | None = None, version: ssl.TLSVersion | None = None
) -> ssl.SSLContext:
    """Return a client's context that accepts any server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.post_handshake_auth = True
    context.set_alpn_protocols(["h2"])
    if version is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.set_ciphers("ALL:@SECLEVEL=0")
            context.minimum_version = context.maximum_version = version
    if identity is not None:
        load(context, identity)
    return context


def load(context: ssl.SSLContext, identity: Identity) -> None:
    """Let a context show an identity."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(identity.key + identity.certificate)
        file.flush()
        context.load_cert_chain(file.name)
