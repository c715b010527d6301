"""PyTorch's ``module_db``: its samples of each module, remotely against locally."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from obhut.testing.conformance import Outcome
from obhut.testing.databases import compare_module, modules

pytestmark = pytest.mark.filterwarnings("ignore")

FULL = os.environ.get("OBHUT_CONFORMANCE") == "full"
SAMPLES = 100 if FULL else 2

IMPORTANT = (
    "nn.BatchNorm2d",
    "nn.CTCLoss",
    "nn.Conv2d",
    "nn.CrossEntropyLoss",
    "nn.Embedding",
    "nn.GRU",
    "nn.LSTM",
    "nn.LayerNorm",
    "nn.LazyConv1d",
    "nn.Linear",
    "nn.MultiheadAttention",
    "nn.Transformer",
    "nn.TransformerEncoder",
)

MODULES = modules()
NAMES = sorted(MODULES)
SAMPLED = NAMES if FULL else sorted({*NAMES[::6], *IMPORTANT})

Settle = Callable[[str, str, Outcome], None]


@pytest.mark.parametrize("name", SAMPLED)
def test_module(name: str, settle: Settle) -> None:
    """A sent module's results, gradients and buffers equal a local one's."""
    settle("modules", name, compare_module(MODULES[name], SAMPLES))


@pytest.mark.parametrize("name", SAMPLED)
def test_module_without_gradients(name: str, settle_variant: Settle) -> None:
    """Without gradients, where PyTorch takes faster paths, results are as locally."""
    outcome = compare_module(MODULES[name], SAMPLES, grad=False)
    settle_variant("modules", name, outcome)


# Any: a table's entry.
def test_at_least_108_of_114_modules_are_equal(refused: dict[str, Any]) -> None:
    """At most 6 modules are in the table of the rest."""
    assert len(MODULES) == 114
    assert refused["modules"].keys() <= MODULES.keys()
    assert len(MODULES) - len(refused["modules"]) >= 108
    assert all(entry["reason"] for entry in refused["modules"].values())
