"""An owner's policy: to whom contributions may go, and what may be made of them.

Rules:

- A policy that contradicts itself, or names nobody, can not be made.
- One policy has one form in bytes, so that its digest stands for it.
- Where several policies meet, the strictest of each clause holds.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import msgspec
from msgspec import Struct

from obhut.errors import PolicyError, RemoteProtocolError
from obhut.protocol.limits import POLICY_BYTES

NAMES = 1_000
"""How many principals a clause may name."""

NAME_CHARACTERS = 64
"""Characters of a principal's name; an id has 52."""

LARGEST = 1_000_000
"""The largest number that a clause may state."""

ANY, SAME = "any", "same"
"""Whether results of any programs may be added up, or of one program only."""

PROGRAMS = SAME
"""What a policy says of programs unless it says otherwise."""


class UnsafeOpen(
    Struct,
    frozen=True,
    forbid_unknown_fields=True,
    tag="UnsafeOpen",
    tag_field="kind",
):
    """Everything may leave, to anybody. Whoever uses it is warned."""

    @property
    def kind(self) -> str:
        """What a configuration calls it."""
        return "UnsafeOpen"


class Counts:
    """What follows from how many owners are honest, and how many may collude."""

    __slots__ = ()

    honest: int
    colluders: int

    @property
    def quorum(self) -> int:
        """How many owners a sum must be over (K), ``honest + colluders``."""
        return self.honest + self.colluders

    @property
    def left_out(self) -> int:
        """How many of the heaviest others the p%-rule leaves out (K - 2, or colluders).

        So what is promised by weight is no less than what is promised by number.
        """
        return max(self.colluders, self.quorum - 2)


class Quorum(
    Counts,
    Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag="Quorum",
    tag_field="kind",
):
    """Nothing leaves but sums over enough owners, by way of named aggregators.

    Principals are ids of keys at served workers, and names of virtual workers.

    Attributes:
        aggregators: to whom contributions may go: one, since what two release
            together would be audited by neither.
        contributors: the owners that this owner takes for different people. The
            owner itself counts, whether it is listed or not.
        requesters: who may open sessions and ask for releases.
        honest: how many owners of a sum must be left when the others work together.
        colluders: how many of the listed owners may work together.
        p_percent: what the others of a sum must at least weigh, in percent of each.
        clip_norm: the L2 norm to which each contributed tensor is clipped at
            release; ``None`` clips nothing. It bounds a tensor, and an owner by its
            weight: what one owner has in a released tensor is at most this norm times
            the sum of its coefficients there, without their signs. It bounds neither
            a model, whose n tensors together may have the norm times the root of n,
            nor what several releases say.
        minimum_rows: data sets with fewer rows are not used.
        expires: the last day on which it lets anything leave.
        refusals: refusals and failures in an hour after which a requester is
            refused whatever it asks.
        programs: ``any``, or ``same``: what is added up was made by one computation,
            the same at each owner but for the owner's own rows.

    Raises:
        PolicyError: if its clauses contradict each other, or name nobody.
    """

    aggregators: tuple[str, ...]
    contributors: tuple[str, ...]
    requesters: tuple[str, ...] = ()
    honest: int = 2
    colluders: int = 1
    p_percent: int = 100
    clip_norm: float | None = None
    minimum_rows: int = 0
    expires: datetime.date | None = None
    refusals: int = 100
    programs: str = PROGRAMS

    def __post_init__(self) -> None:
        for key in ("aggregators", "contributors", "requesters"):
            named = _names(key, getattr(self, key))
            msgspec.structs.force_setattr(self, key, named)
        for key in ("aggregators", "contributors"):
            if not getattr(self, key):
                raise PolicyError(
                    key,
                    "names nobody",
                    f'list at least one, or nothing can leave: {key} = ["…"]',
                )
        both = [one for one in self.aggregators if one in self.contributors]
        if both:
            raise PolicyError(
                "contributors",
                f"{both[0]} is an aggregator too, and would see what it adds to",
                "list it once: an aggregator contributes nothing",
            )
        if len(self.aggregators) > 1:
            # A sum at one and another sum at the other would never be compared.
            raise PolicyError(
                "aggregators",
                f"names {len(self.aggregators)}, and none of them knows what another "
                "has released",
                "name one; all that is released of an owner goes through one ledger",
            )
        for key, (least, most) in _BOUNDS.items():
            number = getattr(self, key)
            if type(number) is not int or not least <= number <= most:
                raise PolicyError(
                    key,
                    f"expected a whole number from {least:,} to {most:,}, got {number}",
                    "correct it, or leave the key out for its default",
                )
        if self.programs not in (ANY, SAME):
            raise PolicyError(
                "programs",
                f'expected "{ANY}" or "{SAME}", got {self.programs!r}',
                "correct it, or leave the key out for its default",
            )
        if self.quorum < 2:
            raise PolicyError(
                "honest",
                "with honest = 1 and colluders = 0, a sum over one owner could leave",
                'write honest = 2, or kind = "UnsafeOpen" if everything may leave',
            )
        others = len(self.contributors) + 1  # perhaps the owner is not listed
        if self.quorum > others:
            raise PolicyError(
                "contributors",
                f"{self.quorum} owners are needed (honest {self.honest} + colluders "
                f"{self.colluders}), and there are at most {others}: nothing could "
                "leave",
                "list more owners, or lower honest or colluders",
            )
        self._check_clip()
        if self.expires is not None and type(self.expires) is not datetime.date:
            raise PolicyError(
                "expires",
                f"expected a day, got {self.expires}",
                "write a date such as 2027-12-31",
            )

    def _check_clip(self) -> None:
        norm = self.clip_norm
        if norm is None:
            return
        if type(norm) not in (int, float) or not (math.isfinite(norm) and norm > 0):
            raise PolicyError(
                "clip_norm",
                f"expected a number above 0, got {norm}",
                "correct it, or leave the key out, so that nothing is clipped",
            )
        msgspec.structs.force_setattr(self, "clip_norm", float(norm))

    @property
    def kind(self) -> str:
        """What a configuration calls it."""
        return "Quorum"


