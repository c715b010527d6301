"""PyTorch's databases at an owner's worker, past whose guard a test looks.

As every test, these are reproduced by a worker without data: what is answered to each
sample, to its gradients and to theirs, is the same to the byte.
``OBHUT_CONFORMANCE=full`` runs all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest
import torch
from msgspec import structs

import obhut
from obhut.client.dispatch import describe
from obhut.client.held import Held
from obhut.protocol.messages import Run
from obhut.testing import conformance
from obhut.testing.conformance import Outcome, Verdict
from obhut.testing.databases import (
    compare_module,
    compare_operator,
    compare_operator_out,
    compare_optimizer,
    modules,
    operators,
    optimizers,
)
from obhut.worker.execution import Execution

pytestmark = pytest.mark.filterwarnings("ignore")

FULL = os.environ.get("OBHUT_CONFORMANCE") == "full"
SAMPLES = 4 if FULL else 1
SEED = 20_260_707

OPERATORS, MODULES, OPTIMIZERS = operators(), modules(), optimizers()
POLICY = obhut.Quorum(aggregators=("hub",), contributors=("bob", "alice", "carol"))


def sample(names: dict[str, Any], count: int) -> list[str]:
    """Return some of the names, the same each time."""
    every = sorted(names)
    return every if FULL else sorted(Random(SEED).sample(every, count))


class Peeked:
    """Values that a guard keeps, for a test."""

    def __init__(self, helds: Sequence[Held]) -> None:
        self._helds = helds

    def result(self) -> list[torch.Tensor]:
        """Return them. What the worker has answered is told first."""
        return [self._value(held) for held in self._helds]

    def _value(self, held: Held) -> torch.Tensor:
        describe(held)
        core = held.session._transport._shell._core
        return core._highs[held.session.name]._store[held.id].detach().clone()


@pytest.fixture(autouse=True)
def _past_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance, "fetch", Peeked)


def guarded(blocking: bool | None = None) -> obhut.VirtualWorker:
    """Return an owner's worker."""
    return obhut.VirtualWorker("bob", policy=POLICY, blocking=blocking)


Settle = Callable[[str, str, Outcome], None]


@pytest.mark.parametrize("name", sample(OPERATORS, 150))
def test_operator(name: str, settle_guarded: Settle) -> None:
    """What the owner has of it and its derivatives is what is here."""
    outcome = compare_operator(OPERATORS[name], SAMPLES, place=guarded, twice=True)
    settle_guarded("operators", name, outcome)


@pytest.mark.parametrize("name", sample(OPERATORS, 50))
def test_operator_in_place(name: str, settle_guarded: Settle) -> None:
    """What it does to its argument, and to gradients, is as here."""
    outcome = compare_operator(
        OPERATORS[name], SAMPLES, "inplace", place=guarded, twice=True
    )
    settle_guarded("inplace", name, outcome)


@pytest.mark.parametrize("name", sample(OPERATORS, 50))
def test_operator_into_given_tensors(name: str, settle_guarded: Settle) -> None:
    """With ``out=``, what is written is as here."""
    settle_guarded("out", name, compare_operator_out(OPERATORS[name], SAMPLES, guarded))


@pytest.mark.parametrize("name", sample(MODULES, 40))
def test_module(name: str, settle_guarded: Settle) -> None:
    """A sent module's results, derivatives and buffers are as here."""
    outcome = compare_module(MODULES[name], SAMPLES, place=guarded, twice=True)
    settle_guarded("modules", name, outcome)


@pytest.mark.parametrize("name", sample(OPTIMIZERS, 6))
def test_optimizer(name: str, settle_guarded: Settle) -> None:
    """Parameters become what they become here."""
    settle_guarded("optimizers", name, compare_optimizer(OPTIMIZERS[name], guarded))


def test_what_an_owner_lacks_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A result that is missing or another one at the owner is a difference."""
    op = OPERATORS["tanh"]
    assert compare_operator(op, 1, place=guarded).verdict is Verdict.EQUAL
    apply = Execution.apply

    def other(execution: Execution, request: Any, *args: Any) -> Any:
        if isinstance(request, Run) and execution.executor._high:
            request = structs.replace(request, op="aten.cos.default")
        return apply(execution, request, *args)

    def failing(execution: Execution, request: Any, *args: Any) -> Any:
        if isinstance(request, Run) and execution.executor._high:
            raise RuntimeError
        return apply(execution, request, *args)

    for change in (other, failing):
        monkeypatch.setattr(Execution, "apply", change)
        assert compare_operator(op, 1, place=guarded).verdict is Verdict.DIFFERENT
