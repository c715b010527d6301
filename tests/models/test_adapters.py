"""Rounds of LoRA: the base goes to each owner once, and adapters alone travel then.

It is the recipe under "Libraries" in ``docs/works.md``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import obhut
from obhut.errors import ReleaseRefusedError
from obhut.protocol.messages import AnyRequest, Inline, Move, Put, Run
from obhut.testing.traces import TracingTransport

from .architectures import continued, gpt2
from .conftest import OWNERS, POLICY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
        "ignore:fan_in_fan_out is set to:UserWarning",
    ),
]


@pytest.fixture(params=[None, POLICY], ids=["open", "behind a policy"])
def workers(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """Three owners and an aggregator, and what they are asked."""
    made: dict[str, Any] = {}
    for name in (*OWNERS, "hub"):
        made[name] = worker = obhut.VirtualWorker(name, policy=request.param)
        worker.asked = TracingTransport(worker.session._transport)
        worker.session._transport = worker.asked
    yield made
    for worker in made.values():
        worker.close()


def adapted() -> nn.Module:
    """Return a GPT-2 with adapters, from a seed."""
    torch.manual_seed(0)
    model, _ = gpt2()
    return get_peft_model(
        model, LoraConfig(r=2, target_modules=["c_attn"], lora_dropout=0.0)
    )


def adapters(model: nn.Module) -> list[nn.Parameter]:
    """Return what is trained."""
    return [p for p in model.parameters() if p.requires_grad]


def steps(model: nn.Module, inputs: dict[str, torch.Tensor]) -> None:
    """Train the adapters a little."""
    optimizer = torch.optim.SGD(adapters(model), lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()


def shapes_in(request: AnyRequest) -> list[tuple[int, ...]]:
    """Return the shapes of the tensors that a request brings to a worker."""
    match request:
        case Put(data=data):
            return [data.shape]
        case Run(args=args):
            return [arg.shape for arg in args if isinstance(arg, Inline)]
        case _:
            return []


def test_only_adapters_move(workers: dict[str, Any]) -> None:
    """Two rounds equal those of three local copies; the base neither moves nor changes.

    What is sent in a round are means, which are as large as the adapters.
    """
    base = adapted()
    torch.manual_seed(1)
    rows = {name: continued() for name in OWNERS}
    here = {name: copy.deepcopy(base) for name in OWNERS}

    hub = workers["hub"]
    models, data = {}, {}
    for name in OWNERS:  # once
        bob = workers[name]
        models[name] = obhut.send(copy.deepcopy(base), bob)
        data[name] = {key: obhut.send(x, bob) for key, x in rows[name].items()}
        bob.wait()
        bob.asked.messages.clear()

    for _ in range(2):
        parts = []
        for name, model in models.items():
            steps(model, data[name])
            parts.append([obhut.copy(p).move(hub) for p in adapters(model)])
        means = [obhut.average(list(one)).get() for one in zip(*parts, strict=True)]
        for model in models.values():
            with torch.no_grad():
                for p, mean in zip(adapters(model), means, strict=True):
                    p.copy_(mean)

        for name, model in here.items():
            steps(model, rows[name])
        together = zip(*map(adapters, here.values()), strict=True)
        for one, mean in zip(together, means, strict=True):
            expected = obhut.average([p.detach() for p in one])
            # Behind a policy the sum is made in float64, and rounded once.
            torch.testing.assert_close(mean, expected, rtol=0, atol=1e-7)
            assert mean.any()
            with torch.no_grad():
                for p in one:
                    p.copy_(mean)

    count = len(adapters(base))
    for name in OWNERS:
        workers[name].wait()
        asked = workers[name].asked.requests
        moved = [id for one in asked if isinstance(one, Move) for id in one.ids]
        assert len(moved) == 2 * count
        sent = [
            shape
            for one in asked
            for shape in shapes_in(one)
            if math.prod(shape) > 1  # models make empty tensors, and numbers
        ]
        assert sent == 2 * [tuple(p.shape) for p in adapters(base)]
    if workers["bob"].session.guarded():
        with pytest.raises(ReleaseRefusedError):
            obhut.get(models["bob"])
        return
    for name, model in models.items():
        obhut.get(model)
        pairs = zip(model.parameters(), base.parameters(), strict=True)
        for p, q in pairs:
            assert p.requires_grad is q.requires_grad
            assert torch.equal(p, q) is not q.requires_grad, name
