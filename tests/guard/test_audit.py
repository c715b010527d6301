"""The rule of release: attacks, and what each rule is for.

Each attack is permitted when its rule is off, and refused when it is on.
"""

from __future__ import annotations

import datetime
from fractions import Fraction

import pytest

from obhut.errors import PolicyError
from obhut.guard.audit import ALL, Auditor
from obhut.guard.policy import UnsafeOpen
from obhut.guard.release import Atom, Release

from .conftest import OWNERS, TODAY, Aggregator, quorum

THIRD = "1/3"

NO_PERCENT = ("p-percent",)
"""What an attack on the number of owners goes without: with K = 3 and one colluder the
p%-rule asks for three owners as well, and would refuse for it."""


def refused(decisions):
    """Return the rule that refused the last of several requests, and only that one."""
    *before, last = decisions
    assert all(one.permits for one in before), before
    assert not last.permits
    return last.rule


# --- attacks: what is permitted without a rule, and refused by it --------------------


ATTACKS = {
    "a sum over two": (
        "quorum",
        ("owners", *NO_PERCENT),
        [{"alice_1": "1/2", "bob_1": "1/2"}],
    ),
    "one owner and zeros": (
        "quorum",
        ("owners", *NO_PERCENT),
        [{"alice_1": 1, "bob_1": 0, "carol_1": 0}],
    ),
    "three tensors of two owners": (
        "quorum",
        ("owners", *NO_PERCENT),
        [{"alice_1": 1, "alice_2": 1, "bob_1": 1}],
    ),
    "sybils whom no policy names": (
        "quorum",
        ("owners", *NO_PERCENT),
        [{"alice_1": 1, "eve1_1": 1, "eve2_1": 1, "eve3_1": 1}],
    ),
    "a + b + c, then a + b + d": (
        "owners",
        NO_PERCENT,
        [
            {"alice_1": 1, "bob_1": 1, "carol_1": 1},
            {"alice_2": 1, "bob_2": 1, "dave_2": 1},
        ],
    ),
    "the same cohort with other weights": (
        "owners",
        NO_PERCENT,
        [
            {"alice_1": 1, "bob_1": 1, "carol_1": 1},
            {"alice_2": 2, "bob_2": 1, "carol_2": 1},
        ],
    ),
    "all, then all but one": (
        "owners",
        NO_PERCENT,
        [
            {"alice_1": 1, "bob_1": 1, "carol_1": 1, "dave_1": 1},
            {"alice_2": 1, "bob_2": 1, "carol_2": 1},
        ],
    ),
    "equal modulo a prime of 61 bits, but not equal": (
        "owners",
        ("coefficients", *NO_PERCENT),
        [
            {"alice_1": 1, "bob_1": 1, "carol_1": 1},
            {"alice_2": 1, "bob_2": 1, "carol_2": 1 + (2**61 - 1)},
        ],
    ),
    "2**-50 apart": (
        "owners",
        ("coefficients", *NO_PERCENT),
        [
            {"alice_1": 1, "bob_1": 1, "carol_1": 1},
            {"alice_2": 1, "bob_2": 1, "carol_2": 1 + Fraction(1, 2**50)},
        ],
    ),
    "a difference of one owner's tensors, hidden at 0": (
        "owners",
        NO_PERCENT,
        [{"alice_1": 1, "alice_2": -1, "bob_1": 1, "carol_1": 1}],
    ),
    "the same, among enough others": (
        "owners",
        (),
        [{"alice_1": 1, "alice_2": -1, "bob_1": 1, "carol_1": 1, "dave_1": 1}],
    ),
    "one tensor exchanged for another of the same owner": (
        "atoms",
        (),
        [
            {"alice_1": 1, "bob_1": 1, "carol_1": 1},
            {"alice_2": 1, "bob_1": 1, "carol_1": 1},
        ],
    ),
    "one tensor of an owner with a larger share of the same": (
        "atoms",
        (),
        [
            {"alice_1": "1/2", "alice_2": "1/2", "bob_1": 1, "carol_1": 1},
            {"alice_1": 1, "bob_1": 1, "carol_1": 1},
        ],
    ),
    "one owner outweighs the others": (
        "p-percent",
        (),
        [{"alice_1": "1/2", "bob_1": "3/10", "carol_1": "1/5"}],
    ),
    "two harmless sums whose difference is one owner's": (
        "p-percent",
        (),
        [
            dict.fromkeys([f"{one}_1" for one in OWNERS], 1),
            {
                "alice_2": 2,
                "bob_2": "101/100",
                "carol_2": "102/100",
                "dave_2": "103/100",
                "erin_2": 1,
            },
        ],
    ),
    "one owner's absorbed by another's in floating point": (
        "coefficients",
        ("p-percent",),
        [{"alice_1": 2**40, "bob_1": 1, "carol_1": 1}],
    ),
    "a coefficient too small to be seen": (
        "coefficients",
        ("p-percent",),
        [{"alice_1": Fraction(1, 2**40), "bob_1": 1, "carol_1": 1}],
    ),
    "small coefficients that add up to a long one": (
        "coefficients",
        ("p-percent",),
        [
            {
                "alice_1": Fraction(1, 2**31 - 1),
                "alice_2": Fraction(1, 2**31),
                "bob_1": 1,
                "carol_1": 1,
            }
        ],
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_fails_by_its_rule(attack):
    """It is refused by that rule, and permitted when just that one is off."""
    rule, off, requests = ATTACKS[attack]
    policies = dict.fromkeys(("eve1", "eve2", "eve3"), quorum())
    hub = Aggregator(policies=policies, off=off)
    assert refused([hub.ask(**terms) for terms in requests]) == rule
    hub = Aggregator(policies=policies, off=(*off, rule))
    assert all(hub.ask(**terms).permits for terms in requests)


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_fails_with_all_rules(attack):
    """Whichever rule sees it first, it does not get through."""
    _, _, requests = ATTACKS[attack]
    hub = Aggregator(policies=dict.fromkeys(("eve1", "eve2", "eve3"), quorum()))
    refused([hub.ask(**terms) for terms in requests])


def test_no_policy_turns_a_rule_off():
    """Rules are an argument of tests; no clause of a policy is called so."""
    assert not set(quorum().__struct_fields__) & (ALL - {"requester"})


# --- what is permitted ----------------------------------------------------------------


@pytest.mark.parametrize(
    "requests",
    [
        [dict.fromkeys(("alice_1", "bob_1", "carol_1"), THIRD)],
        [
            dict.fromkeys(("alice_1", "bob_1", "carol_1"), 1),
            dict.fromkeys(("dave_1", "erin_1", "fred_1"), 1),
        ],
        [
            dict.fromkeys(("alice_1", "bob_1", "carol_1"), 1),
            dict.fromkeys(("alice_2", "bob_2", "carol_2"), THIRD),
            dict.fromkeys(("alice_1", "bob_1", "carol_1"), -2),
        ],
        [
            dict.fromkeys(("alice_1", "bob_1", "carol_1"), 1),
            dict.fromkeys(
                ("alice_2", "bob_2", "carol_2", "dave_2", "erin_2", "fred_2"), 1
            ),
        ],
        [dict.fromkeys(("alice_1", "bob_1", "carol_1"), 1) | {"stranger_1": 1}],
    ],
    ids=["equal weights", "two cohorts", "rounds", "a cohort and all", "a stranger"],
)
def test_what_singles_nobody_out_is_permitted(requests):
    """With p = 100: equal weights of three, cohorts beside each other, rounds."""
    everybody = (*OWNERS, "fred")
    policy = quorum(contributors=everybody)
    hub = Aggregator(policy, dict.fromkeys((*everybody, "stranger"), policy))
    for terms in requests:
        decision = hub.ask(**terms)
        assert decision.permits, decision
        assert decision.rule == "all"


# --- who, where, until when -----------------------------------------------------------

SUM = {"alice_1": 1, "bob_1": 1, "carol_1": 1}


@pytest.mark.parametrize(
    ("rule", "clauses", "words"),
    [
        ("requester", {"requesters": ("you",)}, "policy lets you ask"),
        ("requester", {"requesters": ()}, "policy lets nobody ask"),
        ("aggregator", {"aggregators": ("hub2",)}, "hub2 only, not hub"),
        ("expired", {"expires": datetime.date(2026, 12, 31)}, "ended on 2026-12-31"),
    ],
)
@pytest.mark.parametrize("whose", ["bob", "hub"])
def test_everybodys_policy_is_obeyed(rule, clauses, words, whose):
    """An owner's and the aggregator's own, by a rule that says whose it is."""
    strict = quorum(**clauses)

    def made(off=()):
        if whose == "hub":
            return Aggregator(strict, dict.fromkeys(OWNERS, quorum()), off)
        return Aggregator(policies={whose: strict}, off=off)

    decision = made().ask(**SUM)
    assert (decision.permits, decision.rule) == (False, rule)
    assert f"{whose}'s policy" in decision.text
    assert words in decision.text
    assert made((rule,)).ask(**SUM).permits


def test_a_policy_holds_on_its_last_day():
    """``expires`` is the last day on which anything leaves."""
    hub = Aggregator(quorum(expires=TODAY))
    assert hub.ask(**SUM).permits
    hub.today = TODAY + datetime.timedelta(days=1)
    assert not hub.ask(**SUM).permits


def test_a_policy_counts_of_whoever_takes_part_with_zero():
    """With a coefficient of 0, an owner's policy is obeyed, and it counts as nobody."""
    hub = Aggregator(policies={"dave": quorum(requesters=())})
    assert hub.ask(**SUM, dave_1=0).rule == "requester"


def test_without_a_policy_of_its_own_the_aggregators_holds():
    """Owners who bring none, or an open one, are bound by the aggregator's."""
    terms = {Atom(one, "1"): Fraction(1) for one in ("alice", "bob", "carol")}
    for policies in ({}, dict.fromkeys(OWNERS, UnsafeOpen())):
        auditor = Auditor("hub", quorum())
        assert auditor.decide(Release("me", terms, policies), TODAY).permits
        two = dict(list(terms.items())[:2])
        decision = auditor.decide(Release("me", two, policies), TODAY)
        assert decision.rule == "quorum"


def test_what_the_aggregator_delivers_to_itself_hides_nobody():
    """Its own tensors are known to its operator."""
    hub = Aggregator(policies={"hub": quorum()})
    assert hub.ask(hub_1=1, alice_1=1, bob_1=1).rule == "quorum"


# --- several policies -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("clauses", "rule"),
    [
        ({"contributors": ("alice", "dave")}, "quorum"),
        ({"honest": 3}, "quorum"),
        ({"colluders": 2}, "quorum"),
        ({"p_percent": 101}, "p-percent"),
        ({}, "all"),
    ],
)
def test_the_strictest_policy_holds(clauses, rule):
    """Who is counted, how many are needed, and what they weigh: by any owner's word."""
    hub = Aggregator(policies={"carol": quorum(**clauses)})
    assert hub.ask(**SUM).rule == rule


def test_an_owner_counts_without_listing_itself():
    """Each owner counts itself in."""
    others = {
        one: quorum(contributors=tuple(o for o in OWNERS if o != one)) for one in OWNERS
    }
    assert Aggregator(policies=others).ask(**SUM).permits


def test_an_owners_policy_outlives_its_part():
    """Later releases, without the owner, must not undo what its policy asked for."""
    careful = quorum(contributors=("alice", "bob", "carol", "dave"), colluders=1)
    policies = dict.fromkeys(("alice", "bob", "carol", "dave"), careful)
    first = {"alice_1": 1, "bob_1": 1, "carol_1": 1, "dave_1": 1}
    # To alice, erin and fred work together; so erin + fred + a + b tells a + b.
    loose = quorum(contributors=(*OWNERS, "fred"))
    later = {"alice_2": 1, "bob_2": 1, "erin_1": 1, "fred_1": 1}
    careless = {"alice": loose, "bob": loose, "erin": loose, "fred": loose}

    hub = Aggregator(loose, dict.fromkeys((*OWNERS, "fred"), loose))
    assert hub.ask(**first).permits
    assert hub.ask(**later).permits

    hub = Aggregator(loose, {**policies, "erin": loose, "fred": loose})
    assert hub.ask(**first).permits
    hub.policies.update(careless)
    decision = hub.ask(**later)
    assert (decision.permits, decision.rule) == (False, "owners")


def test_a_new_policy_looks_at_all_that_has_left():
    """What left before its owner came counts in its view."""
    loose = quorum(contributors=(*OWNERS, "fred"))
    hub = Aggregator(loose, dict.fromkeys((*OWNERS, "fred"), loose))
    assert hub.ask(alice_1=1, bob_1=1, erin_1=1, fred_1=1).permits
    # To dave, erin and fred work together: what left was alice + bob.
    hub.policies["dave"] = quorum(contributors=("alice", "bob", "carol", "dave"))
    assert hub.ask(alice_2=1, bob_2=1, carol_2=1, dave_2=1).rule == "owners"


def test_more_honest_owners_are_promised_by_weight_too():
    """Of four owners of whom one weighs next to nothing, three are left: refused."""
    careful = quorum(honest=3)
    light = Fraction(1, 10**6)
    auditor = Auditor("hub", careful)
    for weights, permitted in (((1, 1, 1, 1), True), ((1, 1, 1, light), False)):
        terms = {
            Atom(owner, owner): Fraction(weight)
            for owner, weight in zip(
                ("alice", "bob", "carol", "dave"), weights, strict=True
            )
        }
        policies = {atom.owner: careful for atom in terms}
        release = Release("me", terms, policies)
        decision = auditor.decide(release, datetime.date(2030, 1, 1))
        assert decision.permits is permitted
        assert permitted or decision.rule == "p-percent"


def test_two_cohorts_that_do_not_know_each_other_are_permitted():
    """Each owner's policy names its own cohort only."""
    one, two = ("alice", "bob", "carol"), ("dave", "erin", "fred")
    hub = Aggregator(
        quorum(contributors=one + two),
        dict.fromkeys(one, quorum(contributors=one))
        | dict.fromkeys(two, quorum(contributors=two)),
    )
    for number in (1, 2):
        assert hub.ask(**{f"{name}_{number}": 1 for name in one}).permits
        assert hub.ask(**{f"{name}_{number}": 1 for name in two}).permits
    assert not hub.ask(alice_3=1, bob_3=1, carol_3=1, dave_3=1, erin_3=1).permits


def test_two_aggregators_would_tell_what_neither_does():
    """Each permits its sum; the difference is over two. So a policy names one only."""
    decisions = []
    for here, third in (("hub", "carol"), ("hub2", "dave")):
        policy = quorum(aggregators=(here,))
        atoms = [Atom(one, "1") for one in ("alice", "bob", third)]
        asked = Release("me", dict.fromkeys(atoms, Fraction(1)), {})
        decisions.append(Auditor(here, policy).decide(asked, TODAY))
    assert all(one.permits for one in decisions)
    with pytest.raises(PolicyError, match="none of them knows what another"):
        quorum(aggregators=("hub", "hub2"))


# --- kinds ----------------------------------------------------------------------------


def kinds(requests, off=(), policies=None):
    """Return the decisions on requests of (kind, terms)."""
    hub = Aggregator(policies=policies, off=off)
    decisions = []
    for kind, terms in requests:
        asked = hub.release(**terms)
        asked = Release(asked.requester, asked.terms, asked.policies, kind)
        decisions.append(hub.take(asked))
    return decisions


FIVE = {f"{name}_1": 1 for name in OWNERS}
AGAIN = {f"{name}_2": 1 for name in OWNERS}


def test_a_trimmed_mean_over_enough_is_permitted():
    """What is left of each element is over three owners; again and again."""
    requests = [("trimmed_mean:1", FIVE), ("trimmed_mean:1", AGAIN)]
    assert all(one.permits for one in kinds(requests))


@pytest.mark.parametrize(
    ("requests", "words"),
    [
        ([("median", FIVE)], "'median' is no way"),
        ([("trimmed_mean:-1", FIVE)], "no way"),
        ([("trimmed_mean", FIVE)], "no way"),
        ([("trimmed_mean:2", FIVE)], "4 of 5 are left out"),
        ([("trimmed_mean:1", FIVE | {"alice_1": 2})], "no weights"),
        ([("trimmed_mean:1", FIVE | {"alice_2": 1})], "one tensor of each owner"),
        ([("trimmed_mean:1", FIVE | {"alice_1": 0})], "no weights"),
        ([("sum", FIVE), ("trimmed_mean:1", AGAIN)], "left in a sum, not clipped"),
        ([("trimmed_mean:1", FIVE), ("sum", AGAIN)], "would be in a sum"),
        ([("count", FIVE | {"alice_1": 2})], "a count has no weights"),
    ],
)
def test_a_kind_that_singles_out_is_refused(requests, words):
    """Means that leave out too much, and differences between kinds."""
    decision = kinds(requests)[-1]
    assert (decision.permits, decision.rule) == (False, "kind")
    assert words in decision.text
    assert all(one.permits for one in kinds(requests, ("kind", "p-percent")))


def test_another_norm_to_clip_to_is_refused():
    """The difference between two norms singles out the owners above the lower."""
    hub = Aggregator()
    assert hub.ask(**FIVE).permits
    hub.policies["alice"] = quorum(clip_norm=10)
    decision = hub.ask(**AGAIN)
    assert (decision.permits, decision.rule) == (False, "kind")
    assert "not clipped, and this would be in a sum, clipped to 10" in decision.text


WEIGHTED = {"alice_1": 3, "bob_1": 4, "carol_1": 5, "dave_1": 6, "erin_1": 5}


def test_a_count_over_the_same_is_a_sum_of_its_own():
    """It takes no part in what is known of values, but in the audit of owners."""
    ones = dict.fromkeys(WEIGHTED, 1)
    assert kinds([("sum", WEIGHTED), ("count", ones)])[1].rule == "p-percent"
    five = dict.fromkeys(WEIGHTED, 1)
    assert all(one.permits for one in kinds([("count", five), ("sum", five)]))
    trimmed = [("trimmed_mean:1", five), ("count", five), ("count", five)]
    assert all(one.permits for one in kinds(trimmed))


@pytest.mark.parametrize("first", ["count", "sum"])
def test_a_count_tells_no_single_tensor(first):
    """Of two counts, also that beside a sum, no difference is one tensor's."""
    other = FIVE | {"alice_2": 1}
    del other["alice_1"]
    requests = [(first, FIVE), ("count", other)]
    assert kinds(requests)[1].rule == "atoms"
    assert kinds(requests, ("atoms",))[1].permits


# --- texts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requests", "text"),
    [
        (
            [{"bob_1": "1/2", "alice_1": "1/2"}],
            "3 owners are needed, and this is a sum over alice, bob (coefficients "
            "1/2, 1/2); add carol, dave or erin",
        ),
        (
            [{"bob_1": 1}],
            "3 owners are needed, and this is a sum over bob (coefficients 1); add 2 "
            "of alice, carol, dave and erin",
        ),
        (
            [{}],
            "3 owners are needed, and this sums nobody's; add 3 of alice, bob, carol, "
            "dave and erin",
        ),
        (
            [{"bob_1": 1, "alice_1": 1, "eve_1": 1}],
            "3 owners are needed, and this is a sum over alice, bob, eve (coefficients "
            "1, 1, 1), of whom eve is not named by all policies; add carol, dave or "
            "erin",
        ),
        (
            [{"alice_1": "1/2", "bob_1": "3/10", "carol_1": "1/5"}],
            "the others without the 1 heaviest must weigh at least 100 % of any owner, "
            "and alice's weight 1/2 is more than what alice, bob, carol (coefficients "
            "1/2, 3/10, 1/5) allows: at most 1/5 beside these others",
        ),
        (
            [SUM, {"alice_2": 1, "bob_2": 1, "dave_2": 1}],
            "3 owners are needed; from this sum over alice, bob, dave (coefficients "
            "1, 1, 1) and earlier releases one over carol and dave alone could be "
            "computed; use the owners and weights of an earlier release, or owners who "
            "were in none",
        ),
        (
            [
                SUM | {"dave_1": 1, "erin_1": 1},
                {"alice_2": 1, "bob_2": 2, "carol_2": 3, "dave_2": 5, "erin_2": 8},
            ],
            "the others without the 1 heaviest must weigh at least 100 % of any owner; "
            "from this sum over alice, bob, carol, dave, erin (coefficients 1, 2, 3, "
            "5, 8) and earlier releases bob, carol, dave, erin (coefficients 1, 2, 4, "
            "7) could be computed, in which erin outweighs the others (at most 3 would "
            "do); use the owners and weights of an earlier release",
        ),
        (
            [SUM, {"alice_2": 1, "bob_1": 1, "carol_1": 1}],
            "what bob delivered was released before, in a sum with alice and carol; it "
            "may leave again in that combination and with those weights only: deliver "
            "anew for another",
        ),
        (
            [{"alice_1": 1, "alice_2": -1, "bob_1": 1, "carol_1": 1}],
            "what alice delivered has coefficients that add up to 0, which hides a "
            "difference between two of their tensors; let the owner subtract, and sum "
            "what is delivered then",
        ),
        (
            [{"alice_1": 2**40, "bob_1": 1, "carol_1": 1}],
            "alice's coefficient needs more than 32 bits; use weights that are "
            "fractions of small numbers, such as 1/3 or counts of rows",
        ),
    ],
)
def test_a_refusal_says_who_how_and_what_would_do(requests, text):
    """The participants with their coefficients, and what would be allowed."""
    hub = Aggregator(policies={"eve": quorum()})
    assert [hub.ask(**terms) for terms in requests][-1].text == text


