"""An aggregator's side of a session: sums of contributions, and their release.

Rules:

- What an owner delivers becomes a contribution, labelled with who delivered it and
  with the owner's policy.
- What leaves is a release, on which the shell's guard decides first; the values are
  made afterwards, once.
- What the requester sent itself is its own, and may come back to it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from obhut.errors import MemoryLimitError, OpNotAdmittedError, ReleaseRefusedError
from obhut.guard.policy import SAME, Quorum, encode, strictest
from obhut.protocol.codec import Frame
from obhut.protocol.messages import (
    Aggregate,
    Alias,
    AnyAnswer,
    AnyRequest,
    Clear,
    Count,
    Describe,
    Described,
    Expect,
    Fetch,
    Fetched,
    Find,
    Label,
    Move,
    Put,
    ReadData,
    Ref,
    ReleaseQuestion,
    Run,
    SetRequiresGrad,
    TensorData,
    TensorSpec,
)

from .adder import Adder, Summed, single
from .answers import name_of
from .effects import AskRelease
from .evaluation import evaluate, keep
from .names import apply_naming
from .objects import Objects
from .shapes import dense
from .sums import Contribution, Sum
from .tensors import DTYPE_NAMES, to_frame


class Wanted(NamedTuple):
    """What was asked for, and what the guard must be asked of it.

    Attributes:
        sum: what is to leave.
        effects: the questions: none if all of it is the requester's own; else
            whether the sum may leave, and where that is another question, whether
            it may be told how many contributions had values that are not finite.
    """

    sum: Sum
    effects: tuple[AskRelease, ...]


class SumStore(Objects[Summed]):
    """The objects of a session at an aggregator.

    What counts is contributions, each once, for as long as a sum needs them.

    Args:
        worker: the worker's id, for errors.
        limit: bytes that may be held, or None for no limit.
        session: the session's name, which no other has.
    """

    def __init__(self, worker: str, limit: int | None, session: str) -> None:
        super().__init__(worker, limit)
        self._session = session
        self._count = 0
        # No set that hears of each end: Ctrl-C would be lost in it.
        self._contributions: list[weakref.ref[Contribution]] = []

    def contribution(
        self,
        owner: str,
        tensor: torch.Tensor,
        policy: Quorum | None = None,
        spoilt: bool = False,
        made: bytes = b"",
    ) -> Contribution:
        """Return a new contribution, with a key that no other has."""
        self._count += 1
        key = f"{self._session}/{self._count}"
        one = Contribution(owner, key, tensor, policy, spoilt, made)
        if self._limit is not None:
            self._contributions.append(weakref.ref(one))
        return one

    def reserve(self, asked: int, op: str) -> None:
        """Check, before an allocation, that so many bytes are left."""
        if self._limit is None:
            return
        there = [one for ref in self._contributions if (one := ref()) is not None]
        self._contributions = [weakref.ref(one) for one in there]
        held = self._coming + sum(one.tensor.nbytes for one in there)
        if held + asked > self._limit:
            raise MemoryLimitError(self.worker, asked, held, self._limit, op)


class Aggregation:
    """Applies one session's requests at an aggregator.

    Args:
        store: the session's objects.
        policy: the operator's, which holds beside those of the owners.
        passed: as for ``evaluate``.
    """

    def __init__(
        self,
        store: SumStore,
        policy: Quorum,
        passed: Callable[[torch.Tensor], None] = keep,
    ) -> None:
        self.store = self._store = store
        self._policy = policy
        self._passed = passed
        self._adder = Adder(store)

    def deliver(
        self,
        ids: Sequence[int],
        sender: str,
        tensors: Sequence[torch.Tensor],
        policy: Quorum | None,
        spoilt: bool = False,
        digests: Sequence[bytes] = (),
    ) -> None:
        """Hold what an owner delivered: all of it or nothing.

        Args:
            ids: the ids here.
            sender: the owner.
            tensors: what came, or zeros in its place.
            policy: the owner's.
            spoilt: whether it did not come.
            digests: how each was made, if the owner states it.
        """
        stated = digests or (b"",) * len(tensors)
        sums = [
            single(
                self._store.contribution(sender, tensor.detach(), policy, spoilt, made),
                tensor.requires_grad,
            )
            for tensor, made in zip(tensors, stated, strict=True)
        ]
        self._store.deliver(ids, sender, sums)

    def put(self, request: Put, tensor: torch.Tensor) -> None:
        """Hold what the requester sent."""
        own = self._store.contribution("", tensor.detach())
        self._store[request.out] = single(own, tensor.requires_grad)
        if request.tags or request.description:
            self._store.label(request.out, request.tags, request.description)

    def apply(self, request: AnyRequest, index: int) -> AnyAnswer | None:
        """Apply a request that is neither a ``Put`` nor a ``Fetch``.

        Raises:
            OpNotAdmittedError: if an aggregator does no such thing.
        """
        store = self._store
        match request:
            case Run():
                self._adder.run(request)
                if request.describe:
                    return Described(index, (_look(store[request.out]),))
            case Aggregate():
                self._adder.aggregate(request)
            case ReadData() | Alias():
                self._adder.share(Ref(request.id))
                store[request.out] = store[request.id]
            case SetRequiresGrad():
                held = store[request.id]
                store.replace(request.id, replace(held, requires_grad=request.value))
            case Clear() | Count() | Describe() | Expect() | Find() | Label():
                return apply_naming(store, request, index, _look)
            case Move():
                raise ReleaseRefusedError(
                    "release",
                    "what an aggregator releases goes to the requester: get() it, and "
                    "send it from there",
                )
            case _:
                raise OpNotAdmittedError(name_of(request), "an aggregator only adds")
        return None

    def ask(self, request: Fetch, index: int) -> Wanted:
        """Return what the guard must be asked before a value leaves.

        Raises:
            ReleaseRefusedError: if it is nothing that can be released, or an owner's
                contributions came under two policies.
        """
        held = self._store[request.id]
        if not isinstance(held, Sum):
            raise ReleaseRefusedError(
                "release",
                "this is a stack of contributions: ask for its sum or mean over them",
            )
        owned = held.owned
        policies = tuple(self._policies(owned).items())
        wanted = ReleaseQuestion(
            held.kind,
            tuple(
                (c.owner, c.key, f.numerator, f.denominator) for c, f in owned.items()
            ),
            policies,
            tuple(c.made for c in owned),
        )
        # Those that are looked at, and so are counted if they are not finite.
        there = {c: f for c, f in owned.items() if f}
        ones = tuple((c.owner, c.key, 1, 1) for c in there)
        made = tuple(c.made for c in there)
        counts = ReleaseQuestion("count", ones, policies, made)
        messages = [] if not owned else [wanted]
        if there and (held.kind != "sum" or len(set(there.values())) > 1):
            # How many were not finite is a sum of its own.
            messages.append(counts)
        return Wanted(held, tuple(AskRelease(m, index) for m in messages))

    def _policies(self, owned: Iterable[Contribution]) -> dict[str, bytes]:
        """Return the policy that each owner's contributions came with."""
        policies: dict[str, bytes] = {}
        for one in owned:
            if one.policy is not None:
                encoded = encode(one.policy)
                if policies.setdefault(one.owner, encoded) != encoded:
                    raise ReleaseRefusedError(
                        "policy",
                        f"what {one.owner} delivered came with two policies; sum what "
                        "came with one of them",
                    )
        return policies

    def lacks(self, permitted: Iterable[Wanted]) -> bool:
        """Tell whether, of one batch, too few owners' contributions have come.

        So it is where policies compare programs: else whoever makes all but one owner's
        processes end would have that one's contribution.

        Leak: one truth a batch, beside the number that it tells.
        """
        sums = [
            {c: c.policy for c, factor in one.sum.owned.items() if factor}
            for one in permitted
        ]
        spoilt = {c.owner for terms in sums for c in terms if c.spoilt}
        for terms in sums if spoilt else ():
            bound = {c.owner: policy for c, policy in terms.items() if policy}
            asked = strictest({"": self._policy, **bound})
            there = asked.contributors.intersection(c.owner for c in terms) - spoilt
            if asked.programs == SAME and terms and len(there) < asked.quorum:
                return True
        return False

    def release(
        self, asked: Wanted, index: int, frame: int
    ) -> tuple[Fetched, Frame, frozenset[str]]:
        """Return a value that may leave, and whose contributions were not finite.

        Args:
            asked: what was asked for, and permitted.
            index: the request's place in its batch.
            frame: the number of the frame.
        """
        held = asked.sum
        own = _as_sent(held)
        if own is not None:
            data = TensorData(
                DTYPE_NAMES[own.dtype], held.shape, frame, held.requires_grad
            )
            return Fetched(index, data), to_frame(own), frozenset()
        self._store.reserve(2 * dense(held.shape, held.dtype).nbytes, "fetch")
        bounds = [self._policy, *(c.policy for c in held.owned if c.policy)]
        norms = [b.clip_norm for b in bounds if b.clip_norm is not None]
        made = evaluate(held, min(norms, default=None), self._passed)
        data = TensorData(
            DTYPE_NAMES[held.dtype], held.shape, frame, held.requires_grad
        )
        return Fetched(index, data), to_frame(made.values), made.nonfinite


def _as_sent(held: Sum) -> torch.Tensor | None:
    """Return what the requester sent, if it is that and nothing was made of it."""
    if len(held.terms) != 1 or held.finish:
        return None
    ((contribution, factor),) = held.terms.items()
    if contribution.owner or factor != 1 or contribution.tensor.dtype != held.dtype:
        return None
    return contribution.tensor.reshape(held.shape)


def _look(held: Summed) -> TensorSpec:
    look = dense(held.shape, held.dtype)
    return TensorSpec(
        DTYPE_NAMES[held.dtype], held.shape, look.stride, 0, held.requires_grad
    )
