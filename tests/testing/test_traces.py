"""Requests as lines."""

import pytest

from obhut.protocol import messages
from obhut.protocol.messages import (
    Alias,
    Backward,
    Complex,
    Differentiate,
    Free,
    Here,
    Inline,
    Label,
    Load,
    Move,
    Put,
    ReadGrad,
    Ref,
    Run,
    Symbol,
    TensorData,
    WriteGrad,
)
from obhut.testing.traces import line, render

LINES = [
    (
        Run("aten.add.Tensor", [Ref(1), 2, 1.5], {"alpha": 3}, 5, 1, True),
        "%5 = aten.add.Tensor(%1, 2, 1.5, alpha=3)",
    ),
    (
        Run("aten.max.dim", [Ref(1), 0], {}, 5, 2, False),
        "%5, %6 = aten.max.dim(%1, 0)  # no_grad",
    ),
    (
        Run("aten.nonzero.default", [Ref(1)], {}, 5, 0, True, True),
        "%5… = aten.nonzero.default(%1) ?",
    ),
    (Run("aten.zero_.default", [Ref(1)], {}, 0, 1, True), "aten.zero_.default(%1)"),
    (
        Run(
            "aten.full.default",
            [[2, 3], Complex(1.0, -2.0), Inline("int8", (2,), b"\x01\x02"), None, "a"],
            {"dtype": Symbol("float32"), "device": Here()},
            5,
            1,
            True,
        ),
        "%5 = aten.full.default([2, 3], (1-2j), int8:[1, 2], None, 'a', "
        "dtype=float32, device=here)",
    ),
    (
        Put(1, TensorData("float32", (2, 3), 0, True), ("a", "b"), "d"),
        "%1 = put(float32[2, 3], requires_grad) #a #b 'd'",
    ),
    (Load("heart", "target", 2), "%2 = load(heart, target) ?"),
    (
        Load("heart", "features", messages.NOWHERE, ("bp", "age")),
        "load(heart, features[bp, age]) ?",
    ),
    (messages.Fetch(1), "fetch %1"),
    (messages.Describe(1), "describe %1"),
    (Backward((7,), (None,), None, False, False), "backward(%7)"),
    (
        Backward((7, 8), (1, None), (2, 3), True, True),
        "backward(%7, %8, grads=[%1, None], inputs=[%2, %3], retain_graph, "
        "create_graph)",
    ),
    (
        Differentiate((7,), (1,), (2, 3), 9, True, False),
        "%9, %10 = grad([%7], [%2, %3], grads=[%1], retain_graph)",
    ),
    (
        Differentiate((7,), (None,), (2,), 9, False, False),
        "%9 = grad([%7], [%2])",
    ),
    (ReadGrad(1, 2), "%2 = %1.grad"),
    (ReadGrad(1, 2, True), "%2 = %1.grad ?"),
    (WriteGrad(1, 2), "%1.grad = %2"),
    (WriteGrad(1, None), "%1.grad = None"),
    (messages.SetRequiresGrad(1, True), "%1.requires_grad = True"),
    (messages.RetainGrad(1), "retain_grad(%1)"),
    (messages.ReadData(1, 2), "%2 = %1.data"),
    (messages.WriteData(1, 2), "%1.data = %2"),
    (Alias(1, 2), "%2 = %1"),
    (Label(1, ("a",), "d"), "label %1 #a 'd'"),
    (messages.Find(("a", "b")), "find(a, b)"),
    (messages.Count(), "count()"),
    (messages.Clear(), "clear()"),
    (Free((1, 2)), "free %1, %2"),
    (Free((1,), tagged=True), "free %1, tagged too"),
    (messages.Expect((1, 2), "alice"), "expect %1, %2 from alice"),
    (Move((1,), "alice", "random", (2,)), "move %1 to alice as %2"),
    (messages.StoreState("r/h", 3, (1, 2)), "store %1, %2 as r/h@3"),
    (messages.RecallState("r/h", 3, 5), "%5… = recall(r/h@3) ?"),
    (messages.ListState("r/h"), "stored(r/h)"),
    (
        messages.Aggregate("trimmed_mean", (1, 2, 3), 1, 4),
        "%4 = trimmed_mean(%1, %2, %3, trim=1)",
    ),
    (messages.Define("a text"), "define 734194ed"),
    (
        messages.RunProgram("734194ed" * 8, (1, 2), (3,), 5, 2, batch_size=8),
        "%5, %6 = program 734194ed([%1, %2], [%3], batch_size=8, epochs=1)",
    ),
    (
        messages.RunProgram("734194ed" * 8, (1,), (3,), 5, 0, epochs=2),
        "program 734194ed([%1], [%3], epochs=2)",
    ),
    (
        messages.RunProgram(
            "734194ed" * 8, (), messages.DatasetRows("d", ("features", "target")), 5, 0
        ),
        "program 734194ed([], d[features, target], epochs=1)",
    ),
    (
        messages.RunProgram(
            "734194ed" * 8,
            (),
            messages.DatasetRows("d", ("x", "y"), (("a",), ())),
            5,
            0,
        ),
        "program 734194ed([], d[x[a], y], epochs=1)",
    ),
    (
        messages.RunProgram(
            "734194ed" * 8,
            (),
            (3,),
            5,
            0,
            split=messages.Split(0.2, 7, True),
            steps=9,
        ),
        "program 734194ed([], [%3], steps=9, held out 0.2 by 7)",
    ),
    (
        messages.RunProgram(
            "734194ed" * 8, (), (3,), 5, 0, split=messages.Split(0.2, 7, False)
        ),
        "program 734194ed([], [%3], epochs=1, all but 0.2 by 7)",
    ),
]


@pytest.mark.parametrize(("request_", "text"), LINES, ids=[text for _, text in LINES])
def test_a_request_is_a_line(request_, text):
    """Each kind of request reads like the code that caused it."""
    assert line(request_) == text


def test_every_kind_of_request_is_shown():
    """No kind of request is without a line here."""
    assert {type(one) for one, _ in LINES} == set(messages.AnyRequest.__args__)


def test_a_trace_is_its_lines():
    """Requests are rendered one below the other."""
    assert render([Alias(1, 2), messages.Count()]) == "%2 = %1\ncount()\n"
    assert render([]) == ""