def test_the_cap_that_is_named_is_the_largest_that_passes():
    """What a refusal offers is permitted, and no more than it."""
    weights = {"alice_1": "1/2", "bob_1": "3/10", "carol_1": "1/5", "dave_1": "1/10"}
    text = Aggregator().ask(**weights).text
    assert "alice's weight 1/2" in text
    assert "at most 3/10 beside these others" in text
    assert Aggregator().ask(**(weights | {"alice_1": "3/10"})).permits
    more = Fraction(3, 10) + Fraction(1, 1000)
    assert not Aggregator().ask(**(weights | {"alice_1": more})).permits


def test_policies_without_enough_in_common_are_named():
    """No sum would do where policies name too few together."""
    hub = Aggregator(policies={"alice": quorum(contributors=("bob", "carol"))})
    hub.policies["bob"] = quorum(contributors=("alice", "dave", "erin"))
    text = hub.ask(**SUM).text
    assert "the policies concerned have only alice and bob in common" in text
    hub = Aggregator(quorum(contributors=("x", "y", "z")), {"bob": quorum()})
    assert "have only nobody in common" in hub.ask(bob_1=1).text


def test_names_are_those_of_whoever_reads():
    """The auditor is told how to call a principal; long lists and numbers are cut."""
    ids = tuple(f"id{number:02}" for number in range(12))
    policy = quorum(contributors=ids)
    hub = Aggregator(policy, dict.fromkeys(ids, policy), name=str.upper)
    terms = dict.fromkeys([f"{one}_1" for one in ids], 1)
    terms |= {"id11_1": Fraction(10**9, 10**9 + 7), "id00_1": 50}
    text = hub.ask(**terms).text
    assert "ID00, ID01, ID02, ID03, ID04, ID05, ID06, ID07 and 4 more" in text
    assert "(coefficients 50, 1, 1, 1, 1, 1, 1, 1, …)" in text
    assert "ID08" not in hub.ask(id00_2=1).text.split(";")[0]
    assert "and 3 more" in hub.ask(id00_2=1).text


