"""What an owner's session may answer, looked at once more on its way out.

Rules:

- A reply from behind an owner's policy holds no values: neither a tensor's nor what
  an operator returned; None, which one returns that only checks, is no value.
  Who answers has none; whoever passes a reply on looks at it by itself, and so does
  not rely on the process that ran the requester's operators.
- What leaves for another worker is a delivery to an aggregator that the policy
  names, and carries that policy.
"""

from __future__ import annotations

from collections.abc import Sequence

from obhut.errors import InternalError
from obhut.protocol.codec import Frame
from obhut.protocol.messages import (
    AnyMessage,
    Deliver,
    Done,
    Failed,
    Fetched,
    Refused,
    Results,
    Returned,
    Welcome,
)

from .policy import SAME, Quorum, encode

_REFUSALS = frozenset(("ReleaseRefusedError", "OpNotAdmittedError"))


def check_reply(message: AnyMessage, frames: Sequence[Frame]) -> int:
    """Check a reply of an owner's session; return how many refusals it holds.

    Raises:
        InternalError: if it holds a value; it must not be passed on.
    """
    if frames:
        raise InternalError("a reply from behind a policy held a tensor's values")
    match message:
        case Results(answers=answers):
            for answer in answers:
                returned = isinstance(answer, Returned) and answer.value is not None
                if returned or isinstance(answer, Fetched):
                    raise InternalError("a reply from behind a policy held a value")
            return sum(isinstance(a, Failed) and a.kind in _REFUSALS for a in answers)
        case Welcome() | Done():
            return 0
        case Refused(kind=kind):
            return int(kind in _REFUSALS)
        case _:
            raise InternalError("a session answered with something else")


def check_delivery(policy: Quorum, to: str, message: AnyMessage) -> None:
    """Check what an owner's session wants carried to another worker.

    Raises:
        InternalError: if it may not leave; the session's own check has failed.
    """
    if not isinstance(message, Deliver) or to not in policy.aggregators:
        raise InternalError("a delivery went to nobody whom the policy names")
    if message.policy != encode(policy):
        raise InternalError("a delivery did not carry the owner's policy")
    stated = len(message.ids) if policy.programs == SAME else 0
    if len(message.digests) != stated:
        raise InternalError("a delivery did not state how each tensor was made")
