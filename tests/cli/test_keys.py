from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from obhut.transports.grpc.identity import Identity
from obhut.transports.grpc.peers import PeerBook

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
