"""Attacks by sums that are allowed one by one: what they tell together."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Mapping, Sequence

import torch

import obhut
from obhut.client.workers import RemoteWorker
from obhut.errors import LedgerError
from obhut.protocol.messages import (
    Expect,
    Fetch,
    Load,
    Move,
    Put,
    Ref,
    Run,
    TensorData,
)
from obhut.worker.tensors import to_frame

from .attack import Attack, Family, Program
from .private_data import VECTOR
from .stage import DAY, MINE, SW, Changes, Remote, Stage

FEW = ("audit: quorum", "audit: owners", "audit: p-percent")
"""What stops a sum over too few."""

TOGETHER = ("audit: owners", "audit: p-percent")
"""What stops sums that tell of too few together."""

Weights = Mapping[str, float]

THREE: Weights = {"alice": 1, "bob": 1, "carol": 1}
FOUR: Weights = {**THREE, "dave": 1}


def total(stage: Stage, weights: Weights, worker: RemoteWorker | None = None) -> Remote:
    """Let owners deliver anew; return their weighted sum at the aggregator."""
    return summed(stage.gathered(list(weights), worker), list(weights.values()))


def summed(parts: Sequence[Remote], weights: Sequence[float]) -> Remote:
    """Return a weighted sum of what is at the aggregator."""
    scaled = [p if w == 1 else p * w for p, w in zip(parts, weights, strict=True)]
    whole = scaled[0]
    for one in scaled[1:]:
        whole = whole + one
    return whole


def sums(*each: Weights) -> Program:
    """Return a program that asks for sums, of what is delivered anew each time."""

    def program(stage: Stage) -> object:
        for weights in each:
            stage.try_(lambda w=weights: total(stage, w).get())  # type: ignore[misc]
        return None

    return program


def own(stage: Stage, values: torch.Tensor) -> Remote:
    """Return a tensor of the requester's own at the aggregator."""
    return obhut.send(values.double(), stage.at[SW])


def _again(*choices: Weights) -> Program:
    """Return a program that asks for sums of what was delivered once."""

    def program(stage: Stage) -> object:
        names = sorted({name for weights in choices for name in weights})
        parts = dict(zip(names, stage.gathered(names), strict=True))
        for weights in choices:
            stage.try_(
                lambda w=weights: summed(  # type: ignore[misc]
                    [parts[name] for name in w], list(w.values())
                ).get()
            )
        return None

    return program


def _second_of_alice(stage: Stage) -> object:
    """What alice delivers twice differs; what the others deliver does not."""
    b, c = stage.gathered(("bob", "carol"))
    first = obhut.move(stage.vector("alice"), stage.at[SW])
    other = obhut.move(stage.vector("alice").square(), stage.at[SW])
    stage.try_((first + b + c).get)
    return (other + b + c).get()


def _hidden(stage: Stage) -> object:
    """What alice delivered twice, with weights that add up to 0."""
    one, b, c, d = stage.gathered(("alice", "bob", "carol", "dave"))
    other = obhut.move(stage.vector("alice").square(), stage.at[SW])
    stage.try_((one - other + b + c + d).get)
    return total(stage, {"bob": 1, "carol": 1, "dave": 1}).get()


def _padded(stage: Stage) -> object:
    """A sum over two, and a third of the requester's own."""
    a, b = stage.gathered(("alice", "bob"))
    return (a + b + own(stage, torch.arange(float(VECTOR)))).get()


def _stacked(stage: Stage) -> object:
    (one,) = stage.gathered(("bob",))
    mean: Remote = torch.stack([one]).mean(0)
    return mean.get()


def _twice(stage: Stage) -> object:
    """Three contributions, of two owners."""
    parts = stage.gathered(("alice", "bob", "bob"))
    whole: Remote = torch.stack(parts).sum(0)
    return whole.get()


def _sybil(stage: Stage) -> object:
    """Two contributions come from workers that nobody names."""
    (bob,) = stage.gathered(("bob",))
    mine = obhut.send(torch.arange(float(VECTOR)).double(), stage.at[MINE])
    moved = obhut.move(mine, stage.at[SW])
    return (bob + moved + own(stage, torch.ones(VECTOR))).get()


