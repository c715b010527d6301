"""What the tests of real models share: no network, and a look past a guard."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

import obhut

# Before a library of Hugging Face's is imported; nothing is downloaded here.
os.environ["HF_HUB_OFFLINE"] = "1"

OWNERS = ("bob", "alice", "carol")
POLICY = obhut.Quorum(  # what drops out is drawn as at an open worker, unseeded
    aggregators=("hub",), contributors=OWNERS, programs="any"
)


class Peeked:
    """A virtual worker whose values a test can see.

    Args:
        name: the worker's.
        guarded: whether it has a policy.
    """

    def __init__(self, name: str, *, guarded: bool) -> None:
        self.guarded = guarded
        self.log: list[str] = []
        policy = POLICY if guarded else None
        self.worker = obhut.VirtualWorker(name, policy=policy, log=self.log.append)

    def value(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return what is behind a remote tensor, past the guard."""
        held = tensor._held  # type: ignore[attr-defined] # of remote tensors
        held.session.flush()
        core = self.worker._shell._core
        if self.guarded:
            (high,) = core._highs.values()
            store = high._store
        else:
            (session,) = core._sessions.values()
            store = session.store
        return store[held.id].detach().clone()


@pytest.fixture(params=[False, True], ids=["open", "behind a policy"])
def place(request: pytest.FixtureRequest) -> Iterator[Peeked]:
    """A worker without a policy, and one with."""
    made = Peeked("bob", guarded=request.param)
    yield made
    made.worker.close()
