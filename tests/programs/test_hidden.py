"""Programs over data sets of which the client does not know how many rows they have."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.programs.whole import TRAININGS
from tests.programs.zoo import plain
from torch import nn

import obhut
from obhut.client.hidden_dataset import HiddenDataset
from obhut.client.programs import program
from obhut.errors import (
    CallError,
    DatasetError,
    LocationError,
    ProgramError,
    ReleaseRefusedError,
)
from obhut.protocol.messages import Define

OWNERS = ("alice", "bob", "carol")
SIZES = {"alice": 136, "bob": 17, "carol": 40}
POLICY = obhut.Quorum(
    aggregators=("hub",), contributors=OWNERS, requesters=("me",), programs="same"
)


def rows_of(name: str) -> dict[str, torch.Tensor]:
    """Return an owner's rows."""
    draw = torch.Generator().manual_seed(SIZES[name])
    return {
        "features": torch.randn(SIZES[name], 6, generator=draw),
        "target": torch.randint(0, 3, (SIZES[name],), generator=draw),
    }


def at(rows: str, *, only: str = "") -> tuple[dict[str, Any], Any, list[str]]:
    """Return owners' workers, an aggregator, and what owners' logs get.

    Args:
        rows: whether how many rows there are is exact or hidden.
        only: the one owner of whom it is so; of the others it is exact.
    """
    lines: list[str] = []
    owners = {
        name: obhut.VirtualWorker(
            name,
            policy=POLICY,
            datasets={"d": rows_of(name)},
            rows=rows if only in ("", name) else "exact",
            log=lines.append,
        )
        for name in OWNERS
    }
    return owners, obhut.VirtualWorker("hub", policy=POLICY), lines


def model() -> nn.Module:
    """Return a model, the same each time."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def stepped(remote: nn.Module, data: Any) -> obhut.Ratio:
    """Run a step over all rows, in two epochs."""
    optimizer = torch.optim.SGD(remote.parameters(), lr=0.1, momentum=0.9)
    how = {"batch_size": 8, "epochs": 2, "shuffle": True, "seed": 4}
    return program(plain).run(model=remote, optimizer=optimizer, data=data, **how)


def whole(name: str) -> Callable[[nn.Module, Any], Any]:
    """Return what runs a whole training over all rows; it is recorded once."""
    there = program(TRAININGS[name])

    def run(remote: nn.Module, data: Any) -> Any:
        results = there.run(model=remote, data=data, seed=2)
        return next(iter(results.values())) if isinstance(results, dict) else results

    return run


def federated(
    run: Callable[[nn.Module, Any], Any], rows: str, only: str = ""
) -> list[torch.Tensor]:
    """Return sums over owners: of trained weights, of a loss and of what it is over."""
    owners, hub, lines = at(rows, only=only)
    moved = []
    for worker in owners.values():
        remote = obhut.send(copy.deepcopy(model()), worker)
        ratio = run(remote, worker.dataset("d")) or ()
        given = [*remote.parameters(), *ratio]
        moved.append([obhut.move(one.detach(), hub) for one in given])
    assert lines == []
    return [(a + b + c).get() for a, b, c in zip(*moved, strict=True)]


@pytest.mark.parametrize(
    "run",
    [stepped, *map(whole, ("momentum", "running_average", "by_hand"))],
    ids=["step", "momentum", "running average", "by hand"],
)
def test_what_is_computed_is_what_exact_rows_give(
    run: Callable[[nn.Module, Any], Any],
) -> None:
    """Owners of 17, 40 and 136 rows, hidden or not, or hidden at one of them.

    The aggregator compares computations, and releases the sum in each case.
    """
    exact = federated(run, "exact")
    for only in ("", "bob"):
        for one, other in zip(federated(run, "hidden", only), exact, strict=True):
            assert torch.equal(one, other)


def test_an_owner_of_few_rows_computes_the_same() -> None:
    """Bob's two batches are too few for a step, which shows where rows are exact."""
    assert federated(whole("every_4"), "hidden")
    with pytest.raises(ReleaseRefusedError, match="bob computed something else"):
        federated(whole("every_4"), "exact")


def test_rows_are_counted_where_they_are() -> None:
    """The number leaves as a sum over owners, of hidden and exact ones alike."""
    for only in ("", "alice"):
        owners, hub, _ = at("hidden", only=only)
        counts = [worker.dataset("d").count() for worker in owners.values()]
        for one in counts:
            assert (one.shape, one.dtype) == ((), torch.float64)
            with pytest.raises(ReleaseRefusedError):
                one.get()
        a, b, c = (obhut.move(one, hub) for one in counts)
        assert (a + b + c).get().item() == sum(SIZES.values())