def test_a_view_that_counts_few_of_a_sum_says_so():
    """Where a policy of old takes all but some for colluders, that is what is said."""
    loose = quorum(contributors=(*OWNERS, "fred"))
    hub = Aggregator(loose, dict.fromkeys((*OWNERS, "fred"), loose))
    four = ("alice", "bob", "carol", "dave")
    hub.policies.update(dict.fromkeys(four, quorum(contributors=four)))
    assert hub.ask(**SUM, dave_1=1).permits
    hub.policies.update(dict.fromkeys(four, loose))
    text = hub.ask(alice_2=1, bob_2=1, erin_2=1, fred_2=1).text
    assert "only alice and bob count as different people" in text


def test_a_long_fraction_is_not_spelled_out():
    """A text stays short, whatever the coefficients."""
    hub = Aggregator()
    long = Fraction(2**31 - 1, 2**31 - 3)
    assert hub.ask(alice_1=long, bob_1=1, carol_1=1, dave_1=long).permits
    below = Fraction(2**30 - 1, 2**30 + 5)
    text = Aggregator().ask(alice_2=1, bob_2=1, carol_2=below).text
    assert "(coefficients 1, 1, 357913941/357913943)" in text
    text = (
        Aggregator(off=("coefficients",)).ask(alice_1=2**100, bob_1=1, carol_1=1).text
    )
    assert "a long fraction" in text


