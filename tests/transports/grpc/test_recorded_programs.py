"""Recorded programs at served workers: the same figures, whatever text comes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from random import Random

import pytest
import torch
from tests.programs.mutations import SESSION, mutated, texts
from tests.programs.zoo import MODELS, plain
from torch import nn

import obhut
from obhut.client.network import Network
from obhut.errors import ObhutError
from obhut.programs.text import digest
from obhut.protocol.messages import Define, RunProgram, Stepping

Enter = Callable[..., Network]


def trained(bob: obhut.RemoteWorker, name: str) -> tuple[nn.Module, torch.Tensor]:
    """Return a model that was trained at a worker, and its losses."""
    torch.manual_seed(0)
    model, x = MODELS[name].make(), MODELS[name].rows()
    y = torch.randint(0, 10, (len(x),))
    obhut.send(model, bob)
    ratio = obhut.program(plain).run(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        data=(obhut.send(x, bob), obhut.send(y, bob)),
        batch_size=12,
        epochs=2,
        shuffle=True,
        seed=7,
    )
    losses = ratio.numerator.get() / ratio.denominator.get()
    return obhut.get(model), losses


@pytest.mark.parametrize("name", ["mlp", "batch norm", "dropout", "gpt"])
def test_a_served_worker_trains_as_a_virtual_one(enter: Enter, name: str) -> None:
    """Digit for digit, also what is drawn: the order of rows, and a dropout."""
    served, losses = trained(enter("me")["bob"], name)
    virtual, expected = trained(obhut.VirtualWorker("bob"), name)
    assert torch.equal(losses, expected)
    for one, other in zip(
        served.state_dict().values(), virtual.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)


def test_a_worker_serves_on_when_altered_programs_come(enter: Enter) -> None:
    """Most are refused by name, none ends the session or the worker."""
    torch.manual_seed(0)
    model, x, y = MODELS["mlp"].make(), torch.randn(40, 16), torch.arange(40) % 10
    random, refused, text = Random(1), 0, ""
    for number in range(texts(80)):
        if number % SESSION == 0:
            bob = enter("me")["bob"]
            sent = obhut.send(copy.deepcopy(model), bob)
            rows = (obhut.send(x, bob), obhut.send(y, bob))
            optimizer = torch.optim.SGD(sent.parameters(), lr=0.1)
            given = {"model": sent, "optimizer": optimizer}
            text = obhut.program(plain).record(data=rows, **given).text
        other = mutated(text, random)
        there, session = obhut.send(copy.deepcopy(model), bob), bob.session
        session.post(Define(other))
        session.post(
            RunProgram(
                digest(other),
                tuple(one._held.id for one in there.parameters()),
                tuple(one._held.id for one in rows),
                session.new_ids(2),
                2,
                batch_size=8,
                optimizers=(Stepping(session.new_id(), ({"lr": 0.1},)),),
            )
        )
        try:
            bob.wait()
        except ObhutError:
            refused += 1
    assert refused > texts(50)
    assert torch.equal(obhut.send(x, bob).get(), x)
