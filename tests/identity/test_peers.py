from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from obhut.errors import (
    CertificateError,
    PeerError,
    PeerNotFoundError,
    UnsafeFileError,
)
from obhut.host import files
from obhut.identity.identity import Identity
from obhut.identity.peers import Peer, PeerBook

from .forgery import forge, key_of

ALICE, BOB = Identity.create(), Identity.create()


@pytest.fixture
def peers(tmp_path: Path) -> PeerBook:
    """Return a book without peers."""
    return PeerBook(tmp_path / "peers")


def test_a_peer_is_found_by_name_and_id(peers: PeerBook) -> None:
    """What was added is found under its name and its id, and stands in the roots."""
    alice = peers.add("alice", ALICE.certificate)
    assert alice == Peer("alice", ALICE.id, ALICE.certificate)
    assert peers.find("alice") == peers.find(ALICE.id) == alice
    assert list(peers) == [alice]
    assert peers.roots() == ALICE.certificate


def test_peers_outlive_the_process(peers: PeerBook) -> None:
    """Another book of the same folder has the same peers."""
    peers.add("alice", ALICE.certificate)
    peers.add("bob", BOB.certificate)
    assert list(PeerBook(peers.folder)) == list(peers)
    assert peers.roots() == ALICE.certificate + BOB.certificate


def test_no_folder_is_no_peers(peers: PeerBook) -> None:
    """A book without a folder is empty, and a look at it makes none."""
    assert len(peers) == 0
    assert peers.roots() == b""
    with pytest.raises(PeerNotFoundError, match="pinned peers: none"):
        peers.find("alice")
    assert not peers.folder.exists()


def test_a_removed_peer_is_gone(peers: PeerBook) -> None:
    """A peer can be removed by name or id, and is in nothing after that."""
    peers.add("alice", ALICE.certificate)
    peers.add("bob", BOB.certificate)
    assert peers.remove("alice") == "alice"
    assert peers.remove(BOB.id) == "bob"
    assert list(peers) == []
    assert peers.roots() == b""
    with pytest.raises(PeerNotFoundError):
        peers.remove("alice")


def test_other_processes_changes_are_seen(peers: PeerBook) -> None:
    """What another process adds, exchanges or removes holds at the next look."""
    versions = [peers.version]
    other = PeerBook(peers.folder)
    other.add("alice", ALICE.certificate)
    assert peers.find("alice").id == ALICE.id
    versions.append(peers.version)
    files.write(peers.folder / "alice.crt", BOB.certificate, replace=True)
    assert peers.find("alice").id == BOB.id
    versions.append(peers.version)
    other.remove("alice")
    assert list(peers) == []
    versions.append(peers.version)
    assert len(set(versions)) == len(versions)


def test_nothing_is_read_again_without_a_change(peers: PeerBook) -> None:
    """While the files stay the same, so do version and peers."""
    peers.add("alice", ALICE.certificate)
    assert peers.version == peers.version
    assert peers.find("alice") is peers.find("alice")


def test_a_name_keeps_its_key(peers: PeerBook) -> None:
    """Nobody takes a name that another key has."""
    peers.add("alice", ALICE.certificate)
    with pytest.raises(PeerError, match="remove that peer first"):
        peers.add("alice", BOB.certificate)
    assert peers.find("alice").id == ALICE.id


def test_a_key_keeps_its_name(peers: PeerBook) -> None:
    """A key is not known under two names, of which one could be let in as another."""
    peers.add("alice", ALICE.certificate)
    other = forge(key=key_of(ALICE)).certificate
    for certificate in (ALICE.certificate, other):
        with pytest.raises(PeerError, match="known as alice"):
            peers.add("mallory", certificate)
    assert [peer.name for peer in peers] == ["alice"]


def test_to_pin_again_changes_nothing(peers: PeerBook) -> None:
    """The same name and certificate can be added again."""
    assert peers.add("alice", ALICE.certificate) == peers.add(
        "alice", ALICE.certificate
    )


def test_another_certificate_for_the_key_needs_a_removal(peers: PeerBook) -> None:
    """A pinned certificate is not exchanged, even for one of the same key."""
    peers.add("alice", ALICE.certificate)
    with pytest.raises(PeerError, match="remove that peer first"):
        peers.add("alice", forge(key=key_of(ALICE)).certificate)
    assert peers.find("alice").certificate == ALICE.certificate


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".alice",
        "-alice",
        "_alice",
        "../alice",
        "a/b",
        "/etc/alice",
        "a\\b",
        "Alice",
        "alíce",
        "аlice",  # noqa: RUF001 # the first letter is Cyrillic
        "a b",
        "alice\n",
        "alice\0",
        "a" * 41,
        pytest.param(ALICE.id, id="an id"),
    ],
)
def test_a_name_that_is_no_name_is_refused(peers: PeerBook, name: str) -> None:
    """Names can't leave the folder, hide in it, look alike or look like an id."""
    with pytest.raises(PeerError, match="expected 1 to 40"):
        peers.add(name, BOB.certificate)
    assert not peers.folder.exists()


