"""What is drawn at served workers follows from this process's generator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import obhut
from obhut.client.draws import Draws
from obhut.errors import UnsupportedError
from obhut.testing.sites import Sites

ONES = torch.ones(40)


@pytest.fixture(scope="module")
def connect(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[], obhut.Network]]:
    """Opens new sessions with two served workers."""
    root = tmp_path_factory.mktemp("draws")
    with Sites(root, ("bob", "alice", "me")) as sites:
        addresses = [sites.serve(name, sessions=["me"]) for name in ("bob", "alice")]
        yield lambda: obhut.connect(*addresses, folder=root / "me")


def both(connect: Callable[[], obhut.Network], program: Callable[..., Any]) -> Any:
    """Run a program twice, in new sessions; check that it draws the same."""
    with connect() as net:
        first = program(net["bob"], net["alice"])
    with connect() as net:
        again = program(net["bob"], net["alice"])
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one, other)
    return first


def test_a_seed_here_makes_a_program_repeatable(connect):
    """Dropout, initialisation and noise are drawn again; two workers draw different."""

    def program(bob, alice):
        torch.manual_seed(0)
        drawn = []
        for worker in (bob, alice):
            x = obhut.send(ONES, worker)
            layer = obhut.send(nn.Linear(40, 2), worker)
            nn.init.normal_(layer.weight)
            with worker:
                noise = torch.randn(40)
            drawn += [F.dropout(x), layer.weight.detach(), x + noise]
        return [x.get() for x in drawn] + [torch.randn(3)]

    *drawn, _ = both(connect, program)
    for at_bob, at_alice in zip(drawn[:3], drawn[3:], strict=True):
        assert not torch.equal(at_bob, at_alice)


def test_a_seed_again_draws_again_and_another_does_not(connect):
    """A second seed in the same session has its effect; workers differ all the same."""

    def program(bob, alice):
        drawn = []
        for worker, seed in ((bob, 1), (bob, 1), (bob, 2), (alice, 1)):
            x = obhut.send(ONES, worker)
            torch.manual_seed(seed)
            drawn.append(F.dropout(x).get())
        return drawn

    first, again, other, alice = both(connect, program)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, alice)


def test_seeded_inside_a_worker_draws_what_would_be_drawn_here(connect):
    """Numbers, layers and dropout are local ones, one by one, at each worker."""

    def draw() -> list[torch.Tensor]:
        torch.manual_seed(5)
        layer = nn.Linear(3, 2)
        return [torch.randn(3), torch.randperm(9), layer.weight, torch.rand(20)]

    def program(*workers):
        drawn = []
        for worker in workers:
            with worker:
                drawn += [x.get().detach() for x in draw()]
        return drawn

    drawn = both(connect, program)
    local = [x.detach() for x in draw()]
    for one, other in zip(drawn, local * 2, strict=True):
        assert torch.equal(one, other)


def test_a_generator_goes_on_as_it_does_here(connect):
    """What it draws there are its own numbers, and it does not stay where it was."""

    def program(bob, _):
        torch.manual_seed(0)
        g = torch.Generator().manual_seed(3)
        x = obhut.send(ONES, bob)
        with bob:
            drawn = [torch.randn(3, generator=g), torch.rand(2, generator=g)]
        drawn.append(x.clone().normal_(generator=g))
        return [x.get() for x in drawn] + [torch.randn(3, generator=g)]

    first, second, third, here = both(connect, program)
    g = torch.Generator().manual_seed(3)
    assert torch.equal(first, torch.randn(3, generator=g))
    assert torch.equal(second, torch.rand(2, generator=g))
    assert torch.equal(third, ONES.clone().normal_(generator=g))
    fresh = torch.randn(3, generator=torch.Generator().manual_seed(3))
    assert not torch.equal(here, fresh)


@pytest.mark.parametrize(
    "run",
    [
        lambda layer, x: layer(nn.LSTM(4, 5))(x),
        lambda layer, x: layer(nn.GRU(4, 5, 2))(x),
        lambda layer, x: layer(nn.RNN(4, 5, 2, dropout=0.5).eval())(x),
        lambda layer, x: layer(nn.MultiheadAttention(4, 2).eval())(x, x, x),
        lambda layer, x: F.scaled_dot_product_attention(x, x, x),
        lambda layer, x: F.dropout(x, 0.5, training=False),
        lambda layer, x: F.rrelu(x),
    ],
)
def test_what_draws_nothing_here_takes_no_number(connect, run):
    """What is drawn afterwards, here and there, is what it would be without it."""
    with connect() as net:
        bob = net["bob"]
        x = obhut.send(torch.ones(2, 3, 4), bob)
        layers = []

        def layer(made):
            layers.append(obhut.send(made, bob))
            state.append(torch.get_rng_state())
            return layers[-1]

        state = [torch.get_rng_state()]
        run(layer, x)
        assert torch.equal(torch.get_rng_state(), state[-1])
        F.dropout(x)
        assert not torch.equal(torch.get_rng_state(), state[-1])


def test_a_restored_state_draws_again(connect):
    """What checkpoints rely on: the state decides, not what was drawn meanwhile."""

    def program(bob, alice):
        x, y = obhut.send(ONES, bob), obhut.send(ONES, alice)
        torch.manual_seed(0)
        F.dropout(x)
        state = torch.get_rng_state()
        drawn = [F.dropout(x), F.dropout(x)]
        F.dropout(y)
        torch.set_rng_state(state)
        return [x.get() for x in [*drawn, F.dropout(x), F.dropout(x)]]

    one, two, one_again, two_again = both(connect, program)
    assert torch.equal(one, one_again)
    assert torch.equal(two, two_again)
    assert not torch.equal(one, two)


# --- the rule itself --------------------------------------------------------------


def test_seeds_follow_from_the_state_and_the_worker():
    """The same state and worker give the same seed, anything else another."""
    g = torch.default_generator
    g.manual_seed(0)
    before = g.get_state()
    bob, alice = Draws("bob"), Draws("alice")
    first, second = bob.seed(None), bob.seed(None)
    g.set_state(before)
    assert alice.seed(None) not in (first, second)
    g.set_state(before)
    assert [bob.seed(None), bob.seed(None)] == [first, second]
    assert g.initial_seed() == 0


def test_what_is_drawn_here_goes_on_apart_from_what_is_drawn_there():
    """After a draw there this process draws none of the numbers again."""
    torch.manual_seed(0)
    local = torch.rand(100)
    draws = Draws("bob")
    draws.enter()
    torch.manual_seed(0)
    assert draws.seed(None) == 0
    draws.leave()
    assert not set(torch.rand(100).tolist()) & set(local.tolist())


def test_a_state_that_the_worker_can_not_go_back_to_is_refused():
    """Inside ``with worker:`` a stream goes on there; seeding again begins another."""
    g = torch.Generator().manual_seed(0)
    draws = Draws("bob")
    assert draws.seed(g) == 0
    state = g.get_state()
    assert draws.seed(g) is None
    g.set_state(state)
    with pytest.raises(UnsupportedError, match="setting back a generator"):
        draws.seed(g)
    assert torch.equal(g.get_state(), state)
    assert draws.seed(g.manual_seed(0)) == 0
    assert draws.seed(g) is None


def test_another_draw_between_ends_the_stream():
    """Then the generator's state gives a seed, as it does outside."""
    g, other = (torch.Generator().manual_seed(seed) for seed in (0, 1))
    draws = Draws("bob")
    assert draws.seed(g) == 0
    assert draws.seed(other) == 1
    assert draws.seed(g) not in (None, 0, 1)
