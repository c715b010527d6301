"""A federation's fit: rounds, seeds, checkpoints, callbacks, wrong use."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import pickle
import re
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.federated.test_strategies import POLICY, TRAINING, federate, make_parts
from torch import nn

import obhut
from obhut.errors import (
    CallError,
    CheckpointError,
    MissingExtraError,
    NonFiniteError,
    ObhutError,
    ReleaseRefusedError,
)
from obhut.federated import (
    Checkpoint,
    CSVLogger,
    FedAdam,
    FedAvg,
    Federation,
    History,
    LocalTraining,
    MLflowLogger,
    Round,
    Scaffold,
    StopTraining,
    TensorBoardLogger,
    train_rounds,
)
from obhut.federated.parameters import named_tensors

SHUFFLED = LocalTraining(
    partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    F.cross_entropy,
    batch_size=5,
    shuffle=True,
)


def accuracy(outputs: torch.Tensor, targets: torch.Tensor) -> obhut.Ratio:
    """Return the share of rows that are right."""
    return obhut.Ratio((outputs.argmax(1) == targets).sum(), len(targets))


def make_model() -> nn.Module:
    """Return a model that draws."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3)
    ).double()


def same(one: nn.Module, other: nn.Module) -> bool:
    """Tell whether two models have the same values."""
    mine, theirs = named_tensors(one), named_tensors(other)
    return all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_fit_is_train_rounds_and_says_how_it_comes_along(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A line a round on standard error, and nothing on standard output."""
    parts, model = make_parts(), nn.Linear(4, 3).double()
    expected = copy.deepcopy(model)
    losses = [
        one.loss
        for one in train_rounds(
            expected,
            [*federate(parts).owners.values()],
            "secure_worker",
            TRAINING,
            3,
        )
    ]
    federation = federate(parts)
    history = federation.fit(model, TRAINING, rounds=3, validate={"accuracy": accuracy})
    assert same(model, expected)
    assert [one.loss for one in history[1:]] == losses
    assert history is federation.history
    assert [one.number for one in history] == [0, 1, 2, 3]
    assert math.isnan(history[0].loss)
    assert all(0 <= one.metrics["accuracy"] <= 1 for one in history)
    assert all(one.seconds > 0 for one in history)
    said = capsys.readouterr()
    assert not said.out
    lines = said.err.splitlines()
    assert len(lines) == 4
    assert lines[3].startswith(f"round 3/3  5/5 owners  loss {losses[2]:.3f}  accuracy")


def test_rounds_are_frozen_and_yielded_after_each() -> None:
    """The model can be tried between them."""
    model = nn.Linear(4, 3).double()
    before = copy.deepcopy(model)
    reports = federate(make_parts()).rounds(model, TRAINING, rounds=2)
    assert same(model, before)
    report = next(reports)
    assert not same(model, before)
    with pytest.raises(AttributeError):
        report.loss = 0.0  # type: ignore[misc] # frozen
    with pytest.raises(TypeError):
        report.metrics["x"] = 1.0  # type: ignore[index] # likewise
    assert [one.number for one in reports] == [2]


@pytest.mark.parametrize("training", [SHUFFLED, "function"])
def test_a_seed_makes_all_draws_again(training: Any) -> None:
    """Shuffling, dropout and held-out rows; what the caller draws stays its own."""
    if training == "function":
        training = train
    models = []
    for seed, other in ((5, 1), (5, 2), (6, 1)):
        model = make_model()
        torch.manual_seed(other)
        state = torch.get_rng_state()
        federate(make_parts_again()).fit(
            model, training, rounds=2, seed=seed, held_out=0.2, progress=False
        )
        assert torch.equal(state, torch.get_rng_state())
        models.append(model)
    assert same(models[0], models[1])
    assert not same(models[0], models[2])


def make_parts_again() -> Any:
    """Return the same rows each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make_parts()


def train(model: nn.Module, data: Any) -> dict[str, obhut.Ratio]:
    """Train with two optimizers, as a function of one's own."""
    first = torch.optim.Adam(model[0].parameters(), lr=0.01)
    second = torch.optim.SGD(model[3].parameters(), lr=0.1)
    total, rows = 0.0, 0
    for x, y in data.batches(5, shuffle=True):
        first.zero_grad()
        second.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        first.step()
        second.step()
        total = total + loss.detach() * len(x)
        rows = rows + len(x)
    return {"loss": obhut.Ratio(total, rows), "d": obhut.Ratio(2 * total, rows)}


def test_any_training_is_a_function_of_model_and_data() -> None:
    """Under a policy, too; what it returns beside the loss is a metric."""
    model = make_model()
    history = federate(make_parts(), POLICY).fit(model, train, rounds=2, progress=False)
    assert history[1].loss > 0
    assert history[1].metrics["d"] == pytest.approx(2 * history[1].loss)
    assert not same(model, make_model())


def test_a_function_runs_line_by_line_where_it_cannot_be_recorded() -> None:
    """Its numbers may be local ones then."""

    def odd(model: nn.Module, data: Any) -> dict[str, obhut.Ratio]:
        if sum(len(x) for x, _ in data.batches()) < 10:
            return {"small": obhut.Ratio(1, 1)}
        return {"small": obhut.Ratio(0, 1)}

    federation = federate(make_parts())
    with pytest.warns(UserWarning, match="line by line"):
        history = federation.fit(make_model(), odd, rounds=1, progress=False)
    assert history[0].metrics["small"] == 2 / 5
    assert math.isnan(history[0].loss)


@pytest.mark.parametrize("policy", [None, POLICY], ids=["open", "same"])
def test_resuming_goes_on_bit_for_bit(
    policy: obhut.Quorum | None, tmp_path: Path
) -> None:
    """Model, outer optimizer, seeds and history, from any round's checkpoint."""
    outer = partial(FedAdam, lr=0.05)
    parts = make_parts_again()
    options: dict[str, Any] = {
        "seed": 7,
        "outer_optimizer": outer,
        "validate": {"accuracy": accuracy},
        "held_out": 0.25,
        "progress": False,
    }
    whole = make_model()
    expected = federate(parts, policy).fit(whole, SHUFFLED, rounds=4, **options)
    for end in (1, 3):
        folder = tmp_path / str(end)

        def stop(report: Round, end: int = end) -> None:
            if report.number == end:
                raise KeyboardInterrupt

        federation = federate(parts, policy)
        with pytest.raises(KeyboardInterrupt):
            federation.fit(
                make_model(),
                SHUFFLED,
                rounds=4,
                callbacks=[Checkpoint(folder), stop],
                **options,
            )
        assert federation.history == expected[: end + 1]
        again = make_model()
        with torch.no_grad():
            again[0].weight.zero_()
        history = federate(parts, policy).fit(
            again,
            SHUFFLED,
            rounds=4,
            resume=folder,
            callbacks=[Checkpoint(folder)],
            **options,
        )
        assert history == expected
        assert same(again, whole)


@pytest.mark.parametrize("policy", [None, POLICY], ids=["open", "same"])
@pytest.mark.parametrize("kind", ["keep", "scaffold"])
def test_what_owners_keep_goes_on_too(
    policy: obhut.Quorum | None, kind: str, tmp_path: Path
) -> None:
    """It outlives sessions: after any round, written each time or every second."""
    options: dict[str, Any] = {"seed": 7, "progress": False, "rounds": 5}
    options |= {"keep": ["3"]} if kind == "keep" else {"strategy": Scaffold}
    training = replace(TRAINING, shuffle=True)
    parts = make_parts_again()
    whole = make_model()
    expected = federate(parts, policy).fit(whole, training, **options)
    for every, end in ((1, 1), (1, 4), (2, 3)):
        folder = tmp_path / f"{every} {end}"

        def stop(report: Round, end: int = end) -> None:
            if report.number == end:
                raise KeyboardInterrupt

        for callbacks in ([stop], []):
            again = make_model()
            federation = federate(parts, policy, folder / "state")
            written = Checkpoint(folder / "run", every=every)
            with contextlib.suppress(KeyboardInterrupt):
                history = federation.fit(
                    again,
                    training,
                    callbacks=[written, *callbacks],
                    resume=folder / "run",
                    **options,
                )
            for data in federation.owners.values():
                data.location.close()
        assert history == expected
        assert same(again, whole)


def test_what_was_kept_elsewhere_is_missed(tmp_path: Path) -> None:
    """A training whose owners have nothing stored does not go on without it."""
    parts = make_parts_again()
    options: dict[str, Any] = {"progress": False, "keep": ["3"], "resume": tmp_path}
    checkpoint = Checkpoint(tmp_path)
    federate(parts).fit(
        make_model(), TRAINING, rounds=1, callbacks=[checkpoint], **options
    )
    with pytest.raises(CallError, match="you have no version 1"):
        federate(parts).fit(make_model(), TRAINING, rounds=2, **options)


def test_checkpoints_keep_the_best_and_the_last(tmp_path: Path) -> None:
    """All others go, and what is left of one that was not finished does, too."""
    parts = make_parts_again()
    scores = iter([0.1, 0.9, 0.3, 0.4, 0.5, 0.2])

    def scored(outputs: torch.Tensor, targets: torch.Tensor) -> obhut.Ratio:
        return accuracy(outputs, targets)

    class Best(Checkpoint):
        """Scores rounds as the test says."""

        def save(self, model: nn.Module, state: Any) -> None:
            """Save with another score."""
            rounds = [*state.history]
            rounds[-1] = Round(
                rounds[-1].number, rounds[-1].loss, {"accuracy": next(scores)}
            )
            state.history._rounds[:] = rounds
            super().save(model, state)

    (tmp_path / ".round-0009").mkdir()
    model = make_model()
    models = {}

    def remember(report: Round) -> None:
        models[report.number] = copy.deepcopy(model)

    best = Best(tmp_path, keep=2, best="accuracy")
    federate(parts).fit(
        model,
        TRAINING,
        rounds=5,
        validate={"accuracy": scored},
        callbacks=[best, remember],
        progress=False,
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "round-0001",
        "round-0004",
        "round-0005",
    ]
    loaded = make_model()
    assert best.load(loaded).number == 1
    assert same(loaded, models[1])
    assert Checkpoint(tmp_path).load(loaded).number == 5
    assert same(loaded, models[5])
    with pytest.raises(CheckpointError, match=r"another model.*weight"):
        best.load(nn.Linear(4, 3))
    with pytest.raises(CheckpointError, match="no checkpoint"):
        best.load(loaded, 3)


def test_the_best_may_be_what_was_there_before_the_first(tmp_path: Path) -> None:
    """A training that only makes it worse is loaded as it began."""
    model = make_model()
    before = copy.deepcopy(model)
    best = Checkpoint(tmp_path, best="accuracy", mode="min")
    constant = {"accuracy": lambda outputs, targets: accuracy(outputs, outputs[:, 0])}
    federate(make_parts()).fit(
        model,
        TRAINING,
        rounds=1,
        validate=constant,
        callbacks=[best],
        progress=False,
    )
    assert not same(model, before)
    assert best.load(model).number == 0
    assert same(model, before)


def test_every_so_many_rounds_and_the_last_are_written(tmp_path: Path) -> None:
    """Also where a callback ends the training."""
    federation = federate(make_parts())
    options: dict[str, Any] = {"progress": False}
    checkpoint = Checkpoint(tmp_path / "a", every=2, keep=9)
    federation.fit(make_model(), TRAINING, rounds=5, callbacks=[checkpoint], **options)
    assert checkpoint.numbers() == [2, 4, 5]

    def stop(report: Round) -> None:
        if report.number == 3:
            raise StopTraining

    checkpoint = Checkpoint(tmp_path / "b", every=2, keep=9)
    history = federation.fit(
        make_model(), TRAINING, rounds=5, callbacks=[checkpoint, stop], **options
    )
    assert len(history) == 3
    assert checkpoint.numbers() == [2, 3]


def test_a_folder_holds_one_training(tmp_path: Path) -> None:
    """Another does not write over it, nor go on with other settings."""
    federation = federate(make_parts())
    checkpoint = Checkpoint(tmp_path)
    options: dict[str, Any] = {"callbacks": [checkpoint], "progress": False, "seed": 1}
    with pytest.raises(CallError, match="no checkpoint is in"):
        federation.fit(make_model(), TRAINING, rounds=1, resume=tmp_path / "typo")
    federation.fit(make_model(), TRAINING, rounds=1, resume=tmp_path, **options)
    with pytest.raises(CallError, match="holds a training, of round 1: go on"):
        federation.fit(make_model(), TRAINING, rounds=2, **options)
    with pytest.raises(CallError, match="other settings: seed=1"):
        federation.fit(
            make_model(), TRAINING, rounds=2, resume=tmp_path, **options | {"seed": 2}
        )
    assert len(federation.fit(make_model(), TRAINING, rounds=1, resume=tmp_path)) == 1
    (tmp_path / "round-0001" / "training.pt").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="can not be read"):
        federation.fit(make_model(), TRAINING, rounds=2, resume=tmp_path)


