"""What stays at an owner beyond sessions, at workers that are really served."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import obhut
from obhut.client.network import Network, connect
from obhut.errors import CallError, LimitError, ReleaseRefusedError
from obhut.host.state_files import FOLDER, StatesOnDisk

from .conftest import DATASET, Connect, World

OWNERS = ("alice", "bob", "carol")
POLICY = """
kind = "Quorum"
aggregators = ["secure_worker"]
contributors = ["alice", "bob", "carol"]
requesters = ["me", "you"]
refusals = 1000
"""
DATA = DATASET + 'public = { names = true, types = true, rows = "exact" }\n'
LIMITS = 'requester_state = "1 MB"\nbatch_seconds = 60'


def serve(world: World, name: str) -> None:
    """Serve an owner under the policy."""
    reach = {"secure_worker": world.address("secure_worker")}
    world.serve(name, policy=POLICY, deliver=(), reach=reach, more=DATA, limits=LIMITS)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Three owners and an aggregator under one policy, and two who ask."""
    world = World(tmp_path_factory.mktemp("g"), ("secure_worker", *OWNERS, "me", "you"))
    for place, owner in enumerate(OWNERS):
        lines = "".join(f"{place},{row},{row % 2}\n" for row in range(8))
        (world.root / owner / "data.csv").write_text("a,b,y\n" + lines)
    try:
        world.serve("secure_worker", policy=POLICY, deliver=OWNERS)
        for name in OWNERS:
            serve(world, name)
        yield world
    finally:
        world.close()


def entered(world: World, who: str = "me") -> Network:
    """Let somebody connect to all four."""
    addresses = [world.address(name) for name in ("secure_worker", *OWNERS)]
    return connect(*addresses, folder=world.root / who)


def states(world: World, name: str = "bob") -> StatesOnDisk:
    """Return what an owner sees of what is stored at their worker."""
    return StatesOnDisk(world.root / name / FOLDER)


def mean(net: Network, parts: list[obhut.RemoteTensor]) -> torch.Tensor:
    """Return what the aggregator releases."""
    moved = [obhut.move(part, net["secure_worker"]) for part in parts]
    return obhut.get(sum(moved[1:], moved[0]) / len(moved))


def test_what_is_stored_outlives_session_and_worker(guarded: World) -> None:
    """It is computed with in a later session, after the owner's worker began anew."""
    large = torch.randn(100, 500, generator=torch.Generator().manual_seed(3))
    with entered(guarded) as net:
        for name in OWNERS:
            head = net[name]["d"].mean(0)
            net[name].store("run/head", 7, [head, obhut.send(large, net[name])])
        assert [net[name].stored("run/head") for name in OWNERS] == [[7]] * 3
    guarded.served["bob"].close(grace=0)
    serve(guarded, "bob")
    with entered(guarded) as net:
        assert net["bob"].stored("run/head") == [7]
        heads, bodies = zip(
            *(net[name].recall("run/head", 7) for name in OWNERS), strict=True
        )
        with pytest.raises(ReleaseRefusedError, match="place"):
            heads[1].get()
        assert torch.equal(mean(net, list(heads)), torch.tensor([1.0, 3.5]))
        assert torch.equal(mean(net, list(bodies)), large)


def test_one_requester_finds_nothing_of_another(guarded: World) -> None:
    """Neither a name nor a version, although both may ask here."""
    with entered(guarded) as net, entered(guarded, "you") as others:
        net["bob"].store("mine", 1, [net["bob"]["d"]])
        assert net["bob"].stored("mine") == [1]
        assert others["bob"].stored("mine") == []
        with pytest.raises(CallError, match="there is: none"):
            others["bob"].recall("mine", 1)
        others["bob"].store("mine", 2, [others["bob"]["d"]])
        assert others["bob"].stored("mine") == [2]
        assert net["bob"].stored("mine") == [1]


