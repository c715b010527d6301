"""Commands about data files: what they hold, and how a worker would serve them.

Leak: what is printed quotes the data. It is for their owner.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from obhut.host.data.datasets import Dataset
    from obhut.host.data.report import ColumnReport

data = typer.Typer(
    no_args_is_help=True, help="Look into a data file, and suggest how to serve it."
)

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
    from obhut.errors import ObhutError
    from obhut.host.data import datasets
    from obhut.host.data.suggestion import suggest
    from obhut.transports.pipe.loading import Loading

    try:
        suggestion = suggest(file)
        if toml:
            typer.echo(suggestion.toml, nl=False)
            return
        from rich.console import Console

        console = Console(highlight=False)
        dataset = datasets.load_one(suggestion.declaration, run=Loading())
        print_dataset(console, dataset)
        console.print("\nSuggested for worker.toml:\n")
        console.print(suggestion.toml, markup=False, soft_wrap=True, end="")
    except (ObhutError, OSError) as error:
        typer.echo(f"obhut data: {error}", err=True)
        raise typer.Exit(1) from None


def print_dataset(console: Console, dataset: Dataset) -> None:
    """Print what a data set is made of, a row for each column.

    Leak: for its owner alone.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from obhut.host.wording import printable

    report = dataset.report
    sizes = ", ".join(
        f"{printable(name)} {_shape(array.shape)} {array.dtype}"
        for name, array in dataset.tensors.items()
    )
    memory = sum(len(array.data) for array in dataset.tensors.values())
    used = report.used or report.rows
    rows = f"{used:,} rows" if used == report.rows else _of(used, report.rows)
    console.print(
        f"\n{dataset.name}: {rows}, {sizes}, {_bytes(memory)}",
        markup=False,
        style="bold",
        soft_wrap=True,
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("column", "in the file", "becomes"):
        table.add_column(heading, overflow="fold")
    for heading in ("missing", "min", "max"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("note", overflow="fold", ratio=1)
    for one in report.columns[:_COLUMNS]:
        cells = (
            one.name,
            "text" if one.stored in _TEXTS else one.stored,
            one.becomes or "left out",
            f"{one.missing:,}" if one.missing else "",
            _number(one.least),
            _number(one.greatest),
            _note(one),
        )
        table.add_row(
            *(Text(printable(cell)) for cell in cells),
            style="" if one.becomes else "dim",
        )
    if report.columns:
        console.print(table)
    if len(report.columns) > _COLUMNS:
        console.print(f"… and {len(report.columns) - _COLUMNS:,} more columns")
    for note in report.notes:
        console.print(note, markup=False, soft_wrap=True)


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


def _bytes(size: int) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"
