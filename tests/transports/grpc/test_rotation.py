"""A node that changes to a new key, and who would like to do so in its place."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from obhut.client.network import connect
from obhut.errors import (
    ConfigurationError,
    HandoverError,
    IdentityError,
    ObhutError,
    PeerError,
    PeerNotFoundError,
    RotationError,
)
from obhut.identity import rotation
from obhut.identity.identity import Identity
from obhut.identity.peers import PeerBook
from obhut.identity.rotation import Handover

from .conftest import World

NOW = 1_800_000_000
DAY = 86_400
UNTIL = NOW + 14 * DAY

OLD, NEW, NEWER, MALLORY = (Identity.create() for _ in range(4))


class Book:
    """A peer's book, with a day that a test sets."""

    def __init__(self, folder: Path) -> None:
        self.now = float(NOW)
        self.peers = PeerBook(folder / "peers", lambda: self.now)
        self.peers.add("bob", OLD.certificate)

    def accept(self, handover: Handover) -> str:
        """Take a hand-over as it came; return the id that follows."""
        again = Handover.parse(handover.encode())
        return rotation.accept(again, self.peers, self.now).id


@pytest.fixture
def book(tmp_path: Path) -> Book:
    """Return a book that knows bob's old key."""
    return Book(tmp_path)


def made(old: Identity = OLD, new: Identity = NEW, until: int = UNTIL) -> Handover:
    """Return a hand-over from one key to another."""
    return Handover.make(old, new, until)


SENT = made().encode()


def test_both_keys_are_the_peer_until_the_day(book: Book) -> None:
    """Under one name, by either id; then the old one is unknown, without a change."""
    assert book.accept(made()) == NEW.id
    assert [peer.id for peer in book.peers] == [NEW.id]
    for id in (OLD.id, NEW.id):
        assert book.peers.find(id).name == "bob"
        assert book.peers.find(id).id == id
    assert book.peers.find("bob").id == NEW.id
    for identity in (OLD, NEW):
        assert identity.certificate in book.peers.roots()
    book.now = UNTIL - 1.0
    assert book.peers.find(OLD.id).name == "bob"
    book.now = float(UNTIL)
    with pytest.raises(PeerNotFoundError):
        book.peers.find(OLD.id)
    assert book.peers.roots() == NEW.certificate
    assert book.peers.broken == {}


def test_accepting_again_changes_nothing(book: Book) -> None:
    """A file that was sent twice does no harm, and is no error."""
    book.accept(made())
    assert book.accept(made(until=UNTIL + DAY)) == NEW.id
    assert book.peers.former["bob"].until == UNTIL


def test_a_chain_of_keys_is_followed(book: Book) -> None:
    """The second hand-over is signed by the new key; of former ones one is left."""
    book.accept(made())
    book.accept(made(NEW, NEWER))
    assert book.peers.find("bob").id == NEWER.id
    assert book.peers.find(NEW.id).name == "bob"
    with pytest.raises(PeerNotFoundError):
        book.peers.find(OLD.id)


def test_a_former_key_hands_over_to_nobody(book: Book) -> None:
    """Who stole the old key after the hand-over gets nobody accepted by it."""
    book.accept(made())
    for now in (NOW, UNTIL + 1):
        book.now = float(now)
        with pytest.raises(PeerError, match="handed over before"):
            book.accept(made(OLD, MALLORY, now + DAY))
    assert book.peers.find("bob").id == NEW.id
    assert MALLORY.certificate not in book.peers.roots()


def test_a_new_key_does_not_hand_back(book: Book) -> None:
    """A former key does not become the present one again."""
    book.accept(made())
    with pytest.raises(PeerError, match="known already"):
        book.accept(made(NEW, OLD))


def test_who_was_removed_does_not_come_back(book: Book) -> None:
    """Neither by a hand-over made before nor after, nor by the former key."""
    before = made()
    book.peers.remove("bob")
    with pytest.raises(PeerError, match="was removed"):
        book.accept(before)
    book.peers.add("bob", OLD.certificate)
    book.accept(before)
    book.peers.remove(OLD.id)
    for id in (OLD.id, NEW.id, "bob"):
        with pytest.raises(PeerNotFoundError):
            book.peers.find(id)
    for handover in (before, made(NEW, NEWER)):
        with pytest.raises(PeerError, match="was removed"):
            book.accept(handover)
    assert book.peers.roots() == b""


def test_nobody_takes_anothers_key_over(book: Book) -> None:
    """A hand-over to alice's key makes bob not alice, nor is she locked out."""
    book.peers.add("alice", NEW.certificate)
    with pytest.raises(PeerError, match="as alice's"):
        book.accept(made())
    assert book.peers.find(NEW.id).name == "alice"


