"""Images: a small CNN with BatchNorm learns to read digits at five hospitals.

Each holds a fifth of its images out, the same in every round, and the curve is that of
the images held out at all five. The best round's model is in the folder.
"""

from functools import partial

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn, optim

import obhut
from obhut.federated import Checkpoint, LocalTraining, metrics

# The owners' side: 1,797 images, of which each has every fifth.
names = ["ash", "beech", "elm", "oak", "yew"]
policy = obhut.Quorum(aggregators=["registry"], contributors=names)
registry = obhut.VirtualWorker("registry", policy=policy)
images, digits = (torch.tensor(part) for part in load_digits(return_X_y=True))
images = images.float().reshape(-1, 1, 8, 8) / 16
workers = [
    obhut.VirtualWorker(
        name,
        policy=policy,
        datasets={"digits": {"features": images[n::5], "target": digits[n::5]}},
    )
    for n, name in enumerate(names)
]

# The model owner's side.
torch.manual_seed(0)
model = nn.Sequential(
    *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten()),
    nn.Linear(128, 10),
)
optimizer = partial(optim.SGD, lr=0.05, momentum=0.9)
training = LocalTraining(optimizer, nn.functional.cross_entropy, batch_size=32)
federation = obhut.Federation(
    {worker.id: worker.dataset("digits") for worker in workers}, registry
)
history = federation.fit(
    model,
    training,
    rounds=10,
    held_out=0.2,
    seed=0,
    validate={"accuracy": metrics.accuracy},
    callbacks=[checkpoint := Checkpoint("digits-run", best="accuracy")],
)
best = checkpoint.load(model)
print(f"round {best.number} reads {best.metrics['accuracy']:.1%} of what is held out")
history.plot()
plt.show()
