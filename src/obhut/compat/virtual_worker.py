"""``VirtualWorker`` as PySyft's programs make it, and as new ones do."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Self

import torch

from obhut.client import functions, workers
from obhut.client.registry import WORKERS, Place
from obhut.client.remote_tensor import RemoteTensor
from obhut.guard.policy import Policy

_numbers = itertools.count(1)


class VirtualWorker(workers.VirtualWorker):
    """A worker in this process: nothing to set up.

    With a policy it rehearses what a served worker would do, in this process, whose
    memory it shares; it protects nothing. A worker that the policy names among its
    ``aggregators`` adds what others deliver, any other is an owner's.

    Args:
        hook: a ``TorchHook``, as PySyft's programs pass it; not needed.
        id: its name, by which ``send`` and ``move`` find it too. A new worker takes
            the place of an older one of that name.
        data: tensors that it holds from the start, with their tags.
        encode: whether messages pass through the codec, as on a network.
        memory_limit: bytes that it may hold; None for no limit.
        device: where it computes.
        blocking: wait after each request; by default what ``OBHUT_BLOCKING`` says.
        policy: what may leave it, a ``Quorum``; by default everything.
        log: takes lines that at a served worker only its owner may read.
    """

    def __init__(
        self,
        hook: object = None,
        id: str | None = None,
        data: Iterable[torch.Tensor] = (),
        *,
        encode: bool = True,
        memory_limit: int | None = None,
        device: str = "cpu",
        blocking: bool | None = None,
        policy: Policy | None = None,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        if isinstance(hook, str) and id is None:
            hook, id = None, hook
        super().__init__(
            id if id is not None else f"worker-{next(_numbers)}",
            encode=encode,
            memory_limit=memory_limit,
            device=device,
            blocking=blocking,
            policy=policy,
            log=log,
        )
        self.hook = hook
        self.load_data(data)

    def load_data(self, data: Iterable[torch.Tensor]) -> Self:
        """Let the worker hold tensors, with the tags that they were given.

        They stay until ``clear_objects``; ``search`` finds those that have tags.
        """
        for tensor in data:
            tags = tuple(getattr(tensor, "tags", ()))
            said = getattr(tensor, "description", "")
            functions.send(tensor, self, tags=tags, description=said).tag()
        return self

    def search(self, *tags: str | Iterable[str]) -> list[RemoteTensor]:
        """Return the tensors there that carry all the tags.

        Args:
            tags: one by one, or as a list of them.
        """
        flat: list[str] = []
        for tag in tags:
            flat.extend([tag] if isinstance(tag, str) else tag)
        return super().search(*flat)

    def add_worker(self, worker: Place) -> Self:
        """Make a worker known by its id, as PySyft's programs ask for."""
        WORKERS.add(worker)
        return self

    def add_workers(self, workers: Iterable[Place]) -> Self:
        """Make several workers known by their ids."""
        for worker in workers:
            WORKERS.add(worker)
        return self
