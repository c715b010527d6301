"""Workers as the client sees them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

from obhut.errors import CallError, InternalError
from obhut.protocol.messages import (
    NOWHERE,
    Alias,
    Clear,
    Count,
    Counted,
    DatasetRows,
    Described,
    Find,
    Found,
    Load,
)
from obhut.transports import Transport
from obhut.transports.grpc.description import DatasetDescription
from obhut.worker.shapes import Spec, dense
from obhut.worker.tensors import DTYPES

from . import storing
from .autograd_state import PENDING
from .described import DescribedDatasets, check_columns, check_part, listed
from .dispatch import to_spec, wrap
from .draws import draws_of
from .held import Held
from .hidden_dataset import HiddenDataset
from .placement import Placement
from .registry import WORKERS
from .remote_dataset import RemoteDataset
from .remote_tensor import RemoteTensor
from .session import Session


class RemoteWorker:
    """A worker that a client has a session with.

    ``with worker:`` makes factory functions such as ``torch.zeros`` create there.

    Args:
        transport: the way to it.
        described: its data sets, as far as they are public.
        blocking: wait after each request; by default what ``OBHUT_BLOCKING`` says.
        session: with it; by default a new one.

    Attributes:
        id: the worker's id, by which ``send`` and ``move`` find it too.
        session: what is open with it.
        here: whether it stands for this process: what moves there is fetched.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        described: Sequence[DatasetDescription] = (),
        blocking: bool | None = None,
        session: Session | None = None,
    ) -> None:
        self.id = transport.worker
        self.here = False
        self._datasets = DescribedDatasets(self.id, described)
        self.session = session or Session(transport, blocking=blocking)
        self.session.place = self
        self._entered = threading.local()
        WORKERS.add(self)

    def __repr__(self) -> str:
        state = " closed" if self.session.closed else ""
        return f"<{type(self).__name__} {self.id}{state}>"

    def __enter__(self) -> Self:
        if not hasattr(self._entered, "stack"):
            self._entered.stack = []
        placement = Placement(self.session)
        placement.enter()
        draws_of(self.session).enter()
        self._entered.stack.append(placement)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        draws_of(self.session).leave()
        self._entered.stack.pop().leave()

    @property
    def datasets(self) -> Mapping[str, DatasetDescription]:
        """The worker's data sets by name, as far as they are public, as a table."""
        return self._datasets

    def __getitem__(self, key: str | tuple[str, str]) -> RemoteTensor:
        """Return a data set's features, or with ``bob["name", "target"]`` a part.

        Raises:
            DatasetNotFoundError: if the worker has no such data; it says what there is,
                as far as that is public, the nearest first.
        """
        name, part = key if isinstance(key, tuple) else (key, "features")
        return self.load(name, part)

    def load(
        self, dataset: str, part: str = "features", columns: Sequence[str] = ()
    ) -> RemoteTensor:
        """Return part of one of the worker's data sets as a remote tensor.

        Args:
            dataset: its name.
            part: ``features``, ``target`` or what else it is made of.
            columns: by their public names, in the order in which they are wanted, which
                makes a copy; none for all, as they are.

        Raises:
            DatasetNotFoundError: as above.
            CallError: if columns can't be chosen by name.
        """
        columns = listed(columns) if columns else ()
        self._check_known(dataset, part, columns)
        id = self.session.new_id()
        look = self._look(Load(dataset, part, id, columns))
        return wrap(RemoteTensor, Held(self.session, id, look))

    def _look(self, request: Load) -> Spec:
        """Return what a part of a data set looks like."""
        reply = self.session.ask(request)
        if not isinstance(reply, Described) or reply.specs[0] is None:
            raise InternalError("a data set was answered with something else")
        return to_spec(reply.specs[0]).plain

    def _check_known(self, dataset: str, part: str, columns: Sequence[str]) -> None:
        """Check that a worker has data of these names, as far as that is known.

        Who is told of no data set hears it from the worker.
        """
        if not self.datasets:
            return
        described = self.datasets[dataset]
        check_part(described, part, self.id)
        if columns:
            check_columns(described, part, columns, self.id)

    def dataset(
        self,
        name: str,
        *parts: str,
        columns: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    ) -> RemoteDataset:
        """Return a data set's features and target together, in rows.

        If how many rows it has is hidden, it is a ``HiddenDataset``, which programs go
        through.

        Args:
            name: its name.
            parts: others than ``features`` and ``target``: two, or of a hidden data set
                one or more.
            columns: of the first part, by their public names, in the order in which
                they are wanted; or of several parts, by the parts' names. None for all,
                as they are there.

        Raises:
            DatasetNotFoundError: if the worker has no such data, or no target with it.
            CallError: if columns can't be chosen by name.
        """
        parts = parts or ("features", "target")
        if columns is None:
            return self.opened(DatasetRows(name, parts))
        given = columns if isinstance(columns, Mapping) else {parts[0]: columns}
        for part in given:
            if part not in parts:
                raise CallError(
                    f"expected columns of {' or '.join(parts)}, got some of {part!r}"
                )
        chosen = (listed(given[part]) if part in given else () for part in parts)
        return self.opened(DatasetRows(name, parts, tuple(chosen)))

    def opened(self, rows: DatasetRows) -> RemoteDataset:
        """Return a data set by what a worker is told of it: its ``source``.

        Raises:
            DatasetNotFoundError: as ``dataset`` does.
        """
        name, parts = rows.dataset, rows.parts
        described = self.datasets.get(name)
        if described is not None and described.hidden:
            for part, columns in rows.each():
                self._check_known(name, part, columns)
            looks = [self._row(described, *one) for one in rows.each()]
            return HiddenDataset(self, rows, looks)
        if len(parts) != 2:
            raise CallError(
                f"expected two parts of {name!r}, got {len(parts)}; pass tensors as a "
                f"program's data: (worker[{name!r}, {parts[0]!r}],)"
            )
        features, targets = (self.load(name, *one) for one in rows.each())
        return RemoteDataset(features, targets, source=rows)

    def _row(
        self, described: DatasetDescription, part: str, columns: Sequence[str]
    ) -> Spec:
        """Return what a row of a hidden data set looks like."""
        if part in described.shapes and not columns:
            return dense(described.shapes[part], DTYPES[described.dtypes[part]])
        look = self._look(Load(described.name, part, NOWHERE, tuple(columns)))
        return dense(look.shape[1:], look.dtype)

    def search(self, *tags: str | Iterable[str]) -> list[RemoteTensor]:
        """Return the tensors there that carry all the tags, of data sets too.

        But for those whose number of rows is hidden, of which there are none. Each is
        a new name for the same object: it stays when the name goes.

        Args:
            tags: one by one, or as a list of them.
        """
        wanted: set[str] = set()
        for tag in tags:
            wanted.update([tag] if isinstance(tag, str) else tag)
        reply = self.session.ask(Find(tuple(sorted(wanted))))
        if not isinstance(reply, Found):
            raise InternalError("a search was answered with something else")
        results: list[RemoteTensor] = []
        for id, sent, have, description in reply.objects:
            alias = self.session.new_id()
            self.session.post(Alias(id, alias))
            look = to_spec(sent)
            held = Held(self.session, alias, look.plain)
            held.tags, held.description = have, description
            first: Held | None = self.session.labelled.get(id)
            if first is not None:
                # The same object: what autograd knows of one it knows of both.
                held.autograd = first.tracked()
            elif look.requires_grad:
                state = held.tracked()
                state.become_leaf(True)
                state.grad, state.ask = PENDING, True
            results.append(wrap(RemoteTensor, held))
        return results + [
            self.load(one.name, part)
            for one in self.datasets.values()
            if wanted <= set(one.tags) and not one.hidden
            for part in one.parts
        ]

    def store(self, name: str, version: int, tensors: Iterable[RemoteTensor]) -> None:
        """Let the worker keep tensors' values beyond this session, where they are.

        They lie on the disk of the worker's owner, who can list and delete them; of a
        virtual worker in memory, unless it was given a folder. Nobody reads them: they
        come back with ``recall``, and are bound by the policy as they were before.

        It returns at once. What is stored is there, whole, when ``stored`` lists it.
        What keeps it from being accepted, such as a quota, is raised by whatever asks
        for a value next, ``stored`` among it.

        Args:
            name: of 1 to 200 characters. Nobody else's are the same.
            version: a number from 0 on, such as that of a round. Of a name the two
                versions stay that were stored last; the same one again takes its place.
            tensors: at this worker, in any order that ``recall`` shall return them in.

        Raises:
            CallError: if the worker would take no such name, version or number.
            LocationError: if a tensor is elsewhere.
        """
        storing.store(self.session, name, version, tensors)

    def stored(self, name: str) -> list[int]:
        """Return the versions that are stored of a name, the last one at the end.

        It waits until all is written that you stored at this worker, in this session or
        another one.

        Raises:
            ObhutError: why something was not stored, if nobody has seen it yet.
        """
        return storing.stored(self.session, name)

    def recall(self, name: str, version: int) -> list[RemoteTensor]:
        """Return what was stored, as new tensors at this worker.

        Values and ``requires_grad`` of leaves are as they were, bit for bit; gradients
        and history are not there. Under ``programs = "same"`` a recalled tensor counts
        as made by the computation that had made what was stored: recall it at all
        owners, or at none.

        Raises:
            CallError: if no such version is stored; it says which are.
        """
        return storing.recall(self.session, name, version)

    def objects_count(self) -> int:
        """Return how many objects the worker holds for this session."""
        reply = self.session.ask(Count())
        if not isinstance(reply, Counted):
            raise InternalError("a count was answered with something else")
        return reply.count

    def clear_objects(self) -> Self:
        """Let the worker forget all that it holds for this session."""
        self.session.post(Clear())
        self.session.flush()
        return self

    def wait(self) -> None:
        """Wait until the worker has done all that was asked of it.

        Raises:
            ObhutError: what went wrong, if nobody has seen it yet.
        """
        self.session.drain()

    def progress(self) -> float | None:
        """Return what share of the programs that run there for you is done.

        It is 0 to 1, of the batches of rows that they go through, and comes while they
        run: ``program.run`` returns before. What was asked for and waits to be sent
        is sent. Virtual workers compute while the line that asks for something waits,
        so that only another thread sees it.

        Returns:
            None if no program is under way, or a policy keeps it, as every ``Quorum``
            does: nobody is told how far a computation on the rows has come.

        Raises:
            TransportError: if the worker can not be reached.
        """
        return self.session.progress()

    def close(self) -> None:
        """End the session: what the worker holds for it goes."""
        WORKERS.remove(self)
        self.session.close()
