"""Each request: what it does, what it answers, and how it fails."""

from __future__ import annotations

import pytest
import torch

from obhut.protocol.messages import (
    NOWHERE,
    Alias,
    Backward,
    Clear,
    Complex,
    Count,
    Counted,
    Describe,
    Described,
    Differentiate,
    Done,
    Expect,
    Failed,
    Fetch,
    Fetched,
    Find,
    Found,
    Free,
    Here,
    Inline,
    Label,
    Load,
    Put,
    ReadData,
    ReadGrad,
    Ref,
    RetainGrad,
    Returned,
    SetRequiresGrad,
    Symbol,
    TensorData,
    TensorSpec,
    WriteData,
    WriteGrad,
)
from obhut.worker.tensors import to_frame


def leaf(*values):
    """Return a tensor that requires a gradient."""
    return torch.tensor(values, requires_grad=True)


# --- operators ----------------------------------------------------------------------


def test_an_operator_runs_and_its_result_is_held(me, run):
    """A result is held under the id that the client chose, and answers nothing."""
    x = me.hold(1, [1.0, 2.0])
    assert me(run("aten.add.Tensor", Ref(1), Ref(1), out=2)) == []
    assert torch.equal(me.value(2), x + x)


def test_a_result_can_be_kept_nowhere(me, run):
    """With ``NOWHERE`` an operator runs and nothing is held."""
    me.hold(1, [1.0])
    assert me(run("aten.neg.default", Ref(1), out=NOWHERE)) == []
    assert me.count() == 1


def test_several_results_take_consecutive_ids(me, run):
    """The flattened results are held under the ids from ``out`` on."""
    x = me.hold(1, [[3.0, 1.0], [2.0, 4.0]])
    me(run("aten.max.dim", Ref(1), 1, out=5, count=2))
    values, indices = x.max(dim=1)
    assert torch.equal(me.value(5), values)
    assert torch.equal(me.value(6), indices)


def test_a_result_that_is_no_tensor_leaves_its_id_empty(me, run):
    """An optional result that is absent takes its place and names nothing."""
    me.hold(1, [[1.0, 2.0]])
    me.hold(2, [1.0, 1.0])
    reply = me(
        run("aten.native_layer_norm.default", Ref(1), [2], Ref(2), None, 1e-5, out=5,
            count=3, describe=True)
    )  # fmt: skip
    assert [spec is None for spec in reply[0].specs] == [False, False, False]


@pytest.mark.parametrize("count", [1, 3])
def test_a_wrong_number_of_results_fails(me, run, count):
    """Results never take ids that the client did not set aside for them."""
    me.hold(1, [[3.0, 1.0]])
    failed = me.fails(run("aten.max.dim", Ref(1), 1, out=5, count=count))
    assert failed.kind == "RemoteProtocolError"
    assert "returned 2" in failed.text


def test_every_kind_of_argument_arrives(me, run):
    """Numbers, lists, constants, complex numbers, small tensors, the device."""
    x = me.hold(1, [3.0, 1.0, 2.0])
    me(
        run("aten.add.Tensor", Ref(1), Inline("float32", (), to_frame_bytes(2.0)),
            kwargs={"alpha": 3}, out=2),
        run("aten.cat.default", [Ref(1), Ref(2)], 0, out=3),
        run("aten.full.default", [2], 1.5,
            kwargs={"dtype": Symbol("float64"), "device": Here()}, out=4),
        run("aten.full.default", [1], Complex(1.0, -2.0),
            kwargs={"dtype": Symbol("complex64")}, out=5),
        run("aten.index.Tensor", Ref(1), [Inline("int64", (2,), int64(2, 0))], out=6),
        run("aten.sort.default", Ref(1), 0, True, out=7, count=2),
        run("aten.clone.default", Ref(1),
            kwargs={"memory_format": Symbol("contiguous_format")}, out=9),
        run("aten.sum.dim_IntList", Ref(1), None, out=10),
        run("aten.div.Tensor_mode", Ref(1), Ref(1),
            kwargs={"rounding_mode": "floor"}, out=11),
    )  # fmt: skip
    assert torch.equal(me.value(2), x + 6)
    assert torch.equal(me.value(3), torch.cat([x, x + 6]))
    assert torch.equal(me.value(4), torch.full([2], 1.5, dtype=torch.float64))
    assert torch.equal(me.value(5), torch.tensor([1 - 2j]))
    assert torch.equal(me.value(6), x[[2, 0]])
    assert torch.equal(me.value(7), torch.tensor([3.0, 2.0, 1.0]))
    assert torch.equal(me.value(9), x)
    assert torch.equal(me.value(10), x.sum())
    assert torch.equal(me.value(11), torch.ones(3))


