"""An aggregator's core: sums go in and out, and nothing that is no sum."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
import torch
from msgspec import structs

from obhut.guard.coefficients import fits
from obhut.guard.policy import Quorum, UnsafeOpen, encode
from obhut.protocol.messages import (
    NOWHERE,
    Aggregate,
    Alias,
    Backward,
    Clear,
    Count,
    Counted,
    Deliver,
    Describe,
    Described,
    Done,
    Expect,
    Failed,
    Fetch,
    Fetched,
    Find,
    Free,
    Inline,
    Label,
    Load,
    Move,
    Put,
    ReadData,
    Ref,
    Refused,
    ReleaseQuestion,
    Results,
    Run,
    SetRequiresGrad,
    Symbol,
    TensorData,
)
from obhut.worker.core import Worker
from obhut.worker.effects import Parcel
from obhut.worker.roles import Aggregator, Owner
from obhut.worker.tensors import DTYPE_NAMES, from_frame, to_frame

POLICY = Quorum(  # deliveries that are written by hand state no computation
    aggregators=("sw",), contributors=("alice", "bob", "carol"), programs="any"
)
OWNERS = ("alice", "bob", "carol")


BAD_SUMS = (
    Aggregate("sum", (), 0, 10),
    Aggregate("sum", (1, 2, 3), 0, 10, (1, 1)),
    Aggregate("sum", (1, 2, 3), 0, 10, (), 0),
    Aggregate("sum", (1, 2, 3), 0, 10, (), 1, "complex64"),
    Aggregate("sum", (1, 2, 3), 0, 10, (), 1, "no_such"),
)


def deliver(driver, sender, id, tensor, policy=POLICY):
    """Deliver a tensor into a session, as an owner does; return the reply."""
    driver(Expect((id,), sender))
    data = TensorData(
        DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), 0, tensor.requires_grad
    )
    message = Deliver(driver.name, (id,), (data,), encode(policy) if policy else b"")
    parcel = Parcel(message, (to_frame(tensor),))
    return driver.worker.handle(sender, parcel, 0.0)[0].message


@pytest.fixture
def sw(opened):
    """An aggregator with one contribution of each owner, as 1, 2 and 3."""
    driver = opened(Worker("sw", role=Aggregator(POLICY)))
    for id, (owner, tensor) in enumerate(
        zip(OWNERS, torch.eye(3).reshape(3, 3), strict=True), start=1
    ):
        assert deliver(driver, owner, id, tensor) == Done()
    return driver


def run(op, *args, out=10, **kwargs):
    """Return a request for an operator."""
    return Run(f"aten.{op}", list(args), kwargs, out, 1, False)


def asked(driver, id):
    """Fetch an object; return what the guard is asked."""
    reply = driver.batch(Fetch(id))
    assert isinstance(reply, Results)
    assert not driver.frames
    return [effect.asked for effect in driver.effects]


def released(driver, id, *outcomes):
    """Fetch an object, let the guard permit it, and return its values."""
    questions = asked(driver, id)
    outcomes = outcomes or (None,) * len(questions)
    parcel = driver.worker.settle(driver.sender, driver.name, outcomes)
    (answer,) = parcel.message.answers
    assert isinstance(answer, Fetched), answer
    return from_frame(parcel.frames[0], answer.data.dtype, answer.data.shape)


def coefficients(driver, id):
    """Return the coefficients of a sum by owner, as the guard is asked."""
    question = asked(driver, id)[0]
    driver.settle(*[Refused("ReleaseRefusedError", "no: no")] * len(driver.effects))
    assert isinstance(question, ReleaseQuestion)
    return {owner: (n, d) for owner, _, n, d in question.terms}


def test_the_seeds_expression_is_a_third_of_each(sw):
    """((a.data + b.data + c.data) / 3).get() asks the guard, then brings the mean."""
    sw(
        ReadData(1, 11),
        ReadData(2, 12),
        ReadData(3, 13),
        run("add.Tensor", Ref(11), Ref(12), out=14),
        run("add.Tensor", Ref(14), Ref(13), out=15),
        run("div.Tensor", Ref(15), 3, out=16),
    )
    assert coefficients(sw, 16) == dict.fromkeys(OWNERS, (1, 3))
    assert torch.equal(released(sw, 16), torch.full((3,), 1 / 3))


def test_nothing_leaves_before_the_guard_has_spoken(sw):
    """A fetch of a sum is answered with nothing; a refusal is its only answer."""
    (question,) = asked(sw, 1)
    ((owner, key, *coefficient),) = question.terms
    assert (owner, *coefficient) == ("alice", 1, 1)
    assert re.fullmatch(r"[0-9a-f]{32}/1", key)  # however long the session's name is
    assert question.policies == (("alice", encode(POLICY)),)
    (failed,) = sw.settle(Refused("ReleaseRefusedError", "quorum: too few"))
    assert (failed.kind, failed.text) == ("ReleaseRefusedError", "quorum: too few")
    assert not sw.frames


def test_a_batch_that_is_sent_again_is_asked_again(sw):
    """What the guard was asked before a reply was lost, it is asked once more."""
    asked(sw, 1)
    reply = sw.batch(Fetch(1), number=sw.number)
    assert isinstance(reply, Results)
    assert len(sw.effects) == 1


def test_outcomes_that_do_not_fit_release_nothing(sw):
    """A shell that settles with too few or too many outcomes is refused."""
    asked(sw, 1)
    for outcomes in ((), (None, None)):
        parcel = sw.worker.settle("me", "s", outcomes)
        assert parcel.message.kind == "InternalError"
        assert not parcel.frames


@pytest.mark.parametrize(
    ("requests", "wanted"),
    [
        ([run("sub.Tensor", Ref(1), Ref(2))], {"alice": (1, 1), "bob": (-1, 1)}),
        (
            [run("add.Tensor", Ref(1), Ref(2), alpha=0.5)],
            {"alice": (1, 1), "bob": (1, 2)},
        ),
        ([run("sub.Tensor", Ref(1), Ref(1))], {"alice": (0, 1)}),
        ([run("mul.Tensor", Ref(1), 0.1)], {"alice": (1, 10)}),
        ([run("mul.Tensor", Ref(1), 0)], {"alice": (0, 1)}),
        ([run("neg.default", Ref(1))], {"alice": (-1, 1)}),
        ([run("add.Tensor", Ref(1), 0)], {"alice": (1, 1)}),
        ([run("clone.default", Ref(1))], {"alice": (1, 1)}),
        ([run("view.default", Ref(1), [3, 1])], {"alice": (1, 1)}),
        ([run("_to_copy.default", Ref(1), dtype=Symbol("float64"))], {"alice": (1, 1)}),
        (
            [run("mul.Tensor", Ref(1), Inline("float32", (), b"\xcd\xcc\xcc="))],
            {"alice": (1, 10)},
        ),
        (
            [
                run("stack.default", [Ref(1), Ref(2), Ref(3)], out=20),
                run("mean.dim", Ref(20), [0]),
            ],
            dict.fromkeys(OWNERS, (1, 3)),
        ),
        (
            [
                run("stack.default", [Ref(1), Ref(2), Ref(3)], -1, out=20),
                run("sum.dim_IntList", Ref(20), [1]),
            ],
            dict.fromkeys(OWNERS, (1, 1)),
        ),
        (
            [
                run("zeros_like.default", Ref(1), out=20),
                Run("aten.add_.Tensor", [Ref(20), Ref(1)], {}, NOWHERE, 0, False),
                Alias(20, 10),
            ],
            {"alice": (1, 1)},
        ),
    ],
)
def test_what_is_linear_keeps_its_coefficients(sw, requests, wanted):
    """Each admitted expression stands for the coefficients that it writes down."""
    assert sw(*requests) == []
    assert coefficients(sw, 10) == wanted


def test_a_float_stands_for_the_simplest_fraction(sw):
    """Honest weights 0.2, 0.3 and 0.5 are 1/5, 3/10 and 1/2."""
    sw(
        run("mul.Tensor", Ref(1), 0.2, out=21),
        run("mul.Tensor", Ref(2), 0.3, out=22),
        run("mul.Tensor", Ref(3), 0.5, out=23),
        run("add.Tensor", Ref(21), Ref(22), out=24),
        run("add.Tensor", Ref(24), Ref(23), out=25),
    )
    wanted = {"alice": (1, 5), "bob": (3, 10), "carol": (1, 2)}
    assert coefficients(sw, 25) == wanted


@pytest.mark.parametrize(
    "request_",
    [
        run("mul.Tensor", Ref(1), Ref(2)),
        run("div.Tensor", Ref(1), Ref(2)),
        run("pow.Tensor_Scalar", Ref(1), 2),
        run("abs.default", Ref(1)),
        run("select.int", Ref(1), 0, 0),
        run("slice.Tensor", Ref(1), 0, 0, 1),
        run("t.default", Ref(1)),
        run("flip.default", Ref(1), [0]),
        run("sum.default", Ref(1)),
        run("mean.dim", Ref(1), [0]),
        run("expand.default", Ref(1), [2, 3]),
        run("cat.default", [Ref(1), Ref(2)]),
        run("add.Tensor", Ref(1), 1),
        run("add.Tensor", Ref(1), 1e-300),
        run("mul.Tensor", Ref(1), True),
        run("mul.Tensor", Ref(1), float("nan")),
        run("mul.Tensor", Ref(1), float("inf")),
        run("mul.Tensor", Ref(1), 2**40),
        run("mul.Tensor", Ref(1), 1 + 2**-50),
        run("div.Tensor", Ref(1), 0),
        run("where.self", Ref(1), Ref(1), Ref(2)),
        run("_local_scalar_dense.default", Ref(1)),
        run("equal.default", Ref(1), Ref(2)),
        run("nonzero.default", Ref(1)),
        run("maximum.default", Ref(1), Ref(2)),
        run("add.Tensor", Ref(1), Inline("float32", (1,), b"\0\0\0\0")),
        run("mm.default", Ref(1), Ref(2)),
        run("no_such.default", Ref(1)),
        run("_to_copy.default", Ref(1), dtype=Symbol("bool")),
        run("_to_copy.default", Ref(1), dtype=Symbol("complex64")),
        Aggregate("median", (1, 2, 3), 1, 10),
        Aggregate("trimmed_mean", (1, 2), 1, 10),
        Aggregate("trimmed_mean", (1, 2, 2), 1, 10),
        Aggregate("trimmed_mean", (1, 2, 3), 0, 10),
        Aggregate("trimmed_mean", (), 1, 10),
        *BAD_SUMS,
        Aggregate("sum", (1, 2, 3), 0, 10, (2**40, 1, 1), 3),
        Aggregate("sum", (1, 2, 3), 0, 10, (2**40, -(2**40), 1)),
        Aggregate("sum", (1, 2, 3), 0, 10, (), 1, "float8_e5m2"),
        Move((1,), "mallory", "s", (1,)),
        Move((1,), "alice", "s", (1,)),
        Backward((1,), (None,), None, False, False),
        Load("d", "features", 10),
    ],
    ids=lambda r: r.op if isinstance(r, Run) else type(r).__name__,
)
def test_what_is_no_sum_is_refused(sw, request_):
    """Anything that is not linear, mixes elements or leaves: refused by name."""
    failed = sw.fails(request_)
    assert failed.kind in {
        "OpNotAdmittedError",
        "CallError",
        "CoefficientError",
        "ReleaseRefusedError",
    }
    assert not sw.effects
    assert sw.fails(Fetch(10)).kind in {
        failed.kind,
        "ObjectNotFoundError",
    }


def test_a_stack_itself_does_not_leave(sw):
    """Stacked contributions are theirs each: only over all of them there is a sum."""
    sw(run("stack.default", [Ref(1), Ref(2), Ref(3)]))
    assert sw.fails(Fetch(10)).kind == "ReleaseRefusedError"
    for op, args in (
        ("mean.dim", ([1],)),
        ("mean.default", ()),
        ("select.int", (0, 0)),
    ):
        failed = sw.fails(run(op, Ref(10), *args, out=30))
        assert failed.kind == "OpNotAdmittedError"
        sw(Free((30,), True))


def test_what_is_rounded_takes_part_in_nothing_else(sw):
    """A rounded mean is no sum: differences of roundings say more than sums."""
    sw(run("round.default", Ref(1), out=20))
    assert sw.fails(run("sub.Tensor", Ref(1), Ref(20))).kind == "OpNotAdmittedError"


def test_what_has_other_names_is_not_written(sw):
    """Total += x is total = total + x, unless somebody else holds total."""
    add = Run("aten.add_.Tensor", [Ref(1), Ref(2)], {}, NOWHERE, 0, False)
    sw(ReadData(1, 20))
    assert sw.fails(add).kind == "OpNotAdmittedError"
    assert coefficients(sw, 20) == {"alice": (1, 1)}


def test_shapes_must_agree(sw):
    """Nothing is spread over rows: broadcasting would weigh elements differently."""
    deliver(sw, "alice", 7, torch.ones(1))
    assert sw.fails(run("add.Tensor", Ref(1), Ref(7))).kind == "CallError"
    failed = sw.fails(run("view.default", Ref(1), [2, 2], out=11))
    assert failed.kind == "RemoteExecutionError"
    assert "shape" in failed.text


def test_what_the_requester_sent_comes_back_unasked(sw):
    """Its own is public to it; a sum of that and an owner's is the owner's matter."""
    sw.hold(30, [1.0, 2.0, 3.0])
    assert sw.value(30).tolist() == [1.0, 2.0, 3.0]
    sw(run("add.Tensor", Ref(30), Ref(1), out=31))
    assert coefficients(sw, 31) == {"alice": (1, 1)}


def test_terms_that_cancel_are_named(sw):
    """Who took part with 0 is part of what the guard is asked."""
    sw(
        run("sub.Tensor", Ref(1), Ref(1), out=20),
        run("add.Tensor", Ref(20), Ref(2), out=21),
    )
    assert coefficients(sw, 21) == {"alice": (0, 1), "bob": (1, 1)}


def test_each_delivery_is_another_contribution(sw):
    """The same owner's second tensor has another key, in every session."""
    deliver(sw, "alice", 8, torch.ones(3))
    (first,) = asked(sw, 1)[0].terms
    sw.settle(Refused("ReleaseRefusedError", "no: no"))
    (second,) = asked(sw, 8)[0].terms
    assert first[1] != second[1]


