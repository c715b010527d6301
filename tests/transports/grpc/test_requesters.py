"""Data sets that only some of those may use who may open a session."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from obhut.client.network import connect
from obhut.errors import ObhutError
from obhut.protocol import codec
from obhut.protocol.messages import (
    AnyRequest,
    Batch,
    DatasetRows,
    Load,
    RunProgram,
    Split,
)
from obhut.testing.transports import Client

from .conftest import World
from .test_guarded import OWNERS, POLICY

LARGE = 3_000
"""Rows of what not everybody may use, of 4,000 bytes: more than what is mapped else."""

TABLES = """
[[dataset]]
name = "open"
path = "open.npy"
public = { rows = "%s" }
[[dataset]]
name = "secret"
path = "secret.npy"
public = { rows = "%s" }
requesters = ["me"]
tags = ["#hidden-tag"]
"""


@pytest.fixture(scope="module", params=["open", "exact", "hidden"])
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """One who serves two data sets, openly or behind a policy."""
    names = ("secure_worker", *OWNERS, "me", "you", "mallory")
    made = World(tmp_path_factory.mktemp(request.param), names)
    np.save(made.root / "bob" / "open.npy", np.ones((20, 2), np.float32))
    np.save(made.root / "bob" / "secret.npy", np.ones((LARGE, 1_000), np.float32))
    rows = "exact" if request.param == "open" else request.param
    options = {} if request.param == "open" else {"policy": POLICY, "deliver": ()}
    try:
        made.serve("bob", more=TABLES % (rows, rows), **options)
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def session(world: World, who: str, name: str = "") -> Iterator[Client]:
    """Open a session of somebody's."""
    transport = world.transport(who, "bob")
    client = Client(transport, name or f"{who}'s")
    client.open()
    try:
        yield client
    finally:
        transport.close()


def answer(client: Client, request: AnyRequest) -> bytes:
    """Return the bytes of what a request is answered, in a batch of its own."""
    client.number += 1
    pending = client.transport.submit(
        Batch(client.session, client.number, (request,)), ()
    )
    return codec.encode(pending.result().message)


def guesses(name: str) -> list[AnyRequest]:
    """Return what somebody may ask who guesses a name."""
    rows = DatasetRows(name, ("features",))
    return [
        Load(name, "features", 1),
        Load(name, "nothing", 1),
        RunProgram("0" * 64, (), rows, 2, 2),
        RunProgram("0" * 64, (), rows, 2, 2, split=Split(0.5, 0, True)),
        RunProgram("0" * 64, (), DatasetRows(name, ()), 2, 2),
    ]


def test_a_guess_is_answered_as_a_name_that_is_not_there(world: World) -> None:
    """Byte for byte, but for the name that was asked for, whatever is asked."""
    found: dict[str, list[bytes]] = {}
    for name in ("secret", "absent"):
        with session(world, "you", f"a guess: {name}") as client:
            found[name] = [
                answer(client, request).replace(name.encode(), b"#")
                for request in guesses(name)
            ]
    assert found["secret"] == found["absent"]
    assert b"CallError" in found["secret"][0]


def test_who_is_named_may_use_it(world: World) -> None:
    """It loads, or is hidden; the same program is unknown, not the data set."""
    with session(world, "me") as client:
        loaded = answer(client, Load("secret", "features", 1))
        ran = answer(client, guesses("secret")[2])
    assert b"described" in loaded or b"is hidden" in loaded
    assert b"no program of the digest" in ran


def mapped(process: int) -> int:
    """Return the bytes of data sets that a process has mapped."""
    lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    ends = [
        [int(end, 16) for end in line.split(" ", 1)[0].split("-")]
        for line in lines
        if "obhut-data" in line
    ]
    return sum(end - begin for begin, end in ends)


def test_the_session_of_a_stranger_never_holds_it(world: World) -> None:
    """Neither its memory, nor a file of it, nor the room that it would take."""
    node = world.served["bob"].node
    found = {}
    for who in ("me", "you"):
        with session(world, who, f"{who} looks"):
            held = node._sessions[f"{who} looks"]
            process = held.started.pid
            if held.following is not None:
                assert mapped(process) == 0
                process = held.following._there().pid
            found[who] = mapped(process)
            files = Path(f"/proc/{process}/fd").iterdir()
            assert not any("obhut-data" in str(one.resolve()) for one in files)
    assert found["me"] >= LARGE * 4_000
    assert 0 < found["you"] < 2**16


def test_a_stranger_is_told_nothing_of_it(world: World) -> None:
    """Neither its name nor that there is one: what is said is as without it."""
    served = world.served["bob"]
    told = {who: served._describe(world.id(who)) for who in ("me", "you", "mallory")}
    names = {
        who: [one["name"] for one in json.loads(said)["datasets"]]
        for who, said in told.items()
    }
    assert names == {"me": ["open", "secret"], "you": ["open"], "mallory": []}
    for word in (b"secret", b"hidden-tag"):
        assert word in told["me"]
        assert word not in told["you"]
    with connect(world.address("bob"), folder=world.root / "you") as net:
        bob = net["bob"]
        assert bob.search("#hidden-tag") == []
        errors = []
        for name in ("secret", "absent"):
            with pytest.raises(ObhutError) as caught:
                bob.dataset(name)
            errors.append(str(caught.value).replace(name, "#"))
        assert errors[0] == errors[1]


def test_names_of_strangers_sessions_are_no_way_in(world: World) -> None:
    """Who uses a session of somebody who may is refused, as with any session."""
    with session(world, "me", "mine"):
        transport = world.transport("you", "bob")
        try:
            client = Client(transport, "mine")
            reply = client.tell(Batch("mine", 1, (Load("secret", "features", 1),)))
            assert type(reply).__name__ == "Refused"
        finally:
            transport.close()
