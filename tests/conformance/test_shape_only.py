"""PyTorch's databases on tensors without values, against the same with values.

``OBHUT_CONFORMANCE=full`` takes more samples and more dtypes.
"""

from __future__ import annotations

import os
import pathlib
import tomllib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from obhut.testing.databases import modules, optimizers
from obhut.testing.lookalikes import (
    Compared,
    compare_call,
    compare_looks,
    compare_module_looks,
    compare_optimizer_looks,
)

pytestmark = pytest.mark.filterwarnings("ignore")

FULL = os.environ.get("OBHUT_CONFORMANCE") == "full"
SAMPLES = 4
TABLE = tomllib.loads(pathlib.Path(__file__).with_name("shape_only.toml").read_text())


def operators() -> dict[str, Any]:
    """Return all entries of ``op_db``, also those that take no float32."""
    from torch.testing._internal.common_methods_invocations import op_db

    return {op.full_name: op for op in op_db}


def settle(section: str, found: dict[str, Compared]) -> Compared:
    """Check what was found against the table, which has nothing too much."""
    total = Compared()
    rows, strides = TABLE[section], TABLE["strides"][section]
    for name, one in found.items():
        row = rows.get(name, {})
        differs = {what for what, _ in one.differences}
        said = f"{section} {name}: {one}"
        assert one.refused == set(row.get("refused", ())), said
        assert differs == set(row.get("differs", ())), said
        assert (one.strides > 0) <= (name in strides), said
        total += one
    assert {*rows, *strides} <= found.keys()
    assert all(row["reason"] in TABLE["reasons"] for row in rows.values())
    return total


@pytest.mark.parametrize("variant", ["operators", "inplace", "out"])
def test_operators_look_as_with_values(variant: str) -> None:
    """Results and first and second gradients look alike, or are refused by name."""
    how = "function" if variant == "operators" else variant
    found = {name: compare_looks(op, SAMPLES, how) for name, op in operators().items()}
    total = settle(variant, found)
    least = {"operators": 2_300, "inplace": 440, "out": 3_400}
    assert total.equal >= least[variant]
    assert total.strides <= 80


def test_modules_look_as_with_values() -> None:
    """Results, buffers and gradients of PyTorch's modules look alike."""
    found = {
        name: compare_module_looks(info, SAMPLES) for name, info in modules().items()
    }
    assert settle("modules", found).equal >= 700


def test_optimizers_look_as_with_values() -> None:
    """Parameters and what is kept of them look alike, singly, by lists and fused."""
    found = {
        name: compare_optimizer_looks(info)
        for name, info in optimizers().items()
        if not info.only_supports_sparse_grads
    }
    assert settle("optimizers", found).equal >= 200


@pytest.mark.skipif(not FULL, reason="takes minutes")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.complex64])
def test_other_dtypes_look_as_with_values(dtype: torch.dtype) -> None:
    """Nothing but strides, formulas and views differs with other dtypes either."""
    may = {"grad_fn", "is_view", "stride", "bits"}
    for name, op in operators().items():
        if dtype in op.dtypes:
            one = compare_looks(op, 8, dtype=dtype)
            differs = {what.partition(":")[2] for what, _ in one.differences}
            assert differs <= may, f"{name}: {one}"


def test_the_comparison_sees_another_look() -> None:
    """A size, a stride, a graph, a shared storage that differ are seen."""

    def differs(change: Callable[[torch.Tensor], Any]) -> tuple[set[str], int]:
        def call(x: torch.Tensor) -> Any:
            return change(x) if type(x) is torch.Tensor else x * 2

        found = compare_call(call, (torch.ones(3, 4, requires_grad=True),), {})
        return {what for what, _ in found.differences}, found.strides

    assert differs(lambda x: x * 2) == (set(), 0)
    assert "forward:shape" in differs(lambda x: x[0] * 2)[0]
    assert "forward:grad_fn" in differs(lambda x: x + 2)[0]
    assert "forward:is_view" in differs(lambda x: x.view_as(x))[0]
    assert "all:sharing" in differs(lambda x: x.view_as(x))[0]
    assert "forward:dtype" in differs(lambda x: (x * 2).double())[0]
    assert "phases" in differs(lambda x: x.detach() * 2)[0]
    assert differs(lambda x: (x.t().contiguous() * 2).t())[0] >= {"forward:stride"}
