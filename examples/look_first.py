"""Look first: three hospitals whose tables are not alike, and have empty cells.

Columns are compared by what is public of them; the model itself fills empty cells.
"""

from functools import partial

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

import obhut
from obhut.federated import LocalTraining, metrics

# The owners' side: yew's columns are in another order, and a tenth of its cells empty.
torch.manual_seed(0)
table = load_breast_cancer()
names = ["radius", "texture", "perimeter", "area"]
tumours = torch.tensor(table.data[:, :4], dtype=torch.float32)
tumours[400:][torch.rand(169, 4) < 0.1] = torch.nan
parts = (
    tumours.split([230, 170, 169]),
    torch.tensor(table.target).split([230, 170, 169]),
)
orders = {"elm": [0, 1, 2, 3], "oak": [0, 1, 2, 3], "yew": [3, 0, 1, 2]}
policy = obhut.Quorum(aggregators=["registry"], contributors=[*orders])
registry = obhut.VirtualWorker("registry", policy=policy)
owners = {}
for (name, order), x, y in zip(orders.items(), *parts, strict=True):
    told = {"columns": {"features": [names[place] for place in order]}}
    told |= {"classes": ["malignant", "benign"], "units": {"radius": "mm"}}
    said = [obhut.DatasetDescription("tumours", **told)]
    mine = {"tumours": {"features": x[:, order], "target": y}}
    worker = obhut.VirtualWorker(name, policy=policy, datasets=mine, described=said)
    owners[name] = worker.dataset("tumours")

# The model owner's side.
federation = obhut.Federation(owners, registry)
found = federation.describe()
print(owners["yew"].location.datasets, federation.align(), found, sep="\n\n")


class Scaled(nn.Module):
    """Columns on one scale, and the mean of all hospitals where a cell is empty."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", found.mean.float())
        self.register_buffer("std", found.std.float())

    def forward(self, x):
        """Return rows without empty cells, (rows, 4)."""
        return ((x - self.mean) / self.std).nan_to_num(0.0)


model = nn.Sequential(Scaled(), nn.Linear(4, 2))
training = LocalTraining(partial(torch.optim.SGD, lr=0.1), nn.functional.cross_entropy)
federation.fit(model, training, rounds=30, progress=False)
print(federation.evaluate(model, {"accuracy": metrics.accuracy}))