def test_how_many_were_not_finite_is_a_question_of_its_own(sw):
    """With different weights the count is another sum; refused, it is not told."""
    deliver(sw, "bob", 9, torch.tensor([float("nan"), 1.0, 1.0]))
    sw(
        run("mul.Tensor", Ref(1), 2, out=20),
        run("add.Tensor", Ref(20), Ref(9), out=21),
        run("add.Tensor", Ref(1), Ref(9), out=22),
    )
    sum_, count = asked(sw, 21)
    assert {t[0]: t[2] for t in sum_.terms} == {"alice": 2, "bob": 1}
    assert {t[0]: t[2] for t in count.terms} == {"alice": 1, "bob": 1}
    (told,) = sw.settle(None, Refused("ReleaseRefusedError", "p-percent: no"))
    assert (type(told), told.nonfinite) == (Fetched, 0)
    asked(sw, 22)
    (told,) = sw.settle(None)
    assert told.nonfinite == 1


def test_trimmed_means_name_their_kind(sw):
    """A named aggregator is asked for by its kind, and its values are its own."""
    sw(Aggregate("trimmed_mean", (1, 2, 3), 1, 10))
    questions = asked(sw, 10)
    assert [q.kind for q in questions] == ["trimmed_mean:1", "count"]
    sw.settle(None, None)
    assert sw.fails(run("mul.Tensor", Ref(10), 2, out=11)).kind == "OpNotAdmittedError"
    assert sw.fails(Aggregate("trimmed_mean", (1, 2, 10), 1, 12)).kind == "CallError"


