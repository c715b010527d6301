"""Whether a release may leave, given all that has left before: the rule of release.

::

    auditor = Auditor("sw", policy)
    decision = auditor.decide(release, today)    # changes nothing
    auditor.record(release, decision)            # from now on it counts

Two audits must pass, over all releases so far and this one.

- *Owners.* A release's row is, by owner, the sum of the coefficients of what they
  delivered: the same update can come again under a new key. In the space that all rows
  span, no vector has fewer than K owners in it (``distance``), and in none does one
  owner outweigh the others (``p_percent``).
- *Atoms.* After its first release a delivered tensor leaves only in that combination,
  or a multiple of it. Else a1 + b + c and then a2 + b + c, which is one row of owners
  twice, would give a1 - a2.

Rules:

- Deny is the default. A permit rests on exact arithmetic.
- Owners whom a view does not name are counted as colluders: what they delivered is
  taken to be known, and their columns fall out.
- Each policy that ever took part is a *view* of its own, and so is the strictest of
  those that meet in a release. All views must hold, for all releases: an owner's rule
  stays true when others come later. A view is asked about all vectors, also those
  without the owner whose policy it is: known values of others would leave it alone in
  a sum. This is stricter than it would have to be.
- What owners deliver leaves in one kind only, clipped to one norm: the difference of a
  mean and a trimmed mean is what was trimmed, which is single owners'.
- ``decide`` changes nothing; what was decided counts once it is recorded.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from . import coefficients, refusals
from .distance import checkable, light
from .kinds import parse
from .p_percent import excess
from .policy import SAME, Quorum, Terms, counted, strictest
from .provenance import UNKNOWN, alike
from .release import Atom, Decision, Release
from .row_space import Block, Row, RowSpace, primitive

ALL = frozenset(
    {
        "aggregator",
        "requester",
        "expired",
        "coefficients",
        "quorum",
        "program",
        "kind",
        "atoms",
        "owners",
        "p-percent",
    }
)
"""The rules by name. A policy can not leave one out."""

Combination: TypeAlias = tuple[tuple[Atom, int], ...]
"""A sum over atoms up to a factor, as integers that share none, the first positive."""

Form: TypeAlias = tuple[str, float | None]
"""In which kind of release something leaves, and clipped to which norm."""


@dataclass(frozen=True, slots=True)
class Told:
    """In which combination tensors left, in short.

    A combination has as many parts as it has tensors, each of which refers to it here.

    Attributes:
        digest: of the combination; no two have the same.
        owners: whose tensors are in it, in order.
    """

    digest: bytes
    owners: tuple[str, ...]

    @classmethod
    def of(cls, combination: Combination) -> Told:
        """Return what stands for a combination."""
        digest = hashlib.sha256(repr(combination).encode()).digest()
        return cls(digest, tuple(dict.fromkeys(atom.owner for atom, _ in combination)))


Key: TypeAlias = tuple[tuple[str, int], ...]
"""A row up to a factor."""


@dataclass(frozen=True, slots=True)
class View:
    """How somebody's policy looks at the owners.

    Attributes:
        contributors: the owners who are taken for different people.
        quorum: how many of them each vector must have.
        left_out: how many of a vector's heaviest others the p%-rule leaves out.
        p_percent: what the rest must weigh, in percent of one.
    """

    contributors: frozenset[str]
    quorum: int
    left_out: int
    p_percent: int

    @classmethod
    def of(cls, terms: Terms) -> View:
        """Return the view of several policies together."""
        return cls(terms.contributors, terms.quorum, terms.left_out, terms.p_percent)

    def project(self, row: Row) -> Row:
        """Return a row as it is when the owners who are not named are known."""
        return {one: x for one, x in row.items() if one in self.contributors}


class Auditor:
    """All that has left an aggregator, and what may leave next.

    Args:
        aggregator: whose releases these are.
        policy: the aggregator's own, obeyed as if it were an owner's.
        name: how refusals call a principal.
        rules: those that are looked at. All of them, but for tests that show what each
            is for.
    """

    def __init__(
        self,
        aggregator: str,
        policy: Quorum,
        name: Callable[[str], str] = str,
        *,
        rules: frozenset[str] = ALL,
    ) -> None:
        self._aggregator = aggregator
        self._policy = policy
        self._name = name
        self._rules = rules
        self._spaces: Mapping[View, RowSpace] = {}
        self._rows: dict[Key, Row] = {}
        self._told: dict[str, dict[Atom, Told]] = {"values": {}, "count": {}}
        self._form_of: dict[str, Form] = {}
        self._last: tuple[_Question, Mapping[View, RowSpace]] | None = None

    def decide(self, release: Release, today: datetime.date) -> Decision:
        """Return whether a release may leave; change nothing.

        Duty: write the decision to the ledger, then ``record`` it, then let it leave,
        and decide about no other release in between.
        """
        request = _Question(self._aggregator, self._policy, release)
        found = self._admitted(request, today) or self._summed(request)
        if found is not None:
            return Decision(False, *found)
        spaces, wrong = self._audited(self._spaces, self._views(request), request.row)
        if wrong is not None:
            rule, problem = wrong
            text = refusals.audit(problem, request.sums, self._name)
            return Decision(False, rule, text)
        self._last = (request, spaces)
        return Decision(True, "all", refusals.permit(request.sums, self._name))

    def record(self, release: Release, decision: Decision) -> None:
        """Take a decision into account; that of a refusal changes nothing.

        Duty: the caller has written it to the ledger.
        """
        if not decision.permits:
            return
        spaces: Mapping[View, RowSpace]
        if self._last is not None and self._last[0].release is release:
            request, spaces = self._last
        else:
            request = _Question(self._aggregator, self._policy, release)
            spaces = self._extended(self._spaces, self._views(request), request.row)
        self._rows.setdefault(_key(request.row), request.row)
        self._spaces = spaces
        for what in request.tells:
            told = self._told[what]
            for atom, _ in request.combination:
                told.setdefault(atom, request.told)
        if release.kind != "count":
            for owner in request.sums:
                self._form_of.setdefault(owner, request.form)
        self._last = None

    # --- rules that look at one release ---

    def _admitted(
        self, request: _Question, today: datetime.date
    ) -> tuple[str, str] | None:
        """Return why a request is refused whatever it sums, if it is."""
        for whose, policy in sorted(request.policies.items()):
            if (
                "aggregator" in self._rules
                and self._aggregator not in policy.aggregators
            ):
                return "aggregator", refusals.aggregator(
                    self._aggregator, whose, policy, self._name
                )
            requester = request.release.requester
            if "requester" in self._rules and requester not in policy.requesters:
                return "requester", refusals.requester(
                    requester, whose, policy, self._name
                )
            expires = policy.expires
            if "expired" in self._rules and expires is not None and today > expires:
                return "expired", refusals.expired(whose, expires, self._name)
        return None

    def _summed(self, request: _Question) -> tuple[str, str] | None:
        """Return why a sum is refused by itself, or for its atoms, if it is."""
        if "coefficients" in self._rules:
            for owner, value in request.written():
                if not coefficients.fits(value):
                    return "coefficients", refusals.coefficient(owner, self._name)
        terms = request.terms
        if "quorum" in self._rules:
            counted = terms.contributors.intersection(request.sums)
            if len(counted) < terms.quorum:
                return "quorum", refusals.quorum(request.sums, terms, self._name)
        if "program" in self._rules and terms.programs == SAME:
            problem = self._programs(request)
            if problem is not None:
                return "program", problem
        if "kind" in self._rules:
            problem = self._kind(request)
            if problem is not None:
                return "kind", problem
        if "atoms" in self._rules:
            now = request.told
            for what in request.tells:
                told = self._told[what]
                for atom, _ in request.combination:
                    before = told.get(atom, now)
                    if before is not now and before.digest != now.digest:
                        return "atoms", refusals.atoms(
                            atom.owner, before.owners, self._name
                        )
        if "owners" in self._rules:
            for owner, value in request.sums.items():
                if value == 0:
                    return "owners", refusals.cancelled(owner, self._name)
        return None

    def _programs(self, request: _Question) -> str | None:
        """Return why a sum of what different computations made is refused, if it is."""
        made = request.release.digests
        digests = [made.get(atom, UNKNOWN) for atom, _ in request.combination]
        if not digests or alike(digests):
            return None
        by_owner: dict[str, list[bytes]] = {}
        for (atom, _), one in zip(request.combination, digests, strict=True):
            by_owner.setdefault(atom.owner, []).append(one)
        silent = [
            whose
            for whose in by_owner
            if (policy := request.policies.get(whose)) is None
            or policy.programs != SAME
        ]
        return refusals.programs(by_owner, silent, self._name)

    def _kind(self, request: _Question) -> str | None:
        """Return why the kind of a release is refused, if it is."""
        asked = request.release
        kind = parse(asked.kind)
        if kind is None:
            return refusals.unknown_kind(asked.kind)
        if kind.traits.weighted:
            return self._reshaped(request)
        if any(x != 1 for x in asked.terms.values()):
            return refusals.not_ones(asked.kind)
        if not kind.traits.values:
            return None
        if len(asked.terms) > len(request.sums):
            return refusals.twice(asked.kind)
        terms, trimmed = request.terms, 2 * kind.trim
        counted = len(terms.contributors.intersection(request.sums))
        if counted - trimmed < terms.quorum:
            return refusals.trimmed(counted, trimmed, terms.quorum)
        return self._reshaped(request)

    def _reshaped(self, request: _Question) -> str | None:
        for owner in request.sums:
            before = self._form_of.get(owner, request.form)
            if before != request.form:
                return refusals.form(owner, before, request.form, self._name)
        return None

    # --- rules that look at all releases ---

    def _views(self, request: _Question) -> list[View]:
        """Return the views that concern a release: of each policy, and of all."""
        views = [View.of(request.terms)]
        for whose, policy in request.policies.items():
            views.append(
                View(
                    counted(whose, policy),
                    policy.quorum,
                    policy.left_out,
                    policy.p_percent,
                )
            )
        return list(dict.fromkeys(views))

    def _extended(
        self,
        spaces: Mapping[View, RowSpace],
        views: Iterable[View],
        row: Row,
    ) -> dict[View, RowSpace]:
        """Return the spaces of all views with one more row, unchecked."""
        extended = {
            view: space.plus(view.project(row))[0] for view, space in spaces.items()
        }
        for view in views:
            if view not in extended:
                extended[view] = self._replayed(view).plus(view.project(row))[0]
        return extended

    def _replayed(self, view: View) -> RowSpace:
        """Return the space of all releases so far, as a new view sees it."""
        space = RowSpace()
        for row in self._rows.values():
            space, _ = space.plus(view.project(row))
        return space

    def _audited(
        self,
        spaces: Mapping[View, RowSpace],
        views: Iterable[View],
        row: Row,
    ) -> tuple[Mapping[View, RowSpace], tuple[str, refusals.Problem] | None]:
        """Return the spaces with one more row, and what is wrong in them."""
        added = [view for view in views if view not in spaces]
        if not added and _key(row) in self._rows:
            return spaces, None
        extended = dict(spaces)
        for view in (*spaces, *added):
            seen = view.project(row)
            if view in spaces:
                space, changed = spaces[view].plus(seen)
            else:
                space, _ = self._replayed(view).plus(seen)
                changed = space.blocks
            found = self._wrong(view, seen, changed)
            if found is not None:
                return spaces, found
            extended[view] = space
        return extended, None

    def _wrong(
        self, view: View, row: Row, blocks: tuple[Block, ...]
    ) -> tuple[str, refusals.Problem] | None:
        """Return what is wrong with blocks that a row has made new, if anything is."""
        if "owners" in self._rules:
            if 0 < len(row) < view.quorum:
                return "owners", refusals.Problem(view, frozenset(row))
            for block in blocks:
                if not checkable(block, view.quorum - 1):
                    return "owners", refusals.Problem(view, frozenset(block.owners))
            few = light(blocks, view.quorum - 1)
            if few is not None:
                return "owners", refusals.Problem(view, few)
        if "p-percent" in self._rules:
            heavy = excess(blocks, view.left_out, view.p_percent)
            if heavy is not None:
                return "p-percent", refusals.Problem(view, frozenset(), heavy)
        return None


class _Question:
    """A release, with what all rules need of it."""

    def __init__(self, aggregator: str, policy: Quorum, release: Release) -> None:
        self.release = release
        atoms = {atom: x for atom, x in release.terms.items() if x}
        sums: dict[str, Fraction] = {}
        for atom, x in atoms.items():
            sums[atom.owner] = sums.get(atom.owner, Fraction(0)) + x
        self.sums = sums
        self.row: Row = primitive(sums)
        self.combination: Combination = tuple(sorted(primitive(atoms).items()))
        self.told = Told.of(self.combination)
        self.tells = ["count" if release.kind == "count" else "values"]
        if release.kind == "sum" and all(x == 1 for _, x in self.combination):
            # How many were not finite is told beside it, and is the same sum.
            self.tells.append("count")
        self.policies = {aggregator: policy}
        for whose in sorted({atom.owner for atom in release.terms}):
            theirs = release.policies.get(whose)
            if isinstance(theirs, Quorum) and whose != aggregator:
                self.policies[whose] = theirs
        self.terms = strictest(self.policies)
        self.form: Form = (release.kind, self.terms.clip_norm)

    def written(self) -> Iterator[tuple[str, Fraction]]:
        """Yield the coefficients, of atoms and of owners, each with its owner."""
        for atom, x in self.release.terms.items():
            yield atom.owner, x
        yield from self.sums.items()


def _key(row: Row) -> Key:
    return tuple(sorted(row.items()))
