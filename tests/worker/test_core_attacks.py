"""What a hostile client may try, one attack a test."""

from __future__ import annotations

import pytest
import torch

from obhut.ops.table import ROWS, Kind
from obhut.protocol import limits
from obhut.protocol.messages import (
    PROTOCOL_VERSION,
    Alias,
    Backward,
    Batch,
    Close,
    Count,
    Describe,
    Differentiate,
    Expect,
    Failed,
    Fetch,
    Find,
    Free,
    Here,
    Inline,
    Label,
    Move,
    Open,
    Put,
    ReadData,
    ReadGrad,
    Ref,
    Refused,
    RetainGrad,
    SetRequiresGrad,
    Symbol,
    TensorData,
    Welcome,
    WriteData,
    WriteGrad,
)
from obhut.worker.effects import Parcel

FLOAT = TensorData("float32", (1,), 0)


# --- names ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "op",
    [
        "",
        ".",
        "..",
        "...",
        "aten",
        "aten.add",
        "aten.__class__.x",
        "aten.__class__.__base__",
        "aten.add.__class__",
        "aten.add.__call__",
        "aten.add.Tensor.x",
        "aten..default",
        "aten.add.Tensor\0",
        " aten.add.Tensor",
        "ATEN.add.Tensor",
        "aten::add.Tensor",
        "prim.device.default",
        "prims.add.default",
        "quantized.add.default",
        "inductor.accumulate_grad_.default",
        "import_module.os.system",
        "loaded_libraries.x.y",
        "load_library.x.y",
        "os.system.default",
        "__init__.__globals__.x",
        "aten.from_file.default",
        "aten.record_stream.default",
        "profiler._record_function_enter.default",
        "\u202eaten.add.Tensor",
        "x" * limits.TEXT_CHARACTERS,
    ],
)
def test_only_rows_of_the_table_run(me, run, op):
    """Whatever else is asked for as an operator is refused and touches nothing."""
    me.hold(1, [1.0])
    failed = me.fails(run(op, Ref(1), Ref(1), out=2))
    assert failed.kind == "OpNotAdmittedError"
    assert me.value(1).item() == 1.0


def test_no_refused_row_runs(me, run):
    """Each operator that the table refuses is refused, whatever its arguments."""
    me.hold(1, [1.0])
    for name, row in ROWS.items():
        if row.kind is Kind.REFUSED:
            failed = me.fails(run(name, Ref(1), out=2), Free((2,)))
            assert (failed.kind, failed.text) == ("OpNotAdmittedError", row.note[:4096])


@pytest.mark.parametrize(
    "name",
    ["", "os", "__class__", "float32 ", "Float32", "storage", "classes", "save",
     "uint7", "sparse_coo", "_C", "torch.float32"],
)  # fmt: skip
def test_only_constants_of_the_table_are_read(me, run, name):
    """No attribute of torch can be reached by naming it."""
    me.hold(1, [1.0])
    kwargs = {"dtype": Symbol(name)}
    failed = me.fails(run("aten._to_copy.default", Ref(1), kwargs=kwargs, out=2))
    assert (failed.kind, failed.op) == ("RemoteProtocolError", "aten._to_copy.default")


@pytest.mark.parametrize(
    "name", ["self", "other", "out", "__class__", "", "op", "args", "func", "a b", "\0"]
)
def test_arguments_by_name_are_pytorchs_own(me, run, name):
    """A name that the operator does not have, or has already, fails."""
    me.hold(1, [1.0])
    kwargs = {name: Ref(1)}
    failed = me.fails(run("aten.mul.Tensor", Ref(1), Ref(1), kwargs=kwargs, out=2))
    assert failed.kind in {"RemoteExecutionError", "RemoteTypeError"}


@pytest.mark.parametrize("op", ["aten.zeros.default", "aten.ones_like.default"])
def test_no_device_can_be_named(opened, run, op):
    """A client chooses no device: not by text, not by constant."""
    me = opened()
    me.hold(1, [1.0])
    first = Ref(1) if "like" in op else [2]
    for device in ("meta", "cuda:0", "cpu", Symbol("float32"), 0, [Here()]):
        me(run(op, first, kwargs={"device": device}, out=2), Free((3,)))
        answer, *_ = me(Fetch(2))
        if not isinstance(answer, Failed):
            assert answer.data.shape in {(1,), (2,)}
        me(Free((2,)))
    assert me.value(1).item() == 1.0


