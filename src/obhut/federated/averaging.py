"""Weighted means of models, or of tensors, that are at one place.

Rules:

- A mean is made where the models are. No model is copied on the way, so that nothing
  that only one of them has can pass for an average.
- Sums and means are made of more digits than they are kept in, and rounded once: of
  equal tensors the mean is that tensor, whatever they weigh, in every dtype.
- All tensors are averaged: parameters and buffers, also those that a state
  dictionary leaves out.

Source: McMahan et al. 2017, arXiv 1602.05629, algorithm 1 (FederatedAveraging).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar, overload

import torch
from torch import nn

from obhut.client import aggregators
from obhut.client.modules import copy_module, location_of
from obhut.errors import CallError, LocationError
from obhut.guard import coefficients
from obhut.guard.kinds import Combining

Module = TypeVar("Module", bound=nn.Module)

MOST = 2**53
"""The most that whole weights sum to; float64 has all numbers up to it."""

_WIDER = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    **dict.fromkeys(
        (
            torch.bool,
            torch.uint8,
            torch.int8,
            torch.int16,
            torch.int32,
            torch.int64,
        ),
        torch.float64,
    ),
}
"""What is scaled in another dtype than its own."""


@overload
def average(
    values: Sequence[Module], weights: Sequence[float] | None = None
) -> Module: ...


@overload
def average(
    values: Sequence[torch.Tensor], weights: Sequence[float] | None = None
) -> torch.Tensor: ...


def average(
    values: Sequence[nn.Module] | Sequence[torch.Tensor],
    weights: Sequence[float] | None = None,
) -> nn.Module | torch.Tensor:
    """Return the weighted mean of models or tensors, at the place where they are.

    A model's integer buffers, such as the number of batches that a BatchNorm has
    seen, are averaged and rounded to the nearest number. What is averaged stays as
    it is, and the mean has no history.

    Args:
        values: models of one architecture, or floating-point tensors of one shape;
            all at one place.
        weights: one for each, for instance how many rows it was trained on; they
            need not sum to 1. By default all weigh the same.

    Returns:
        A new model or tensor at the same place.

    Raises:
        CallError: if there is nothing to average, or it does not fit together.
        LocationError: if not all are at one place.
    """
    whole = to_whole(weights, len(values))

    def combine(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return aggregators.weighted_sum(tensors, whole, sum(whole))

    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    if tensors and not _is_exact(tensors[0]):
        raise CallError(
            f"expected floating-point tensors, got {tensors[0].dtype}; "
            "convert them first: x.double()"
        )
    return _combined(values, combine)


@overload
def total(values: Sequence[Module]) -> Module: ...


@overload
def total(values: Sequence[torch.Tensor]) -> torch.Tensor: ...


def total(
    values: Sequence[nn.Module] | Sequence[torch.Tensor],
) -> nn.Module | torch.Tensor:
    """Return the sum of models or tensors, at the place where they are.

    With ``scale`` at the owners it makes a weighted mean in which an aggregator sees
    every owner with the coefficient 1, as rules about coefficients like it best.

    Args:
        values: models of one architecture, or tensors of one shape; all at one place.

    Raises:
        CallError, LocationError: as for ``average``.
    """

    def combine(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return aggregators.weighted_sum(tensors)

    if not values:
        raise CallError("expected at least one model or tensor to add, got none")
    return _combined(values, combine)


@overload
def scale(value: Module, factor: float) -> Module: ...


@overload
def scale(value: torch.Tensor, factor: float) -> torch.Tensor: ...


def scale(value: nn.Module | torch.Tensor, factor: float) -> nn.Module | torch.Tensor:
    """Return a model or a tensor multiplied by a number, at the same place.

    Whole numbers, such as the number of batches that a BatchNorm has seen, become
    float64, and half precision becomes float32: convert the sum of what was scaled, and
    not each part. What is scaled stays as it is, and the result has no history.
    """

    def combine(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        (tensor,) = tensors
        with torch.no_grad():
            return tensor.to(_WIDER.get(tensor.dtype, tensor.dtype)) * factor

    return _combined([value], combine)  # type: ignore[arg-type] # one of the two


# Any: a worker, or whatever the caller names its owners by.
def federated_avg(models: Mapping[Any, Module] | Sequence[Module]) -> Module:
    """Return the mean of models, as PySyft 0.2 named it.

    Args:
        models: a sequence, or a dictionary by worker as PySyft's programs pass.
    """
    return average(list(models.values()) if isinstance(models, Mapping) else models)


def to_whole(weights: Sequence[float] | None, count: int) -> list[int]:
    """Return weights as whole numbers in the same proportions.

    They sum to 2**53 at most. A weight stands for the simplest fraction that it may be:
    0.1, 0.2 and 0.7 are 1, 2 and 7.

    Args:
        weights: finite and not negative; None where all weigh the same.
        count: how many there should be.

    Raises:
        CallError: if they are not so, or there is nothing to weigh.
    """
    if not count:
        raise CallError("expected at least one model or tensor to average, got none")
    if weights is None:
        return [1] * count
    numbers = [float(weight) for weight in weights]
    if (
        len(numbers) != count
        or not all(0 <= number < math.inf for number in numbers)
        or not any(numbers)
    ):
        raise CallError(
            f"expected {count} weights that are finite, not negative and not all 0, "
            f"got {numbers}"
        )
    whole = coefficients.whole([coefficients.simplest(number) for number in numbers])
    shared = math.gcd(*whole)
    whole = [number // shared for number in whole]
    return whole if sum(whole) <= MOST else coefficients.apportioned(whole, MOST)


@overload
def trimmed_mean(values: Sequence[Module], trim: int = 1) -> Module: ...


@overload
def trimmed_mean(values: Sequence[torch.Tensor], trim: int = 1) -> torch.Tensor: ...


def trimmed_mean(
    values: Sequence[nn.Module] | Sequence[torch.Tensor], trim: int = 1
) -> nn.Module | torch.Tensor:
    """Return each element's mean without its smallest and its largest values.

    A few owners who deliver nonsense move it little. An aggregator under a policy
    releases it if enough owners are left; it then adds nothing else of theirs, or
    the difference would show what was left out.

    Args:
        values: models of one architecture, with floating-point parameters and
            buffers only, or floating-point tensors of one shape; all at one place.
        trim: how many are left out at each end.

    Returns:
        A new model or tensor at the same place.

    Raises:
        CallError: if there are too few, or they do not fit together.
        LocationError: if not all are at one place.

    Source: Yin et al. 2018, arXiv 1803.01498, definition 2.
    """
    if not 0 < 2 * trim < len(values):
        raise CallError(
            "expected to leave out at least 1 at each end, and less than half of "
            f"{len(values)} values, got {trim}"
        )

    def combine(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        if not tensors[0].is_floating_point():
            raise CallError(
                f"expected floating-point tensors, got {tensors[0].dtype}; average() "
                "takes whole numbers"
            )
        return aggregators.elementwise(tensors, Combining("trimmed_mean", trim))

    return _combined(values, combine)


Combine: TypeAlias = Callable[[Sequence[torch.Tensor]], torch.Tensor]
"""Makes one tensor of several that look alike."""


def _combined(
    values: Sequence[nn.Module] | Sequence[torch.Tensor], combine: Combine
) -> nn.Module | torch.Tensor:
    """Combine models tensor by tensor, or tensors."""
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    if len(tensors) == len(values):
        _check_alike("a tensor", tensors)
        return combine(tensors)
    models = [value for value in values if isinstance(value, nn.Module)]
    if len(models) == len(values):
        return _combined_models(models, combine)
    raise CallError(
        "expected models only or tensors only, got "
        + ", ".join(sorted({type(value).__name__ for value in values}))
    )


def _combined_models(models: Sequence[nn.Module], combine: Combine) -> nn.Module:
    places = [location_of(model) for model in models]
    if any(place is not places[0] for place in places):
        names = ["this process" if place is None else place.id for place in places]
        raise LocationError(
            "combining models",
            list(dict.fromkeys(names)),
            "move each to the same worker first: obhut.move(model, worker)",
        )
    first = models[0]
    parameters = _by_name([dict(m.named_parameters()) for m in models], combine)
    buffers = _by_name([dict(m.named_buffers()) for m in models], combine)
    # What deepcopy finds in its memo it takes for copied already.
    memo: dict[int, torch.Tensor] = {}
    for name, parameter in first.named_parameters():
        memo[id(parameter)] = nn.Parameter(parameters[name], parameter.requires_grad)
    for name, buffer in first.named_buffers():
        memo[id(buffer)] = buffers[name]
    return copy_module(first, memo)


def _by_name(
    states: Sequence[Mapping[str, torch.Tensor]], combine: Combine
) -> dict[str, torch.Tensor]:
    names = states[0].keys()
    for state in states[1:]:
        different = sorted(names ^ state.keys())
        if different:
            raise CallError(
                "expected models of one architecture; not all have "
                + ", ".join(different)
            )
    combined: dict[str, torch.Tensor] = {}
    for name in states[0]:
        tensors = [state[name] for state in states]
        _check_alike(name, tensors)
        combined[name] = combine(tensors)
    return combined


def _check_alike(name: str, tensors: Sequence[torch.Tensor]) -> None:
    """Check that tensors do not broadcast or change their dtype when added."""
    looks = {(str(tensor.dtype), tuple(tensor.shape)) for tensor in tensors}
    if len(looks) > 1:
        found = " and ".join(f"{list(shape)} {dtype}" for dtype, shape in sorted(looks))
        raise CallError(f"expected {name} of one shape and dtype, got {found}")


def _is_exact(tensor: torch.Tensor) -> bool:
    """Tell whether a mean of such tensors is one of such tensors."""
    return tensor.is_floating_point() or tensor.is_complex()