def to_frame_bytes(number):
    """Return a number's bytes as a float32."""
    return bytes(to_frame(torch.tensor(number)))


def int64(*numbers):
    """Return numbers' bytes as int64."""
    return bytes(to_frame(torch.tensor(numbers)))


def test_an_operator_in_place_changes_what_is_held(me, run):
    """A write is seen through every id and view of the same memory."""
    x = me.hold(1, [1.0, 2.0]).clone()
    me(
        run("aten.view.default", Ref(1), [2, 1], out=2),
        run("aten.mul_.Tensor", Ref(1), 3.0),
        Alias(1, 3),
    )
    assert torch.equal(me.value(1), x * 3)
    assert torch.equal(me.value(2), (x * 3).view(2, 1))
    assert torch.equal(me.value(3), x * 3)
    assert me.count() == 3


def test_an_out_argument_is_written(me, run):
    """An operator with ``out=`` fills what is held and names nothing new."""
    me.hold(1, [1.0, 2.0])
    me.hold(2, [0.0, 0.0])
    me(run("aten.add.out", Ref(1), Ref(1), kwargs={"out": Ref(2)}, grad=False, out=9))
    assert torch.equal(me.value(2), torch.tensor([2.0, 4.0]))
    assert me.count() == 2


def test_the_grad_mode_is_the_clients(me, run):
    """Autograd records where the request says so, whatever the request before."""
    me.hold(1, leaf(1.0))
    (with_grad, without, again) = me(
        run("aten.neg.default", Ref(1), out=2, grad=True, describe=True),
        run("aten.neg.default", Ref(1), out=3, grad=False, describe=True),
        run("aten.neg.default", Ref(1), out=4, grad=True, describe=True),
    )
    assert [r.specs[0].requires_grad for r in (with_grad, without, again)] == [
        True,
        False,
        True,
    ]


def test_memory_is_never_shown_uninitialised(me, run):
    """``empty`` and its relatives come filled with zeros."""
    me(
        run("aten.empty.memory_format", [1000], out=1),
        run("aten.empty_strided.default", [10, 10], [10, 1], out=2),
        run("aten.empty_like.default", Ref(1), out=3),
        run("aten.new_empty.default", Ref(1), [50], out=4),
    )
    for id in (1, 2, 3, 4):
        assert not me.value(id).any()


def test_an_operator_without_tensors_answers_its_value(me, run):
    """A number, a truth and a complex number come back as values."""
    me.hold(1, [2.5])
    me.hold(2, torch.tensor([1j]))
    number, truth, imaginary = me(
        run("aten._local_scalar_dense.default", Ref(1), describe=True),
        run("aten.equal.default", Ref(1), Ref(1), describe=True),
        run("aten._local_scalar_dense.default", Ref(2), describe=True),
    )
    assert number == Returned(0, 2.5)
    assert truth == Returned(1, True)
    assert imaginary == Returned(2, Complex(0.0, 1.0))


def test_a_described_result_tells_its_look(me, run):
    """``describe`` answers sizes, strides, offset, dtype and requires_grad."""
    me.hold(1, torch.zeros(4, 3))
    one, many = me(
        run("aten.slice.Tensor", Ref(1), 0, 1, 3, 2, out=2, describe=True),
        run("aten.split.Tensor", Ref(1), 2, out=3, count=2, describe=True),
    )
    assert one == Described(0, (TensorSpec("float32", (1, 3), (6, 1), 3, False),))
    assert many.sequence
    assert [spec.offset for spec in many.specs] == [0, 6]