# --- ids ------------------------------------------------------------------------------

ODD_IDS = [0, -1, -(2**63), 2**63 - 1, 2**63, 2**64 - 1]


@pytest.mark.parametrize("id", ODD_IDS)
def test_ids_that_name_nothing(me, run, id):
    """Each request that names an unknown id fails by name, or passes it over."""
    me.hold(7, torch.tensor([1.0], requires_grad=True))
    for request in (
        run("aten.neg.default", Ref(id), out=8),
        run("aten.cat.default", [Ref(7), Ref(id)], out=8),
        run("aten.mul.Tensor", Ref(7), kwargs={"other": Ref(id)}, out=8),
        Fetch(id),
        Describe(id),
        Backward((id,), (None,), None, False, False),
        Backward((7,), (id,), None, False, False),
        Backward((7,), (None,), (id,), False, False),
        Differentiate((7,), (None,), (id,), 8, False, False),
        ReadGrad(id, 8),
        WriteGrad(id, None),
        WriteGrad(7, id),
        SetRequiresGrad(id, True),
        RetainGrad(id),
        ReadData(id, 8),
        WriteData(7, id),
        WriteData(id, 7),
        Alias(id, 8),
        Label(id, ("x",)),
        Move((id,), "alice", "t", (1,)),
    ):
        failed = me.fails(request)
        assert (failed.kind, failed.facts) == ("ObjectNotFoundError", (id,))
        me(Free((8,)))
    assert me(Free((id,))) == []
    assert me.count() == 1


@pytest.mark.parametrize("id", ODD_IDS[1:])
def test_odd_ids_are_ids(me, run, id):
    """Any number but 0 may name an object, and only that object."""
    me.hold(id, [1.0])
    me(run("aten.neg.default", Ref(id), out=5))
    assert me.value(5).item() == -1.0
    assert me.value(id).item() == 1.0
    me(Free((id, 5)))
    assert me.count() == 0


def test_an_id_that_is_taken_can_not_be_taken_again(me, run):
    """No request replaces what an id names; what was asked for is not half done."""
    me.hold(1, torch.tensor([1.0], requires_grad=True))
    me.hold(3, [3.0])
    for request in (
        run("aten.neg.default", Ref(3), out=1),
        run("aten.max.dim", Ref(3), 0, out=2, count=2),
        ReadData(3, 1),
        Alias(3, 1),
        Alias(1, 1),
        Differentiate((1,), (None,), (1,), 3, False, False),
    ):
        assert me.fails(request, Free((2,))).kind == "RemoteProtocolError"
        assert me.value(1).item() == 1.0
        assert me.value(3).item() == 3.0
    failed = me.fails(Put(1, FLOAT), frames=[bytes(4)])
    assert failed.kind == "RemoteProtocolError"


def test_results_at_the_end_of_all_numbers(me, run):
    """Ids that would run past the largest number break nothing."""
    me.hold(1, [[1.0, 2.0]])
    me(run("aten.max.dim", Ref(1), 1, out=2**64 - 1, count=2))
    assert me.value(2**64 - 1).tolist() == [2.0]
    me(run("aten.view.default", Ref(1), [7], out=2**64 - 2, count=9))
    assert isinstance(me(Describe(2**64 - 2))[0], Failed)


# --- exhaustion -----------------------------------------------------------------------


def test_failures_fill_no_memory(me, run):
    """Failed requests with as many results as allowed are bounded per session."""
    most = limits.RESULTS_PER_REQUEST
    me(*(run("aten.x.y", out=1 + k * most, count=most) for k in range(64)))
    assert me.count() <= limits.OBJECTS_PER_SESSION
    failed = me.fails(Fetch(1 + 63 * most))
    assert failed.kind in {"OpNotAdmittedError", "ObjectNotFoundError"}


def test_names_fill_no_memory(me, run):
    """A session names so many objects and no more; what it frees it can use again."""
    me.hold(1, [1.0])
    most = limits.OBJECTS_PER_SESSION
    me(Expect(tuple(range(2, most - 8)), "alice"))
    answers = me(*(Alias(1, most + k) for k in range(20)))
    assert {answer.kind for answer in answers} == {"LimitError"}
    assert me.count() == 10
    assert me.fails(run("aten.neg.default", Ref(1), out=most * 2)).kind == "LimitError"
    assert me.fails(Put(most * 3, FLOAT), frames=[bytes(4)]).kind == "LimitError"
    me(Free((most,)))
    assert me(Alias(1, most)) == []