def _two_sessions(stage: Stage) -> object:
    stage.try_(lambda: total(stage, FOUR).get())
    return total(stage, THREE, stage.enter(SW)).get()


def _two_requesters(stage: Stage) -> object:
    """Me asks for four, and eve for three of them."""
    stage.try_(lambda: total(stage, FOUR).get())
    return total(stage, THREE, stage.enter(SW, "eve")).get()


def _unnamed(stage: Stage) -> object:
    """Owners who name me deliver into a session of eve's."""
    return total(stage, THREE, stage.enter(SW, "eve")).get()


def _unnamed_at_owner(stage: Stage) -> object:
    """Eve opens sessions everywhere."""
    sw = stage.enter(SW, "eve")
    parts = [obhut.move(stage.enter(name, "eve").load("vector"), sw) for name in THREE]
    return summed(parts, [1, 1, 1]).get()


def _expired(stage: Stage) -> object:
    whole = total(stage, THREE)
    stage.at[SW].wait()
    stage.later(5)
    return whole.get()


def _restarted(stage: Stage) -> object:
    stage.try_(lambda: total(stage, FOUR).get())
    stage.restart(SW)
    return total(stage, THREE).get()


def _emptied(stage: Stage) -> object:
    """Whoever is at the aggregator's disk forgets a sum for the attacker."""
    stage.try_(lambda: total(stage, FOUR).get())
    stage.empty_record()
    with contextlib.suppress(LedgerError):  # it is the operator who is told
        stage.restart(SW)
    return total(stage, THREE).get()


def _lazy(stage: Stage) -> object:
    """Bob's policy asks for five owners; the aggregator's own for three."""
    return total(stage, THREE).get()


def _relaxed(stage: Stage) -> object:
    """Bob relaxes his policy; nothing of what he delivers then is added to the rest."""
    (strict,) = stage.gathered(("bob",))
    stage.at[SW].wait()
    policies = stage.evidence.policies
    before = policies["bob"]
    stage.restart("bob", {})
    policies["bob"] = before  # what was delivered stays under that
    (lax,) = stage.gathered(("bob",))
    a, c = stage.gathered(("alice", "carol"))
    return (strict + lax * 0 + a + c).get()


def _unnamed_aggregator(stage: Stage) -> object:
    """Bob's policy names another aggregator."""
    return total(stage, THREE).get()


def _spread(stage: Stage) -> list[Remote]:
    """Let five owners deliver, bob what is largest and alice what is smallest."""
    moved = []
    for name in ("alice", "bob", "carol", "dave", "erin"):
        shift = {"bob": 1000.0, "alice": -1000.0}.get(name, 0.0)
        moved.append(obhut.move(stage.vector(name) + shift, stage.at[SW]))
    return moved


def _trimmed(stage: Stage) -> object:
    """A mean and a trimmed mean differ in the extremes."""
    whole: Remote = torch.stack(_spread(stage)).sum(0)
    stage.try_(whole.get)
    return obhut.trimmed_mean(_spread(stage), 1).get()


def _trimmed_with_mine(stage: Stage) -> object:
    """One's own value is trimmed in place of the largest."""
    parts = _spread(stage)
    huge = own(stage, torch.full((VECTOR,), 1e6))
    stage.try_(lambda: obhut.trimmed_mean(parts, 1).get())
    return obhut.trimmed_mean([*parts, huge], 1).get()


def _overtrimmed(stage: Stage) -> object:
    """All but the one in the middle are trimmed."""
    parts = stage.gathered(("alice", "bob", "carol"))
    return obhut.trimmed_mean(parts, 1).get()


def _clipped(stage: Stage) -> object:
    """Dave's policy clips all that is added to nothing of his."""
    stage.try_(lambda: total(stage, THREE).get())
    stage.try_(lambda: total(stage, {**THREE, "dave": 0}).get())
    return None


