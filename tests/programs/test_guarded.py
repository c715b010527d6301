"""Programs behind a guard: who answers has no values, and what can't be run is told."""

from __future__ import annotations

import copy
from random import Random

import pytest
import torch
from tests.programs.mutations import SESSION, mutated, texts
from tests.programs.whole import TRAININGS, order
from tests.programs.zoo import plain
from torch import nn

import obhut
from obhut.client.programs import program
from obhut.client.recording import Recorded
from obhut.errors import InternalError, ObhutError, ProgramError
from obhut.programs.text import digest
from obhut.protocol.messages import Define, Fetch, RunProgram, Stepping

OWNERS = ("alice", "bob", "carol")
POLICY = obhut.Quorum(
    aggregators=("hub",), contributors=OWNERS, requesters=("me",), refusals=1_000_000
)

STEP, WHOLE = program(plain), program(TRAININGS["every_2"])
"""Each is recorded once for models that look alike."""


def owners(
    rows: int = 40, seed: int = 0
) -> tuple[dict[str, obhut.VirtualWorker], list[str]]:
    """Return owners' workers with rows of their own, and what their logs get."""
    torch.manual_seed(seed)
    lines: list[str] = []
    return {
        name: obhut.VirtualWorker(
            name,
            policy=POLICY,
            datasets={
                "d": {
                    "features": torch.randn(rows + 3 * place, 6),
                    "target": torch.randint(0, 3, (rows + 3 * place,)),
                }
            },
            log=lines.append,
        )
        for place, name in enumerate(OWNERS)
    }, lines


def test_a_federated_average_by_program_is_that_of_loops_here() -> None:
    """Owners have 40 to 46 rows, and none of them says how many."""
    workers, lines = owners()
    hub = obhut.VirtualWorker("hub", policy=POLICY)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    step = program(plain)
    there = {name: obhut.send(copy.deepcopy(model), w) for name, w in workers.items()}
    for name, remote in there.items():
        bob = workers[name]
        step.run(
            model=remote,
            optimizer=torch.optim.SGD(remote.parameters(), lr=0.1, momentum=0.9),
            data=(bob["d"], bob["d", "target"]),
            batch_size=8,
            epochs=2,
        )
        obhut.move(remote, hub)
    with torch.no_grad():
        average = [
            (sum(parameters) / 3).get()
            for parameters in zip(
                *(m.parameters() for m in there.values()), strict=True
            )
        ]
    local = []
    for worker in workers.values():
        mine = copy.deepcopy(model)
        optimizer = torch.optim.SGD(mine.parameters(), lr=0.1, momentum=0.9)
        rows = rows_of(worker)
        for _ in range(2):
            batches = zip(
                rows["features"].split(8), rows["target"].split(8), strict=True
            )
            for x, y in batches:
                plain(mine, optimizer, x, y)
        local.append(list(mine.parameters()))
    for found, parameters in zip(average, zip(*local, strict=True), strict=True):
        expected = torch.stack([p.detach().double() for p in parameters]).mean(0)
        assert torch.equal(found, expected.float())
    assert lines == []


def rows_of(worker: obhut.VirtualWorker) -> dict[str, torch.Tensor]:
    """Return an owner's rows."""
    return worker._shell._core._make()._execution._datasets["d"]


def test_values_of_a_run_stay_where_they_are() -> None:
    """Values of a run stay where they are."""
    workers, _ = owners()
    bob = workers["bob"]
    model = obhut.send(nn.Linear(6, 3), bob)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ratio = program(plain).run(
        model=model, optimizer=optimizer, data=(bob["d"], bob["d", "target"])
    )
    for one in (*ratio, model.weight):
        with pytest.raises(obhut.ObhutError, match="leave only for an aggregator"):
            one.get()


def test_what_fails_on_values_is_dropped_and_not_told() -> None:
    """An index out of range, which only the rows decide."""

    def looked_up(model, x):
        return model((x[:, 0].abs() * 2).long()).sum()

    workers, lines = owners()
    bob = workers["bob"]
    model = obhut.send(nn.Embedding(2, 2), bob)
    ratio = program(looked_up).run(model=model, data=bob["d"], batch_size=8)
    bob.wait()
    assert ratio.numerator.shape == (1,)
    assert [line.split()[0] for line in lines] == ["program"]


def recorded(bob: obhut.VirtualWorker) -> tuple[nn.Module, Recorded]:
    """Return recorded."""
    model = obhut.send(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), bob)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = (bob["d"], bob["d", "target"])
    return model, STEP.record(model=model, optimizer=optimizer, data=data)