def test_a_failed_validation_takes_the_round_back() -> None:
    """The model, the outer optimizer and the history are those of the round before."""
    model, calls = make_model(), []

    def failing(outputs: torch.Tensor, targets: torch.Tensor) -> obhut.Ratio:
        calls.append(1)
        return accuracy(outputs, targets)

    federation = federate(make_parts())
    states = []
    reports = federation.rounds(
        model,
        TRAINING,
        rounds=3,
        validate={"accuracy": failing},
        outer_optimizer=partial(torch.optim.SGD, lr=1.0, momentum=0.9),
    )
    for report in reports:
        states.append(copy.deepcopy(model))
        if report.number == 1:
            federation.owners["elm"].location.close()
            break
    with pytest.raises(ObhutError, match="elm"):
        next(reports)
    assert same(model, states[-1])
    assert [one.number for one in federation.history] == [0, 1]
    assert calls


def test_frozen_parameters_are_sent_once_and_said_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What requires gradients travels, and buffers; the rest stays as it is."""
    model = make_model()
    model[0].requires_grad_(False)
    frozen = copy.deepcopy(model[0])
    federation = federate(make_parts())
    sent: list[int] = []
    session = federation.owners["aspen"].location.session
    post = session.post

    def counting(request: Any, frame: Any = None, *args: Any, **kwargs: Any) -> Any:
        sent.append(0 if frame is None else len(frame))
        return post(request, frame, *args, **kwargs)

    session.post = counting
    federation.fit(model, SHUFFLED, rounds=1)
    first = sum(sent)
    sent.clear()
    federation.fit(model, SHUFFLED, rounds=3)
    head = sum(one.numel() * 8 for one in model[3].parameters())
    base = sum(one.numel() * 8 for one in model[0].parameters())
    assert first == head + base
    assert sum(sent) == 3 * head + base
    assert same(model[0], frozen)
    said = capsys.readouterr().err
    assert "2 tensors of 27 numbers are trained together; 2 are frozen" in said
    assert said.count("are frozen") == 2


def test_a_round_that_is_not_finite_is_raised_or_skipped() -> None:
    """A skipped one has a report, and the model stays."""
    parts = {name: dict(part) for name, part in make_parts().items()}
    parts["elm"]["features"] = parts["elm"]["features"] * math.nan
    model = make_model()
    before = copy.deepcopy(model)
    federation = federate(parts)
    with pytest.raises(NonFiniteError):
        federation.fit(model, TRAINING, rounds=2, progress=False)
    history = federation.fit(
        model, TRAINING, rounds=2, on_non_finite="skip", progress=False
    )
    assert [one.non_finite for one in history] == [1, 1]
    assert same(model, before)


def test_what_is_no_loss_is_not_run_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Rows that are not finite, and what a policy refuses, while all are there."""
    parts = {name: dict(part) for name, part in make_parts().items()}
    parts["elm"]["features"] = parts["elm"]["features"] * math.nan
    options: dict[str, Any] = {"rounds": 2, "retries": 3}
    for policy in (None, POLICY):
        with pytest.raises(NonFiniteError):
            federate(parts, policy).fit(make_model(), TRAINING, **options)
    history = federate(parts).fit(
        make_model(), TRAINING, on_non_finite="skip", **options
    )
    assert [one.non_finite for one in history] == [1, 1]
    few = obhut.Quorum(
        aggregators=["secure_worker"], contributors=["aspen", "birch", "x"]
    )
    with pytest.raises(ReleaseRefusedError):
        federate(make_parts(), few).fit(make_model(), TRAINING, **options)
    assert "run again" not in capsys.readouterr().err