def _forged(stage: Stage) -> object:
    """From one's own worker, deliver as if it were bob's and alice's."""
    sw = stage.client(SW)
    sw.ask(Expect((1,), "alice"), Expect((2,), "bob"), Expect((3,), "carol"))
    for id, name in ((1, "alice"), (2, "bob"), (3, "carol")):
        owner = stage.client(name)
        owner.ask(Load("vector", "features", 1))
        owner.ask(Move((1,), SW, sw.session, (id,)))
    mine = stage.client(MINE)
    zeros = torch.zeros(VECTOR, dtype=torch.float64)
    mine.ask(
        Put(1, TensorData("float64", (VECTOR,), 0)),
        Put(2, TensorData("float64", (VECTOR,), 1)),
        frames=[to_frame(zeros), to_frame(zeros)],
    )
    mine.ask(Move((1, 2), SW, sw.session, (1, 2)))
    sw.ask(
        Run("aten.add.Tensor", [Ref(1), Ref(2)], {}, 11, 1, False),
        Run("aten.add.Tensor", [Ref(11), Ref(3)], {}, 12, 1, False),
    )
    return sw.ask(Fetch(12)).message


def _few(name: str, tries: str, program: Program, refused: str = "quorum") -> Attack:
    return Attack(name, tries, Family.QUERIES, program, FEW, refused=refused)


def _differs(
    name: str, tries: str, program: Program, *, refused: str = "owners", **more: object
) -> Attack:
    return Attack(
        name,
        tries,
        Family.QUERIES,
        program,
        TOGETHER,
        refused=refused,
        opposite=True,
        **more,  # type: ignore[arg-type] # the fields of an attack
    )


def _evaluated(
    name: str, tries: str, program: Program, *rules: str, changes: Changes | None = None
) -> Attack:
    return Attack(
        name,
        tries,
        Family.QUERIES,
        program,
        rules or ("sums: canonical",),
        changes=changes or {},
        opposite=not rules,
    )


def _absorbed(stage: Stage) -> object:
    """Alice's and carol's values are lost beside one's own, taken away afterwards."""
    a, b, c = stage.gathered(("alice", "bob", "carol"))
    big = own(stage, torch.full((VECTOR,), 2.0**90))
    return (((a + big) - big) + ((c + big) - big) + b).get()


def _rounded(stage: Stage) -> object:
    """Each owner's value is rounded by itself, beside a large one of one's own."""
    parts = stage.gathered(("alice", "bob", "carol"))
    for power in range(40, 60, 2):
        big = own(stage, torch.full((VECTOR,), 1.5 * 2.0**power))
        stage.try_(
            lambda big=big: summed([big, *parts], [1] * 4).get()  # type: ignore[misc]
        )
    return None


def _rescaled(stage: Stage) -> object:
    """The same sum, times numbers that round each owner's value another way."""
    parts = stage.gathered(("alice", "bob", "carol"))
    for factor in (1 / 3, 0.1, 7, 3**20, 5**13, 1 / 3**20):
        stage.try_(lambda f=factor: summed(parts, [f] * 3).get())  # type: ignore[misc]
    return None


def _narrowed(stage: Stage) -> object:
    """Alice's and carol's values are lost in a narrow type."""
    a, b, c = stage.gathered(("alice", "bob", "carol"))
    small = 2.0**-30
    lost = (a * small).half() + (c * small).half()
    return (lost.double() / small + b).get()


def _compute(name: str, tries: str, op: Callable[[Remote], Remote]) -> Attack:
    """An attack by an operator on what one owner delivered, at the aggregator."""

    def program(stage: Stage) -> object:
        (bob,) = stage.gathered(("bob",))
        made = op(bob)
        return obhut.get(made) if isinstance(made, torch.Tensor) else made

    return Attack(name, tries, Family.QUERIES, program, ("sums: only",))


def _masked(stage: Stage) -> object:
    """One's own mask lets an element of bob's and the rest of the others through."""
    a, b, c = stage.gathered(("alice", "bob", "carol"))
    mask = own(stage, torch.arange(VECTOR) % 2)
    return (a * mask + b * (1 - mask) + c * mask).get()


