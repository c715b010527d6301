"""What stays at a worker beyond a session, as a client uses it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from msgspec import structs

import obhut
from obhut.errors import (
    CallError,
    LimitError,
    LocationError,
    OpNotAdmittedError,
    ReleaseRefusedError,
    RemoteProtocolError,
)
from obhut.guard.policy import Quorum
from obhut.protocol.messages import ListState, StateAnswer, StoreState
from obhut.testing.traces import TracingTransport

OWNERS = ("alice", "bob", "carol")
ALL = (*OWNERS, "dave")
POLICY = Quorum(aggregators=("sw",), contributors=ALL, requesters=("me",))


def rows(owner: str) -> torch.Tensor:
    """Return an owner's rows."""
    return torch.arange(8.0).reshape(4, 2) + ALL.index(owner)


def worker(
    name: str, policy: Quorum | None = POLICY, **how: object
) -> obhut.VirtualWorker:
    """Return a worker; an owner has rows."""
    data = {"d": {"features": rows(name)}} if name in ALL else None
    return obhut.VirtualWorker(name, policy=policy, datasets=data, **how)


def mean(*parts: obhut.RemoteTensor) -> torch.Tensor:
    """Return what an aggregator releases of owners' parts."""
    sw = worker("sw")
    moved = [obhut.move(part, sw) for part in parts]
    return obhut.get(sum(moved[1:], moved[0]) / len(moved))


def test_an_open_worker_gives_back_what_was_stored():
    """Values bit for bit, dtypes, shapes, and which of them are parameters."""
    bob = worker("bob", None)
    values = [
        torch.tensor([float("nan"), -0.0, 1e-40]),
        torch.randn(3, 4).t(),
        torch.arange(6, dtype=torch.int64).reshape(2, 3),
        torch.tensor(True),
        torch.empty(0, 3, dtype=torch.bfloat16),
        torch.randn(2, requires_grad=True),
        torch.randn(4).expand(3, 4),
    ]
    sent = [obhut.send(one, bob) for one in values]
    bob.store("run/head", 3, [*sent, sent[0] * 1])
    sent[1].zero_()  # what is stored is of its moment
    *back, product = bob.recall("run/head", 3)
    assert back[5].requires_grad
    assert back[5].is_leaf
    assert not product.requires_grad
    for one, value in zip(back, values, strict=True):
        got = obhut.get(one)
        assert (got.dtype, got.shape) == (value.dtype, value.shape)
        assert torch.equal(got.view(torch.uint8), value.contiguous().view(torch.uint8))
    (again,) = bob.recall("run/head", 3)[1:2]
    again.add_(1)
    assert torch.equal(obhut.get(bob.recall("run/head", 3)[1]), values[1])


def test_a_recalled_parameter_trains_on():
    """Its gradients are of its own, and do not reach what is stored."""
    bob = worker("bob", None)
    bob.store("w", 0, [obhut.send(torch.ones(2, requires_grad=True), bob)])
    (weight,) = bob.recall("w", 0)
    (weight * bob["d"]).sum().backward()
    assert torch.equal(obhut.get(weight.grad), rows("bob").sum(0))
    (other,) = bob.recall("w", 0)
    assert other.grad is None


def test_versions_are_listed_once_they_are_there():
    """The two that were stored last, the last one at the end."""
    bob = worker("bob")
    assert bob.stored("n") == []
    for version in (1, 2, 3, 2):
        bob.store("n", version, [bob["d"]])
    assert bob.stored("n") == [3, 2]
    with pytest.raises(CallError, match="no version 1 of 'n' here; there is: 3, 2"):
        bob.recall("n", 1)
    assert bob.recall("n", 3)[0].shape == (4, 2)


def test_what_an_owner_keeps_is_not_read_but_computed_with():
    """Fetched it is refused as rows are; an average over three comes back."""
    owners = [worker(name) for name in OWNERS]
    for one in owners:
        one.store("head", 1, [one["d"].mean(0)])
        one.clear_objects()
    with pytest.raises(ReleaseRefusedError, match="place"):
        obhut.get(owners[0].recall("head", 1)[0])
    parts = [one.recall("head", 1)[0] * 2 for one in owners]
    expected = torch.stack([rows(name).mean(0) * 2 for name in OWNERS]).mean(0)
    assert torch.equal(mean(*parts), expected)


