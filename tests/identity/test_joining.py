from __future__ import annotations

import contextlib
import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from obhut.errors import (
    InviteError,
    ObhutError,
    PeerError,
    TransportError,
)
from obhut.identity import certificates
from obhut.identity.identity import Identity
from obhut.identity.invitation import (
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
from obhut.identity.joining import Listener, accept
from obhut.identity.peers import Peer, PeerBook

from .forgery import careless_context, connected, forge, key_of, load

HOST, GUEST, MALLORY, BOB = (Identity.create() for _ in range(4))


class Clock:
    """A clock that stands until it is set."""

    now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


class Party:
    """A host with an open invitation for a guest called ``guest``."""

    def __init__(self, folder: Path) -> None:
        self.peers = PeerBook(folder / "host")
        self.guests = PeerBook(folder / "guest")
        self.clock = Clock()
        self.listener = Listener(
            HOST, self.peers, "guest", listen="127.0.0.1:0", clock=self.clock
        )
        self.invitation = self.listener.invitation
        self._threads = ThreadPoolExecutor(1)
        self.waiting: Future[Peer] = self._threads.submit(self.listener.wait)

    def accept(
        self, identity: Identity = GUEST, invitation: Invitation | None = None
    ) -> Peer:
        """Come with an invitation, by default the right one."""
        return accept(invitation or self.invitation, identity, self.guests, "host")

    def outcome(self) -> Peer:
        """Return whom the host pinned, or raise why nobody."""
        return self.waiting.result(20)

    def close(self) -> None:
        """End it, however it went."""
        self.listener.close()
        with contextlib.suppress(ObhutError):
            self.outcome()
        self._threads.shutdown()


@pytest.fixture
def party(tmp_path: Path) -> Iterator[Party]:
    """Return a host that waits for a guest."""
    with contextlib.closing(Party(tmp_path)) as party:
        yield party


def wrong(invitation: Invitation) -> Invitation:
    """Return the invitation with another secret."""
    return Invitation(invitation.address, invitation.fingerprint, bytes(20))


@contextlib.contextmanager
def approach(
    invitation: Invitation, shown: Identity, said: bytes | None = None
) -> Iterator[Conversation]:
    """Come as a guest who does as it likes, up to the host's ``Continue``.

    Args:
        shown: whose certificate and key TLS gets to see.
        said: the certificate that the guest claims; by default the same.
    """
    with connected(invitation.address, shown) as connection:
        talk = Conversation(connection, 20)
        talk.send(Hello(said or shown.certificate))
        yield talk


def refused(talk: Conversation, message: Message | None = None) -> str:
    """Return how the host refuses, after a message or at once."""
    if message is not None:
        talk.send(message)
    answer = talk.receive()
    assert isinstance(answer, TurnedAway), answer
    return answer.why


def ended(talk: Conversation, message: Message) -> bool:
    """Tell whether the host refuses a message, or breaks the conversation off."""
    try:
        talk.send(message)
        return isinstance(talk.receive(), TurnedAway)
    except (OSError, ObhutError):
        return True


def nobody_is_pinned(party: Party) -> bool:
    """Tell whether neither side knows anybody."""
    return len(party.peers) == len(party.guests) == 0


# What it is for


def test_host_and_guest_pin_each_other(party: Party) -> None:
    """After an invitation was redeemed, each side has the other's certificate."""
    assert party.accept() == Peer("host", HOST.id, HOST.certificate)
    assert party.outcome() == Peer("guest", GUEST.id, GUEST.certificate)
    assert party.guests.find("host").certificate == HOST.certificate
    assert party.peers.find("guest").certificate == GUEST.certificate


def test_the_text_is_all_the_guest_needs(party: Party) -> None:
    """An invitation can be redeemed from its text, even if a mail has wrapped it."""
    text = str(party.invitation)
    wrapped = f"  {text[:50]}\r\n{text[50:]}\n"
    assert accept(wrapped, GUEST, party.guests, "host").id == HOST.id
    assert party.outcome().id == GUEST.id


def test_those_who_know_each_other_can_meet_again(tmp_path: Path) -> None:
    """A guest that has pinned the host already can come with a new invitation."""
    PeerBook(tmp_path / "guest").add("host", HOST.certificate)
    with contextlib.closing(Party(tmp_path)) as party:
        assert party.accept().id == HOST.id
        assert party.outcome().id == GUEST.id


# The text


ADDRESSES = st.sampled_from(
    ["bob:7001", "127.0.0.1:1", "[::1]:65535", "a-b.example:80"]
)


@given(ADDRESSES, st.binary(min_size=20, max_size=20))
def test_an_invitation_survives_its_text(address: str, secret: bytes) -> None:
    """What is read from an invitation's text is the invitation."""
    invitation = Invitation(address, HOST.id, secret)
    assert Invitation.parse(str(invitation)) == invitation


@given(st.data())
def test_a_garbled_text_is_refused(data: st.DataObject) -> None:
    """One letter more, less or other, and it is refused before anything is sent."""
    text = str(Invitation("bob:7001", HOST.id, b"s" * 20))
    place = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from("abcdefgxyz234567/:1٣é"))
    head, tail = text[:place], text[place + 1 :]
    for garbled in (head + letter + tail, head + tail, head + letter + text[place:]):
        if garbled != text:
            with pytest.raises(InviteError):
                Invitation.parse(garbled)


