"""Operators by name, and what they return, as values of messages."""

import pytest
import torch

from obhut.errors import OpNotAdmittedError
from obhut.ops.table import ROWS, Kind
from obhut.protocol.messages import Complex, Run, Symbol
from obhut.worker.executor import Executor, operator, to_value
from obhut.worker.store import Store


def test_every_admitted_row_is_an_operator_of_this_torch():
    """No row names an operator that can not be called."""
    for name, row in ROWS.items():
        if row.kind is not Kind.REFUSED:
            assert callable(operator(name).call), name


def test_an_operator_is_looked_up_once():
    """The same name gives the same operator."""
    assert operator("aten.add.Tensor") is operator("aten.add.Tensor")


@pytest.mark.parametrize("high", [False, True], ids=["open", "high"])
def test_a_seed_decides_what_an_operator_draws(high):
    """It draws what would be drawn after it, and without one goes on from there."""
    store = Store("bob", None)
    executor = Executor(store, torch.device("cpu"), high=high)
    with torch.no_grad():
        for out, seed in ((1, 7), (2, None), (3, 7)):
            draw = Run("aten.rand.default", [[5]], {}, out, 1, False, False, seed)
            executor.run(draw)
    torch.manual_seed(7)
    first, second = torch.rand(5), torch.rand(5)
    assert torch.equal(store[1], first)
    assert torch.equal(store[2], second)
    assert torch.equal(store[3], first)


def test_a_refusal_names_operator_and_reason():
    """What is refused says so with the reason in its row."""
    with pytest.raises(OpNotAdmittedError) as caught:
        operator("aten.from_file.default")
    assert caught.value.op == "aten.from_file.default"
    assert caught.value.reason == ROWS["aten.from_file.default"].note


@pytest.mark.parametrize(
    ("result", "value"),
    [
        (None, None),
        (True, True),
        (3, 3),
        (1.5, 1.5),
        ("x", "x"),
        (1 - 2j, Complex(1.0, -2.0)),
        ([1, 2.5, None], [1, 2.5, None]),
        ((), []),
        (torch.float64, Symbol("float64")),
        (torch.strided, Symbol("strided")),
        ([torch.int8], [Symbol("int8")]),
    ],
)
def test_a_result_without_tensors_has_a_form(result, value):
    """Numbers, texts, constants and lists of them can be answered."""
    assert to_value(result) == value


@pytest.mark.parametrize(
    "result", [object(), [[1]], {}, torch.sparse_coo, torch.uint4, torch.device("cpu")]
)
def test_any_other_result_is_refused(result):
    """What has no form in a message is refused by name."""
    with pytest.raises(OpNotAdmittedError, match="has no form in a message"):
        to_value(result)
