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

from obhut.client.functions import copy
from obhut.client.ratio import Ratio
from obhut.client.remote_dataset import RemoteDataset
from obhut.errors import CallError

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

    @property
    def own(self) -> Mapping[str, torch.Tensor]:
        """What the owner kept in the round before, by name; empty in the first."""

    @property
    def share(self) -> float:
        """The share of all owners who take part in the round; 1 if all do."""

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
        own: what the owner keeps for the next round, by name.
    """

    averaged: Mapping[str, torch.Tensor]
    results: Mapping[str, Ratio]
    own: Mapping[str, torch.Tensor] = {}


class Strategy(Protocol):
    """One way of training together.

    Attributes:
        keeps: whether owners keep something from round to round.
        trim: how many values of each element the mean leaves out at each end; then all
            owners weigh the same.
    """

    keeps: ClassVar[bool]
    trim: int

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
        clip_norm: the largest norm of what training changes at an owner, over all
            parameters: what is longer is made as short there.
        trim: how many values of each element the mean leaves out at each end, so that
            few owners who deliver nonsense move it little. All weigh the same then.

    Raises:
        CallError: if a norm is not positive, or trim is negative.

    Source: McMahan et al. 2017, arXiv 1602.05629, algorithm 1 (FederatedAveraging);
    Yin et al. 2018, arXiv 1803.01498, definition 2 (trimmed means).
    """

    keeps: ClassVar[bool] = False

    def __init__(
        self,
        outer_optimizer: OuterOptimizer | None = None,
        *,
        clip_norm: float | None = None,
        trim: int = 0,
    ) -> None:
        if trim < 0 or not (clip_norm is None or clip_norm > 0):
            raise CallError(
                "expected clip_norm above 0 and trim from 0, got "
                f"clip_norm={clip_norm}, trim={trim}"
            )
        self.trim = trim
        self._clip_norm = clip_norm
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
        before: dict[str, torch.Tensor] = {}
        if self._clip_norm is not None:
            before = {
                name: copy(one.detach())
                for name, one in train.taking_part(sent).items()
                if isinstance(one, nn.Parameter)
            }
        results = train(sent, data)
        averaged = train.taking_part(sent)
        if self._clip_norm is not None:
            averaged |= _clipped(averaged, before, self._clip_norm)
        return Delivered(averaged, results)

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


def _clipped(
    trained: Mapping[str, torch.Tensor],
    before: Mapping[str, torch.Tensor],
    norm: float,
) -> dict[str, torch.Tensor]:
    """Return trained tensors, at most so far from what they were.

    Args:
        trained: at an owner, by name.
        before: likewise, those that count.
        norm: of the distance, over all of them.
    """
    with torch.no_grad():
        changes = {name: trained[name].detach() - one for name, one in before.items()}
        squares = [one.to(torch.float64).square().sum() for one in changes.values()]
        length = torch.stack(squares).sum().sqrt()
        factor = (norm / length.clamp_min(norm)).clamp_max(1)
        return {
            name: before[name] + one * factor.to(one.dtype)
            for name, one in changes.items()
        }
