"""Runs attacks and judges them: with all rules on, and with some off.

Rules:

- An attack at L0 must be stopped while all rules are on, and must get through while
  those that stop it are off. Where several stop it, each of them is enough.
- Whether it gets through is for the judges alone.
- With all rules on, at any level, a worker without data reproduces what each owner's
  worker has answered.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from . import claims, comparison, crashing, running, solver
from .attack import Attack, Level
from .canaries import Canaries
from .private_data import Values
from .stage import Evidence

_WORLDS = (Values.OTHER, Values.ODD)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What became of an attack.

    Attributes:
        attack: which one.
        on: what judges found with all rules on.
        off: the first that they found with those off that stop it.
        single: likewise with one off, of several, by rule.
        refused: what refused something while all rules were on.
        unlike: where an owner's worker said what one without data does not.
    """

    attack: Attack
    on: tuple[str, ...]
    off: tuple[str, ...]
    single: dict[str, tuple[str, ...]] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    unlike: tuple[str, ...] = ()

    @property
    def problem(self) -> str:
        """What is wrong with the attack or what it attacks; empty if nothing is."""
        attack = self.attack
        if self.unlike:
            return f"low alone answers otherwise: {self.unlike[0]}"
        if attack.finding or attack.level is not Level.L0:
            return "" if self.on else "it does not get through, although it should"
        if self.on:
            return f"it gets through: {self.on[0]}"
        if not attack.rules:
            return "it names no rule"
        if not self.off:
            return f"it does not get through with {' and '.join(attack.rules)} off"
        for rule, found in self.single.items():
            if found:
                return f"it gets through with {rule} off alone: {found[0]}"
        if attack.refused and attack.refused not in self.refused:
            said = ", ".join(self.refused) or "nothing"
            return f"it was told {said} and not {attack.refused}"
        return ""


def judge(attack: Attack) -> Judgement:
    """Run an attack, with rules on and off, and return what was found."""
    # For nothing: what PyTorch keeps from a first time lets names go at another one.
    run(attack, frozenset())
    first = run(attack, frozenset())
    on = tuple(found(attack, frozenset(), first))
    unlike = tuple(running.differing(first, run(attack, frozenset(), Values.ODD)))
    if attack.level is not Level.L0 or attack.finding:
        return Judgement(attack, on, (), unlike=unlike)
    off = tuple(islice(found(attack, frozenset(attack.rules)), 1))
    single = {}
    if len(attack.rules) > 1:
        for rule in attack.rules:
            single[rule] = tuple(islice(found(attack, frozenset((rule,))), 1))
    return Judgement(attack, on, off, single, tuple(first.refused), unlike)


def found(
    attack: Attack, off: frozenset[str], first: Evidence | None = None
) -> Iterator[str]:
    """Run an attack and yield what judges find.

    Args:
        attack: the attack.
        off: the rules that are off.
        first: what was seen in the first world, if that is known.
    """
    first = first or run(attack, off)
    for alarm in Canaries(first).alarms(first):
        yield f"canaries: {alarm}"
        break
    yield from (f"solver: {alarm}" for alarm in solver.alarms(first))
    yield from (f"claims: {alarm}" for alarm in claims.alarms(first))
    worlds = (*_WORLDS, Values.OPPOSITE) if attack.opposite else _WORLDS
    for world in worlds:
        strict = world is Values.OPPOSITE
        other = run(attack, off, world)
        for alarm in comparison.alarms(first, other, strict=strict):
            yield f"twins, {world.value}: {alarm}"


def run(attack: Attack, off: frozenset[str], world: Values = Values.FIRST) -> Evidence:
    """Run an attack once and return all that judges look at."""
    if attack.forked:
        return crashing.run(attack.name, off, world)
    return running.run(attack, off, world)