@given(st.text(max_size=200))
def test_any_text_is_refused(text: str) -> None:
    """Text that is no invitation raises ``InviteError`` and nothing else."""
    with pytest.raises(InviteError):
        Invitation.parse(text)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "bob",
        ":1",
        "bob:",
        "bob:x",
        "bob:65536",
        "::1:1",
        "[bob]:1",
        "[::1:1",
        "b:٣",
    ],
)
def test_what_is_no_address_is_refused(tmp_path: Path, address: str) -> None:
    """An address that can't be told apart into host and port is refused at once."""
    with pytest.raises(InviteError):
        split(address)
    with pytest.raises(InviteError):
        Listener(HOST, PeerBook(tmp_path), "guest", listen=address)
    with pytest.raises(InviteError):
        Listener(
            HOST, PeerBook(tmp_path), "guest", listen="127.0.0.1:0", address=address
        )


def test_addresses_are_put_together_as_they_are_taken_apart() -> None:
    """Host and port come back, with IPv6's colons in brackets."""
    for host, port in (("bob", 1), ("::1", 2)):
        assert split(join(host, port)) == (host, port)


def test_secrets_are_new_and_long() -> None:
    """Each invitation has a secret of 160 bits of its own."""
    one, other = (Invitation.to("bob:1", HOST.id) for _ in range(2))
    assert one.secret != other.secret
    assert len(one.secret) == 20


def test_the_secret_is_in_no_log_and_no_repr(
    party: Party, caplog: pytest.LogCaptureFixture
) -> None:
    """The secret is in the text to be passed on, and in nothing else written."""
    with caplog.at_level(logging.DEBUG):
        with pytest.raises(InviteError) as error:
            party.accept(invitation=wrong(party.invitation))
        party.accept()
        party.outcome()
    secret = str(party.invitation).split("/")[3]
    for written in (repr(party.invitation), str(error.value), caplog.text):
        assert secret not in written
        assert repr(party.invitation.secret) not in written


def test_a_listener_on_all_addresses_names_the_machine(tmp_path: Path) -> None:
    """The invitation of a listener on all addresses has this machine's name."""
    peers = PeerBook(tmp_path)
    with Listener(HOST, peers, "guest", listen="0.0.0.0:0") as listener:
        host, _ = split(listener.invitation.address)
        assert host == socket.gethostname()
    with Listener(
        HOST, peers, "guest", listen="127.0.0.1:0", address="bob.example:7"
    ) as listener:
        assert listener.invitation.address == "bob.example:7"


# Proofs


def test_a_proof_is_for_one_part_and_two_certificates() -> None:
    """A proof convinces of nothing else: no other part, host, guest or secret."""
    invitation = Invitation("bob:1", HOST.id, b"s" * 20)
    host, guest, other = (i.certificate for i in (HOST, GUEST, MALLORY))
    proof = invitation.prove("guest", host, guest)
    assert invitation.proves(proof, "guest", host, guest)
    assert not invitation.proves(proof, "host", host, guest)
    assert not invitation.proves(proof, "guest", guest, host)
    assert not invitation.proves(proof, "guest", host, other)
    assert not invitation.proves(proof, "guest", other, guest)
    assert not wrong(invitation).proves(proof, "guest", host, guest)
    assert not invitation.proves(b"", "guest", host, guest)


