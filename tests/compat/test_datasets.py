from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.utils.data import Dataset, TensorDataset

import obhut
from obhut.compat.datasets import (
    BaseDataset,
    FederatedDataLoader,
    FederatedDataset,
    extract_batches_per_worker,
)
from obhut.compat.virtual_worker import VirtualWorker
from obhut.errors import (
    CallError,
    LocationError,
    ObjectNotFoundError,
    WorkerNotFoundError,
)
from obhut.protocol.messages import Batch, Run
from obhut.transports.local import LocalTransport

DATA = torch.arange(20.0).reshape(10, 2)
TARGETS = torch.arange(10)


@pytest.fixture
def rows() -> BaseDataset:
    """Ten rows that are here."""
    return BaseDataset(DATA, TARGETS)


def _values(batch: tuple[torch.Tensor, torch.Tensor]) -> list[int]:
    data, targets = batch
    values = targets.copy().get()
    assert torch.equal(data.copy().get(), DATA[values])
    return values.tolist()


# --- BaseDataset ------------------------------------------------------------------


def test_a_data_set_is_sent_and_fetched(rows: BaseDataset, bob: VirtualWorker) -> None:
    """Send makes a copy at bob; get brings it here in place, and bob keeps nothing."""
    sent = rows.send(bob)
    assert sent.location is bob
    assert rows.location is None
    assert len(sent) == len(rows) == 10
    assert bob.objects_count() == 2
    assert "bob" in repr(sent)
    pointer = sent.data
    assert sent.get() is sent
    assert sent.location is None
    assert bob.objects_count() == 0
    assert torch.equal(sent.data, DATA)
    assert torch.equal(sent.targets, TARGETS)
    with pytest.raises(ObjectNotFoundError):
        pointer.get()
    with pytest.raises(LocationError, match="this process"):
        sent.get()


def test_rows_are_picked_where_they_are(rows: BaseDataset, bob: VirtualWorker) -> None:
    """A row, a slice and an index tensor each give data and targets at bob."""
    sent = rows.send("bob")
    for index in (3, slice(2, 5), torch.tensor([7, 0])):
        data, target = sent[index]
        assert data.location is target.location is bob
        assert torch.equal(data.get(), DATA[index])
        assert torch.equal(target.get(), TARGETS[index])


def test_a_transform_runs_where_the_data_is(bob: VirtualWorker) -> None:
    """It is applied to what is picked; transform() applies one to all."""
    sent = BaseDataset(DATA, TARGETS, transform=lambda x: x / 2).send(bob)
    assert torch.equal(sent[:3][0].get(), DATA[:3] / 2)
    sent.transform(lambda x: x + 1)
    assert torch.equal(sent[:3][0].get(), (DATA[:3] + 1) / 2)


def test_data_and_targets_must_fit(bob: VirtualWorker, alice: VirtualWorker) -> None:
    """Other numbers of rows, or other places, are refused by name."""
    with pytest.raises(CallError, match="as many targets"):
        BaseDataset(DATA, TARGETS[1:])
    with pytest.raises(LocationError, match="bob and alice"):
        BaseDataset(DATA.send(bob), TARGETS.send(alice))
    with pytest.raises(LocationError, match="bob and this process"):
        BaseDataset(DATA.send(bob), TARGETS)
    assert len(BaseDataset([[1.0], [2.0]], [0, 1])) == 2


def test_a_data_set_has_an_id_an_owner_and_words() -> None:
    """BaseDataset(id=, owner=), tag, describe and what reads them, as PySyft had it."""
    first, second = BaseDataset(DATA, TARGETS), BaseDataset(DATA, TARGETS, id="mine")
    assert first.id != BaseDataset(DATA, TARGETS).id
    assert second.id == "mine"
    assert BaseDataset(DATA, TARGETS, owner="me").owner == "me"
    assert first.owner is None
    with obhut.TorchHook(torch) as hook:
        assert BaseDataset(DATA, TARGETS).owner is hook.local_worker
    assert first.description is None
    assert first.tag("#a", "#b").tag("#a").describe("ten rows") is first
    assert first.tags == ("#a", "#b")
    assert first.get_data() is first.data
    assert first.get_targets() is first.targets


