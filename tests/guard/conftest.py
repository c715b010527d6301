"""An aggregator's auditor, and how to ask it in few words."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from fractions import Fraction

import pytest

from obhut.guard.audit import ALL, Auditor
from obhut.guard.policy import Policy, Quorum
from obhut.guard.release import Atom, Decision, Release

TODAY = datetime.date(2027, 1, 1)

OWNERS = ("alice", "bob", "carol", "dave", "erin")


def quorum(**changed: object) -> Quorum:
    """Return a policy of all owners, with some clauses changed.

    It compares no programs: most tests ask about coefficients, and releases that they
    write down were computed by nobody.
    """
    clauses = {
        "aggregators": ("hub",),
        "contributors": OWNERS,
        "requesters": ("me",),
        "programs": "any",
        **changed,
    }
    return Quorum(**clauses)


class Aggregator:
    """What releases go through; atoms are written ``alice.1``."""

    def __init__(
        self,
        policy: Quorum | None = None,
        policies: Mapping[str, Policy] | None = None,
        off: tuple[str, ...] = (),
        **more: object,
    ) -> None:
        self.policy = policy or quorum()
        self.policies = dict.fromkeys(OWNERS, self.policy) | dict(policies or {})
        self.auditor = Auditor("hub", self.policy, rules=ALL - set(off), **more)
        self.today = TODAY

    def release(self, requester: str = "me", **terms: object) -> Release:
        """Return a request; a term is ``alice_1="1/3"``."""
        atoms = {
            Atom(*name.rsplit("_", 1)): Fraction(value) for name, value in terms.items()
        }
        policies = {
            atom.owner: self.policies[atom.owner]
            for atom in atoms
            if atom.owner in self.policies
        }
        return Release(requester, atoms, policies)

    def ask(self, requester: str = "me", **terms: object) -> Decision:
        """Decide about a request, and record the decision."""
        return self.take(self.release(requester, **terms))

    def take(self, release: Release) -> Decision:
        """Decide about a request that is made, and record the decision."""
        decision = self.auditor.decide(release, self.today)
        self.auditor.record(release, decision)
        return decision


Hub = Callable[..., Aggregator]


@pytest.fixture
def hub() -> Hub:
    """Return what makes an aggregator, of these rules and policies."""
    return Aggregator