def test_a_proof_is_bound_to_the_certificate_and_not_only_its_key() -> None:
    """Both sides pin the very certificates that were proved."""
    invitation = Invitation("bob:1", HOST.id, b"s" * 20)
    other = forge(key=key_of(GUEST)).certificate
    proof = invitation.prove("guest", HOST.certificate, GUEST.certificate)
    assert not invitation.proves(proof, "guest", HOST.certificate, other)


# The guest is not who was invited


def test_a_wrong_secret_is_refused(party: Party) -> None:
    """Who has the address and the host's id, but not the secret, is not pinned."""
    with pytest.raises(InviteError, match="secret is wrong"):
        party.accept(MALLORY, wrong(party.invitation))
    assert nobody_is_pinned(party)


def test_two_wrong_proofs_are_forgiven(party: Party) -> None:
    """A few wrong tries don't keep the guest out."""
    for _ in range(2):
        with pytest.raises(InviteError, match="secret is wrong"):
            party.accept(MALLORY, wrong(party.invitation))
    party.accept()
    assert party.outcome().id == GUEST.id


def test_the_secret_can_not_be_guessed_at(party: Party) -> None:
    """The third wrong proof ends the invitation, for the right secret as well."""
    with approach(party.invitation, GUEST) as early:
        assert early.receive() == Continue()
        for _ in range(3):
            with pytest.raises((InviteError, TransportError)):
                party.accept(MALLORY, wrong(party.invitation))
        with pytest.raises(InviteError, match="3 proofs were wrong"):
            party.outcome()
        right = party.invitation.prove("guest", HOST.certificate, GUEST.certificate)
        assert ended(early, Proof(right))
    with pytest.raises(TransportError):
        party.accept()
    assert nobody_is_pinned(party)


def test_guesses_at_the_same_time_are_counted_too(party: Party) -> None:
    """Eight guesses in parallel are no more than three, and the rest are unread."""
    judged: list[str] = []

    def guess(number: int) -> None:
        with contextlib.suppress(ObhutError, OSError):
            try:
                party.accept(MALLORY, wrong(party.invitation))
            except InviteError as error:
                judged.append(error.why)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(guess, range(8)))
    with pytest.raises(InviteError, match="3 proofs were wrong"):
        party.outcome()
    assert sum("secret is wrong" in why for why in judged) <= 3
    assert nobody_is_pinned(party)


def test_strangers_that_prove_nothing_do_not_count(party: Party) -> None:
    """Scans and noise, in the clear or in TLS, don't use the invitation up."""
    address = split(party.invitation.address)
    for noise in (b"", b"GET / HTTP/1.1\r\n\r\n", bytes(64), b"\x16\x03\x01" * 99):
        with socket.create_connection(address) as connection:
            connection.sendall(noise)
    for noise in (b"", bytes(4), b"\xff" * 99, bytes([0, 0, 0, 9]) + bytes(9)):
        with (
            contextlib.suppress(OSError),
            connected(party.invitation.address, MALLORY) as secured,
        ):
            secured.sendall(noise)
    party.accept()
    assert party.outcome().id == GUEST.id


Come: TypeAlias = Callable[[str], contextlib.AbstractContextManager[socket.socket]]


