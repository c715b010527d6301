"""What is printed of attacks: rule by rule, what shows that the rule is needed."""

# ruff: noqa: T201
# It is what a command prints.

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from .attack import Level
from .catalogue import ATTACKS
from .rules import RULES, Need, Rule
from .suite import Judgement, judge


def run(names: Sequence[str] = ()) -> int:
    """Run attacks and print what became of them; return how much is wrong."""
    unknown = [name for name in names if name not in ATTACKS]
    if unknown:
        print(f"no attack is called {unknown[0]!r}; there are: {', '.join(ATTACKS)}")
        return len(unknown)
    verdicts = {name: judge(ATTACKS[name]) for name in names or ATTACKS}
    wrong = 0
    if not names:
        for rule in RULES.values():
            wrong += _print_rule(rule, verdicts)
    _print_higher(verdicts.values())
    for verdict in verdicts.values():
        if names and not verdict.problem:
            print(f"{verdict.attack.name}: {_became(verdict)}")
        if verdict.problem:
            wrong += 1
            print(f"WRONG  {verdict.attack.name}: {verdict.problem}")
    _print_summary(verdicts.values(), wrong)
    return wrong


def proofs(rule: Rule, verdicts: Mapping[str, Judgement]) -> list[Judgement]:
    """Return the attacks that show what a rule is for."""
    shown = [
        verdict
        for verdict in verdicts.values()
        if rule.name in verdict.attack.rules and verdict.off and not verdict.problem
    ]
    if rule.proof is Need.ALONE:
        return [one for one in shown if one.attack.rules == (rule.name,)]
    return shown


def _print_rule(rule: Rule, verdicts: Mapping[str, Judgement]) -> int:
    print(f"{rule.name}: {rule.says}")
    if rule.proof is Need.NONE:
        print("    nothing leaks without it")
        return 0
    shown = proofs(rule, verdicts)
    for verdict in shown:
        others = [name for name in verdict.attack.rules if name != rule.name]
        beside = f", with {' and '.join(others)}" if others else ""
        print(f"    {verdict.attack.name}: {verdict.attack.tries}")
        print(f"        on:  {_refused(verdict)}")
        print(f"        off{beside}: {verdict.off[0][:120]}")
    if not shown:
        print("    WRONG  no attack shows what it is for")
    return not shown


def _refused(verdict: Judgement) -> str:
    if not verdict.refused:
        return "nothing shows"
    return f"nothing leaks; told: {', '.join(verdict.refused)}"


def _became(verdict: Judgement) -> str:
    if verdict.attack.finding or verdict.attack.level is not Level.L0:
        return f"gets through: {verdict.on[0]}"
    return f"{_refused(verdict)}; off: {verdict.off[0]}"


def _print_higher(verdicts: Iterable[Judgement]) -> None:
    for verdict in verdicts:
        attack = verdict.attack
        if attack.finding and verdict.on:
            print(f"KNOWN  {attack.name} gets through: {attack.finding}")
        elif attack.level is not Level.L0 and verdict.on:
            print(
                f"needs {attack.level}: {attack.name} gets through, as "
                f"docs/claims.md says: {attack.tries}"
            )


def _print_summary(verdicts: Iterable[Judgement], wrong: int) -> None:
    counts = Counter(str(verdict.attack.level) for verdict in verdicts)
    each = ", ".join(f"{number} at {level}" for level, number in sorted(counts.items()))
    print(f"{sum(counts.values())} attacks ({each}); {wrong or 'nothing'} wrong")