def test_the_rest_of_a_session_works_as_elsewhere(sw):
    """Describing, tagging, counting and forgetting need no guard."""
    sw(SetRequiresGrad(1, True), Label(1, ("#t",), "words"))
    (told,) = sw(Describe(1))
    assert isinstance(told, Described)
    assert told.specs[0].requires_grad
    (found,) = sw(Find(("#t",)))
    assert [entry[0] for entry in found.objects] == [1]
    assert sw(Count())[0].count == 3
    assert sw(Clear(), Count()) == [Counted(1, 0)]


def test_memory_counts_contributions_while_a_sum_needs_them(opened):
    """Freeing the names of contributions frees nothing that a sum is made of."""
    size = 4 * 1_000
    worker = Worker("sw", role=Aggregator(POLICY), memory_limit=2 * size)
    driver = opened(worker)
    deliver(driver, "alice", 1, torch.ones(1_000))
    deliver(driver, "bob", 2, torch.ones(1_000))
    driver(run("add.Tensor", Ref(1), Ref(2)), Free((1, 2), True))
    refused = deliver(driver, "carol", 3, torch.ones(1_000))
    assert refused.kind == "MemoryLimitError"
    driver(Free((10, 3), True))
    assert deliver(driver, "carol", 4, torch.ones(1_000)) == Done()


