"""PyTorch's ``op_db``: its samples of each operator, remotely against locally."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

from obhut.testing.conformance import Outcome
from obhut.testing.databases import compare_operator, compare_operator_out, operators
from obhut.testing.pairs import Layout

pytestmark = pytest.mark.filterwarnings("ignore")

FULL = os.environ.get("OBHUT_CONFORMANCE") == "full"
SAMPLES = 4 if FULL else 2

IMPORTANT = (
    "__getitem__",
    "add",
    "addmm",
    "cat",
    "clamp",
    "cumsum",
    "div.no_rounding_mode",
    "einsum",
    "empty",
    "empty_like",
    "expand",
    "gather",
    "index_put",
    "index_select",
    "linalg.vector_norm",
    "masked_fill",
    "matmul",
    "mean",
    "nn.functional.batch_norm",
    "nn.functional.conv2d",
    "nn.functional.cross_entropy",
    "nn.functional.dropout",
    "nn.functional.embedding",
    "nn.functional.embedding_bag",
    "nn.functional.layer_norm",
    "nn.functional.linear",
    "nn.functional.max_pool2d",
    "nn.functional.mse_loss",
    "nn.functional.multi_head_attention_forward",
    "nn.functional.relu",
    "nn.functional.scaled_dot_product_attention",
    "new_empty",
    "norm",
    "quantile",
    "randn",
    "scatter",
    "softmax",
    "sort",
    "split",
    "sum",
    "topk",
    "transpose",
    "unique",
    "view",
    "where",
    "zeros",
)

OPERATORS = operators()
NAMES = sorted(OPERATORS)
SAMPLED = NAMES if FULL else sorted({*NAMES[::6], *IMPORTANT})

Settle = Callable[[str, str, Outcome], None]


def _having(variant: str) -> list[str]:
    return [name for name in SAMPLED if getattr(OPERATORS[name], variant) is not None]


@pytest.mark.parametrize("name", SAMPLED)
def test_operator(name: str, settle: Settle) -> None:
    """An operator's results, gradients and looks equal local ones, or it is refused."""
    settle("operators", name, compare_operator(OPERATORS[name], SAMPLES))


@pytest.mark.parametrize("name", _having("inplace_variant"))
def test_operator_in_place(name: str, settle_variant: Settle) -> None:
    """What an operator does to its argument, and to its gradient, is as locally."""
    outcome = compare_operator(OPERATORS[name], SAMPLES, variant="inplace")
    settle_variant("operators", name, outcome)


@pytest.mark.parametrize("name", _having("method_variant"))
def test_operator_as_method(name: str, settle_variant: Settle) -> None:
    """An operator called as a method is as one called as a function."""
    outcome = compare_operator(OPERATORS[name], SAMPLES, variant="method")
    settle_variant("operators", name, outcome)


@pytest.mark.parametrize("name", SAMPLED)
def test_operator_without_gradients(name: str, settle_variant: Settle) -> None:
    """Without grad mode, results and what they claim of themselves are as locally."""
    with torch.no_grad():
        outcome = compare_operator(OPERATORS[name], SAMPLES)
    settle_variant("operators", name, outcome)


@pytest.mark.parametrize("layout", [one for one in Layout if one != Layout.ROW_MAJOR])
@pytest.mark.parametrize("name", SAMPLED)
def test_operator_on_other_layouts(
    name: str, layout: Layout, settle_variant: Settle
) -> None:
    """On arguments with other strides, results, strides too, are as locally."""
    outcome = compare_operator(OPERATORS[name], SAMPLES, layout=layout)
    settle_variant("operators", name, outcome)


@pytest.mark.parametrize(
    "name", [name for name in SAMPLED if OPERATORS[name].supports_out]
)
def test_operator_into_given_tensors(
    name: str, refused: dict[str, Any], settle_variant: Settle
) -> None:
    """With ``out=``, what is written, and what becomes of its shape, is as locally."""
    section = "out" if name in refused["out"] else "operators"
    settle_variant(section, name, compare_operator_out(OPERATORS[name], SAMPLES))


# Any: a table's entry.
def test_at_least_650_of_677_operators_are_equal(refused: dict[str, Any]) -> None:
    """Of the operators that take float32, at most 27 are in the table of the rest."""
    assert len(OPERATORS) == 677
    assert refused["operators"].keys() <= OPERATORS.keys()
    assert len(OPERATORS) - len(refused["operators"]) >= 650
    assert all(entry["reason"] for entry in refused["operators"].values())
