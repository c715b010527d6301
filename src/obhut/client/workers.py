"""Workers as the client sees them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from msgspec import structs

from obhut.errors import InternalError
from obhut.guard.audit import Auditor
from obhut.guard.policy import Policy, Quorum
from obhut.host.gate import Gate
from obhut.protocol.messages import (
    Alias,
    Clear,
    Count,
    Counted,
    Described,
    Find,
    Found,
    Load,
)
from obhut.transports import Transport
from obhut.transports.local import ME, LocalShell, LocalTransport
from obhut.worker.core import Worker
from obhut.worker.roles import Aggregator, Owner, Role

from .autograd_state import PENDING
from .dispatch import to_spec, wrap
from .draws import draws_of
from .held import Held
from .placement import Placement
from .registry import WORKERS
from .remote_tensor import RemoteTensor
from .session import Session


class RemoteWorker:
    """A worker that a client has a session with.

    ``with worker:`` makes factory functions such as ``torch.zeros`` create there.

    Args:
        transport: the way to it.
        blocking: wait after each request; by default what ``OBHUT_BLOCKING`` says.

    Attributes:
        id: the worker's id, by which ``send`` and ``move`` find it too.
        session: what is open with it.
    """

    def __init__(self, transport: Transport, *, blocking: bool | None = None) -> None:
        self.id = transport.worker
        self.session = Session(transport, blocking=blocking)
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

    def load(self, dataset: str, part: str = "features") -> RemoteTensor:
        """Return part of one of the worker's data sets as a remote tensor.

        Args:
            dataset: its name.
            part: ``features``, ``target`` or what else it is made of.

        Raises:
            CallError: if the worker has no such data.
        """
        id = self.session.new_id()
        reply = self.session.ask(Load(dataset, part, id))
        if not isinstance(reply, Described) or reply.specs[0] is None:
            raise InternalError("a data set was answered with something else")
        look = to_spec(reply.specs[0])
        return wrap(RemoteTensor, Held(self.session, id, look.plain))

    def search(self, *tags: str) -> list[RemoteTensor]:
        """Return the tensors there that carry all the tags.

        Each is a new name for the same object: it stays when the name goes.
        """
        reply = self.session.ask(Find(tags))
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
        return results

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

    def close(self) -> None:
        """End the session: what the worker holds for it goes."""
        WORKERS.remove(self)
        self.session.close()


class VirtualWorker(RemoteWorker):
    """A worker in this process: nothing to set up.

    With a policy it rehearses what a served worker would do, in this process, whose
    memory it shares; it protects nothing. A worker that the policy names among its
    ``aggregators`` adds what others deliver, any other is an owner's.

    Args:
        id: its name.
        encode: whether messages pass through the codec, as on a network.
        memory_limit: bytes that it may hold; None for no limit.
        device: where it computes.
        blocking: wait after each request; by default what ``OBHUT_BLOCKING`` says.
        policy: what may leave it; by default everything.
        log: takes lines that at a served worker only its owner may read.
    """

    def __init__(
        self,
        id: str,
        *,
        encode: bool = True,
        memory_limit: int | None = None,
        device: str = "cpu",
        blocking: bool | None = None,
        policy: Policy | None = None,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        role, gate = _guarded(id, policy, log)
        core = Worker(id, device=device, memory_limit=memory_limit, role=role)
        self._shell = LocalShell(core, encode=encode, gate=gate)
        super().__init__(LocalTransport(self._shell), blocking=blocking)

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