def test_a_policy_travels_and_binds(opened):
    """An owner with a policy delivers to nobody who would not obey it."""
    plain = opened(Worker("sw"))
    reply = deliver(plain, "alice", 1, torch.ones(1))
    assert (type(reply), reply.kind) == (Refused, "ReleaseRefusedError")
    owner = opened(Worker("sw", role=Owner(POLICY, print)))
    assert deliver(owner, "alice", 1, torch.ones(1)).kind == "ReleaseRefusedError"
    for policy in (UnsafeOpen(), None):
        assert deliver(plain, "bob", 2, torch.ones(1), policy) == Done()
        plain(Free((2,), True))


def test_an_owner_hands_nothing_out(opened):
    """At an owner's worker a value is refused, and moves to strangers are."""
    bob = opened(Worker("bob", role=Owner(POLICY, print)))
    bob.hold(1, [1.0])
    assert bob.fails(Fetch(1)).kind == "ReleaseRefusedError"
    assert bob.fails(Move((1,), "mallory", "s", (1,))).kind == "ReleaseRefusedError"
    assert not bob.effects
    bob(Move((1,), "sw", "s", (1,)))
    (delivery,) = bob.effects
    assert delivery.to == "sw"
    assert delivery.message.policy == encode(POLICY)


def test_a_release_message_comes_from_nobody_outside(sw):
    """A client can not ask in the place of a session."""
    reply = sw.handle(ReleaseQuestion("sum", (), ()))
    assert (type(reply), reply.kind) == (Refused, "RemoteProtocolError")