def test_a_quota_is_per_requester_and_told_at_once(guarded: World) -> None:
    """What would be too much is not accepted, and nothing of it is on the disk."""
    with entered(guarded) as net:
        bob = net["bob"]
        big = obhut.send(torch.ones(300_000), bob)
        before = states(guarded).listed()
        bob.store("big", 1, [big])
        with pytest.raises(LimitError, match=r"at most 1,000,000 may; store less"):
            bob.stored("big")
        assert bob.stored("big") == []
        assert [one.path for one in states(guarded).listed()] == [
            one.path for one in before
        ]


def test_what_is_spoilt_costs_no_other_value(guarded: World) -> None:
    """Storing or moving what is missing leaves all else of the session as it is."""
    with entered(guarded) as net:
        kept, parts = {}, []
        for name in OWNERS:
            one = net[name]
            kept[name] = one["d"].sum(0)
            table = obhut.send(torch.ones(2), one)
            picked = table.index_select(0, one["d"][:1, 0].long())  # none at carol
            one.store("p", 1, [picked])
            parts.append(picked)
            assert one.stored("p") == [1]
        with pytest.raises(ReleaseRefusedError, match="of too few owners"):
            mean(net, parts)
        with pytest.raises(ReleaseRefusedError, match="of too few owners"):
            mean(net, [net[name].recall("p", 1)[0] for name in OWNERS])
        assert torch.equal(mean(net, list(kept.values())), torch.tensor([8.0, 28.0]))


def test_what_the_owner_deletes_is_gone(guarded: World) -> None:
    """Also in a session that goes on; what was recalled before stays there."""
    with entered(guarded) as net:
        for name in OWNERS:
            net[name].store("gone", 1, [net[name]["d"].sum(0)])
        parts = [net[name].recall("gone", 1)[0] for name in OWNERS]
        listed = states(guarded).listed()
        states(guarded).delete(o for o in listed if o.stored.state.name == "gone")
        with pytest.raises(CallError, match="no version 1 of 'gone'"):
            net["bob"].recall("gone", 1)
        assert net["bob"].stored("gone") == []
        assert torch.equal(mean(net, parts), torch.tensor([8.0, 28.0]))


def test_what_a_closed_session_stored_is_waited_for(guarded: World) -> None:
    """Another session of the same requester sees it as soon as it asks."""
    with entered(guarded) as net:
        one = net["bob"]
        value = one["d"]
        for _ in range(200):
            value = value * 1.0
        one.store("late", 1, [value])
        one.wait()
    with entered(guarded) as net:
        assert net["bob"].stored("late") == [1]


# --- without a policy -----------------------------------------------------------------


def test_an_open_worker_stores_and_gives_back(enter: Connect, world: World) -> None:
    """Small and large, in another session, and only to who stored it."""
    values = [torch.randn(1000, 300), torch.tensor(3), torch.empty(0, 2)]
    with_grad = torch.randn(4, requires_grad=True)
    bob = enter("me")["bob"]
    bob.store("run", 1, [obhut.send(one, bob) for one in (*values, with_grad)])
    assert bob.stored("run") == [1]
    bob.close()
    back = enter("me")["bob"].recall("run", 1)
    assert back[3].requires_grad
    for one, value in zip(back, (*values, with_grad), strict=True):
        assert torch.equal(obhut.get(one), value)
    assert enter("you")["bob"].stored("run") == []


def test_many_store_at_once(enter: Connect) -> None:
    """Sessions of one requester, each under its name and all under one."""
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            bob = enter("me")["bob"]
            for version in range(4):
                value = obhut.send(torch.full((50_000,), float(version)), bob)
                bob.store(f"own {number}", version, [value])
                bob.store("shared", 10 * number + version, [value])
            assert bob.stored(f"own {number}") == [2, 3]
            assert len(bob.stored("shared")) == 2
            (last,) = bob.recall(f"own {number}", 3)
            assert obhut.get(last.sum()).item() == 150_000
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_files_are_in_the_workers_folder(enter: Connect, world: World) -> None:
    """One for each version, in a folder of the requester's id."""
    bob = enter("you")["bob"]
    bob.store("../../x", 1, [obhut.send(torch.ones(2), bob)])
    assert bob.stored("../../x") == [1]
    (found,) = Path(world.root / "bob" / FOLDER / world.id("you")).iterdir()
    assert found.stat().st_mode & 0o777 == 0o600
