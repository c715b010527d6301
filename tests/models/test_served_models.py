"""Models of ``transformers`` are trained at served owners who have policies."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import obhut
from obhut.client.network import Network, connect
from obhut.errors import OpNotAdmittedError
from obhut.testing.sites import Sites

from .architectures import ARCHITECTURES, bert
from .conftest import OWNERS

pytestmark = pytest.mark.slow

POLICY = f"""
kind = "Quorum"
aggregators = ["hub"]
contributors = {json.dumps(OWNERS)}
requesters = ["me"]
programs = "any"
"""
"""It compares no programs, since each owner's rows are sent."""


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """Three owners and an aggregator in processes of their own, under one policy."""
    names = ("hub", *OWNERS)
    with Sites(tmp_path_factory.mktemp("sites"), (*names, "me")) as sites:
        sites.serve("hub", sessions=["me"], deliver=OWNERS, policy=POLICY)
        reach = {"hub": sites.addresses["hub"]}
        with ThreadPoolExecutor() as pool:
            serve = partial(sites.serve, sessions=["me"], reach=reach, policy=POLICY)
            list(pool.map(serve, OWNERS))
        addresses = [sites.addresses[name] for name in names]
        with connect(*addresses, folder=sites.root / "me") as connected:
            yield connected


def steps(model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    """Train a little; return the last loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        loss = model(**inputs)["loss"]
        loss.backward()
        optimizer.step()
    return loss.detach()


@pytest.mark.parametrize("name", ["BERT", "GPT-2", "T5", "ViT", "Mamba"])
def test_three_owners_train_and_the_mean_comes_back(net: Network, name: str) -> None:
    """Weights and losses are the means of what plain torch comes to."""
    make = ARCHITECTURES[name].make
    torch.manual_seed(0)
    model, _ = make()
    rows = [make()[1] for _ in OWNERS]
    here, there, losses, expected = [], [], [], []
    for owner, inputs in zip(OWNERS, rows, strict=True):
        local = copy.deepcopy(model)
        expected.append(steps(local, inputs))
        here.append(local)
        remote = obhut.send(copy.deepcopy(model), net[owner])
        sent = {
            key: obhut.send(x, net[owner]) if isinstance(x, torch.Tensor) else x
            for key, x in inputs.items()
        }
        losses.append(obhut.move(steps(remote, sent), net["hub"]))
        there.append(obhut.move(remote, net["hub"]))
    loss = obhut.get(obhut.average(losses))
    # The sum is made in float64, and rounded once.
    torch.testing.assert_close(loss, obhut.average(expected), rtol=1e-6, atol=1e-6)
    mean, wanted = obhut.get(obhut.average(there)), obhut.average(here)
    for one, other in zip(mean.parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_a_value_that_is_read_all_the_same_is_refused(net: Network) -> None:
    """The error says what a model can ask first."""
    model, inputs = bert()
    obhut.send(model, net["bob"])
    mask = obhut.send(inputs["attention_mask"], net["bob"])
    with pytest.raises(OpNotAdmittedError, match=r"torch\.compiler\.is_compiling\(\)"):
        bool(mask.all())
