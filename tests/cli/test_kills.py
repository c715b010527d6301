"""Commands that are killed at whatever they do to files, and run again."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from obhut.identity.identity import Identity
from obhut.identity.joining import Listener
from obhut.identity.peers import PeerBook
from obhut.identity.rotation import Handover

pytestmark = pytest.mark.slow

KILLED = -9


class Commands:
    """A process that runs commands in others."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.kills = 0

    def run(self, folder: Path, *arguments: str, kill_at: int = 0) -> int:
        """Run a command; return its exit code, or -9 if it was killed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = [kill_at, str(folder), *arguments, "--folder", str(folder)]
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def again(self, folder: Path, *arguments: str, kill_at: int) -> bool:
        """Run a command that is killed there, and again; tell whether it was."""
        code = self.run(folder, *arguments, kill_at=kill_at)
        if code == KILLED:
            self.kills += 1
            code = self.run(folder, *arguments)
        else:
            kill_at = 0
        assert code == 0
        return kill_at > 0


@pytest.fixture(scope="module")
def commands() -> Iterator[Commands]:
    """Return what runs commands."""
    command = [sys.executable, "-m", "tests.cli.killed"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        yield Commands(process)
        process.kill()


def content(folder: Path) -> set[str]:
    """Return the files of a folder, drafts included."""
    return {str(at.relative_to(folder)) for at in folder.rglob("*") if at.is_file()}


IDENTITY = {"identity.key", "identity.crt"}


def each(root: Path, try_one: Callable[[Path, int], bool]) -> int:
    """Try one kill after the other, until there was none; return how many were."""
    kill_at = 1
    while try_one(root / str(kill_at), kill_at):
        kill_at += 1
    return kill_at - 1


def test_init_is_run_again(tmp_path: Path, commands: Commands) -> None:
    """There is an identity afterwards, and no draft of its key."""

    def one(folder: Path, kill_at: int) -> bool:
        killed = commands.again(folder, "init", kill_at=kill_at)
        Identity.load(folder)
        assert content(folder) == IDENTITY
        return killed

    assert each(tmp_path, one) > 10


def test_a_key_in_use_stays_when_init_is_killed(
    tmp_path: Path, commands: Commands
) -> None:
    """Where there was one, it is the same afterwards."""

    def one(folder: Path, kill_at: int) -> bool:
        identity = Identity.create()
        identity.save(folder)
        killed = commands.again(folder, "init", kill_at=kill_at)
        assert Identity.load(folder) == identity
        assert content(folder) == IDENTITY
        return killed

    assert each(tmp_path, one) > 3


def test_join_is_run_again(tmp_path: Path, commands: Commands) -> None:
    """With the same invitation: host and guest know each other afterwards."""
    host, peers = Identity.create(), PeerBook(tmp_path / "host")

    def one(folder: Path, kill_at: int) -> bool:
        guest = Identity.create()
        guest.save(folder)
        name = f"guest-{kill_at}"
        with Listener(host, peers, name, listen="127.0.0.1:0") as listener:
            waiting = threading.Thread(target=listener.wait)
            waiting.start()
            join = ("join", str(listener.invitation), "--name", "host")
            killed = commands.again(folder, *join, kill_at=kill_at)
            waiting.join(20)
        assert peers.find(name).id == guest.id
        assert PeerBook(folder / "peers").find("host").id == host.id
        assert content(folder) == IDENTITY | {"peers/host.crt"}
        return killed

    assert each(tmp_path, one) >= 10


def test_rotate_is_run_again(tmp_path: Path, commands: Commands) -> None:
    """The node has its old key, and one new one, with which it hands over."""

    def one(folder: Path, kill_at: int) -> bool:
        old = Identity.create()
        old.save(folder)
        killed = commands.again(folder, "keys", "rotate", kill_at=kill_at)
        assert Identity.load(folder) == old
        handover = Handover.parse((folder / "handover.json").read_bytes())
        waiting = Identity.load(folder / "next")
        assert handover.new.encode() == waiting.certificate
        following = {"next/identity.key", "next/identity.crt", "handover.json"}
        assert content(folder) == IDENTITY | following
        return killed

    assert each(tmp_path, one) > 20


def test_finish_is_run_again(tmp_path: Path, commands: Commands) -> None:
    """The node has the new key, and there is no other copy of it."""

    def one(folder: Path, kill_at: int) -> bool:
        Identity.create().save(folder)
        assert commands.run(folder, "keys", "rotate") == 0
        new = Identity.load(folder / "next")
        finish = ("keys", "rotate", "--finish")
        killed = commands.again(folder, *finish, kill_at=kill_at)
        assert Identity.load(folder) == new
        assert content(folder) == IDENTITY | {"handover.json"}
        assert not (folder / "next").exists()
        return killed

    assert each(tmp_path, one) > 15


def test_who_rotates_after_half_a_finish_is_told_to_end_it(
    tmp_path: Path, commands: Commands
) -> None:
    """Key and certificate may not belong together then; the new key is not lost."""
    Identity.create().save(tmp_path)
    assert commands.run(tmp_path, "keys", "rotate") == 0
    new = Identity.load(tmp_path / "next")
    kill_at, finish = 0, ("keys", "rotate", "--finish")
    while Identity.load(tmp_path / "next") == new:
        kill_at += 1
        assert commands.run(tmp_path, *finish, kill_at=kill_at) == KILLED
        if commands.run(tmp_path, "keys", "rotate") == 1:
            break
    else:
        raise AssertionError("no kill was between certificate and key")
    assert commands.run(tmp_path, *finish) == 0
    assert Identity.load(tmp_path) == new
