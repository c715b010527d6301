"""Data sets in parts, each at one worker: ``dataset.federate((bob, alice))``.

Rules:

- Rows stay where they are: ``FederatedDataLoader`` asks a worker for a batch with
  one operator for the data and one for the targets, never for single rows.
- Every row is seen once an epoch, however unequal the parts (PySyft 0.2
  stopped where the first worker had no more).
"""

from __future__ import annotations

import itertools
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch.utils.data import Dataset, TensorDataset, default_collate

from obhut.client import functions
from obhut.client.registry import WORKERS, Place
from obhut.client.remote_tensor import RemoteTensor
from obhut.client.transfer import fetch, spend
from obhut.errors import CallError, LocationError, WorkerNotFoundError

# Any below: what a torch data set holds, and what indexes a tensor.

Batch: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Data and targets, with as many rows, at one worker."""


_ids = itertools.count(1)


class FederatedMemberError(CallError, ValueError):
    """A part of a federated data set was to be fetched behind its back."""


class BaseDataset:
    """Data and targets, here or both at one worker.

    Args:
        data: (rows, ...) of any dtype.
        targets: (rows, ...) of any dtype.
        transform: applied to the data of what is asked for, a row or a batch, where
            the data is.
        id: a number or name for it; by default a new number.
        owner: kept, and makes no difference; by default this process's worker.

    Attributes:
        tags: what its tensors are found by when it was sent.
        description: what it says of them.
        federated: whether a ``FederatedDataset`` has it, which gives it back.

    Raises:
        CallError: if they have different numbers of rows.
        LocationError: if they are at different places.
    """

    def __init__(
        self,
        data: Any,
        targets: Any,
        transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
        owner: object = None,
        id: int | str | None = None,
    ) -> None:
        self.id = next(_ids) if id is None else id
        self.owner = WORKERS.home() if owner is None else owner
        self.tags: tuple[str, ...] = ()
        self.description: str | None = None
        self.federated = False
        self.data = torch.as_tensor(data)
        self.targets = torch.as_tensor(targets)
        self.transform_ = transform
        if not self.data.dim() or self.data.shape[:1] != self.targets.shape[:1]:
            raise CallError(
                f"expected as many targets as data, got data of shape "
                f"{list(self.data.shape)} and targets of {list(self.targets.shape)}"
            )
        places = [_session(self.data), _session(self.targets)]
        if places[0] is not places[1]:
            raise LocationError(
                "BaseDataset",
                ["this process" if one is None else one.worker for one in places],
                "send or move one to the other first",
            )

    def __len__(self) -> int:
        return int(self.data.shape[0])

    def __getitem__(self, index: Any) -> Batch:
        """Return the data and targets of a row, a slice or an index tensor."""
        data = self.data[index]
        if self.transform_ is not None:
            data = self.transform_(data)
        return data, self.targets[index]

    def __repr__(self) -> str:
        where = "here" if self.location is None else f"at {self.location.id}"
        return f"<BaseDataset of {len(self)} rows {where}>"

    @property
    def location(self) -> Place | None:
        """The worker that the data set is at, or None if it is here."""
        return self.data.location if isinstance(self.data, RemoteTensor) else None

    def transform(self, transform: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Transform all data at once, where it is."""
        self.data = transform(self.data)

    def tag(self, *tags: str) -> BaseDataset:
        """Add tags, by which both its tensors are found where it is sent."""
        self.tags = tuple(dict.fromkeys((*self.tags, *tags)))
        return self

    def describe(self, description: str) -> BaseDataset:
        """Say what it is; the words travel with it."""
        self.description = description
        return self

    def get_data(self) -> torch.Tensor:
        """Return the data, where they are."""
        return self.data

    def get_targets(self) -> torch.Tensor:
        """Return the targets, where they are."""
        return self.targets

    def send(self, worker: Place | str) -> BaseDataset:
        """Send a copy to a worker; the data set here stays as it is."""
        place = WORKERS.find(worker)
        data, targets = (
            functions.send(
                tensor, place, tags=self.tags, description=self.description or ""
            )
            for tensor in (self.data, self.targets)
        )
        sent = BaseDataset(data, targets, self.transform_, self.owner, self.id)
        sent.tags, sent.description = self.tags, self.description
        return sent

    def get(self) -> BaseDataset:
        """Bring the data set here, in place; the remote objects go.

        Leak: all rows come to this process.

        Raises:
            FederatedMemberError: if it is part of a ``FederatedDataset``.
            LocationError: if it is here already.
        """
        if self.federated:
            raise FederatedMemberError(
                "the data set is part of a FederatedDataset, which would have a part "
                "that is not at its worker any more; take it out with "
                "federated_dataset.get_dataset(worker)"
            )
        data, targets = self.data, self.targets
        if not isinstance(data, RemoteTensor) or not isinstance(targets, RemoteTensor):
            raise LocationError("get", ["this process"], "it was not sent")
        helds = [data._held, targets._held]
        self.data, self.targets = fetch(helds).result()
        spend(helds, "its data set was fetched with get()")
        return self

    def federate(self, *workers: Any) -> FederatedDataset:
        """Split the rows among workers; see ``federate``."""
        return federate(self, *workers)