Policy: TypeAlias = UnsafeOpen | Quorum

_BOUNDS: Mapping[str, tuple[int, int]] = {
    "honest": (1, NAMES),
    "colluders": (0, NAMES),
    "p_percent": (1, 1_000),
    "minimum_rows": (0, LARGEST),
    "refusals": (1, LARGEST),
}
"""The least and the most that a clause may say."""


def _names(key: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise PolicyError(key, "expected a list of names", f'write {key} = ["…"]')
    named = tuple(value)
    if len(named) > NAMES:
        raise PolicyError(
            key, f"{len(named):,} are listed, more than {NAMES:,}", "list fewer"
        )
    for place, name in enumerate(named):
        if (
            not isinstance(name, str)
            or not 0 < len(name) <= NAME_CHARACTERS
            or not name.isprintable()
        ):
            raise PolicyError(
                key,
                f"expected names of 1 to {NAME_CHARACTERS} characters that print, and "
                f"entry {place + 1} is none",
                "correct it",
            )
        if name in named[:place]:
            raise PolicyError(key, f"{name} is listed twice", "remove one")
    return named


# --- bytes ------------------------------------------------------------------------


def encode(policy: Policy) -> bytes:
    """Return the one form of a policy in bytes: JSON with sorted keys."""
    return msgspec.json.encode(policy, order="sorted")


def decode(data: bytes) -> Policy:
    """Return the policy of these bytes.

    Raises:
        RemoteProtocolError: if they are not what ``encode`` returns for one.
    """
    if len(data) > POLICY_BYTES:
        raise RemoteProtocolError(
            f"a policy may have {POLICY_BYTES:,} bytes, got {len(data):,}"
        )
    try:
        policy: Policy = msgspec.json.decode(data, type=Policy)
        canonical = encode(policy) == bytes(data)
    except (PolicyError, ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"expected a policy: {error}") from error
    if not canonical:
        raise RemoteProtocolError("a policy came in another form than the canonical")
    return policy


def digest(policy: Policy) -> str:
    """Return the SHA-256 of a policy's bytes, in hexadecimal."""
    return hashlib.sha256(encode(policy)).hexdigest()


# --- several policies -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Terms(Counts):
    """What several policies ask together: of each clause the strictest.

    Attributes:
        aggregators: those whom all name.
        contributors: those whom all take for different people.
        requesters: those whom all name.
        honest: the largest.
        colluders: the largest.
        p_percent: the largest.
        minimum_rows: the largest.
        clip_norm: the smallest.
        expires: the earliest.
        refusals: the smallest.
        programs: ``same`` if one says so.
    """

    aggregators: frozenset[str]
    contributors: frozenset[str]
    requesters: frozenset[str]
    honest: int
    colluders: int
    p_percent: int
    clip_norm: float | None
    minimum_rows: int
    expires: datetime.date | None
    refusals: int
    programs: str


def strictest(policies: Mapping[str, Quorum]) -> Terms:
    """Return what policies ask together.

    Args:
        policies: at least one, by whose it is. An owner counts among its own
            contributors, and an aggregator among its own aggregators.
    """
    every = list(policies.items())
    norms = [one.clip_norm for _, one in every if one.clip_norm is not None]
    days = [one.expires for _, one in every if one.expires is not None]
    return Terms(
        aggregators=_common(_set(one.aggregators) for _, one in every),
        contributors=_common(counted(whose, one) for whose, one in every),
        requesters=_common(_set(one.requesters) for _, one in every),
        honest=max(one.honest for _, one in every),
        colluders=max(one.colluders for _, one in every),
        p_percent=max(one.p_percent for _, one in every),
        clip_norm=min(norms, default=None),
        minimum_rows=max(one.minimum_rows for _, one in every),
        expires=min(days, default=None),
        refusals=min(one.refusals for _, one in every),
        programs=SAME if any(one.programs == SAME for _, one in every) else ANY,
    )


def counted(whose: str, policy: Quorum) -> frozenset[str]:
    """Return the owners that somebody's policy takes for different people."""
    listed = _set(policy.contributors)
    if whose in listed or whose in policy.aggregators:
        return listed
    return listed | {whose}


@functools.lru_cache(maxsize=1_000)
def _set(names: tuple[str, ...]) -> frozenset[str]:
    """Return names as a set, the same for the same: policies are often alike."""
    return frozenset(names)


def _common(sets: Iterable[frozenset[str]]) -> frozenset[str]:
    first, *more = dict.fromkeys(sets)
    return first.intersection(*more)


# --- words ------------------------------------------------------------------------


def expired(policy: Policy, today: datetime.date | None) -> bool:
    """Tell whether a policy's last day has passed; not, if the day is not known."""
    ends = None if isinstance(policy, UnsafeOpen) else policy.expires
    return ends is not None and today is not None and today > ends


def explain(
    policy: Policy,
    name: Callable[[str], str] = str,
    own: str | None = None,
    today: datetime.date | None = None,
) -> list[str]:
    """Return in plain sentences what a policy lets through, to whom, and what not.

    What is dangerous begins with "WARNING".

    Args:
        policy: the policy.
        name: how to call a principal.
        own: whose policy it is, if that is known.
        today: the present day in UTC, to tell whether it has expired.
    """
    if isinstance(policy, UnsafeOpen):
        return [
            "WARNING: the policy is UnsafeOpen. Nothing is enforced: whoever may open "
            "a session can read every row of every data set."
        ]
    one = policy
    aggregators = _listed(one.aggregators, name, "or")
    owners = list(one.contributors)
    if own in one.aggregators:
        lines = [
            f"{name(own)} is an aggregator: owners deliver to it, and it holds no data."
        ]
    else:
        if own is not None and own not in owners:
            owners.append(own)
        lines = [f"What is computed here goes to {aggregators}, and to nobody else."]
    lines.append(
        f"There nothing leaves but sums over at least {one.quorum} of "
        f"{_listed(owners, name, 'and')}. That is true of all releases taken together, "
        "whatever is added to or subtracted from them."
    )
    if one.colluders:
        lines.append(
            f"If {one.colluders} of them work{'s' * (one.colluders == 1)} with whoever "
            f"asks, at least {one.honest} remain in each sum."
        )
    else:
        lines.append(
            "WARNING: colluders = 0. An owner who takes part can subtract its own "
            "contribution, and is trusted not to."
        )
    if one.honest == 1:
        lines.append(
            "WARNING: honest = 1. One owner alone may be what remains: "
            f"{one.colluders} who work together have the contribution of the last one, "
            "exactly."
        )
    if one.programs == SAME:
        lines.append(
            "What is added up must come from the same computation at each of them, but "
            "for their own rows. A computation that looks at rows may still decide "
            "whose result counts."
        )
    else:
        lines.append(
            'WARNING: programs = "any". What owners computed is not compared: whoever '
            "asks can multiply all but one of them by 0."
        )
    others = (
        "the other owners without the heaviest"
        if one.left_out == 1
        else f"the other owners without the {one.left_out} heaviest"
        if one.left_out
        else "the other owners"
    )
    lines.append(
        f"In each sum {others} weigh at least {one.p_percent} % of any single owner."
    )
    lines.append(
        f"{_listed(one.requesters, name, 'and')} may open sessions and ask for "
        "releases."
        if one.requesters
        else "WARNING: requesters names nobody. Nobody may open sessions. Nobody may "
        "ask for releases."
    )
    lines.append(
        "Every contributed tensor is clipped to a norm of "
        f"{one.clip_norm:g} when it is released: each by itself, and not all tensors "
        "of a model together. What an owner delivers twice counts twice."
        if one.clip_norm is not None
        else "Contributions are not clipped."
    )
    if one.minimum_rows:
        lines.append(
            f"A data set with fewer than {one.minimum_rows:,} rows is not used."
        )
    lines.append(
        "It does not expire."
        if one.expires is None
        else f"WARNING: the policy has expired: since {one.expires.isoformat()} has "
        "passed, nothing leaves any more."
        if expired(one, today)
        else f"After {one.expires.isoformat()} nothing leaves."
    )
    lines.append(
        f"After {one.refusals:,} refusals in an hour a requester is refused outright."
    )
    lines.append(
        "Not let through: rows, predictions, gradients, losses and weights of one "
        "owner alone. Not hidden: what a sum over several owners says by itself."
    )
    return lines


def _listed(names: Iterable[str], name: Callable[[str], str], last: str) -> str:
    words = [name(one) for one in names]
    if len(words) == 1:
        return words[0]
    return f"{', '.join(words[:-1])} {last} {words[-1]}"
