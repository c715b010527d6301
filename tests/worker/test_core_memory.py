"""The memory limit: what counts, what is given back, and ways to get around it.

The limit here is 1 MiB, what is asked for hundreds of times as much: if a test
allocated it, the process's peak would show it.
"""

from __future__ import annotations

import resource

import pytest
import torch

from obhut.protocol.messages import (
    NOWHERE,
    Alias,
    Clear,
    Complex,
    Expect,
    Failed,
    Fetch,
    Free,
    Here,
    Inline,
    Move,
    Put,
    ReadData,
    Ref,
    Refused,
    Symbol,
    TensorData,
    WriteData,
)
from obhut.worker.effects import Parcel

LIMIT = 2**20
HUGE = 10**8
"""Elements; of float32, 400 MB."""
SLACK = 150 * 2**20


@pytest.fixture
def me(opened):
    """A client of a worker that lets each session hold 1 MiB."""
    return opened(memory_limit=LIMIT)


@pytest.fixture
def peak():
    """A check that the process did not grow by what a test asks for."""

    def kib():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = kib()
    yield
    assert (kib() - before) * 1024 < SLACK


def exceeds(failed, op):
    """Check that a failure is about memory; return the bytes that were asked."""
    assert isinstance(failed, Failed), failed
    assert (failed.kind, failed.op) == ("MemoryLimitError", op)
    asked, held, limit = failed.facts
    assert held + asked > limit == LIMIT
    return asked


@pytest.mark.usefixtures("peak")
@pytest.mark.parametrize(
    ("op", "args", "kwargs"),
    [
        ("aten.zeros.default", [[HUGE]], {"device": Here()}),
        ("aten.zeros.default", [[HUGE]], {}),
        ("aten.ones.default", [[HUGE]], {}),
        ("aten.ones.default", [[HUGE]], {"device": None}),
        ("aten.full.default", [[HUGE], 1.0], {}),
        ("aten.full.default", [[HUGE], Complex(1.0, 1.0)], {}),
        ("aten.empty.memory_format", [[HUGE]], {}),
        ("aten.empty_strided.default", [[2], [HUGE]], {}),
        ("aten.randn.default", [[HUGE]], {}),
        ("aten.arange.default", [HUGE], {}),
        ("aten.arange.default", [float(HUGE)], {"dtype": Symbol("float64")}),
        ("aten.eye.default", [10_000], {}),
        ("aten.linspace.default", [0, 1, HUGE], {}),
        ("aten.tril_indices.default", [10_000, 10_000], {}),
        ("aten.repeat.default", [Ref(1), [HUGE]], {}),
        ("aten.constant_pad_nd.default", [Ref(1), [0, HUGE]], {}),
        ("aten.new_zeros.default", [Ref(1), [HUGE]], {}),
        ("aten.new_full.default", [Ref(1), [HUGE], 1.0], {}),
        ("aten.mul.Tensor", [Ref(2), Ref(3)], {}),
        ("aten.mm.default", [Ref(3), Ref(4)], {}),
        ("aten.clone.default", [Ref(5)], {}),
        ("aten.add.Tensor", [Ref(5), Ref(1)], {}),
        ("aten.add.Tensor", [Inline("float32", (), bytes(4)), Ref(5)], {}),
        ("aten._to_copy.default", [Ref(5)], {"dtype": Symbol("float64")}),
        ("aten.cat.default", [[Ref(5), Ref(5)]], {}),
        ("aten.nonzero_static.default", [Ref(1)], {"size": HUGE}),
    ],
)
def test_a_huge_result_is_refused_before_it_is_made(me, run, op, args, kwargs):
    """No operator makes what the limit leaves no room for, however it is asked."""
    me.hold(1, [1.0])
    me.hold(2, torch.ones(10_000))
    me.hold(3, torch.ones(10_000, 1))
    me.hold(4, torch.ones(1, 10_000))
    me(run("aten.expand.default", Ref(1), [HUGE], out=5))
    failed = me.fails(run(op, *args, kwargs=kwargs, out=9))
    assert exceeds(failed, op) >= HUGE * 4 * 0.5 or op.startswith("aten.tril")
    assert exceeds(me.fails(Fetch(9)), op)
    assert me.value(1).item() == 1.0


