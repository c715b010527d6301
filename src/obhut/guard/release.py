"""What is to leave an aggregator, and what was decided about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

from .policy import Policy


class Atom(NamedTuple):
    """One delivered tensor.

    Attributes:
        owner: the principal who delivered it.
        key: which one it is, unique over all sessions of the aggregator, such as
            ``session/7``.
    """

    owner: str
    key: str


@dataclass(frozen=True, slots=True)
class Release:
    """A sum over delivered tensors that somebody asks for.

    Attributes:
        requester: the principal who asks.
        terms: the coefficient of each atom, zeros included or not.
        policies: the policies that came with the contributions, by owner. An owner
            without one is bound by the aggregator's.
        kind: what leaves: the ``sum``; the ``count`` of the tensors with values that
            are not finite, every coefficient 1; or ``trimmed_mean:b``, in which b
            values are left out at each end, every coefficient 1.
        digests: how atoms were made; one that is not there, or empty, is not known.
    """

    requester: str
    terms: Mapping[Atom, Fraction]
    policies: Mapping[str, Policy]
    kind: str = "sum"
    digests: Mapping[Atom, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided about a release.

    Attributes:
        permits: whether it may leave.
        rule: the rule that refuses it; ``all`` if none does.
        text: a refusal names the participants, their coefficients, and what would be
            allowed. It is the same whatever the values are.
    """

    permits: bool
    rule: str
    text: str