def test_odd_names_are_kept_apart(peers: PeerBook) -> None:
    """A name may contain dots, even the suffix of the files."""
    peers.add("alice.crt", ALICE.certificate)
    peers.add("alice", BOB.certificate)
    assert peers.find("alice.crt").id == ALICE.id
    assert peers.find("alice").id == BOB.id


def test_an_authority_is_not_pinned(peers: PeerBook) -> None:
    """A certificate that could sign others can't be added."""
    with pytest.raises(CertificateError):
        peers.add("mallory", forge(ca=True, signs=True).certificate)
    assert peers.roots() == b""


def put(peers: PeerBook, name: str, content: bytes) -> Path:
    """Put a file into a book's folder, past the book."""
    files.make_folder(peers.folder)
    files.write(peers.folder / name, content, replace=True)
    return peers.folder / name


def test_an_authority_put_there_by_hand_is_left_out(
    peers: PeerBook, caplog: pytest.LogCaptureFixture
) -> None:
    """A file is held to the same form, is listed with the reason, and is logged."""
    mallory = forge(ca=True, signs=True)
    put(peers, "mallory.crt", mallory.certificate)
    put(peers, "eve.crt", ALICE.certificate + mallory.certificate)
    put(peers, "bob.crt", BOB.certificate)
    with caplog.at_level(logging.WARNING):
        assert peers.roots() == BOB.certificate
    assert set(peers.broken) == {"mallory.crt", "eve.crt"}
    assert "CA:FALSE" in peers.broken["mallory.crt"]
    assert "mallory.crt was left out" in caplog.text


def test_a_link_to_a_peers_file_is_left_out(peers: PeerBook) -> None:
    """A second name can't be had by a link to somebody's file."""
    peers.add("alice", ALICE.certificate)
    (peers.folder / "mallory.crt").symlink_to("alice.crt")
    assert [peer.name for peer in peers] == ["alice"]
    assert "link" in peers.broken["mallory.crt"]


def test_a_copy_of_a_peers_file_makes_both_void(peers: PeerBook) -> None:
    """Where files give one key two names, neither is believed."""
    peers.add("alice", ALICE.certificate)
    peers.add("bob", BOB.certificate)
    put(peers, "mallory.crt", ALICE.certificate)
    assert [peer.name for peer in peers] == ["bob"]
    assert set(peers.broken) == {"alice.crt", "mallory.crt"}
    peers.remove("mallory")
    assert [peer.name for peer in peers] == ["alice", "bob"]


def test_a_hard_link_is_a_copy(peers: PeerBook) -> None:
    """A hard link to somebody's file makes both names void as well."""
    peers.add("alice", ALICE.certificate)
    os.link(peers.folder / "alice.crt", peers.folder / "mallory.crt")
    assert list(peers) == []


@pytest.mark.parametrize(
    "name",
    [
        "alice",
        "Alice.crt",
        "..crt.crt",
        "alice.crt~",
        pytest.param(ALICE.id + ".crt", id="an id"),
    ],
)
def test_files_with_other_names_are_left_out(peers: PeerBook, name: str) -> None:
    """What isn't called as a peer's file is called is no peer's file."""
    put(peers, name, ALICE.certificate)
    assert list(peers) == []
    assert peers.broken == {} if name.startswith(".") else name in peers.broken


def test_a_file_that_others_can_change_is_left_out(peers: PeerBook) -> None:
    """A file is not believed once others could have written it."""
    peers.add("alice", ALICE.certificate)
    assert len(peers) == 1
    (peers.folder / "alice.crt").chmod(0o666)
    assert list(peers) == []
    assert "chmod" in peers.broken["alice.crt"]


def test_a_folder_that_others_can_change_is_refused(peers: PeerBook) -> None:
    """Nothing in a folder is believed if others could put files there."""
    peers.add("alice", ALICE.certificate)
    peers.folder.chmod(0o777)
    for look in (peers.roots, lambda: peers.find("alice"), lambda: list(peers)):
        with pytest.raises(UnsafeFileError, match="chmod"):
            look()


def test_a_broken_file_keeps_its_name_until_it_is_removed(peers: PeerBook) -> None:
    """A broken file is not overwritten, and can be removed by its peer's name."""
    put(peers, "alice.crt", b"garbage")
    with pytest.raises(PeerError, match="there is a file"):
        peers.add("alice", ALICE.certificate)
    assert peers.remove("alice") == "alice"
    assert peers.add("alice", ALICE.certificate).id == ALICE.id
    assert peers.broken == {}


def test_a_draft_is_no_peer(peers: PeerBook) -> None:
    """What a cut write leaves behind is not read."""
    put(peers, ".alice.crt.0123", ALICE.certificate)
    assert list(peers) == []
    assert peers.broken == {}
