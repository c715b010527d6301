"""Served owners whose files have columns in other orders, as clients see them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import obhut
from obhut.client.hidden_dataset import HiddenDataset
from obhut.client.network import Network, connect
from obhut.errors import CallError, DatasetNotFoundError
from obhut.federated import LocalTraining

from .conftest import World
from .test_guarded import OWNERS, POLICY

HUB = "secure_worker"
SAME = POLICY + 'programs = "same"\n'
ORDERS = dict(
    zip(OWNERS, (("a", "b", "c"), ("c", "a", "b"), ("b", "c", "a")), strict=True)
)
DATA = """
[[dataset]]
name = "d"
path = "data.csv"
features = "*"
target = "y"
classes = ["no", "yes"]
units = { a = "years" }
missing = "nan"
public = { names = true, classes = true, units = true, rows = "ROWS" }

[[dataset]]
name = "scans"
path = "scans.npz"
"""


def cells(owner: str) -> dict[str, torch.Tensor]:
    """Return an owner's columns; one cell of the second owner's is empty."""
    draw = torch.Generator().manual_seed(OWNERS.index(owner))
    x = (torch.rand(30 + len(owner), 3, generator=draw) * 1_000).round() / 1_000
    if owner == OWNERS[1]:
        x[3, 0] = torch.nan
    return dict(zip("abc", x.T, strict=True)) | {"y": (x[:, 1] > 0.5).float()}


@pytest.fixture(scope="module", params=["exact", "hidden"])
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """Three owners and an aggregator, under a policy that compares programs."""
    world = World(tmp_path_factory.mktemp("world"), (HUB, *OWNERS, "me", "you"))
    try:
        world.serve(HUB, policy=SAME, deliver=OWNERS)
        reach = {HUB: world.address(HUB)}
        for owner in OWNERS:
            folder: Path = world.root / owner
            table, order = cells(owner), (*ORDERS[owner], "y")
            lines = [",".join(order)]
            for row in zip(*(table[name].tolist() for name in order), strict=True):
                *numbers, outcome = (f"{cell:g}" for cell in row)
                words = [*numbers, "yes" if outcome == "1" else "no"]
                lines.append(",".join(words).replace("nan", ""))
            (folder / "data.csv").write_text("\n".join(lines))
            np.savez(folder / "scans.npz", hiv=np.ones((9, 2), "f4"), cd4=np.ones(9))
            more = DATA.replace("ROWS", request.param)
            world.serve(
                owner,
                policy=SAME,
                deliver=(),
                reach=reach,
                more=more,
            )
        yield world
    finally:
        world.close()


@pytest.fixture
def net(world: World) -> Iterator[Network]:
    """What a client is connected to."""
    addresses = [world.address(name) for name in (HUB, *OWNERS)]
    with connect(*addresses, folder=world.root / "me") as net:
        yield net


def test_columns_are_put_in_one_order(net: Network) -> None:
    """Means, counts of missing cells and a training over all of them."""
    owners = {name: net[name].dataset("d") for name in OWNERS}
    federation = obhut.Federation(owners, net[HUB])
    found = federation.align()
    assert {one.kind for one in found.differences} == {"order"}
    assert "1: years" in repr(found)
    described = federation.describe()
    assert described.names == ORDERS[OWNERS[0]]
    assert described.missing.tolist() == [1, 0, 0]
    all_rows = torch.cat([torch.stack([cells(o)[n] for n in "abc"], 1) for o in OWNERS])
    torch.testing.assert_close(described.mean, all_rows.double().nanmean(0))
    model = nn.Sequential(Filled(described.mean), nn.Linear(3, 2))
    training = LocalTraining(
        partial(torch.optim.SGD, lr=0.1), nn.functional.cross_entropy, batch_size=8
    )
    history = federation.fit(model, training, rounds=2, progress=False)
    assert history[-1].non_finite == 0


class Filled(nn.Module):
    """Puts the mean of all owners where a cell is missing."""

    mean: torch.Tensor

    def __init__(self, mean: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return rows without missing cells, (rows, columns)."""
        return torch.where(x.isnan(), self.mean, x)


def test_what_is_public_is_shown(net: Network) -> None:
    """A table with classes and units; of private names the columns are not told."""
    bob: Any = net[OWNERS[0]]
    shown = repr(bob.datasets)
    assert "a (years), b, c" in shown
    assert "no, yes" in shown
    assert "hiv" not in shown
    assert "cd4" not in bob._repr_html_()
    assert "years" in repr(bob.datasets["d"])
    with pytest.raises(DatasetNotFoundError, match="did you mean 'scans'"):
        bob["scan"]


def test_a_private_array_is_used_by_who_was_told_its_name(net: Network) -> None:
    """Hidden or not; nobody else learns it."""
    bob = net[OWNERS[0]]
    data = bob.dataset("scans", "hiv", "cd4")
    assert isinstance(data, HiddenDataset)
    assert [tuple(one.shape) for one in data.looks] == [(2,), ()]
    for call in (
        lambda: bob.dataset("scans", "hi", "cd4"),
        lambda: bob.dataset("scans", "hiv", "cd4", columns=["x"]),
    ):
        with pytest.raises(CallError) as caught:
            call()
        assert "hiv" not in str(caught.value).replace("'hi'", "")


def test_a_choice_is_loaded_or_gone_through(net: Network) -> None:
    """Two of three, at each owner from another place."""

    @obhut.program
    def summed(x: torch.Tensor, y: torch.Tensor) -> obhut.Ratio:
        return obhut.Ratio(x.sum(0), len(x))

    parts = []
    for name in OWNERS:
        data = net[name].dataset("d", columns=["c", "b"])
        ratio = summed.run(data=data)
        parts.append(obhut.move(ratio.numerator, net[HUB]))
    total = (parts[0] + parts[1] + parts[2]).get()
    known = [sum(cells(name)[one].double().sum() for name in OWNERS) for one in "cb"]
    torch.testing.assert_close(total[0], torch.stack(known), rtol=1e-5, atol=0)