@pytest.mark.parametrize(
    "forged",
    [
        # The old key did not sign: mallory signed for it.
        msgspec.structs.replace(made(MALLORY, NEW), old=made().old),
        # The new key did not sign: its certificate was only seen.
        msgspec.structs.replace(made(OLD, MALLORY), new=made().new),
        msgspec.structs.replace(made(), until=UNTIL + 1),
        msgspec.structs.replace(made(), by_old=made().by_new),
        msgspec.structs.replace(made(), by_new=made().by_old),
        msgspec.structs.replace(made(), by_new=b""),
        msgspec.structs.replace(made(), old=made().new, new=made().old),
        msgspec.structs.replace(made(), new=made().new + made().new),
        msgspec.structs.replace(made(), new="ü"),
    ],
)
def test_what_not_both_keys_signed_is_refused(book: Book, forged: Handover) -> None:
    """Whatever was put together otherwise, the peer stays as it was."""
    with pytest.raises(HandoverError):
        book.accept(forged)
    assert [peer.id for peer in book.peers] == [OLD.id]


def test_time_and_length_are_bounded(book: Book) -> None:
    """A hand-over ends some day, and does not keep an old key for years."""
    with pytest.raises(HandoverError, match="time is over"):
        book.accept(made(until=NOW))
    with pytest.raises(HandoverError, match="90 days"):
        book.accept(made(until=NOW + 92 * DAY))
    assert [peer.id for peer in book.peers] == [OLD.id]


@given(st.binary(max_size=300))
def test_any_bytes_are_a_handover_or_refused(data: bytes) -> None:
    """No text of a stranger's raises anything else."""
    with pytest.raises(HandoverError):
        Handover.parse(data)


@given(st.data())
def test_a_changed_letter_is_noticed(data: st.DataObject) -> None:
    """Each byte of it counts, but for white space around what is signed."""
    text = bytearray(SENT)
    index = data.draw(st.integers(0, len(text) - 1))
    text[index] ^= data.draw(st.sampled_from((1, 2, 4, 16)))
    try:
        found = Handover.parse(bytes(text))
    except HandoverError:
        return
    assert (found.old, found.new, found.until) == (made().old, made().new, UNTIL)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (OLD.certificate, "until when"),
        (b"until 0\n" + OLD.certificate, "until when"),
        (b"until 99999999999\nnonsense", "one certificate"),
    ],
)
def test_a_damaged_file_of_a_former_key_is_left_out(
    book: Book, content: bytes, why: str
) -> None:
    """The peer's own key is not concerned, and the file is named."""
    book.accept(made())
    file = book.peers.folder / "bob.former"
    file.write_bytes(content)
    file.chmod(0o600)
    assert why in book.peers.broken["bob.former"]
    assert book.peers.find("bob").id == NEW.id
    assert book.peers.roots() == NEW.certificate


def test_a_former_key_of_two_is_nobodys(book: Book) -> None:
    """A file that claims another's key, or another's former one, is left out."""
    book.accept(made())
    book.peers.add("alice", NEWER.certificate)
    for claimed in (NEW, OLD):
        file = book.peers.folder / "alice.former"
        file.write_bytes(f"until {UNTIL}\n".encode() + claimed.certificate)
        file.chmod(0o600)
        assert "another peer" in book.peers.broken["alice.former"]
        assert book.peers.find(NEW.id).name == "bob"
    with pytest.raises(PeerNotFoundError):
        book.peers.find(OLD.id)


# --- the node's side --------------------------------------------------------------


def test_a_new_key_waits_and_then_is_the_nodes(tmp_path: Path) -> None:
    """Until then nothing changes; afterwards the old key is nowhere."""
    OLD.save(tmp_path)
    first = rotation.begin(tmp_path, 14, NOW)
    assert Identity.load(tmp_path) == OLD
    again = rotation.begin(tmp_path, 7, NOW)
    assert (again.new, again.until) == (first.new, NOW + 7 * DAY)
    new = rotation.finish(tmp_path)
    assert Identity.load(tmp_path) == new
    assert new.certificate.decode() == first.new
    secret = OLD.key.splitlines()[1]
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.name for path in left) == ["identity.crt", "identity.key"]
    assert not [path for path in left if secret in path.read_bytes()]
    with pytest.raises(IdentityError, match="no new key waits"):
        rotation.finish(tmp_path)