def test_an_operators_own_error_is_answered(me, run):
    """The kind tells PyTorch's class of error, the text is PyTorch's own."""
    me.hold(1, [1.0])
    me.hold(2, torch.tensor([5]))
    kinds = [
        me.fails(run("aten.view.default", Ref(1), [3], out=9)),
        me.fails(run("aten.index.Tensor", Ref(1), [Ref(2)], out=9)),
        me.fails(run("aten.add.Tensor", Ref(1), out=9)),
        me.fails(run("aten.add.Tensor", Ref(1), Ref(1), kwargs={"nope": 1}, out=9)),
        me.fails(run("aten.bitwise_and.Tensor", Ref(1), Ref(1), out=9)),
    ]
    assert [failed.kind for failed in kinds] == [
        "RemoteExecutionError",
        "RemoteIndexError",
        "RemoteExecutionError",
        "RemoteExecutionError",
        "RemoteNotImplementedError",
    ]
    assert "shape '[3]' is invalid" in kinds[0].text
    assert kinds[0].op == "aten.view.default"
    assert all("Exception raised from" not in failed.text for failed in kinds)


# --- holding, fetching, naming ------------------------------------------------------


def test_a_tensor_comes_back_as_it_was_sent(me):
    """Values, sizes, dtype and requires_grad survive the way there and back."""
    for id, tensor in enumerate(
        (torch.tensor(1.5), torch.zeros(0, 3), leaf(1.0, 2.0), torch.tensor([True])), 1
    ):
        me.hold(id, tensor)
        back = me.value(id)
        assert torch.equal(back, tensor)
        assert back.dtype is tensor.dtype
        assert back.requires_grad is tensor.requires_grad


def test_a_fetched_value_is_of_its_moment(me, run):
    """Requests after a fetch in the same batch do not change what it brings."""
    me.hold(1, [1.0])
    me(Fetch(1), run("aten.add_.Tensor", Ref(1), 1.0), Fetch(1))
    first, second = map(bytes, me.frames)
    assert (first, second) == (to_frame_bytes(1.0), to_frame_bytes(2.0))


def test_a_fetched_result_is_a_leaf(me, run):
    """A value brings no history: only a leaf that requires a gradient says so."""
    me.hold(1, leaf(1.0))
    me(run("aten.neg.default", Ref(1), out=2))
    assert me.value(1).requires_grad
    assert not me.value(2).requires_grad


def test_several_fetches_name_their_frames(me):
    """Each answer reads the frame that is its own."""
    me.hold(1, [1.0])
    me.hold(2, [1.0, 2.0])
    one, failed, two = me(Fetch(1), Fetch(7), Fetch(2))
    assert isinstance(one, Fetched)
    assert isinstance(failed, Failed)
    assert (one.data.frame, two.data.frame) == (0, 1)
    assert [len(frame) for frame in me.frames] == [4, 8]


def test_a_tensor_is_described(me):
    """``Describe`` tells what a held tensor looks like."""
    me.hold(1, leaf(1.0, 2.0))
    assert me(Describe(1)) == [
        Described(0, (TensorSpec("float32", (2,), (1,), 0, True),))
    ]


def test_an_alias_outlives_the_name_it_was_made_from(me):
    """Two ids name one object; it stays until both are gone."""
    me.hold(1, [1.0])
    me(Alias(1, 2), Free((1,)))
    assert me.value(2).item() == 1.0
    assert me.count() == 1


def test_what_is_freed_is_gone(me):
    """A freed id names nothing; ids that never did are passed over."""
    me.hold(1, [1.0])
    assert me(Free((1, 99, 1))) == []
    failed = me.fails(Fetch(1))
    assert (failed.kind, failed.facts) == ("ObjectNotFoundError", (1,))


def test_tagged_objects_are_found_and_stay(me):
    """All tags must be there; a tagged object stays unless freed by force."""
    me.hold(1, [1.0], "x", "data", description="rows")
    me.hold(2, [1.0], "x")
    (found, none, everything) = me(Find(("x", "data")), Find(("y",)), Find(()))
    spec = TensorSpec("float32", (1,), (1,), 0, False)
    assert found == Found(0, ((1, spec, ("x", "data"), "rows"),))
    assert none == Found(1, ())
    assert [one[0] for one in everything.objects] == [1, 2]
    me(Free((1, 2)))
    assert me.count() == 2
    me(Free((1,), tagged=True))
    assert me.count() == 1


def test_a_data_set_is_loaded(opened):
    """A part is held under the client's id and described; a free id is needed."""
    rows = torch.arange(6.0).view(3, 2)
    me = opened(datasets={"heart": {"features": rows, "target": torch.ones(3)}})
    (described,) = me(Load("heart", "features", 1))
    assert described == Described(0, (TensorSpec("float32", (3, 2), (2, 1), 0, False),))
    assert torch.equal(me.value(1), rows)
    assert me.fails(Load("heart", "target", 1)).kind == "RemoteProtocolError"
    me(Free((1,)), Load("heart", "features", 2))
    assert torch.equal(me.value(2), rows)


