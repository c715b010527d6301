"""A judge that compares what a requester sees in worlds that differ in private data.

Rules:

- Two worlds look the same to the byte, but for the values of sums that were permitted
  to whom, where and when each owner's own policy allows it.
- Where permitted sums are the same in two worlds, these values are the same as well.
- What owners decided is read from their policies, not from what came with a delivery.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import structs

from obhut.guard.release import Release
from obhut.protocol import codec
from obhut.protocol.messages import Fetched, Results

from .stage import SW, Evidence, Exchange


def alarms(one: Evidence, other: Evidence, *, strict: bool) -> Iterator[str]:
    """Yield how two worlds can be told apart.

    Args:
        one: what was seen in a world.
        other: what was seen in another.
        strict: whether the values of permitted sums must be the same, too.
    """
    if one.died != other.died:
        yield f"a worker's process ended: {one.died or 'no'}, {other.died or 'no'}"
        return
    if len(one.exchanges) != len(other.exchanges):
        yield "there is another number of replies"
        return
    for number, (a, b) in enumerate(zip(one.exchanges, other.exchanges, strict=True)):
        if _seen(a, one, strict) != _seen(b, other, strict):
            yield f"reply {number + 1} differs: {_what(a, b)}"
            return
    masked = any(e.permitted for e in (*one.exchanges, *other.exchanges))
    if one.refused != other.refused or (
        one.printed != other.printed and (strict or not masked)
    ):
        yield "what was printed differs"


def _seen(exchange: Exchange, evidence: Evidence, strict: bool) -> object:
    """Return a reply without what may differ."""
    allowed = exchange.permitted and all(
        _allowed(one, evidence) for one in exchange.permitted
    )
    if strict or not allowed or not isinstance(exchange.message, Results):
        return exchange.to, exchange.header, exchange.frames
    answers = tuple(
        structs.replace(answer, nonfinite=0) if isinstance(answer, Fetched) else answer
        for answer in exchange.message.answers
    )
    header = codec.encode(structs.replace(exchange.message, answers=answers))
    return exchange.to, bytes(header), [len(frame) for frame in exchange.frames]


def _allowed(one: Release, evidence: Evidence) -> bool:
    """Tell whether each owner lets something go to that requester, there and then."""
    owners = {atom.owner for atom in one.terms}
    policies = [evidence.policies[o] for o in owners if o in evidence.policies]
    return all(
        one.requester in policy.requesters
        and SW in policy.aggregators
        and (policy.expires is None or evidence.day <= policy.expires)
        for policy in policies
    )


def _what(a: Exchange, b: Exchange) -> str:
    if a.header != b.header:
        return f"{_text(a.header)} and {_text(b.header)}"
    return "its values"


def _text(header: bytes) -> str:
    return repr(header.decode(errors="replace"))[:160]
