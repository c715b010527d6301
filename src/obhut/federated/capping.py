"""Weights by which no owner outweighs the others.

Where an aggregator applies weights, its guard asks how much of a sum may come from one
owner: the p%-rule. Weights by rows break it easily; of 0.4, 0.25, 0.2, 0.1 and 0.05 the
largest is more than what the last three weigh together.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from obhut.errors import CallError, CoefficientError
from obhut.guard import coefficients
from obhut.guard.p_percent import of_row
from obhut.guard.policy import Quorum

MOST = 2**24
"""What capped weights sum to at most. Rounded to float64 their shares then still stand
for the fractions that they are, and these are short enough for an aggregator."""


def capped(weights: Sequence[float], policy: Quorum) -> list[int]:
    """Return weights by which a sum over these owners may be released.

    The heaviest become as light as the p%-rule asks, and no lighter. Use the result
    for all that these owners contribute, in every round: other weights for the same
    owners are another equation about what they contributed.

    Args:
        weights: one an owner, positive, for instance how many rows it has.
        policy: the owners'; the strictest, if they have several.

    Returns:
        Whole numbers, in the weights' proportions where they are not capped.

    Raises:
        CallError: if a weight is not positive and finite, so few owners could not
            keep to the rule whatever they weighed, or there is no ``Quorum``.
    """
    if not isinstance(policy, Quorum):
        raise CallError(
            f"expected the owners' obhut.Quorum, got {type(policy).__name__}; without "
            "one weights need not be capped"
        )
    whole = _to_whole(weights)
    if len(whole) < policy.quorum:
        raise CallError(
            f"expected at least {policy.quorum} weights, since the policy asks for as "
            f"many owners, got {len(whole)}"
        )

    def breaks(cap: int) -> bool:
        row = {str(owner): min(weight, cap) for owner, weight in enumerate(whole)}
        return of_row(row, policy.left_out, policy.p_percent) is not None

    # What breaks the rule at one cap breaks it at all larger ones: the heaviest grow
    # as the cap does, and the others, capped or not, no faster.
    cap = bisect.bisect_left(range(1, max(whole) + 1), True, key=breaks)
    if not cap:
        raise CallError(
            f"{len(whole)} owners break p_percent = {policy.p_percent} with honest = "
            f"{policy.honest} and colluders = {policy.colluders} even if all weigh the "
            "same; it takes more of them"
        )
    return [min(weight, cap) for weight in whole]


def _to_whole(weights: Sequence[float]) -> list[int]:
    """Return whole numbers in the proportions of weights."""
    try:
        fractions = [coefficients.simplest(float(weight)) for weight in weights]
    except CoefficientError:
        fractions = []
    if not fractions or any(fraction <= 0 for fraction in fractions):
        raise CallError(
            f"expected weights that are positive and finite, got {list(weights)}"
        )
    whole = coefficients.whole(fractions)
    room, everything = MOST - len(whole), sum(whole)
    if everything <= MOST:
        return whole
    return [max(1, weight * room // everything) for weight in whole]
