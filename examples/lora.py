"""LoRA: three owners train adapters of a small GPT-2, whose base stays as it is.

The base goes to each owner once; then only adapters travel, and are averaged.
"""

import inspect
import tarfile
import warnings
from functools import partial

import matplotlib.pyplot as plt
import torch
from peft import LoraConfig, get_peft_model
from sklearn import datasets
from torch import nn, optim
from transformers import GPT2Config, GPT2LMHeadModel

import obhut
from obhut.federated import LocalTraining

warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name


def rows(text, length=32):
    """Return a text's letters, as numbers, in rows."""
    letters = torch.tensor(list(text.encode("ascii", "replace")))
    return letters.unfold(0, length, length)


def next_letter(output, letters):
    """Return how badly each letter is foretold from those before it."""
    return nn.functional.cross_entropy(output.logits[:, :-1].mT, letters[:, 1:])


# The owners' side: a description of a table at each, in English.
names = ["breast_cancer", "iris", "wine"]
policy = obhut.Quorum(aggregators=["registry"], contributors=names)
registry = obhut.VirtualWorker("registry", policy=policy)
owners = {}
for name in names:
    text = rows(getattr(datasets, f"load_{name}")().DESCR)
    data = {"text": {"features": text, "target": text}}
    worker = obhut.VirtualWorker(name, policy=policy, datasets=data)
    owners[name] = worker.dataset("text")

# The model owner's side: a base that has read Python, and adapters that learn English.
torch.manual_seed(0)
size = {"n_embd": 64, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 128}
base = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=0))
adam, how = partial(optim.AdamW, lr=1e-2), {"batch_size": 16, "epochs": 4}
training = LocalTraining(adam, next_letter, **how)
public = rows(inspect.getsource(tarfile))[:800]
training(base, obhut.LocalDataset(public, public))
lora = LoraConfig(r=8, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
model = get_peft_model(base, lora)
history = obhut.Federation(owners, registry).fit(model, training, rounds=3)
model.print_trainable_parameters()
history.plot()
plt.show()