def test_a_data_set_that_is_not_there(opened, me):
    """The error repeats what was asked for, and names nothing that there is."""
    worker = opened(datasets={"heart": {"features": torch.ones(1)}})
    for failed in (
        worker.fails(Load("lung", "features", 1)),
        worker.fails(Load("heart", "target", 2)),
        me.fails(Load("heart", "features", 1)),
    ):
        assert failed.kind == "CallError"
        assert "expected a data set and one of its parts" in failed.text
    assert "heart" not in worker.fails(Load("lung", "features", 3)).text
    assert me.fails(Fetch(1)).kind == "CallError"


def test_an_object_goes_with_all_its_tags(me):
    """Freed by force, an object that is tagged under two names loses both."""
    me.hold(1, [1.0], "a")
    me(Alias(1, 2), Label(2, ("b",)))
    me.hold(3, [1.0], "c")
    me(Free((1,), tagged=True))
    (found,) = me(Find(()))
    assert [one[0] for one in found.objects] == [3]
    assert me.count() == 1


def test_labels_add_up(me):
    """Tags are added once each; a description is replaced only by another."""
    me.hold(1, [1.0], "a", description="old")
    me(Label(1, ("b", "a")), Label(1, ("c",), "new"), Label(1, ()))
    (found,) = me(Find(()))
    assert found.objects[0][2:] == (("a", "b", "c"), "new")


def test_count_and_clear(me):
    """``Clear`` forgets all, tags and expected deliveries included."""
    me.hold(1, [1.0], "tag")
    me.hold(2, [1.0])
    assert me(Count()) == [Counted(0, 2)]
    me(Expect((8,), "alice"), Clear())
    assert me.count() == 0
    assert me(Find(())) == [Found(0, ())]
    me.hold(1, [1.0])
    me.hold(8, [1.0])


# --- autograd -----------------------------------------------------------------------


def test_backward_accumulates_in_the_leaves(me, run):
    """Gradients are those of local autograd, and add up."""
    x = me.hold(1, leaf(1.0, 2.0)).detach().requires_grad_()
    step = (
        run("aten.mul.Tensor", Ref(1), Ref(1), out=2),
        run("aten.sum.default", Ref(2), out=3),
        Backward((3,), (None,), None, False, False),
        Free((2, 3)),
    )
    me(*step, *step, ReadGrad(1, 4))
    (x * x).sum().backward()
    (x * x).sum().backward()
    assert torch.equal(me.value(4), x.grad)


def test_backward_into_some_inputs_with_a_given_gradient(me, run):
    """``inputs`` and ``grads`` mean what they mean in PyTorch."""
    me.hold(1, leaf(1.0, 2.0))
    me.hold(2, leaf(3.0, 4.0))
    me.hold(3, [1.0, 10.0])
    me(
        run("aten.mul.Tensor", Ref(1), Ref(2), out=4),
        Backward((4,), (3,), (1,), True, False),
        ReadGrad(1, 5),
    )
    assert torch.equal(me.value(5), torch.tensor([3.0, 40.0]))
    assert me(ReadGrad(2, 6, describe=True)) == [Described(0, (None,))]
    assert me.fails(Fetch(6)).kind == "ObjectNotFoundError"


def test_differentiate_answers_what_it_found(me, run):
    """Gradients are held and described; an input that was not reached is None."""
    me.hold(1, leaf(1.0, 2.0))
    me.hold(2, leaf(1.0))
    (reply,) = me(
        run("aten.sum.default", Ref(1), out=3),
        Differentiate((3,), (None,), (2, 1), 10, False, False),
    )
    assert reply == Described(
        1, (None, TensorSpec("float32", (2,), (0,), 0, False)), sequence=True
    )
    assert torch.equal(me.value(11), torch.ones(2))
    assert me.fails(Fetch(10)).kind == "ObjectNotFoundError"


def test_a_second_derivative(me, run):
    """``create_graph`` lets a gradient be differentiated again."""
    me.hold(1, leaf(2.0))
    me(
        run("aten.pow.Tensor_Scalar", Ref(1), 3, out=2),
        Backward((2,), (None,), None, True, True),
        ReadGrad(1, 3),
        Differentiate((3,), (None,), (1,), 4, True, False),
    )
    assert me.value(4).item() == 12.0