class Strangers:
    """Connections that prove nothing, and are made anew whenever they end.

    Args:
        address: of whom they keep.
        come: makes one.
        many: how many there are at a time.
    """

    def __init__(self, address: str, come: Come, many: int) -> None:
        self._address = address
        self._come = come
        self._over = threading.Event()
        self.turned_away = 0
        self._threads = [threading.Thread(target=self._keep) for _ in range(many)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Let them go."""
        self._over.set()
        for thread in self._threads:
            thread.join(20)

    def _keep(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(OSError), self._come(self._address) as one:
                one.settimeout(0.1)
                while not self._over.is_set():
                    with contextlib.suppress(TimeoutError):
                        if not one.recv(1):
                            break
                self.turned_away += 1


def silent(address: str) -> socket.socket:
    """Come, and say nothing at all."""
    return socket.create_connection(split(address))


def half(address: str) -> socket.socket:
    """Come with the beginning of TLS."""
    connection = silent(address)
    connection.sendall(b"\x16\x03\x01\x02\x00\x01")
    return connection


def secured(address: str) -> contextlib.AbstractContextManager[socket.socket]:
    """Come with TLS, and say nothing in it."""
    return connected(address, MALLORY)


@pytest.mark.parametrize("come", [silent, half, secured])
def test_strangers_do_not_keep_the_guest_out(party: Party, come: Come) -> None:
    """As many as there are places for and more, all made anew when they are ended."""
    strangers = Strangers(party.invitation.address, come, 24)
    try:
        while not strangers.turned_away:
            pass
        party.accept()
        assert party.outcome().id == GUEST.id
    finally:
        strangers.close()


def test_who_does_not_begin_tls_has_two_seconds(party: Party) -> None:
    """Whether or not anybody else comes; in drips, too."""
    began = time.monotonic()
    with half(party.invitation.address) as connection:
        connection.settimeout(1)
        with contextlib.suppress(OSError):
            while True:
                with contextlib.suppress(TimeoutError):
                    if not connection.recv(1):
                        break
                connection.sendall(b"\x00")
    assert 1.5 < time.monotonic() - began < 6


def test_who_has_proved_the_secret_makes_no_room(party: Party) -> None:
    """However many come after."""
    with approach(party.invitation, MALLORY) as talk:
        assert talk.receive() == Continue()
        proof = party.invitation.prove("guest", HOST.certificate, MALLORY.certificate)
        talk.send(Proof(proof))
        assert isinstance(talk.receive(), Proof)
        strangers = Strangers(party.invitation.address, silent, 24)
        try:
            while not strangers.turned_away:
                pass
            talk.send(Pinned())
            assert talk.receive() == Pinned()
        finally:
            strangers.close()
    assert party.outcome().id == MALLORY.id


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xff\xff\xff",
        (8193).to_bytes(4, "big"),
        (0).to_bytes(4, "big"),
        (3).to_bytes(4, "big") + b"\xc1\xc1\xc1",
        (8000).to_bytes(4, "big") + b"\x91" * 8000,
        (8).to_bytes(4, "big") + msgspec.msgpack.encode({"type": "X"}),
    ],
    ids=["endless", "too long", "empty", "no message", "deep", "unknown"],
)
def test_what_is_no_message_is_refused(party: Party, content: bytes) -> None:
    """Frames that are too long, too deep or no message end that conversation only."""
    with connected(party.invitation.address, MALLORY) as connection:
        connection.sendall(content)
        assert "protocol" in refused(Conversation(connection, 20))
    party.accept()
    assert party.outcome().id == GUEST.id


def test_messages_out_of_turn_are_refused(party: Party) -> None:
    """A guest can't skip its proof."""
    with connected(party.invitation.address, MALLORY) as connection:
        assert "protocol" in refused(Conversation(connection, 20), Pinned())
    with approach(party.invitation, MALLORY) as talk:
        assert talk.receive() == Continue()
        assert "protocol" in refused(talk, Pinned())
    assert nobody_is_pinned(party)


def test_a_certificate_without_its_key_is_refused(party: Party) -> None:
    """An invited guest can't enrol somebody else's certificate under its name.

    It knows the secret and says bob's certificate, while it has its own key only.
    """
    host = HOST.certificate
    with approach(party.invitation, MALLORY, said=BOB.certificate) as talk:
        assert talk.receive() == Continue()
        proof = party.invitation.prove("guest", host, BOB.certificate)
        assert ended(talk, Proof(proof))
    assert nobody_is_pinned(party)
    party.accept()
    assert party.outcome().id == GUEST.id


def test_a_proof_before_the_key_was_shown_is_refused(party: Party) -> None:
    """TLS lets data pass while it waits for the certificate; the host does not.

    The guest knows the secret, and neither reads nor answers what TLS asks.
    """
    proof = party.invitation.prove("guest", HOST.certificate, BOB.certificate)
    with approach(party.invitation, MALLORY, said=BOB.certificate) as talk:
        talk.send(Proof(proof))
        assert talk.receive() == Continue()
        assert ended(talk, Pinned())
    assert nobody_is_pinned(party)


def test_a_guest_that_shows_no_certificate_is_refused(party: Party) -> None:
    """Without a certificate in TLS, one in a message is worth nothing."""
    with connected(party.invitation.address) as connection:
        talk = Conversation(connection, 20)
        talk.send(Hello(BOB.certificate))
        assert talk.receive() == Continue()
        proof = party.invitation.prove("guest", HOST.certificate, BOB.certificate)
        assert ended(talk, Proof(proof))
    assert nobody_is_pinned(party)


@pytest.mark.parametrize("ca", [True, None])
def test_an_authority_can_not_enrol(party: Party, ca: bool | None) -> None:
    """A guest whose certificate could sign others is refused, secret or not."""
    with approach(party.invitation, forge(ca=ca, signs=True)) as talk:
        assert "CA:FALSE" in refused(talk)
    assert nobody_is_pinned(party)


def test_two_certificates_can_not_enrol(party: Party) -> None:
    """A second certificate behind the guest's own is refused."""
    said = MALLORY.certificate + forge(ca=True, signs=True).certificate
    with approach(party.invitation, MALLORY, said=said) as talk:
        assert "one certificate" in refused(talk)
    assert nobody_is_pinned(party)


def test_a_guest_that_is_known_by_another_name_is_refused(tmp_path: Path) -> None:
    """Somebody who is pinned can't get a second name by an invitation."""
    PeerBook(tmp_path / "host").add("mallory", MALLORY.certificate)
    with contextlib.closing(Party(tmp_path)) as party:
        with pytest.raises(InviteError, match="known as mallory"):
            party.accept(MALLORY)
        with pytest.raises(PeerError, match="known as mallory"):
            party.outcome()
        assert [peer.name for peer in party.peers] == ["mallory"]
        assert len(party.guests) == 0


def test_the_hosts_own_key_is_refused(party: Party) -> None:
    """Whoever holds the host's key can't come as its guest, nor by mistake."""
    with pytest.raises(InviteError, match="your own"):
        party.accept(HOST)
    with approach(party.invitation, HOST) as talk:
        assert talk.receive() == Continue()
        proof = party.invitation.prove("guest", HOST.certificate, HOST.certificate)
        assert "same key" in refused(talk, Proof(proof))
    assert nobody_is_pinned(party)


def test_old_tls_is_refused(party: Party) -> None:
    """The listener speaks TLS 1.3 and nothing before it."""
    context = careless_context(MALLORY, ssl.TLSVersion.TLSv1_2)
    with (
        pytest.raises(OSError, match=r"(?i)version|reset|eof"),
        connected(party.invitation.address, context=context),
    ):
        pass


# Its end


def test_an_invitation_holds_once(party: Party) -> None:
    """A replayed invitation is refused, by anybody and by the same guest."""
    party.accept()
    party.outcome()
    for identity in (MALLORY, GUEST):
        with pytest.raises(TransportError, match="have been used"):
            party.accept(identity)
    assert [peer.id for peer in party.peers] == [GUEST.id]


def test_of_two_guests_with_one_invitation_one_is_pinned(party: Party) -> None:
    """Who has proved the secret, but is not first, is not pinned."""
    with approach(party.invitation, MALLORY) as talk:
        assert talk.receive() == Continue()
        proof = party.invitation.prove("guest", HOST.certificate, MALLORY.certificate)
        talk.send(Proof(proof))
        assert isinstance(talk.receive(), Proof)
        party.accept()
        assert ended(talk, Pinned())
    assert party.outcome().id == GUEST.id
    assert [peer.id for peer in party.peers] == [GUEST.id]


def test_of_many_guests_at_once_one_is_pinned_and_the_others_can_come_again(
    party: Party, tmp_path: Path
) -> None:
    """Who was late knows no host by it, and enrols with another invitation."""
    guests = [Identity.create() for _ in range(6)]
    books = [PeerBook(tmp_path / f"guest-{k}") for k in range(len(guests))]

    def come(guest: Identity, book: PeerBook) -> str:
        try:
            accept(party.invitation, guest, book, "host")
        except (InviteError, TransportError) as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(guests)) as threads:
        told = list(threads.map(come, guests, books))
    came = [not words for words in told]
    assert came.count(True) == 1
    for words in filter(None, told):
        assert re.search("ask for another|have been used", words)
    assert party.outcome().id == guests[came.index(True)].id
    assert [len(list(book)) for book in books] == [int(one) for one in came]
    late = came.index(False)
    with (
        Listener(HOST, party.peers, "late", listen="127.0.0.1:0") as listener,
        ThreadPoolExecutor(1) as threads,
    ):
        waiting = threads.submit(listener.wait)
        accept(listener.invitation, guests[late], books[late], "host")
        assert waiting.result(20).id == guests[late].id


