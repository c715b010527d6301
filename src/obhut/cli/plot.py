"""The demo's curves as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from .hospitals import LEARNING_RATE, LOCAL_STEPS, Point

# From the palette of Okabe and Ito, which the colour-blind can tell apart.
_FEDERATED = "#D55E00"
_POOLED = "#000000"
_ALONE = ("#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#E69F00")


def draw(
    path: Path,
    federated: Sequence[Point],
    pooled: Sequence[Point],
    alone: Mapping[str, Sequence[Point]],
    rows: Mapping[str, int],
    held_out: int,
) -> None:
    """Draw held-out accuracy and loss per round.

    Args:
        path: the picture's file; its ending says which format.
        federated: the federated model, round by round.
        pooled: the model of all rows together.
        alone: each hospital's own model, by name.
        rows: how many rows each hospital has, by name.
        held_out: how many rows are held out.
    """
    figure = Figure(
        figsize=(11, 5), dpi=150, layout=ConstrainedLayoutEngine(wspace=0.06)
    )
    left, right = figure.subplots(1, 2)
    _draw_curves(
        left,
        _accuracies(federated, held_out),
        _accuracies(pooled, held_out),
        {
            f"{name} alone ({rows[name]} rows)": _accuracies(points, held_out)
            for name, points in alone.items()
        },
    )
    _draw_curves(
        right,
        [point.loss for point in federated],
        [point.loss for point in pooled],
        {name: [point.loss for point in points] for name, points in alone.items()},
    )
    left.set_ylabel(f"correct on {held_out} held-out rows (%)")
    right.set_ylabel("cross-entropy on the held-out rows (nats per row)")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xlabel(f"round (of {LOCAL_STEPS} gradient steps at each owner)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"Breast cancer: {len(alone)} hospitals with {sum(rows.values())} rows, "
        f"together and apart (SGD, learning rate {LEARNING_RATE:g})"
    )
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path)


def _accuracies(points: Sequence[Point], held_out: int) -> list[float]:
    return [100 * point.correct / held_out for point in points]


def _draw_curves(
    axes: Axes,
    federated: Sequence[float],
    pooled: Sequence[float],
    alone: Mapping[str, Sequence[float]],
) -> None:
    rounds = range(1, len(federated) + 1)
    marker = "o" if len(rounds) == 1 else ""
    (bold,) = axes.plot(rounds, federated, marker, color=_FEDERATED, linewidth=3)
    bold.set(label="federated", linestyle="-", zorder=3)
    (dashed,) = axes.plot(rounds, pooled, marker, color=_POOLED, linewidth=1.4)
    dashed.set(label="all rows pooled", linestyle=(0, (4, 3)), zorder=4)
    for (name, values), color in zip(alone.items(), _ALONE, strict=True):
        (thin,) = axes.plot(rounds, values, marker, color=color, linewidth=1.2)
        thin.set(label=name, linestyle="-")