class FederatedDataset:
    """Data sets at workers, by worker.

    Args:
        datasets: each at a worker of its own.

    Attributes:
        datasets: the same, by the workers' ids.

    Raises:
        LocationError: if one was not sent.
        CallError: if two are at one worker.
    """

    def __init__(self, datasets: Sequence[BaseDataset]) -> None:
        self.datasets: dict[str, BaseDataset] = {}
        for dataset in datasets:
            place = dataset.location
            if place is None:
                raise LocationError(
                    "FederatedDataset", ["this process"], "send each data set first"
                )
            if place.id in self.datasets:
                raise CallError(
                    f"expected one data set a worker, got two at {place.id}; join "
                    "them there with torch.cat"
                )
            self.datasets[place.id] = dataset
        for dataset in datasets:
            dataset.federated = True

    @property
    def workers(self) -> list[str]:
        """The workers' ids."""
        return list(self.datasets)

    def __getitem__(self, worker: Place | str) -> BaseDataset:
        """Return a worker's data set.

        Raises:
            WorkerNotFoundError: if it has none.
        """
        id = worker if isinstance(worker, str) else worker.id
        found = self.datasets.get(id)
        if found is None:
            raise WorkerNotFoundError(id, self.workers)
        return found

    def __len__(self) -> int:
        return sum(map(len, self.datasets.values()))

    def __repr__(self) -> str:
        return f"<FederatedDataset of {len(self)} rows at {', '.join(self.workers)}>"

    def get_dataset(self, worker: Place | str) -> BaseDataset:
        """Bring a worker's data set here and take it out of this one.

        Leak: all its rows come to this process.
        """
        dataset = self[worker]
        dataset.federated = False
        dataset.get()
        self.datasets = {k: v for k, v in self.datasets.items() if v is not dataset}
        return dataset


class FederatedDataLoader:
    """Yields batches of a federated data set, each at the worker that has it.

    Without further options one worker after another is gone through, and each
    batch is ``(data, targets)``; ``data.location`` says where it is.

    Args:
        federated_dataset: the data set.
        batch_size: rows in a batch, the last of a worker's may have fewer.
        shuffle: whether each worker's rows come in a new order each epoch; by a
            generator of this process.
        num_iterators: workers to go through at a time, at most all but one; with
            more than one, each step yields a dictionary of batches by worker.
        drop_last: leave out a worker's last batch if it is not full.
        iter_per_worker: go through all workers at a time; each step yields a
            dictionary of batches by worker, of those that still have one.
        generator: what the order comes from; by default PyTorch's own.
        ignored: options of ``torch.utils.data.DataLoader`` that make no sense for
            data that is elsewhere; named in a warning.
    """

    def __init__(
        self,
        federated_dataset: FederatedDataset,
        batch_size: int = 8,
        shuffle: bool = False,
        num_iterators: int = 1,
        drop_last: bool = False,
        iter_per_worker: bool = False,
        generator: torch.Generator | None = None,
        **ignored: object,
    ) -> None:
        if not isinstance(federated_dataset, FederatedDataset):
            raise CallError(
                f"expected a FederatedDataset, got a "
                f"{type(federated_dataset).__name__}; federate it first, or use "
                "torch.utils.data.DataLoader"
            )
        if batch_size < 1 or num_iterators < 1:
            raise CallError("batch_size and num_iterators must be at least 1")
        if ignored:
            warnings.warn(
                f"options without effect: {', '.join(sorted(ignored))}",
                UserWarning,
                stacklevel=2,
            )
        self.federated_dataset = federated_dataset
        self.workers = federated_dataset.workers
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.iter_per_worker = iter_per_worker
        self.num_iterators = (
            max(len(self.workers), 1)
            if iter_per_worker
            else max(min(num_iterators, len(self.workers) - 1), 1)
        )
        self._generator = generator

    def __iter__(self) -> Iterator[Batch | dict[Place, Batch]]:
        datasets = {worker: self.federated_dataset[worker] for worker in self.workers}
        order = {worker: self._order(len(d)) for worker, d in datasets.items()}
        by_worker = self.iter_per_worker or self.num_iterators > 1
        for step in self._steps():
            picked = [datasets[worker][order[worker](i)] for worker, i in step]
            batches = {_place(data): (data, targets) for data, targets in picked}
            if by_worker:
                yield batches
            else:
                yield from batches.values()

    def __len__(self) -> int:
        """Return how many steps there are in an epoch."""
        return sum(1 for _ in self._steps())

    def _steps(self) -> Iterator[list[tuple[str, int]]]:
        """Yield for each step which workers' batches, of which number, it has."""
        waiting = deque((worker, self._count(worker)) for worker in self.workers)
        active: list[tuple[str, int, int]] = []
        while True:
            active = [(w, i + 1, n) for w, i, n in active if i + 1 < n]
            while waiting and len(active) < self.num_iterators:
                worker, count = waiting.popleft()
                if count:
                    active.append((worker, 0, count))
            if not active:
                return
            yield [(worker, i) for worker, i, _ in active]

    def _count(self, worker: str) -> int:
        rows, size = len(self.federated_dataset[worker]), self.batch_size
        return rows // size if self.drop_last else -(-rows // size)

    def _order(self, rows: int) -> Callable[[int], torch.Tensor | slice]:
        """Return what picks a worker's rows of a batch, by the batch's number."""
        size = self.batch_size
        if not self.shuffle:
            return lambda i: slice(i * size, (i + 1) * size)
        mixed = torch.randperm(rows, generator=self._generator)
        return lambda i: mixed[i * size : (i + 1) * size]


