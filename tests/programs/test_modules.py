"""PyTorch's own modules: a training step of each is recorded, and repeated.

``OBHUT_CONFORMANCE=full`` runs all; else some.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import os
from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from typing import Any

import pytest
import torch
from tests.programs.zoo import plain
from torch import nn
from torch.utils import _pytree as pytree

import obhut
from obhut.client.programs import Program, program
from obhut.errors import NotSendableError, ProgramError
from obhut.testing.conformance import seeded
from obhut.testing.databases import module_inputs, modules
from obhut.worker import trainings

pytestmark = pytest.mark.filterwarnings("ignore")

MODULES = modules()
FULL = os.environ.get("OBHUT_CONFORMANCE") == "full"
BATCHES = 5  # enough to be lowered

REFUSED = {
    **{name: "run the module once" for name in MODULES if name.startswith("nn.Lazy")},
    "nn.CTCLoss": "log_probs",  # whose first size is not the batch
    "nn.FractionalMaxPool2d": "Expect _random_samples",  # of a fixed batch
    "nn.GaussianNLLLoss": "a value is read here",
    "nn.MultiLabelMarginLoss": "multilabel_margin_loss_forward",
}
"""Those that can't be recorded, or sent at all, and why."""


def samples(info: Any) -> Iterator[tuple[Callable[[], nn.Module], Any]]:
    """Yield what makes a module, and what its forward takes."""
    for one in itertools.islice(module_inputs(info, True), 12):
        if one.forward_input is None:
            continue

        def build(given: Any = one.constructor_input) -> nn.Module:
            with seeded():
                args, kwargs = copy.deepcopy((given.args, given.kwargs))
                made: nn.Module = info.module_cls(*args, **kwargs)
                return made.to(torch.float32).train()

        yield build, (one.forward_input.args, one.forward_input.kwargs)


def repeated(build: Callable[[], nn.Module], forward: Any) -> tuple[Any, Any]:
    """Return what a module and its losses are, by program and by a loop here.

    Each batch is the sample; or, where its tensors have no common first size, four
    samples.
    """
    leaves, tree = pytree.tree_flatten(forward)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    tensors = [leaves[place].detach() for place in places]
    sizes = {len(one) if one.dim() else 0 for one in tensors}
    if len(sizes) > 1 or 0 in sizes:
        tensors = [torch.stack([one] * 4) for one in tensors]
    size = len(tensors[0])
    rows = [torch.cat([one] * BATCHES) for one in tensors]
    local = build()
    trained = any(one.requires_grad for one in local.parameters())
    names = [f"row{place}" for place in places]

    def step(**given: Any) -> torch.Tensor:
        filled = list(leaves)
        for place, name in zip(places, names, strict=True):
            filled[place] = given[name]
        args, kwargs = pytree.tree_unflatten(filled, tree)
        if trained:
            given["optimizer"].zero_grad()
        results = pytree.tree_leaves(given["model"](*args, **kwargs))
        loss = sum(
            (one.float() ** 2).mean()
            for one in results
            if isinstance(one, torch.Tensor)
        )
        if trained:
            loss.backward()
            given["optimizer"].step()
        return loss

    step.__signature__ = inspect.Signature(
        [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
            for name in ["model", *["optimizer"] * trained, *names]
        ]
    )

    def given(model: nn.Module) -> dict[str, Any]:
        made = {"model": model}
        if trained:
            made["optimizer"] = torch.optim.SGD(model.parameters(), lr=0.01)
        return made

    bob = obhut.VirtualWorker("bob")
    try:
        remote = obhut.send(copy.deepcopy(local), bob)
        ratio = Program(step).run(
            data=[obhut.send(one, bob) for one in rows],
            batch_size=size,
            seed=3,
            **given(remote),
        )
        there = ratio.numerator.get().item() / size
        if remote.state_dict():
            obhut.get(remote)
    finally:
        bob.close()
    torch.manual_seed(3)
    arguments, here = given(local), 0.0
    for batch in zip(*(one.split(size) for one in rows), strict=True):
        loss = step(**arguments, **dict(zip(names, batch, strict=True)))
        here += float(loss.detach())
    return (remote.state_dict(), there), (local.state_dict(), here)


@pytest.mark.parametrize(
    "name", sorted(MODULES if FULL else Random(1).sample(sorted(MODULES), 30))
)
def test_a_step_of_a_module_is_repeated(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is trained to the same bits as here, as a graph, or refused by name."""
    lowered: list[object] = []
    lower = trainings.lower

    def keep(*args: Any) -> Any:
        lowered.append(lower(*args))
        return lowered[-1]

    trainings._lowered._known.clear()
    monkeypatch.setattr(trainings, "lower", keep)
    reasons: list[str] = []
    for build, forward in samples(MODULES[name]):
        try:
            (state, loss), (expected, expected_loss) = repeated(build, forward)
        except (ProgramError, NotSendableError, RuntimeError) as error:
            reasons.append(str(error))
            continue
        torch.testing.assert_close(state, expected, rtol=0, atol=0, equal_nan=True)
        assert loss == pytest.approx(expected_loss, rel=1e-9, nan_ok=True)
        assert lowered
        assert name not in REFUSED
        return
    assert name in REFUSED, reasons
    assert REFUSED[name] in reasons[0]


class Settings:
    """A configuration, as models of libraries keep one."""

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.names = {"b", "a"}
        self.self: object = None


class Configured(nn.Module):
    """A model whose forward pass reads its configuration."""

    def __init__(self, settings: object) -> None:
        super().__init__()
        self.settings = settings
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale what the layer returns."""
        scale = self.settings() if callable(self.settings) else self.settings.scale
        return self.layer(x) * scale


def test_copies_of_a_configuration_are_recorded_once() -> None:
    """One that reads otherwise is another, and so is what can be called."""
    looped = Settings(2.0)
    looped.names.add("self")
    looped.self = looped
    bodies = (Settings(2.0), copy.deepcopy(Settings(2.0)), Settings(3.0), looped)
    calls = [partial(float, 2.0), partial(float, 3.0), lambda: 4.0]
    step = program(plain)
    digests = []
    for settings in (*bodies, *calls):
        model = Configured(settings)
        given = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), 0.1)}
        data = (torch.ones(8, 4), torch.zeros(8, dtype=torch.int64))
        digests.append(step.record(data=data, **given).digest)
    assert digests[0] == digests[1] == digests[3] == digests[4]
    assert len({*digests}) == 3
    assert len(step._recorded) == 6