def test_expected_objects_fill_no_memory(me):
    """What is expected counts among the objects of a session."""
    most = limits.OBJECTS_PER_SESSION
    me(Expect(tuple(range(1, most)), "alice"))
    assert me.fails(Expect((most, most + 1), "alice")).kind == "LimitError"
    assert me(Expect((most,), "alice")) == []


def test_tags_fill_no_memory(me):
    """An object has so many tags and no more, however they are added."""
    me.hold(1, [1.0])
    for first in range(0, 10 * limits.TAGS, limits.TAGS):
        me(Label(1, tuple(f"{first + k}" for k in range(limits.TAGS))))
    (found,) = me(Find(()))
    assert len(found.objects[0][2]) == limits.TAGS


def test_sessions_fill_no_memory(opened):
    """One client has so many sessions; others still get theirs."""
    me = opened()
    replies = [me.open(session=f"s{k}") for k in range(limits.SESSIONS_PER_SENDER + 5)]
    assert [type(reply) for reply in replies].count(Welcome) == (
        limits.SESSIONS_PER_SENDER - 1
    )
    assert replies[-1].kind == "LimitError"
    opened(me.worker, sender="you", name="mine")
    me.handle(Close("s1"))
    assert me.open(session="another") == Welcome(0)


def test_a_flood_of_results_is_refused(me, run):
    """An operator that returns more tensors than allowed holds none of them."""
    me.hold(1, torch.zeros(limits.RESULTS_PER_REQUEST + 1))
    failed = me.fails(run("aten.unbind.int", Ref(1), out=2, count=0))
    assert failed.kind == "RemoteProtocolError"
    assert me.count() == 1


def test_the_longest_answers_still_make_a_reply(me):
    """Short requests with long answers can not make a reply that nobody can send."""
    me.hold(1, [1.0])
    long = "x" * (limits.TEXT_CHARACTERS - 4)
    me(Label(1, tuple(f"{k:04}{long}" for k in range(limits.TAGS)), long))
    finds = [Find(())] * (limits.HEADER_BYTES // 2**20 + 2)
    answers = me(Fetch(1), *finds, Fetch(1))
    assert answers[1].objects[0][3] == long
    for answer in answers[-2:]:
        assert isinstance(answer, Failed)
        assert answer.kind == "LimitError"
    assert len(me.frames) == 1
    assert me.value(1).item() == 1.0


def test_the_longest_failures_still_make_a_reply(me, run):
    """Failures that quote what they were given are bounded all together."""
    request = run("x" * limits.TEXT_CHARACTERS, out=0)
    count = limits.HEADER_BYTES // (limits.TEXT_CHARACTERS + 32)
    answers = me(*[request] * count)
    assert len(answers) == count
    assert answers[0].op == request.op


# --- writing where it must not be written ---------------------------------------------


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("aten.as_strided.default", [[100], [1]]),
        ("aten.as_strided.default", [[1], [1], 100]),
        ("aten.as_strided.default", [[2], [2**40]]),
        ("aten.as_strided.default", [[2], [-1], 1]),
        ("aten.as_strided.default", [[1], [1], -1]),
        ("aten.as_strided.default", [[-1], [1]]),
        ("aten.as_strided_.default", [[100], [1]]),
        ("aten.as_strided_scatter.default", [Ref(1), [100], [1]]),
        ("aten.index_put_.default", [[Inline("int64", (1,), b"\x7f" * 8)], Ref(2)]),
        ("aten.index_put_.default",
         [[Inline("int64", (1,), b"\xff" * 7 + b"\x80")], Ref(2)]),
        ("aten.scatter_.src", [0, Inline("int64", (1,), b"\x7f" * 8), Ref(2)]),
        ("aten.scatter_add_.default", [0, Inline("int64", (1,), b"\x7f" * 8), Ref(2)]),
        ("aten.gather.default", [0, Inline("int64", (1,), b"\x7f" * 8)]),
        ("aten.index_select.default", [0, Inline("int64", (1,), b"\x7f" * 8)]),
        ("aten.index_add_.default", [0, Inline("int64", (1,), b"\x7f" * 8), Ref(2)]),
        ("aten.index_copy_.default", [0, Inline("int64", (1,), b"\x7f" * 8), Ref(2)]),
        ("aten.index_fill_.int_Scalar", [0, Inline("int64", (1,), b"\x7f" * 8), 1.0]),
        ("aten.put_.default", [Inline("int64", (1,), b"\x7f" * 8), Ref(2)]),
        ("aten.take.default", [Inline("int64", (1,), b"\x7f" * 8)]),
        ("aten.embedding.default", [Inline("int64", (1,), b"\x7f" * 8)]),
        ("aten.masked_scatter_.default", [Inline("bool", (4,), b"\1" * 4), Ref(2)]),
        ("aten.narrow.default", [0, 3, 5]),
        ("aten.select.int", [0, 9]),
        ("aten.unfold.default", [0, 100, 1]),
    ],
)  # fmt: skip
def test_no_index_reaches_beyond_a_tensor(me, run, op, args):
    """Reads and writes out of bounds fail, and the neighbours keep their values."""
    before = me.hold(10, torch.arange(64.0))
    me.hold(1, torch.zeros(4))
    me.hold(2, torch.full((1,), 666.0))
    after = me.hold(11, torch.arange(64.0))
    failed = me.fails(run(op, Ref(1), *args, out=5, grad=False))
    assert failed.kind.startswith("Remote") or failed.kind == "OpNotAdmittedError"
    assert torch.equal(me.value(10), before)
    assert torch.equal(me.value(11), after)
    assert torch.equal(me.value(2), torch.tensor([666.0]))


