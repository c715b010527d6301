from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from obhut.client.network import connect
from obhut.errors import CallError
from obhut.identity.identity import Identity
from obhut.identity.peers import PeerBook

from .conftest import Invoke


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Return the folders of two nodes, host and guest, each with an identity."""
    for name in ("host", "guest"):
        Identity.create().save(tmp_path / name)
    return tmp_path / "host", tmp_path / "guest"


@pytest.fixture
def inviting(folders: tuple[Path, Path]) -> Iterator[subprocess.Popen[str]]:
    """Return a host that waits for a guest, as a process."""
    command = [sys.executable, "-c", "from obhut.cli.main import app; app()"]
    options = ["--folder", str(folders[0]), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(
        [*command, "invite", "guest", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        yield process
        process.kill()


def test_invite_says_what_it_waits_for(folders: tuple[Path, Path]) -> None:
    """After two seconds; the code stays alone on standard output."""
    command = [sys.executable, "-c", "from obhut.cli.main import app; app()"]
    options = ["--folder", str(folders[0]), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(
        [*command, "invite", "guest", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("For guest, on a way")
        said = process.stderr.readline()
        process.kill()
        assert process.stdout is not None
        assert process.stdout.read().count("\n") == 1
    assert said.startswith("waiting for guest to join at 127.0.0.1:")


def test_init_makes_an_identity_and_prints_its_id(
    invoke: Invoke, tmp_path: Path
) -> None:
    """``obhut init`` prints the id of the identity that it made, and never its key."""
    result = invoke("init", "--folder", tmp_path / "node")
    assert result.exit_code == 0
    assert result.stdout == Identity.load(tmp_path / "node").id + "\n"
    assert "PRIVATE" not in result.output


def test_init_keeps_an_identity(invoke: Invoke, tmp_path: Path) -> None:
    """A second ``obhut init`` prints the same id and changes nothing."""
    first = invoke("init", "--folder", tmp_path / "node")
    before = Identity.load(tmp_path / "node")
    second = invoke("init", "--folder", tmp_path / "node")
    assert second.exit_code == 0
    assert second.stdout == first.stdout
    assert "already" in second.stderr
    assert Identity.load(tmp_path / "node") == before


def test_init_says_what_is_wrong(invoke: Invoke, tmp_path: Path) -> None:
    """An identity that can't be used is an error of one line."""
    invoke("init", "--folder", tmp_path)
    (tmp_path / "identity.key").chmod(0o644)
    result = invoke("init", "--folder", tmp_path)
    assert result.exit_code == 1
    assert "chmod" in result.stderr
    assert result.stdout == ""


def test_invite_and_join_pin_each_other(
    invoke: Invoke,
    folders: tuple[Path, Path],
    inviting: subprocess.Popen[str],
) -> None:
    """What ``obhut invite`` prints lets ``obhut join`` pin both to each other."""
    host, guest = folders
    assert inviting.stdout is not None
    code = inviting.stdout.readline()
    result = invoke("join", code, "--name", "host", "--folder", guest)
    assert result.exit_code == 0
    ids = [Identity.load(host).id, Identity.load(guest).id]
    assert result.stdout.split() == ids
    assert inviting.stdout.readline() == ids[1] + "\n"
    assert inviting.wait(20) == 0
    assert PeerBook(host / "peers").find("guest").id == ids[1]
    assert PeerBook(guest / "peers").find("host").id == ids[0]


def test_an_invitation_can_be_piped(
    folders: tuple[Path, Path], inviting: subprocess.Popen[str]
) -> None:
    """``obhut join -`` reads the code, which then is in no list of processes."""
    code = "from obhut.cli.main import app; app()"
    options = ["--name", "host", "--folder", str(folders[1])]
    joining = subprocess.run(
        [sys.executable, "-c", code, "join", "-", *options],
        stdin=inviting.stdout,
        capture_output=True,
        check=False,
    )
    assert joining.returncode == 0
    assert inviting.wait(20) == 0


def test_a_damaged_invitation_is_an_error_of_one_line(
    invoke: Invoke, folders: tuple[Path, Path]
) -> None:
    """``obhut join`` says what is wrong, and shows no traceback."""
    result = invoke("join", "obhut1/x", "--name", "host", "--folder", folders[1])
    assert result.exit_code == 1
    assert result.stderr.startswith("obhut join: the invitation does not hold")
    assert result.stdout == ""


