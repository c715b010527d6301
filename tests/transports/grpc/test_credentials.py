from __future__ import annotations

import logging
import queue
import ssl
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import grpc
import pytest
from tests.identity.forgery import (
    NOW,
    Door,
    ask,
    careless,
    careless_context,
    connected,
    forge,
    key_of,
    refusal,
    served,
    with_chain,
)

from obhut.identity.identity import Identity
from obhut.identity.peers import Peer, PeerBook
from obhut.transports.grpc.credentials import (
    channel_credentials,
    principal,
    server_credentials,
)

HOST, ALICE, BOB, STRANGER = (Identity.create() for _ in range(4))
THE_HOST = Peer("host", HOST.id, HOST.certificate)
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED


@pytest.fixture
def peers(tmp_path: Path) -> PeerBook:
    """Return a book in which alice and bob are pinned."""
    book = PeerBook(tmp_path / "peers")
    book.add("alice", ALICE.certificate)
    book.add("bob", BOB.certificate)
    return book


@pytest.fixture
def door(peers: PeerBook) -> Iterator[Door]:
    """Return the host's server, which lets these peers in."""
    with served(server_credentials(HOST, peers), peers) as door:
        yield door


def open_channel(
    address: str, identity: Identity, peer: Peer = THE_HOST
) -> grpc.Channel:
    """Return a channel to a peer."""
    credentials, options = channel_credentials(identity, peer)
    return grpc.secure_channel(address, credentials, options)


def knock(address: str, identity: Identity, peer: Peer = THE_HOST) -> bytes:
    """Ask a peer for one's name, over a connection of its own."""
    with open_channel(address, identity, peer) as channel:
        return ask(channel)


def hears(connection: ssl.SSLSocket) -> bool:
    """Tell whether a server speaks HTTP/2 to a client, so that it has let it in."""
    try:
        return connection.recv(9) != b""
    except OSError:
        return False


def test_pinned_peers_are_let_in_and_told_apart(door: Door) -> None:
    """Each pinned peer is known by its key, although their certificates say the same.

    The subjects are equal, so TLS has to find each one's root among its equals.
    """
    assert knock(door.address, ALICE) == b"alice"
    assert knock(door.address, BOB) == b"bob"


# Strangers at the server's door


def assert_shut(door: Door, identity: Identity) -> None:
    """Check that somebody is refused in the handshake, and heard by nobody."""
    assert refusal(lambda: knock(door.address, identity)) is UNAVAILABLE
    assert door.read == []


def test_an_unknown_certificate_is_refused(door: Door) -> None:
    """A stranger with a certificate in the right form gets no message through."""
    assert_shut(door, STRANGER)


def test_no_certificate_is_refused(door: Door) -> None:
    """A client that shows no certificate gets no message through."""
    credentials = grpc.ssl_channel_credentials(HOST.certificate)
    options = [("grpc.ssl_target_name_override", "obhut")]
    with grpc.secure_channel(door.address, credentials, options) as channel:
        assert refusal(lambda: ask(channel)) is UNAVAILABLE
    assert door.read == []


def test_no_tls_is_refused(door: Door) -> None:
    """A client that speaks in the clear gets no message through."""
    with grpc.insecure_channel(door.address) as channel:
        assert refusal(lambda: ask(channel)) is UNAVAILABLE
    assert door.read == []


def test_an_impostor_with_all_of_alices_words_is_refused(door: Door) -> None:
    """Alice's serial number and key identifiers do not make another key hers."""
    assert_shut(door, forge(copied=ALICE))


def test_alices_certificate_without_her_key_is_refused(door: Door) -> None:
    """A copy of her certificate lets nobody in: gRPC refuses to show it."""
    mallory = Identity(ALICE.id, ALICE.certificate, STRANGER.key)
    assert_shut(door, mallory)


@pytest.mark.parametrize("chain", [False, True])
def test_bobs_key_can_not_sign_an_alice(door: Door, chain: bool) -> None:
    """A pinned peer's key vouches for no other, whether its certificate is shown too.

    The leaf names her in every way there is.
    """
    alice = forge(issuer=BOB, name="alice", hosts=["obhut", "alice"], copied=ALICE)
    assert_shut(door, with_chain(alice, BOB) if chain else alice)


def test_bobs_key_can_not_sign_another_bob(door: Door) -> None:
    """A peer can't hand its access on by signing another's key."""
    assert_shut(door, with_chain(forge(issuer=BOB), BOB))