# --- deciding and recording -----------------------------------------------------------


def test_deciding_changes_nothing():
    """A decision counts once it is recorded; a refusal never does."""
    hub = Aggregator()
    first, second = hub.release(**SUM), hub.release(alice_2=1, bob_2=1, dave_2=1)
    assert hub.auditor.decide(first, TODAY).permits
    assert hub.take(second).permits
    decision = hub.auditor.decide(first, TODAY)
    assert decision.rule == "owners"
    hub.auditor.record(first, decision)
    assert hub.take(second).permits


def test_a_history_is_replayed():
    """Recorded without being decided anew, it leads to the same decisions."""
    one, other = Aggregator(), Aggregator()
    for terms in (SUM, {"alice_2": 1, "bob_2": 1, "carol_2": 1}):
        asked = one.release(**terms)
        other.auditor.record(asked, one.take(asked))
    for terms in (
        {"alice_3": 1, "bob_3": 1, "dave_3": 1},
        {"alice_1": 1, "bob_2": 1, "carol_1": 1},
        SUM,
        {"alice_4": 1, "bob_4": 1, "carol_4": 1, "dave_4": 5, "erin_4": 5},
    ):
        asked = one.release(**terms)
        assert one.auditor.decide(asked, TODAY) == other.auditor.decide(asked, TODAY)


