"""Seeds, generators and orders: what is drawn at a worker, and what is drawn here."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

from .programs import Location, row

ROWS = torch.arange(12.0).reshape(6, 2)


@row("dropout, initialisation and noise after `torch.manual_seed`")
def seeded(at: Location) -> Any:
    """A seed decides all of them, again and again."""
    model = at.send(nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5)))
    x = at.send(ROWS)
    drawn = []
    for _ in range(2):
        torch.manual_seed(7)
        nn.init.xavier_normal_(model[0].weight)
        drawn += [model(x), x + torch.randn_like(x), x.clone().uniform_()]
    return drawn


@row("random numbers drawn here and there in turn")
def in_turn(at: Location) -> Any:
    """They come in the order of the program."""
    x = at.send(ROWS)
    drawn = []
    for _ in range(3):
        drawn += [F.dropout(x), torch.randn(3)]
        with at.inside():
            drawn.append(torch.rand(2))
    return drawn


@row("`torch.manual_seed` inside `with bob:`")
def seeded_inside(at: Location) -> Any:
    """What is made there is what would be made here."""
    with at.inside():
        torch.manual_seed(3)
        layer = nn.Linear(4, 3)
        drawn = [torch.randn(3), torch.randperm(5), layer.weight, layer.bias]
        torch.manual_seed(3)
        drawn.append(nn.Linear(4, 3).weight)
    return drawn


@row("a `torch.Generator` as an argument")
def generator(at: Location) -> Any:
    """It goes on as it does here, and the default one does not."""
    g = torch.Generator().manual_seed(5)
    x = at.send(ROWS)
    with at.inside():
        drawn = [torch.randn(3, generator=g), torch.rand(2)]
    drawn += [x.clone().normal_(generator=g), torch.randn(2, generator=g)]
    nn.init.uniform_(drawn[0], generator=g)
    return [*drawn, torch.bernoulli(x / 12, generator=g), torch.rand(2)]


@row("`torch.get_rng_state`, `set_rng_state` and `torch.random.fork_rng`")
def states(at: Location) -> Any:
    """What is drawn after a state was restored is drawn again."""
    x = at.send(ROWS)
    before = torch.get_rng_state()
    drawn = [F.dropout(x)]
    with torch.random.fork_rng():
        drawn.append(F.dropout(x))
    drawn.append(F.dropout(x))
    torch.set_rng_state(before)
    return [*drawn, F.dropout(x)]


class Numbers(Dataset[dict[str, Any]]):
    """Rows that are made as they are read."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": torch.tensor([float(index)]), "y": index}


@row("`DataLoader(shuffle=True)` inside `with bob:`")
def loader(at: Location) -> Any:
    """Batches of what is here stay here, in the order that they have here."""
    with at.inside():
        one = DataLoader(TensorDataset(ROWS), batch_size=2, shuffle=True)
        two = DataLoader(Numbers(), batch_size=3, shuffle=True)
        g = torch.Generator().manual_seed(1)
        three = DataLoader(TensorDataset(ROWS), shuffle=True, generator=g)
        batches = [list(one), list(two), list(three)]
    here = [type(batches[0][0][0]).__name__, type(batches[1][0]["x"]).__name__]
    return [here, *batches]


class Looping(nn.Module):
    """A module whose forward loops over data of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, send: Any) -> Any:
        """Add what the layer makes of each batch."""
        loader = DataLoader(TensorDataset(ROWS), batch_size=4, shuffle=True)
        return [self.layer(send(x)).sum() for (x,) in loader]


@row("a `DataLoader` inside the forward of a sent module")
def loader_in_forward(at: Location) -> Any:
    """Its order is the one that it has here."""
    return at.send(Looping())(at.send)


@row("`random_split` and samplers inside `with bob:`")
def samplers(at: Location) -> Any:
    """They choose here, as they do outside."""
    with at.inside():
        first, second = random_split(TensorDataset(ROWS), [4, 2])
        return [
            list(first.indices),
            list(second.indices),
            list(BatchSampler(RandomSampler(range(6)), 2, drop_last=False)),
            list(WeightedRandomSampler([0.1, 0.5, 0.4], 3)),
            list(RandomSampler(range(6), replacement=True, num_samples=4)),
        ]


@row("`x[torch.randperm(n)]`, made here or inside `with bob:`")
def permuted(at: Location) -> Any:
    """An order of rows joins, wherever it was drawn."""
    x = at.send(ROWS)
    with at.inside():
        order = torch.randperm(6)
    return [x[torch.randperm(6)], x[order], x.index_select(0, torch.randperm(6))]