def test_a_tagged_data_set_is_found_where_it_is(bob: VirtualWorker) -> None:
    """Its tags and words travel with data and targets, and with the data set."""
    sent = BaseDataset(DATA, TARGETS, id=7).tag("#rows").describe("ten").send(bob)
    found = bob.search("#rows")
    assert [one.shape for one in found] == [DATA.shape, TARGETS.shape]
    assert {one.description for one in found} == {"ten"}
    assert (sent.id, sent.tags, sent.description) == (7, ("#rows",), "ten")


# --- FederatedDataset -------------------------------------------------------------


def test_a_part_is_not_fetched_behind_its_back(
    rows: BaseDataset, bob: VirtualWorker
) -> None:
    """get() of a member is a ValueError, and its rows stay; get_dataset is the way."""
    federated = FederatedDataset([rows.send(bob)])
    with pytest.raises(ValueError, match="get_dataset"):
        federated["bob"].get()
    part = federated["bob"]
    assert part.location is bob
    assert torch.equal(federated.get_dataset("bob").data, DATA)
    assert federated.workers == []
    with pytest.raises(LocationError):
        part.get()


def test_a_federated_data_set_is_found_by_worker(
    rows: BaseDataset, bob: VirtualWorker, alice: VirtualWorker
) -> None:
    """Parts are found by id or by worker, and have one length together."""
    parts = [rows.send(bob), rows.send(alice)]
    federated = FederatedDataset(parts)
    assert federated.workers == ["bob", "alice"]
    assert federated["bob"] is federated[bob] is parts[0]
    assert len(federated) == 20
    assert "bob, alice" in repr(federated)
    with pytest.raises(WorkerNotFoundError, match="'carol'"):
        federated["carol"]


def test_a_part_can_be_taken_out(
    rows: BaseDataset, bob: VirtualWorker, alice: VirtualWorker
) -> None:
    """get_dataset brings a worker's rows here; the rest goes on without it."""
    federated = rows.federate((bob, alice))
    part = federated.get_dataset("bob")
    assert torch.equal(part.targets, TARGETS[:5])
    assert federated.workers == ["alice"]
    assert bob.objects_count() == 0


def test_parts_must_be_at_workers_of_their_own(
    rows: BaseDataset, bob: VirtualWorker
) -> None:
    """A local part and two at one worker are refused: no row is lost silently."""
    with pytest.raises(LocationError, match="this process"):
        FederatedDataset([rows])
    with pytest.raises(CallError, match="two at bob"):
        FederatedDataset([rows.send(bob), rows.send(bob)])


# --- federate ---------------------------------------------------------------------


class _Custom(Dataset[Any]):
    def __len__(self) -> int:
        return len(TARGETS)

    def __getitem__(self, index: int) -> Any:
        return DATA[index] / 2, int(TARGETS[index])


class _WithAttributes(_Custom):
    """Has `data` and `targets`, and items that differ from them."""

    data, targets = DATA, TARGETS


class _Images(Dataset[Any]):
    """Items that can not be stacked, as images without a transform."""

    data, targets = DATA, TARGETS.tolist()

    def __len__(self) -> int:
        return len(TARGETS)

    def __getitem__(self, index: int) -> Any:
        return object(), int(TARGETS[index])


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: BaseDataset(DATA, TARGETS), DATA),
        (lambda: TensorDataset(DATA, TARGETS), DATA),
        (_Custom, DATA / 2),
        (_WithAttributes, DATA / 2),
        (_Images, DATA),
    ],
)
def test_data_sets_of_all_kinds_can_be_federated(
    bob: VirtualWorker,
    alice: VirtualWorker,
    make: Callable[[], Any],
    expected: torch.Tensor,
) -> None:
    """What indexing gives is sent, or `data` and `targets` if it can't be stacked."""
    federated = make().federate((bob, alice))
    assert isinstance(federated, FederatedDataset)
    assert federated["bob"].location is bob
    parts = [federated.get_dataset(worker) for worker in federated.workers]
    assert torch.equal(torch.cat([part.data for part in parts]), expected)
    assert torch.equal(torch.cat([part.targets for part in parts]), TARGETS)


def test_rows_are_split_nearly_evenly(
    rows: BaseDataset,
    bob: VirtualWorker,
    alice: VirtualWorker,
    make_worker: Callable[[str], VirtualWorker],
) -> None:
    """Every worker gets a part, and parts differ by a row at most."""
    make_worker("carol")
    make_worker("dave")
    federated = rows.federate(bob, alice, "carol", "dave")
    assert [len(federated[worker]) for worker in federated.workers] == [3, 3, 2, 2]
    small = BaseDataset(DATA[:5], TARGETS[:5]).federate([bob, alice, "carol", "dave"])
    assert [len(small[worker]) for worker in small.workers] == [2, 1, 1, 1]


