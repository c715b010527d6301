"""Policies: what can be stated, how it travels, what several ask together."""

from __future__ import annotations

import datetime
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from obhut.errors import CallError, PolicyError, RemoteProtocolError
from obhut.guard.policy import (
    Quorum,
    UnsafeOpen,
    counted,
    decode,
    digest,
    encode,
    expired,
    explain,
    strictest,
)
from obhut.protocol.limits import POLICY_BYTES

from .conftest import OWNERS, quorum


def test_defaults_are_those_of_the_design():
    """K is 3, of whom one may collude; p is 100; nobody asks; nothing is clipped."""
    one = Quorum(aggregators=["hub"], contributors=["a", "b", "c"])
    assert (one.honest, one.colluders, one.quorum, one.p_percent) == (2, 1, 3, 100)
    assert (one.requesters, one.clip_norm, one.expires) == ((), None, None)
    assert one.programs == "same"
    assert one.aggregators == ("hub",)
    assert (one.kind, UnsafeOpen().kind) == ("Quorum", "UnsafeOpen")


@pytest.mark.parametrize(
    ("clauses", "key", "problem"),
    [
        ({"aggregators": ()}, "aggregators", "names nobody"),
        ({"contributors": []}, "contributors", "names nobody"),
        ({"contributors": "alice"}, "contributors", "expected a list"),
        ({"requesters": 3}, "requesters", "expected a list"),
        ({"requesters": ["a", 3]}, "requesters", "entry 2 is none"),
        ({"requesters": ["a", ""]}, "requesters", "entry 2 is none"),
        ({"requesters": ["a" * 65]}, "requesters", "entry 1 is none"),
        ({"requesters": ["a\n"]}, "requesters", "entry 1 is none"),
        ({"requesters": ["a", "b", "a"]}, "requesters", "a is listed twice"),
        ({"contributors": map(str, range(1001))}, "contributors", "more than 1,000"),
        ({"aggregators": ["hub", "hub2"]}, "aggregators", "what another has released"),
        ({"aggregators": ["bob"]}, "contributors", "bob is an aggregator too"),
        ({"honest": 0}, "honest", "from 1 to 1,000, got 0"),
        ({"honest": True}, "honest", "whole number"),
        ({"honest": 2.0}, "honest", "whole number"),
        ({"colluders": -1}, "colluders", "from 0"),
        ({"honest": 1, "colluders": 0}, "honest", "a sum over one owner could leave"),
        ({"honest": 6}, "contributors", "7 owners are needed"),
        ({"p_percent": 0}, "p_percent", "from 1 to 1,000"),
        ({"p_percent": 1001}, "p_percent", "from 1 to 1,000"),
        ({"minimum_rows": -1}, "minimum_rows", "from 0"),
        ({"refusals": 0}, "refusals", "from 1"),
        ({"clip_norm": 0}, "clip_norm", "above 0"),
        ({"clip_norm": float("inf")}, "clip_norm", "above 0"),
        ({"clip_norm": "10"}, "clip_norm", "above 0"),
        ({"expires": "2027-12-31"}, "expires", "expected a day"),
        ({"expires": datetime.datetime(2027, 1, 1)}, "expires", "expected a day"),
    ],
)
def test_a_contradiction_is_refused(clauses, key, problem):
    """The error names the clause, what is wrong with it, and what to write."""
    with pytest.raises(PolicyError) as caught:
        quorum(**clauses)
    assert isinstance(caught.value, CallError)
    assert caught.value.key == key
    assert problem in caught.value.problem
    assert caught.value.advice


def test_an_owner_who_is_not_listed_counts():
    """Two others and whoever states it are three."""
    assert Quorum(aggregators=["hub"], contributors=["a", "b"]).quorum == 3


def test_a_policy_can_not_be_changed():
    """It is what was stated, as long as it holds."""
    with pytest.raises(AttributeError):
        quorum().honest = 1


# --- bytes ---

NAME = st.text("abcdefgh", min_size=1, max_size=8)