@pytest.mark.usefixtures("peak")
def test_a_result_that_is_kept_nowhere_is_refused_too(me, run):
    """What would only be thrown away is not made either."""
    failed = me.fails(run("aten.ones.default", [HUGE], out=NOWHERE))
    exceeds(failed, "aten.ones.default")


@pytest.mark.usefixtures("peak")
def test_a_view_that_must_copy_is_refused(me, run):
    """An operator that may return a view counts where it would copy, else not."""
    me.hold(1, [1.0])
    me(run("aten.expand.default", Ref(1), [10_000, 10_000], out=2))
    failed = me.fails(run("aten._reshape_copy.default", Ref(2), [HUGE], out=3))
    assert failed.kind in {"MemoryLimitError", "OpNotAdmittedError"}
    failed = me.fails(run("aten.flatten.using_ints", Ref(2), out=4))
    assert failed.kind in {"MemoryLimitError", "OpNotAdmittedError"}
    assert me(run("aten.unsqueeze.default", Ref(2), 0, out=5)) == []


@pytest.mark.usefixtures("peak")
def test_an_out_argument_does_not_grow_beyond_the_limit(me, run):
    """An operator with ``out=`` is held to the limit before it resizes."""
    me.hold(1, torch.ones(10_000, 1))
    me.hold(2, torch.ones(1, 10_000))
    me(run("aten.empty.memory_format", [0], out=3))
    out = {"out": Ref(3)}
    request = run("aten.mm.out", Ref(1), Ref(2), kwargs=out, grad=False)
    exceeds(me.fails(request), "aten.mm.out")
    assert me.value(3).numel() == 0


@pytest.mark.usefixtures("peak")
def test_resizing_does_not_grow_beyond_the_limit(me, run):
    """``resize_`` is held to the limit before it allocates."""
    me(run("aten.empty.memory_format", [1], out=1))
    request = run("aten.resize_.default", Ref(1), [HUGE], grad=False)
    exceeds(me.fails(request), "aten.resize_.default")


@pytest.mark.usefixtures("peak")
def test_a_huge_view_can_not_be_fetched_or_moved(me, run):
    """An expanded view costs nothing until it travels, and then it is refused."""
    me.hold(1, [1.0])
    assert me(run("aten.expand.default", Ref(1), [HUGE], out=2)) == []
    exceeds(me.fails(Fetch(2)), "fetch")
    failed = me.fails(Move((2,), "alice", "t", (1,)))
    assert failed.kind == "MemoryLimitError"
    assert me.effects == ()


