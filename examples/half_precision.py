"""Half precision on the wire: half the bytes, and what that does to a curve.

Models go to the owners in bfloat16, and what training changed comes back so. What a
rounding loses stays with the sender, and is added to what is sent next.
"""

from functools import partial

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn, optim

import obhut
from obhut.federated import LocalTraining, metrics

# The owners' side: each has every third of 1,797 images.
names = ["elm", "oak", "yew"]
policy = obhut.Quorum(aggregators=["registry"], contributors=names)
registry = obhut.VirtualWorker("registry", policy=policy)
images, digits = (torch.tensor(part) for part in load_digits(return_X_y=True))
images = images.float() / 16
owners = {}
for n, name in enumerate(names):
    mine = {"features": images[n::3], "target": digits[n::3]}
    worker = obhut.VirtualWorker(name, policy=policy, datasets={"digits": mine})
    owners[name] = worker.dataset("digits")

# The model owner's side.
training = LocalTraining(
    partial(optim.SGD, lr=0.1), nn.functional.cross_entropy, batch_size=32
)
curves = {}
for dtype in (torch.float32, torch.bfloat16):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    history = obhut.Federation(owners, registry).fit(
        model,
        training,
        rounds=15,
        held_out=0.2,
        seed=0,
        wire_dtype=None if dtype is torch.float32 else dtype,
        validate={"accuracy": metrics.accuracy},
    )
    rounds, curves[dtype] = history.curve("loss")
    last = history[-1].metrics["accuracy"]
    print(f"{dtype}: loss {history[-1].loss:.4f}, accuracy {last:.1%}")

figure, (top, bottom) = plt.subplots(2, sharex=True, layout="constrained")
for (dtype, losses), line in zip(curves.items(), ("-", ":"), strict=True):
    top.plot(rounds, losses, line, linewidth=3, label=str(dtype))
bottom.bar(rounds, [1000 * (b - a) for a, b in zip(*curves.values(), strict=True)])
top.set_ylabel("training loss")
top.legend()
bottom.set(xlabel="round", ylabel="difference, in thousandths")
plt.show()
