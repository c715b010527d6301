"""The process of an actor: many clients' workers, on one thread.

::

    actor.ping()                             # who is under way, while it computes
    actor.exchange(client, sender, (header, frames))
    actor.play(number, (tasks, frames), turns, exact)

Rules:

- One message or one crew's call at a time is computed, in the order in which they came.
  Deliveries of other actors come in beside it, and so do questions after how it goes:
  an actor that computes answers, one whose machine stands still does not.
- An error of a worker is an answer. What else goes wrong names the client.
- Rows are not written to: they may be mapped to be read. Programs copy what they
  write; whoever loads rows as tensors gets copies.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import ray
import torch

from obhut.errors import (
    CancelledError,
    ObhutError,
    RemoteExecutionError,
    WorkerNotFoundError,
)
from obhut.protocol import codec
from obhut.protocol.codec import Frame
from obhut.protocol.messages import Refused
from obhut.transports.grpc import allocator
from obhut.transports.local import Done, LocalNetwork, LocalShell, alone
from obhut.transports.sources import Kept, Source, copied
from obhut.worker.core import Worker
from obhut.worker.effects import Delivery
from obhut.worker.tasks import DATASET, Sums, Task, Turn, run
from obhut.worker.warming import leave_compiler_out

from .packing import Packed

GROUPS = {"work": 1, "deliveries": 1, "pulse": 1}
"""The threads of an actor."""

NAMESPACE = "obhut"
"""Of the actors' names."""

Answer: TypeAlias = Packed[tuple[bytes, tuple[Frame, ...]] | ObhutError]
"""A reply as bytes, and its frames; or why there is none."""


class Pulse(NamedTuple):
    """How an actor goes.

    Attributes:
        node: the id of Ray's node that it is on.
        process: its number there.
        client: who is under way in a crew's call; empty if none is.
    """

    node: str
    process: int
    client: str


class Actor:
    """Many clients' workers.

    Args:
        name: its own, by which other actors find it.
        source: the clients' data.
        device: where they compute.
    """

    def __init__(self, name: str, source: Source, device: str) -> None:
        torch.set_num_threads(1)
        leave_compiler_out()
        allocator.keep(large=True)
        self._rows = Kept(source, device=device)
        self._device = device
        self._network = ActorNetwork(name)
        self._shells: dict[str, _Shell] = {}
        self._node = ray.get_runtime_context().get_node_id()
        self._under_way = ""
        self._cancelled = 0

    # --- beside the work ----------------------------------------------------------

    @ray.method(concurrency_group="pulse")
    def ping(self) -> Pulse:
        """Tell how it goes."""
        return Pulse(self._node, os.getpid(), self._under_way)

    @ray.method(concurrency_group="pulse")
    def progress(self, client: str, session: str, number: int) -> float | None:
        """Return what share of a batch of a client's is done."""
        shell = self._shells.get(client)
        return None if shell is None else shell.progress(session, number)

    @ray.method(concurrency_group="pulse")
    def cancel(self, client: str, session: str, number: int) -> None:
        """Let a client's worker do no more of a batch."""
        shell = self._shells.get(client)
        if shell is not None:
            shell.cancelled.add((session, number))

    @ray.method(concurrency_group="pulse")
    def stop(self, number: int) -> None:
        """Begin no more turns of a crew's calls up to a number."""
        self._cancelled = max(self._cancelled, number)

    @ray.method(concurrency_group="deliveries")
    def deliver(self, sender: str, delivery: Delivery) -> Refused | None:
        """Take in what a worker of another actor delivers."""
        return self._network.deliver(sender, delivery)

    # --- the work -----------------------------------------------------------------

    @ray.method(concurrency_group="work")
    def exchange(
        self, client: str, sender: str, parcel: tuple[bytes, tuple[Frame, ...]]
    ) -> Answer:
        """Take a message to a client's worker, and bring the reply."""
        header, frames = parcel
        try:
            message = codec.decode(header, frames)
            reply = self._shell(client).exchange(sender, message, frames)
            return Packed((codec.encode(reply.message), reply.frames))
        except ObhutError as error:
            return Packed(error)

    @ray.method(concurrency_group="work")
    def play(
        self,
        number: int,
        shared: tuple[Sequence[Task], Sequence[Frame]],
        turns: Sequence[Turn],
        exact: bool,
    ) -> Packed[Sums | ObhutError]:
        """Let clients take their turns, and return the sums.

        Args:
            number: of the call.
            shared: the tasks, which average and sum the same, and the frames that all
                clients get.
            turns: one a client.
            exact: whether training comes to the same as PyTorch's, digit for digit.
        """
        tasks, frames = shared

        def rows(name: str) -> Mapping[str, torch.Tensor]:
            if number <= self._cancelled:
                raise CancelledError("its turn", name, "others' came to nothing")
            self._under_way = name
            return self._rows(name)

        try:
            with alone():
                sums = run(tasks, turns, frames, rows, self._device, exact=exact)
                return Packed(sums)
        except ObhutError as error:
            return Packed(error)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            return Packed(RemoteExecutionError("its turn", self._under_way, text))
        finally:
            self._under_way = ""

    def _shell(self, client: str) -> _Shell:
        """Return a client's shell, made at first use.

        Raises:
            RemoteExecutionError: if its data can't be loaded.
        """
        shell = self._shells.get(client)
        if shell is None:
            has = client in self._rows
            datasets = {DATASET: copied(self._rows(client))} if has else {}
            shell = _Shell(client, datasets, self._device, self._network)
            self._shells[client] = shell
        return shell


