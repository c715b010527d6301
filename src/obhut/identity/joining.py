"""Two nodes pin each other with a one-time secret, on a listener of its own.

::

    guest                                              host
      │  TLS 1.3; the guest sees the key it was told of  │
      │── Hello: the guest's certificate ───────────────▶│
      │◀── TLS asks the guest for that certificate's key │
      │◀── Continue ─────────────────────────────────────│
      │── TLS: the key is shown to be there;  Proof ────▶│
      │◀── Proof ────────────────────────────────────────│
    pins│── Pinned ─────────────────────────────────────▶│pins, once
      │◀── Pinned ───────────────────────────────────────│

Rules:

- The guest says nothing before it has seen the host's key, and the host shows nothing
  that depends on the secret before it has seen the guest's proof.
- The invitation ends with the first guest, at its time, or after three wrong proofs.
  Strangers who prove nothing don't count, so that a port scan does not use it up.
- Nobody can keep the listener: a conversation has ten seconds, two of them for TLS,
  there are few at once, and each is in a thread of its own. Where all places are taken,
  who was there longest and has proved nothing makes room, after a second; who comes
  waits in line until then.
- Of two guests who have proved themselves the first is pinned, and the other is told,
  and forgets the host.
- Broken off anywhere, either both have pinned or the guest can come again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from obhut.errors import (
    CertificateError,
    InviteError,
    ObhutError,
    PeerError,
    TransportError,
)
from obhut.host.closing import Closing
from obhut.host.wording import printable

from . import certificates
from .identity import Identity
from .invitation import (
    Continue,
    Conversation,
    Hello,
    Invitation,
    Message,
    Pinned,
    Proof,
    TurnedAway,
    join,
    split,
)
from .peers import Peer, PeerBook

_LOG = logging.getLogger(__name__)
_PATIENCE = 10.0
_TLS_SECONDS = 2.0
_AT_ONCE = 16
_GRACE = 1.0
"""Seconds that nobody has to make room for others."""

_IN_LINE = 128
"""Connections that wait for a place. Those beyond are tried again by their systems."""

_TRIES = 3
_SAID = 200
"""Letters of a stranger's words that are passed on."""

_M = TypeVar("_M", bound=Message)


