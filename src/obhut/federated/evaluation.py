"""How a model does on the owners' rows, without anybody's own result.

::

    evaluate(model, owners, aggregator, {"f1": metrics.f1(classes=10)})

Rules:

- Each owner works out sums over its rows: of each metric a numerator and a denominator.
  They move straight to an aggregator, which adds them. The sums over all owners come
  here, and are divided once.
- All metrics are one program at an owner, and one delivery.
- What is wrong with a metric is told before anything is sent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, overload

import torch
from torch import nn

from obhut.client.registry import Place
from obhut.client.remote_dataset import RemoteDataset
from obhut.errors import CallError, NonFiniteError

from .averaging import to_whole
from .clients import Clients
from .contributions import OnNonFinite, at_owner, check_choice, collected
from .measuring import Measured, Metric, checked, measured
from .parameters import snapshot
from .staying import Own, Staying
from .together import UNWRITTEN, Wanted, Written, opened

_WIDE = [torch.float64]

_ADVICE = (
    "look for empty cells in their rows, for targets that are no class, or for a "
    "metric that divides by 0"
)


@overload
def evaluate(
    model: nn.Module,
    owners: Sequence[RemoteDataset],
    aggregator: Place | str,
    metric: Mapping[str, Metric],
    *,
    batch_size: int | None = None,
    weights: Sequence[float] | None = None,
    on_non_finite: OnNonFinite = "raise",
    staying: Staying | None = None,
    keep: Sequence[str] = (),
) -> dict[str, torch.Tensor]: ...


@overload
def evaluate(
    model: nn.Module,
    owners: Sequence[RemoteDataset],
    aggregator: Place | str,
    metric: Metric,
    *,
    batch_size: int | None = None,
    weights: Sequence[float] | None = None,
    on_non_finite: OnNonFinite = "raise",
    staying: Staying | None = None,
    keep: Sequence[str] = (),
) -> torch.Tensor: ...


def evaluate(
    model: nn.Module,
    owners: Sequence[RemoteDataset],
    aggregator: Place | str,
    metric: Metric | Mapping[str, Metric],
    *,
    batch_size: int | None = None,
    weights: Sequence[float] | None = None,
    on_non_finite: OnNonFinite = "raise",
    staying: Staying | None = None,
    keep: Sequence[str] = (),
) -> torch.Tensor | dict[str, torch.Tensor]:
    """Return metrics of a model over the rows of all owners.

    Leak: the sums over all owners come to this process; each owner's own go to the
    aggregator.

    Args:
        model: here. Copies of it are tried, in evaluation mode.
        owners: the rows of each.
        aggregator: where the sums are added, itself or by id.
        metric: of outputs and targets, or several by name. One returns a ``Ratio``, as
            those of ``obhut.federated.metrics`` do; or a floating-point tensor of any
            shape, which is taken for a mean over the rows. If it has
            ``compute(numerator, denominator)``, that makes its value of the sums. A
            metric of torchmetrics is taken if its states are sums.
        batch_size: rows in a step; None for all of them.
        weights: one an owner, for a mean of the owners' own means. None for the rows
            of all owners as if in one place.
        on_non_finite: if an owner's sums are NaN or infinite, or failed, ``raise`` the
            error, or ``skip`` the metrics and return NaN.
        staying: what owners have of the model, as a ``Federation`` knows it.
        keep: the names of what they keep of it, and try it with.

    Returns:
        The value, here, or values by name. Of a mean it is of the dtype that the metric
        returned, else float64, and what ``compute`` returns as it is. It is NaN where
        nobody has rows.

    Raises:
        CallError: if there is no owner, a metric is none, or the weights do not fit.
        NonFiniteError: if an owner's sums are NaN or infinite, or failed.
        ObhutError: what went wrong at an owner or the aggregator.
    """
    check_choice(on_non_finite)
    several = isinstance(metric, Mapping | nn.ModuleDict)
    metrics = checked(dict(metric.items()) if several else {"": metric})  # type: ignore[union-attr,dict-item] # one of the two
    computed = {name for name, one in metrics.items() if hasattr(one, "compute")}
    shares = to_whole(weights, len(owners))
    if weights is not None and computed:
        raise CallError(
            "expected no weights, since not all metrics are means over rows: leave out "
            "weights="
        )
    tried = snapshot(model).eval()
    asked = _Asked(tried, metrics, batch_size, staying or Staying(), keep)
    whole = None if weights is None else shares
    first, added = asked.together(owners, whole) or asked.one_by_one(
        owners, aggregator, whole
    )
    try:
        sums = added()
    except NonFiniteError:
        if on_non_finite == "raise":
            raise
        computed = set()
        sums = [
            torch.full(part.shape, math.nan)  # type: ignore[union-attr] # tensors there
            for one in first.ratios.values()
            for part in one
        ]
    values = {}
    pairs = zip(sums[::2], sums[1::2], strict=True)
    for (name, dtype), (above, below) in zip(first.dtypes.items(), pairs, strict=True):
        one: Any = metrics[name]
        made = name in computed
        values[name] = one.compute(above, below) if made else (above / below).to(dtype)
    return values if several else values[""]


Added: TypeAlias = Callable[[], Sequence[torch.Tensor]]
"""Returns the sums over all owners, of each metric the two of its ``Ratio``."""


class _Asked(NamedTuple):
    """What is asked of each owner.

    Attributes:
        model: here, in evaluation mode.
        metrics: as checked.
        batch_size: rows in a step; None for all of them.
        staying: what owners have of the model.
        keep: the names of what they keep of it.
    """

    model: nn.Module
    metrics: Mapping[str, Metric]
    batch_size: int | None
    staying: Staying
    keep: Sequence[str]

    def at(
        self,
        owners: Sequence[RemoteDataset],
        staying: Staying,
        places: Sequence[int] | None = None,
    ) -> list[Measured]:
        """Return what each owner finds, there."""
        model, metrics, size, _, keep = self
        return measured(model, owners, metrics, size, staying, keep, places)

    def together(
        self, owners: Sequence[RemoteDataset], weights: Sequence[int] | None
    ) -> tuple[Measured, Added] | None:
        """Ask all simulated clients at once; None if that can't be."""
        if not isinstance(owners, Clients) or weights is not None or self.staying.own:
            return None
        found: list[Measured] = []

        def local(data: RemoteDataset, own: Own) -> Wanted:
            found.extend(self.at([data], Staying({0: own})))
            each = found[-1].ratios.values()
            return Wanted(summed=[at_owner(part, data) for one in each for part in one])

        try:
            written = Written(owners, local, self.staying)
        except UNWRITTEN:
            opened(owners, self.staying)
            return None
        return found[0], lambda: written.played(advice=_ADVICE).sums

    def one_by_one(
        self,
        owners: Sequence[RemoteDataset],
        aggregator: Place | str,
        weights: Sequence[int] | None,
    ) -> tuple[Measured, Added]:
        """Ask each owner, and let the aggregator add."""
        places = owners.places if isinstance(owners, Clients) else None
        found = self.at(owners, self.staying, places)
        ratios = [list(one.ratios.values()) for one in found]

        def added() -> Sequence[torch.Tensor]:
            if weights is None:
                parts: list[list[Any]] = [
                    [part for one in each for part in one] for each in ratios
                ]
                wide = _WIDE * len(parts[0])
                return collected(parts, aggregator, wide, advice=_ADVICE)
            means = [[above / below for above, below in each] for each in ratios]
            wide = _WIDE * len(self.metrics)
            mean = collected(means, aggregator, wide, weights, _ADVICE)
            return [part for one in mean for part in (one, torch.ones(()))]

        return found[0], added