def test_a_failed_release_says_so_and_no_more(opened):
    """Too little memory for a sum is an error of its own; the session goes on."""
    worker = Worker("sw", role=Aggregator(POLICY), memory_limit=4 * 3_000)
    driver = opened(worker)
    for id, owner in enumerate(OWNERS, start=1):
        deliver(driver, owner, id, torch.ones(1_000))
    driver(run("add.Tensor", Ref(1), Ref(2)))
    asked(driver, 10)
    (failed,) = driver.settle(None)
    assert isinstance(failed, Failed)
    assert failed.kind == "MemoryLimitError"
    assert driver(Count())[0].count == 4


def test_put_takes_a_tag(sw):
    """What a requester sends can be found again."""
    tensor = torch.ones(2)
    data = TensorData("float32", (2,), 0, False)
    assert sw(Put(40, data, ("#mine",), "words"), frames=[to_frame(tensor)]) == []
    (found,) = sw(Find(("#mine",)))
    assert found.objects[0][0] == 40


def test_ones_own_values_are_not_trimmed_among_owners(sw):
    """Else two trimmed means would tell which owner's value is the largest."""
    data = TensorData("float32", (3,), 0)
    sw.frames = ()
    sw(Put(20, data), frames=[to_frame(torch.ones(3))])
    failed = sw.fails(Aggregate("trimmed_mean", (1, 2, 3, 20), 1, 21))
    assert (failed.kind, "among it" in failed.text) == ("CallError", True)


def test_two_policies_of_an_owner_do_not_meet(sw):
    """What came under a stricter policy is not released by a later one."""
    strict = Quorum(aggregators=("sw",), contributors=OWNERS, honest=3)
    deliver(sw, "alice", 20, torch.ones(3), strict)
    sw(run("add.Tensor", Ref(1), Ref(20), out=21))
    (failed,) = sw.batch(Fetch(21)).answers
    assert failed.text.startswith("policy: what alice delivered came with two")