def test_who_counts_again_sends_no_text_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker gets it once in a session, as of any program."""
    bob, sent = at("hidden")[0]["bob"], []
    monkeypatch.setattr(
        "obhut.client.defining.Define", lambda text: sent.append(text) or Define(text)
    )
    for _ in range(3):
        bob.dataset("d").count()
    bob.wait()
    assert len(sent) == 1


def test_rows_of_an_open_worker_are_counted_and_told() -> None:
    """There, hidden is what is not told unasked: all can be loaded."""
    bob = obhut.VirtualWorker("bob", datasets={"d": rows_of("bob")}, rows="hidden")
    assert bob.datasets["d"].rows is None
    assert not bob.datasets["d"].hidden
    data = bob.dataset("d")
    assert (len(data), data.count().item()) == (17, 17)


def test_what_needs_a_number_says_so() -> None:
    """Each names the data set and what to write instead."""
    owners, _, _ = at("hidden")
    bob = owners["bob"]
    data = bob.dataset("d")
    assert isinstance(data, HiddenDataset)
    assert data.location is bob
    assert repr(data) == "<HiddenDataset d at bob>"
    for wrong in (
        lambda: len(data),
        lambda: data.features,
        lambda: data.targets,
        lambda: data.batches(8),
        lambda: next(iter(data.batches(8, shuffle=True))),
    ):
        with pytest.raises(CallError, match=r"'d' at bob has is hidden.*obhut.program"):
            wrong()
    for wrong in (lambda: bob["d"], lambda: bob["d", "target"], lambda: bob.load("d")):
        with pytest.raises(CallError, match=r"worker.dataset\('d'\)"):
            wrong()
    assert bob.search() == []


def test_the_listing_says_how_a_row_looks() -> None:
    """And not how many there are."""
    owners, _, _ = at("hidden")
    said = owners["bob"].datasets["d"]
    assert (said.rows, said.hidden, said.parts) == (None, True, ("features", "target"))
    assert said.shapes == {"features": (6,), "target": ()}
    assert said.dtypes == {"features": "float32", "target": "int64"}


def test_data_of_other_parts() -> None:
    """One part or several, by their own names, in the order that is asked for."""

    def summed(x):
        return x.sum()

    rows = {"pixels": torch.ones(9, 2), "label": torch.ones(9)}
    bob = obhut.VirtualWorker("bob", policy=POLICY, datasets={"d": rows}, rows="hidden")
    ratio = program(summed).run(data=bob.dataset("d", "pixels"))
    assert ratio.numerator.shape == (1,)
    assert bob.dataset("d", "label", "pixels").rows.parts == ("label", "pixels")
    with pytest.raises(CallError, match="has no part 'features'; it has: label"):
        bob.dataset("d")
    with pytest.raises(CallError, match="has no data set 'e'"):
        bob.dataset("e")
    alice = obhut.VirtualWorker("alice", datasets={"d": rows})
    assert len(alice.dataset("d", "pixels", "label")) == 9
    with pytest.raises(CallError, match=r"expected two parts of 'd', got 1"):
        alice.dataset("d", "pixels")


def test_model_and_rows_are_at_one_worker() -> None:
    """A model elsewhere, or here, is not moved in silence."""
    owners, _, _ = at("hidden")
    data = owners["bob"].dataset("d")
    for there in (model(), obhut.send(model(), owners["alice"])):
        with pytest.raises(LocationError):
            stepped(there, data)


def test_batches_too_small_for_a_program_are_refused_at_once() -> None:
    """That follows from what was asked; what follows from the rows is left out."""

    def normalized(model, x, y):
        return nn.functional.cross_entropy(model(x), y)

    owners, hub, lines = at("hidden")
    sums = []
    for worker in owners.values():
        torch.manual_seed(0)
        norm = obhut.send(nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)), worker)
        run = program(normalized).run
        with pytest.raises(ProgramError, match="has 1 row, and 2 or more are needed"):
            run(model=norm, data=worker.dataset("d"), batch_size=1)
        # Of 17 rows one is left, of 136 none, of 40 none.
        ratio = run(model=norm, data=worker.dataset("d"), batch_size=8)
        sums.append(obhut.move(ratio.denominator, hub))
    a, b, c = sums
    assert (a + b + c).get().tolist() == [136 + 16 + 40]
    assert lines == []


def test_what_a_virtual_worker_can_not_hide() -> None:
    """It refuses what a served one would not start with."""
    x = torch.ones(3, 2)
    for parts in ({"x": x, "y": x[:2]}, {"x": x, "y": torch.ones(())}):
        with pytest.raises(DatasetError, match="several numbers of rows"):
            obhut.VirtualWorker(
                "bob", policy=POLICY, datasets={"d": parts}, rows="hidden"
            )
    many = torch.zeros(2**20 + 1, 1, dtype=torch.bool)
    with pytest.raises(DatasetError, match="more than 1,048,576 rows"):
        obhut.VirtualWorker(
            "bob", policy=POLICY, datasets={"d": {"x": many}}, rows="hidden"
        )
