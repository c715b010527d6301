"""Commands about who a node is and whom it knows: init, invite, join, keys.

Rule: what is to be copied, an id or an invitation, is alone on its line of standard
output; what explains it goes to standard error.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from obhut.errors import ObhutError

from .telling import told

if TYPE_CHECKING:
    from obhut.identity.peers import PeerBook


def _default_folder() -> Path:
    from obhut.identity.folders import default_folder

    return default_folder()


_Folder = Annotated[
    Path,
    typer.Option(
        default_factory=_default_folder,
        help="Where this node's key and its peers are kept, also for obhut.connect.",
        show_default="OBHUT_FOLDER; else the current folder, if it holds an "
        "identity or a worker.toml; else ~/.config/obhut",
    ),
]

_HANDOVER = "handover.json"

keys = typer.Typer(
    no_args_is_help=True,
    help="Show and change this node's key, and the peers known here.",
)


def register(app: typer.Typer) -> None:
    """Add the commands to the command ``obhut``."""
    app.command()(init)
    app.command()(invite)
    app.command()(join)
    app.add_typer(keys, name="keys")


def init(folder: _Folder) -> None:
    """Make this node's key and certificate, unless there are some, and print its id."""
    from obhut.errors import IdentityError
    from obhut.identity.identity import Identity

    with told("obhut init", OSError):
        identity = Identity.create()
        try:
            identity.save(folder)
        except IdentityError:
            identity = Identity.load(folder)
            typer.echo(f"There is an identity in {folder} already. Its id:", err=True)
        else:
            typer.echo(
                f"Made {folder / 'identity.key'}; it never leaves this machine, and "
                f"whoever has it is this node. {_found(folder)} The node's id:",
                err=True,
            )
        typer.echo(identity.id)


def invite(
    name: Annotated[str, typer.Argument(help="What to call whoever joins.")],
    folder: _Folder,
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
    from obhut.host.waiting import Waiting
    from obhut.identity.identity import Identity
    from obhut.identity.joining import Listener
    from obhut.identity.peers import PeerBook

    with told("obhut invite", OSError):
        identity, peers = Identity.load(folder), PeerBook.of(folder)
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
            until = _moment(int(time.time() + minutes * 60))
            where = listener.invitation.address
            with Waiting(f"waiting for {name} to join at {where}, until {until}"):
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
    folder: _Folder,
) -> None:
    """Join whoever made an invitation, so that both know each other's keys."""
    from obhut.host.waiting import Waiting
    from obhut.identity.identity import Identity
    from obhut.identity.joining import accept
    from obhut.identity.peers import PeerBook

    with told("obhut join", OSError):
        identity, peers = Identity.load(folder), PeerBook.of(folder)
        text = sys.stdin.readline() if code == "-" else code
        with Waiting(f"waiting for {name}, who made the invitation, to answer"):
            peer = accept(text, identity, peers, name)
        typer.echo(f"{peer.name} is known by now, with the id:", err=True)
        typer.echo(peer.id)
        typer.echo("This node is known there, with the id:", err=True)
        typer.echo(identity.id)


@keys.command("list")
def list_peers(folder: _Folder) -> None:
    """Print each peer's name, id and the day on which its certificate ends."""
    from obhut.identity.certificates import expiry
    from obhut.identity.peers import PeerBook

    with told("obhut keys list", OSError):
        if not folder.is_dir():
            typer.echo(f"obhut keys list: there is no folder {folder}", err=True)
            raise typer.Exit(1)
        peers = PeerBook.of(folder)
        for peer in peers:
            day = expiry(peer.certificate).date().isoformat()
            typer.echo(f"{peer.name}\t{peer.id}\t{day}")
            former = peers.former.get(peer.name)
            if former is not None:
                typer.echo(
                    f"{peer.name} had the key {former.id}, which holds until "
                    f"{_moment(former.until)}",
                    err=True,
                )
        for file_name, why in peers.broken.items():
            typer.echo(f"{ascii(file_name)[1:-1]} is left out: {why}", err=True)


@keys.command("remove")
def remove_peer(
    peer: Annotated[str, typer.Argument(help="Its name or id.")],
    folder: _Folder,
) -> None:
    """Forget a peer; a worker that runs here refuses it from now on."""
    from obhut.identity.peers import PeerBook

    with told("obhut keys remove", OSError):
        peers = PeerBook.of(folder)
        called = _all_names(peers, peer)
        name = peers.remove(peer)
        typer.echo(f"{name} is forgotten.", err=True)
        for line in _still_named(folder, {*called, name}):
            typer.echo(line, err=True)


@keys.command("show")
def show_own(folder: _Folder) -> None:
    """Print this node's certificate, for `obhut keys add` elsewhere."""
    from obhut.identity.identity import Identity

    with told("obhut keys show", OSError):
        identity = Identity.load(folder)
        typer.echo("The certificate is no secret. This node's id:", err=True)
        typer.echo(identity.id, err=True)
        typer.echo(identity.certificate.decode("ascii"), nl=False)


