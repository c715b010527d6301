"""A client that speaks to a worker's core: requests in, answers and effects out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from obhut.guard.policy import Quorum
from obhut.host.conductor import covered
from obhut.protocol import codec, messages
from obhut.protocol.messages import (
    Alias,
    Answer,
    Batch,
    Fetch,
    Fetched,
    Move,
    Open,
    Put,
    Refused,
    Results,
    Run,
    TensorData,
    Welcome,
)
from obhut.worker.core import Worker
from obhut.worker.effects import Effect, Parcel
from obhut.worker.owners import OwnersWorker
from obhut.worker.roles import Owner
from obhut.worker.tensors import DTYPE_NAMES, from_frame, to_frame


class Driver:
    """Sends numbered batches to a core, as one client with one session."""

    def __init__(self, worker: Worker, sender: str = "me", name: str = "s") -> None:
        self.worker = worker
        self.sender = sender
        self.name = name
        self.now = 0.0
        self.number = 0
        self.effects: tuple[Effect, ...] = ()
        self.frames: tuple[Any, ...] = ()

    def open(self, **fields: Any) -> Any:
        """Open the session and return the reply."""
        known = {
            "session": self.name,
            "protocol": messages.PROTOCOL_VERSION,
            "torch": str(torch.__version__),
        }
        return self.handle(Open(**{**known, **fields}))

    def handle(self, message: Any, frames: Sequence[Any] = ()) -> Any:
        """Hand one message in as it comes from a network; return the reply."""
        parcel = Parcel(codec.decode(codec.encode(message), frames), tuple(frames))
        reply, self.effects = self.worker.handle(self.sender, parcel, self.now)
        # What a worker answers can always be written, and read by its client.
        codec.decode(codec.encode(reply.message), reply.frames)
        self.frames = reply.frames
        return reply.message

    def batch(
        self, *requests: Any, frames: Sequence[Any] = (), number: int | None = None
    ) -> Any:
        """Send a batch, the next one unless told otherwise; return the reply."""
        if number is None:
            number = self.number = self.number + 1
        return self.handle(Batch(self.name, number, requests), frames)

    def __call__(self, *requests: Any, frames: Sequence[Any] = ()) -> list[Answer]:
        """Send a batch and return its answers."""
        reply = self.batch(*requests, frames=frames)
        assert isinstance(reply, Results), reply
        assert reply.number == self.number
        return list(reply.answers)

    def settle(self, *outcomes: Any) -> list[Answer]:
        """Tell how the last batch's deliveries ended; return its answers."""
        parcel = self.worker.settle(self.sender, self.name, outcomes)
        assert isinstance(parcel.message, Results)
        return list(parcel.message.answers)

    def fails(self, *requests: Any, frames: Sequence[Any] = ()) -> Any:
        """Send requests of which exactly one is answered, as failed; return it."""
        (failed,) = self(*requests, frames=frames)
        assert isinstance(failed, messages.Failed), failed
        return failed

    def hold(self, id: int, value: Any, *tags: str, **fields: Any) -> torch.Tensor:
        """Send a tensor; return the local one."""
        tensor = torch.as_tensor(value)
        tracked = tensor.requires_grad
        data = TensorData(DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), 0, tracked)
        assert self(Put(id, data, tags, **fields), frames=[to_frame(tensor)]) == []
        return tensor

    def value(self, id: int) -> torch.Tensor:
        """Fetch a tensor."""
        (fetched,) = self(Fetch(id))
        assert isinstance(fetched, Fetched), fetched
        data = fetched.data
        tensor = from_frame(self.frames[data.frame], data.dtype, data.shape)
        return tensor.requires_grad_(data.requires_grad)

    def count(self) -> int:
        """Return how many objects the session holds."""
        (counted,) = self(messages.Count())
        assert isinstance(counted, messages.Counted)
        return counted.count


@pytest.fixture
def opened() -> Callable[..., Driver]:
    """A function that makes a worker, or takes one, and opens a session with it."""

    def make(
        worker: Worker | None = None,
        *,
        sender: str = "me",
        name: str = "s",
        **options: Any,
    ) -> Driver:
        driver = Driver(worker or Worker("bob", **options), sender, name)
        assert isinstance(driver.open(), Welcome)
        return driver

    return make


@pytest.fixture
def me(opened: Callable[..., Driver]) -> Driver:
    """A client with an open session at a worker without limits."""
    return opened()


def _run(op: str, *args: Any, out: int = 0, count: int = 1, **fields: Any) -> Run:
    known = {"grad": True, "describe": False, "kwargs": {}}
    return Run(op, list(args), out=out, count=count, **{**known, **fields})


@pytest.fixture
def run() -> Callable[..., Run]:
    """A function that makes a request to run an operator."""
    return _run


POLICY = Quorum(
    aggregators=("hub",), contributors=("bob", "alice", "carol"), requesters=("me",)
)


class OwnersDriver(Driver):
    """A client of an owner's worker; what is delivered is kept.

    Attributes:
        headers: what low declared in the last batch.
        delivered: what went out after it, as bytes or spoilt.
        refused: why the next headers are refused, if they are.
    """

    refused: Refused | None = None
    headers: tuple[Any, ...] = ()
    delivered: tuple[Any, ...] = ()

    def handle(self, message: Any, frames: Sequence[Any] = ()) -> Any:
        """Hand one message in, let high follow, and return low's reply."""
        parcel = Parcel(codec.decode(codec.encode(message), frames), tuple(frames))
        reply, self.headers = self.worker.handle(self.sender, parcel, self.now)
        if self.headers:
            outcomes = [self.refused] * len(self.headers)
            reply = self.worker.settle(self.sender, self.name, outcomes)
        assert reply.frames == ()
        returned = self.worker.follow(self.sender, parcel, reply.message)
        accepted = () if self.refused else self.headers
        self.delivered = tuple(covered(accepted, returned))
        return reply.message

    def peek(self, id: int) -> torch.Tensor | None:
        """Return what high has under an id; None if it is missing."""
        outs = (1 << 40,)
        assert self(Alias(id, outs[0]), Move(outs, "hub", "t", outs)) == []
        (delivery,) = self.delivered
        if delivery.message.spoilt:
            return None
        (data,) = delivery.message.tensors
        return from_frame(delivery.frames[0], data.dtype, data.shape)


@pytest.fixture
def owners() -> Callable[..., OwnersDriver]:
    """A function that makes an owner's worker and opens a session with it."""

    def make(*, name: str = "s", log: Any = lambda line: None, **options: Any) -> Any:
        worker = OwnersWorker("bob", Owner(POLICY, log), **options)
        driver = OwnersDriver(worker, "me", name)
        assert driver.open().guarded
        return driver

    return make
