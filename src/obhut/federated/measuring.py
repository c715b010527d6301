"""What an owner works out for metrics: sums over its rows, which stay there.

::

    metrics = checked({"accuracy": accuracy})    # or says what to write instead
    found = measured(model, owners, metrics, 32)
    found[0].ratios["accuracy"].numerator        # at the first owner, float64

Rules:

- All metrics are one program, in which the model runs once a batch, without gradients.
- What can't be recorded runs line by line, and a warning says so. It comes to the same.
- A metric that is a module, such as ``nn.CrossEntropyLoss(weight=w)``, travels with the
  model, as a copy.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from obhut.client.hidden_dataset import HiddenDataset
from obhut.client.modules import send_copy
from obhut.client.programs import Program
from obhut.client.ratio import Ratio
from obhut.client.remote_dataset import RemoteDataset
from obhut.errors import CallError, ProgramError

from .metrics.summed_states import is_torchmetric, summed_states
from .row_means import summed
from .staying import Staying

Metric: TypeAlias = Callable[[torch.Tensor, torch.Tensor], Ratio | torch.Tensor]
"""Takes outputs and targets, and returns a ``Ratio`` or a mean over the rows."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What an owner has found.

    Attributes:
        ratios: by a metric's name its sums over the rows, there, float64.
        dtypes: by a metric's name the dtype of its value.
    """

    ratios: Mapping[str, Ratio]
    dtypes: Mapping[str, torch.dtype]


def checked(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """Return metrics as owners run them.

    Raises:
        CallError: if one is none, with what to write.
    """
    if not metrics:
        raise CallError('expected a metric or more: {"accuracy": metrics.accuracy}')
    found: dict[str, Metric] = {}
    for name, metric in metrics.items():
        if not isinstance(name, str):
            raise CallError(
                f"expected names of metrics to be strings, got {name!r}: "
                '{"accuracy": metrics.accuracy}'
            )
        found[name] = summed_states(metric) if is_torchmetric(metric) else metric
        _check(metric)
    return found


def measured(
    model: nn.Module,
    owners: Sequence[RemoteDataset],
    metrics: Mapping[str, Metric],
    batch_size: int | None,
    staying: Staying,
    keep: Sequence[str],
    places: Sequence[int] | None = None,
) -> list[Measured]:
    """Return what each owner finds.

    Args:
        model: here, in evaluation mode. Copies of it are sent.
        owners: the rows of each.
        metrics: as checked.
        batch_size: rows in a step; None for all of them.
        staying: what owners have of the model.
        keep: the names of what they keep of it.
        places: the owners' numbers among all; by default these are all.

    Raises:
        CallError: if a metric returns what is neither a mean nor a ``Ratio``; nothing
            was sent then, if it could be recorded. If batches that are too small for
            the program would be left out unnoticed.
        ProgramError: if it can't be, and how many rows there are is hidden.
    """
    modules = nn.ModuleList(
        one for one in metrics.values() if isinstance(one, nn.Module)
    )
    given = {"model": model, "modules": modules.eval()}
    measuring = _measuring(
        tuple(
            (name, None if isinstance(one, nn.Module) else one)
            for name, one in metrics.items()
        )
    )
    recorded = [measuring.dtypes(given, owner, batch_size) for owner in owners]
    found = []
    numbers = range(len(owners)) if places is None else places
    for place, owner, dtypes in zip(numbers, owners, recorded, strict=True):
        there = {
            "model": staying.sent(model, owner, place, keep),
            "modules": send_copy(modules, owner.location),
        }
        if dtypes is None:
            found.append(measuring.line_by_line(there, owner, batch_size))
        else:
            ratios = measuring.run(there, owner, batch_size)
            found.append(Measured(ratios, dtypes))
    return found


class _Measuring:
    """Some metrics, as a program.

    Args:
        metrics: by name; None for one that is passed as a module.
    """

    def __init__(self, metrics: Sequence[tuple[str, Metric | None]]) -> None:
        self._metrics: dict[str, tuple[str, Metric | None]] = {}
        self._means: set[str] = set()
        self._program = Program(self.measure)
        for name, metric in metrics:
            label = re.sub(r"\W", "_", name) or "_"  # as a program's results are called
            while label in self._metrics:
                label += "_"
            self._metrics[label] = (name, metric)

    def measure(
        self,
        model: nn.Module,
        modules: nn.ModuleList,
        features: torch.Tensor,
        targets: torch.Tensor,
    ) -> dict[str, Ratio | torch.Tensor]:
        """Return all metrics of a batch."""
        rest = iter(modules)
        found = {}
        with torch.no_grad():
            outputs = model(features)
            for label, (name, metric) in self._metrics.items():
                value = (metric or next(rest))(outputs, targets)
                _check_value(name, value)
                if isinstance(value, torch.Tensor):
                    self._means.add(label)
                found[label] = value
        return found

    def dtypes(
        self, given: Mapping[str, Any], owner: RemoteDataset, batch_size: int | None
    ) -> dict[str, torch.dtype] | None:
        """Return the values' dtypes; None if it runs line by line. Nothing is sent."""
        try:
            recorded = self._program.record(data=owner, **given)
        except ProgramError as error:
            if type(error.__cause__) is CallError:  # of a metric
                raise error.__cause__ from None
            self._program.fall_back(error, owner)
            return None
        least = recorded.program.least
        if batch_size and least > 1 and isinstance(owner, HiddenDataset):
            raise CallError(
                f"batches of {least} rows or more are needed, and a smaller one would "
                "be left out where nobody learns it: leave out batch_size="
            )
        return self._by_name(recorded.dtypes)

    def run(
        self, given: Mapping[str, Any], owner: RemoteDataset, batch_size: int | None
    ) -> dict[str, Ratio]:
        """Return all sums over an owner's rows."""
        found = self._program.run(data=owner, batch_size=batch_size, **given)
        return {
            name: Ratio(found[label].numerator[0], found[label].denominator[0])
            for label, (name, _) in self._metrics.items()
        }

    def line_by_line(
        self, given: Mapping[str, Any], owner: RemoteDataset, batch_size: int | None
    ) -> Measured:
        """Return all sums over an owner's rows, an operator a request."""
        batches, rows = [], []
        for features, targets in owner.batches(batch_size):
            batches.append(self.measure(features=features, targets=targets, **given))
            rows.append(len(targets))
        if not rows:
            features, targets = owner.features[:0], owner.targets[:0]
            batches.append(self.measure(features=features, targets=targets, **given))
            rows.append(0)
        # Counted there it is one computation at all owners, whatever rows they have.
        alone = owner.count() if len(rows) == 1 else None
        ratios = {
            name: _summed([one[label] for one in batches], rows, alone)
            for label, (name, _) in self._metrics.items()
        }
        first = [
            one.numerator if isinstance(one, Ratio) else one
            for one in batches[0].values()
        ]
        return Measured(ratios, self._by_name([one.dtype for one in first]))

    def _by_name(self, dtypes: Sequence[torch.dtype]) -> dict[str, torch.dtype]:
        return {
            name: dtype if label in self._means else torch.float64
            for (label, (name, _)), dtype in zip(
                self._metrics.items(), dtypes, strict=True
            )
        }


