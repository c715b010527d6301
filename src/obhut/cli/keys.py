"""Commands about who a node is and whom it knows: init, invite, join, keys.

Rule: what is to be copied, an id or an invitation, is alone on its line of standard
output; what explains it goes to standard error.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from obhut.errors import ObhutError

_Folder = Annotated[
    Path, typer.Option(help="Where this node's key and its peers are kept.")
]

_PEERS = "peers"

keys = typer.Typer(no_args_is_help=True, help="List or remove the peers known here.")


def register(app: typer.Typer) -> None:
    """Add the commands to the command ``obhut``."""
    app.command()(init)
    app.command()(invite)
    app.command()(join)
    app.add_typer(keys, name="keys")


def init(folder: _Folder = Path()) -> None:
    """Make this node's key and certificate, unless there are some, and print its id."""
    from obhut.errors import IdentityError
    from obhut.transports.grpc.identity import Identity

    with _told("init"):
        identity = Identity.create()
        try:
            identity.save(folder)
        except IdentityError:
            identity = Identity.load(folder)
            typer.echo("There is an identity already. Its id:", err=True)
        else:
            typer.echo(
                f"Made {folder / 'identity.key'}; it never leaves this machine, and "
                "whoever has it is this node. The node's id:",
                err=True,
            )
        typer.echo(identity.id)


def invite(
    name: Annotated[str, typer.Argument(help="What to call whoever joins.")],
    folder: _Folder = Path(),
    listen: Annotated[
        str, typer.Option(help="Where to listen until they have joined.")
    ] = "0.0.0.0:7001",
    address: Annotated[
        str | None,
        typer.Option(help="Where they reach that; by default this machine's name."),
    ] = None,
    minutes: Annotated[
        float, typer.Option(min=0.1, max=24 * 60, help="How long it holds.")
    ] = 10,
) -> None:
    """Print a one-time invitation, and wait until somebody has joined with it."""
    from obhut.transports.grpc.identity import Identity
    from obhut.transports.grpc.invites import Listener
    from obhut.transports.grpc.peers import PeerBook

    with _told("invite"):
        identity, peers = Identity.load(folder), PeerBook(folder / _PEERS)
        with Listener(
            identity,
            peers,
            name,
            listen=listen,
            address=address,
            seconds=minutes * 60,
        ) as listener:
            typer.echo(
                f"For {name}, on a way that nobody else reads, since whoever comes "
                f"first with it is {name}. It holds once, for {minutes:g} minutes:",
                err=True,
            )
            typer.echo(str(listener.invitation))
            peer = listener.wait()
        typer.echo(
            f"{peer.name} is known by now. Compare the id with theirs:", err=True
        )
        typer.echo(peer.id)


def join(
    code: Annotated[
        str, typer.Argument(help="The invitation; - reads it from standard input.")
    ],
    name: Annotated[str, typer.Option(help="What to call whoever invites.")],
    folder: _Folder = Path(),
) -> None:
    """Join whoever made an invitation, so that both know each other's keys."""
    from obhut.transports.grpc.identity import Identity
    from obhut.transports.grpc.invites import accept
    from obhut.transports.grpc.peers import PeerBook

    with _told("join"):
        identity, peers = Identity.load(folder), PeerBook(folder / _PEERS)
        text = sys.stdin.readline() if code == "-" else code
        peer = accept(text, identity, peers, name)
        typer.echo(f"{peer.name} is known by now, with the id:", err=True)
        typer.echo(peer.id)
        typer.echo("This node is known there, with the id:", err=True)
        typer.echo(identity.id)


@keys.command("list")
def list_peers(folder: _Folder = Path()) -> None:
    """Print each peer's name, id and the day on which its certificate ends."""
    from obhut.transports.grpc.certificates import expiry
    from obhut.transports.grpc.peers import PeerBook

    with _told("keys list"):
        peers = PeerBook(folder / _PEERS)
        for peer in peers:
            day = expiry(peer.certificate).date().isoformat()
            typer.echo(f"{peer.name}\t{peer.id}\t{day}")
        for file_name, why in peers.broken.items():
            typer.echo(f"{ascii(file_name)[1:-1]} is left out: {why}", err=True)


@keys.command("remove")
def remove_peer(
    peer: Annotated[str, typer.Argument(help="Its name or id.")],
    folder: _Folder = Path(),
) -> None:
    """Forget a peer; a worker that runs here refuses it from now on."""
    from obhut.transports.grpc.peers import PeerBook

    with _told("keys remove"):
        typer.echo(f"{PeerBook(folder / _PEERS).remove(peer)} is forgotten.", err=True)


@contextlib.contextmanager
def _told(command: str) -> Iterator[None]:
    """Print an error in a line, and exit with 1."""
    try:
        yield
    except (ObhutError, OSError) as error:
        typer.echo(f"obhut {command}: {error}", err=True)
        raise typer.Exit(1) from None