def test_a_certificate_shown_behind_anothers_counts_for_nothing(door: Door) -> None:
    """A stranger who shows alice's certificate behind its own is a stranger."""
    assert_shut(door, with_chain(STRANGER, ALICE))


def test_alices_key_in_another_certificate_is_refused(door: Door) -> None:
    """Exactly the pinned certificate is let in, with its words and its dates."""
    assert_shut(door, forge(key=key_of(ALICE)))
    assert_shut(door, forge(key=key_of(ALICE), name="bob", hosts=["bob"]))


def test_an_expired_certificate_is_refused(tmp_path: Path) -> None:
    """A certificate whose time is over, or not yet come, is pinned in vain."""
    late = forge(start=NOW - timedelta(days=9), end=NOW - timedelta(hours=1))
    early = forge(start=NOW + timedelta(hours=1))
    peers = PeerBook(tmp_path / "peers")
    peers.add("late", late.certificate)
    peers.add("early", early.certificate)
    with served(server_credentials(HOST, peers), peers) as door:
        assert_shut(door, late)
        assert_shut(door, early)


def test_a_server_without_peers_lets_nobody_in(tmp_path: Path) -> None:
    """No peers means nobody, and not anybody."""
    peers = PeerBook(tmp_path / "peers")
    with served(server_credentials(HOST, peers), peers) as door:
        assert_shut(door, ALICE)
        assert_shut(door, HOST)


def test_a_pinned_authority_would_let_anybody_in(peers: PeerBook) -> None:
    """This is why authorities are not pinned, and why the key is compared again.

    A server whose roots hold a certificate with CA:TRUE admits, in the handshake,
    whatever that signs; ``principal`` still refuses it.
    """
    mallory = forge(ca=True, signs=True)
    alice = with_chain(forge(issuer=mallory, copied=ALICE), mallory)
    roots = peers.roots() + mallory.certificate
    with served(careless(HOST, roots), peers) as door:
        for impostor in (alice, mallory):
            code = refusal(lambda who=impostor: knock(door.address, who))
            assert code is UNAUTHENTICATED
        assert knock(door.address, ALICE) == b"alice"


# Impostors where a client calls


def test_an_impostor_at_the_address_is_refused(tmp_path: Path) -> None:
    """A server with another key hears no byte of the client's, whatever it shows.

    It trusts any client. It calls itself as the peer, repeats the peer's words, or
    shows the peer's certificate behind its own.
    """
    impostors = [
        STRANGER,
        forge(copied=HOST),
        with_chain(STRANGER, HOST),
        with_chain(forge(issuer=BOB, copied=HOST), BOB),
    ]
    for impostor in impostors:
        peers = PeerBook(tmp_path / "none")
        with served(careless(impostor, ALICE.certificate), peers) as door:
            assert_shut(door, ALICE)


def test_bobs_key_can_not_sign_a_server(tmp_path: Path) -> None:
    """A client that means bob accepts bob's certificate, and none that bob signed."""
    bob = Peer("bob", BOB.id, BOB.certificate)
    server = with_chain(forge(issuer=BOB), BOB)
    peers = PeerBook(tmp_path / "none")
    with served(careless(server, ALICE.certificate), peers) as door:
        assert refusal(lambda: knock(door.address, ALICE, bob)) is UNAVAILABLE
        assert door.read == []


def test_a_pinned_authority_could_send_another(peers: PeerBook) -> None:
    """This is why authorities are not pinned: a client has no second look.

    Had it CA:TRUE, a server could be anybody to whom the peer gave a signature.
    """
    mallory = forge(ca=True, signs=True)
    server = with_chain(forge(issuer=mallory), mallory)
    with served(careless(server, ALICE.certificate), peers) as door:
        pinned = Peer("mallory", mallory.id, mallory.certificate)
        assert knock(door.address, ALICE, pinned) == b"alice"


def test_another_pinned_peer_is_not_the_one_meant(door: Door) -> None:
    """A client that means bob is not served by the host, whom it knows too."""
    bob = Peer("bob", BOB.id, BOB.certificate)
    assert refusal(lambda: knock(door.address, ALICE, bob)) is UNAVAILABLE