POLICIES = st.builds(
    quorum,
    aggregators=st.lists(NAME.map("x".__add__), min_size=1, max_size=1, unique=True),
    contributors=st.lists(NAME, min_size=4, max_size=6, unique=True),
    requesters=st.lists(NAME, max_size=3, unique=True),
    honest=st.integers(1, 3),
    colluders=st.integers(1, 2),
    p_percent=st.integers(1, 1000),
    clip_norm=st.none() | st.floats(1e-3, 1e6) | st.integers(1, 100),
    minimum_rows=st.integers(0, 1000),
    expires=st.none() | st.dates(),
    refusals=st.integers(1, 1000),
)


@given(POLICIES)
def test_a_policy_survives_its_bytes(policy):
    """Encoded and decoded it is the same, with the same bytes and digest."""
    data = encode(policy)
    assert decode(data) == policy
    assert encode(decode(data)) == data
    assert digest(decode(data)) == digest(policy)
    assert list(json.loads(data)) == sorted(json.loads(data))


@pytest.mark.parametrize("said", ["any", "same"])
def test_bytes_say_themselves_whether_programs_are_compared(said):
    """Whatever the default was when they were written; without it they are none."""
    data = encode(quorum(programs=said))
    clause = f'"programs":"{said}"'.encode()
    assert clause in data
    assert decode(data).programs == said
    with pytest.raises(RemoteProtocolError, match="canonical"):
        decode(data.replace(clause + b",", b""))


def test_an_open_policy_survives_its_bytes():
    """Its bytes say which kind it is."""
    assert encode(UnsafeOpen()) == b'{"kind":"UnsafeOpen"}'
    assert decode(encode(UnsafeOpen())) == UnsafeOpen()


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda data: data + b" ",
        lambda data: data.replace(b'"honest":2', b'"honest":0'),
        lambda data: data.replace(b'"honest":2', b'"honest":2.0'),
        lambda data: data.replace(b'"honest":2,', b""),
        lambda data: data.replace(b'"honest"', b'"honst"'),
        lambda data: data.replace(b'"Quorum"', b'"UnsafeOpen"'),
        lambda data: data.replace(b'"Quorum"', b'"Open"'),
        lambda data: data.replace(b'"hub"', b'"alice"'),
        lambda data: b"[" * 100_000,
        lambda data: b" " * POLICY_BYTES + data,
        lambda data: b"\xff",
        lambda data: b"{}",
        lambda data: b'{"honest":2,' + data[1:],
    ],
)
def test_other_bytes_are_no_policy(change):
    """Changed, unordered, longer, or of a policy that contradicts itself."""
    with pytest.raises(RemoteProtocolError, match="policy"):
        decode(change(encode(quorum())))


@given(st.binary(max_size=60))
def test_any_bytes_decode_or_are_refused(data):
    """Garbage raises RemoteProtocolError and nothing else."""
    with pytest.raises(RemoteProtocolError):
        decode(data)


# --- several ---


def test_the_strictest_of_each_clause_holds():
    """Sets shrink to what is common, numbers go to the safe side."""
    day = datetime.date(2027, 1, 1)
    policies = {
        "alice": quorum(requesters=("x", "y"), honest=3, clip_norm=5, refusals=7),
        "bob": quorum(
            contributors=("alice", "carol", "dave", "x"),
            requesters=("y", "z"),
            colluders=2,
            p_percent=150,
            minimum_rows=50,
            expires=day,
        ),
        "hub": quorum(
            requesters=("y",), clip_norm=3, expires=day + datetime.timedelta(days=1)
        ),
    }
    terms = strictest(policies)
    assert terms.aggregators == {"hub"}
    assert terms.contributors == {"alice", "bob", "carol", "dave"}
    assert terms.requesters == {"y"}
    assert (terms.honest, terms.colluders, terms.quorum) == (3, 2, 5)
    assert (terms.p_percent, terms.minimum_rows, terms.refusals) == (150, 50, 7)
    assert (terms.clip_norm, terms.expires) == (3, day)


def test_one_policy_asks_what_it_says():
    """Nothing is added where there is nothing to compare with."""
    terms = strictest({"zoe": quorum()})
    assert terms.contributors == {*OWNERS, "zoe"}
    assert (terms.clip_norm, terms.expires) == (None, None)


