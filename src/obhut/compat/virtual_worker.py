"""``VirtualWorker`` as PySyft's programs make and use it.

Rule: a worker is made once. Who makes one of that name again with the same hook, as a
notebook's cell does that runs twice, gets the same one, with a warning; only another
policy, or another limit, makes another worker.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Self

import torch

from obhut.client import virtual_worker
from obhut.client.registry import WORKERS, Place
from obhut.client.remote_tensor import RemoteTensor, text_of
from obhut.errors import WorkerNotFoundError
from obhut.protocol.messages import Describe, Described

from .warning import warn


class VirtualWorker(virtual_worker.VirtualWorker):
    """A worker in this process: nothing to set up.

    Args:
        hook: a ``TorchHook``, as PySyft's programs pass it; not needed.
        id: its name, by which ``send`` and ``move`` find it too.
        data: tensors that it holds from the start, with their tags.
        is_client_worker: kept, and makes no difference; nor does what follows up to
            ``known_workers``: all workers of a process know each other.
        log_msgs: likewise.
        verbose: likewise.
        auto_add: likewise.
        message_pending_time: likewise.
        known_workers: likewise.
        settings: what ``obhut.VirtualWorker`` takes besides.
    """

    def __new__(cls, hook: object = None, id: object = None, *_: Any, **o: Any) -> Self:
        """Return the worker of that name, if there is one that was made alike."""
        hook, name = _in_order(hook, id)
        known = WORKERS.known(name or "")
        if (
            hook is None
            or type(known) is not cls
            or known.hook is not hook
            or known.session.closed
        ):
            return super().__new__(cls)
        if known._settings != _comparable(o):
            warn(
                f"there was a worker {name!r} with another policy or other limits; a "
                "new one takes its place, and what the old one holds stays there"
            )
            return super().__new__(cls)
        warn(
            f"there is a worker {name!r} already: this is the same one, with all that "
            "it holds; its clear_objects() empties it"
        )
        return known

    def __init__(
        self,
        hook: object = None,
        id: str | int | None = None,
        data: Iterable[torch.Tensor] | None = None,
        is_client_worker: bool = False,
        log_msgs: bool = False,
        verbose: bool | None = None,
        auto_add: bool = True,
        message_pending_time: float = 0,
        known_workers: Mapping[str, Place] | None = None,
        **settings: Any,
    ) -> None:
        if hasattr(self, "session"):
            return
        hook, name = _in_order(hook, id)
        super().__init__(name, data=data or (), **settings)
        self.hook = hook
        self.is_client_worker = is_client_worker
        self.log_msgs = log_msgs
        self.verbose = bool(verbose)
        self.auto_add = auto_add
        self.message_pending_time = message_pending_time
        self._settings = _comparable(settings)

    # --- what it holds ------------------------------------------------------------

    @property
    def _objects(self) -> Mapping[int, str]:
        """What the worker holds for this process: by id, what its pointer prints."""
        named = self._named()
        asked = [self.session.ask_later(Describe(id)) for id, _ in named]
        found: dict[int, str] = {}
        for (id, tags), one in zip(named, asked, strict=True):
            reply = one.result()
            if isinstance(reply, Described) and reply.specs[0] is not None:
                look = reply.specs[0]
                found[id] = text_of(
                    f"{self.id}:{id}", look.shape, look.dtype, look.requires_grad, tags
                )
        return MappingProxyType(found)

    _tensors = _objects

    def objects_count(self) -> int:
        """Return how many objects the worker holds for this process."""
        return len(self._named())

    def _named(self) -> list[tuple[int, tuple[str, ...]]]:
        super().objects_count()  # what waits is done, and what has no name is gone
        return self._shell.named(self.session.name)

    tensors_count = objects_count

    @property
    def object_store(self) -> ObjectStore:
        """Where later versions had what the worker holds."""
        return ObjectStore(self)

    def list_objects(self) -> str:
        """Return what the worker holds as text."""
        return str(self._objects)

    list_tensors = list_objects

    def clear_objects(self, return_self: bool = True) -> Self | None:  # type: ignore[override] # as PySyft had it
        """Let the worker forget all that it holds for this process."""
        super().clear_objects()
        return self if return_self else None

    # --- who is there -------------------------------------------------------------

    def request_search(
        self, query: str | Iterable[str], location: Place
    ) -> list[RemoteTensor]:
        """Return the tensors at another worker that carry all the tags."""
        at: Any = WORKERS.find(location)  # every worker has it
        found: list[RemoteTensor] = at.search(query)
        return found

    find_or_request = request_search

    def get_worker(self, worker: Place | str, fail_hard: bool = False) -> Place | str:
        """Return a worker by itself or by its id; an unknown id as it is.

        Raises:
            WorkerNotFoundError: for an unknown id, with ``fail_hard``.
        """
        try:
            return WORKERS.find(str(worker) if isinstance(worker, int) else worker)
        except WorkerNotFoundError:
            if fail_hard:
                raise
            return worker

    @property
    def _known_workers(self) -> Mapping[str, Place]:
        """All workers that this process knows, by id."""
        return WORKERS.all()

    def add_worker(self, worker: Place) -> Self:
        """Make a worker known by its id, as PySyft's programs ask for."""
        WORKERS.add(worker)
        return self

    def add_workers(self, workers: Iterable[Place]) -> Self:
        """Make several workers known by their ids."""
        for worker in workers:
            WORKERS.add(worker)
        return self

    def remove_worker_from_registry(self, worker_id: str) -> None:
        """Forget a worker's id; who has the worker itself can go on with it.

        Raises:
            WorkerNotFoundError: if no worker is known by it.
        """
        WORKERS.remove(WORKERS.find(worker_id))

    def remove_worker_from_local_worker_registry(self) -> None:
        """Forget this worker's id."""
        WORKERS.remove(self)

    def register_obj(self, obj: torch.Tensor, obj_id: object = None) -> None:
        """Hold a copy of a tensor; what is in this process is here already."""
        if not self.here:
            self.load_data([obj])

    @contextlib.contextmanager
    def registration_enabled(self) -> Iterator[Self]:
        """Make no difference: what is sent has a place without it."""
        before, self.is_client_worker = self.is_client_worker, False
        try:
            yield self
        finally:
            self.is_client_worker = before


class ObjectStore:
    """What a worker holds, to look at.

    Args:
        worker: the worker.
    """

    def __init__(self, worker: VirtualWorker) -> None:
        self._worker = worker

    @property
    def _objects(self) -> Mapping[int, str]:
        return self._worker._objects

    _tensors = _objects

    def __len__(self) -> int:
        return self._worker.objects_count()

    def clear_objects(self) -> None:
        """Let the worker forget all that it holds for this process."""
        self._worker.clear_objects()


def _in_order(hook: object, id: object) -> tuple[object, str | None]:
    """Return hook and name, whether or not there is a hook before the name."""
    if isinstance(hook, str) and id is None:
        hook, id = None, hook
    return hook, None if id is None else str(id)


def _comparable(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what has to be alike for two workers to be the same one."""
    return {key: settings.get(key) for key in ("policy", "memory_limit", "device")}
