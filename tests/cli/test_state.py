"""``obhut state list`` and ``obhut state delete``."""

from __future__ import annotations

from pathlib import Path

import pytest

from obhut.host.state_files import FOLDER, StatesOnDisk
from obhut.identity.identity import Identity
from obhut.identity.peers import PeerBook
from obhut.protocol.messages import State, TensorData

from .conftest import Invoke

TIME = 1_700_000_000.0


@pytest.fixture
def me() -> Identity:
    """Somebody who is pinned at the worker."""
    return Identity.create()


@pytest.fixture
def config(tmp_path: Path, me: Identity) -> Path:
    """A worker's configuration, with its identity and a peer."""
    folder = tmp_path / "bob"
    folder.mkdir(mode=0o700)
    Identity.create().save(folder)
    PeerBook(folder / "peers").add("anna", me.certificate)
    file = folder / "worker.toml"
    file.write_text(
        'id = "bob"\nlisten = "127.0.0.1:0"\n[policy]\nkind = "UnsafeOpen"\n'
    )
    return file


def keep(config: Path, who: str, name: str, version: int, values: bytes) -> None:
    """Store something."""
    states = StatesOnDisk(config.parent / FOLDER, clock=lambda: TIME)
    state = State(name, version, (TensorData("uint8", (len(values),), 0),))
    states.reserve(who, state)
    states.write(who, state, (values,))


def test_what_is_stored_is_listed_without_values(
    invoke: Invoke, config: Path, me: Identity
) -> None:
    """By name where there is one; what a requester calls it forges no line."""
    keep(config, me.id, "run 7/head", 30, b"SECRET")
    keep(config, "z" * 52, "x\n\x1b[31mforged", 1, bytes(5_000))
    result = invoke("state", "list", "--config", config)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    (line,) = (one for one in lines if "run 7/head" in one)
    assert all(word in line for word in ("anna", " 30 ", "2023-11-14 22:13:20"))
    assert "z" * 52 in result.stdout
    assert "\x1b" not in result.stdout
    assert "SECRET" not in result.stdout
    assert not [one for one in lines if one.startswith("forged")]
    assert lines[-1].startswith("2 stored, ")


def test_nothing_is_listed_where_there_is_nothing(invoke: Invoke, config: Path) -> None:
    """Not even a table."""
    result = invoke("state", "list", "--config", config)
    assert (result.exit_code, result.stdout) == (0, "0 stored, 0 bytes.\n")


def test_what_is_named_is_deleted(invoke: Invoke, config: Path, me: Identity) -> None:
    """All of that name, or only one requester's, or one version."""
    for who in (me.id, "z" * 52):
        for version in (1, 2):
            keep(config, who, "head", version, b"x")
    keep(config, me.id, "other", 1, b"x")

    def deleted(*args: str) -> list[str]:
        result = invoke("state", "delete", *args, "--config", config)
        assert result.exit_code == 0, result.stderr
        return result.stdout.splitlines()

    assert deleted("head", "--requester", "anna", "--version", "2") == [
        "Deleted version 2 of 'head' of anna."
    ]
    assert deleted("head", "--requester", me.id) == [
        "Deleted version 1 of 'head' of anna."
    ]
    assert len(deleted("head")) == 2
    result = invoke("state", "delete", "head", "--config", config)
    assert result.exit_code == 1
    assert "nothing of that name is stored there" in result.stderr
    assert [one.stored.state.name for one in left(config)] == ["other"]


def left(config: Path) -> list:
    """Return what is stored still."""
    return StatesOnDisk(config.parent / FOLDER).listed()


def test_a_file_that_is_none_is_named(
    invoke: Invoke, config: Path, me: Identity
) -> None:
    """So that its owner can look at it, and remove it."""
    keep(config, me.id, "head", 1, b"x")
    (one,) = left(config)
    one.path.write_bytes(b"something else, for a change")
    result = invoke("state", "list", "--config", config)
    assert result.exit_code == 1
    assert str(one.path) in result.stderr
    assert "remove it" in result.stderr
