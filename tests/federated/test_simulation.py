from __future__ import annotations

import copy
import logging
import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.nn import functional

import obhut
from obhut.errors import CallError, NonFiniteError, ObhutError, WorkerClosedError
from obhut.federated import (
    Checkpoint,
    FedAdam,
    FedAvg,
    Federation,
    LocalTraining,
    Scaffold,
    metrics,
)
from obhut.federated.strategies import Delivered, Train

NAMES = [f"client-{place}" for place in range(6)]


def rows(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features (rows, 8) and targets of three classes."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 8, generator=draw)
    return x, x[:, :3].argmax(1)


DATA = {name: rows(30 + 2 * place, place) for place, name in enumerate(NAMES)}

TRAINING = LocalTraining(
    partial(optim.SGD, lr=0.1), functional.cross_entropy, batch_size=10, shuffle=True
)


DROPPING = LocalTraining(
    partial(optim.SGD, lr=0.1),
    functional.cross_entropy,
    batch_size=10,
    drop_last=True,
)


def model() -> nn.Sequential:
    """Return a model, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Linear(8, 16, bias=False),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Linear(16, 3),
        )


def simulated(data: Any = None) -> Federation:
    """Return clients in this process."""
    return obhut.Federation(obhut.simulate(data or DATA, actors=0))


def virtual() -> Federation:
    """Return the same clients as virtual workers."""
    workers = {
        name: obhut.VirtualWorker(name, datasets={"data": {"features": x, "target": y}})
        for name, (x, y) in DATA.items()
    }
    owners = {name: one.dataset("data") for name, one in workers.items()}
    return obhut.Federation(owners, obhut.VirtualWorker("hub"))


def trained(
    federation: Federation, training: Any = TRAINING, **how: Any
) -> tuple[nn.Module, Any]:
    """Return a trained model, and the history."""
    one = model()
    how = {"rounds": 3, "seed": 3, "progress": False} | how
    return one, federation.fit(one, training, **how)


def check_close(one: nn.Module, other: nn.Module) -> None:
    """Check that two models are the same but for rounding."""
    for name, value in one.state_dict().items():
        torch.testing.assert_close(
            value, other.state_dict()[name], rtol=0, atol=1e-6, msg=name
        )


class Doubled(FedAvg):
    """Delivers twice what training changes, and what of it is no parameter."""

    def local(self, train: Train, sent: nn.Module, data: Any) -> Delivered:
        """Train, and deliver a tensor of another name, too."""
        results = train(sent, data)
        averaged = dict(train.taking_part(sent))
        with torch.no_grad():
            averaged["norm"] = torch.stack(
                [one.float().square().sum() for one in averaged.values()]
            )
        return Delivered(averaged, results)

    def update(self, model: nn.Module, mean: Any) -> None:
        """Take what is the model's."""
        assert len(mean["norm"]) == len(mean) - 1
        super().update(model, {k: one for k, one in mean.items() if k != "norm"})


def custom(model: nn.Module, data: Any) -> Any:
    """Train for two epochs, as a function of one's own."""
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    total, count = 0.0, 0
    for x, y in data.batches(8):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        total, count = total + loss.detach().double() * len(y), count + len(y)
    return {"loss": obhut.Ratio(total, count)}


WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "metrics": {"validate": {"accuracy": metrics.accuracy, "again": metrics.accuracy}},
    "SCAFFOLD": {"strategy": Scaffold},
    "clipped": {"strategy": partial(FedAvg, clip_norm=0.1)},
    "own strategy": {"strategy": Doubled},
    "FedAdam": {"outer_optimizer": partial(FedAdam, lr=0.01)},
    "participants": {"participants": 3},
    "a share, SCAFFOLD": {"participants": 0.5, "strategy": Scaffold},
    "personal": {"participants": 2, "keep": ["3"]},
    "held out": {"held_out": 0.3, "training": DROPPING, "keep": ["1", "3.bias"]},
    "held out, metrics": {
        "held_out": 0.3,
        "validate": {"accuracy": metrics.accuracy},
        "training": DROPPING,
    },
    "weights": {"weights": {name: place for place, name in enumerate(NAMES)}},
    "own training": {"training": custom},
    "Adam": {"training": LocalTraining(optim.Adam, functional.cross_entropy, steps=7)},
    "FedProx": {
        "training": LocalTraining(optim.SGD, nn.CrossEntropyLoss(), proximal=0.1)
    },
}


