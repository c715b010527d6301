"""``VirtualWorker``: a worker in this process.

Rule: programs of PySyft 0.2 call it with a hook before the name. The hook has the class
that they mean; nothing here knows it.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import msgspec
import torch
from msgspec import structs

from obhut.errors import CallError, DatasetError
from obhut.guard.audit import Auditor
from obhut.guard.policy import Policy, Quorum
from obhut.host.data.datasets import check_hidden
from obhut.host.gate import Gate
from obhut.host.state_files import StatesOnDisk
from obhut.host.states import StatesInMemory
from obhut.transports.grpc.description import DatasetDescription, public_parts
from obhut.transports.local import ME, Done, LocalShell, LocalTransport
from obhut.worker.core import Worker
from obhut.worker.owners import OwnersWorker
from obhut.worker.roles import Aggregator, Owner, Role
from obhut.worker.tensors import DTYPE_NAMES

from .transfer import check_sendable, put
from .workers import RemoteWorker

Datasets: TypeAlias = Mapping[str, Mapping[str, torch.Tensor]]
"""Tensors by the names of a data set and of its part."""

_numbers = itertools.count(1)


class _Door(type):
    """Lets in both ways of making a virtual worker."""

    # Any: what the classes take, and which of them is made.
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls is not VirtualWorker:
            return super().__call__(*args, **kwargs)
        hook = kwargs.pop("hook", None)
        if args and not isinstance(args[0], str):
            hook, *args = args  # type: ignore[assignment] # a list does as well
        if hook is None:
            return super().__call__(*args, **kwargs)
        made = getattr(hook, "virtual_worker", None)
        if made is None:
            raise CallError(
                f"expected the worker's name, got a {type(hook).__name__}: "
                'VirtualWorker("bob")'
            )
        return made(hook, *args, **kwargs)

    @property
    def __signature__(cls) -> inspect.Signature:
        """What a worker is made of, and not what the door lets in."""
        # Of the class: that of an instance would be bound.
        own = inspect.signature(cls.__init__)  # type: ignore[misc]
        return own.replace(parameters=[*own.parameters.values()][1:])


class VirtualWorker(RemoteWorker, metaclass=_Door):
    """A worker in this process: nothing to set up.

    With a policy it rehearses what a served worker would do, in this process, whose
    memory it shares; it protects nothing. A worker that the policy names among its
    ``aggregators`` adds what others deliver, any other is an owner's.

    Args:
        id: its name, by which ``send`` and ``move`` find it too; by default a number. A
            new worker takes the place of an older one of that name.
        policy: what may leave it, a ``Quorum``; by default everything.
        datasets: its data by name and part, as in ``{"patients": {"features": x,
            "target": y}}``, found as a served worker's are: ``bob["patients"]``. Copies
            are kept.
        rows: whether how many rows they have is ``"hidden"``, as of a served worker's:
            under a policy programs go through them then, and no tensor of them is held.
        described: what is said of data sets: names of columns, classes, units, tags.
            What their tensors tell is filled in. Of one without ``columns`` names are
            private, and of one of which nothing is said those of parts are public.
        data: tensors that it holds from the start, with the tags that they were given.
        encode: whether messages pass through the codec, as on a network.
        memory_limit: bytes that it may hold; None for no limit.
        device: where it computes.
        blocking: wait after each request; by default what ``OBHUT_BLOCKING`` says.
        log: takes lines that at a served worker only its owner may read.
        state: a folder of its own for what is stored there, which then outlives this
            process; by default that is in memory, and goes with the worker.

    Raises:
        NotSendableError: if a data set has something else than plain tensors.
        CallError: if what is said of one is no text.
        DatasetError: if the policy has no use for a data set, or what is said of it is
            of other columns.
    """

    def __init__(
        self,
        id: str | None = None,
        *,
        policy: Policy | None = None,
        datasets: Datasets | None = None,
        rows: Literal["exact", "hidden"] = "exact",
        described: Iterable[DatasetDescription] = (),
        data: Iterable[torch.Tensor] = (),
        encode: bool = True,
        memory_limit: int | None = None,
        device: str = "cpu",
        blocking: bool | None = None,
        log: Callable[[str], None] = lambda line: None,
        state: Path | str | None = None,
    ) -> None:
        name = id if id is not None else f"worker-{next(_numbers)}"
        role, gate = _guarded(name, policy, log)
        copies = {
            dataset: {part: _kept(tensor, device) for part, tensor in parts.items()}
            for dataset, parts in (datasets or {}).items()
        }
        hidden = rows == "hidden" and isinstance(role, Owner)
        _check(name, copies, policy, hidden)
        said = [*_described(copies, described, rows, hidden)]
        columns = {one.name: one.columns or {} for one in said}
        done = Done() if role is None else None  # under a policy nobody is told
        core: Worker
        if isinstance(role, Owner):
            core = OwnersWorker(
                name,
                role,
                device=device,
                memory_limit=memory_limit,
                datasets=copies,
                hidden=copies if hidden else (),
                columns=columns,
            )
        else:
            core = Worker(
                name,
                device=device,
                memory_limit=memory_limit,
                datasets=copies,
                columns=columns,
                role=role,
                progress=done,
            )
        guarded = gate is not None
        states = (
            StatesInMemory(guarded=guarded)
            if state is None
            else StatesOnDisk(Path(state), guarded=guarded)
        )
        self._shell = LocalShell(
            core, encode=encode, gate=gate, done=done, states=states
        )
        super().__init__(LocalTransport(self._shell), described=said, blocking=blocking)
        self.load_data(data)

    def load_data(self, data: Iterable[torch.Tensor]) -> Self:
        """Let the worker hold copies of tensors, with the tags that they were given.

        They stay until ``clear_objects``; ``search`` finds those that have tags.
        """
        for tensor in data:
            tags = tuple(getattr(tensor, "tags", ()))
            held = put(self.session, tensor, tags, getattr(tensor, "description", ""))
            held.keep(True)
        return self

    def close(self) -> None:
        """Close the worker: what it holds goes, and nobody reaches it any more."""
        super().close()
        self._shell.close()


def _guarded(
    id: str, policy: Policy | None, log: Callable[[str], None]
) -> tuple[Role | None, Gate | None]:
    """Return what a virtual worker is under a policy, and what applies it."""
    if not isinstance(policy, Quorum):
        return None, None
    # Whoever has the worker in their process is who asks.
    requesters = dict.fromkeys((*policy.requesters, ME))
    own = structs.replace(policy, requesters=tuple(requesters))
    if id in own.aggregators:
        return Aggregator(own), Gate(own, Auditor(id, own))
    return Owner(own, log), Gate(own)


def _kept(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """Return a copy: what is written at the worker is not written here."""
    return check_sendable(tensor).detach().to(device, copy=True)


def _check(id: str, data: Datasets, policy: Policy | None, hidden: bool) -> None:
    """Refuse data that a served worker would not start with."""
    for dataset, parts in data.items():
        rows = {part: len(tensor) for part, tensor in parts.items() if tensor.dim()}
        if hidden:
            check_hidden(
                f"data set {dataset!r}",
                [rows.get(part, 0) for part in parts],
                "give them as data sets of their own",
                'write rows="exact"',
            )
        own = {rows[part] for part in ("features", "target") if part in rows}
        if len(own) > 1:
            raise DatasetError(
                f"data set {dataset!r}",
                f"has {rows['features']:,} rows of features and {rows['target']:,} of "
                "the target",
                "give as many of both",
            )
        if not isinstance(policy, Quorum):
            continue
        if id in policy.aggregators:
            raise DatasetError(
                f"data set {dataset!r}",
                f"is at {id}, an aggregator, which has no data of its own",
                "give it to an owner's worker",
            )
        fewest = min(rows.values(), default=1)
        if fewest < policy.minimum_rows:
            raise DatasetError(
                f"data set {dataset!r}",
                f"has {fewest:,} rows, and minimum_rows of the policy is "
                f"{policy.minimum_rows:,}",
                "give more rows, or lower minimum_rows",
            )


def _described(
    data: Datasets, described: Iterable[DatasetDescription], rows: str, hidden: bool
) -> Iterator[DatasetDescription]:
    """Yield what is said of each data set.

    Raises:
        CallError: if it is of other types.
        DatasetError: if it does not go with the data.
    """
    try:  # lists do as well
        listed = [
            msgspec.convert(structs.asdict(one), DatasetDescription)
            for one in described
        ]
    except msgspec.ValidationError as error:
        raise CallError(f"expected names in lists and dictionaries: {error}") from error
    said = {one.name: one for one in listed}
    for name in said.keys() - data.keys():
        raise DatasetError(
            f"data set {name!r}", "is described and not given", "give it, by this name"
        )
    for name, parts in data.items():
        one = said.get(name) or DatasetDescription(name, columns={})
        _check_columns(name, parts, one.columns or {})
        told = public_parts(parts, named=one.columns is not None)
        looks = {part: parts[part] for part in told} if hidden else {}
        count = next((len(tensor) for tensor in parts.values() if tensor.dim()), 1)
        yield structs.replace(
            one,
            parts=told,
            dtypes={part: DTYPE_NAMES[one.dtype] for part, one in looks.items()},
            rows=count if rows == "exact" else None,
            shapes={part: tuple(one.shape[1:]) for part, one in looks.items()},
            hidden=hidden,
        )


def _check_columns(
    name: str,
    parts: Mapping[str, torch.Tensor],
    columns: Mapping[str, Sequence[str]],
) -> None:
    for part, names in columns.items():
        sizes = [*parts[part].shape[1:]] if part in parts else []
        if part not in parts or len(names) != (sizes or [1])[0]:
            raise DatasetError(
                f"data set {name!r}",
                f"has rows of {sizes} as {part!r}, and {len(names):,} names of columns",
                "name each of its columns",
            )