@functools.lru_cache(maxsize=64)
def _measuring(metrics: tuple[tuple[str, Metric | None], ...]) -> _Measuring:
    """Return metrics as a program, the same for the same."""
    return _Measuring(metrics)


def _summed(
    values: Sequence[Ratio | torch.Tensor],
    rows: Sequence[int],
    alone: torch.Tensor | None,
) -> Ratio:
    """Return the sums of all batches, at the owner.

    Args:
        values: of each batch.
        rows: how many each has.
        alone: how many the only one has, counted there.
    """
    above: list[torch.Tensor] = []
    below: list[torch.Tensor | float] = []
    for value, number in zip(values, rows, strict=True):
        ratio = value if isinstance(value, Ratio) else Ratio(value, number)
        part = ratio.numerator.detach().to(torch.float64)
        if value is not ratio:
            part = part * (number if alone is None else alone)
        if not number:
            part = torch.zeros_like(part)  # a mean of no rows is NaN
        above.append(part)
        known = not isinstance(ratio.denominator, torch.Tensor)
        if alone is not None and known and ratio.denominator == number:
            below.append(alone)
        else:
            below.append(ratio.denominator)
    tensors = [
        one.detach().to(torch.float64) for one in below if isinstance(one, torch.Tensor)
    ]
    plain = sum(one for one in below if not isinstance(one, torch.Tensor))
    total = summed(tensors) if tensors else above[0].new_full((), plain)
    return Ratio(summed(above), total + plain if tensors and plain else total)


def _check(metric: Any) -> None:
    """Check that a metric can be called with outputs and targets.

    Raises:
        CallError: if not.
    """
    if isinstance(metric, type):
        raise CallError(
            f"expected a metric, got the class {metric.__name__}; make one: "
            f"{metric.__name__}(...)"
        )
    if not callable(metric):
        raise CallError(f"expected a metric, got a {type(metric).__name__}")
    try:
        inspect.signature(metric).bind(None, None)
    except TypeError:
        name = getattr(metric, "__name__", type(metric).__name__)
        raise CallError(
            f"{name} takes no outputs and targets; if it makes a metric, call it: "
            f"{name}(...)"
        ) from None
    except ValueError:  # written in C, without a signature
        pass


def _check_value(name: str, value: object) -> None:
    """Check what a metric returned.

    Raises:
        CallError: if it is neither a ``Ratio`` nor a mean.
    """
    label = f"{name!r}: " if name else ""
    if isinstance(value, Ratio):
        below = value.denominator
        if isinstance(below, torch.Tensor) and below.dim():
            raise CallError(
                f"{label}expected one number below a Ratio, got shape "
                f"{list(below.shape)}; a metric with compute(numerator, denominator) "
                "divides by itself"
            )
    elif not isinstance(value, torch.Tensor):
        raise CallError(
            f"{label}expected a metric that returns a tensor or a Ratio, got a "
            f"{type(value).__name__}: return Ratio(total, len(y))"
        )
    elif not value.is_floating_point():
        raise CallError(
            f"{label}expected a mean over the rows, got {value.dtype}, which is a "
            "count: return Ratio(correct, len(y))"
        )
