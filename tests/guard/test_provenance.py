"""Digests of computations, and what is refused by them."""

from __future__ import annotations

import datetime
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from obhut.guard import ledger
from obhut.guard.audit import Auditor
from obhut.guard.ledger import Beginning
from obhut.guard.policy import SAME, explain, strictest
from obhut.guard.provenance import UNKNOWN, alike, digest
from obhut.guard.release import Atom, Release
from obhut.protocol.messages import Complex, Symbol

from .conftest import quorum

TODAY = datetime.date(2026, 1, 1)
SAME_ONLY = quorum(programs=SAME)
ONE, OTHER = digest("one"), digest("other")

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(max_size=5)
)
parts = st.lists(leaves | st.lists(leaves, max_size=3), max_size=4)


@given(parts, parts)
def test_what_differs_has_another_digest(one, other):
    """Kinds of numbers, text and bytes, and where lists end, are told apart."""
    same = repr(one) == repr(other)  # 1, 1.0 and True are not the same here
    assert (digest(*one) == digest(*other)) is same
    assert len(digest(*one)) == 32


def test_it_has_one_form():
    """It is the same on every machine and in every process."""
    assert digest("run", Symbol("float32"), {"b": 1, "a": 2.0}).hex() == (
        digest("run", Symbol("float32"), {"a": 2.0, "b": 1}).hex()
    )
    assert digest(Complex(1.0, 0.0)) != digest(1.0)


def test_unknown_is_like_nothing():
    """Not even itself."""
    assert alike([ONE, ONE])
    assert not alike([ONE, OTHER])
    assert not alike([UNKNOWN, UNKNOWN])


# --- the rule -------------------------------------------------------------------------


def asked(made, *, policy=SAME_ONLY, policies=None, key="1", weights=()):
    """Return a sum over owners, each with a digest, a weight of 1 if none is given."""
    atoms = {Atom(owner, key): Fraction(1) for owner in made}
    atoms |= {Atom(owner, key): Fraction(x) for owner, x in weights}
    bound = dict.fromkeys(made, policy) if policies is None else policies
    digests = {Atom(owner, key): one for owner, one in made.items() if one}
    return Release("me", atoms, bound, "sum", digests)


def decided(release, policy=SAME_ONLY):
    """Return the decision of an aggregator that has released nothing."""
    return Auditor("hub", policy).decide(release, TODAY)


THREE = dict.fromkeys(("alice", "bob", "carol"), ONE)


def test_one_computation_is_released():
    """Of three owners; and the same again."""
    auditor = Auditor("hub", SAME_ONLY)
    for key in ("1", "2"):
        release = asked(THREE, key=key)
        decision = auditor.decide(release, TODAY)
        assert decision.permits
        auditor.record(release, decision)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({**THREE, "bob": OTHER}, "and bob computed something else"),
        (
            {**THREE, "dave": OTHER, "erin": digest("third")},
            "and dave and erin computed something else",
        ),
        (
            {"alice": ONE, "bob": OTHER, "carol": digest("third")},
            "and no two of these do",
        ),
        ({**THREE, "carol": UNKNOWN}, "what made what carol delivered"),
        (dict.fromkeys(THREE, UNKNOWN), "alice, bob and carol delivered"),
    ],
)
def test_other_computations_are_refused_and_named(made, words):
    """Whose differ is said, and what would be allowed."""
    decision = decided(asked(made))
    assert (decision.permits, decision.rule) == (False, "program")
    assert words in decision.text
    assert decided(asked(made, policy=quorum()), quorum()).permits


def test_one_owner_who_compares_is_enough():
    """The strictest of all policies holds, the aggregator's own among them."""
    policies = {"alice": SAME_ONLY, "bob": quorum(), "carol": quorum()}
    release = asked({**THREE, "bob": b"", "carol": b""}, policies=policies)
    decision = decided(release, quorum())
    assert decision.rule == "program"
    assert "nothing is said of what bob and carol delivered" in decision.text
    assert 'programs = "same"' in decision.text
    assert decided(asked(dict.fromkeys(THREE, b""), policy=quorum())).rule == "program"
    assert strictest({"a": quorum(), "b": SAME_ONLY}).programs == SAME
    assert strictest({"a": quorum()}).programs != SAME


def test_what_counts_for_nothing_is_not_compared():
    """A coefficient of 0 lets nothing of it leave."""
    made = {**THREE, "dave": OTHER}
    assert decided(asked(made, weights=[("dave", 0)])).permits


def test_two_of_one_owner_are_compared():
    """As those of two owners are."""
    release = asked(THREE)
    more = {**release.terms, Atom("bob", "2"): Fraction(1)}
    digests = {**release.digests, Atom("bob", "2"): OTHER}
    both = Release("me", more, release.policies, "sum", digests)
    decision = decided(both)
    assert decision.rule == "program"
    assert "and bob computed" in decision.text


def test_the_policy_says_it_in_words():
    """And what that does not hold against."""
    (said,) = set(explain(SAME_ONLY)) - set(explain(quorum()))
    assert "same computation" in said
    assert "may still decide whose result counts" in said
    (said,) = set(explain(quorum())) - set(explain(SAME_ONLY))
    assert said.startswith('WARNING: programs = "any"')


# --- the ledger -----------------------------------------------------------------------

START = ledger.start(Beginning(ledger="hub", token="t", time=0))


@pytest.mark.parametrize(
    "made", [THREE, {**THREE, "bob": OTHER}, {**THREE, "bob": UNKNOWN}]
)
def test_a_ledger_holds_what_was_decided_on(made):
    """From an entry the same question follows, and so the same decision."""
    release = asked(made)
    decision = decided(release)
    entry = ledger.follow(START, release, decision, 7)
    again = ledger.decode(ledger.encode(entry))
    known = dict.fromkeys(again.policies.values(), SAME_ONLY)
    assert again.release(known) == release
    assert decided(again.release(known)).rule == decision.rule
    assert len(again.made) == (1 if made == THREE else 3)


def test_entries_without_digests_are_as_they_were():
    """What does not state them takes no room, and what repeats does not repeat them."""
    plain = Release("me", {Atom("bob", "1"): Fraction(1)}, {"bob": quorum()})
    entry = ledger.follow(START, plain, decided(plain, quorum()), 7)
    assert b"made" not in ledger.encode(entry)
    release = asked(THREE)
    draft = ledger.draft(release, decided(release), 7)
    short = ledger.placed(START, draft, repeats=1)
    assert b"made" not in ledger.encode(short)
    forged = structs.replace(short, number=2, made=("00",))
    first = ledger.placed(START, draft)
    head = ledger.advanced(START, first)
    forged = structs.replace(forged, previous=head.hash, hash="")
    forged = structs.replace(forged, hash=ledger._hash(forged))
    with pytest.raises(ValueError, match="repeats none"):
        list(
            ledger.verified(
                Beginning(ledger="hub", token="t", time=0),
                [first, forged],
                ledger.advanced(head, forged),
            )
        )