def test_what_is_stored_here_and_computed_there_are_two_computations():
    """Either all recall it or none; and one who stored something else is found."""
    owners = [worker(name) for name in OWNERS]
    for one in owners:
        one.store("head", 1, [one["d"] * 1])
        one.store("lottery", 1, [one["d"] * (one.id == "bob")])
        one.store("steps", 1, [one["d"] * 1 if one.id == "bob" else one["d"] * 1 * 1])
    for name in ("lottery", "steps"):
        with pytest.raises(ReleaseRefusedError, match="program"):
            mean(*(one.recall(name, 1)[0] for one in owners))
    with pytest.raises(ReleaseRefusedError, match="program"):
        mean(owners[0].recall("head", 1)[0], *(one["d"] * 1 for one in owners[1:]))
    assert mean(*(one.recall("head", 1)[0] for one in owners)).shape == (4, 2)


def test_what_nobody_knows_how_it_was_made_stays_so():
    """A draw without a seed, stored and recalled, is no known computation."""
    owners = [worker(name) for name in OWNERS]
    for one in owners:
        data = one["d"]
        data[0] = 0.0  # rows that were written
        one.store("unknown", 1, [data * 1])
    with pytest.raises(ReleaseRefusedError, match="program"):
        mean(*(one.recall("unknown", 1)[0] for one in owners))


def test_what_was_stored_without_digests_has_none_later(tmp_path: Path):
    """A policy that begins to compare programs takes it for nothing known."""
    free = structs.replace(POLICY, programs="any")
    for policy in (free, None):
        for name in OWNERS:
            one = worker(name, policy, state=tmp_path / name)
            one.store("x", 1, [obhut.send(torch.ones(2), one)])
            assert one.stored("x") == [1]
        owners = [worker(name, state=tmp_path / name) for name in OWNERS]
        with pytest.raises(ReleaseRefusedError, match="program"):
            mean(*(one.recall("x", 1)[0] for one in owners))


def test_what_is_spoilt_stays_spoilt():
    """Low tells nothing of it; of the sum one contribution could not be used."""
    owners = [worker(name) for name in ALL]
    for one in owners:
        index = one["d"][:1, 0].long()  # 3 at dave: out of range there
        picked = obhut.send(torch.ones(3), one).index_select(0, index)
        one.store("p", 1, [picked])
        assert one.stored("p") == [1]
        one.clear_objects()
    parts = [one.recall("p", 1)[0] for one in owners]
    with pytest.warns(UserWarning, match="1 contribution could not be used"):
        assert torch.equal(mean(*parts), torch.tensor([3 / 4]))


@pytest.mark.parametrize("policy", [None, POLICY])
def test_a_folder_outlives_the_worker(tmp_path: Path, policy: Quorum | None):
    """Another worker with it finds what is stored; without one it is gone."""
    for folder, left in ((tmp_path / "bob", [7]), (None, [])):
        one = worker("bob", policy, state=folder)
        one.store("n", 7, [one["d"]])
        one.close()
        assert worker("bob", policy, state=folder).stored("n") == left


def test_an_aggregator_stores_nothing():
    """It has no state of owners, and forgets what they deliver."""
    sw, bob = worker("sw"), worker("bob")
    moved = obhut.move(bob["d"], sw)
    sw.store("n", 1, [moved])
    with pytest.raises(OpNotAdmittedError, match="an aggregator only adds"):
        sw.stored("n")
    with pytest.raises(OpNotAdmittedError):
        sw.recall("n", 1)