@pytest.mark.usefixtures("peak")
def test_a_replys_copies_are_limited(me, run):
    """Fetching again and again between writes copies no more than the limit."""
    size = 200_000
    me(run("aten.zeros.default", [size // 4], out=1))
    pair = (Fetch(1), run("aten.add_.Tensor", Ref(1), 1.0, grad=False))
    answers = me(*pair * 1000)
    assert sum(len(frame) for frame in me.frames) <= LIMIT
    assert answers[-1].kind == "MemoryLimitError"
    assert me.value(1)[0].item() == 1000.0


def test_views_and_aliases_count_once(me, run):
    """Ids that share a storage hold it together; it is given back with the last."""
    me(run("aten.zeros.default", [200_000], out=1))
    me(
        run("aten.view.default", Ref(1), [2, 100_000], out=2),
        Alias(1, 3),
        ReadData(1, 4),
        run("aten.slice.Tensor", Ref(1), 0, 0, 10, out=5),
    )
    big = run("aten.zeros.default", [200_000], out=10)
    assert me.count() == 5
    for id in (1, 2, 3, 4):
        exceeds(me.fails(big, Free((10,))), "aten.zeros.default")
        me(Free((id,)))
    exceeds(me.fails(big, Free((10,))), "aten.zeros.default")
    me(Free((5,)))
    assert me(big) == []


def test_what_is_freed_or_cleared_is_given_back(me, run):
    """Memory can be used again, as often as it is given back."""
    for give_back in (Free((1,)), Clear()) * 5:
        assert me(run("aten.zeros.default", [200_000], out=1), give_back) == []


def test_a_failure_costs_no_memory(me, run):
    """Refused and failed requests leave the room as it was."""
    me(run("aten.zeros.default", [100], out=1))
    for _ in range(20):
        me.fails(run("aten.zeros.default", [HUGE], out=9), Free((9,)))
        me.fails(run("aten.view.default", Ref(1), [7], out=9), Free((9,)))
    assert me(run("aten.zeros.default", [200_000], out=9)) == []


def test_room_is_exact(opened, run):
    """As many bytes as the limit says fit, one more does not."""
    me = opened(memory_limit=1000)
    me.hold(1, torch.zeros(600, dtype=torch.uint8))
    failed = me.fails(
        run("aten.zeros.default", [401], kwargs={"dtype": Symbol("uint8")}, out=2)
    )
    assert failed.facts == (401, 600, 1000)
    me(run("aten.zeros.default", [400], kwargs={"dtype": Symbol("uint8")}, out=3))
    assert me.value(3).numel() == 400


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("aten.squeeze_.default", []),
        ("aten.unsqueeze_.default", [0]),
        ("aten.t_.default", []),
        ("aten.transpose_.default", [0, 1]),
        ("aten.add_.Tensor", [1.0]),
        ("aten.zero_.default", []),
        ("aten.view.default", [[1, 250]]),
        ("aten.detach.default", []),
        ("aten.select.int", [0, 0]),
    ],
)
def test_what_needs_no_memory_needs_no_room(opened, run, op, args):
    """Views and operators in place run at a worker that is full."""
    me = opened(memory_limit=1000)
    me.hold(1, torch.zeros(250, 1))
    assert me(run(op, Ref(1), *args, out=2, grad=False)) == []


def test_an_out_argument_that_fits_needs_no_room(opened, run):
    """Writing into what is there already is no allocation."""
    me = opened(memory_limit=1000)
    me.hold(1, torch.zeros(125))
    me.hold(2, torch.zeros(125))
    out = {"out": Ref(2)}
    assert me(run("aten.add.out", Ref(1), Ref(1), kwargs=out, grad=False)) == []


@pytest.mark.parametrize("size", [LIMIT + 1, 2 * LIMIT])
def test_a_sent_tensor_is_held_to_the_limit(me, size):
    """What a client sends is refused before it is copied."""
    put = Put(1, TensorData("uint8", (size,), 0))
    exceeds(me.fails(put, frames=[bytes(size)]), "put")


def test_sending_is_counted(me):
    """Tensors that are sent one by one fill the limit together."""
    frame = bytes(LIMIT // 4)
    spec = TensorData("uint8", (len(frame),), 0)
    for id in range(1, 5):
        assert me(Put(id, spec), frames=[frame]) == []
    exceeds(me.fails(Put(9, spec), frames=[frame]), "put")


def test_a_delivery_is_held_to_the_limit(me):
    """What another worker delivers is refused as a whole, and still expected."""
    from obhut.protocol.messages import Deliver, Done

    me(Expect((1, 2), "alice"))

    def reply(size):
        spec = TensorData("uint8", (size,), 0), TensorData("uint8", (size,), 1)
        parcel = Parcel(Deliver("s", (1, 2), spec), (bytes(size),) * 2)
        return me.worker.handle("alice", parcel, 0.0)[0].message

    refused = reply(LIMIT * 3 // 4)
    assert isinstance(refused, Refused)
    assert refused.kind == "MemoryLimitError"
    assert me.count() == 0
    assert reply(LIMIT // 2) == Done()


def test_room_is_kept_for_what_was_announced(me):
    """Nothing else takes it meanwhile; it is free again if the bytes never come."""
    from obhut.protocol.messages import Deliver, Done

    size = LIMIT * 3 // 4
    spec = (TensorData("uint8", (size,), 0),)

    def tell(spoilt=False, frames=()):
        parcel = Parcel(Deliver("s", (1,), spec, spoilt=spoilt), frames)
        return me.worker.handle("alice", parcel, 0.0)[0].message

    me(Expect((1,), "alice"))
    assert tell() == tell() == Done()
    put = Put(2, TensorData("uint8", (LIMIT // 2,), 0))
    exceeds(me.fails(put, frames=[bytes(LIMIT // 2)]), "put")
    assert tell(spoilt=True) == Done()
    assert me(Put(3, put.data), frames=[bytes(LIMIT // 2)]) == []
    me(Free((3,), True), Expect((4,), "alice"))
    spec_there = Deliver("s", (4,), spec)
    for frames in ((), (bytes(size),)):
        parcel = Parcel(spec_there, frames)
        assert me.worker.handle("alice", parcel, 0.0)[0].message == Done()
    assert me.count() == 3  # the failures of 1 and 2, and 4


def test_a_session_does_not_use_up_anothers_limit(opened, run):
    """Each session has the limit for itself."""
    one = opened(memory_limit=LIMIT)
    two = opened(one.worker, sender="you", name="t")
    for driver in (one, two):
        assert driver(run("aten.zeros.default", [200_000], out=1)) == []


# --- around the count ---------------------------------------------------------------


def test_resizing_one_of_two_names_counts(me, run):
    """A storage that grows under an alias is counted as what it has become."""
    for k in range(10):
        base = 10 * k + 1
        me(
            run("aten.empty.memory_format", [1], out=base),
            Alias(base, base + 1),
            run("aten.resize_.default", Ref(base), [200_000], grad=False),
        )
    sizes = [me(Fetch(10 * k + 1))[0].data.shape[0] for k in range(10)]
    assert sum(sizes) * 4 <= LIMIT


def test_replacing_the_data_of_one_of_two_names_counts(me, run):
    """A storage stays counted while a name may still hold it, and no longer."""
    for k in range(1, 100, 4):
        me(
            run("aten.zeros.default", [1], out=k),
            Alias(k, k + 1),
            run("aten.zeros.default", [50_000], out=k + 2),
            WriteData(k, k + 2),
            Free((k + 2,)),
        )
    held = [me(Fetch(k))[0] for k in range(1, 100, 4)]
    sizes = [one.data.shape[0] for one in held if not isinstance(one, Failed)]
    assert sum(sizes) * 4 <= LIMIT
    me(Free(tuple(range(1, 104))))
    assert me(run("aten.zeros.default", [200_000], out=200)) == []


@pytest.mark.usefixtures("peak")
def test_a_size_beyond_all_numbers_is_answered(me, run):
    """Bytes that fit no 64-bit number are refused in a reply that can be written."""
    me.hold(1, [1.0])
    me(run("aten.expand.default", Ref(1), [2**60], out=2))
    request = run("aten._foreach_neg.default", [Ref(2)] * 16, out=10, count=16)
    assert me.fails(request).kind == "MemoryLimitError"


@pytest.mark.usefixtures("peak")
def test_sizes_that_overflow_are_pytorchs_error(me, run):
    """A shape beyond what a tensor can have fails and allocates nothing."""
    for op, args in (
        ("aten.zeros.default", [[2**62, 2**62]]),
        ("aten.zeros.default", [[2**63 - 1]]),
        ("aten.zeros.default", [[-1]]),
        ("aten.zeros.default", [[2**64 - 1]]),
        ("aten.arange.default", [1e300]),
        ("aten.empty_strided.default", [[2, 2], [2**62, 2**62]]),
    ):
        assert me.fails(run(op, *args, out=9), Free((9,))).kind in {
            "RemoteExecutionError",
            "RemoteTypeError",
            "RemoteValueError",
            "MemoryLimitError",
        }


def test_operators_without_meta_kernels_run_under_a_limit(me, run):
    """What meta tensors can not tell is counted when it is there."""
    x = me.hold(1, torch.tensor([1.0, 0.0, 2.0]))
    me(run("aten.nonzero.default", Ref(1), out=2))
    assert torch.equal(me.value(2), x.nonzero())
    me(run("aten.histogram.bin_ct", Ref(1), 2, out=3, count=2))
    assert torch.equal(me.value(3), x.histogram(2).hist)
    me(run("aten.masked_select.default", Ref(1), Ref(1), out=5), Free((5,)))