def test_who_is_counted_is_who_was_looked_at(sw):
    """A contribution with the coefficient 0 is in no count that is told.

    Else two counts, of which one leaves it out, would tell of that owner alone.
    """
    sw(
        run("mul.Tensor", Ref(1), 2, out=20),
        run("mul.Tensor", Ref(3), 0, out=21),
        run("add.Tensor", Ref(20), Ref(2), out=22),
        run("add.Tensor", Ref(22), Ref(21), out=23),
        run("add.Tensor", Ref(1), Ref(2), out=24),
        run("add.Tensor", Ref(24), Ref(21), out=25),
    )
    sum_, count = asked(sw, 23)
    assert {term[0] for term in sum_.terms} == set(OWNERS)
    assert {term[0] for term in count.terms} == {"alice", "bob"}
    sw.settle(Refused("ReleaseRefusedError", "no: no"), None)
    assert len(asked(sw, 25)) == 1


def test_what_the_requester_sent_comes_back_as_it_was(sw):
    """NaN, truths and all: there is nothing in it to protect."""
    tensor = sw.hold(30, [float("nan"), 1.0])
    assert torch.equal(sw.value(30), tensor) is False
    assert sw.value(30).isnan().tolist() == [True, False]
    sw.hold(31, [True, False])
    assert sw.value(31).tolist() == [True, False]


def test_what_can_not_be_added_in_float64_is_refused_at_once(sw):
    """Else it would fail after the guard has permitted it."""
    tensor = torch.ones(3).to(torch.float8_e4m3fn)
    deliver(sw, "alice", 40, tensor)
    failed = sw.fails(run("stack.default", [Ref(40), Ref(40)]))
    assert failed.kind == "OpNotAdmittedError"


def test_an_open_worker_has_named_aggregators_too(me):
    """Without a policy a trimmed mean is computed at once, and checked as well."""
    for id, value in enumerate((1.0, 2.0, 30.0), start=1):
        me.hold(id, [value])
    me(Aggregate("trimmed_mean", (1, 2, 3), 1, 10))
    assert me.value(10).item() == 2.0
    assert me.fails(Aggregate("median", (1, 2, 3), 1, 11)).kind == "CallError"
    me.hold(4, [1])
    assert me.fails(Aggregate("trimmed_mean", (1, 2, 4), 1, 12)).kind == "CallError"


def test_a_weighted_sum_is_a_sum(sw):
    """Its coefficients are asked for, and it may take part in others."""
    sw(
        Aggregate("sum", (1, 2, 3), 0, 10, (1, 2, 7), 10),
        run("mul.Tensor", Ref(10), 20, out=11),
        Aggregate("sum", (10, 10, 1), 0, 12),
    )
    assert coefficients(sw, 10) == {"alice": (1, 10), "bob": (1, 5), "carol": (7, 10)}
    assert coefficients(sw, 11) == {"alice": (2, 1), "bob": (4, 1), "carol": (14, 1)}
    assert coefficients(sw, 12) == {"alice": (6, 5), "bob": (2, 5), "carol": (7, 5)}
    (told,) = sw(Describe(10))
    assert told.specs[0].dtype == "float32"
    assert torch.equal(released(sw, 11, None, None), torch.tensor([2.0, 4.0, 14.0]))


def test_a_mean_whose_weights_are_long_is_a_mean(sw):
    """Shares that an audit could not take are shortened, and still sum to 1."""
    weights = (2**52, 2**51 + 1, 2**51 - 1)
    sw(Aggregate("sum", (1, 2, 3), 0, 10, weights, 2**53))
    found = {n: Fraction(*pair) for n, pair in coefficients(sw, 10).items()}
    assert sum(found.values()) == 1
    wanted = dict(zip(OWNERS, (Fraction(w, 2**53) for w in weights), strict=True))
    assert all(abs(found[name] - wanted[name]) < 2**-30 for name in OWNERS)
    assert all(map(fits, found.values()))