def test_an_aggregator_does_not_count_itself():
    """It sees what it adds to; an owner counts itself."""
    assert counted("hub", quorum()) == set(OWNERS)
    assert counted("zoe", quorum()) == {*OWNERS, "zoe"}


# --- words ---


def test_a_policy_is_said_in_plain_sentences():
    """What it lets through, to whom, what not."""
    one = quorum(
        contributors=("alice", "bob", "carol"),
        clip_norm=10,
        minimum_rows=1000,
        expires=datetime.date(2027, 12, 31),
        programs="same",
    )
    assert explain(one, own="bob") == [
        "What is computed here goes to hub, and to nobody else.",
        "There nothing leaves but sums over at least 3 of alice, bob and carol. That "
        "is true of all releases taken together, whatever is added to or subtracted "
        "from them.",
        "If 1 of them works with whoever asks, at least 2 remain in each sum.",
        "What is added up must come from the same computation at each of them, but for "
        "their own rows. A computation that looks at rows may still decide whose "
        "result counts.",
        "In each sum the other owners without the heaviest weigh at least 100 % of any "
        "single owner.",
        "me may open sessions and ask for releases.",
        "Every contributed tensor is clipped to a norm of 10 when it is released: each "
        "by itself, and not all tensors of a model together. What an owner delivers "
        "twice counts twice.",
        "A data set with fewer than 1,000 rows is not used.",
        "After 2027-12-31 nothing leaves.",
        "After 100 refusals in an hour a requester is refused outright.",
        "Not let through: rows, predictions, gradients, losses and weights of one "
        "owner alone. Not hidden: what a sum over several owners says by itself.",
    ]


def test_what_a_policy_leaves_open_is_said():
    """Nobody, never, nothing; and who is trusted."""
    one = quorum(colluders=0, requesters=(), aggregators=("hub",))
    text = "\n".join(explain(one, str.upper, own="zoe"))
    for words in (
        "goes to HUB, and to nobody else",
        "at least 2 of ALICE, BOB, CAROL, DAVE, ERIN and ZOE",
        "WARNING: colluders = 0",
        "In each sum the other owners weigh at least",
        "Nobody may open sessions.",
        "Contributions are not clipped.",
        "It does not expire.",
    ):
        assert words in text
    assert 'WARNING: programs = "any". What owners computed is not compared' in text
    two = "\n".join(explain(quorum(colluders=2, programs="same"), own="hub"))
    assert two.startswith("hub is an aggregator: owners deliver to it")
    assert "If 2 of them work with" in two
    assert "without the 2 heaviest" in two
    assert "WARNING" not in two
    assert "WARNING: colluders = 0" in text
    assert "WARNING: requesters names nobody. Nobody may open sessions." in text
    assert "of alice, bob, carol, dave and erin." in "\n".join(explain(quorum()))
    assert explain(UnsafeOpen())[0].startswith("WARNING: the policy is UnsafeOpen")


def test_one_owner_who_may_remain_is_a_warning():
    """With honest = 1 accomplices have the last one's contribution; with 2 not."""
    (warning,) = [
        line
        for line in explain(quorum(honest=1, colluders=2, programs="same"))
        if line.startswith("WARNING")
    ]
    assert "One owner alone may be what remains: 2 who work together" in warning
    assert not [s for s in explain(quorum(programs="same")) if s.startswith("WARNING")]


@pytest.mark.parametrize(
    ("today", "over"),
    [(datetime.date(2027, 12, 31), False), (datetime.date(2028, 1, 1), True)],
)
def test_a_policy_that_has_expired_says_so(today, over):
    """The last day is one on which things leave; without a day nothing is said."""
    one = quorum(expires=datetime.date(2027, 12, 31))
    assert expired(one, today) is over
    said = "\n".join(explain(one, today=today))
    assert ("WARNING: the policy has expired: since 2027-12-31" in said) is over
    assert ("After 2027-12-31 nothing leaves." in said) is not over
    assert not expired(one, None)
    assert not expired(quorum(), today)
    assert not expired(UnsafeOpen(), today)


def test_a_policy_in_code_is_checked_as_one_that_came():
    """Msgspec builds it by the same checks."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(
            {"kind": "Quorum", "aggregators": [], "contributors": []}, Quorum
        )
