"""Commands about what leaves: ``policy check`` before, ``log`` afterwards."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from obhut.errors import (
    IdentityError,
)
from obhut.host.wording import printable

from .rehearsal.command import rehearse
from .telling import told

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from obhut.guard.ledger import Entry
    from obhut.host.configuration import WorkerConfiguration

policies = typer.Typer(no_args_is_help=True, help="Say what a policy lets through.")

Namer = Callable[[str], str]

_PIPED_WIDTH = 200
"""Columns of a table that goes into a file or another program."""


def register(app: typer.Typer) -> None:
    """Add the commands to the command ``obhut``."""
    policies.command(
        context_settings={
            "allow_interspersed_args": False,
            "ignore_unknown_options": True,
        }
    )(rehearse)
    app.add_typer(policies, name="policy")
    app.command()(log)


@policies.callback()
def policy() -> None:
    """Say what a policy lets through."""


@policies.command()
def check(
    file: Annotated[
        Path, typer.Argument(help="The configuration.", exists=True, dir_okay=False)
    ],
) -> None:
    """Say in plain sentences what the policy lets through, to whom, and what not.

    It exits with 1 if a name stands for nobody, or the policy has expired.
    """
    from obhut.guard.policy import Quorum, expired, explain
    from obhut.host import configuration as configurations

    with told(file):
        configuration = configurations.load(file)
        own, today = str(configuration.id), datetime.datetime.now(datetime.UTC).date()
        lines = explain(configuration.policy, own=own, today=today)
        for line in sorted(lines, key=lambda one: not one.startswith("WARNING")):
            typer.echo(line)
        if isinstance(configuration.policy, Quorum):
            _check_names(configuration)
        if expired(configuration.policy, today):
            raise typer.Exit(1)


def log(
    config: Annotated[
        Path,
        typer.Option(
            help="The aggregator's configuration.", exists=True, dir_okay=False
        ),
    ],
) -> None:
    """Verify the record of releases, and print it: who asked what, what was decided."""
    from rich.table import Table

    from obhut.host import configuration as configurations
    from obhut.host import ledger, mark
    from obhut.identity.identity import Identity
    from obhut.identity.peers import PeerBook
    from obhut.transports.grpc.guarding import begun_anew, namer, open_ledger

    with told(config):
        configuration = configurations.load(config)
        folder = Path(configuration.folder)
        if not any((folder / name).exists() for name in (ledger.FILE, mark.FILE)):
            _check_aggregates(configuration, config)
            typer.echo(f"{folder / ledger.FILE} is not there: nothing was decided yet.")
            return
        identity = Identity.load(folder)
        name = namer(configuration, identity, PeerBook.of(folder))
        table = Table(title=f"Releases of {configuration.id}")
        for header in ("", "time (UTC)", "requester", "what", "decision", "rule"):
            table.add_column(header)
        with contextlib.closing(open_ledger(folder, identity, reading=True)) as record:
            for entry in record.entries():
                table.add_row(*map(printable, _row(entry, name)))
            head, reason = record.head, record.beginning.reason
            anew = f"Note: {begun_anew(record)}." if reason else ""
    console = show(table)
    if anew:
        console.print(anew)
    console.print(
        f"Verified: {head.number:,} entries, none changed, missing or out of place. "
        f"Head: {head.hash}"
    )


def show(table: Table) -> Console:
    """Print a table, and return what printed it."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    console.print(table)
    return console


def _check_aggregates(configuration: WorkerConfiguration, config: Path) -> None:
    """Say where decisions are written down, if a worker's policy says: not here.

    Raises:
        typer.Exit: with 1, in that case.
    """
    from obhut.guard.policy import Quorum
    from obhut.identity.identity import Identity
    from obhut.identity.peers import PeerBook
    from obhut.transports.grpc.guarding import resolve

    written, folder = configuration.policy, Path(configuration.folder)
    if not isinstance(written, Quorum):
        why = "its policy is UnsafeOpen, under which nothing is written down"
    else:
        identity = Identity.load(folder)
        resolved = resolve(configuration, identity, PeerBook.of(folder))
        if not isinstance(resolved, Quorum) or identity.id in resolved.aggregators:
            return
        why = (
            "it is an owner's; what is released of an owner is written down by the "
            f"aggregator, {written.aggregators[0]}: ask its operator for obhut log"
        )
    typer.echo(f"{config}: there is no record of releases here: {why}", err=True)
    raise typer.Exit(1)


def _row(entry: Entry, name: Namer) -> tuple[str, ...]:
    when = datetime.datetime.fromtimestamp(entry.time, datetime.UTC)
    terms = ", ".join(f"{t.coefficient} {name(t.owner)}" for t in entry.terms)
    if isinstance(entry.repeats, int):
        terms = f"again what entry {entry.repeats:,} says"
    return (
        str(entry.number),
        when.strftime("%Y-%m-%d %H:%M:%S"),
        name(entry.requester),
        f"{entry.kind}: {terms or 'nothing'}",
        "released" if entry.permits else "refused",
        entry.rule,
    )


def _check_names(configuration: WorkerConfiguration) -> None:
    """Say whom each name of a policy stands for.

    Raises:
        ConfigurationError: if one stands for nobody.
    """
    from obhut.guard.policy import Quorum
    from obhut.host.principals import CLAUSES
    from obhut.identity.identity import Identity
    from obhut.identity.peers import PeerBook
    from obhut.transports.grpc.guarding import resolve

    folder = Path(configuration.folder)
    try:
        identity = Identity.load(folder)
    except IdentityError:
        typer.echo(
            f"There is no identity in {folder} yet, so that names were not looked up; "
            f"make one with: obhut init --folder {folder}"
        )
        return
    written = configuration.policy
    resolved = resolve(configuration, identity, PeerBook.of(folder))
    if isinstance(written, Quorum) and isinstance(resolved, Quorum):
        ids = {
            name: id
            for clause in CLAUSES
            for name, id in zip(
                getattr(written, clause), getattr(resolved, clause), strict=True
            )
        }
        for name, id in ids.items():
            if name != id:
                typer.echo(f"{name} is {id}.")
