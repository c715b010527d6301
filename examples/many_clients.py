"""Many clients: a hundred simulated ones who know two digits each, ten of them a round.

Each takes ten steps on about 14 images. How well the mean reads all ten digits is tried
on images that no client has.
"""

from functools import partial

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn, optim

import obhut
from obhut.federated import FedAvg, LocalTraining, Scaffold

images, digits = (torch.tensor(part) for part in load_digits(return_X_y=True))
images = images.float() / 16
test = torch.arange(len(digits)) % 5 == 0
rows = images[~test], digits[~test]

partition = obhut.by_class(2, clients=100)(rows)
print(partition)
partition.plot()


def accuracy(model):
    """Return the share of the test's images that a model reads."""
    with torch.no_grad():
        return float((model(images[test]).argmax(1) == digits[test]).double().mean())


step = partial(optim.SGD, lr=0.1)
training = partial(LocalTraining, step, nn.functional.cross_entropy, epochs=10)
methods = {
    "FedAvg": (training(), FedAvg),
    "FedProx": (training(proximal=1.0), FedAvg),
    "SCAFFOLD": (training(), Scaffold),
}
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
# In this process; without actors=0 in as many as there are processors, by Ray.
with obhut.simulate(rows, partition, actors=0) as clients:
    for name, (local, strategy) in methods.items():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        going = obhut.Federation(clients).rounds(
            model, local, rounds=60, participants=10, seed=0, strategy=strategy
        )
        curve = [accuracy(model) for _ in going]
        axes.plot(range(1, len(curve) + 1), curve, label=name)
        print(f"{name}: {sum(curve[-20:]) / 20:.0%} in the mean of the last 20 rounds")
axes.set(xlabel="round", ylabel="accuracy on images of no client", ylim=(0, 1))
axes.legend(loc="lower right")
axes.grid(alpha=0.25)
plt.show()
