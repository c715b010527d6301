"""Text: four owners learn which module a line of Python's library is from.

A word's number is worked out from its letters, alike at every owner: nobody has to
gather a list of words first.
"""

import argparse
import inspect
import re
import tarfile
import typing
import zlib
from functools import partial

import torch
from torch import nn, optim

import obhut
from obhut.federated import LocalTraining, metrics

MODULES = [argparse, tarfile, typing]


def numbers(line, length=16):
    """Return the numbers of a line's first words; 0 is none."""
    words = re.findall(r"\w+", line)[:length]
    found = [1 + zlib.crc32(word.encode()) % 4095 for word in words]
    return found + [0] * (length - len(found))


# The owners' side: each has every fourth line of more than three words.
names = ["ash", "beech", "elm", "oak"]
policy = obhut.Quorum(aggregators=["registry"], contributors=names)
registry = obhut.VirtualWorker("registry", policy=policy)
sources = [inspect.getsource(module).splitlines() for module in MODULES]
chosen = [[line for line in lines if len(line.split()) > 3] for lines in sources]
words = torch.tensor([numbers(line) for lines in chosen for line in lines])
truth = torch.arange(3).repeat_interleave(torch.tensor([len(one) for one in chosen]))
owners = {}
for n, name in enumerate(names):
    data = {"lines": {"features": words[n::4], "target": truth[n::4]}}
    worker = obhut.VirtualWorker(name, policy=policy, datasets=data)
    owners[name] = worker.dataset("lines")

# The model owner's side: the mean of a line's words is scored for each module.
torch.manual_seed(0)
mean = nn.Sequential(nn.AvgPool2d((16, 1)), nn.Flatten())
model = nn.Sequential(nn.Embedding(4096, 32), mean, nn.Linear(32, 3))
loss, how = nn.functional.cross_entropy, {"batch_size": 32, "shuffle": True}
training = LocalTraining(partial(optim.Adam, lr=0.02), loss, **how)
federation = obhut.Federation(owners, registry)
rows = {"held_out": 0.2, "seed": 0}
federation.fit(model, training, rounds=6, validate={"right": metrics.accuracy}, **rows)
f1 = federation.evaluate(model, {"F1": metrics.f1(classes=3, average=None)}, **rows)
print("F1 on lines held out:", f1["F1"])
for line in ("if option.default is None:", "self.fileobj.seek(offset)"):
    best = model(torch.tensor([numbers(line)])).argmax()
    print(f"{line:28} is like {MODULES[best].__name__}")