# Where it comes in a weakref's callback Python says so and goes on.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.unrecorded("Ctrl-C comes in the middle, which is no message")
def test_ctrl_c_leaves_the_last_round_that_is_over() -> None:
    """Whenever it comes, model and history are those of one round."""
    parts, states = make_parts_again(), {-1: make_model()}
    options: dict[str, Any] = {
        "seed": 7,
        "validate": {"accuracy": accuracy},
        "outer_optimizer": partial(FedAdam, lr=0.05),
        "progress": False,
    }
    whole = make_model()
    rounds = federate(parts, POLICY).rounds(whole, SHUFFLED, rounds=3, **options)
    states |= {one.number: copy.deepcopy(whole) for one in rounds}
    federation, ends = federate(parts, POLICY), set()
    for delay in range(1, 40, 3):
        model = make_model()
        press = threading.Timer(delay * 0.02, os.kill, (os.getpid(), signal.SIGINT))
        try:
            press.start()
            try:
                federation.fit(model, SHUFFLED, rounds=3, **options)
            finally:
                press.join()
        except KeyboardInterrupt:
            ends.add(len(federation.history))
        last = federation.history[-1].number if federation.history else -1
        assert same(model, states[last])
        assert torch.is_grad_enabled()
    assert len(ends) > 1