class _Shell(LocalShell):
    """A client's worker.

    Attributes:
        cancelled: the batches of which no more is wanted, by session and number.
    """

    def __init__(
        self,
        name: str,
        datasets: dict[str, dict[str, torch.Tensor]],
        device: str,
        network: LocalNetwork,
    ) -> None:
        self.cancelled: set[tuple[str, int]] = set()
        done = Done()

        def cancelled(number: int) -> bool:
            return done.batch in self.cancelled

        core = Worker(
            name, device=device, datasets=datasets, cancelled=cancelled, progress=done
        )
        super().__init__(core, encode=False, network=network, done=done)


class ActorNetwork(LocalNetwork):
    """The workers of all actors: those of this one, and ways to the others.

    An address is the actor's name and the worker's id.

    Args:
        name: the actor's.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self._others: dict[str, Callable[..., ray.ObjectRef[Any]]] = {}

    def join(self, shell: LocalShell, *, named: bool = False) -> str:
        """Add a shell and return its address."""
        address = address_of(self._name, shell.id)
        self._shells[address] = shell
        return address

    def deliver(self, sender: str, delivery: Delivery) -> Refused | None:
        """Carry a delivery to its worker; return why it was refused, or None."""
        actor, _, _ = delivery.to.partition("/")
        if actor == self._name:
            return super().deliver(sender, delivery)
        try:
            send = self._others.get(actor)
            if send is None:
                found = ray.get_actor(actor, namespace=NAMESPACE)
                send = self._others[actor] = found.deliver.remote
            refused: Refused | None = ray.get(
                send(sender, Packed(delivery)), timeout=_DELIVERY_SECONDS
            )
        except ValueError:
            known = f"nobody is at {delivery.to!r}"
            return Refused(WorkerNotFoundError.__name__, known)
        except (ray.exceptions.RayError, TimeoutError) as error:
            self._others.pop(actor, None)
            return Refused("TransportError", f"{delivery.to!r} is gone: {error}")
        return refused


_DELIVERY_SECONDS = 60.0
"""The longest that a delivery waits for another actor."""


def address_of(actor: str, client: str) -> str:
    """Return the address by which workers of all actors reach a client's."""
    return f"{actor}/{client}"
