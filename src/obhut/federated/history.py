"""What a training came to, round by round: a table, a curve, a line while it runs.

::

    history = federation.fit(model, training, rounds=30)
    history[-1].loss
    history.plot().figure.savefig("run.svg")
    history.to_pandas()
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, overload

import torch

from obhut.extras import import_extra
from obhut.host.printing import Table

_SHOWN = 10
"""Rounds that a table shows at its end."""

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""From the palette of Okabe and Ito, which the colour-blind can tell apart."""


@dataclass(frozen=True, slots=True)
class Round:
    """What is known of a round when it is over.

    Attributes:
        number: which it was, from 1; 0 is what was there before the first.
        loss: the mean of the owners' training losses over all their rows; NaN if the
            round was skipped, or the training returns no loss.
        metrics: of the model after it, and what else the training returned, by name:
            a number, or a tensor of several.
        seconds: how long it took.
        non_finite: how many owners delivered what can not be used: it is NaN or
            infinite, or failed. If any did, the round was skipped and the model is as
            it was.
    """

    number: int
    loss: float
    metrics: Mapping[str, float | torch.Tensor] = field(default_factory=dict)
    seconds: float = math.nan
    non_finite: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", MappingProxyType(dict(self.metrics)))

    def __reduce__(self) -> tuple[Any, ...]:  # Any: as pickle has it
        metrics = dict(self.metrics)
        return Round, (self.number, self.loss, metrics, self.seconds, self.non_finite)

    @property
    def numbers(self) -> dict[str, float]:
        """The loss, and each metric that is one number, by name."""
        found = {} if math.isnan(self.loss) else {"loss": self.loss}
        return found | {
            name: one for name, one in self.metrics.items() if isinstance(one, float)
        }

    def __str__(self) -> str:
        figures = [f"{name} {_short(one)}" for name, one in self.numbers.items()]
        if self.non_finite:
            figures = [f"skipped: {self.non_finite} delivered what is not finite"]
        if math.isfinite(self.seconds):
            figures.append(f"{self.seconds:.1f} s")
        return "  ".join([f"round {self.number}", *figures])