@pytest.mark.parametrize("way", WAYS)
def test_it_comes_to_what_virtual_workers_come_to(way: str) -> None:
    """Whatever the training is: within 1e-6, with the same losses and metrics."""
    how = WAYS[way]
    one, history = trained(simulated(), **how)
    other, expected = trained(virtual(), **how)
    check_close(one, other)
    for mine, theirs in zip(history, expected, strict=True):
        assert mine.numbers.keys() == theirs.numbers.keys()
        for name, value in mine.numbers.items():
            assert value == pytest.approx(theirs.numbers[name], abs=1e-6, nan_ok=True)


def test_a_round_opens_no_client() -> None:
    """It is one message for all: nobody has a session."""
    clients = obhut.simulate(DATA, actors=0)
    trained(obhut.Federation(clients), validate={"accuracy": metrics.accuracy})
    assert not clients._workers.keys() & set(NAMES)


@pytest.mark.parametrize(
    "optimizer",
    [
        partial(optim.SGD, lr=0.1),
        partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        partial(optim.Adam, lr=0.01),
    ],
    ids=["SGD", "momentum", "Adam"],
)
def test_a_clients_update_is_eager_torchs(optimizer: Any) -> None:
    """To the bit: of one client the mean is what a plain loop comes to."""
    x, y = rows(50, 0)
    training = LocalTraining(optimizer, functional.cross_entropy, batch_size=20)
    found, _ = trained(simulated({"ann": (x, y)}), training, rounds=1)
    plain = model()
    training(plain, obhut.LocalDataset(x, y))
    for name, value in found.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name


def test_a_training_line_by_line_is_the_same() -> None:
    """What can't be written down for all is asked of each client by itself."""
    eager = LocalTraining(
        partial(optim.SGD, lr=0.1), functional.cross_entropy, batch_size=10, eager=True
    )
    one, _ = trained(simulated(), eager)
    other, _ = trained(virtual(), eager)
    check_close(one, other)


def test_rows_of_one_data_set_are_dealt() -> None:
    """By a partitioner; each client trains on its own."""
    x, y = rows(200, 5)
    clients = obhut.simulate((x, y), obhut.by_class(1, 3), actors=0)
    assert len(clients) == 3
    for name, data in clients.items():
        assert data.location.id == name
        assert len(data.targets.get().unique()) == 1  # type: ignore[attr-defined]
    _, history = trained(obhut.Federation(clients))
    assert history[-1].loss < history[0].loss