def test_what_is_publicly_wrong_is_told() -> None:
    """What is publicly wrong is told."""
    workers, lines = owners()
    bob = workers["bob"]
    model, made = recorded(bob)
    session = bob.session
    inputs = tuple(p._held.id for p in model.parameters())
    x, y = bob["d"], bob["d", "target"]
    rows = (x._held.id, y._held.id)
    options = Stepping(session.new_id(), ({"lr": 0.1},))

    def refused(words: str, request: RunProgram, *first: Define) -> None:
        for one in first:
            session.post(one)
        session.post(request)
        with pytest.raises(ObhutError, match=words):
            bob.wait()

    def run(digest: str, *given: object, **how: object) -> RunProgram:
        return RunProgram(digest, inputs, rows, session.new_ids(2), 2, **how)

    good = {"optimizers": (options,)}
    refused("is defined here", run(made.digest, **good))
    session.post(Define(made.text))
    refused("is defined here", run("0" * 64, **good))
    refused("of 1 optimizers", run(made.digest))
    wrong = Stepping(session.new_id(), ({"lr": -1.0},))
    refused("Invalid learning rate", run(made.digest, optimizers=(wrong,)))
    wrong = Stepping(session.new_id(), ({"speed": 1.0},))
    refused("SGD has no speed", run(made.digest, optimizers=(wrong,)))
    refused(
        "expected model.0.weight to be",
        RunProgram(
            made.digest, (*inputs[1:], inputs[0]), rows, session.new_ids(2), 2, **good
        ),
    )
    refused(
        "of 6 inputs",
        RunProgram(made.digest, inputs[1:], rows, session.new_ids(2), 2, **good),
    )
    refused(
        "expected x to be",
        RunProgram(made.digest, inputs, rows[::-1], session.new_ids(2), 2, **good),
    )
    refused(
        "share memory",
        RunProgram(
            made.digest,
            (inputs[0], inputs[1], inputs[2], inputs[1]),
            rows,
            session.new_ids(2),
            2,
            **good,
        ),
    )
    refused("50 rows or more", run(made.digest, batch_size=50, drop_last=True, **good))
    many = {"epochs": 2**20, "batch_size": 1}
    refused("lines over all batches", run(made.digest, **many, **good))
    session.post(run(made.digest, batch_size=7, **good))
    bob.wait()
    assert lines == []


def test_indices_can_not_be_forged() -> None:
    """A derivative's kernel would write wherever the indices say."""

    def forged(write):
        def body(model, x):
            y, where = torch.ops.aten.max_pool2d_with_indices(
                model(x.reshape(-1, 1, 6, 1)), [2, 1], [2, 1]
            )
            write(where)
            y.sum().backward()
            return y.sum()

        return body

    workers, _ = owners()
    bob = workers["bob"]
    model = obhut.send(nn.Conv2d(1, 4, 1), bob)
    for write in (
        lambda where: where.fill_(10**9),
        lambda where: where.detach().fill_(10**9),
        lambda where: where.data.fill_(10**9),
        lambda where: where.add_(10**9),
    ):
        with pytest.raises(ProgramError, match="modified by an inplace operation"):
            program(forged(write)).run(model=model, data=bob["d"], batch_size=4)


def tried(
    bob: obhut.VirtualWorker,
    model: nn.Module,
    text: str,
    stepping: Stepping,
    **how: int,
) -> list[ObhutError]:
    """Run whatever a text says, and return what is told; no value can be read."""
    session, told = bob.session, []
    rows = bob["d"], bob["d", "target"]
    session.post(Define(text))
    out = session.new_ids(2)
    inputs = tuple(p._held.id for p in model.parameters())
    ids = tuple(one._held.id for one in rows)
    session.post(
        RunProgram(digest(text), inputs, ids, out, 2, optimizers=(stepping,), **how)
    )
    try:
        bob.wait()
    except ObhutError as error:
        told.append(error)
    with pytest.raises(ObhutError):
        session.ask(Fetch(out))
    return told


ONCE = pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
"""PyTorch warns of it once in a process, which is not what is tried."""


@ONCE
@pytest.mark.parametrize("seed", range(5))
def test_altered_programs_end_nothing_and_tell_nothing(seed: int) -> None:
    """Altered programs end nothing and tell nothing."""
    bob = owners()[0]["bob"]
    _, made = recorded(bob)
    random, told = Random(seed), []
    for number in range(texts(64)):
        if number % SESSION == 0:
            bob = owners()[0]["bob"]
        text = mutated(made.text, random)
        torch.manual_seed(0)
        model = obhut.send(
            nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), bob
        )
        session = bob.session
        stepping = Stepping(session.new_id(), ({"lr": 0.1},))
        told += map(str, tried(bob, model, text, stepping, batch_size=8))
    values = [abs(v) for t in rows_of(bob)["features"] for v in t.tolist()]
    assert not [text for text in told for value in values if f"{value:.5f}" in text]
    assert len(told) > texts(32)