def test_a_change_that_was_broken_off_is_finished(tmp_path: Path) -> None:
    """With the new key in place and the old certificate beside it, once more helps."""
    OLD.save(tmp_path)
    rotation.begin(tmp_path, 14, NOW)
    key = (tmp_path / "next" / "identity.key").read_bytes()
    (tmp_path / "identity.key").write_bytes(key)
    with pytest.raises(IdentityError):
        Identity.load(tmp_path)
    assert Identity.load(tmp_path / "next") == rotation.finish(tmp_path)
    assert Identity.load(tmp_path).key == key


def configured(folder: Path, policy: str) -> None:
    """Make a node's folder a worker's."""
    OLD.save(folder)
    (folder / "worker.toml").write_text(
        f'id = "bob"\nlisten = "127.0.0.1:0"\n[policy]\n{policy}\n'
        f'[[peer]]\nname = "hub"\nid = "{NEW.id}"\n'
    )


QUORUM = 'kind = "Quorum"\naggregators = ["{}"]\ncontributors = ["x", "y", "z"]'


@pytest.mark.parametrize(
    "named", ["bob", OLD.id, ""], ids=["by name", "by id", "by its ledger"]
)
def test_an_aggregator_keeps_its_key(tmp_path: Path, named: str) -> None:
    """By its policy, under any name, or by its ledger; agreeing does not help.

    With another key it could not open its ledger, and all on record would be lost.
    """
    configured(tmp_path, QUORUM.format(named) if named else 'kind = "UnsafeOpen"')
    # A key waits, as one does that an earlier version made.
    NEW.save(tmp_path / "next")
    if not named:
        (tmp_path / "ledger.sqlite").touch()
    for agreed in (False, True):
        with pytest.raises(RotationError, match="ledger"):
            rotation.begin(tmp_path, 14, NOW, between_studies=agreed)
        with pytest.raises(RotationError, match="ledger"):
            rotation.finish(tmp_path, between_studies=agreed)
    assert Identity.load(tmp_path) == OLD


def test_an_owner_is_told_what_a_new_key_means(tmp_path: Path) -> None:
    """Another person to the auditor: nothing is made or changed unless it agrees."""
    configured(tmp_path, QUORUM.format("hub"))
    with pytest.raises(RotationError, match=r"another person.*--between-studies"):
        rotation.begin(tmp_path, 14, NOW)
    assert not (tmp_path / "next").exists()
    rotation.begin(tmp_path, 14, NOW, between_studies=True)
    with pytest.raises(RotationError, match="another person"):
        rotation.finish(tmp_path)
    assert Identity.load(tmp_path) == OLD
    new = rotation.finish(tmp_path, between_studies=True)
    assert Identity.load(tmp_path) == new != OLD


def test_a_worker_without_a_policy_changes_its_key_freely(tmp_path: Path) -> None:
    """Nothing audits what it lets out. What is no configuration lets nothing happen."""
    configured(tmp_path, 'kind = "UnsafeOpen"')
    rotation.begin(tmp_path, 14, NOW)
    (tmp_path / "worker.toml").write_text("id = ")
    with pytest.raises(ConfigurationError):
        rotation.finish(tmp_path, between_studies=True)
    (tmp_path / "worker.toml").write_text(
        'id = "bob"\nlisten = "127.0.0.1:0"\n[policy]\nkind = "UnsafeOpen"\n'
    )
    assert rotation.finish(tmp_path) == Identity.load(tmp_path) != OLD


@pytest.mark.parametrize("days", [0, -1, 91])
def test_a_handover_is_for_some_days(tmp_path: Path, days: int) -> None:
    """Neither none nor a year."""
    OLD.save(tmp_path)
    with pytest.raises(HandoverError, match="90 days"):
        rotation.begin(tmp_path, days, NOW)


def test_a_worker_and_its_client_go_through_it(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A worker that runs on serves its client under the old key, then the new one.

    And who has only the old key does not reach it afterwards.
    """
    world = World(tmp_path, ("bob", "me", "you"))
    request.addfinalizer(world.close)
    address = world.serve("bob").address
    me = tmp_path / "me"
    old = world.identities["me"]
    handover = rotation.begin(me, 14, time.time())
    rotation.accept(handover, world.peers("bob"), time.time())
    with connect(address, folder=me) as net:  # with the old key
        assert net["bob"].objects_count() == 0
    rotation.finish(me)
    with connect(address, folder=me) as net:  # with the new one, by the name's right
        assert net["bob"].objects_count() == 0
    (world.root / "bob" / "peers" / "me.former").unlink()  # as if its day had come
    thief = tmp_path / "thief"
    old.save(thief)
    PeerBook(thief / "peers").add("bob", world.identities["bob"].certificate)
    with pytest.raises(ObhutError):
        connect(address, folder=thief)
    with connect(address, folder=me) as net:
        assert net["bob"].objects_count() == 0