def test_who_has_proved_the_secret_too_late_is_told(party: Party) -> None:
    """And not merely cut off: it is to forget the host."""
    with approach(party.invitation, MALLORY) as talk:
        assert talk.receive() == Continue()
        proof = party.invitation.prove("guest", HOST.certificate, MALLORY.certificate)
        talk.send(Proof(proof))
        assert isinstance(talk.receive(), Proof)
        party.accept()
        assert "used already" in refused(talk, Pinned())


def test_an_invitation_ends_at_its_time(tmp_path: Path) -> None:
    """When nobody comes in time, the host is told so, and the listener is gone."""
    with Listener(
        HOST, PeerBook(tmp_path), "guest", listen="127.0.0.1:0", seconds=0.05
    ) as listener:
        with pytest.raises(InviteError, match="time is over"):
            listener.wait()
        with pytest.raises(TransportError):
            accept(listener.invitation, GUEST, PeerBook(tmp_path / "guest"), "host")


@pytest.mark.parametrize("proved", [False, True])
def test_an_expired_invitation_is_refused(party: Party, proved: bool) -> None:
    """A guest that came in time and stays too long is refused, at each step."""
    proof = party.invitation.prove("guest", HOST.certificate, GUEST.certificate)
    with approach(party.invitation, GUEST) as talk:
        assert talk.receive() == Continue()
        if proved:
            talk.send(Proof(proof))
            assert isinstance(talk.receive(), Proof)
        party.clock.now = 600.0
        assert "time is over" in refused(talk, Pinned() if proved else Proof(proof))
    assert nobody_is_pinned(party)