def whole(bob: obhut.VirtualWorker) -> tuple[nn.Module, Recorded]:
    """Return a whole training with a first batch, sums and parts of its own."""
    model = obhut.send(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), bob)
    data = (bob["d"], bob["d", "target"])
    return model, WHOLE.record(model=model, data=data)


def test_whole_trainings_are_federated_as_here() -> None:
    """Owners have 40 to 46 rows, and each draws an order of its own."""
    workers, lines = owners()
    hub = obhut.VirtualWorker("hub", policy=POLICY)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    for name in ("momentum", "running_average", "every_4", "by_hand", "kept_graph"):
        train, there, local = program(TRAININGS[name]), [], []
        for worker in workers.values():
            remote = obhut.send(copy.deepcopy(model), worker)
            data = worker["d"], worker["d", "target"]
            train.run(model=remote, data=data, seed=2)
            there.append(obhut.move(remote, hub))
            mine, rows = copy.deepcopy(model), rows_of(worker)
            generator = order(2, worker.id)
            here = obhut.LocalDataset(*rows.values(), generator=generator)
            TRAININGS[name](mine, here)
            local.append(mine)
        for parameters, expected in zip(
            zip(*(one.parameters() for one in there), strict=True),
            zip(*(one.parameters() for one in local), strict=True),
            strict=True,
        ):
            average = (sum(parameters) / 3).get()
            mean = torch.stack([p.detach().double() for p in expected]).mean(0)
            assert torch.equal(average, mean.float()), name
    assert lines == []


def test_what_is_carried_looks_the_same_after_each_batch() -> None:
    """A list that grows inside of a tensor is refused where no values are."""

    def grows(model, data):
        found = None
        for x, y in data.batches(8):
            loss = nn.functional.cross_entropy(model(x), y).detach().reshape(1)
            found = loss if found is None else torch.cat([found, loss])
        return found.sum()

    workers, lines = owners()
    bob = workers["bob"]
    model = obhut.send(nn.Linear(6, 3), bob)
    program(grows).run(model=model, data=(bob["d"], bob["d", "target"]))
    with pytest.raises(ProgramError, match=r"was float32\[1\], and a batch makes"):
        bob.wait()
    assert lines == []


def test_what_is_publicly_wrong_with_whole_trainings_is_told() -> None:
    """What is publicly wrong with whole trainings is told."""
    workers, lines = owners()
    bob = workers["bob"]
    model, made = whole(bob)
    session = bob.session
    inputs = tuple(p._held.id for p in model.parameters())
    rows = (bob["d"], bob["d", "target"])
    session.post(Define(made.text))

    def run(later: tuple[object, ...] = (), **how: object) -> RunProgram:
        options = Stepping(0, ({"lr": 0.1},), later)
        ids, out = tuple(one._held.id for one in rows), session.new_ids(2)
        return RunProgram(
            made.digest, inputs, ids, out, 2, optimizers=(options,), **how
        )

    for words, request in {
        "in which batches it runs": run(batch_size=8),
        "Invalid learning rate": run(((3, ({"lr": -1.0},)),)),
        "SGD has no speed": run(((1, ({"speed": 1.0},)),)),
        "SGD has 1 groups": run(((1, ()),)),
    }.items():
        session.post(request)
        with pytest.raises(ObhutError, match=words):
            bob.wait()
    session.post(run(((2, ({"lr": 0.2},)),)))
    bob.wait()
    assert lines == []


@ONCE
@pytest.mark.parametrize("seed", range(5))
def test_altered_programs_of_whole_trainings_end_nothing_and_tell_nothing(
    seed: int,
) -> None:
    """Altered whole trainings end nothing and tell nothing."""
    bob = owners()[0]["bob"]
    model, made = whole(bob)
    values = {f"{abs(v):.5f}" for t in rows_of(bob)["features"] for v in t.tolist()}
    random, told, broken = Random(seed), [], []
    for number in range(texts(120)):
        if number % SESSION == 0:
            bob = owners()[0]["bob"]
            model, _ = whole(bob)
        text = mutated(made.text, random)
        errors = tried(bob, model, text, Stepping(0, ({"lr": 0.1},)))
        told += map(str, errors)
        broken += [one for one in errors if isinstance(one, InternalError)]
    assert not [text for text in told for value in values if value in text]
    assert broken == []
    assert len(told) > texts(60)