def test_loggers_write_each_round(tmp_path: Path) -> None:
    """A line each, also when the training goes on."""
    path = tmp_path / "run.csv"
    federation = federate(make_parts())
    for _ in range(2):
        federation.fit(
            make_model(),
            TRAINING,
            rounds=2,
            callbacks=[CSVLogger(path)],
            validate={"accuracy": accuracy},
            progress=False,
        )
    lines = path.read_text().splitlines()
    assert lines[0] == "round,loss,accuracy,seconds"
    assert len(lines) == 7
    for again in (1, 4):  # round 0 has no loss yet, and both times nothing is lost
        assert lines[again].startswith("0,,")
        assert all(
            re.match(r"\d,\d\.\d+,\d", one) for one in lines[again + 1 : again + 3]
        )
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_history_names_the_loss_first() -> None:
    """Also where the round before the first has none."""
    rounds = [Round(0, math.nan, {"f1": 0.1}), Round(1, 0.5, {"f1": 0.2, "a<b": 1.0})]
    history = History(rounds)
    assert history.names == ["loss", "f1", "a<b"]
    shown = history._repr_html_()
    assert "a&lt;b" in shown
    assert "a<b" not in shown
    assert "nan" not in shown


def test_tensorboard_gets_each_number(tmp_path: Path) -> None:
    """As scalars, by round."""
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    log = TensorBoardLogger(tmp_path)
    for number in (1, 2):
        log(Round(number, 1 / number, {"accuracy": number / 4}))
    events = reader.EventAccumulator(str(tmp_path)).Reload()
    assert [(one.step, one.value) for one in events.Scalars("accuracy")] == [
        (1, 0.25),
        (2, 0.5),
    ]
    assert [one.step for one in events.Scalars("loss")] == [1, 2]


