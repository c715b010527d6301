"""Random sequences of requests, by Hypothesis: what nobody thought of.

A sequence is what one requester asks of all owners and the aggregator. It may ask for
anything; only what owners deliver is not the requester's to choose, since one who
chooses that needs no luck (``programs``). They deliver the same vector each time, or
another each time: the first tries what the audit says of owners, the second what it
says of contributions.

Judges: canaries and solver.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from hypothesis import strategies as st

from obhut.protocol.messages import (
    Aggregate,
    Alias,
    AnyRequest,
    Backward,
    Count,
    Describe,
    Differentiate,
    Expect,
    Fetch,
    Find,
    Free,
    Label,
    Load,
    Move,
    Put,
    ReadData,
    Ref,
    Run,
    SetRequiresGrad,
    Symbol,
    TensorData,
    Value,
    WriteData,
)
from obhut.worker.tensors import to_frame

from . import solver
from .canaries import Canaries
from .private_data import OWNERS, VECTOR
from .searching import simplest
from .stage import MINE, SW, RawClient, Stage

Step: TypeAlias = tuple[Any, ...]
"""What is done next: its name, and numbers."""


class Steps(NamedTuple):
    """A sequence.

    Attributes:
        trust: how many are honest and how many collude, by all policies.
        same: whether owners deliver the same vector each time.
        steps: what is done, in order.
    """

    trust: tuple[int, int]
    same: bool
    steps: Sequence[Step]


_place = st.integers(0, 9)
_owner = st.integers(0, len(OWNERS) - 1)
_weight = st.sampled_from((1, 1, 1, 1, 1, 1, 1, 2, -1, 0, 3, 1 / 3, 1e-6, 2.0**31))
_asked = st.lists(
    st.tuples(_owner, st.sampled_from((0, 0, 0, 1)), _weight),
    min_size=2,
    max_size=6,
    unique_by=lambda one: one[:2],
)
"""Owners, which of what they delivered, and weights."""

_STEP: st.SearchStrategy[Step] = st.one_of(
    st.tuples(st.just("deliver"), st.sets(_owner, min_size=1)),
    st.tuples(st.just("sum"), _asked),
    st.tuples(st.just("sum"), _asked),
    st.tuples(st.just("plain"), st.sets(_owner, min_size=2)),
    st.tuples(st.just("plain"), st.sets(_owner, min_size=3)),
    st.tuples(st.just("add"), _place, _place, _weight),
    st.tuples(st.just("stack"), st.lists(_place, min_size=1, max_size=5)),
    st.tuples(st.just("trim"), st.lists(_place, min_size=3, max_size=7, unique=True)),
    st.tuples(st.just("own"), st.sampled_from((0.0, 1.0, 2.0**60, float("nan")))),
    st.tuples(st.just("other"), st.integers(0, 12), _place, _place),
    st.tuples(st.just("owner"), _owner, st.integers(0, 17), _place, _place),
    st.tuples(st.just("fetch"), _place),
)

SEQUENCES: st.SearchStrategy[Steps] = st.builds(
    Steps,
    st.sampled_from(((2, 1), (2, 0), (1, 1), (3, 1), (2, 2))),
    st.booleans(),
    st.lists(_STEP, min_size=1, max_size=12),
)
"""Sequences, the simplest first."""


class Player:
    """Does what sequences say.

    Args:
        stage: where.
        same: whether owners deliver the same vector each time.
    """

    def __init__(self, stage: Stage, same: bool) -> None:
        self._stage = stage
        self._same = same
        self._sw = stage.client(SW)
        self._sw.open()
        self._owners: dict[str, RawClient] = {}
        self._made: list[int] = []
        self._of: dict[str, list[int]] = {name: [] for name in OWNERS}
        self._last = 10
        self._round = 0
        for name in OWNERS:
            self._deliver(name)

    def play(self, step: Step) -> None:
        """Do one step."""
        match step:
            case ("deliver", owners):
                for owner in sorted(owners):
                    self._deliver(OWNERS[owner])
            case ("sum", asked):
                self._weighted([(self._from(o, age), w) for o, age, w in asked])
            case ("plain", owners):
                out = self._new()
                ids = tuple(self._from(owner) for owner in sorted(owners))
                self._sw.ask(Aggregate("sum", ids, 0, out, (), len(ids)))
                self._made.append(out)
                self._fetch(out)
            case ("add", one, other, weight):
                self._weighted([(self._at(one), 1), (self._at(other), weight)])
            case ("stack", places):
                refs: Value = [Ref(self._at(place)) for place in places]
                stack = self._run("stack.default", refs)
                self._fetch(self._run("mean.dim", Ref(stack), [0]))
            case ("trim", places):
                out = self._new()
                ids = tuple(self._at(place) for place in places)
                self._sw.ask(Aggregate("trimmed_mean", ids, 1, out))
                self._fetch(out)
            case ("own", value):
                values = torch.full((VECTOR,), value, dtype=torch.float64)
                data = TensorData("float64", (VECTOR,), 0)
                self._made.append(self._new())
                self._sw.ask(Put(self._last, data), frames=[to_frame(values)])
            case ("other", which, one, other):
                self._sw.ask(self._other(which, self._at(one), self._at(other)))
            case ("owner", owner, which, one, other):
                self._at_owner(OWNERS[owner], which, one + 1, other + 1)
            case ("fetch", place):
                self._fetch(self._at(place))
            case _:
                raise ValueError(step)

    def _new(self) -> int:
        self._last += 1
        return self._last

    def _at(self, place: int) -> int:
        """Return the id of something at the aggregator, the newest first."""
        return self._made[-1 - place % len(self._made)] if self._made else 1

    def _from(self, owner: int, age: int = 0) -> int:
        """Return the id of what an owner delivered, last or before that."""
        delivered = self._of[OWNERS[owner]]
        return delivered[-1 - min(age, len(delivered) - 1)]

    def _fetch(self, id: int) -> None:
        self._sw.ask(Fetch(id))

    def _run(self, op: str, *args: Value) -> int:
        out = self._new()
        self._sw.ask(Run(f"aten.{op}", list(args), {}, out, 1, False))
        return out

    def _weighted(self, parts: Sequence[tuple[int, float]]) -> None:
        """Ask for a weighted sum."""
        whole = 0
        for id, weight in parts:
            scaled = self._run("mul.Scalar", Ref(id), weight) if weight != 1 else id
            whole = (
                self._run("add.Tensor", Ref(whole), Ref(scaled)) if whole else scaled
            )
        self._made.append(whole)
        self._fetch(whole)

    def _client(self, name: str) -> RawClient:
        if name not in self._owners:
            client = self._owners[name] = self._stage.client(name)
            client.ask(Load("vector", "features", 1), Load("counts", "features", 2))
        return self._owners[name]

    def _deliver(self, name: str) -> None:
        """Let an owner's own program deliver."""
        self._round += 1
        scaled, made, there = self._new(), self._new(), self._new()
        factor = 1.0 if self._same else float(self._round)
        op = "alias.default" if self._same else "cos.default"
        self._sw.ask(Expect((there,), name))
        self._client(name).ask(
            Run("aten.mul.Scalar", [Ref(1), factor], {}, scaled, 1, False),
            Run(f"aten.{op}", [Ref(scaled)], {}, made, 1, False),
            Move((made,), SW, self._sw.session, (there,)),
        )
        self._made.append(there)
        self._of[name].append(there)

    def _other(self, which: int, one: int, other: int) -> AnyRequest:
        """Return something else to ask an aggregator."""
        out, ref = self._new(), Ref(one)
        self._made.append(out)
        return (
            lambda: Run("aten.mul.Tensor", [ref, Ref(other)], {}, out, 1, False),
            lambda: Run("aten.slice.Tensor", [ref, 0, 0, 4], {}, out, 1, False),
            lambda: Run("aten.view.default", [ref, [8, 8]], {}, out, 1, False),
            lambda: Run(
                "aten._local_scalar_dense.default", [ref], {}, 0, 0, False, True
            ),
            lambda: Run("aten.copy_.default", [ref, Ref(other)], {}, 0, 0, False),
            lambda: Run("aten.sub_.Tensor", [ref, Ref(other)], {}, 0, 0, False),
            lambda: Alias(one, out),
            lambda: ReadData(one, out),
            lambda: Move((one,), MINE, self._sw.session, (out,)),
            lambda: Free((one,)),
            lambda: _converted(ref, "float16", out),
            lambda: _converted(ref, "int32", out),
            lambda: Run("aten.round.default", [ref], {}, out, 1, False),
        )[which]()

    def _at_owner(self, name: str, which: int, one: int, other: int) -> None:
        """Ask an owner for something; what comes of it is never delivered."""
        out, ref = one + 2, Ref(one)
        request: AnyRequest = (
            lambda: Fetch(one),
            lambda: Describe(one),
            lambda: Run("aten.mul.Tensor", [ref, Ref(other)], {}, out, 1, True),
            lambda: Run("aten.nonzero.default", [ref], {}, out, 1, False, True),
            lambda: Run("aten.select.int", [ref, 0, 3], {}, out, 1, False, True),
            lambda: Run(
                "aten._local_scalar_dense.default", [ref], {}, 0, 0, False, True
            ),
            lambda: Run("aten.equal.default", [ref, Ref(other)], {}, 0, 0, False, True),
            lambda: Run(
                "aten.index_select.default", [ref, 0, Ref(2)], {}, out, 1, True, True
            ),
            lambda: Run("aten.sum.default", [ref], {}, out, 1, True, True),
            lambda: Run("aten.empty_like.default", [ref], {}, out, 1, False),
            lambda: SetRequiresGrad(one, True),
            lambda: Backward((one,), (other,), None, True, False),
            lambda: Differentiate((one,), (None,), (other,), out, True, True),
            lambda: WriteData(one, other),
            lambda: Move((one,), MINE, self._sw.session, (1,)),
            lambda: Label(one, ("a",)),
            lambda: Find(("a",)),
            Count,
        )[which]()
        if isinstance(request, WriteData | SetRequiresGrad) and one == 1:
            return  # what is delivered stays what it is
        self._client(name).ask(request)