def test_inviting_without_an_identity_is_an_error(
    invoke: Invoke, tmp_path: Path
) -> None:
    """``obhut invite`` without ``obhut init`` names that."""
    result = invoke("invite", "bob", "--folder", tmp_path)
    assert result.exit_code == 1
    assert "obhut init" in result.stderr


def test_peers_are_listed_and_removed(invoke: Invoke, tmp_path: Path) -> None:
    """``obhut keys`` lists peers with ids, names broken files, and removes peers."""
    alice = Identity.create()
    peers = PeerBook(tmp_path / "peers")
    peers.add("alice", alice.certificate)
    (peers.folder / "bob.crt").touch(mode=0o600)
    result = invoke("keys", "list", "--folder", tmp_path)
    assert result.stdout.split("\t")[:2] == ["alice", alice.id]
    assert "bob.crt is left out" in result.stderr
    assert invoke("keys", "remove", alice.id, "--folder", tmp_path).exit_code == 0
    assert list(peers) == []
    result = invoke("keys", "remove", "alice", "--folder", tmp_path)
    assert result.exit_code == 1
    assert "no peer is pinned as 'alice'" in result.stderr


def test_a_shown_certificate_can_be_added(
    invoke: Invoke, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """``keys show`` prints what ``keys add`` pins, without an invitation; no key."""
    host, guest = folders
    shown = invoke("keys", "show", "--folder", guest)
    assert shown.exit_code == 0
    assert shown.stdout.encode() == Identity.load(guest).certificate
    assert Identity.load(guest).id in shown.stderr
    assert "PRIVATE" not in shown.output
    file = tmp_path / "guest.crt"
    file.write_text(shown.stdout)
    result = invoke("keys", "add", "guest", file, "--folder", host)
    assert result.exit_code == 0
    assert result.stdout == Identity.load(guest).id + "\n"
    assert PeerBook(host / "peers").find("guest").id == Identity.load(guest).id
    again = invoke("keys", "add", "guest", file, "--folder", host)
    assert again.exit_code == 0
    file.write_text(Identity.load(host).certificate.decode())
    other = invoke("keys", "add", "guest", file, "--folder", host)
    assert other.exit_code == 1
    assert "remove that peer first" in other.stderr


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff" * 100_000])
@pytest.mark.parametrize("command", [["add", "x"], ["accept"]])
def test_what_is_no_such_file_is_an_error_of_one_line(
    invoke: Invoke, tmp_path: Path, command: list[str], content: bytes
) -> None:
    """Whatever was sent instead of a certificate or a hand-over is refused."""
    file = tmp_path / "file"
    file.write_bytes(content)
    for path in (file, tmp_path / "missing"):
        result = invoke("keys", *command, path, "--folder", tmp_path)
        assert result.exit_code == 1
        assert result.stderr.startswith(f"obhut keys {command[0]}: ")
        assert result.stderr.count("\n") == 1
        assert result.stdout == ""


def test_a_key_is_changed(invoke: Invoke, folders: tuple[Path, Path]) -> None:
    """``keys rotate``, ``keys accept`` at a peer, ``keys rotate --finish``."""
    host, guest = folders
    old = Identity.load(guest).id
    PeerBook(host / "peers").add("guest", Identity.load(guest).certificate)
    rotated = invoke("keys", "rotate", "--days", "7", "--folder", guest)
    assert rotated.exit_code == 0
    new = rotated.stdout.strip()
    assert new != old == Identity.load(guest).id
    file = guest / "handover.json"
    assert "PRIVATE" not in file.read_text()
    accepted = invoke("keys", "accept", file, "--folder", host)
    assert accepted.exit_code == 0
    assert accepted.stdout == new + "\n"
    assert f"says {old}, write the new id" in accepted.stderr
    listed = invoke("keys", "list", "--folder", host)
    assert listed.stdout.split("\t")[:2] == ["guest", new]
    assert f"had the key {old}" in listed.stderr
    finished = invoke("keys", "rotate", "--finish", "--folder", guest)
    assert finished.stdout == new + "\n"
    assert Identity.load(guest).id == new
    again = invoke("keys", "rotate", "--finish", "--folder", guest)
    assert again.exit_code == 1
    assert "obhut keys rotate" in again.stderr


def test_an_owner_agrees_before_its_key_is_changed(
    invoke: Invoke, folders: tuple[Path, Path]
) -> None:
    """It is told that it will be another person; an aggregator is told to stay."""
    _, guest = folders
    old = Identity.load(guest).id
    (guest / "worker.toml").write_text(
        'id = "guest"\nlisten = "127.0.0.1:0"\n[policy]\nkind = "Quorum"\n'
        'aggregators = ["host"]\ncontributors = ["guest", "x", "y"]\n'
    )
    for more in ((), ("--finish",)):
        refused = invoke("keys", "rotate", *more, "--folder", guest)
        assert refused.exit_code == 1
        assert "another person" in refused.stderr
        assert "--between-studies" in refused.stderr
        assert Identity.load(guest).id == old
        agreed = invoke("keys", "rotate", *more, "--between-studies", "--folder", guest)
        assert agreed.exit_code == 0
    assert agreed.stdout.strip() == Identity.load(guest).id != old
    (guest / "ledger.sqlite").touch()
    stays = invoke("keys", "rotate", "--between-studies", "--folder", guest)
    assert stays.exit_code == 1
    assert "aggregator" in stays.stderr


def test_a_removed_peers_new_key_is_not_accepted(
    invoke: Invoke, folders: tuple[Path, Path]
) -> None:
    """Nor is anything pinned by trying, and the line says what helps."""
    host, guest = folders
    PeerBook(host / "peers").add("guest", Identity.load(guest).certificate)
    invoke("keys", "rotate", "--folder", guest)
    invoke("keys", "remove", "guest", "--folder", host)
    result = invoke("keys", "accept", guest / "handover.json", "--folder", host)
    assert result.exit_code == 1
    assert "new invitation" in result.stderr
    assert list(PeerBook(host / "peers")) == []


@pytest.mark.parametrize("days", ["0", "91"])
def test_both_keys_hold_for_some_days(
    invoke: Invoke, folders: tuple[Path, Path], days: str
) -> None:
    """Neither none nor for years; nothing is made then."""
    result = invoke("keys", "rotate", "--days", days, "--folder", folders[0])
    assert result.exit_code == 1
    assert "90 days" in result.stderr
    assert not (folders[0] / "next").exists()


def test_no_folder_is_not_an_empty_one(invoke: Invoke, tmp_path: Path) -> None:
    """A folder that is written wrong is said; one without peers lists nobody."""
    result = invoke("keys", "list", "--folder", tmp_path / "nowhere")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == f"obhut keys list: there is no folder {tmp_path}/nowhere\n"
    result = invoke("keys", "list", "--folder", tmp_path)
    assert (result.exit_code, result.output) == (0, "")


def test_init_and_connect_look_at_the_same_place(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without ``--folder``; in another one it says how it is found."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("OBHUT_FOLDER", raising=False)
    monkeypatch.chdir(tmp_path)
    result = invoke("init")
    assert "find it from here without --folder" in result.stderr
    made = Identity.load(tmp_path / ".config" / "obhut")
    assert result.stdout == made.id + "\n"
    # The identity is read before anybody is asked, and without one it would be missed.
    with pytest.raises(CallError, match="host:port"):
        connect("nowhere")
    assert "--folder" in invoke("init", "--folder", tmp_path / "node").stderr


@pytest.mark.parametrize("by", ["name", "id"])
def test_remove_says_what_else_names_a_peer(
    invoke: Invoke, folders: tuple[Path, Path], by: str
) -> None:
    """Each list that has the name or the id, by file and key; and no other file."""
    host, guest = folders
    theirs = Identity.load(guest)
    PeerBook(host / "peers").add("guest", theirs.certificate)
    others = 'id = "w"\nlisten = "0.0.0.0:1"\n[policy]\nkind = "UnsafeOpen"\n'
    (host / "other.toml").write_text(others + '[access]\ndeliver = ["me"]\n')
    (host / "broken.toml").write_text("x")
    (host / "worker.toml").write_text(
        f"""id = "w"
listen = "0.0.0.0:1"
[access]
deliver = ["{theirs.id}"]
[policy]
kind = "Quorum"
aggregators = ["sum"]
contributors = ["guest", "a", "b"]
requesters = ["guest"]
[[peer]]
name = "friend"
id = "{theirs.id}"
[[dataset]]
name = "d"
path = "d.npy"
requesters = ["guest"]
"""
    )
    named = "guest" if by == "name" else theirs.id
    result = invoke("keys", "remove", named, "--folder", host)
    assert result.exit_code == 0
    assert result.stderr.startswith("guest is forgotten.\n")
    assert (
        f'{host / "worker.toml"} still names them: the [[peer]] "friend", '
        "contributors under [policy], requesters under [policy], requesters of the "
        '[[dataset]] "d", deliver under [access].'
    ) in result.stderr
    assert "other.toml" not in result.stderr
    assert "broken.toml" in result.stderr
