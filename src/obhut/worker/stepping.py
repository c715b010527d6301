"""Steps of PyTorch's optimizers, on parameters that are given.

::

    stepper = Stepper("SGD", [[weight, bias]], [{"lr": 0.1}])
    stepper.take([gradient, None])               # below autograd, or without it

Rules:

- It is PyTorch's own class that steps, one tensor after the other, as it does on a CPU.
- What it keeps (momentum, averages) is kept from run to run.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from obhut.errors import ProgramError
from obhut.programs.checks import check_optimizer

# Any below: hyperparameters are of several types.

_OWN = {"self", "params", "foreach", "capturable", "differentiable"}
"""What a class takes that is no hyperparameter, or decides how a step is computed."""


@functools.cache
def hyperparameters(kind: str) -> frozenset[str]:
    """Return the names of the hyperparameters of a class in ``torch.optim``."""
    found = inspect.signature(getattr(torch.optim, kind).__init__).parameters
    return frozenset(found) - _OWN


class Stepper:
    """One optimizer.

    Args:
        kind: its class in ``torch.optim``.
        groups: of each parameter group, its parameters.
        options: the hyperparameters of each.

    Raises:
        ProgramError: if PyTorch has no such optimizer, or not with such options.
    """

    def __init__(
        self,
        kind: str,
        groups: Sequence[Sequence[torch.Tensor]],
        options: Sequence[Mapping[str, Any]],
    ) -> None:
        check_options(kind, options, len(groups))
        made: type[torch.optim.Optimizer] = getattr(torch.optim, kind)
        self._kind = kind
        self._given = [list(group) for group in groups]
        # Of the same memory: what gradients the tensors have is not the program's.
        shared = [[one.detach() for one in group] for group in groups]
        self._parameters = [one for group in shared for one in group]
        self._optimizer = made(
            [
                {"params": list(group), **given}
                for group, given in zip(shared, options, strict=True)
            ],
            **_how(options),
        )
        self._step = inspect.unwrap(made.step)
        self._simple: list[tuple[torch.Tensor, float]] = []
        self.set(options)

    def steps(self, kind: str, groups: Sequence[Sequence[torch.Tensor]]) -> bool:
        """Tell whether it is of a kind, and for these very parameters."""
        return kind == self._kind and [[*map(id, group)] for group in groups] == [
            [*map(id, group)] for group in self._given
        ]

    def set(self, options: Sequence[Mapping[str, Any]]) -> None:
        """Take other hyperparameters."""
        groups = self._optimizer.param_groups
        for group, given in zip(groups, options, strict=True):
            group.update(given)
        plain = isinstance(self._optimizer, torch.optim.SGD) and not any(
            group[name]
            for group in groups
            for name in ("momentum", "weight_decay", "maximize", "fused")
        )
        self._simple = []
        if plain:
            self._simple = [
                (one, -group["lr"]) for group in groups for one in group["params"]
            ]

    def take(self, gradients: Sequence[torch.Tensor | None]) -> None:
        """Take a step; parameters without a gradient, and those not named, stay."""
        if self._simple:
            for (parameter, rate), gradient in zip(self._simple, gradients):  # noqa: B905 # the rest stays
                if gradient is not None:
                    parameter.add_(gradient, alpha=rate)
            return
        for parameter, gradient in zip(self._parameters, gradients):  # noqa: B905 # likewise
            parameter.grad = gradient
        self._step(self._optimizer)
        for parameter in self._parameters:
            parameter.grad = None


def check_options(kind: str, options: Sequence[Mapping[str, Any]], groups: int) -> None:
    """Check hyperparameters, as PyTorch does.

    Raises:
        ProgramError: if there are not as many as groups, or PyTorch refuses them.
    """
    check_optimizer(kind)
    if len(options) != groups:
        raise ProgramError(f"{kind} has {groups} groups, and {len(options)} are given")
    made = getattr(torch.optim, kind)
    for given in options:
        unknown = given.keys() - hyperparameters(kind)
        if unknown:
            raise ProgramError(f"{kind} has no {min(unknown)[:80]}")
        try:
            made([torch.zeros(1)], **given)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ProgramError(f"{kind}: {error}") from None


def _how(options: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how a step is computed: one tensor after the other, or fused if asked."""
    fused = any(one.get("fused") for one in options)
    return {"fused": True} if fused else {"foreach": False}
