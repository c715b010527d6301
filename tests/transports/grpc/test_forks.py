"""An aggregator whose record is emptied, put back or led on twice: who notices.

The attack is the one that a record is for: a sum over four owners leaves, is forgotten,
and the sum over three of them leaves too. Their difference is the fourth's alone.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import obhut
from obhut.client.network import connect
from obhut.errors import AccessDeniedError, LedgerError, ReleaseRefusedError
from obhut.transports.grpc.remembering import LOOKING

from .conftest import World

OWNERS = ("alice", "bob", "carol", "dave")
HUB = "secure_worker"
POLICY = """
kind = "Quorum"
aggregators = ["secure_worker"]
contributors = ["alice", "bob", "carol", "dave"]
requesters = ["me", "you"]
refusals = 1000
programs = "any"
"""
RECORD = ("ledger.sqlite", "ledger.mark")


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Return four owners and an aggregator, which serve."""
    root = tmp_path_factory.mktemp("forks")
    world = World(root, (HUB, *OWNERS, "me", "you"))
    try:
        world.serve(HUB, policy=POLICY, deliver=OWNERS)
        for owner in OWNERS:
            reach = {HUB: world.address(HUB)}
            world.serve(owner, policy=POLICY, deliver=(), reach=reach)
        yield world
    finally:
        world.close()


@pytest.fixture
def world(serving: World) -> World:
    """Return them as if nothing had been released or seen yet."""
    folder = stopped(serving)
    for name in (*RECORD, "ledger.sqlite-wal", "ledger.sqlite-shm"):
        (folder / name).unlink(missing_ok=True)
    forgotten(serving)
    for left in ("backup", *(f"{owner}-saw" for owner in OWNERS)):
        shutil.rmtree(serving.root / left, ignore_errors=True)
    started(serving)
    return serving


def asked(world: World, *owners: str) -> torch.Tensor:
    """Return the sum of what some owners deliver, who have the same as before."""
    addresses = [world.address(name) for name in (HUB, *owners)]
    with connect(*addresses, folder=world.root / "me") as net:
        held = []
        for owner in owners:
            with net[owner]:
                held.append(torch.full((3,), 2.0 ** OWNERS.index(owner)))
            obhut.move(held[-1], net[HUB])
        total = sum(held[1:], held[0]).get()
    # What the owners saw of it when the session ended.
    for thread in threading.enumerate():
        if thread.name == LOOKING:
            thread.join(20)
    return total


def stopped(world: World) -> Path:
    """Stop the aggregator; return its folder."""
    world.served[HUB].close(grace=0)
    return world.root / HUB


def started(world: World, *, begin_anew: str = "") -> None:
    """Start it again, where it was."""
    listen = world.address(HUB)
    world.serve(
        HUB, policy=POLICY, deliver=OWNERS, listen=listen, begin_anew=begin_anew
    )


def copied(folder: Path, to: Path) -> None:
    """Copy a record with its mark, as a backup does."""
    to.mkdir(exist_ok=True)
    for name in RECORD:
        shutil.copy(folder / name, to / name)


def forgotten(world: World) -> None:
    """Let all owners forget what they saw: as if none of them looked."""
    for owner in OWNERS:
        shutil.rmtree(world.root / owner / "heads", ignore_errors=True)


def read_off(world: World, four: torch.Tensor) -> torch.Tensor:
    """Return what dave delivered, if the sum without him leaves too."""
    return four - asked(world, *OWNERS[:3])


def test_a_record_goes_on_across_a_stop(world: World) -> None:
    """Without any attack: a stop and a start are nothing to owners."""
    four = asked(world, *OWNERS)
    stopped(world)
    started(world)
    assert torch.equal(asked(world, *OWNERS), four)
    with pytest.raises(ReleaseRefusedError, match="owners"):
        read_off(world, four)


def test_a_record_that_was_emptied_is_noticed(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The aggregator does not start; begun anew, owners deliver nothing to it.

    Where nobody looks, dave is read off.
    """
    caplog.set_level(logging.INFO, logger="obhut.worker")
    four = asked(world, *OWNERS)
    folder = stopped(world)
    (folder / "ledger.sqlite").write_bytes(b"")
    with pytest.raises(LedgerError, match=r"it is empty, and ledger\.mark says"):
        started(world)
    started(world, begin_anew="I would like to")
    with pytest.raises(AccessDeniedError, match="does not go on from"):
        read_off(world, four)
    lines = [record.getMessage() for record in caplog.records]
    expected = "expected a record of releases that goes on from entry"
    told = [one for one in lines if "LedgerError" in one and expected in one]
    assert told
    assert "it ends with entry 0" in told[0]
    assert "remove this file" in told[0]
    assert any("begun anew" in one and "I would like to" in one for one in lines)
    forgotten(world)
    assert torch.equal(read_off(world, four), torch.full((3,), 8.0))


def test_a_record_that_was_put_back_is_noticed_by_owners(world: World) -> None:
    """Record and mark of one copy are whole to the aggregator, and not to owners.

    Each saw what was released when its session ended. Where nobody looks, dave is
    read off.
    """
    folder = stopped(world)
    copied(folder, world.root / "backup")
    started(world)
    four = asked(world, *OWNERS)
    stopped(world)
    copied(world.root / "backup", folder)
    (folder / "ledger.sqlite-wal").unlink(missing_ok=True)
    started(world)
    with pytest.raises(AccessDeniedError, match="does not go on from"):
        read_off(world, four)
    forgotten(world)
    assert torch.equal(read_off(world, four), torch.full((3,), 8.0))


def test_a_record_that_is_led_on_twice_is_noticed_by_owners(world: World) -> None:
    """Two copies of an aggregator, with one key: who saw one takes no other.

    The second has as many entries. Where nobody looks, dave is read off.
    """
    folder = stopped(world)
    copied(folder, world.root / "backup")
    started(world)
    four = asked(world, *OWNERS)
    stopped(world)
    copied(world.root / "backup", folder)
    seen = {owner: world.root / owner / "heads" for owner in OWNERS}
    for owner, heads in seen.items():
        shutil.move(heads, world.root / f"{owner}-saw")
    started(world)
    # Its second life, before which nobody looked, so that it has entries too.
    assert torch.equal(read_off(world, four), torch.full((3,), 8.0))
    for owner, heads in seen.items():
        shutil.rmtree(heads, ignore_errors=True)
        shutil.move(world.root / f"{owner}-saw", heads)
    with pytest.raises(AccessDeniedError, match="does not go on from"):
        asked(world, *OWNERS[:3])


def test_an_owner_without_memory_says_so(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """It takes what it sees first, once, and its log has a line for each aggregator."""
    caplog.set_level(logging.INFO, logger="obhut.worker")
    said = "secure_worker: nothing was seen of its record of releases before; it has"
    for count in (len(OWNERS), 2 * len(OWNERS)):
        for _ in range(2):
            asked(world, *OWNERS)
        lines = [record.getMessage() for record in caplog.records]
        assert sum(said in line for line in lines) == count
        forgotten(world)
