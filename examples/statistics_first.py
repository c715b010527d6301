"""Statistics first: what three hospitals have, without anybody's rows.

Columns must be on one scale before a model is trained on them. That takes their mean
and standard deviation over all rows, and no hospital shows its own.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_breast_cancer

import obhut
from obhut.errors import ReleaseRefusedError
from obhut.federated import mean_and_std

# The owners' side. Small tumours are at elm and large ones at yew, so that each
# hospital alone would be wrong about the scale.
table = load_breast_cancer()
columns = [name.removeprefix("mean ") for name in table.feature_names[:10]]
tumours = torch.tensor(table.data[:, :10])
tumours = tumours[tumours[:, 0].argsort()]
parts = dict(zip(["elm", "oak", "yew"], tumours.split([230, 200, 139]), strict=True))
policy = obhut.Quorum(aggregators=["registry"], contributors=list(parts))
registry = obhut.VirtualWorker("registry", policy=policy)
hospitals = [
    obhut.VirtualWorker(name, policy=policy, datasets={"tumours": {"features": rows}})
    for name, rows in parts.items()
]

# The model owner's side.
remote = [hospital["tumours"] for hospital in hospitals]
mean, std = mean_and_std(remote, registry)
for name, *figures in zip(columns[:4], mean, std, strict=False):
    print(f"{name:10} {figures[0]:8.2f} ± {figures[1]:.2f}")

# The same as of all rows in one place; and nothing of one hospital.
torch.testing.assert_close(mean, tumours.mean(0))
torch.testing.assert_close(std, tumours.std(0))
try:
    remote[0].mean(0).get()
except ReleaseRefusedError as refused:
    print(f"\nelm's own mean is refused: {refused.text}")

# This process dealt the rows out, so it can draw what nobody will see in earnest.
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for name, rows in parts.items():
    axes.plot((rows.mean(0) - mean) / std, columns, "o", label=f"{name} alone")
axes.axvline(0, color="gray", label="all three")
axes.invert_yaxis()
axes.set_xlabel("mean, in standard deviations from that of all rows")
axes.legend(loc="lower right")
plt.show()
