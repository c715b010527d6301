"""PyTorch's ``optim_db``: each optimizer with each of its settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from obhut.testing.conformance import Outcome
from obhut.testing.databases import compare_optimizer, optimizers

pytestmark = pytest.mark.filterwarnings("ignore")

OPTIMIZERS = optimizers()


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_optimizer(name: str, settle: Callable[[str, str, Outcome], None]) -> None:
    """Parameters become what local ones do, each setting, singly, by lists, fused."""
    settle("optimizers", name, compare_optimizer(OPTIMIZERS[name]))


# Any: a table's entry.
def test_at_least_14_of_15_optimizers_are_equal(refused: dict[str, Any]) -> None:
    """At most 1 optimizer is in the table of the rest."""
    assert len(OPTIMIZERS) == 15
    assert refused["optimizers"].keys() <= OPTIMIZERS.keys()
    assert len(OPTIMIZERS) - len(refused["optimizers"]) >= 14
    assert all(entry["reason"] for entry in refused["optimizers"].values())