@keys.command("add")
def add_peer(
    name: Annotated[str, typer.Argument(help="What to call the peer.")],
    certificate: Annotated[
        Path,
        typer.Argument(
            help="What `obhut keys show` printed there; - reads it from standard input."
        ),
    ],
    folder: _Folder,
) -> None:
    """Pin a peer by its certificate, without an invitation; both sides have to."""
    from obhut.identity.peers import PeerBook

    with told("obhut keys add", OSError):
        peer = PeerBook.of(folder).add(name, _read(certificate))
        typer.echo(
            f"{peer.name} is known by now. Compare the id with theirs:", err=True
        )
        typer.echo(peer.id)


@keys.command("rotate")
def rotate(
    folder: _Folder,
    days: Annotated[
        int, typer.Option(help="How long peers who accept it accept both keys.")
    ] = 14,
    end: Annotated[
        bool,
        typer.Option(
            "--finish", help="Use the new key, when the peers have accepted it."
        ),
    ] = False,
    between_studies: Annotated[
        bool,
        typer.Option(
            "--between-studies",
            help="Agree that an owner with a policy counts as somebody else then.",
        ),
    ] = False,
) -> None:
    """Make a new key, and a file by which peers who know the old one accept it."""
    from obhut.host import files
    from obhut.identity import rotation
    from obhut.identity.certificates import id_of

    with told("obhut keys rotate", OSError):
        if end:
            identity = rotation.finish(folder, between_studies=between_studies)
            typer.echo(
                "The old key is gone. Start the worker of this folder again, so that "
                "it uses the new one. This node's id:",
                err=True,
            )
            typer.echo(identity.id)
            return
        handover = rotation.begin(
            folder, days, time.time(), between_studies=between_studies
        )
        files.write(folder / _HANDOVER, handover.encode(), replace=True)
        typer.echo(
            f"Wrote {folder / _HANDOVER}, which is no secret. Send it to each peer, "
            f"for: obhut keys accept {_HANDOVER}\nThis node goes on with its old key "
            f"until: obhut keys rotate --finish\nDo that before "
            f"{_moment(handover.until)}; then peers forget the old key. The new id:",
            err=True,
        )
        typer.echo(id_of(handover.new.encode("ascii")))


@keys.command("accept")
def accept(
    file: Annotated[
        Path,
        typer.Argument(
            help="What `obhut keys rotate` wrote there; - reads it from standard input."
        ),
    ],
    folder: _Folder,
) -> None:
    """Accept a peer's new key, which its old key has signed."""
    from obhut.identity import rotation
    from obhut.identity.certificates import id_of
    from obhut.identity.peers import PeerBook

    with told("obhut keys accept", OSError):
        handover = rotation.Handover.parse(_read(file))
        peer = rotation.accept(handover, PeerBook.of(folder), time.time())
        typer.echo(
            f"{peer.name} is known by a new key; the old one holds until "
            f"{_moment(handover.until)}. Lists that say {peer.name} hold for both. "
            f"Where a configuration says {id_of(handover.old.encode('ascii'))}, write "
            "the new id by then. Compare it with theirs:",
            err=True,
        )
        typer.echo(peer.id)


def _all_names(peers: PeerBook, name_or_id: str) -> set[str]:
    """Return the name and ids of a peer, as far as there are any."""
    from obhut.errors import PeerNotFoundError

    try:
        peer = peers.find(name_or_id)
    except PeerNotFoundError:
        return {name_or_id}
    former = peers.former.get(peer.name)
    return {peer.name, peer.id, *(() if former is None else (former.id,))}


def _still_named(folder: Path, called: set[str]) -> Iterator[str]:
    """Yield where configurations in a folder name somebody who was removed."""
    from obhut.host import configuration as configurations
    from obhut.host.mentions import mentions

    for file in sorted(folder.glob("*.toml")):
        try:
            places = list(mentions(configurations.load(file), called))
        except ObhutError as error:
            yield f"Whether a configuration names them was not found out: {error}"
            continue
        if places:
            yield (
                f"{file} still names them: {', '.join(places)}. That lets nobody in "
                "without a pinned key; take it out all the same, or whoever is pinned "
                "under that name next has it."
            )


def _found(folder: Path) -> str:
    """Say whether a folder is found without being named."""
    if folder.resolve() == _default_folder().resolve():
        return "Commands and obhut.connect find it from here without --folder."
    return (
        f"Commands find it with --folder {folder}, obhut.connect with folder=, both "
        "with OBHUT_FOLDER."
    )


def _read(file: Path) -> bytes:
    """Return a small file, or standard input for ``-``."""
    if str(file) == "-":
        return sys.stdin.buffer.read(_LARGEST)
    with file.open("rb") as opened:
        return opened.read(_LARGEST)


_LARGEST = 64 * 1024
"""Bytes that are read of a file; what is valid has fewer."""


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