def test_a_client_that_knows_nobody_accepts_nobody(
    door: Door, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a root, gRPC falls back to no others, not even those it is offered."""
    (tmp_path / "roots.pem").write_bytes(HOST.certificate)
    monkeypatch.setenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", str(tmp_path / "roots.pem"))
    nobody = Peer("nobody", "", b"")
    assert refusal(lambda: knock(door.address, ALICE, nobody)) is UNAVAILABLE
    assert door.read == []


def test_connections_are_not_shared_between_peers(door: Door) -> None:
    """An open connection to the address serves nobody who means another there."""
    with open_channel(door.address, ALICE) as channel:
        assert ask(channel) == b"alice"
        bob = Peer("bob", BOB.id, BOB.certificate)
        assert refusal(lambda: knock(door.address, ALICE, bob)) is UNAVAILABLE
        assert knock(door.address, BOB) == b"bob"
        assert ask(channel) == b"alice"


@pytest.mark.parametrize(
    "odd",
    [
        forge(hosts=["elsewhere"]),
        forge(start=NOW - timedelta(days=9), end=NOW - timedelta(hours=1)),
    ],
    ids=["another host", "expired"],
)
def test_a_server_with_an_odd_certificate_is_refused(
    peers: PeerBook, odd: Identity
) -> None:
    """A client refuses a peer's certificate for another host, or after its time."""
    with served(careless(odd, ALICE.certificate), peers) as door:
        pinned = Peer("odd", odd.id, odd.certificate)
        assert refusal(lambda: knock(door.address, ALICE, pinned)) is UNAVAILABLE
        assert door.read == []


# Peers that come and go


def test_a_peer_added_while_serving_is_let_in(door: Door, peers: PeerBook) -> None:
    """A new peer needs no restart, whoever added it."""
    assert_shut(door, STRANGER)
    PeerBook(peers.folder).add("carol", STRANGER.certificate)
    assert knock(door.address, STRANGER) == b"carol"


def test_a_removed_peer_can_not_connect(door: Door, peers: PeerBook) -> None:
    """After its removal, by whomever, a peer fails in the handshake; others don't."""
    PeerBook(peers.folder).remove("alice")
    assert_shut(door, ALICE)
    assert knock(door.address, BOB) == b"bob"


def test_a_removed_peer_can_not_use_its_open_connection(
    door: Door, peers: PeerBook
) -> None:
    """A connection outlives the peer's removal, but no call over it is answered."""
    with open_channel(door.address, ALICE) as channel:
        assert ask(channel) == b"alice"
        peers.remove("alice")
        assert refusal(lambda: ask(channel)) is UNAUTHENTICATED


def test_a_removed_peer_can_not_use_its_open_stream(
    door: Door, peers: PeerBook
) -> None:
    """A stream that asks with each message ends at the first after the removal."""
    requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    with open_channel(door.address, ALICE) as channel:
        names = channel.stream_stream("/door/names")(iter(requests.get, None))
        requests.put(b"1")
        assert next(names) == b"alice"
        peers.remove("alice")
        requests.put(b"2")
        assert refusal(lambda: next(names)) is UNAUTHENTICATED
        requests.put(None)


def test_a_renamed_peer_has_its_new_name_at_once(door: Door, peers: PeerBook) -> None:
    """Who calls is looked up at each call, not at the handshake."""
    with open_channel(door.address, ALICE) as channel:
        assert ask(channel) == b"alice"
        peers.remove("alice")
        peers.add("eve", ALICE.certificate)
        assert ask(channel) == b"eve"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_no_ticket_outlives_its_handshake(
    door: Door, peers: PeerBook, version: ssl.TLSVersion
) -> None:
    """A session ticket spares nobody the handshake, in which certificates are seen.

    A server that keeps its configuration honours tickets, which shows that the
    attempt is a real one.
    """
    for address, honoured in self_and_careless(door, peers):
        context = careless_context(ALICE, version)
        with connected(address, context=context) as connection:
            assert hears(connection)
            ticket = connection.session
        assert ticket is not None
        with connected(address, context=context, session=ticket) as connection:
            assert hears(connection)
            assert connection.session_reused is honoured
    context = careless_context(ALICE, version)
    with connected(door.address, context=context) as connection:
        assert hears(connection)
        ticket = connection.session
    peers.remove("alice")
    assert not gets_in(door.address, context, ticket)


def self_and_careless(door: Door, peers: PeerBook) -> Iterator[tuple[str, bool]]:
    """Yield the server's address and a careless one's, and who honours tickets."""
    yield door.address, False
    with served(careless(HOST, peers.roots()), peers) as other:
        yield other.address, True


def gets_in(
    address: str, context: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> bool:
    """Tell whether a server lets a client in."""
    try:
        with connected(address, context=context, session=session) as connection:
            return hears(connection)
    except OSError:
        return False


# What TLS is made to do


@pytest.mark.parametrize(
    ("version", "spoken"),
    [
        (ssl.TLSVersion.TLSv1, False),
        (ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_3, True),
    ],
)
def test_old_tls_is_refused(door: Door, version: ssl.TLSVersion, spoken: bool) -> None:
    """TLS before 1.2 is not spoken, even with a pinned certificate."""
    assert gets_in(door.address, careless_context(ALICE, version)) is spoken


def test_a_client_offers_tls_1_3_first(peers: PeerBook) -> None:
    """Two nodes speak TLS 1.3, in which certificates are not in the clear."""

    def version(request: bytes, context: grpc.ServicerContext) -> bytes:
        return bytes(context.auth_context()["ssl_tls_version"][0])

    with (
        served(server_credentials(HOST, peers), peers, {"version": version}) as door,
        open_channel(door.address, ALICE) as channel,
    ):
        assert channel.unary_unary("/door/version")(b"") == b"TLSv1.3"


# What goes wrong at the server


def test_a_server_that_can_not_read_its_peers_lets_nobody_in(
    door: Door, peers: PeerBook, caplog: pytest.LogCaptureFixture
) -> None:
    """Once the peers' folder is not safe, nobody is let in, and the log says why.

    Left to itself gRPC would go on with the peers it read before.
    """
    with open_channel(door.address, ALICE) as channel:
        assert ask(channel) == b"alice"
        door.read.clear()
        peers.folder.chmod(0o777)
        assert_shut(door, ALICE)
        assert_shut(door, BOB)
        assert "nobody is let in" in caplog.text
        assert refusal(lambda: ask(channel)) is UNAUTHENTICATED
        peers.folder.chmod(0o700)
        assert ask(channel) == knock(door.address, ALICE) == b"alice"


def test_without_tls_nobody_is_anybody(peers: PeerBook) -> None:
    """On a server that was opened without TLS, every call is refused."""
    with served(None, peers) as door, grpc.insecure_channel(door.address) as channel:
        assert refusal(lambda: ask(channel)) is UNAUTHENTICATED


class ServicerContext:
    """A call with a given finding of the handshake's."""

    def __init__(self, found: Mapping[str, object]) -> None:
        self.found = found

    def auth_context(self) -> Mapping[str, object]:
        """Return the finding."""
        return self.found

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """End the call."""
        raise PermissionError(code, details)


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"transport_security_type": [b"ssl"]},
        {"transport_security_type": [b"ssl"], "x509_common_name": [b"alice"]},
        {"transport_security_type": [b"ssl"], "x509_pem_cert": []},
        {"transport_security_type": [b"ssl"], "x509_pem_cert": [b"alice"]},
        {
            "transport_security_type": [b"ssl"],
            "x509_pem_cert": [ALICE.certificate, STRANGER.certificate],
        },
        {"transport_security_type": [b"local"], "x509_pem_cert": [ALICE.certificate]},
        {"x509_pem_cert": [ALICE.certificate]},
    ],
)
def test_what_proves_no_single_key_is_refused(
    peers: PeerBook, found: Mapping[str, object]
) -> None:
    """A call is refused unless TLS proved exactly one certificate."""
    with pytest.raises(PermissionError):
        principal(ServicerContext(found), peers)


def test_a_refusal_says_nothing_and_the_log_whom(
    peers: PeerBook, caplog: pytest.LogCaptureFixture
) -> None:
    """The refused learns no names; the owner's log has the id."""
    found = {
        "transport_security_type": [b"ssl"],
        "x509_pem_cert": [STRANGER.certificate],
    }
    with caplog.at_level(logging.WARNING), pytest.raises(PermissionError) as refused:
        principal(ServicerContext(found), peers)
    assert "alice" not in str(refused.value)
    assert STRANGER.id in caplog.text


def test_credentials_print_no_key(peers: PeerBook) -> None:
    """Neither credentials nor their options show a key."""
    credentials, options = channel_credentials(ALICE, THE_HOST)
    assert "PRIVATE" not in repr((credentials, options, vars(credentials)))