def test_what_can_not_be_federated_is_named(
    rows: BaseDataset, bob: VirtualWorker, alice: VirtualWorker
) -> None:
    """Too few rows, no worker, one twice, and items that are no pairs."""

    class _Opaque(_Custom):
        def __getitem__(self, index: int) -> Any:
            return object()

    class _Single(_Custom):
        def __getitem__(self, index: int) -> Any:
            return DATA[index]

    with pytest.raises(CallError, match="got 1 for 2"):
        BaseDataset(DATA[:1], TARGETS[:1]).federate(bob, alice)
    with pytest.raises(CallError, match="at least one worker"):
        rows.federate()
    with pytest.raises(CallError, match="each once"):
        rows.federate(bob, "bob")
    with pytest.raises(CallError, match="transform that makes tensors"):
        _Opaque().federate(bob)
    with pytest.raises(CallError, match="pairs"):
        _Single().federate(bob)
    with pytest.raises(CallError, match="torch data set"):
        obhut.compat.datasets.federate([1, 2], bob)
    assert bob.objects_count() == 0


# --- FederatedDataLoader ----------------------------------------------------------


@pytest.fixture
def federated(
    bob: VirtualWorker, alice: VirtualWorker, make_worker: Callable[..., VirtualWorker]
) -> FederatedDataset:
    """Five rows at bob, one at alice and four at carol."""
    carol = make_worker("carol")
    return FederatedDataset(
        [
            BaseDataset(DATA[:5], TARGETS[:5]).send(bob),
            BaseDataset(DATA[5:6], TARGETS[5:6]).send(alice),
            BaseDataset(DATA[6:], TARGETS[6:]).send(carol),
        ]
    )


def test_workers_are_gone_through_one_after_another(
    federated: FederatedDataset,
) -> None:
    """Each batch is at one worker, all rows come once, and len() counts batches."""
    loader = FederatedDataLoader(federated, batch_size=2)
    batches = list(loader)
    assert [data.location.id for data, _ in batches] == ["bob"] * 3 + ["alice"] + [
        "carol"
    ] * 2
    assert [_values(b) for b in batches] == [[0, 1], [2, 3], [4], [5], [6, 7], [8, 9]]
    assert len(loader) == 6
    assert [_values(b) for b in loader] == [_values(b) for b in batches]


def test_incomplete_batches_can_be_left_out(federated: FederatedDataset) -> None:
    """With drop_last each worker's last batch goes if it is not full."""
    loader = FederatedDataLoader(federated, batch_size=2, drop_last=True)
    assert [_values(b) for b in loader] == [[0, 1], [2, 3], [6, 7], [8, 9]]
    assert len(loader) == 4


def test_rows_can_be_shuffled(federated: FederatedDataset) -> None:
    """Each epoch has all rows in a new order, the same for the same seed."""

    def epochs() -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(3)
        loader = FederatedDataLoader(
            federated, batch_size=2, shuffle=True, generator=generator
        )
        for _ in range(2):
            yield [value for batch in loader for value in _values(batch)]

    first, second = epochs()
    assert sorted(first) == sorted(second) == list(range(10))
    assert sorted(first[:5]) == [0, 1, 2, 3, 4]
    assert first != second
    assert [first, second] == list(epochs())


def test_all_workers_can_be_gone_through_at_a_time(
    federated: FederatedDataset, bob: VirtualWorker
) -> None:
    """With iter_per_worker each step has a batch of every worker that has one."""
    loader = FederatedDataLoader(federated, batch_size=2, iter_per_worker=True)
    steps = list(loader)
    assert [[worker.id for worker in step] for step in steps] == [
        ["bob", "alice", "carol"],
        ["bob", "carol"],
        ["bob"],
    ]
    assert _values(steps[2][bob]) == [4]
    assert len(loader) == 3
    assert sorted(v for s in steps for b in s.values() for v in _values(b)) == list(
        range(10)
    )