class History(Sequence[Round]):
    """The rounds of a training, in order.

    Args:
        rounds: that are over.
        exact: whether clients trained as PyTorch does, digit for digit; see
            ``Federation.fit``.

    Attributes:
        exact: as given.
    """

    def __init__(self, rounds: Iterable[Round] = (), *, exact: bool = True) -> None:
        self._rounds = list(rounds)
        self.exact = exact

    def append(self, report: Round) -> None:
        """Add a round that is over."""
        self._rounds.append(report)

    def cut(self, count: int) -> None:
        """Keep so many rounds, and forget those after them."""
        del self._rounds[count:]

    def __len__(self) -> int:
        return len(self._rounds)

    @overload
    def __getitem__(self, index: int) -> Round: ...

    @overload
    def __getitem__(self, index: slice) -> History: ...

    def __getitem__(self, index: int | slice) -> Round | History:
        if isinstance(index, slice):
            return History(self._rounds[index], exact=self.exact)
        return self._rounds[index]

    def __iter__(self) -> Iterator[Round]:
        return iter(self._rounds)

    def __eq__(self, other: object) -> bool:
        """Tell whether both have the same numbers, whatever time they took."""
        if not isinstance(other, History):
            return NotImplemented
        return [_without_time(one) for one in self] == [
            _without_time(one) for one in other
        ]

    __hash__ = None  # type: ignore[assignment] # it changes

    def __repr__(self) -> str:
        if not self._rounds:
            return "<History of no rounds>"
        fused = "" if self.exact else ", updates fused (exact=False)"
        return f"<History of {len(self)} rounds{fused}, at last {self._rounds[-1]}>"

    @property
    def names(self) -> list[str]:
        """The names of all numbers that rounds have, the loss first."""
        found = dict.fromkeys(name for one in self for name in one.numbers)
        return sorted(found, key=lambda name: name != "loss")

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Return the rounds that have a number, and the number in each.

        Args:
            name: ``loss``, or a metric's.
        """
        pairs = [(one.number, one.numbers[name]) for one in self if name in one.numbers]
        return [number for number, _ in pairs], [value for _, value in pairs]

    def to_pandas(self) -> Any:  # Any: pandas may not be there
        """Return a ``pandas.DataFrame``, a row each round, by its number.

        Raises:
            MissingExtraError: if pandas is not installed.
        """
        pandas = import_extra("pandas", "History.to_pandas", "pandas")
        rows = [
            {
                "round": one.number,
                "loss": one.loss,
                **{name: _listed(value) for name, value in one.metrics.items()},
                "seconds": one.seconds,
                "non_finite": one.non_finite,
            }
            for one in self
        ]
        return pandas.DataFrame(rows).set_index("round")

    def plot(self, axes: Any = None) -> Any:  # Any: matplotlib's Axes, if it is there
        """Draw the loss, and on a second axis metrics, over the rounds.

        Args:
            axes: where, matplotlib's ``Axes``; by default a new figure's.

        Returns:
            The axes.

        Raises:
            MissingExtraError: if matplotlib is not installed.
        """
        import_extra("matplotlib", "History.plot", "plot")
        from matplotlib import pyplot  # noqa: PLC0415 # for those who have it
        from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 # likewise

        if axes is None:
            _, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
        names = self.names
        others = [name for name in names if name != "loss"]
        right = axes.twinx() if "loss" in names and others else axes
        lines = []
        for place, name in enumerate(names):
            where = axes if name == "loss" else right
            numbers, values = self.curve(name)
            lines += where.plot(
                numbers,
                values,
                color=_COLOURS[place % len(_COLOURS)],
                marker="o",
                markersize=3,
                label=name,
            )
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        if right is not axes:
            axes.set_ylabel("training loss")
            right.set_ylabel(", ".join(others))
        if lines:
            axes.legend(handles=lines, frameon=False, loc="center right")
        for one in {axes, right}:
            one.spines["top"].set_visible(False)
        return axes

    def _repr_html_(self) -> str:
        """Return what a notebook shows: a curve, and the last rounds."""
        names = self.names
        lines = [
            [
                str(one.number),
                *(_short(one.numbers[n]) if n in one.numbers else "" for n in names),
                "" if math.isnan(one.seconds) else f"{one.seconds:.1f}",
            ]
            for one in self._rounds[-_SHOWN:]
        ]
        sparks = "".join(
            f"<figure style='display:inline-block;margin:0 1em 0 0'>"
            f"{_spark(self.curve(name)[1], _COLOURS[place % len(_COLOURS)])}"
            f"<figcaption>{html.escape(name)}</figcaption></figure>"
            for place, name in enumerate(names)
        )
        more = len(self) - _SHOWN
        notes = [f"and {more} before these"] if more > 0 else []
        if not self.exact:
            notes.append("updates fused (exact=False)")
        table = Table(("round", *names, "seconds"), lines, notes, right=True)
        return f"<div>{sparks}</div>{table.html()}"


def plain(value: torch.Tensor) -> float | torch.Tensor:
    """Return a single number as one, and several as float64."""
    return value.double() if value.dim() else float(value)


def _spark(values: Sequence[float], colour: str) -> str:
    """Return a small curve as SVG, which needs no library."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:  # a curve has two points
        return ""
    low, high = min(finite), max(finite)
    span = (high - low) or 1.0
    width, height = 160, 48
    points = " ".join(
        f"{2 + (width - 4) * place / (len(values) - 1):.1f},"
        f"{height - 2 - (height - 4) * (value - low) / span:.1f}"
        for place, value in enumerate(values)
        if math.isfinite(value)
    )
    return (
        f"<svg width='{width}' height='{height}' role='img'>"
        f"<polyline points='{points}' fill='none' stroke='{colour}' "
        "stroke-width='1.5'/></svg>"
    )


def _short(value: float) -> str:
    """Return a number in three digits or so."""
    fixed = not value or 1e-3 <= abs(value) < 1e4  # where they read well
    return f"{value:.3f}" if fixed else f"{value:.3g}"


def _listed(value: float | torch.Tensor) -> Any:  # Any: a number, or nested lists
    return value.tolist() if isinstance(value, torch.Tensor) else value


def _without_time(one: Round) -> tuple[object, ...]:
    metrics = {name: _listed(value) for name, value in one.metrics.items()}
    return one.number, repr(one.loss), repr(metrics), one.non_finite