@pytest.mark.parametrize(
    ("dtype", "values", "wanted", "total"),
    [
        (torch.int64, (2**62 + 1, 2**62 + 1, 2**62 + 4), 2**62 + 2, 2**62 - 2**63 + 6),
        (torch.uint8, (200, 200, 206), 202, 94),
        (torch.bool, (True, True, False), True, True),
        (torch.bool, (True, False, False), False, True),
    ],
)
def test_whole_numbers_are_exact(sw, dtype, values, wanted, total):
    """Means are rounded to the nearest, and sums overflow as PyTorch's do."""
    for id, (owner, value) in enumerate(zip(OWNERS, values, strict=True), start=20):
        deliver(sw, owner, id, torch.tensor([value]).to(dtype))
    ids = (20, 21, 22)
    sw(Aggregate("sum", ids, 0, 30, (), 3), Aggregate("sum", ids, 0, 31))
    assert released(sw, 30).item() == wanted
    assert released(sw, 31).item() == total
    failed = sw.fails(run("mul.Tensor", Ref(30), 2, out=32))
    assert failed.kind == "OpNotAdmittedError"  # what was rounded is no sum


def test_complex_numbers_are_added_to_their_kind(sw):
    """By real numbers they are multiplied, and none of their parts is had alone."""
    for id, owner in enumerate(OWNERS, start=20):
        deliver(sw, owner, id, torch.tensor([id + 1j, -1j], dtype=torch.complex64))
        deliver(sw, owner, id + 10, torch.ones(2))
    sw(Aggregate("sum", (20, 21, 22), 0, 40, (), 3))
    assert released(sw, 40).tolist() == [21 + 1j, -1j]
    for request in (
        run("add.Tensor", Ref(20), Ref(30)),
        run("add.Tensor", Ref(30), Ref(20)),
        Aggregate("sum", (20, 30), 0, 50),
        run("mul.Tensor", Ref(20), Inline("complex64", (), b"\0" * 8)),
        run("_to_copy.default", Ref(20), dtype=Symbol("float32")),
        run("view_as_real.default", Ref(20)),
        run("abs.default", Ref(20)),
    ):
        failed = sw.fails(request)
        assert failed.kind in {"OpNotAdmittedError", "CallError"}, request


def test_an_open_worker_adds_exactly_too(me):
    """Without a policy a weighted sum is computed at once, and rounded once."""
    for id, value in enumerate((0.1, 0.2, 0.7), start=1):
        me.hold(id, [value] * 3)
    me(Aggregate("sum", (1, 2, 3), 0, 10, (1, 2, 7), 10, "float64"))
    exact = [Fraction(me.value(id)[0].item()) for id in (1, 2, 3)]
    wanted = float((exact[0] + 2 * exact[1] + 7 * exact[2]) / 10)
    assert me.value(10).tolist() == [wanted] * 3
    for bad in BAD_SUMS:
        assert me.fails(bad).kind == "CallError", bad
    me.hold(4, [1.0])
    assert me.fails(Aggregate("sum", (1, 4), 0, 11)).kind == "CallError"


def test_what_fails_after_the_guard_permitted_it_is_answered(sw, monkeypatch):
    """Whatever goes wrong with a sum's values, the session is not stuck."""

    def broken(*args):
        raise RuntimeError("with a value: 1.25")

    monkeypatch.setattr("obhut.worker.aggregation.evaluate", broken)
    asked(sw, 1)
    (failed,) = sw.settle(None)
    assert (failed.kind, "1.25" in failed.text) == ("InternalError", False)
    assert sw(Count())[0].count == 3


def test_results_are_described_when_asked_for(sw):
    """What a sum looks like depends on shapes only."""
    request = Run("aten.add.Tensor", [Ref(1), Ref(2)], {}, 10, 1, False, describe=True)
    (told,) = sw(request)
    assert told.specs[0].shape == (3,)


def test_unknown_constants_and_many_terms_are_refused(sw, monkeypatch):
    """A symbol is one of the table's, and a sum has so many contributions."""
    unknown = run("_to_copy.default", Ref(1), dtype=Symbol("no_such"))
    assert sw.fails(unknown).kind == "RemoteProtocolError"
    monkeypatch.setattr("obhut.worker.sums.TERMS_AT_MOST", 1)
    assert sw.fails(run("add.Tensor", Ref(1), Ref(2), out=11)).kind == "LimitError"


# --- contributions that could not be made ---------------------------------------------