def test_several_workers_can_be_gone_through_at_a_time(
    federated: FederatedDataset,
) -> None:
    """With num_iterators=2 a step has up to two workers' batches; all rows come."""
    loader = FederatedDataLoader(federated, batch_size=2, num_iterators=2)
    steps = [{w.id: _values(b) for w, b in step.items()} for step in loader]
    assert steps == [
        {"bob": [0, 1], "alice": [5]},
        {"bob": [2, 3], "carol": [6, 7]},
        {"bob": [4], "carol": [8, 9]},
    ]
    assert len(loader) == 3


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_batch_is_two_operators(
    bob: VirtualWorker, shuffle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many rows: one operator for the data, one for the targets."""
    big = BaseDataset(torch.randn(1_000, 3), torch.zeros(1_000)).send(bob)
    bob.wait()
    ran: list[str] = []
    submit = LocalTransport.submit

    def spy(self: LocalTransport, message: Any, frames: Any = ()) -> Any:
        if isinstance(message, Batch):
            ran.extend(r.op for r in message.requests if isinstance(r, Run))
        return submit(self, message, frames)

    monkeypatch.setattr(LocalTransport, "submit", spy)
    loader = FederatedDataLoader(FederatedDataset([big]), 250, shuffle=shuffle)
    batches = list(loader)
    bob.wait()
    assert len(batches) == 4
    op = "aten.index.Tensor" if shuffle else "aten.slice.Tensor"
    assert ran == [op] * 8


def test_batches_can_be_collected_by_worker(
    federated: FederatedDataset, bob: VirtualWorker
) -> None:
    """extract_batches_per_worker gives an epoch's batches by worker."""
    loader = FederatedDataLoader(federated, batch_size=2)
    batches = extract_batches_per_worker(loader)
    assert {w.id: len(b) for w, b in batches.items()} == {
        "bob": 3,
        "alice": 1,
        "carol": 2,
    }
    steps = FederatedDataLoader(federated, batch_size=2, iter_per_worker=True)
    assert list(extract_batches_per_worker(steps)) == list(batches)


def test_what_a_loader_can_not_take_is_named(federated: FederatedDataset) -> None:
    """A local data set and impossible sizes raise; foreign options are warned of."""
    with pytest.raises(CallError, match="TensorDataset"):
        FederatedDataLoader(TensorDataset(DATA, TARGETS))
    with pytest.raises(CallError, match="at least 1"):
        FederatedDataLoader(federated, batch_size=0)
    with pytest.warns(UserWarning, match="num_workers, pin_memory"):
        FederatedDataLoader(federated, pin_memory=True, num_workers=1)


def test_batches_are_never_local(federated: FederatedDataset) -> None:
    """Where a part was fetched meanwhile, the loader raises, once it comes to it."""
    loader = FederatedDataLoader(federated, batch_size=5)
    federated["alice"].data = federated["alice"].data.get()
    batches = iter(loader)
    assert _values(next(batches)) == [0, 1, 2, 3, 4]
    with pytest.raises(LocationError, match="this process"):
        next(batches)


def test_federating_draws_no_random_number(bob: VirtualWorker) -> None:
    """Programs that were seeded go on with the same numbers."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    federated = _Custom().federate(bob)
    list(FederatedDataLoader(federated, shuffle=False))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_trains_on_federated_batches_as_on_local_ones(
    bob: VirtualWorker, alice: VirtualWorker
) -> None:
    """With an optimizer a worker, the weights are those of local training."""
    torch.manual_seed(0)
    data, targets = torch.randn(10, 3), torch.randn(10)
    remote = nn.Linear(3, 1)
    local = nn.Linear(3, 1)
    local.load_state_dict(remote.state_dict())
    federated = TensorDataset(data, targets).federate((bob, alice))
    loader = FederatedDataLoader(federated, batch_size=2)
    optimizers = {w: optim.Adam(remote.parameters(), lr=0.1) for w in loader.workers}
    locals_ = {w: optim.Adam(local.parameters(), lr=0.1) for w in loader.workers}
    total = 0.0
    for _ in range(2):
        for rows, wanted in loader:
            remote.send(rows.location)
            opt = optimizers[rows.location.id]
            opt.zero_grad()
            loss = ((remote(rows).view(-1) - wanted) ** 2).mean()
            loss.backward()
            opt.step()
            remote.get()
            total += loss.get().item()
    expected = 0.0
    for _ in range(2):
        for name, start in (("bob", 0), ("alice", 5)):
            for first in range(start, start + 5, 2):
                last = min(first + 2, start + 5)
                opt = locals_[name]
                opt.zero_grad()
                pred = local(data[first:last]).view(-1)
                loss = ((pred - targets[first:last]) ** 2).mean()
                loss.backward()
                opt.step()
                expected += loss.item()
    assert total == expected
    assert torch.equal(remote.weight, local.weight)
