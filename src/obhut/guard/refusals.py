"""What a refusal says: the rule, who takes part and how, and what would be allowed.

Rule: nothing is said that depends on a value. Coefficients, names, policies and past
releases are what the requester wrote or may know.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, TypeAlias

from .p_percent import Excess
from .policy import Quorum, Terms
from .provenance import UNKNOWN

if TYPE_CHECKING:
    from .audit import View

Namer: TypeAlias = Callable[[str], str]

SHOWN = 8
"""How many participants are named."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with all releases together.

    Attributes:
        view: whose rule it breaks.
        few: the owners who are too few.
        excess: the owner who weighs too much.
    """

    view: View
    few: frozenset[str]
    excess: Excess | None = None


def permit(sums: Mapping[str, Fraction], name: Namer) -> str:
    """Return what was permitted."""
    return f"a sum over {_weighted(sums, name)}"


def aggregator(here: str, whose: str, policy: Quorum, name: Namer) -> str:
    """Return the refusal of an aggregator that a policy does not name."""
    allowed = _listed(policy.aggregators, name, "or")
    return f"{name(whose)}'s policy lets sums leave {allowed} only, not {name(here)}"


def requester(who: str, whose: str, policy: Quorum, name: Namer) -> str:
    """Return the refusal of a requester whom a policy does not name."""
    allowed = _listed(policy.requesters, name, "or") or "nobody"
    return f"{name(whose)}'s policy lets {allowed} ask for releases, not {name(who)}"


def expired(whose: str, day: datetime.date, name: Namer) -> str:
    """Return the refusal after a policy's last day."""
    return f"{name(whose)}'s policy ended on {day.isoformat()}; ask them for a new one"


def coefficient(owner: str, name: Namer) -> str:
    """Return the refusal of a coefficient that is too long."""
    return (
        f"{name(owner)}'s coefficient needs more than 32 bits; use weights that are "
        "fractions of small numbers, such as 1/3 or counts of rows"
    )


def quorum(sums: Mapping[str, Fraction], terms: Terms, name: Namer) -> str:
    """Return the refusal of a sum over too few owners."""
    named = {one: x for one, x in sums.items() if one in terms.contributors}
    what = (
        f"this is a sum over {_weighted(sums, name)}" if sums else "this sums nobody's"
    )
    strangers = sorted(set(sums) - set(named))
    if strangers:
        what += f", of whom {_listed(strangers, name)} is not named by all policies"
    others = sorted(terms.contributors - set(named))
    if len(terms.contributors) < terms.quorum:
        remedy = (
            "the policies concerned have only "
            f"{_listed(sorted(terms.contributors), name) or 'nobody'} in common: their "
            "owners must name more"
        )
    else:
        missing = terms.quorum - len(named)
        remedy = f"add {missing} of {_listed(others, name, 'and')}"
        if missing == 1:
            remedy = f"add {_listed(others, name, 'or')}"
    return f"{terms.quorum} owners are needed, and {what}; {remedy}"


def atoms(owner: str, before: Sequence[str], name: Namer) -> str:
    """Return the refusal of a delivered tensor in a second combination."""
    return (
        f"what {name(owner)} delivered was released before, in a sum with "
        f"{_listed(sorted(set(before) - {owner}), name)}; it may leave again in that "
        "combination and with those weights only: deliver anew for another"
    )


def programs(
    made: Mapping[str, Sequence[bytes]], silent: Sequence[str], name: Namer
) -> str:
    """Return the refusal of contributions that different computations made.

    Args:
        made: digests of what was delivered, by owner; empty where one is not known.
        silent: the owners whose workers say nothing of it.
        name: how to call a principal.
    """
    needed = "what owners add up must come from the same computation at each of them"
    if silent:
        whose = _listed(sorted(silent), name)
        return (
            f"{needed}, and nothing is said of what {whose} delivered: each owner's "
            'policy must say programs = "same"'
        )
    unknown = sorted(owner for owner, every in made.items() if UNKNOWN in every)
    if unknown:
        return (
            f"{needed}, and nobody can tell what made what {_listed(unknown, name)} "
            "delivered: it depends on random numbers that nobody seeded, on rows that "
            "were written into, or on a tensor that was written through .data before "
            "backward(); seed inside `with worker:`, and write x = x * 2 for x *= 2"
        )
    common = Counter(one for every in made.values() for one in set(every))
    (usual, times), *_ = common.most_common()
    others = sorted(owner for owner, every in made.items() if set(every) != {usual})
    remedy = (
        "run the same code with the same numbers, models, seeds and steps at each "
        "owner, on their own rows by the same names, and what depends on how many "
        "there are as a program (obhut.program)"
    )
    if times < 2 or not others:
        return f"{needed}, and no two of these do; {remedy}"
    return f"{needed}, and {_listed(others, name)} computed something else; {remedy}"


def not_ones(kind: str) -> str:
    """Return the refusal of weights where there are none."""
    return f"a {kind} has no weights; leave them out, or ask for a sum"