def announce(driver, sender, ids, tensors, spoilt):
    """Hand in headers of what an owner delivers, and then its bytes or none."""
    driver(Expect(tuple(ids), sender))
    looks = tuple(
        TensorData(DTYPE_NAMES[t.dtype], tuple(t.shape), k)
        for k, t in enumerate(tensors)
    )
    message = Deliver(driver.name, tuple(ids), looks, encode(POLICY))
    frames = tuple(to_frame(t) for t in tensors)
    end = Parcel(structs.replace(message, spoilt=True)) if spoilt else None
    for parcel in (Parcel(message), end or Parcel(message, frames)):
        assert driver.worker.handle(sender, parcel, 0.0)[0].message == Done()


def test_a_spoilt_contribution_is_zeros_that_are_counted(sw):
    """It is added as nothing, and its owner counts as one whose values are unusable."""
    announce(sw, "alice", [11], [torch.ones(3)], spoilt=True)
    announce(sw, "bob", [12], [torch.ones(3)], spoilt=False)
    sw(run("add.Tensor", Ref(11), Ref(12), out=20))
    asked(sw, 20)
    parcel = sw.worker.settle("me", "s", (None,))
    (told,) = parcel.message.answers
    assert told.nonfinite == 1
    assert from_frame(parcel.frames[0], "float32", (3,)).tolist() == [1.0] * 3


def test_one_number_is_told_for_a_batch(sw):
    """Not one a tensor: owners are counted once, wherever in the batch they are."""
    bad = torch.full((3,), float("nan"))
    announce(sw, "alice", [11, 12], [torch.ones(3)] * 2, spoilt=True)
    announce(sw, "bob", [13, 14], [torch.ones(3), bad], spoilt=False)
    announce(sw, "carol", [15, 16], [torch.ones(3)] * 2, spoilt=False)
    sw(
        Aggregate("sum", (11, 13, 15), 0, 20),
        Aggregate("sum", (12, 14, 16), 0, 21),
        Aggregate("sum", (13, 15), 0, 22),
    )
    sw.batch(Fetch(20), Fetch(21), Fetch(22))
    told = sw.settle(*[None] * len(sw.effects))
    assert [one.nonfinite for one in told] == [2, 2, 2]
    sw.batch(Fetch(22))
    (told,) = sw.settle(None)
    assert told.nonfinite == 0


def test_what_the_guard_does_not_let_count_is_told_no_number(sw):
    """A sum whose count is refused has none, beside sums that have."""
    announce(sw, "alice", [11], [torch.ones(3)], spoilt=True)
    sw(
        run("mul.Tensor", Ref(11), 2, out=20),
        run("add.Tensor", Ref(20), Ref(2), out=21),
        run("add.Tensor", Ref(11), Ref(2), out=22),
    )
    sw.batch(Fetch(21), Fetch(22))
    assert [effect.asked.kind for effect in sw.effects] == ["sum", "count", "sum"]
    told = sw.settle(None, Refused("ReleaseRefusedError", "p-percent: no"), None)
    assert [one.nonfinite for one in told] == [0, 1]


def test_a_spoilt_contribution_takes_room_and_no_memory(opened):
    """What may still be held tells nobody which contributions are spoilt."""
    for spoilt in (False, True):
        sw = opened(Worker("sw", role=Aggregator(POLICY), memory_limit=1000))
        announce(sw, "alice", [1], [torch.ones(200)], spoilt)
        failed = sw.fails(Put(5, TensorData("float32", (60,), 0)), frames=[bytes(240)])
        assert (failed.kind, failed.facts) == ("MemoryLimitError", (240, 800, 1000))
    held = sw.worker._sessions["s"].aggregation.store[1]
    ((contribution, _),) = held.terms.items()
    assert contribution.tensor.untyped_storage().nbytes() == 4


@pytest.mark.parametrize("kind", ["sum", "trimmed_mean"])
def test_spoilt_contributions_are_combined_as_zeros(sw, kind):
    """However they are combined, whatever dtype they should have had."""
    for dtype in (torch.float64, torch.complex64) if kind == "sum" else (torch.half,):
        sw(Clear())
        for id, owner in enumerate(OWNERS, start=31):
            values = torch.full((2, 2), 3.0).to(dtype)
            announce(sw, owner, [id], [values], spoilt=owner == "bob")
        sw(Aggregate(kind, (31, 32, 33), int(kind != "sum"), 40))
        assert released(sw, 40).tolist() == [[6 if kind == "sum" else 3] * 2] * 2
