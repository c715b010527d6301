"""Steps of PyTorch's optimizers, on parameters that are given.

::

    stepper = Stepper("SGD", [[weight, bias]], [{"lr": 0.1}])
    stepper.take([gradient, None])               # below autograd, or without it
    stepper.part((1,))([gradient])               # the same for some of them
    stepper.product(0)(a, b)                     # for one whose gradient is ``a @ b``

Rules:

- It is PyTorch's own class that steps, one tensor after the other, as it does on a CPU;
  so it is the same whether parameters are stepped together or by parts.
- What it keeps (momentum, averages) is kept from run to run.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from obhut.errors import ProgramError
from obhut.programs.checks import check_optimizer

from .looks import Remembered

# Any below: hyperparameters are of several types.

_OWN = {"self", "params", "foreach", "capturable", "differentiable"}
"""What a class takes that is no hyperparameter, or decides how a step is computed."""


@functools.cache
def hyperparameters(kind: str) -> frozenset[str]:
    """Return the names of the hyperparameters of a class in ``torch.optim``."""
    found = inspect.signature(getattr(torch.optim, kind).__init__).parameters
    return frozenset(found) - _OWN


class _Kind(NamedTuple):
    """A class in ``torch.optim``.

    Attributes:
        defaults: its hyperparameters.
        step: its step, without what PyTorch puts around it.
    """

    defaults: Mapping[str, Any]
    step: Callable[[torch.optim.Optimizer], object]


@functools.cache
def _known(kind: str) -> _Kind:
    made = getattr(torch.optim, kind)
    found = made([torch.zeros(1)]).defaults
    defaults = {name: one for name, one in found.items() if name not in _OWN}
    return _Kind(defaults, inspect.unwrap(made.step))


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
        self._kind = kind
        self._given = [list(group) for group in groups]
        # Of the same memory: what gradients the tensors have is not the program's.
        self._groups = [[one.detach() for one in group] for group in groups]
        self._parameters = [one for group in self._groups for one in group]
        self._all = tuple(range(len(self._parameters)))
        self._how = _how(options)
        self._options: list[dict[str, Any]] = []
        self._optimizers: dict[tuple[int, ...], torch.optim.Optimizer] = {}
        self._simple: list[tuple[torch.Tensor, float]] = []
        self._alike: dict[tuple[int, ...], tuple[list[torch.Tensor], float] | None] = {}
        self.reset()
        self.set(options)

    def steps(self, kind: str, groups: Sequence[Sequence[torch.Tensor]]) -> bool:
        """Tell whether it is of a kind, and for these very parameters."""
        return kind == self._kind and [[*map(id, group)] for group in groups] == [
            [*map(id, group)] for group in self._given
        ]

    def reset(self) -> None:
        """Forget what it keeps; ``set`` is to follow."""
        self._options = [{**_known(self._kind).defaults} for _ in self._given]
        self._optimizers.clear()

    def set(self, options: Sequence[Mapping[str, Any]]) -> None:
        """Take other hyperparameters."""
        for known, given in zip(self._options, options, strict=True):
            known.update(given)
        for optimizer in self._optimizers.values():
            for group in optimizer.param_groups:
                group.update(self._options[group[_PLACE]])
        self._simple, self._alike = [], {}
        if self._kind == "SGD" and not any(
            known[name]
            for known in self._options
            for name in ("momentum", "weight_decay", "maximize", "fused")
        ):
            self._simple = [
                (one, -known["lr"])
                for known, group in zip(self._options, self._groups, strict=True)
                for one in group
            ]
        else:
            self._optimizer(self._all)  # which keeps what all keep

    def take(self, gradients: Sequence[torch.Tensor | None]) -> None:
        """Take a step; parameters without a gradient, and those not named, stay."""
        self._take(self._all, gradients)

    def part(
        self, places: Sequence[int]
    ) -> Callable[[Sequence[torch.Tensor | None]], None]:
        """Return what takes the gradients of some parameters, and steps these."""
        return functools.partial(self._take, tuple(places))

    def product(self, place: int) -> Callable[[torch.Tensor, torch.Tensor], None]:
        """Return what takes two factors of a gradient, and steps its parameter.

        Where the step is a multiple of the gradient, it is added without one between:
        rounded once, and not twice.
        """
        places = (place,)

        def take(one: torch.Tensor, other: torch.Tensor) -> None:
            if self._simple:
                parameter, rate = self._simple[place]
                parameter.addmm_(one, other, alpha=rate)
            else:
                self._take(places, [one.mm(other)])

        return take

    def _take(
        self, places: tuple[int, ...], gradients: Sequence[torch.Tensor | None]
    ) -> None:
        simple = self._simple
        if simple:
            several = self._several(places)
            there = [one for one in gradients if one is not None]
            if several is not None and len(there) == len(places):
                parameters, rate = several
                torch._foreach_add_(parameters, there, alpha=rate)
                return
            for place, gradient in zip(places, gradients):  # noqa: B905 # the rest stays
                if gradient is not None:
                    parameter, rate = simple[place]
                    parameter.add_(gradient, alpha=rate)
            return
        optimizer, own = self._optimizer(places), self._parameters
        for place, gradient in zip(places, gradients):  # noqa: B905 # likewise
            own[place].grad = gradient
        _known(self._kind).step(optimizer)
        for place in places:
            own[place].grad = None

    def _several(
        self, places: tuple[int, ...]
    ) -> tuple[list[torch.Tensor], float] | None:
        """Return parameters that are stepped alike, in one call, and how far."""
        if places not in self._alike:
            chosen = [self._simple[place] for place in places]
            rates = {rate for _, rate in chosen}
            one = len(chosen) > 1 and len(rates) == 1
            found = ([one for one, _ in chosen], rates.pop()) if one else None
            self._alike[places] = found
        return self._alike[places]

    def _optimizer(self, places: tuple[int, ...]) -> torch.optim.Optimizer:
        """Return PyTorch's optimizer of some parameters; all of them keep one state."""
        found = self._optimizers.get(places)
        if found is not None:
            return found
        chosen = {id(self._parameters[place]) for place in places}
        groups = [
            {
                "params": [one for one in group if id(one) in chosen],
                **self._options[place],
                _PLACE: place,
            }
            for place, group in enumerate(self._groups)
            if not chosen.isdisjoint(map(id, group))
        ]
        kind: type[torch.optim.Optimizer] = getattr(torch.optim, self._kind)
        made = kind(groups, **self._how)
        first = next(iter(self._optimizers.values()), made)
        made.state = first.state
        self._optimizers[places] = made
        return made


_PLACE = "obhut place"
"""Under which name an optimizer's group has its number."""


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
        key = (kind, repr(sorted(given.items())))
        if _sound.get(key):
            continue
        try:
            made([torch.zeros(1)], **given)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ProgramError(f"{kind}: {error}") from None
        _sound[key] = True


_sound: Remembered[bool] = Remembered()
"""Hyperparameters that PyTorch takes: written out, since 0 is none where 0.0 is one."""


def _how(options: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how a step is computed: one tensor after the other, or fused if asked."""
    fused = any(one.get("fused") for one in options)
    return {"fused": True} if fused else {"foreach": False}
