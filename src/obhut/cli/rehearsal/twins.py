"""Virtual twins of workers, under their policies, with random data; and what they do.

Rules:

- A twin looks to a client as the served worker does: data sets, search, repr.
- Whatever would leave is noted, and whatever is refused, in the order of asking.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from msgspec import structs

from obhut.client.network import ServedWorker
from obhut.guard.audit import Auditor
from obhut.guard.release import Decision, Release
from obhut.host.gate import Gate
from obhut.protocol.codec import Frame
from obhut.protocol.messages import AnyMessage, Failed, Results
from obhut.transports.grpc.description import WorkerDescription
from obhut.transports.local import ME, Arrived, LocalShell, LocalTransport
from obhut.worker.core import Worker
from obhut.worker.owners import OwnersWorker
from obhut.worker.roles import Aggregator, Owner
from obhut.worker.tensors import DTYPES

from .outlines import Field, Outline

_REFUSALS = frozenset(("ReleaseRefusedError", "OpNotAdmittedError"))


@dataclass(frozen=True, slots=True)
class Event:
    """Something that left, or was refused.

    Attributes:
        worker: where.
        leaves: whether it did.
        text: what it was; a refusal begins with its rule.
    """

    worker: str
    leaves: bool
    text: str


class Twin(ServedWorker):
    """A worker in this process that stands for a served one.

    Args:
        outline: what it stands for.
        events: what left or was refused, to be continued.
        generator: where its data come from.
    """

    def __init__(
        self, outline: Outline, events: list[Event], generator: torch.Generator
    ) -> None:
        policy = outline.quorum
        # Whoever runs the script asks, whatever they are called.
        policy = structs.replace(policy, requesters=tuple({*policy.requesters, ME}))
        data = {
            one.public.name: {p.name: random_values(p, generator) for p in one.parts}
            for one in outline.datasets
        }
        name, record = outline.name, _Record(outline.name, events)
        if name in policy.aggregators:
            core = Worker(name, role=Aggregator(policy))
            gate = Gate(policy, Auditor(name, policy), record)
        else:
            owner = Owner(policy, record.failed)
            hidden = [o.public.name for o in outline.datasets if o.public.hidden]
            columns = {o.public.name: o.public.columns or {} for o in outline.datasets}
            core = OwnersWorker(
                name, owner, datasets=data, hidden=hidden, columns=columns
            )
            gate = Gate(policy)
        transport = _Watched(LocalShell(core, gate=gate), record)
        described = tuple(one.public for one in outline.datasets)
        super().__init__(
            transport,
            WorkerDescription(name, name, 0, described),
            target="",
            where="as a twin in this process",
        )


def random_values(part: Field, generator: torch.Generator) -> torch.Tensor:
    """Return a tensor that looks like another: normal numbers, or zeros and ones."""
    dtype = DTYPES[part.dtype]
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(part.shape, generator=generator).to(dtype)
    return torch.randint(0, 2, part.shape, generator=generator).to(dtype)


class _Record:
    """Notes events in the order in which they come."""

    def __init__(self, worker: str, events: list[Event]) -> None:
        self._worker = worker
        self._events = events

    def extend(self, decided: Sequence[tuple[Release, Decision]], time: int) -> None:
        """Note what an aggregator lets out."""
        for release, decision in decided:
            if decision.permits:
                kind = _KINDS.get(release.kind, f"{release.kind} of ")
                self._events.append(Event(self._worker, True, kind + decision.text))

    def refused(self, text: str) -> None:
        """Note what was refused."""
        self._events.append(Event(self._worker, False, text))

    def failed(self, line: str) -> None:
        """Note what only the owner of a worker would read."""
        self._events.append(Event(self._worker, False, f"in the owner's log: {line}"))


_KINDS: Mapping[str, str] = {
    "sum": "",
    "count": "how many can not be used, ",
}


class _Watched(LocalTransport):
    """A client's way to a twin, on which refusals are seen."""

    def __init__(self, shell: LocalShell, record: _Record) -> None:
        super().__init__(shell)
        self._record = record

    def submit(self, message: AnyMessage, frames: Sequence[Frame] = ()) -> Arrived:
        """Send a message, and look at what comes back."""
        arrived = super().submit(message, frames)
        answered = arrived.result().message
        if isinstance(answered, Results):
            for answer in answered.answers:
                # What fails because of an earlier failure is no refusal of its own.
                if (
                    isinstance(answer, Failed)
                    and answer.kind in _REFUSALS
                    and (answer.batch, answer.origin) == (answered.number, answer.index)
                ):
                    self._record.refused(_told(answer))
        return arrived


def _told(answer: Failed) -> str:
    if answer.kind == "ReleaseRefusedError":
        return f"rule {answer.text}"
    return f"{answer.op} is not run: {answer.text}"
