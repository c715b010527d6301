"""Tensors that modules keep as plain attributes, and where they go."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import nn

import obhut
from obhut.client.kept import kept, swap_all
from obhut.errors import LocationError

X = torch.linspace(-1, 1, 6).reshape(2, 3)
POLICY = obhut.Quorum(
    aggregators=("hub",), contributors=("bob", "alice", "carol"), requesters=("me",)
)


class Pair(NamedTuple):
    """A tuple with names."""

    one: torch.Tensor
    other: str


class Keeping(nn.Module):
    """A module that keeps tensors in every way."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.plain = torch.ones(3)
        self.number = torch.tensor(2.0)
        self.pair = Pair(torch.ones(3), "text")
        self.cache: dict[str, list[torch.Tensor]] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Use all of them."""
        if not self.cache:
            self.cache["places"] = [torch.arange(3)]
        result = self.inner(x) * self.plain * self.number + self.pair.one
        self.last = result
        self.seen = result.detach()
        return result + self.cache["places"][0]


class Around(nn.Module):
    """A module with one that keeps tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Keeping()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Call it."""
        return self.body(x)


def test_all_containers_are_looked_through():
    """Attributes, lists, tuples with names and without, dicts; each tensor once."""
    part = Keeping()
    part.again = part.plain
    part.nested = {"a": [(torch.ones(1), None)], "b": "text"}
    part.round = part.nested
    part.nested["self"] = part.nested
    assert len(kept(part)) == 4
    news = {key: tensor + 1 for key, tensor in kept(part).items()}
    swap_all(part, lambda tensor: news.get(id(tensor), tensor))
    assert torch.equal(part.nested["a"][0][0], torch.full((1,), 2.0))
    assert isinstance(part.pair, Pair)
    assert part.pair.other == "text"


def test_what_is_kept_follows_a_module_that_is_moved(
    bob: obhut.VirtualWorker, alice: obhut.VirtualWorker
):
    """Made at one worker, used at the next, and here after that."""
    model = Around()
    expected = model(X).detach()
    model.body.cache.clear()
    obhut.send(model, bob)
    assert torch.equal(model(obhut.send(X, bob)).get().detach(), expected)
    obhut.move(model, alice)
    assert torch.equal(model(obhut.send(X, alice)).get().detach(), expected)
    assert model.body.seen.location is alice
    obhut.get(model)
    assert torch.equal(model(X).detach(), expected)
    assert type(model.body.cache["places"][0]) is torch.Tensor
    assert type(model.body.number) is torch.Tensor


def test_other_names_for_what_is_kept_stay_what_they_were(
    bob: obhut.VirtualWorker, alice: obhut.VirtualWorker
):
    """A module gets copies: a tensor that a program has too is not moved away."""
    model = Keeping()
    plain = model.plain
    obhut.send(model, bob)
    model(obhut.send(X, bob))
    there = model.seen
    assert type(plain) is torch.Tensor
    obhut.move(model, alice)
    model(obhut.send(X, alice))
    assert there.location is bob
    assert there.get().shape == (2, 3)


def test_rows_at_a_worker_where_the_module_never_was_stay_there(
    bob: obhut.VirtualWorker, alice: obhut.VirtualWorker
):
    """A program may keep several owners' rows in a module; they do not meet."""
    model = Keeping()
    model.rows = {"bob": obhut.send(X, bob), "alice": obhut.send(X, alice)}
    obhut.send(model, bob)
    model(model.rows["bob"])
    assert model.rows["alice"].location is alice
    assert alice.objects_count() == 1
    obhut.get(model)
    assert model.rows["alice"].location is alice


def test_what_can_not_come_is_left(
    bob: obhut.VirtualWorker, alice: obhut.VirtualWorker
):
    """A record at a worker that is closed is in nobody's way, if nobody needs it."""

    class Recording(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Keep a record."""
            self.record = x * 1
            return self.inner(x)

    gone = obhut.VirtualWorker("gone")
    model = obhut.send(Recording(), gone)
    model(obhut.send(X, gone))
    obhut.move(model, bob)
    bob.wait()
    gone.close()
    assert model(obhut.send(X, bob)).location is bob


def test_the_error_names_the_attribute(bob: obhut.VirtualWorker):
    """By its path in what was sent, from however deep inside."""

    class Loose(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.ones(3, requires_grad=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Use a weight that did not travel."""
            return x * self.weight

    model = nn.Sequential(nn.Sequential(nn.Linear(3, 3), Loose()))
    obhut.send(model, bob)
    with pytest.raises(LocationError, match=r"keeps 0\.1\.weight elsewhere.*Parameter"):
        model(obhut.send(X, bob))


def test_a_copy_has_no_history_of_what_was_kept(bob: obhut.VirtualWorker):
    """``obhut.copy`` takes a module that keeps a result; ``average`` does too."""
    model = obhut.send(Keeping(), bob)
    model(obhut.send(X, bob)).sum().backward()
    twin = obhut.copy(model)
    assert twin.last is not model.last
    assert not twin.last.requires_grad
    assert twin.last.location is bob
    assert torch.equal(twin.last.get(), model.last.get().detach())
    mean = obhut.get(obhut.average([model, twin]))
    assert torch.equal(mean.inner.weight, obhut.get(twin).inner.weight)


def test_an_aggregator_gets_nothing_that_is_kept():
    """Of three owners behind a policy the models are averaged, and only these."""
    owners = [obhut.VirtualWorker(n, policy=POLICY) for n in POLICY.contributors]
    hub = obhut.VirtualWorker("hub", policy=POLICY)
    model = Keeping()
    model(X)
    copies = [obhut.send(obhut.copy(model), owner) for owner in owners]
    for owner, copied in zip(owners, copies, strict=True):
        copied(obhut.send(X, owner)).sum().backward()
    for copied in copies:
        obhut.move(copied, hub)
    assert hub.objects_count() == 3 * 2
    mean = obhut.get(obhut.average(copies))
    torch.testing.assert_close(mean.inner.weight, model.inner.weight)
    assert isinstance(mean.seen, obhut.RemoteTensor)