@pytest.mark.parametrize(
    ("module", "make"),
    [
        ("mlflow", MLflowLogger),
        ("tensorboard", partial(TensorBoardLogger, "logs")),
        ("pandas", History().to_pandas),
        ("matplotlib", History().plot),
    ],
)
def test_what_is_not_installed_is_told(
    module: str, make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the extra that has it."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"obhut\[\w+\]"):
        make()


def test_a_history_is_a_table_a_curve_and_a_line() -> None:
    """It draws what rounds have, and a notebook shows it without any library."""
    history = History(
        Round(n, 1 / (n + 1), {"accuracy": n / 4, "f1": torch.ones(2)}, 0.5)
        for n in range(12)
    )
    axes = history.plot()
    labels = [line.get_label() for line in axes.get_lines()]
    assert labels == ["loss"]
    assert axes.get_xlabel() == "round"
    assert copy.deepcopy(history) == history == pickle.loads(pickle.dumps(history))
    shown = history._repr_html_()
    assert shown.count("<tr>") == 11
    assert "and 2 before these" in shown
    assert shown.count("<svg") == 2
    assert repr(history) == (
        "<History of 12 rounds, at last round 11  loss 0.083  accuracy 2.750  0.5 s>"
    )
    assert history.curve("accuracy") == ([*range(12)], [n / 4 for n in range(12)])


def instance() -> Any:
    """Return an optimizer, where what makes one is asked for."""
    return torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)


