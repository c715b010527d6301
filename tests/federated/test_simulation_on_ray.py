"""Simulated clients on Ray come to what they come to in this process.

What Ray itself may do to a crew is tested beside the crew.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.nn import functional

import obhut
from obhut.errors import ObhutError
from obhut.federated import Federation, LocalTraining, Scaffold, metrics

pytest.importorskip("ray")

TRAINING = LocalTraining(
    partial(optim.SGD, lr=0.1), functional.cross_entropy, batch_size=10, shuffle=True
)


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Return features (400, 8) and targets of three classes."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(400, 8, generator=draw)
    return x, x[:, :3].argmax(1)


def model() -> nn.Sequential:
    """Return a model, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def trained(federation: Federation, **how: Any) -> tuple[nn.Module, Any]:
    """Return a trained model, and the history."""
    one = model()
    how = {"rounds": 4, "participants": 6, "seed": 2, "progress": False} | how
    return one, federation.fit(one, TRAINING, **how)


def simulated(actors: int | None, **where: Any) -> Any:
    """Return twenty clients of one data set."""
    return obhut.simulate(rows(), obhut.dirichlet(1.0, 20), actors=actors, **where)


def distance(one: nn.Module, other: nn.Module) -> float:
    """Return the largest difference of two models."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


@pytest.mark.slow
def test_as_many_actors_as_there_are_come_to_the_same() -> None:
    """Of one seed: in this process, and in 1, 2 and 4 actors, within 1e-6."""
    ways = [
        {"validate": {"accuracy": metrics.accuracy}},
        {"strategy": Scaffold, "held_out": 0.2},
        {"keep": ["2"]},
    ]
    expected = [trained(obhut.Federation(simulated(0)), **how) for how in ways]
    for actors in (1, 2, 4):
        with simulated(actors) as clients:
            federation = obhut.Federation(clients)
            for how, (one, history) in zip(ways, expected, strict=True):
                other, mine = trained(federation, **how)
                assert distance(one, other) <= 1e-6
                for a, b in zip(history, mine, strict=True):
                    assert a.numbers == pytest.approx(b.numbers, abs=1e-6)


def test_a_clients_own_update_is_eager_torchs() -> None:
    """To the bit: of one client the mean is what a plain loop comes to."""
    x, y = rows()
    training = LocalTraining(
        partial(optim.SGD, lr=0.1, momentum=0.9),
        functional.cross_entropy,
        batch_size=32,
    )
    one, plain = model(), model()
    with obhut.simulate({"ann": (x, y)}, actors=1) as clients:
        obhut.Federation(clients).fit(one, training, rounds=1, progress=False)
    training(plain, obhut.LocalDataset(x, y))
    assert distance(one, plain) == 0


def test_clients_on_ray_are_workers_like_any_other() -> None:
    """Asked one by one they say the same, and so does who adds what they deliver."""
    _, y = rows()
    with simulated(2) as clients, simulated(0) as here:
        name = next(iter(clients))
        mine, theirs = clients[name].features, here[name].features
        assert torch.equal(mine.copy().get(), theirs.copy().get())
        found = obhut.Federation(clients).describe()
        assert found.rows == len(y)
        eager = LocalTraining(optim.SGD, functional.cross_entropy, eager=True)
        both = []
        for federation in map(obhut.Federation, (clients, here)):
            both.append(model())
            federation.fit(
                both[-1], eager, rounds=1, participants=3, seed=0, progress=False
            )
        assert distance(*both) <= 1e-6


def test_an_error_in_an_actor_names_client_and_line() -> None:
    """As in this process."""
    x, y = rows()
    data = {"ann": (x, y), "bob": (x, y + 7)}
    with (
        obhut.simulate(data, actors=1) as clients,
        pytest.raises(ObhutError, match="bob") as raised,
    ):
        trained(obhut.Federation(clients), participants=None)
    assert __file__ in str(raised.value)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("fate", ["killed", "stopped"])
def test_a_training_outlives_a_node(fate: str) -> None:
    """One of two nodes is lost in round 5 of 10: the model is the same in the end."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.federated.losing_nodes", fate],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert ended.returncode == 0, ended.stderr
    rounds, off = ended.stdout.split()[-2:]
    assert int(rounds) == 10
    assert float(off) <= 1e-6