def test_a_kernel_of_the_backward_pass_is_not_a_clients_to_call(me, run):
    """Backward kernels trust their arguments; no client reaches one by name."""
    me.hold(1, torch.zeros(1, 1, 4, 4))
    me.hold(2, torch.full((1, 1, 2, 2), 2**40))
    failed = me.fails(
        run("aten.max_pool2d_with_indices_backward.default", Ref(1), Ref(1), [2, 2],
            [2, 2], [0, 0], [1, 1], False, Ref(2), out=3)
    )  # fmt: skip
    assert failed.kind == "OpNotAdmittedError"


# --- everything at once ---------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -(2**63),
        2**64 - 1,
        float("nan"),
        float("inf"),
        "",
        "x" * limits.TEXT_CHARACTERS,
        [],
        [None],
        [Ref(1), None, "x", 1.5],
        [1] * 5000,
        Symbol("float32"),
        Here(),
        Inline("bool", (1,), b"\x02"),
        Inline("float32", (0,), b""),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_no_argument_breaks_the_worker(me, run, value):
    """Any value at any place is used, or fails by name; the worker lives on."""
    me.hold(1, [1.0])
    for op in (
        "aten.add.Tensor",
        "aten.cat.default",
        "aten.sum.dim_IntList",
        "aten.view.default",
        "aten.zeros.default",
        "aten.clone.default",
        "aten.where.self",
    ):
        for args in ([value], [Ref(1), value], [value, Ref(1)], [Ref(1), 0, value]):
            me(run(op, *args, out=5), Free((5,)))
        me(run(op, Ref(1), kwargs={"dtype": value, "dim": value}, out=5), Free((5,)))
    assert me.value(1).item() == 1.0


def test_what_is_no_request_fails_alone(me):
    """A thing that the protocol does not know fails, even past the codec."""
    me.hold(1, [1.0])
    requests = (object(), Alias(1, 2))
    reply, _ = me.worker.handle("me", Parcel(Batch("s", 2, requests)), 0.0)
    (failed,) = reply.message.answers
    assert (failed.index, failed.kind) == (0, "RemoteExecutionError")
    me.number = 2
    assert me.value(2).item() == 1.0


def test_the_sender_is_who_the_transport_says(me):
    """No field of a message makes anybody somebody else."""
    reply, _ = me.worker.handle(
        "mallory", Parcel(Open("s", PROTOCOL_VERSION, str(torch.__version__))), 0.0
    )
    assert isinstance(reply.message, Refused)
    me.hold(1, [1.0])
    reply, _ = me.worker.handle("mallory", Parcel(Batch("s", 2, (Count(),))), 0.0)
    assert isinstance(reply.message, Refused)
    assert me.count() == 1
