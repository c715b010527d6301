"""PyTorch's databases again, at a worker in a process of its own, over gRPC.

A fixed sample of each; ``OBHUT_CONFORMANCE=full`` runs all. What draws random numbers
is left out: a served worker has a generator of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest
import torch

from obhut.client.workers import RemoteWorker
from obhut.testing.conformance import Outcome, Place, Verdict
from obhut.testing.databases import (
    compare_module,
    compare_operator,
    compare_optimizer,
    modules,
    operators,
    optimizers,
)
from obhut.testing.sites import Sites

pytestmark = pytest.mark.filterwarnings("ignore")

FULL = os.environ.get("OBHUT_CONFORMANCE") == "full"
SEED = 20_260_707

OPERATORS, MODULES, OPTIMIZERS = operators(), modules(), optimizers()

Settle = Callable[[str, str, Outcome], None]


def sample(names: dict[str, Any], count: int) -> list[str]:
    """Return some of the names, the same each time."""
    every = sorted(names)
    return every if FULL else sorted(Random(SEED).sample(every, count))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Makes sessions with one served worker, a new one each time."""
    with Sites(tmp_path_factory.mktemp("served"), ("bob", "me")) as sites:
        sites.serve("bob", sessions=["me"], limits='memory = "1 GiB"')
        yield lambda blocking: RemoteWorker(
            sites.transport("me", "bob"), blocking=blocking
        )


@pytest.fixture
def settle_served(refused: dict[str, Any]) -> Settle:
    """A check against the table of what is refused, in which random draws are not."""

    def check(section: str, name: str, outcome: Outcome) -> None:
        if outcome.verdict is Verdict.SKIPPED:
            pytest.skip(outcome.detail or "no sample runs locally")
        entry = refused[section].get(name)
        if entry is None:
            assert outcome.verdict is Verdict.EQUAL, str(outcome)
        else:
            assert outcome.verdict is Verdict.REFUSED, str(outcome)
            assert outcome.error == entry["error"], str(outcome)

    return check


@pytest.mark.parametrize("name", sample(OPERATORS, 60))
def test_operator(name: str, place: Place, settle_served: Settle) -> None:
    """An operator's results, gradients and looks equal local ones, or it is refused."""
    outcome = compare_operator(OPERATORS[name], 4 if FULL else 1, place=place)
    settle_served("operators", name, outcome)


@pytest.mark.parametrize("name", sample(MODULES, 15))
def test_module(name: str, place: Place, settle_served: Settle) -> None:
    """A sent module's results, gradients and buffers equal a local one's."""
    outcome = compare_module(MODULES[name], 100 if FULL else 1, place=place)
    settle_served("modules", name, outcome)


@pytest.mark.parametrize("name", sample(OPTIMIZERS, 5))
def test_optimizer(name: str, place: Place, settle_served: Settle) -> None:
    """Parameters become what local ones do, each setting, singly, by lists, fused."""
    settle_served("optimizers", name, compare_optimizer(OPTIMIZERS[name], place))


def test_the_comparison_sees_another_worker(place: Place) -> None:
    """A result that differs is seen through gRPC as well."""

    class Entry:
        """An operator that is not the same there."""

        op = staticmethod(lambda x: x if type(x) is torch.Tensor else x + 1e-3)
        method_variant = inplace_variant = None
        supports_autograd = False
        full_name = name = "entry"

        @staticmethod
        def sample_inputs_func(*args: object, **kwargs: object) -> Iterator[Any]:
            """Yield one sample."""

            class Sample:
                input = torch.ones(3)
                args, kwargs = (), {}
                output_process_fn_grad = staticmethod(lambda result: result)

            yield Sample

    assert compare_operator(Entry, 1, place=place).verdict is Verdict.DIFFERENT
