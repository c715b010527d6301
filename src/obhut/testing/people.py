"""People who know each other, each with a folder from which a worker can serve."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from obhut.host import writing
from obhut.identity.folders import CONFIGURATION
from obhut.identity.identity import Identity
from obhut.identity.peers import Peer, PeerBook
from obhut.transports.grpc.client import GrpcTransport
from obhut.transports.grpc.credentials import channel_credentials


class People:
    """People with folders.

    Args:
        root: an empty folder.
        names: who there is; all are pinned by all.

    Attributes:
        root: the folder.
        identities: who they are, by name.
        addresses: where those are reached who serve, by name.
    """

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root = root
        self.identities = {name: Identity.create() for name in names}
        self.addresses: dict[str, str] = {}
        for name, identity in self.identities.items():
            identity.save(root / name)
            for other in names:
                if other != name:
                    self.peers(name).add(other, self.identities[other].certificate)

    def peers(self, name: str) -> PeerBook:
        """Return whom somebody knows."""
        return PeerBook.of(self.root / name)

    def peer(self, name: str) -> Peer:
        """Return somebody as others have pinned them."""
        identity = self.identities[name]
        return Peer(name, identity.id, identity.certificate)

    def id(self, name: str) -> str:
        """Return somebody's id."""
        return self.identities[name].id

    def address(self, name: str) -> str:
        """Return where a worker is reached."""
        return self.addresses[name]

    def configure(
        self,
        name: str,
        *,
        listen: str = "127.0.0.1:0",
        dials: str = "",
        sessions: Sequence[str] = (),
        deliver: Sequence[str] = (),
        attach: Sequence[str] = (),
        limits: str = "",
        reach: Mapping[str, str] | None = None,
        policy: str = 'kind = "UnsafeOpen"',
        more: str = "",
    ) -> Path:
        """Write a worker's configuration; return the file.

        Args:
            name: whose.
            listen: where, if it listens.
            dials: the relay that it dials out to, if it does.
            sessions: who may open sessions.
            deliver: who may deliver into them.
            attach: who may dial in to be reached through it.
            limits: lines of ``[limits]``.
            reach: where other workers are, by name; empty if it need not know.
            policy: lines of ``[policy]``.
            more: further tables.
        """
        file = self.root / name / CONFIGURATION
        text = writing.configuration(
            name,
            f"[policy]\n{policy}\n[limits]\n{limits}\n",
            *(
                writing.table(
                    "[[peer]]", name=other, id=self.id(other), **_said(address=address)
                )
                for other, address in (reach or {}).items()
            ),
            more,
            at=_said(listen=listen, attach=dials),
            sessions=list(sessions),
            deliver=list(deliver),
            attach=list(attach),
        )
        file.write_text(text)
        return file

    def transport(
        self,
        who: str,
        to: str,
        address: str = "",
        *,
        options: Collection[tuple[str, str | int]] = (),
        reconnect_seconds: float = 20.0,
    ) -> GrpcTransport:
        """Return somebody's own way to a worker.

        Args:
            who: whose.
            to: the worker.
            address: where it is reached; by default where it listens.
            options: further options of the channel.
            reconnect_seconds: how long a broken way is mended.
        """
        peer = self.peers(who).find(to)
        credentials, pinned = channel_credentials(self.identities[who], peer)
        return GrpcTransport(
            address or self.address(to),
            credentials,
            (*pinned, *options),
            worker=to,
            address=peer.id,
            reconnect_seconds=reconnect_seconds,
        )


def _said(**values: str) -> dict[str, str]:
    return {key: value for key, value in values.items() if value}