def unknown_kind(kind: str) -> str:
    """Return the refusal of another way to combine contributions."""
    return (
        f"{kind[:40]!r} is no way in which contributions may leave; ask for their sum, "
        "weighted or not, or a trimmed mean"
    )


def twice(kind: str) -> str:
    """Return the refusal of several tensors of one owner."""
    return f"a {kind} takes one tensor of each owner; sum over what they deliver"


def trimmed(owners: int, left_out: int, quorum: int) -> str:
    """Return the refusal of a mean that is trimmed too much."""
    return (
        f"{quorum} owners are needed in each element of a trimmed mean, and "
        f"{left_out} of {owners} are left out; add owners, or trim less"
    )


def form(
    owner: str,
    before: tuple[str, float | None],
    now: tuple[str, float | None],
    name: Namer,
) -> str:
    """Return the refusal of another kind, or another norm, than before."""

    def said(one: tuple[str, float | None]) -> str:
        kind, norm = one
        return (
            f"in a {kind}, {'not clipped' if norm is None else f'clipped to {norm:g}'}"
        )

    return (
        f"what {name(owner)} delivered left {said(before)}, and this would be "
        f"{said(now)}; the difference would single owners out: stay with the first"
    )


def cancelled(owner: str, name: Namer) -> str:
    """Return the refusal of contributions of one owner that cancel each other."""
    return (
        f"what {name(owner)} delivered has coefficients that add up to 0, which hides "
        "a difference between two of their tensors; let the owner subtract, and sum "
        "what is delivered then"
    )


def audit(problem: Problem, sums: Mapping[str, Fraction], name: Namer) -> str:
    """Return the refusal of a sum for what it tells together with earlier ones."""
    if problem.excess is not None:
        return _outweighs(problem, problem.excess, sums, name)
    view = problem.view
    needed = f"{view.quorum} owners are needed"
    if len(problem.few) >= view.quorum:
        return (
            f"{needed} in whatever releases tell together, and those over "
            f"{_listed(sorted(problem.few), name)} are too many to check; use the same "
            "weights as before, or a new aggregator"
        )
    named = {one for one in sums if one in view.contributors}
    few = _listed(sorted(problem.few), name)
    if problem.few == named:
        return (
            f"{needed}, and of {_weighted(sums, name)} only {few} count as different "
            "people by the policies; add more of those whom all of them name"
        )
    return (
        f"{needed}; from this sum over {_weighted(sums, name)} and earlier releases "
        f"one over {few} alone could be computed; use the owners and weights of an "
        "earlier release, or owners who were in none"
    )


def _outweighs(
    problem: Problem, found: Excess, sums: Mapping[str, Fraction], name: Namer
) -> str:
    view, owner = problem.view, found.owner
    without = f" without the {view.left_out} heaviest" if view.left_out else ""
    least = f"the others{without} must weigh at least {view.p_percent} % of any owner"
    if found.row is None:
        return (
            f"{least}, in whatever this sum over {_weighted(sums, name)} and earlier "
            "releases tell together, and that could not be shown; use the owners and "
            "weights of an earlier release"
        )
    own = {one: x for one, x in sums.items() if one in found.row}
    scale = own[owner] / found.row[owner] if owner in own else Fraction(0)
    row = {one: Fraction(x) for one, x in found.row.items()}
    if {one: scale * x for one, x in row.items()} == {
        one: x for one, x in sums.items() if one in view.contributors
    }:
        cap = abs(scale) * found.cap
        reduce = f"at most {cap} beside these others" if cap else "add more owners"
        return (
            f"{least}, and {name(owner)}'s weight {own[owner]} is more than what "
            f"{_weighted(sums, name)} allows: {reduce}"
        )
    return (
        f"{least}; from this sum over {_weighted(sums, name)} and earlier releases "
        f"{_weighted(row, name)} could be computed, in which {name(owner)} outweighs "
        f"the others (at most {found.cap} would do); use the owners and weights of an "
        "earlier release"
    )


def _weighted(row: Mapping[str, Fraction], name: Namer) -> str:
    """Return names and coefficients, such as ``bob, alice (coefficients 1/2, 1/2)``."""
    owners = sorted(row)
    shown = owners[:SHOWN]
    more = f" and {len(owners) - SHOWN} more" if len(owners) > SHOWN else ""
    numbers = ", ".join(_short(row[one]) for one in shown)
    names = ", ".join(name(one) for one in shown)
    return f"{names}{more} (coefficients {numbers}{', …' if more else ''})"


def _short(value: Fraction) -> str:
    text = str(value)
    return text if len(text) <= 24 else "a long fraction"


def _listed(names: Iterable[str], name: Namer, last: str = "and") -> str:
    words = [name(one) for one in names]
    if len(words) > SHOWN:
        words = [*words[:SHOWN], f"{len(words) - SHOWN} more"]
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"