def test_a_history_is_replayed_with_the_policies_of_then():
    """A policy that took part once is a view from then on."""
    careful = quorum(contributors=("alice", "bob", "carol", "dave"))
    loose = quorum(contributors=(*OWNERS, "fred"))
    hub = Aggregator(loose, dict.fromkeys((*OWNERS, "fred"), loose))
    asked = hub.release(alice_1=1, bob_1=1, carol_1=1, dave_1=1)
    asked = Release("me", asked.terms, dict.fromkeys(("alice", "bob"), careful))
    decision = hub.auditor.decide(asked, TODAY)
    other = Aggregator(loose, hub.policies)
    other.auditor.record(asked, decision)
    later = {"alice_2": 1, "bob_2": 1, "erin_1": 1, "fred_1": 1}
    assert other.ask(**later).rule == "owners"


def test_too_many_sets_of_owners_to_look_at_are_refused():
    """Above three owners, subsets are looked at; where they are too many: deny."""
    ids = tuple(f"id{number:03}" for number in range(60))
    policy = quorum(contributors=ids, honest=7, colluders=0, p_percent=1)
    hub = Aggregator(policy, dict.fromkeys(ids, policy))
    for power in range(3):
        terms = {
            f"{one}_{power}": (7 + place) ** power for place, one in enumerate(ids)
        }
        assert hub.ask(**terms).permits
    decision = hub.ask(**{f"{one}_3": 1 + place % 3 for place, one in enumerate(ids)})
    assert (decision.permits, decision.rule) == (False, "owners")
    assert "too many to check" in decision.text


def test_what_can_not_be_shown_is_refused():
    """Many sums over many owners, without a certificate: deny, and say so."""
    ids = tuple(f"id{number:03}" for number in range(21))
    policy = quorum(contributors=ids, p_percent=25)
    hub = Aggregator(policy, dict.fromkeys(ids, policy))

    def ask(key, weights):
        named = zip(ids, weights, strict=True)
        return hub.ask(**{f"{one}_{key}": weight for one, weight in named})

    for i in range(8):
        rows = [1 + (7 * i * i + 11 * i * j + 5 * j * j) % 17 for j in range(20)]
        assert ask(i, [*rows, 0]).permits
    decision = ask(8, [0] * 17 + [1, 1, 1, 100])
    assert (decision.permits, decision.rule) == (False, "p-percent")
    assert "that could not be shown" in decision.text