def test_a_gradient_that_is_not_there(me):
    """Asked for its look it is None; named without asking it fails by name."""
    me.hold(1, leaf(1.0))
    assert me(ReadGrad(1, 2, describe=True)) == [Described(0, (None,))]
    failed = me.fails(ReadGrad(1, 3))
    assert failed.kind == "CallError"
    assert "no gradient" in failed.text
    assert me.fails(Fetch(3)).text == failed.text


def test_a_gradient_is_described(me, run):
    """``ReadGrad`` with ``describe`` names the gradient and tells its look."""
    me.hold(1, leaf(1.0))
    reply = me(
        run("aten.neg.default", Ref(1), out=2),
        Backward((2,), (None,), None, False, False),
        ReadGrad(1, 3, describe=True),
    )
    assert reply == [Described(2, (TensorSpec("float32", (1,), (1,), 0, False),))]


def test_a_gradient_is_written_and_removed(me):
    """``WriteGrad`` assigns ``.grad``, or takes it away."""
    me.hold(1, leaf(1.0))
    me.hold(2, [7.0])
    me(WriteGrad(1, 2), ReadGrad(1, 3))
    assert me.value(3).item() == 7.0
    me(WriteGrad(1, None))
    assert me(ReadGrad(1, 4, describe=True)) == [Described(0, (None,))]


def test_requires_grad_is_set(me, run):
    """``SetRequiresGrad`` is ``requires_grad_``, with PyTorch's own refusals."""
    me.hold(1, [1.0])
    me.hold(2, torch.tensor([1]))
    me(SetRequiresGrad(1, True), run("aten.neg.default", Ref(1), out=3))
    assert me.value(1).requires_grad
    assert "leaf" in me.fails(SetRequiresGrad(3, False)).text
    assert "floating point" in me.fails(SetRequiresGrad(2, True)).text


def test_a_result_retains_its_gradient(me, run):
    """``RetainGrad`` keeps the gradient of a tensor that is no leaf."""
    me.hold(1, leaf(3.0))
    me(
        run("aten.mul.Tensor", Ref(1), Ref(1), out=2),
        RetainGrad(2),
        run("aten.mul.Tensor", Ref(2), Ref(2), out=3),
        Backward((3,), (None,), None, False, False),
        ReadGrad(2, 4),
    )
    assert me.value(4).item() == 18.0


def test_data_is_read_and_written(me, run):
    """``.data`` shares memory and no history; assigning it changes the tensor."""
    me.hold(1, leaf(1.0))
    me.hold(2, [5.0, 6.0])
    me(ReadData(1, 3), run("aten.add_.Tensor", Ref(3), 1.0))
    assert me.value(1).tolist() == [2.0]
    assert not me.value(3).requires_grad
    me(WriteData(1, 2))
    assert me.value(1).tolist() == [5.0, 6.0]
    assert me.value(1).requires_grad


# --- failures spread ----------------------------------------------------------------


def test_a_failure_is_answered_once_and_stands_for_its_results(me, run):
    """Dependents fail in silence; whoever is asked tells of the first failure."""
    me.hold(1, [1.0])
    first, asked, described = me(
        run("aten.view.default", Ref(1), [3], out=2),
        run("aten.neg.default", Ref(2), out=3),
        run("aten.add.Tensor", Ref(3), Ref(1), out=4),
        Alias(4, 5),
        Fetch(5),
        Describe(3),
    )
    assert (first.index, first.batch, first.origin) == (0, me.number, 0)
    assert (asked.index, described.index) == (4, 5)
    for later in (asked, described):
        assert (later.batch, later.origin) == (me.number, 0)
        assert (later.kind, later.op, later.text) == (first.kind, first.op, first.text)
    again = me.fails(Fetch(4))
    assert (again.index, again.batch, again.origin) == (0, me.number - 1, 0)


@pytest.mark.parametrize(
    "request_",
    [
        Fetch(2),
        Describe(2),
        Differentiate((2,), (None,), (1,), 9, False, False),
        ReadGrad(2, 9, describe=True),
    ],
    ids=lambda one: type(one).__name__,
)
def test_whoever_waits_is_told(me, run, request_):
    """Each request that is answered is answered with the failure it needs."""
    me.hold(1, leaf(1.0))
    _, told = me(run("aten.view.default", Ref(1), [3], out=2), request_)
    assert (told.index, told.origin) == (1, 0)


