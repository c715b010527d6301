from __future__ import annotations

import pytest
import torch

import obhut
from obhut.errors import CallError, LocationError
from obhut.federated import RemoteDataset


@pytest.fixture
def owner() -> obhut.VirtualWorker:
    """Return the worker that has the rows."""
    return obhut.VirtualWorker("owner")


def _rows(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, 3), torch.arange(count)


def test_batches_hold_every_row_in_order(owner: obhut.VirtualWorker) -> None:
    """Batches are the rows in order, at the worker; the last may be smaller."""
    features, targets = _rows(10)
    dataset = RemoteDataset.send(features, targets, owner)
    batches = list(dataset.batches(4))
    assert [len(x) for x, _ in batches] == [4, 4, 2]
    assert all(x.location is owner and y.location is owner for x, y in batches)
    assert torch.equal(torch.cat([x.get() for x, _ in batches]), features)
    assert torch.equal(torch.cat([y.get() for _, y in batches]), targets)


def test_the_last_batch_can_be_left_out(owner: obhut.VirtualWorker) -> None:
    """With ``drop_last`` all batches are full, in a random order too."""
    dataset = RemoteDataset.send(*_rows(10), owner)
    for shuffle in (False, True):
        batches = dataset.batches(4, shuffle=shuffle, drop_last=True)
        assert [len(x) for x, _ in batches] == [4, 4]
    assert [len(x) for x, _ in dataset.batches(5, drop_last=True)] == [5, 5]
    assert [len(x) for x, _ in dataset.batches(drop_last=True)] == [10]
    with pytest.raises(CallError, match="expected 11 rows or more at owner"):
        next(dataset.batches(11, drop_last=True))


def test_without_a_size_there_is_one_batch(owner: obhut.VirtualWorker) -> None:
    """All rows are one batch unless a size is given."""
    dataset = RemoteDataset.send(*_rows(10), owner)
    assert [len(x) for x, _ in dataset.batches()] == [10]
    assert len(dataset) == 10
    assert dataset.location is owner


def test_shuffled_rows_keep_their_targets(owner: obhut.VirtualWorker) -> None:
    """Shuffling gives each row once, with its own target, in the seed's order."""
    features, targets = _rows(10)
    dataset = RemoteDataset.send(features, targets, owner)
    seeded = torch.Generator().manual_seed(1)
    batches = list(dataset.batches(3, shuffle=True, generator=seeded))
    order = torch.cat([y.get() for _, y in batches])
    assert (
        order.tolist()
        == torch.randperm(10, generator=torch.Generator().manual_seed(1)).tolist()
    )
    assert torch.equal(torch.cat([x.get() for x, _ in batches]), features[order])


def test_rows_at_two_places_are_refused(owner: obhut.VirtualWorker) -> None:
    """Features and targets must be at one worker; local ones are not."""
    features, targets = _rows(4)
    other = obhut.VirtualWorker("other")
    with pytest.raises(LocationError, match="owner and other"):
        RemoteDataset(obhut.send(features, owner), obhut.send(targets, other))
    with pytest.raises(LocationError, match="this process"):
        RemoteDataset(features, targets)


@pytest.mark.parametrize(
    ("features", "targets"),
    [
        (torch.ones(4, 3), torch.ones(3)),
        (torch.ones(0, 3), torch.ones(0)),
        (torch.tensor(1.0), torch.tensor(1.0)),
    ],
)
def test_rows_that_do_not_match_are_refused(
    features: torch.Tensor, targets: torch.Tensor, owner: obhut.VirtualWorker
) -> None:
    """Features and targets are of the same rows, one or more."""
    with pytest.raises(CallError, match="same rows"):
        RemoteDataset.send(features, targets, owner)


def test_a_batch_has_a_row_at_least(owner: obhut.VirtualWorker) -> None:
    """A batch size below 1 is refused."""
    dataset = RemoteDataset.send(*_rows(4), owner)
    with pytest.raises(CallError, match="batch size"):
        next(dataset.batches(0))
