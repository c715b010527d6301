"""SCAFFOLD: each owner's steps are corrected by how its gradients differ from all.

::

    federation.fit(model, training, rounds=50, strategy=Scaffold)

Rules:

- Each owner has a control variate of its own, which never leaves it: about the mean of
  the gradients of its steps. The mean over all owners of their changes comes here.
- Variates are weighed as models are: by rows, unless the round says otherwise. Whose
  who take no part in a round stay as they are.

Source: Karimireddy et al. 2020, arXiv 1910.06378, algorithm 1, option II.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from obhut.client.functions import copy, send
from obhut.client.remote_dataset import RemoteDataset
from obhut.errors import CallError

from .local import LocalTraining
from .strategies import Delivered, FedAvg, Means, OuterOptimizer, Train

_CHANGE = "change of the variate of "


class Scaffold(FedAvg):
    """Average what owners trained with corrected steps.

    Args:
        outer_optimizer: as for ``FedAvg``; SGD(1.0) is what the paper takes.
    """

    keeps: ClassVar[bool] = True

    def __init__(self, outer_optimizer: OuterOptimizer | None = None) -> None:
        super().__init__(outer_optimizer)
        self._all: dict[str, torch.Tensor] = {}

    def check(self, training: Any) -> None:  # Any: whatever the caller passed
        """Check that a training takes steps whose length is known.

        Raises:
            CallError: if it is no ``LocalTraining`` by plain SGD.
        """
        _learning_rate(training)

    def local(self, train: Train, sent: nn.Module, data: RemoteDataset) -> Delivered:
        """Train with corrected steps; deliver the model, and the variate's change."""
        place, own = data.location, train.own
        averaged = train.taking_part(sent)
        before: dict[str, torch.Tensor] = {}
        drift = nn.Module()
        with torch.no_grad():
            for name, one in sent.named_parameters():
                if not one.requires_grad:
                    continue
                before[name] = copy(one.detach())
                correction = torch.zeros_like(before[name])
                if name in self._all and name in averaged:
                    correction = send(self._all[name], place)
                    if own:
                        correction = correction - own[name]
                drift.register_buffer(str(len(before) - 1), correction)
        results = train(sent, data, drift)
        length = results.pop("steps").numerator * _learning_rate(train.training)
        became: dict[str, torch.Tensor] = {}
        with torch.no_grad():
            for (name, first), correction in zip(
                before.items(), drift.buffers(), strict=True
            ):
                if name in averaged:
                    mean = (first - averaged[name].detach()) / length.to(first.dtype)
                    became[name] = mean - correction
                    change = became[name] - own[name] if own else became[name]
                    # Others' variates do not change in this round.
                    averaged[_CHANGE + name] = (
                        change if train.share == 1 else change * train.share
                    )
        return Delivered(averaged, results, became)

    def update(self, model: nn.Module, mean: Means) -> None:
        """Let the model be the mean, or take a step to it; take in the variates."""
        changes = {
            name.removeprefix(_CHANGE): one
            for name, one in mean.items()
            if name.startswith(_CHANGE)
        }
        super().update(
            model, {n: one for n, one in mean.items() if not n.startswith(_CHANGE)}
        )
        self._all = {
            name: self._all[name] + one if name in self._all else one
            for name, one in changes.items()
        }

    def state_dict(self) -> dict[str, Any]:  # Any: as an optimizer's
        """Return the mean variate, and the outer optimizer's state."""
        return {"all": self._all, "outer": super().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what ``state_dict`` returned."""
        self._all = state["all"]
        super().load_state_dict(state["outer"])


def _learning_rate(training: Any) -> float:
    """Return how long a step of a training is, per gradient.

    Raises:
        CallError: if that is not a number.
    """
    if isinstance(training, LocalTraining) and training.scheduler is None:
        made = training.optimizer([nn.Parameter(torch.zeros(1))])
        options = made.param_groups[0]
        plain = ("momentum", "weight_decay")
        if type(made) is torch.optim.SGD and not any(options[one] for one in plain):
            return float(options["lr"])
    raise CallError(
        "expected a training by plain SGD, whose steps are as long as lr says: "
        "LocalTraining(partial(torch.optim.SGD, lr=0.1), ...)"
    )