def test_a_withdrawn_invitation_is_refused(party: Party) -> None:
    """After ``close`` nobody is pinned any more, even in mid-conversation."""
    with approach(party.invitation, GUEST) as talk:
        assert talk.receive() == Continue()
        party.listener.close()
        with pytest.raises((OSError, ObhutError)):
            talk.receive()
    with pytest.raises(InviteError, match="withdrawn"):
        party.outcome()
    with pytest.raises(TransportError):
        party.accept()
    assert nobody_is_pinned(party)


def test_a_guest_that_was_cut_off_can_come_again(party: Party) -> None:
    """A connection that breaks before the host has pinned leaves the invitation."""
    proof = party.invitation.prove("guest", HOST.certificate, GUEST.certificate)
    with approach(party.invitation, GUEST) as talk:
        assert talk.receive() == Continue()
        talk.send(Proof(proof))
        assert isinstance(talk.receive(), Proof)
    assert nobody_is_pinned(party)
    party.accept()
    assert party.outcome().id == GUEST.id


# The host is not who made the invitation


@contextlib.contextmanager
def played(
    host: Identity, play: Callable[[Conversation], None]
) -> Iterator[tuple[str, list[bytes]]]:
    """Answer one guest as a host that does as it likes.

    Yields its address, and what it could read before it played.
    """
    heard: list[bytes] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load(context, host)

    def answer() -> None:
        connection, _ = server.accept()
        with (
            contextlib.suppress(OSError, ObhutError),
            context.wrap_socket(connection, server_side=True) as secured,
        ):
            secured.settimeout(20)
            talk = Conversation(secured, 20)
            message = talk.receive()
            heard.append(msgspec.msgpack.encode(message))
            play(talk)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield join(*server.getsockname()), heard
        finally:
            thread.join(20)


