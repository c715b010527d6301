"""A partition as a picture: which classes each client has.

Rule: a bar has its client's name beside it; where clients are too many for that, they
are columns of a map, and alike ones stand together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from matplotlib import colormaps, pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from obhut.errors import CallError

if TYPE_CHECKING:
    from .partitions import Partition

_BARS, _COLOURS = 30, 10
"""Clients that have a bar each, and classes that have a colour each."""

_CHARACTERS = 60
"""Of a text beside or above the picture."""


def draw(partition: Partition, axes: Any = None) -> Any:  # Any: matplotlib's Axes
    """Draw a partition; see ``Partition.plot``."""
    if axes is not None and not isinstance(axes, Axes):
        raise CallError(
            f"expected matplotlib's Axes, got {axes!r}; to write a file: "
            'partition.plot().figure.savefig("partition.png")'
        )
    few = len(partition) <= _BARS
    classes = partition.classes
    width = 1 if classes is None else len(classes.names)
    bars = few and width <= _COLOURS
    if axes is None:
        height = 1.4 + 0.22 * len(partition) if bars else 4
        _, axes = pyplot.subplots(figsize=(7, max(2.5, height)), layout="constrained")
    if bars:
        _bars(partition, axes)
    elif classes is not None:
        _map(partition, axes)
    else:
        _histogram(partition, axes)
    for axis in (axes.xaxis,) if bars or classes else (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_title(_plain(partition.title), loc="left", fontsize="medium")
    return axes


def _plain(text: str) -> str:
    """Return a text that is drawn as it is, cut off if it is long."""
    short = text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}…"
    return short.replace("$", r"\$")  # else it is a formula


def _bars(partition: Partition, axes: Axes) -> None:
    counts, places = partition.counts(), range(len(partition))
    classes = partition.classes
    labels = [""] if classes is None else classes.names
    left = torch.zeros(len(places), dtype=torch.int64)
    palette = colormaps["tab10"].colors  # type: ignore[attr-defined] # of a list of colours
    for label, column, colour in zip(labels, counts.T, palette, strict=False):
        axes.barh(
            places,
            column.tolist(),
            left=left.tolist(),
            color=colour,
            label=label,
            height=0.8,
        )
        left += column
    axes.set_yticks(places, [_plain(name) for name in partition])
    axes.set_xlabel("rows")
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if classes is not None:
        axes.legend(
            title="class", frameon=False, loc="upper left", bbox_to_anchor=(1, 1)
        )


def _map(partition: Partition, axes: Axes) -> None:
    counts = partition.counts().double()
    shares = counts / counts.sum(1, keepdim=True)
    # By the class of most rows, and by how many of a client's rows that is.
    most, which = shares.max(1)
    order = torch.argsort(which - most / 2, stable=True)
    image = axes.imshow(
        shares[order].T.numpy(),
        aspect="auto",
        cmap="Blues",
        vmin=0,
        interpolation="nearest",
    )
    names = partition.classes.names if partition.classes else ()
    step = -(-len(names) // 25)
    axes.set_yticks(range(0, len(names), step), names[::step])
    axes.set_xlabel("clients, by the class of most of their rows")
    axes.set_ylabel("class")
    axes.figure.colorbar(image, ax=axes, label="share of the client's rows")


def _histogram(partition: Partition, axes: Axes) -> None:
    sizes = partition.sizes.tolist()
    step = -(-(max(sizes) - min(sizes) + 1) // _BARS)
    edges = [place - 0.5 for place in range(min(sizes), max(sizes) + 2 * step, step)]
    axes.hist(sizes, bins=edges, color="#0072B2")
    axes.set_xlabel("rows of a client")
    axes.set_ylabel("clients")
    axes.spines[["top", "right"]].set_visible(False)