def _converted(ref: Ref, dtype: str, out: int) -> Run:
    return Run("aten._to_copy.default", [ref], {"dtype": Symbol(dtype)}, out, 1, False)


def leaks(tried: Steps, off: frozenset[str] = frozenset()) -> Iterator[str]:
    """Play a sequence; yield what judges find.

    Args:
        tried: the sequence.
        off: the rules that are off.
    """
    honest, colluders = tried.trust
    changes = {"*": {"honest": honest, "colluders": colluders, "refusals": 1_000}}
    stage = Stage(off, changes=changes)
    try:
        player = Player(stage, tried.same)
        for step in tried.steps:
            with stage.watched():
                player.play(step)
    finally:
        stage.close()
    yield from _canaries(stage).alarms(stage.evidence)
    yield from solver.alarms(stage.evidence)


_known: list[Canaries] = []


def _canaries(stage: Stage) -> Canaries:
    """Return the canaries of the first world, which are the same each time."""
    if not _known:
        _known.append(Canaries(stage.evidence))
    return _known[0]


def search(count: int, off: frozenset[str] = frozenset()) -> Steps | None:
    """Try so many sequences; return the simplest one that leaks, if one does."""

    def leaky(tried: Steps) -> bool:
        return any(leaks(tried, off))

    return simplest(SEQUENCES, leaky, count)


def report(count: int) -> int:
    """Try so many sequences, and print what came of it; return how much is wrong."""
    found = search(count)
    if found is None:
        print(f"{count:,} random sequences of requests; none leaks")  # noqa: T201
        return 0
    print(f"WRONG  a sequence leaks: {next(leaks(found))}\n{found}")  # noqa: T201
    return 1