def test_a_function_loads_a_client_when_it_is_needed() -> None:
    """Who never takes part is not loaded, but for the first, which shows its look."""
    asked: list[str] = []

    def load(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(name)
        return DATA[name]

    clients = obhut.simulate(load, NAMES, actors=0)
    assert not asked
    trained(obhut.Federation(clients), participants=2, rounds=1)
    assert len(set(asked)) <= 3


def test_clients_are_workers_like_any_other() -> None:
    """A client's tensors are asked by name, and change no other session's."""
    clients = obhut.simulate(DATA, actors=0)
    data = clients["client-2"]
    x, _ = DATA["client-2"]
    assert torch.equal(data.features.copy().get(), x)  # type: ignore[attr-defined]
    data.features.zero_()
    assert DATA["client-2"][0].any()
    one, _ = trained(obhut.Federation(clients))
    other, _ = trained(virtual())
    check_close(one, other)
    assert obhut.Federation(clients).describe().rows == sum(
        len(y) for _, y in DATA.values()
    )
    with pytest.raises(KeyError):
        clients["nobody"]


def test_an_error_names_client_and_line() -> None:
    """Which client, and which line of the caller's asked."""
    wrong = DATA | {"client-3": (DATA["client-3"][0], DATA["client-3"][1] + 5)}
    with pytest.raises(ObhutError, match=r"client-3") as raised:
        trained(simulated(wrong))
    assert "local.py" in str(raised.value) or __file__ in str(raised.value)


@pytest.mark.parametrize("on_non_finite", ["raise", "skip"])
def test_what_is_not_finite_names_clients(on_non_finite: Any) -> None:
    """How many, and who; the model stays as it was."""
    x, y = DATA["client-4"]
    spoilt = DATA | {"client-4": (x / 0, y)}
    federation, one = simulated(spoilt), model()
    before = copy.deepcopy(one.state_dict())

    def fit() -> Any:
        return federation.fit(
            one,
            TRAINING,
            rounds=1,
            on_non_finite=on_non_finite,
            progress=False,
        )

    if on_non_finite == "raise":
        with pytest.raises(NonFiniteError, match="client-4") as raised:
            fit()
        assert raised.value.owners == 1
    else:
        assert fit()[0].non_finite == 1
    assert all(torch.equal(before[name], x) for name, x in one.state_dict().items())


@pytest.mark.parametrize("way", ["plain", "SCAFFOLD", "personal"])
def test_a_training_goes_on_from_a_checkpoint(way: str, tmp_path: Path) -> None:
    """Also with what clients keep, and with others in each round: to the bit."""
    how = WAYS[way] | {"participants": 3, "seed": 1}
    whole, _ = trained(simulated(), rounds=6, **how)
    begun = [Checkpoint(tmp_path)]
    trained(simulated(), rounds=3, callbacks=begun, **how)
    rest, history = trained(simulated(), rounds=6, resume=tmp_path, **how)
    assert len(history) == 6
    assert all(map(torch.equal, whole.parameters(), rest.parameters()))


def test_what_a_client_keeps_is_its_own_by_its_name(tmp_path: Path) -> None:
    """A training may go on with clients in another order: each has its own again."""
    how = {"keep": ["3"], "seed": 1}
    first = simulated()
    trained(first, rounds=2, callbacks=[Checkpoint(tmp_path)], **how)
    other = obhut.Federation(
        obhut.simulate({name: DATA[name] for name in reversed(NAMES)}, actors=0)
    )
    trained(other, rounds=2, resume=tmp_path, **how)
    assert len(NAMES) == len(first.staying.apart)
    for place, apart in first.staying.apart.items():
        again = other.staying.apart[len(NAMES) - 1 - place]
        assert all(map(torch.equal, apart.tensors()[2], again.tensors()[2]))


def test_a_checkpoint_is_of_as_many_participants(tmp_path: Path) -> None:
    """Another number would be another training."""
    trained(simulated(), participants=3, callbacks=[Checkpoint(tmp_path)])
    with pytest.raises(CallError, match="participants=3"):
        trained(simulated(), participants=2, resume=tmp_path)


def test_without_ray_it_says_where_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In this process, and how to get more."""
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with caplog.at_level(logging.WARNING), obhut.simulate(DATA) as clients:
        assert "in this process" in repr(clients)
    assert "pip install 'obhut[ray]'" in caplog.text
    with pytest.raises(obhut.errors.MissingExtraError, match="ray"):
        obhut.simulate(DATA, address="auto")


def test_who_keeps_layers_at_a_worker_is_asked_there() -> None:
    """A training that is no program leaves them there; metrics are of them, too."""
    eager = LocalTraining(
        partial(optim.SGD, lr=0.5), functional.cross_entropy, eager=True
    )
    how = {"keep": ["3"], "validate": {"accuracy": metrics.accuracy}}
    _, history = trained(simulated(), eager, **how)
    _, expected = trained(virtual(), eager, **how)
    for mine, theirs in zip(history, expected, strict=True):
        assert mine.numbers == pytest.approx(theirs.numbers, abs=1e-6, nan_ok=True)


def test_a_round_of_nobodys_rows_is_told() -> None:
    """Nothing spoilt comes into the model."""
    weights = dict.fromkeys(NAMES, 0.0) | {NAMES[0]: 1.0}
    one = model()
    before = copy.deepcopy(one.state_dict())
    with pytest.raises(CallError, match=r"weights above 0.*client-[1-5]"):
        simulated().fit(
            one,
            TRAINING,
            rounds=9,
            participants=1,
            weights=weights,
            seed=0,
            progress=False,
        )
    assert all(x.isfinite().all() for x in one.state_dict().values())
    assert before.keys() == one.state_dict().keys()


def test_wrong_use_is_told() -> None:
    """Before anything is started."""
    with pytest.raises(CallError, match="leave out 0"):
        obhut.simulate(DATA, actors=0, gpus_per_actor=1)
    for actors in (-1, 1.5, "2"):
        with pytest.raises(CallError, match="how many actors, from 0"):
            obhut.simulate(DATA, actors=actors)  # type: ignore[arg-type] # so it is wrong
    with pytest.raises(CallError, match="share of GPUs from 0, got -1"):
        obhut.simulate(DATA, gpus_per_actor=-1)
    with pytest.raises(CallError, match="columns"):
        obhut.Federation(obhut.simulate(DATA, actors=0), columns=["age"])
    with pytest.raises(CallError, match="exact=False is for simulated"):
        trained(virtual(), exact=False)
    with pytest.raises(CallError, match="trim below half of 2 owners"):
        trained(simulated(), strategy=lambda: FedAvg(trim=1), participants=2)
    with pytest.raises(CallError, match=r"outer_optimizer=partial\(FedAdam"):
        trained(simulated(), strategy=FedAdam)
    with pytest.raises(CallError, match="makes a str"):
        trained(simulated(), strategy=lambda: "FedAvg")
    with pytest.raises(CallError, match="a seed that is a whole number, got 'one'"):
        trained(simulated(), seed="one")
    weights = dict.fromkeys(NAMES, 1.0)
    with pytest.raises(CallError, match="weights of 0 or more, got nan"):
        trained(simulated(), weights=weights | {NAMES[1]: float("nan")})


def test_held_out_rows_that_nobody_has_are_told() -> None:
    """A metric of none is NaN, and a share of few rows may be none."""
    with pytest.warns(UserWarning, match="accuracy of the held-out rows: NaN"):
        _, history = trained(
            simulated(), held_out=0.001, validate={"accuracy": metrics.accuracy}
        )
    assert all(math.isnan(one.metrics["accuracy"]) for one in history)


def test_a_simulation_that_is_closed_says_so() -> None:
    """A round raises, and so does a client who is asked."""
    with obhut.simulate(DATA, actors=0) as clients:
        federation = obhut.Federation(clients)
    with pytest.raises(WorkerClosedError, match="the simulation is closed"):
        trained(federation)
    with pytest.raises(WorkerClosedError, match=NAMES[0]):
        clients[NAMES[0]]


def test_steps_in_other_threads_are_taken() -> None:
    """What is recorded here is nothing of a training that runs beside it."""
    layer = nn.Linear(2, 2)
    before, optimizer = copy.deepcopy(layer), optim.SGD(layer.parameters(), lr=0.1)

    def step() -> None:
        layer(torch.ones(2)).sum().backward()
        optimizer.step()

    def loss(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(step).result()
        return functional.cross_entropy(outputs, target)

    trained(simulated(), LocalTraining(partial(optim.SGD, lr=0.1), loss), rounds=1)
    assert not torch.equal(layer.weight, before.weight)


def test_it_says_what_it_is() -> None:
    """How many clients, and what their rows are like."""
    clients = obhut.simulate(DATA, actors=0)
    assert repr(clients) == "<Simulation of 6 clients in this process>"
    said = repr(obhut.Federation(clients))
    assert "6 simulated clients in this process" in said
    assert "float32" in said
    assert "<table" in clients._repr_html_()


def test_fused_updates_are_said_in_the_history() -> None:
    """Whoever reads it knows that numbers may differ in the last digits."""
    one, history = trained(simulated(), exact=False)
    other, _ = trained(simulated())
    check_close(one, other)
    assert not history.exact
    assert "exact=False" in repr(history)
