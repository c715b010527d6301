"""Personal layers: clinics that number classes differently share all but the last one.

What `keep` names never leaves a clinic, and is its own there. Each clinic here counts
the digits from another one, so that no single last layer could be right at all of them.
"""

from functools import partial

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn, optim

import obhut
from obhut.federated import LocalTraining, metrics

# The owners' side: each has every fourth image, and its own numbers for the ten digits.
names = ["ash", "beech", "elm", "oak"]
policy = obhut.Quorum(aggregators=["registry"], contributors=names)
registry = obhut.VirtualWorker("registry", policy=policy)
images, digits = (torch.tensor(part) for part in load_digits(return_X_y=True))
images = images.float() / 16
owners = {}
for n, name in enumerate(names):
    mine = {"features": images[n::4], "target": (digits[n::4] + n) % 10}
    worker = obhut.VirtualWorker(name, policy=policy, datasets={"digits": mine})
    owners[name] = worker.dataset("digits")

# The model owner's side.
training = LocalTraining(
    partial(optim.SGD, lr=0.2, momentum=0.9), nn.functional.cross_entropy, batch_size=32
)
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for keep in ([], ["head"]):
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("body", nn.Sequential(nn.Linear(64, 32), nn.ReLU()))
    model.add_module("head", nn.Linear(32, 10))
    history = obhut.Federation(owners, registry).fit(
        model,
        training,
        rounds=8,
        held_out=0.2,
        seed=0,
        keep=keep,
        validate={"accuracy": metrics.accuracy},
    )
    kind = "a head of its own at each" if keep else "all shared"
    axes.plot(*history.curve("accuracy"), "o-", label=kind)
    print(f"{kind}: {history[-1].metrics['accuracy']:.0%}")
axes.set(xlabel="round", ylabel="accuracy on what all four held out", ylim=(0, 1))
axes.legend()
plt.show()
