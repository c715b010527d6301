"""What is sent, what each owner does, and what becomes of the mean: strategies.

::

    class Halved(FedAvg):                        # a strategy of one's own
        def update(self, model, mean):
            own = named_tensors(model)
            write(own, {name: (own[name] + x) / 2 for name, x in mean.items()})

    federation.fit(model, training, rounds=20, strategy=Halved)

Rules:

- A strategy sees a model here and means over all owners, never what one of them has.
- What it does at an owner are ordinary calls on remote tensors, the same at each.
- A step from the mean is taken by an ordinary optimizer. Its gradient is what the model
  was less the mean. Buffers are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias

import torch
from torch import nn

from obhut.client.ratio import Ratio
from obhut.client.remote_dataset import RemoteDataset

from .parameters import named_tensors, write

Means: TypeAlias = Mapping[str, torch.Tensor]
"""Means over the owners, by the names of what each delivered."""

OuterOptimizer: TypeAlias = Callable[[Iterable[torch.Tensor]], torch.optim.Optimizer]
"""Makes an optimizer of parameters, as ``partial(torch.optim.SGD, lr=1.0)``."""


class Train(Protocol):
    """Runs the training of a round at an owner."""

    @property
    def training(self) -> Any:  # Any: whatever the caller passed
        """The training."""

    def __call__(
        self, model: nn.Module, data: RemoteDataset, drift: nn.Module | None = None
    ) -> dict[str, Ratio]:
        """Train a model, which is at the owner, in place; return its results.

        Args:
            model: the model.
            data: the owner's rows.
            drift: as for ``LocalTraining.results``.
        """

    def taking_part(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """Return what of a model is averaged, by name."""


class Delivered(NamedTuple):
    """What an owner delivers.

    Attributes:
        averaged: tensors there, by name. Their means over the owners come back, weighed
            as the round says.
        results: of the training, whose numerators and denominators are summed.
    """

    averaged: Mapping[str, torch.Tensor]
    results: Mapping[str, Ratio]


class Strategy(Protocol):
    """One way of training together.

    Attributes:
        stays_at_owners: whether something does in their sessions, without which a round
            can not be played again.
    """

    stays_at_owners: ClassVar[bool]

    def check(self, training: Any) -> None:  # Any: whatever the caller passed
        """Check that a training is one for it.

        Raises:
            CallError: if not.
        """

    def sent(self, model: nn.Module) -> nn.Module:
        """Return what each owner gets, here."""

    def local(self, train: Train, sent: nn.Module, data: RemoteDataset) -> Delivered:
        """Do at one owner what a round does there.

        Args:
            train: the training.
            sent: what was sent, which is there.
            data: the owner's rows.
        """

    def update(self, model: nn.Module, mean: Means) -> None:
        """Change the model, which is here."""

    def state_dict(self) -> dict[str, Any]:  # Any: as an optimizer's
        """Return what goes from round to round."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what ``state_dict`` returned."""


class FedAvg:
    """Average what the owners trained.

    Args:
        outer_optimizer: takes a step from the mean, at the model owner: SGD(1.0) is
            FedAvg; with momentum, FedAvgM; Adagrad with
            ``initial_accumulator_value=tau**2`` and ``eps=tau``, FedAdagrad; or
            ``FedAdam``, ``FedYogi``. By default the model becomes the mean, to the bit.

    Source: McMahan et al. 2017, arXiv 1602.05629, algorithm 1 (FederatedAveraging).
    """

    stays_at_owners: ClassVar[bool] = False

    def __init__(self, outer_optimizer: OuterOptimizer | None = None) -> None:
        self._make = outer_optimizer
        self._outer: torch.optim.Optimizer | None = None
        self._loaded: dict[str, Any] = {}

    def check(self, training: Any) -> None:  # Any: whatever the caller passed
        """Take any training."""

    def sent(self, model: nn.Module) -> nn.Module:
        """Return the model itself."""
        return model

    def local(self, train: Train, sent: nn.Module, data: RemoteDataset) -> Delivered:
        """Train, and deliver what requires gradients, and buffers."""
        results = train(sent, data)
        return Delivered(train.taking_part(sent), results)

    def update(self, model: nn.Module, mean: Means) -> None:
        """Let the model be the mean, or take the outer optimizer's step."""
        own = named_tensors(model)
        if self._make is None:
            write(own, mean)
            return
        parameters = {n: own[n] for n in mean if isinstance(own[n], nn.Parameter)}
        outer = self._optimizer(self._make, [*parameters.values()])
        gradients = {name: one.grad for name, one in parameters.items()}
        try:
            with torch.no_grad():
                for name, one in parameters.items():
                    one.grad = one - mean[name]
            outer.step()
            write(own, {n: x for n, x in mean.items() if n not in parameters})
        finally:
            for name, one in parameters.items():
                one.grad = gradients[name]

    def _optimizer(
        self, make: OuterOptimizer, parameters: list[torch.Tensor]
    ) -> torch.optim.Optimizer:
        """Return the outer optimizer of these parameters, with its state."""
        known = self._outer
        if known is None:
            known = self._outer = make(parameters)
            if self._loaded:
                known.load_state_dict(self._loaded)
                self._loaded = {}
        return known

    def state_dict(self) -> dict[str, Any]:  # Any: as an optimizer's
        """Return the outer optimizer's state; empty if there is none."""
        return self._loaded if self._outer is None else self._outer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what ``state_dict`` returned."""
        self._outer, self._loaded = None, state
