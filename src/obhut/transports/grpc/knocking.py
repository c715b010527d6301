"""Knocks at an address: who is there, or why nobody is to be had.

Rules:

- Who is there follows from the key that the handshake proves, and from nothing said.
- Nothing is asked, and nobody is trusted: it says whom to pin a connection to.
- Each reason has words of its own, and what to do; what can be known at once is said
  at once.
"""

from __future__ import annotations

import base64
import contextlib
import re
import socket
import ssl
import time
from urllib.parse import unquote

from obhut.errors import (
    AccessDeniedError,
    CallError,
    CertificateError,
    InviteError,
    PeerNotFoundError,
    TransportError,
)
from obhut.host.wording import printable
from obhut.identity.certificates import from_der, id_of
from obhut.identity.identity import Identity
from obhut.identity.invitation import split
from obhut.identity.joining import tls_context
from obhut.identity.peers import Peer, PeerBook

from . import proxies
from .proxies import Proxy

_SAID = 200
"""Letters of a proxy's words that are passed on."""

_LONGEST_ANSWER = 8192
"""Bytes of a proxy's answer before the connection begins."""


def knock(address: str, identity: Identity, peers: PeerBook, seconds: float) -> Peer:
    """Return who is there.

    Args:
        address: ``host:port``.
        identity: who knocks.
        peers: whom they have pinned.
        seconds: how long it may take.

    Raises:
        CallError: if the address has another form.
        TransportError: if nobody is reached there, or nobody who is pinned.
        AccessDeniedError: if whoever is there does not know who knocks.
    """
    host, port = _parts(address)
    proxy = proxies.proxy_to(host)
    end = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(_connected(address, host, port, proxy, end))
        connection.settimeout(max(0.1, end - time.monotonic()))
        context = tls_context(ssl.PROTOCOL_TLS_CLIENT, identity)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # its key is looked up below
        context.set_alpn_protocols(["h2"])
        try:
            talk = stack.enter_context(context.wrap_socket(connection))
            shown = from_der(talk.getpeercert(binary_form=True) or b"")
            peer = peers.find(id_of(shown))
        except PeerNotFoundError as error:
            raise TransportError(_not_pinned(address, error, peers, proxy)) from error
        except TimeoutError as error:
            raise TransportError(
                f"{address} accepts connections and says nothing; is the worker "
                f"running, and not stopped?{_way(address, proxy)}"
            ) from error
        except (CertificateError, OSError) as error:
            raise TransportError(
                f"what answers at {address} is no worker of obhut ({_said(error)}); is "
                f"the port the worker's own?{_way(address, proxy)}"
            ) from error
        # Whoever takes the certificate begins to speak, whoever does not hangs up.
        try:
            spoken = talk.recv(1)
        except TimeoutError as error:
            raise TransportError(
                f"{peer.name} at {address} says nothing; is the worker overloaded?"
            ) from error
        except OSError:
            spoken = b""
        if not spoken:
            raise AccessDeniedError(
                f"{peer.name} at {address} does not know you, or no longer does: the "
                f"id {identity.id} is not pinned there; ask for an invitation, and "
                "obhut join with it"
            )
        return peer


def _parts(address: str) -> tuple[str, int]:
    """Return host and port.

    Raises:
        CallError: if it is not ``host:port``; it says what to write.
    """
    try:
        host, port = split(address)
        if port:
            return host, port
        advice = "port 0 is none to connect to; write the one that the worker shows"
    except InviteError:
        bare = re.sub(r"^[\w+.-]+://", "", address).partition("/")[0]
        if "/" in address:
            advice = f"write {bare or 'host:port'!r} alone: it is no web address"
        elif address.count(":") > 1 and "[" not in address:
            advice = "write an IPv6 address in brackets, such as [::1]:7000"
        elif re.search(r":[0-9]+$", address) is None:
            advice = "add the worker's port, such as bob.example:7000"
        else:
            advice = "such as bob.example:7000, 10.0.0.1:7000 or [::1]:7000"
    raise CallError(f"expected an address as host:port, got {address!r}; {advice}")


def _connected(
    address: str, host: str, port: int, proxy: Proxy | None, end: float
) -> socket.socket:
    """Return a connection to host and port.

    Raises:
        TransportError: if there is none; it says why, as far as can be known.
    """
    near = (host, port) if proxy is None else proxy.address
    place = address if proxy is None else str(proxy)
    way = _way(address, proxy)
    try:
        connection = socket.create_connection(near, end - time.monotonic())
    except socket.gaierror as error:
        raise TransportError(
            f"no host is known as {near[0]!r} ({error.strerror}); is {place} "
            f"spelt right?{way}"
        ) from error
    except ConnectionRefusedError as error:
        raise TransportError(
            f"nobody listens at {place}; is it running, and is that its port?{way}"
        ) from error
    except TimeoutError as error:
        raise TransportError(
            f"nothing comes back from {place}; is the machine up, and lets its "
            f"firewall this port through?{way}"
        ) from error
    except OSError as error:
        raise TransportError(f"{place} is not reached: {_said(error)}{way}") from error
    if proxy is not None:
        try:
            _ask(proxy, connection, host, port)
        except (OSError, ValueError, TransportError) as error:
            connection.close()
            raise TransportError(
                f"{address} is not reached: {place} says {_said(error)}{way}"
            ) from error
    return connection


def _ask(proxy: Proxy, connection: socket.socket, host: str, port: int) -> None:
    """Let a proxy connect to host and port.

    Raises:
        TransportError: if it does not.

    Source: RFC 9110, section 9.3.6.
    """
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.url.username is not None:
        user = f"{unquote(proxy.url.username)}:{unquote(proxy.url.password or '')}"
        token = base64.b64encode(user.encode()).decode("ascii")
        lines.append(f"Proxy-Authorization: Basic {token}")
    connection.sendall("".join(f"{line}\r\n" for line in (*lines, "")).encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n") and len(answer) < _LONGEST_ANSWER:
        # Byte by byte: what follows is the other side's.
        byte = connection.recv(1)
        if not byte:
            break
        answer += byte
    status = answer.partition(b"\r\n")[0].decode("latin-1")
    if re.match(r"HTTP/1\.[01] 2[0-9][0-9]\b", status) is None:
        raise TransportError(printable(status[:_SAID]) or "nothing")


def _not_pinned(
    address: str, error: PeerNotFoundError, peers: PeerBook, proxy: Proxy | None
) -> str:
    """Say that somebody is there who is nobody here."""
    known = ", ".join(error.known) or "nobody"
    changed = (
        ""
        if not error.known
        else " If one of them has a new key: obhut keys accept takes it over."
    )
    return (
        f"whoever answers at {address} has the id {error.name}, which is not pinned in "
        f"{peers.folder.parent}, where there is {known}; did both sides join? obhut "
        f"join pins a worker.{changed}{_way(address, proxy)}"
    )


def _way(address: str, proxy: Proxy | None) -> str:
    """Name the proxy that may be at fault."""
    if proxy is None:
        return ""
    return f" The way to {address} leads through {proxy}; {proxies.advice(address)}."


def _said(error: Exception) -> str:
    """Return an error's own words, without numbers and places in files."""
    if isinstance(error, OSError) and error.strerror:
        return re.sub(r"^\[[^\]]*\] | \(_ssl\.c:[0-9]+\)$", "", error.strerror)
    return str(error) or type(error).__name__
