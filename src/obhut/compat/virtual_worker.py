"""``VirtualWorker`` as the seed's programs make it, and as new ones do."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Self

from obhut.client import workers
from obhut.client.registry import WORKERS, Place

_numbers = itertools.count(1)


class VirtualWorker(workers.VirtualWorker):
    """A worker in this process: nothing to set up, nothing enforced.

    Args:
        hook: a ``TorchHook``, as the seed's programs pass it; not needed.
        id: its name, by which ``send`` and ``move`` find it too. A new worker takes
            the place of an older one of that name.
        encode: whether messages pass through the codec, as on a network.
        memory_limit: bytes that it may hold; None for no limit.
        device: where it computes.
        blocking: wait after each request; by default what ``OBHUT_BLOCKING`` says.
    """

    def __init__(
        self,
        hook: object = None,
        id: str | None = None,
        *,
        encode: bool = True,
        memory_limit: int | None = None,
        device: str = "cpu",
        blocking: bool | None = None,
    ) -> None:
        if isinstance(hook, str) and id is None:
            hook, id = None, hook
        super().__init__(
            id if id is not None else f"worker-{next(_numbers)}",
            encode=encode,
            memory_limit=memory_limit,
            device=device,
            blocking=blocking,
        )
        self.hook = hook

    def add_worker(self, worker: Place) -> Self:
        """Make a worker known by its id, as the seed's programs ask for."""
        WORKERS.add(worker)
        return self

    def add_workers(self, workers: Iterable[Place]) -> Self:
        """Make several workers known by their ids."""
        for worker in workers:
            WORKERS.add(worker)
        return self
