"""Commands about data files: what they hold, and how a worker would serve them.

Leak: what is printed quotes the data. It is for their owner.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .telling import told

if TYPE_CHECKING:
    from obhut.host.data.datasets import Dataset
    from obhut.host.data.report import ColumnReport

data = typer.Typer(
    no_args_is_help=True, help="Look into a data file, and suggest how to serve it."
)

_HEAD = ("column", "in the file", "becomes", "missing", "min", "max", "note")

_CLASSES = 6
"""Categories that are shown of a column."""

_TEXTS = frozenset({"string", "large_string", "string_view"})
"""Arrow's names of text."""

_COLUMNS = 200
"""Columns that are shown of a table."""


def register(app: typer.Typer) -> None:
    """Add the commands to the command ``obhut``."""
    app.add_typer(data, name="data")


@data.command()
def describe(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A file, or a folder of parts or images.", exists=True
        ),
    ],
    toml: Annotated[
        bool,
        typer.Option(
            "--toml", help="Print only the [[dataset]] table that is suggested for it."
        ),
    ] = False,
) -> None:
    """Show what a file holds, column by column, and suggest how to serve it.

    What is shown quotes the data: it is for their owner.
    """
    from obhut.host.data import datasets
    from obhut.host.data.suggestion import suggest
    from obhut.transports.pipe.loading import Loading

    with told("obhut data", OSError):
        suggestion = suggest(file)
        if toml:
            typer.echo(suggestion.toml, nl=False)
            return
        dataset = datasets.load_one(suggestion.declaration, run=Loading())
        typer.echo(described(dataset))
        typer.echo("\nSuggested for worker.toml:\n")
        typer.echo(suggestion.toml, nl=False)


def described(dataset: Dataset) -> str:
    """Return what a data set is made of, in a line for each column.

    Leak: it is for its owner alone.
    """
    from obhut.host.printing import Table
    from obhut.host.sizes import Size

    report = dataset.report
    sizes = ", ".join(
        f"{name} {_shape(array.shape)} {array.dtype}"
        for name, array in dataset.tensors.items()
    )
    memory = sum(len(array.data) for array in dataset.tensors.values())
    used = report.used or report.rows
    rows = f"{used:,} rows" if used == report.rows else _of(used, report.rows)
    more = len(report.columns) - _COLUMNS
    notes = [f"… and {more:,} more columns"] if more > 0 else []
    lines = [
        (
            one.name,
            "text" if one.stored in _TEXTS else one.stored,
            one.becomes or "left out",
            f"{one.missing:,}" if one.missing else "",
            _number(one.least),
            _number(one.greatest),
            _note(one),
        )
        for one in report.columns[:_COLUMNS]
    ]
    title = f"{dataset.name}: {rows}, {sizes}, {Size(memory)}"
    return str(Table(_HEAD, lines, (*notes, *report.notes), title))


def _of(used: int, rows: int) -> str:
    return f"{used:,} of {rows:,} rows"


def _note(one: ColumnReport) -> str:
    """Return categories with their rows, and what there is to say."""
    shown = [f"{text} {count:,}" for text, count in one.classes[:_CLASSES]]
    if len(one.classes) > _CLASSES:
        shown.append(f"{len(one.classes) - _CLASSES} more")
    return "; ".join(filter(None, (", ".join(shown), one.note)))


def _shape(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(f"{size:,}" for size in shape) + ")"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.6g}"