_ATOMS = Attack(
    "second contribution",
    "take what alice delivered first from what she delivered then",
    Family.QUERIES,
    _second_of_alice,
    ("audit: atoms",),
    refused="atoms",
)

ATTACKS = (
    _few("one", "ask for one owner's alone", sums({"bob": 1})),
    _few("two", "ask for the sum of two", sums({"bob": 1, "alice": 1})),
    _few(
        "none of the others",
        "multiply the others by 0",
        sums({"bob": 1, "alice": 0, "carol": 0}),
    ),
    _few("stack of one", "ask for the mean of one", _stacked),
    _few("twice the same", "count one owner twice", _twice),
    _few("own tensor", "add two owners' and one's own", _padded),
    _few("sybils", "add what workers of one's own deliver", _sybil),
    Attack(
        "outweighed",
        "let bob weigh a million times as much",
        Family.QUERIES,
        sums({"bob": 1_000_000, "alice": 1, "carol": 1}),
        ("audit: p-percent",),
        refused="p-percent",
    ),
    Attack(
        "drowned",
        "let the others weigh a millionth",
        Family.QUERIES,
        sums({"bob": 1, "alice": 1e-6, "carol": 1e-6}),
        ("audit: p-percent",),
        refused="p-percent",
    ),
    Attack(
        "long coefficient",
        "let bob weigh more than an audit can count",
        Family.QUERIES,
        sums({"bob": 10**14, "alice": 1, "carol": 1}),
        ("audit: coefficients", "audit: p-percent"),
    ),
    _differs(
        "differencing", "take a sum over three from one over four", sums(FOUR, THREE)
    ),
    _differs(
        "drop-out",
        "let an owner be missing in the second round",
        sums({**FOUR, "erin": 1}, FOUR),
    ),
    _differs(
        "weights",
        "ask twice with other weights",
        sums(THREE, {"alice": 2, "bob": 2, "carol": 3}),
    ),
    _differs(
        "modulo p",
        "use weights that are equal modulo a prime of 31 bits",
        sums(THREE, {"alice": 1, "bob": 1, "carol": 1 + 2**31 - 1}),
    ),
    _differs(
        "a nearly equal weight",
        "let weights differ by a billionth",
        sums(THREE, {"alice": 1, "bob": 1, "carol": 1.000000001}),
    ),
    _differs(
        "three sums",
        "solve three sums for one owner",
        sums(
            {"alice": 1, "bob": 1, "carol": 1},
            {"bob": 1, "carol": 1, "dave": 1},
            {"alice": 1, "bob": 2, "carol": 2, "dave": 2},
        ),
    ),
    _differs("two sessions", "ask for the other sum in another session", _two_sessions),
    _differs(
        "two requesters",
        "let somebody else ask for the other sum",
        _two_requesters,
        changes={"*": {"requesters": ("me", "eve")}},
    ),
    Attack(
        "restart",
        "ask for the other sum after the aggregator began anew",
        Family.QUERIES,
        _restarted,
        ("record",),
        refused="owners",
        opposite=True,
        ledger=True,
    ),
    Attack(
        "emptied record",
        "ask for the other sum after the aggregator's record was emptied",
        Family.QUERIES,
        _emptied,
        ("record: mark",),
        refused="WorkerClosedError",
        opposite=True,
        ledger=True,
    ),
    Attack(
        "three of four",
        "let three owners be left where four are needed",
        Family.QUERIES,
        sums(FOUR, {"alice": 1, "bob": 1, "carol": 2, "dave": 2, "erin": 1}),
        ("audit: owners", "audit: p-percent"),
        refused="owners",
        opposite=True,
        changes={"*": {"honest": 3}},
    ),
    _ATOMS,
    Attack(
        "other combination",
        "use what was delivered in two sums",
        Family.QUERIES,
        _again(FOUR, THREE),
        ("audit: atoms", "audit: owners", "audit: p-percent"),
        refused="atoms",
        opposite=True,
    ),
    Attack(
        "hidden difference",
        "let two contributions of alice cancel in the owners' row",
        Family.QUERIES,
        _hidden,
        ("audit: owners",),
        refused="owners",
    ),
    Attack(
        "eve",
        "let owners who do not name eve deliver to her",
        Family.QUERIES,
        _unnamed,
        ("audit: requester",),
        refused="requester",
        changes={SW: {"requesters": ("me", "eve")}},
    ),
    Attack(
        "eve everywhere",
        "open sessions where one is not named",
        Family.QUERIES,
        _unnamed_at_owner,
        ("gate: requester", "audit: requester"),
        refused="AccessDeniedError",
    ),
    Attack(
        "expired",
        "deliver before a policy's last day and ask after it",
        Family.QUERIES,
        _expired,
        ("audit: expired",),
        refused="expired",
        changes={"bob": {"expires": DAY + datetime.timedelta(days=1)}},
    ),
    Attack(
        "lax aggregator",
        "ask an aggregator whose own policy asks for less",
        Family.QUERIES,
        _lazy,
        ("sums: policy",),
        refused="quorum",
        changes={"bob": {"honest": 4}},
    ),
    Attack(
        "relaxed policy",
        "release what came under a policy by the owner's later one",
        Family.QUERIES,
        _relaxed,
        ("sums: one policy",),
        refused="policy",
        changes={"bob": {"honest": 4}},
    ),
    Attack(
        "unnamed aggregator",
        "add where bob's policy does not let it be added",
        Family.QUERIES,
        _unnamed_aggregator,
        ("owner: move", "gate: delivery", "audit: aggregator"),
        refused="place",
        changes={"bob": {"aggregators": ("elsewhere",)}},
    ),
    Attack(
        "trimmed mean and mean",
        "take a trimmed mean from a mean",
        Family.QUERIES,
        _trimmed,
        ("audit: kind",),
        refused="kind",
    ),
    Attack(
        "trimmed mean with one's own",
        "let one's own value be trimmed in place of the largest",
        Family.QUERIES,
        _trimmed_with_mine,
        ("sums: trimmed",),
        refused="CallError",
    ),
    Attack(
        "median",
        "trim all but the one in the middle",
        Family.QUERIES,
        _overtrimmed,
        ("audit: kind",),
        refused="kind",
    ),
    Attack(
        "clipped by another",
        "let a bystander's policy clip, and compare",
        Family.QUERIES,
        _clipped,
        ("audit: kind",),
        refused="kind",
        changes={"dave": {"clip_norm": 1.0}},
    ),
    Attack(
        "forged delivery",
        "deliver in place of two owners",
        Family.QUERIES,
        _forged,
        ("sums: expected", *FEW),
    ),
    _evaluated("absorption", "lose two of three in rounding", _absorbed),
    _evaluated("rounded", "round each owner's value beside a large own one", _rounded),
    _evaluated("rescaled", "round each owner's value by other factors", _rescaled),
    _evaluated("narrow type", "lose two of three in fewer digits", _narrowed),
    Attack(
        "mask",
        "let one's own mask choose whose elements are added",
        Family.QUERIES,
        _masked,
        ("sums: only",),
    ),
    _compute("square", "let an aggregator square it", lambda t: t * t),
    _compute("slice", "let an aggregator cut it", lambda t: t[:4]),
    _compute("maximum", "let an aggregator find the largest", lambda t: t.max()),
    _compute("item at the aggregator", "item() there", lambda t: t[0].item()),
    _compute("sort", "let an aggregator sort it", lambda t: t.sort().values),
    _compute(
        "concatenate",
        "let an aggregator join it with itself",
        lambda t: torch.cat([t, t]),
    ),
    _compute("dot", "let an aggregator multiply it with itself", lambda t: t.dot(t)),
    _compute("median at the aggregator", "median() there", lambda t: t.median()),
    _compute(
        "equal at the aggregator",
        "compare it there",
        lambda t: torch.equal(t, t.nan_to_num()),
    ),
)