@pytest.mark.parametrize("impostor", [MALLORY, forge(copied=HOST)])
def test_a_man_in_the_middle_is_noticed(tmp_path: Path, impostor: Identity) -> None:
    """Who answers with another key hears nothing, even if it has the whole text."""
    guests = PeerBook(tmp_path)
    with played(impostor, lambda talk: None) as (address, heard):
        invitation = Invitation(address, HOST.id, b"s" * 20)
        with pytest.raises(InviteError, match="not who made it"):
            accept(invitation, GUEST, guests, "host")
    assert heard == []
    assert len(guests) == 0


def test_a_host_without_the_secret_is_not_pinned(tmp_path: Path) -> None:
    """The host proves the secret too, and can't by the guest's own proof."""

    def mirror(talk: Conversation) -> None:
        talk.send(Continue())
        message = talk.receive()
        assert isinstance(message, Proof)
        talk.send(message)
        talk.receive()

    guests = PeerBook(tmp_path)
    with played(HOST, mirror) as (address, _):
        invitation = Invitation(address, HOST.id, b"s" * 20)
        with pytest.raises(InviteError, match="does not know its secret"):
            accept(invitation, GUEST, guests, "host")
    assert len(guests) == 0


def test_an_authority_can_not_invite(tmp_path: Path) -> None:
    """A host whose certificate could sign others is not pinned."""
    authority = forge(ca=True, signs=True)
    guests = PeerBook(tmp_path)
    with played(authority, lambda talk: None) as (address, heard):
        invitation = Invitation(address, authority.id, b"s" * 20)
        with pytest.raises(ObhutError, match="CA:FALSE"):
            accept(invitation, GUEST, guests, "host")
    assert heard == []
    assert len(guests) == 0


def test_a_host_that_refuses_at_the_end_is_forgotten(tmp_path: Path) -> None:
    """If the host did not pin the guest, the guest does not keep the host either."""
    invitation = Invitation("127.0.0.1:1", HOST.id, b"s" * 20)

    def refuse(talk: Conversation) -> None:
        talk.send(Continue())
        talk.receive()
        certificates_ = HOST.certificate, GUEST.certificate
        talk.send(Proof(invitation.prove("host", *certificates_)))
        talk.receive()
        talk.send(TurnedAway("\x1b[2Jno"))

    guests = PeerBook(tmp_path)
    with played(HOST, refuse) as (address, _):
        there = Invitation(address, HOST.id, invitation.secret)
        with pytest.raises(InviteError, match="no") as error:
            accept(there, GUEST, guests, "host")
    assert len(guests) == 0
    assert "\x1b" not in str(error.value)


def test_a_host_that_falls_silent_is_left(tmp_path: Path) -> None:
    """A guest doesn't wait longer than it was told to."""
    done = threading.Event()
    guests = PeerBook(tmp_path)
    with played(HOST, lambda talk: done.wait(20) and None) as (address, _):
        invitation = Invitation(address, HOST.id, b"s" * 20)
        with pytest.raises(TransportError):
            accept(invitation, GUEST, guests, "host", seconds=0.3)
        done.set()
    assert len(guests) == 0


def test_names_are_looked_at_first(tmp_path: Path) -> None:
    """A name that can't be used is refused before the invitation is spent on it."""
    peers = PeerBook(tmp_path)
    peers.add("bob", BOB.certificate)
    invitation = Invitation("127.0.0.1:1", HOST.id, b"s" * 20)
    for name in ("bob", "../bob", ""):
        with pytest.raises(PeerError):
            accept(invitation, GUEST, peers, name)
        with pytest.raises(PeerError):
            Listener(HOST, peers, name, listen="127.0.0.1:0")


def test_a_taken_port_is_an_error_of_the_transport(
    party: Party, tmp_path: Path
) -> None:
    """A port that somebody has is named, as an obhut error."""
    with pytest.raises(TransportError, match="can not listen"):
        Listener(HOST, PeerBook(tmp_path), "x", listen=party.invitation.address)


def test_what_the_host_pins_is_what_was_proved(party: Party) -> None:
    """The pinned certificate is the one that TLS proved, byte for byte."""
    party.accept()
    pinned = party.outcome().certificate
    assert certificates.to_der(pinned) == certificates.to_der(GUEST.certificate)
