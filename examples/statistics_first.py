"""Statistics first: what three hospitals have, without anybody's rows.

Columns must be on one scale before a model is trained on them. That takes their mean
and standard deviation over all rows, and no hospital shows its own.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_breast_cancer

import obhut
from obhut.errors import ReleaseRefusedError

# The owners' side. Small tumours are at elm and large ones at yew, so that each
# hospital alone would be wrong about the scale.
table = load_breast_cancer()
columns = [name.removeprefix("mean ") for name in table.feature_names[:10]]
order = table.data[:, 0].argsort()
tumours, benign = (torch.tensor(x[order]) for x in (table.data[:, :10], table.target))
names, sizes = ["elm", "oak", "yew"], [230, 200, 139]
policy = obhut.Quorum(aggregators=["registry"], contributors=names)
registry = obhut.VirtualWorker("registry", policy=policy)
owners = {}
for name, rows, truth in zip(
    names, tumours.split(sizes), benign.split(sizes), strict=True
):
    mine = {"features": rows, "target": truth}
    worker = obhut.VirtualWorker(name, policy=policy, datasets={"tumours": mine})
    owners[name] = worker.dataset("tumours")

# The model owner's side.
federation = obhut.Federation(owners, registry)
print(found := federation.describe(names=columns, classes=2))

# The same as of all rows in one place; and nothing of one hospital.
torch.testing.assert_close(found.mean, tumours.mean(0))
torch.testing.assert_close(found.std, tumours.std(0))
try:
    owners["elm"].features.mean(0).get()
except ReleaseRefusedError as refused:
    print(f"\nelm's own mean is refused: {refused.text}")

# This process dealt the rows out, so it can draw what nobody will see in earnest.
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for name, rows in zip(names, tumours.split(sizes), strict=True):
    away = (rows.mean(0) - found.mean) / found.std
    axes.plot(away, columns, "o", label=f"{name} alone")
axes.axvline(0, color="gray", label="all three")
axes.invert_yaxis()
axes.set_xlabel("mean, in standard deviations from that of all rows")
axes.legend(loc="lower right")
plt.show()
