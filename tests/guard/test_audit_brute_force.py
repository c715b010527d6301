"""Decisions on random requests, against trying everything."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from obhut.guard.audit import Auditor
from obhut.guard.policy import Quorum
from obhut.guard.release import Atom, Release

from .brute_force import dominated, least_rest, lightest, rank
from .conftest import TODAY, quorum

EXAMPLES = int(os.environ.get("OBHUT_GUARD_EXAMPLES", "1000"))
"""Random histories in a run; 10,000 before a release of the package."""

NAMES = ("a", "b", "c", "d", "e", "f", "g", "stranger")

CLAUSES = st.fixed_dictionaries(
    {
        "honest": st.sampled_from((2, 2, 2, 1, 3)),
        "colluders": st.sampled_from((0, 1, 1, 2)),
        "p_percent": st.sampled_from((25, 100, 100, 150)),
        "contributors": st.sampled_from((NAMES[:7], NAMES[:7], NAMES[:6], NAMES[1:7])),
    }
).filter(lambda one: 2 <= one["honest"] + one["colluders"] <= 4)

WEIGHT = st.one_of(
    st.just(Fraction(1)),
    st.just(Fraction(1)),
    st.sampled_from([Fraction(x) for x in ("0", "1/2", "1/3", "2", "-1", "1.01")]),
)


@st.composite
def histories(draw: st.DrawFn) -> tuple[dict[str, Quorum], list[dict[Atom, Fraction]]]:
    """Draw policies by name, and requests: fresh cohorts, old ones, odd ones."""
    common = quorum(**draw(CLAUSES))
    own = draw(
        st.one_of(
            st.just({}),
            st.dictionaries(
                st.sampled_from(NAMES), CLAUSES.map(lambda c: quorum(**c)), max_size=2
            ),
        )
    )
    policies = dict.fromkeys((*NAMES, "hub"), common) | own
    among = st.sampled_from(NAMES if draw(st.integers(0, 3)) == 0 else NAMES[:7])
    requests = []
    for number in range(draw(st.integers(1, 7))):
        owners = draw(st.lists(among, min_size=2, max_size=7, unique=True))
        terms: dict[Atom, Fraction] = {}
        for owner in owners:
            fresh = draw(st.integers(0, 9)) > 0
            terms[Atom(owner, str(number if fresh else 0))] = draw(WEIGHT)
        if draw(st.integers(0, 5)) == 0:
            terms[Atom(owners[0], "again")] = draw(WEIGHT)
        requests.append(terms)
        if draw(st.integers(0, 3)) == 0:
            factor = draw(st.sampled_from([Fraction(1), Fraction(-3, 2)]))
            requests.append({atom: factor * x for atom, x in terms.items()})
    return policies, requests


@dataclass
class Judge:
    """The rule of release, decided by trying everything."""

    policies: dict[str, Quorum]
    rows: list[dict[str, Fraction]] = field(default_factory=list)
    views: list[tuple[frozenset[str], int, int, int]] = field(default_factory=list)
    first: dict[Atom, dict[Atom, Fraction]] = field(default_factory=dict)

    def counted(self, whose: str) -> frozenset[str]:
        """Return whom a policy counts."""
        listed = frozenset(self.policies[whose].contributors)
        return listed if whose == "hub" else listed | {whose}

    def new_views(
        self, terms: dict[Atom, Fraction]
    ) -> list[tuple[frozenset[str], int, int, int]]:
        """Return the views that a request brings."""
        every = sorted({atom.owner for atom in terms} | {"hub"})
        found = [
            (
                self.counted(one),
                self.policies[one].honest + self.policies[one].colluders,
                max(
                    self.policies[one].colluders,
                    self.policies[one].honest + self.policies[one].colluders - 2,
                ),
                self.policies[one].p_percent,
            )
            for one in every
        ]
        colluders = max(self.policies[one].colluders for one in every)
        needed = max(self.policies[one].honest for one in every) + colluders
        together = (
            frozenset.intersection(*(self.counted(one) for one in every)),
            needed,
            max(colluders, needed - 2),
            max(self.policies[one].p_percent for one in every),
        )
        return [*found, together]

    def passes(
        self,
        rows: list[dict[str, Fraction]],
        views: list[tuple[frozenset[str], int, int, int]],
    ) -> bool:
        """Tell whether rows obey both rules in all views."""
        for contributors, needed, colluders, percent in set(views):
            names = sorted(contributors)
            matrix = [[row.get(name, Fraction(0)) for name in names] for row in rows]
            if lightest(matrix) < needed or dominated(matrix, colluders, percent):
                return False
        return True

    def expected(self, terms: dict[Atom, Fraction]) -> bool:
        """Return whether a request is permitted."""
        used = {atom: x for atom, x in terms.items() if x}
        sums: dict[str, Fraction] = {}
        for atom, x in used.items():
            sums[atom.owner] = sums.get(atom.owner, Fraction(0)) + x
        if not used or 0 in sums.values():
            return False
        *_, (contributors, needed, _, _) = self.new_views(terms)
        if len(contributors & {atom.owner for atom in used}) < needed:
            return False
        for atom, value in used.items():
            before = self.first.get(atom)
            if before is not None:
                factor = value / before[atom]
                if {one: factor * x for one, x in before.items()} != used:
                    return False
        return self.passes([*self.rows, sums], [*self.views, *self.new_views(terms)])

    def take(self, terms: dict[Atom, Fraction]) -> None:
        """Take a permitted request into account."""
        used = {atom: x for atom, x in terms.items() if x}
        row: dict[str, Fraction] = {}
        for atom, x in used.items():
            row[atom.owner] = row.get(atom.owner, Fraction(0)) + x
            self.first.setdefault(atom, used)
        self.rows.append(row)
        self.views.extend(self.new_views(terms))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(histories())
def test_decisions_are_those_of_trying_everything(history):
    """Each random request is permitted exactly if brute force permits it."""
    policies, requests = history
    auditor = Auditor("hub", policies["hub"])
    judge = Judge(policies)
    for terms in requests:
        owners = {atom.owner for atom in terms}
        release = Release("me", terms, {one: policies[one] for one in owners})
        decision = auditor.decide(release, TODAY)
        assert decision == auditor.decide(release, TODAY)
        assert decision.permits == judge.expected(terms), (decision, terms)
        auditor.record(release, decision)
        if decision.permits:
            judge.take(terms)


@settings(
    max_examples=EXAMPLES // 20, deadline=None, suppress_health_check=list(HealthCheck)
)
@given(histories())
def test_no_program_singles_an_owner_out(history):
    """After any permitted history, a solver finds no sum over too few, none skewed.

    Ranks tell whether an owner's unit vector is in the span, and linear programs how
    little can remain beside an owner.
    """
    policies, requests = history
    common = policies["hub"]
    auditor = Auditor("hub", common)
    names = sorted(common.contributors)
    rows = []
    for terms in requests:
        release = Release("me", terms, dict.fromkeys(NAMES, common))
        decision = auditor.decide(release, TODAY)
        auditor.record(release, decision)
        if decision.permits:
            rows.append(
                [
                    sum(
                        (x for atom, x in terms.items() if atom.owner == name),
                        Fraction(0),
                    )
                    for name in names
                ]
            )
    for place in range(len(names)):
        unit = [Fraction(int(place == other)) for other in range(len(names))]
        assert not rows or rank([*rows, unit]) == rank(rows) + 1
    assert lightest(rows) >= common.quorum if rows else True
    assert least_rest(rows, common.left_out) >= common.p_percent / 100 - 1e-7