def federate(dataset: Any, *workers: Any) -> FederatedDataset:
    """Split a data set's rows among workers, nearly evenly and in order.

    Args:
        dataset: a ``BaseDataset``, or a torch data set of pairs that has a length.
            Its items are what is sent, transforms applied; where they can not be
            stacked (images without a transform), its ``data`` and ``targets``.
        workers: one by one or as a sequence, themselves or by id.

    Returns:
        The parts, each at its worker.

    Raises:
        CallError: if there are fewer rows than workers, a worker is named twice, or
            the items are not pairs of what can be stacked.
    """
    if len(workers) == 1 and isinstance(workers[0], list | tuple):
        workers = tuple(workers[0])
    places = [WORKERS.find(worker) for worker in workers]
    rows = len(dataset)
    if not places or len({place.session for place in places}) != len(places):
        raise CallError("expected at least one worker and each once")
    if rows < len(places):
        raise CallError(f"expected a row a worker, got {rows} for {len(places)}")
    each, more = divmod(rows, len(places))
    parts: list[BaseDataset] = []
    start = 0
    for position, place in enumerate(places):
        stop = start + each + (position < more)
        parts.append(_rows(dataset, start, stop).send(place))
        start = stop
    return FederatedDataset(parts)


def _rows(dataset: Any, start: int, stop: int) -> BaseDataset:
    """Return some rows of a data set, stacked."""
    match dataset:
        case BaseDataset(data=data, targets=targets, transform_=transform):
            return BaseDataset(data[start:stop], targets[start:stop], transform)
        case TensorDataset(tensors=(data, targets)) if type(dataset) is TensorDataset:
            return BaseDataset(data[start:stop], targets[start:stop])
        case Dataset():
            return BaseDataset(*_stacked(dataset, start, stop))
        case _:
            raise CallError(
                f"expected a torch data set, got a {type(dataset).__name__}"
            )


def _stacked(dataset: Any, start: int, stop: int) -> tuple[Any, Any]:
    items: Any = [dataset[index] for index in range(start, stop)]
    try:
        items = default_collate(items)
    except TypeError as error:
        if not hasattr(dataset, "data") or not hasattr(dataset, "targets"):
            raise CallError(
                f"the items of a {type(dataset).__name__} can not be stacked; give "
                "it a transform that makes tensors"
            ) from error
        return dataset.data[start:stop], dataset.targets[start:stop]
    if not isinstance(items, list | tuple) or len(items) != 2:
        raise CallError(
            f"expected the items of a {type(dataset).__name__} to be pairs of data "
            "and target"
        )
    return items[0], items[1]


def extract_batches_per_worker(
    loader: FederatedDataLoader,
) -> Mapping[Place, list[Batch]]:
    """Return all batches of an epoch, by the worker that they are at."""
    federated = loader.federated_dataset
    batches: dict[Place, list[Batch]] = {
        _place(federated[worker].data): [] for worker in loader.workers
    }
    for step in loader:
        for batch in step.values() if isinstance(step, dict) else (step,):
            batches[_place(batch[0])].append(batch)
    return batches


def _session(tensor: torch.Tensor) -> Any:
    return tensor._held.session if isinstance(tensor, RemoteTensor) else None


def _place(data: torch.Tensor) -> Place:
    if not isinstance(data, RemoteTensor):
        raise LocationError(
            "FederatedDataLoader",
            ["this process"],
            "send the data set first, and let transforms leave it there",
        )
    return data.location