WRONG: dict[str, tuple[Callable[[Federation], Any], str]] = {
    "an optimizer": (
        lambda f: f.fit(make_model(), TRAINING, rounds=1, outer_optimizer=instance()),
        r"outer_optimizer=partial\(torch.optim.SGD, lr=1.0\)",
    ),
    "a loss class": (
        lambda f: f.fit(make_model(), nn.CrossEntropyLoss, rounds=1),
        r"got CrossEntropyLoss: LocalTraining\(",
    ),
    "a strategy": (
        lambda f: f.fit(make_model(), TRAINING, rounds=1, strategy=FedAvg()),
        "strategy=FedAvg",
    ),
    "no round": (lambda f: f.fit(make_model(), TRAINING, rounds=0), "rounds of 1"),
    "a string to keep": (
        lambda f: f.fit(make_model(), TRAINING, rounds=1, keep="0"),
        r'keep=\["0"\]',
    ),
    "nothing to keep": (
        lambda f: f.fit(make_model(), TRAINING, rounds=1, keep=["head"]),
        "nothing called 'head' to keep; its modules are: 0, 1, 2, 3",
    ),
    "one metric": (
        lambda f: f.fit(make_model(), TRAINING, rounds=1, validate=accuracy),
        r"validate to be metrics by name, got a function",
    ),
    "one metric to evaluate": (
        lambda f: f.evaluate(make_model(), accuracy),
        r"metrics to be metrics by name, got a function",
    ),
    "a count": (
        lambda f: f.evaluate(
            make_model(), {"right": lambda out, y: (out.argmax(1) == y).sum()}
        ),
        "Ratio",
    ),
    "a callback class": (
        lambda f: f.fit(make_model(), TRAINING, rounds=1, callbacks=[CSVLogger]),
        "expected callbacks that take a Round",
    ),
    "other weights": (
        lambda f: f.fit(make_model(), TRAINING, rounds=1, weights={"elm": 1.0}),
        "a weight for each of aspen",
    ),
    "all held out": (
        lambda f: f.fit(make_model(), TRAINING, rounds=1, held_out=1.0),
        "held_out from 0 and below 1",
    ),
    "a list": (
        lambda f: Federation(list(f.owners.values()), f.aggregator),  # type: ignore[arg-type] # wrong
        "data sets by name, got a list",
    ),
    "workers": (
        lambda f: Federation({"elm": obhut.VirtualWorker("elm")}, f.aggregator),  # type: ignore[dict-item] # wrong
        r'"bob": bob.dataset\("xray"\)',
    ),
    "the aggregator": (
        lambda f: Federation(f.owners, f.owners["elm"].location),
        "rows are at elm, the aggregator",
    ),
    "a sent model": (
        lambda f: f.fit(
            obhut.send(make_model(), obhut.VirtualWorker("zoe")), TRAINING, rounds=1
        ),
        "the model must be here",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_is_told_before_anything_is_sent(name: str) -> None:
    """The error has the line to write."""
    call, said = WRONG[name]
    federation = federate(make_parts())
    before = [
        data.location.session._flights[-1].number for data in federation.owners.values()
    ]
    with pytest.raises(CallError, match=said):
        call(federation)
    after = [
        data.location.session._flights[-1].number for data in federation.owners.values()
    ]
    assert before == after


def test_a_federation_prints_who_is_there() -> None:
    """Owners, rows as far as they are known, and whether they are up."""
    federation = federate(make_parts())
    federation.owners["elm"].location.close()
    lines = repr(federation).splitlines()
    assert lines[0] == "Federation of 5 owners"
    assert lines[1].split() == ["worker", "rows", "state"]
    assert lines[2].split() == ["aspen", "aspen", "12", "up"]
    assert lines[6].split() == ["elm", "elm", "15", "down"]
    assert lines[7].split() == ["aggregator", "secure_worker", "up"]
    assert federation._repr_html_().count("<tr>") == 7
