"""Commands about what requesters leave at an owner between sessions: list, delete.

Rule: nothing shows a value. The owner sees who left how much, when, and as what.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from obhut.host.wording import printable

from .policy import show
from .telling import told

if TYPE_CHECKING:
    from obhut.host.state_files import Listed, StatesOnDisk

state = typer.Typer(
    no_args_is_help=True,
    help="List and delete what requesters leave at a worker between sessions.",
)

_Config = Annotated[
    Path,
    typer.Option(help="The worker's configuration.", exists=True, dir_okay=False),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command ``obhut``."""
    app.add_typer(state, name="state")


@state.command("list")
def list_(config: _Config) -> None:
    """List what is stored: for whom, under which name and number, how much, since when.

    No value is shown, and nobody can read one: what is stored comes back to who
    stored it as rows do, to be computed with at the worker.
    """
    from rich.table import Table

    with told(config):
        states, called = _opened(config)
        table = Table("requester", "name", "version", "bytes", "time (UTC)")
        listed = states.listed()
        for one in listed:
            stored = one.stored
            when = datetime.datetime.fromtimestamp(stored.time, datetime.UTC)
            row = (
                called(stored.requester),
                stored.state.name,
                str(stored.state.version),
                f"{one.size:,}",
                f"{when:%Y-%m-%d %H:%M:%S}",
            )
            table.add_row(*map(printable, row))
    if listed:
        show(table)
    size = sum(one.size for one in listed)
    typer.echo(f"{len(listed):,} stored, {size:,} bytes.")


@state.command()
def delete(
    name: Annotated[str, typer.Argument(help="What the requester calls it.")],
    config: _Config,
    requester: Annotated[
        str | None,
        typer.Option(help="Only of this requester, by name or id; by default of all."),
    ] = None,
    version: Annotated[
        int | None, typer.Option(help="Only this version; by default all.")
    ] = None,
) -> None:
    """Delete what is stored under a name. A worker that serves takes it in at once.

    Who left it learns that it is gone when they ask for it. It exits with 1 if there is
    nothing of that name.
    """
    with told(config):
        states, called = _opened(config)
        found = [
            one
            for one in states.listed()
            if one.stored.state.name == name
            and requester in {None, one.stored.requester, called(one.stored.requester)}
            and version in {None, one.stored.state.version}
        ]
        states.delete(found)
    for one in found:
        typer.echo(f"Deleted {_said(one, called)}.")
    if not found:
        typer.echo(f"{config}: nothing of that name is stored there", err=True)
        raise typer.Exit(1)


def _said(one: Listed, called: Callable[[str], str]) -> str:
    version = one.stored.state.version
    who = called(one.stored.requester)
    return printable(f"version {version} of {one.stored.state.name!r} of {who}")


def _opened(config: Path) -> tuple[StatesOnDisk, Callable[[str], str]]:
    """Return what is stored at a worker, and what says how somebody is called."""
    from obhut.host import configuration as configurations
    from obhut.host.state_files import FOLDER, StatesOnDisk
    from obhut.identity.identity import Identity
    from obhut.identity.peers import PeerBook
    from obhut.transports.grpc.guarding import namer

    configuration = configurations.load(config)
    folder = Path(configuration.folder)
    identity = Identity.load(folder)
    states = StatesOnDisk(folder / FOLDER)
    return states, namer(configuration, identity, PeerBook.of(folder))
