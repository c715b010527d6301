"""The rules that attacks are tried against, and who enforces each.

Rule: the auditor's rules and the op table's flags are read from where they are
enforced, so that a new one without an attack is noticed.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from obhut.guard import audit
from obhut.ops.table import Flag


class Need(enum.Enum):
    """What must be shown of a rule.

    Attributes:
        ALONE: an attack gets through when just this rule is off.
        TOGETHER: another rule stops the same; an attack gets through when both are
            off, and with either on it does not.
        NONE: nothing leaks without it; the rule's sentence says why.
    """

    ALONE = "alone"
    TOGETHER = "together"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        name: where it is enforced, and what it is called there.
        says: what it says.
        proof: what attacks must show of it.
    """

    name: str
    says: str
    proof: Need


_AUDIT: Mapping[str, str] = {
    "aggregator": "sums leave an aggregator that each owner's policy names",
    "requester": "sums leave for a requester whom each owner's policy names",
    "expired": "nothing leaves after the last day of an owner's policy",
    "coefficients": "coefficients have at most 32 bits",
    "quorum": "a sum is over K owners at least",
    "atoms": "what was delivered leaves in one combination only",
    "owners": "no K - 1 owners are left over in anything that sums tell together",
    "p-percent": "no owner outweighs the others in anything that sums tell together",
    "program": "where a policy asks for it, one computation made what is added up",
    "kind": "contributions of an owner leave in one kind of aggregate only",
}

_FLAGS: Mapping[Flag, tuple[str, Need]] = {
    Flag.GUARD_REFUSED: (
        "an operator whose result or failure tells values is not run behind a guard",
        Need.TOGETHER,
    ),
    Flag.GUARD_CHECKED: (
        "an operator that trusts its arguments runs after they were checked",
        Need.TOGETHER,
    ),
    Flag.DYNAMIC: (
        "a result whose size depends on values is not made behind a guard",
        Need.TOGETHER,
    ),
    Flag.ZEROED: ("a result is never memory that others have used", Need.ALONE),
    Flag.NO_META: (
        "tells clients where to ask for sizes; behind a guard an operator of which "
        "nobody knows them without values is refused by who answers",
        Need.NONE,
    ),
    Flag.STRIDES: (
        "tells clients where to ask for strides, which depend on sizes only",
        Need.NONE,
    ),
    Flag.RANDOM: ("tells of a generator whose draws stay with the owner", Need.NONE),
    Flag.FLOAT_SHAPE: ("decides what is cached of sizes, not of values", Need.NONE),
    Flag.RESHAPES: ("decides when memory is counted anew", Need.NONE),
    Flag.WHOLE: ("tells clients what travels undecomposed", Need.NONE),
}

_OTHERS: Mapping[str, tuple[str, Need]] = {
    "owner: fetch": ("an owner's worker answers no fetch", Need.TOGETHER),
    "gate: reply": ("no reply from an owner's session holds a value", Need.TOGETHER),
    "owner: move": (
        "an owner's values move to named aggregators only",
        Need.TOGETHER,
    ),
    "gate: delivery": (
        "what leaves an owner's session for another worker is a delivery to an "
        "aggregator that the policy names, with that policy",
        Need.TOGETHER,
    ),
    "receiver: aggregates": (
        "what comes with a policy is taken by aggregators only",
        Need.TOGETHER,
    ),
    "owner: low": ("who answers for an owner has no values", Need.ALONE),
    "gate: requester": ("who is not named opens no session", Need.TOGETHER),
    "sums: only": ("an aggregator adds, and computes nothing else", Need.ALONE),
    "sums: canonical": (
        "values depend on coefficients, not on the order of an expression",
        Need.ALONE,
    ),
    "sums: trimmed": (
        "a requester's own values are not trimmed in place of owners'",
        Need.ALONE,
    ),
    "sums: one policy": (
        "what an owner delivered under a stricter policy stays under it",
        Need.ALONE,
    ),
    "sums: came": (
        "where programs are compared, K owners' contributions have come",
        Need.ALONE,
    ),
    "sums: policy": ("an owner's policy holds where the values are", Need.ALONE),
    "sums: expected": (
        "a session takes what it expects, from whom it expects it; and what it takes "
        "is labelled with who delivered it",
        Need.TOGETHER,
    ),
    "sessions": ("a session is its opener's alone", Need.ALONE),
    "record": ("a restarted aggregator remembers its releases", Need.ALONE),
    "record: mark": (
        "an aggregator whose record is not the last one there was does not start",
        Need.ALONE,
    ),
}


_IMPLIED = frozenset(("aggregator", "coefficients", "quorum"))
"""Rules of the auditor that others imply: an owner delivers to named aggregators only;
who outweighs the others is refused, and so are few owners, whatever history there is.
They are asked first, for their words and to keep exact arithmetic quick."""


def _rules() -> Mapping[str, Rule]:
    made = [
        Rule(
            f"audit: {name}",
            _AUDIT.get(name, "not described"),
            Need.TOGETHER if name in _IMPLIED else Need.ALONE,
        )
        for name in sorted(audit.ALL)
    ]
    for flag in Flag:
        says, proof = _FLAGS.get(flag, ("not described", Need.ALONE))
        made.append(Rule(f"op: {flag}", says, proof))
    made += [Rule(name, says, proof) for name, (says, proof) in _OTHERS.items()]
    return {rule.name: rule for rule in made}


RULES: Mapping[str, Rule] = _rules()
"""All rules, by name."""