def test_wrong_use_is_told_before_anything_is_sent():
    """Names and numbers that no worker takes, nothing, and tensors elsewhere."""
    bob, alice = worker("bob"), worker("alice")
    for name in ("", "x" * 201, "a\nb", "a\0b"):
        with pytest.raises(CallError, match="characters that can be printed"):
            bob.store(name, 1, [bob["d"]])
        with pytest.raises(CallError, match="characters that can be printed"):
            bob.recall(name, 1)
        with pytest.raises(CallError, match="characters that can be printed"):
            bob.stored(name)
    for version in (-1, 2**63):
        with pytest.raises(CallError, match="expected a version"):
            bob.store("n", version, [bob["d"]])
    with pytest.raises(CallError, match="got 0"):
        bob.store("n", 1, [])
    with pytest.raises(LocationError, match="alice; store what is at bob"):
        bob.store("n", 1, [alice["d"]])
    with pytest.raises(LocationError, match="this process"):
        bob.store("n", 1, [torch.ones(1)])
    assert bob.stored("n") == []


@pytest.mark.parametrize("policy", [None, POLICY])
def test_what_is_recalled_is_within_the_limit_of_memory(policy: Quorum | None):
    """Where it finds no room it is refused, and the session goes on."""
    bob = worker("bob", policy, memory_limit=1000)
    big = obhut.send(torch.ones(150), bob)
    bob.store("n", 1, [big])
    with pytest.raises(LimitError, match="recall needs 600 bytes"):
        bob.recall("n", 1)
    del big
    assert bob.recall("n", 1)[0].shape == (150,)


def test_nobody_else_tells_a_worker_what_is_stored():
    """The message by which its own process does so is refused from outside."""
    bob = worker("bob")
    bob.wait()
    transport = bob.session._transport
    with pytest.raises(RemoteProtocolError, match="nobody else says"):
        transport.submit(StateAnswer(bob.session.name, 0)).result()


def test_answers_are_the_same_whatever_the_rows_are():
    """Few rows, other values or such that the program fails on: one transcript."""
    said = []
    for data in (torch.zeros(4, 2), torch.full((4, 2), 9.0), rows("bob")):
        bob = obhut.VirtualWorker(
            "bob", policy=POLICY, datasets={"d": {"features": data}}
        )
        bob.session._transport = heard = TracingTransport(bob.session._transport)
        replies = []
        inner = heard.submit
        heard.submit = lambda *a, inner=inner, replies=replies: (
            replies.append(inner(*a)) or replies[-1]
        )
        picked = obhut.send(torch.ones(2), bob)[bob["d"][0].long()]
        bob.store("n", 1, [picked, bob["d"]])
        bob.stored("n")
        bob.recall("n", 1)
        with pytest.raises(CallError):
            bob.recall("n", 2)
        names = {type(one) for one in heard.requests}
        assert {StoreState, ListState} <= names
        said.append([one.result().message for one in replies])
    assert said[0] == said[1] == said[2]


# --- a training with personal layers --------------------------------------------------


def personal(folder: Path, body: torch.Tensor, rounds: range) -> list[torch.Tensor]:
    """Train a shared row and one of each owner's; return each round's shared one.

    The owners' workers are new ones, and all that they had is in the folder.
    """
    owners = [worker(name, state=folder / name) for name in OWNERS]
    said = []
    for number in rounds:
        parts = []
        for one in owners:
            shared = obhut.send(body.clone().requires_grad_(), one)
            own = obhut.send(torch.zeros(2, requires_grad=True), one)
            if number:
                (own,) = one.recall("run/own", number - 1)
            optimizer = torch.optim.SGD([shared, own], lr=0.01)
            for _ in range(2):
                optimizer.zero_grad()
                ((one["d"] * (shared + own)).sum(1) - 1).pow(2).mean().backward()
                optimizer.step()
            one.store("run/own", number, [own])
            parts.append(shared.data)
        body = mean(*parts)
        assert [one.stored("run/own")[-1] for one in owners] == [number] * 3
        said.append(body)
    for one in owners:
        one.close()
    return said


def test_a_training_with_personal_layers_goes_on_bit_for_bit(tmp_path: Path):
    """From each round, and a round that is run again, whoever ended before."""
    undisturbed = personal(tmp_path / "whole", torch.zeros(2), range(4))
    body = torch.zeros(2)
    for number in range(4):
        for _ in range(2):
            (again,) = personal(tmp_path / "parts", body, range(number, number + 1))
            assert torch.equal(again, undisturbed[number])
        body = again
    assert not torch.equal(undisturbed[0], undisturbed[1])
