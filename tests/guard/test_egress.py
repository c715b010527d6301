"""What an owner's session may answer, and to whom it may deliver."""

from __future__ import annotations

import msgspec
import pytest

from obhut.errors import InternalError
from obhut.guard.egress import check_delivery, check_reply
from obhut.guard.policy import SAME, encode
from obhut.protocol import messages

from .conftest import quorum

POLICY = quorum()


def sample(kind, /, **fields):
    """Return a message with these fields, and any values in the others."""
    made = dict.fromkeys(kind.__struct_fields__)
    return kind(**(made | fields))


REFUSED = sample(messages.Failed, kind="ReleaseRefusedError")
OTHER = sample(messages.Failed, kind="RemoteValueError")
VALUE = sample(messages.Returned, value=0)


@pytest.mark.parametrize(
    ("message", "count"),
    [
        (sample(messages.Results, answers=(REFUSED, OTHER, REFUSED)), 2),
        (sample(messages.Results, answers=()), 0),
        (sample(messages.Results, answers=(sample(messages.Returned),)), 0),
        (sample(messages.Welcome), 0),
        (messages.Done(), 0),
        (sample(messages.Refused, kind="OpNotAdmittedError"), 1),
        (sample(messages.Refused, kind="LimitError"), 0),
    ],
)
def test_a_reply_without_values_passes(message, count):
    """And its refusals are counted."""
    assert check_reply(message, ()) == count


@pytest.mark.parametrize(
    ("message", "frames"),
    [
        (sample(messages.Results, answers=()), (b"x",)),
        (sample(messages.Results, answers=(sample(messages.Fetched),)), ()),
        (sample(messages.Results, answers=(OTHER, VALUE)), ()),
        (sample(messages.Deliver), ()),
    ],
)
def test_a_reply_with_a_value_is_held_back(message, frames):
    """A tensor's bytes, a value in an answer, or what is no reply at all."""
    with pytest.raises(InternalError):
        check_reply(message, frames)


def test_a_delivery_goes_where_the_policy_says():
    """To a named aggregator, with the very policy; to nobody else, and nothing else."""
    deliver = sample(messages.Deliver, policy=encode(POLICY), ids=(1,), digests=())
    check_delivery(POLICY, "hub", deliver)
    compared = quorum(programs=SAME)
    stated = {"policy": encode(compared), "digests": (b"",)}
    check_delivery(compared, "hub", msgspec.structs.replace(deliver, **stated))
    for policy, message in (
        (compared, msgspec.structs.replace(deliver, policy=encode(compared))),
        (POLICY, msgspec.structs.replace(deliver, digests=(b"",))),
    ):
        with pytest.raises(InternalError, match="how each tensor was made"):
            check_delivery(policy, "hub", message)
    for to, message in (
        ("bub", deliver),
        ("hub", messages.Done()),
        ("hub", msgspec.structs.replace(deliver, policy=encode(quorum(honest=3)))),
        ("hub", msgspec.structs.replace(deliver, policy=b"")),
    ):
        with pytest.raises(InternalError):
            check_delivery(POLICY, to, message)
