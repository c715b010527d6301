"""A metric of ``torchmetrics``, whose states are made at the owners and summed.

::

    federation.evaluate(model, {"auc": MulticlassAUROC(num_classes=10, thresholds=200)})
    summed_states(BinaryAUROC(thresholds=200), logits=False)     # outputs are shares

Rules:

- Each state must be a sum. Lists of all rows are none, and leave no owner.
- The metric itself stays as it was: copies count at the owners, and one computes here.
- torchmetrics looks at the values of scores to tell whether they are probabilities.
  Here that is said: they are logits, unless told otherwise.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from obhut.client.ratio import Ratio
from obhut.errors import CallError

# Any below: a metric of torchmetrics, which need not be installed.


def is_torchmetric(metric: object) -> bool:
    """Tell whether it is a metric of torchmetrics."""
    package = sys.modules.get("torchmetrics")
    return package is not None and isinstance(metric, package.Metric)


def summed_states(metric: Any, *, logits: bool = True) -> SummedStates:
    """Return a metric of torchmetrics as one whose sums are made at the owners.

    ``evaluate`` does it by itself; this is for outputs that are probabilities.

    Args:
        metric: the metric. What its ``compute`` returns is the value.
        logits: whether outputs are logits; else they are probabilities.

    Raises:
        CallError: if not all of its states are sums, with the argument to write.
    """
    if not is_torchmetric(metric):
        raise CallError(
            f"expected a metric of torchmetrics, got a {type(metric).__name__}"
        )
    return _made(_Kept(metric), logits)


# The same for the same, so that it is recorded once.
@functools.lru_cache(maxsize=64)
def _made(metric: _Kept, logits: bool) -> SummedStates:
    return SummedStates(metric.value, logits)


class SummedStates(nn.Module):
    """A metric of torchmetrics, of which owners deliver the states' sums.

    Args:
        metric: the metric.
        logits: whether outputs are logits.

    Raises:
        CallError: if not all of its states are sums.
    """

    def __init__(self, metric: Any, logits: bool) -> None:
        super().__init__()
        check_states(metric)
        own = copy.deepcopy(metric)
        own.reset()
        if hasattr(own, "validate_args"):
            own.validate_args = False  # it looks at values
        self._metric = _Kept(own)
        self._logits = logits
        for name, buffer in own._buffers.items():
            self.register_buffer(f"of_{name}", buffer)

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> Ratio:
        """Return the states of a batch, one after the other, (numbers,) float64."""
        states = {
            name: outputs.new_zeros(start.shape, dtype=start.dtype)
            for name, start in self._starts.items()
        }
        metric = self._with(states, {k[3:]: v for k, v in self._buffers.items()})
        with _Answers(self._logits):
            metric.update(outputs, targets)
        made = [getattr(metric, name) for name in states]
        flat = torch.cat([one.reshape(-1).to(torch.float64) for one in made])
        self._metric.shapes[flat.numel()] = [one.shape for one in made]
        return Ratio(flat, len(targets))

    def compute(self, numerator: torch.Tensor, denominator: torch.Tensor) -> Any:
        """Return what the metric computes of the sums of all states."""
        # A state may grow to as many numbers as there are outputs.
        shapes = self._metric.shapes[numerator.numel()]
        parts = numerator.split([shape.numel() for shape in shapes])
        states = {
            name: part.reshape(shape).to(start.dtype)
            for (name, start), part, shape in zip(
                self._starts.items(), parts, shapes, strict=True
            )
        }
        metric = self._with(states, self._metric.value._buffers)
        metric._update_count = 1  # else it warns that nothing was counted
        return metric.compute()

    @property
    def _starts(self) -> Mapping[str, torch.Tensor]:
        starts: Mapping[str, torch.Tensor] = self._metric.value._defaults
        return starts

    def _with(
        self,
        states: Mapping[str, torch.Tensor],
        buffers: Mapping[str, torch.Tensor | None],
    ) -> Any:
        """Return the metric with other states and buffers."""
        metric = copy.copy(self._metric.value)
        metric.__dict__["_buffers"] = dict(buffers)
        for name, state in states.items():
            setattr(metric, name, state)
        return metric


def check_states(metric: Any) -> None:
    """Check that all states of a metric are sums, which start at 0.

    Raises:
        CallError: if not, with the argument to write.
    """
    kind = type(metric).__name__
    starts: Mapping[str, Any] = metric._defaults
    if not starts or next(metric.children(), None) is not None:
        raise CallError(
            f"{kind} has no states of its own: evaluate the metrics that it is made of"
        )
    for name, start in starts.items():
        reduce = metric._reductions[name]
        if isinstance(start, list):
            raise CallError(
                f"{kind} keeps all rows ({name}), and they leave no owner; "
                + _instead(metric)
            )
        if getattr(reduce, "__name__", "") != "dim_zero_sum" or bool(start.any()):
            raise CallError(
                f"{kind} has a state that is no sum ({name}), and owners deliver sums"
            )


def _instead(metric: Any) -> str:
    if hasattr(metric, "thresholds"):
        return f"write {type(metric).__name__}(..., thresholds=200)"
    return "see obhut.federated.metrics for what is made of sums"


class _Kept:
    """A metric, itself, in what is copied or compared.

    With slots, so that a program's key holds it as one thing: sizes that are learnt
    while it is recorded would make it another.

    Attributes:
        value: the metric.
        shapes: by how many numbers its states have, the sizes of each.
    """

    __slots__ = ("shapes", "value")

    def __init__(self, value: Any) -> None:
        self.value = value
        self.shapes: dict[int, list[torch.Size]] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Kept) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)

    def __deepcopy__(self, memo: object) -> _Kept:
        return self


class _Answers(TorchFunctionMode):
    """Says whether scores are probabilities where torchmetrics looks at them."""

    def __init__(self, logits: bool) -> None:
        super().__init__()
        self._logits = logits

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer, or call a function as it is."""
        if func is torch.Tensor.__bool__:
            asking = sys._getframe(1).f_code.co_name
            if asking == "normalize_logits_if_needed":
                return not self._logits
        return func(*args, **(kwargs or {}))
