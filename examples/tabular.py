"""A table: three hospitals learn to tell tumours apart.

Statistics first, since columns must be on one scale; then a logistic regression, tried
after each round on rows that every hospital held out.
"""

from functools import partial

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_breast_cancer
from torch import nn, optim

import obhut
from obhut.federated import LocalTraining, metrics

# The owners' side: 569 tumours with thirty measures each; 1 is benign.
table = load_breast_cancer()
rows, truth = torch.tensor(table.data).float(), torch.tensor(table.target)
names = ["elm", "oak", "yew"]
policy = obhut.Quorum(aggregators=["registry"], contributors=names)
registry = obhut.VirtualWorker("registry", policy=policy)
workers = [
    obhut.VirtualWorker(
        name,
        policy=policy,
        datasets={"tumours": {"features": rows[n::3], "target": truth[n::3]}},
    )
    for n, name in enumerate(names)
]

# The model owner's side.
federation = obhut.Federation(
    {worker.id: worker.dataset("tumours") for worker in workers}, registry
)
found = federation.describe(names=table.feature_names, classes=2)
widest = found.std.argmax()
print(f"{found.rows} rows; {table.feature_names[widest]} varies most, by", end=" ")
print(f"{found.std[widest]:.0f} around {found.mean[widest]:.0f}\n")

scale = nn.BatchNorm1d(30, affine=False).eval()  # frozen: it only standardizes
scale.running_mean.copy_(found.mean)
scale.running_var.copy_(found.std**2)
torch.manual_seed(0)
model = nn.Sequential(scale, nn.Linear(30, 1), nn.Flatten(0))
training = LocalTraining(
    partial(optim.SGD, lr=0.1),
    lambda scores, y: nn.functional.binary_cross_entropy_with_logits(scores, y.float()),
    batch_size=16,
)
how = {"held_out": 0.3, "seed": 0}
measures = {"AUC": metrics.roc_auc(), "recall": metrics.recall()}
history = federation.fit(model, training, rounds=8, validate=measures, **how)
print(f"AUC of rows held out at all three: {history[-1].metrics['AUC']:.3f}")
print(federation.evaluate(model, {"counts": metrics.confusion_matrix()}, **how))
history.plot()
plt.show()