@pytest.mark.parametrize(
    "request_",
    [
        Backward((2,), (None,), None, False, False),
        ReadGrad(2, 9),
        WriteGrad(1, 2),
        SetRequiresGrad(2, True),
        RetainGrad(2),
        ReadData(2, 9),
        WriteData(1, 2),
        Alias(2, 9),
        Label(2, ("tag",)),
    ],
    ids=lambda one: type(one).__name__,
)
def test_whoever_does_not_wait_is_silent(me, run, request_):
    """Requests that are asked nothing repeat no failure, and pass it on."""
    me.hold(1, leaf(1.0))
    (first,) = me(run("aten.view.default", Ref(1), [3], out=2), request_)
    assert first.index == 0
    assert me.value(1).item() == 1.0
    if 9 in (getattr(request_, "out", None),):
        assert me.fails(Fetch(9)).text == first.text


def test_the_target_of_a_failed_write_stays(me, run):
    """What could not be written in place keeps its value and is no failure."""
    me.hold(1, [1.0])
    me(
        run("aten.view.default", Ref(1), [3], out=2),
        run("aten.add_.Tensor", Ref(1), Ref(2)),
    )
    assert me.value(1).item() == 1.0


def test_all_results_of_a_failed_operator_stand_for_it(me, run):
    """Each of the ids that were set aside tells of the failure."""
    me.hold(1, [1.0])
    failed = me.fails(run("aten.max.dim", Ref(1), 5, out=2, count=2))
    assert me.fails(Fetch(2)).text == failed.text
    assert me.fails(Fetch(3)).text == failed.text
    assert me.fails(Fetch(4)).kind == "ObjectNotFoundError"


def test_a_failure_overwrites_nothing(me, run):
    """An id that names a tensor goes on naming it when its reuse fails."""
    me.hold(1, [1.0])
    failed = me.fails(run("aten.neg.default", Ref(1), out=1))
    assert failed.kind == "RemoteProtocolError"
    assert "exists already" in failed.text
    assert me.value(1).item() == 1.0


def test_a_failure_can_be_freed(me, run):
    """What stands for a failure goes as an object goes."""
    me.hold(1, [1.0])
    me.fails(run("aten.view.default", Ref(1), [3], out=2))
    me(Free((2,)))
    assert me.count() == 1
    assert me.fails(Fetch(2)).kind == "ObjectNotFoundError"


def test_one_failure_fails_no_other(me, run):
    """Requests beside a failed one are carried out."""
    me.hold(1, [1.0])
    failed, fetched = me(
        run("aten.neg.default", Ref(1), out=2),
        run("aten.view.default", Ref(1), [3], out=3),
        run("aten.neg.default", Ref(2), out=4),
        Fetch(4),
    )
    assert failed.index == 1
    assert isinstance(fetched, Fetched)
    assert me.value(4).item() == 1.0


def test_a_refused_operator_tells_why(me, run):
    """What the table refuses fails with the table's reason; unknown ones too."""
    me.hold(1, [1.0])
    refused = me.fails(run("aten.from_file.default", "/etc/passwd", out=2))
    unknown = me.fails(run("aten.nonsense.default", Ref(1), out=3))
    assert (refused.kind, unknown.kind) == ("OpNotAdmittedError",) * 2
    assert unknown.text == "the op table has no such operator"
    assert refused.text
    assert refused.text != unknown.text


def test_a_result_without_a_form_fails(me, run):
    """What no message can carry is refused by name."""
    me.hold(1, torch.tensor([1.0]))
    put = Put(2, TensorData("float32", (1,), 0, True))
    assert me(put, frames=[bytes(4)]) == []
    assert me.fails(Put(2, TensorData("float32", (1,), 0)), frames=[bytes(4)])


def test_closing_forgets_the_session(me):
    """After ``Close`` the name is free and what was held is gone."""
    from obhut.protocol.messages import Close, Refused, Welcome

    me.hold(1, [1.0])
    assert me.handle(Close(me.name)) == Done()
    assert isinstance(me.batch(Count()), Refused)
    assert me.open() == Welcome(0)
    me.number = 0
    assert me.count() == 0