class Listener(Closing):
    """The host's side: listens from its start until one guest was pinned.

    Use it as a context manager, pass ``str(listener.invitation)`` on, and ``wait``.

    Attributes:
        invitation: what the guest needs.
    """

    def __init__(
        self,
        identity: Identity,
        peers: PeerBook,
        guest: str,
        *,
        listen: str = "0.0.0.0:0",
        address: str | None = None,
        seconds: float = 600,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the listener.

        Args:
            identity: the host's.
            peers: where the guest will be pinned.
            guest: the name to pin it under.
            listen: where to listen; port 0 takes a free one.
            address: where the guest finds that; by default where it listens, or this
                machine's name if it listens everywhere.
            seconds: how long the invitation holds.
            clock: tells the time, in seconds.

        Raises:
            InviteError: if an address is none.
            PeerError: if the name can't be used or is taken.
            TransportError: if it can't listen there.
        """
        peers.check(guest, "")
        host, port = split(listen)
        self._identity = identity
        self._peers = peers
        self._name = guest
        self._clock = clock
        self._end = clock() + seconds
        self._lock = threading.Lock()
        self._serving = threading.Lock()
        self._wrong = 0
        self._result: Peer | ObhutError | None = None
        self._talks: dict[Conversation, threading.Thread] = {}
        self._last: Conversation | None = None
        try:
            self._socket = _listen(host, port)
        except OSError as error:
            raise TransportError(f"can not listen at {listen}: {error}") from error
        self._socket.setblocking(False)
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        for waited in (self._socket, self._woken):
            self._selector.register(waited, selectors.EVENT_READ)
        try:
            bound, port = self._socket.getsockname()[:2]
            if address is None:
                everywhere = bound in ("0.0.0.0", "::")  # noqa: S104 # compared
                address = join(socket.gethostname() if everywhere else bound, port)
            self.invitation = Invitation.to(address, identity.id)
        except InviteError:
            self.close()
            raise

    def wait(self) -> Peer:
        """Wait for the guest, and return it when both have pinned each other.

        Raises:
            InviteError: if the time is over, or there were too many wrong proofs.
            PeerError: if a guest that proved itself can't be pinned: it is pinned
                under another name, or somebody took the name meanwhile.
        """
        with self._serving:
            while self._result is None:
                left = self._end - self._clock()
                if left <= 0:
                    with self._lock:
                        self._end_with(
                            InviteError("its time is over; make another"), None
                        )
                    break
                full = self._make_room()
                if full:
                    # Who comes waits in line; who goes ends this.
                    select.select([self._woken], [], [], min(full, left))
                for key, _ in self._selector.select(0 if full else left):
                    if key.fileobj is self._woken:
                        self._woken.recv(_AT_ONCE)
                    elif not full:
                        self._admit()
        self.close()
        if isinstance(self._result, Peer):
            return self._result
        raise self._result or InviteError("it was withdrawn")

    def close(self) -> None:
        """Stop to listen, and cut off all but the conversation that ended it."""
        with self._lock:
            self._end_with(InviteError("it was withdrawn"), None)
        with self._serving:  # until then ``wait`` needs the sockets
            self._selector.close()
            self._socket.close()
            with self._lock:
                talks = dict(self._talks)
            for talk in talks:
                if talk is not self._last and not talk.proved:
                    talk.cut()
            end = time.monotonic() + _TLS_SECONDS
            for talk, thread in talks.items():
                if talk is not self._last:
                    # Who proved itself is told that it is too late.
                    thread.join(max(0.0, end - time.monotonic()))
                    talk.cut()
            for thread in talks.values():
                thread.join(_PATIENCE)
            self._wake.close()
            self._woken.close()

    def _end_with(self, result: Peer | ObhutError, talk: Conversation | None) -> None:
        """End the invitation, unless it has ended. The lock is held."""
        if self._result is None:
            self._result = result
            self._last = talk
            self._wake.send(b"!")

    def _make_room(self) -> float:
        """Return for how many seconds there is no place at most; 0 if there is one."""
        with self._lock:
            if len(self._talks) < _AT_ONCE:
                return 0.0
            oldest = next((talk for talk in self._talks if not talk.proved), None)
        if oldest is None:
            return _PATIENCE
        left = oldest.began + _GRACE - time.monotonic()
        if left > 0:
            return left
        oldest.cut()
        return _GRACE

    def _admit(self) -> None:
        try:
            connection, address = self._socket.accept()
        except OSError:  # the guest has gone again
            return
        talk = Conversation(connection, _PATIENCE)
        thread = threading.Thread(
            target=self._talk, args=(talk, str(address[0])), daemon=True
        )
        with self._lock:
            self._talks[talk] = thread
        thread.start()

    def _talk(self, talk: Conversation, address: str) -> None:
        """Hold one conversation, whatever comes."""
        try:
            self._enrol(talk)
        except (ObhutError, OSError) as error:
            _LOG.warning("refused a guest from %s: %s", address, error)
            if isinstance(error, CertificateError | InviteError | PeerError):
                with contextlib.suppress(OSError, TransportError):
                    talk.send(TurnedAway(error.why))
        finally:
            talk.close()
            with self._lock:
                self._talks.pop(talk, None)
                if self._result is None:
                    self._wake.send(b"!")

    def _enrol(self, talk: Conversation) -> None:
        context = tls_context(ssl.PROTOCOL_TLS_SERVER, self._identity)
        context.post_handshake_auth = True
        context.verify_mode = ssl.CERT_REQUIRED
        talk.limit(_TLS_SECONDS)
        connection = context.wrap_socket(
            talk.connection, server_side=True, do_handshake_on_connect=False
        )
        talk.connection = connection
        connection.do_handshake()
        guest = certificates.checked(_expect(talk.receive(), Hello).certificate)
        context.load_verify_locations(cadata=guest.decode("ascii"))
        talk.limit()
        connection.verify_client_post_handshake()
        talk.send(Continue())
        proof = _expect(talk.receive(), Proof).proof
        if connection.getpeercert(binary_form=True) != certificates.to_der(guest):
            raise InviteError("the guest did not show its certificate's key")
        if certificates.id_of(guest) == self._identity.id:
            raise InviteError("host and guest have the same key")
        self._judge(talk, proof, guest)
        host = self._identity.certificate
        talk.send(Proof(self.invitation.prove("host", host, guest)))
        _expect(talk.receive(), Pinned)
        self._pin(talk, guest)
        talk.send(Pinned())

    def _judge(self, talk: Conversation, proof: bytes, guest: bytes) -> None:
        """Refuse a wrong proof, and any when there were too many."""
        with self._lock:
            self._check_open()
            host = self._identity.certificate
            if self.invitation.proves(proof, "guest", host, guest):
                talk.proved = True
                return
            self._wrong += 1
            if self._wrong == _TRIES:
                why = f"{_TRIES} proofs were wrong; make another"
                self._end_with(InviteError(why), talk)
        raise InviteError("the secret is wrong")

    def _pin(self, talk: Conversation, guest: bytes) -> None:
        """Pin the guest, if it is the first."""
        with self._lock:
            self._check_open()
            try:
                self._end_with(self._peers.add(self._name, guest), talk)
            except ObhutError as error:
                self._end_with(error, talk)
                raise

    def _check_open(self) -> None:
        if isinstance(self._result, Peer):
            raise InviteError("it was used already; ask for another")
        if self._result is not None:
            raise InviteError("it was withdrawn; ask for another")
        if self._clock() >= self._end:
            raise InviteError("its time is over; ask for another")


def accept(
    invitation: Invitation | str,
    identity: Identity,
    peers: PeerBook,
    name: str,
    *,
    seconds: float = _PATIENCE,
) -> Peer:
    """Redeem an invitation: the guest's side.

    Args:
        invitation: it, or its text.
        identity: the guest's.
        peers: where the host will be pinned.
        name: what to call the host.
        seconds: how long it may take altogether.

    Returns:
        The host, as pinned.

    Raises:
        InviteError: if the invitation does not hold, or somebody else answers at its
            address. Nothing was pinned.
        PeerError: if the name can't be used, or name or key are taken.
        TransportError: if the host could not be reached, or the connection broke.
            Try again; if the invitation was used, both have pinned each other.
    """
    if isinstance(invitation, str):
        invitation = Invitation.parse(invitation)
    if invitation.fingerprint == identity.id:
        raise InviteError("it is your own; give it to the other side")
    peers.check(name, invitation.fingerprint)
    try:
        talk = Conversation(
            socket.create_connection(split(invitation.address), seconds), seconds
        )
    except OSError as error:
        raise TransportError(
            f"can not reach {invitation.address}: {error}; the invitation may have "
            "ended, or have been used"
        ) from error
    try:
        return _redeem(talk, invitation, identity, peers, name)
    except (OSError, TransportError) as error:
        raise TransportError(
            f"the connection to {invitation.address} broke: {error}; try again, and "
            "where somebody else was first, ask for another invitation"
        ) from error
    finally:
        talk.close()


def _redeem(
    talk: Conversation,
    invitation: Invitation,
    identity: Identity,
    peers: PeerBook,
    name: str,
) -> Peer:
    context = tls_context(ssl.PROTOCOL_TLS_CLIENT, identity)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # its key is compared below
    context.post_handshake_auth = True
    talk.limit()
    connection = context.wrap_socket(talk.connection, do_handshake_on_connect=False)
    talk.connection = connection
    connection.do_handshake()
    shown = certificates.from_der(connection.getpeercert(binary_form=True) or b"")
    if certificates.id_of(shown) != invitation.fingerprint:
        raise InviteError(
            f"whoever answers at {invitation.address} is not who made it; somebody "
            "may be in between"
        )
    host = certificates.checked(shown)
    talk.send(Hello(identity.certificate))
    _expect(talk.receive(), Continue)
    talk.send(Proof(invitation.prove("guest", host, identity.certificate)))
    proof = _expect(talk.receive(), Proof).proof
    if not invitation.proves(proof, "host", host, identity.certificate):
        raise InviteError("the host does not know its secret")
    new = not _is_known(peers, invitation.fingerprint)
    peer = peers.add(name, host)
    talk.send(Pinned())
    try:
        _expect(talk.receive(), Pinned)
    except InviteError:
        if new:
            peers.remove(peer.id)
        raise
    return peer


def _expect(message: Message, kind: type[_M]) -> _M:
    """Return the message if it is of that kind.

    Raises:
        InviteError: if it is another.
    """
    if isinstance(message, kind):
        return message
    if isinstance(message, TurnedAway):
        raise InviteError(f"the host says: {printable(message.why[:_SAID])}")
    raise InviteError("the other side does not keep to the protocol")


def _is_known(peers: PeerBook, id: str) -> bool:
    return any(peer.id == id for peer in peers)


def _listen(host: str, port: int) -> socket.socket:
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(address[:2], family=family, backlog=_IN_LINE)


def tls_context(protocol: int, identity: Identity) -> ssl.SSLContext:
    """Return what TLS needs to show an identity; the key does not touch the disk."""
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    handle = os.memfd_create("obhut-identity", os.MFD_CLOEXEC)
    with open(handle, "wb") as file:
        file.write(identity.key + identity.certificate)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{handle}")
    return context
