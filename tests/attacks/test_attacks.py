"""Attacks: each is stopped, and gets through when what stops it is off."""

from __future__ import annotations

import pytest
import torch
from tests.attacks import catalogue, owner_sequences, sequences, solver
from tests.attacks.attack import Attack, Family, Level
from tests.attacks.canaries import Canaries
from tests.attacks.private_data import Values
from tests.attacks.queries import FEW, sums
from tests.attacks.report import proofs
from tests.attacks.rules import RULES, Need
from tests.attacks.stage import Exchange, Stage
from tests.attacks.suite import Judgement, found, judge, run

from obhut.ops.table import ROWS, Flag, Kind
from obhut.worker.packed import PACKED

_verdicts: dict[str, Judgement] = {}


def verdict(name: str) -> Judgement:
    """Return what became of an attack, which is run once."""
    if name not in _verdicts:
        _verdicts[name] = judge(catalogue.ATTACKS[name])
    return _verdicts[name]


@pytest.mark.parametrize("name", catalogue.ATTACKS)
def test_attack(name: str) -> None:
    """It is stopped, and gets through without the rules it names or above L0."""
    assert not verdict(name).problem


@pytest.mark.parametrize(
    "name", [name for name, rule in RULES.items() if rule.proof is not Need.NONE]
)
def test_rule_is_needed(name: str) -> None:
    """Some attack gets through when the rule is off, with those that imply it."""
    rule = RULES[name]
    near = [a.name for a in catalogue.ATTACKS.values() if name in a.rules]
    assert proofs(rule, {one: verdict(one) for one in near})


def test_names_are_unique() -> None:
    """No attack hides another of its name."""
    assert len(catalogue.ATTACKS) == catalogue.COUNT


def test_attacks_name_known_rules() -> None:
    """A rule that an attack names is one that is enforced somewhere."""
    for attack in catalogue.ATTACKS.values():
        assert set(attack.rules) <= RULES.keys(), attack.name


def test_flags_without_a_proof_leave_nothing_dynamic() -> None:
    """Behind a guard no size depends on values, but masks and lengths are refused."""
    free = {
        row.name
        for row in ROWS.values()
        if Flag.DYNAMIC in row.flags
        and row.kind is not Kind.REFUSED
        and Flag.GUARD_REFUSED not in row.flags
    }
    assert free == {"aten.index.Tensor", *PACKED}


def test_the_suite_notices_an_attack_that_gets_through() -> None:
    """An attack that nothing stops is a problem, and so is one that never works."""
    program = catalogue.ATTACKS["alice * 0"].program
    through = Attack("through", "", Family.PROGRAMS, program, FEW)
    assert judge(through).problem.startswith("it gets through")
    idle = Attack("idle", "", Family.PROGRAMS, lambda stage: None, FEW)
    assert judge(idle).problem.startswith("it does not get through")
    higher = Attack("higher", "", Family.PROGRAMS, lambda s: None, level=Level.L1)
    assert judge(higher).problem


def test_honest_sums_alarm_no_judge() -> None:
    """Sums that all rules allow pass all judges, in all worlds."""
    three = {"alice": 1, "bob": 1, "carol": 1}
    honest = Attack("honest", "", Family.QUERIES, sums(three, three), opposite=True)
    assert not run(honest, frozenset()).refused
    assert not list(found(honest, frozenset()))


@pytest.mark.parametrize("scale", [1.0, -1.0, 0.25])
def test_canaries_find_what_was_scaled(scale: float) -> None:
    """A private value is found with another sign, or times a power of two."""
    stage = Stage()
    values = stage.evidence.private["bob"][0] * scale
    stage.show(values[:3])
    assert bool(list(Canaries(stage.evidence).alarms(stage.evidence))) == (
        abs(scale) == 1
    )
    stage.evidence.exchanges.append(Exchange("me", b"", values=(values,)))
    assert list(Canaries(stage.evidence).alarms(stage.evidence))
    stage.close()


def test_the_solver_finds_a_difference() -> None:
    """Two sums whose difference is of two owners are found, and one of three not."""
    stage = Stage()
    a, b, c, d = (
        stage.evidence.private[o][0] for o in ("alice", "bob", "carol", "dave")
    )
    last = Exchange("me", b"", values=(a + b + c,))
    stage.evidence.exchanges.append(last)
    assert not list(solver.alarms(stage.evidence))
    last.values = (a + b + c, a + 2 * b + c + d)
    assert list(solver.alarms(stage.evidence))
    stage.close()


def test_worlds_differ_as_they_say() -> None:
    """In the opposite world bob has more by what alice has less, exactly."""
    first, other = (
        run(Attack("", "", Family.EGRESS, lambda s: None), frozenset(), world)
        for world in (Values.FIRST, Values.OPPOSITE)
    )
    for one, two in zip(first.private["bob"], other.private["bob"], strict=True):
        assert one.dtype == two.dtype
    total = [e.private["alice"][0] + e.private["bob"][0] for e in (first, other)]
    assert torch.equal(*total)
    assert not torch.equal(first.private["bob"][0], other.private["bob"][0])


@pytest.mark.slow
def test_random_sequences() -> None:
    """A thousand random sequences of requests leak nothing that judges find."""
    assert sequences.search(1_000) is None


@pytest.mark.slow
def test_random_sequences_at_an_owner() -> None:
    """Random sequences of operators look the same whatever the values."""
    assert owner_sequences.search(500) is None


def test_random_sequences_at_an_owner_find_what_shows() -> None:
    """Where failures show, sequences that tell worlds apart are found."""
    off = frozenset(("owner: silent operators",))
    assert owner_sequences.search(500, off) is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    "off",
    [FEW, ("audit: atoms",), ("owner: fetch", "gate: reply"), ("sums: only",)],
    ids=lambda off: off[0],
)
def test_random_sequences_find_leaks(off: tuple[str, ...]) -> None:
    """With rules off, sequences that leak are found."""
    assert sequences.search(1_000, frozenset(off)) is not None
