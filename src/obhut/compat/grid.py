"""``PrivateGridNetwork``: several workers searched at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from obhut.client.registry import Place
from obhut.client.remote_tensor import RemoteTensor

from .exceptions import NotHereError


class PrivateGridNetwork:
    """Several workers.

    Args:
        workers: the workers, of whatever kind.

    Attributes:
        workers: the same.
    """

    def __init__(self, *workers: Place) -> None:
        self.workers = list(workers)

    def __repr__(self) -> str:
        ids = ", ".join(worker.id for worker in self.workers)
        return f"<PrivateGridNetwork of {ids}>"

    def search(self, *query: str | Iterable[str]) -> dict[str, list[RemoteTensor]]:
        """Return the tensors that carry all the tags, by the ids of their workers.

        Workers that have none are left out.
        """
        found: dict[str, list[RemoteTensor]] = {}
        for worker in self.workers:
            at: Any = worker  # every worker can be searched
            there = at.search(*query)
            if there:
                found[worker.id] = there
        return found

    def serve_model(self, *_: object, **__: object) -> None:
        """Refuse: no model is served to whoever asks."""
        raise NotHereError("serve_model()", "send the model: model.send(worker)")

    run_remote_inference = query_model_hosts = serve_model
