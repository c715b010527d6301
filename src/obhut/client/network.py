"""Workers at real places, by their addresses.

Rules:

- Who is at an address follows from the key that is proved there. What they say of
  themselves comes over a connection that is pinned to that peer's certificate.
- A worker is called what it was pinned as here, whatever it calls itself.
- Nobody is reached who was not pinned before, by ``obhut join`` or an invite.
- So it is with workers that are attached to one of the addresses: they are reached
  through it by connections that are pinned to their own certificates.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeAlias

import grpc
import msgspec

from obhut.errors import (
    CallError,
    ObhutError,
    PeerNotFoundError,
    RemoteProtocolError,
    TransportError,
    WorkerNotFoundError,
)
from obhut.host.closing import Closing
from obhut.host.waiting import Waiting
from obhut.identity.folders import default_folder
from obhut.identity.identity import Identity
from obhut.identity.peers import Peer, PeerBook
from obhut.transports import Transport
from obhut.transports.grpc.client import LASTING, GrpcTransport, channel
from obhut.transports.grpc.credentials import channel_credentials
from obhut.transports.grpc.description import WorkerDescription, listing
from obhut.transports.grpc.knocking import knock
from obhut.transports.grpc.server import DESCRIBE
from obhut.transports.relay.tunnel import Dialler, Tunnel, TunnelTransport, relayed
from obhut.worker.tensors import empty_frame

from .workers import RemoteWorker

_LOG = logging.getLogger("obhut.client")

ASK_SECONDS = 10.0
"""How long an address may take to say who is there."""

_AT_ONCE = 16
"""How many attached workers are asked at a time."""


Found: TypeAlias = tuple[
    dict[str, "ServedWorker"], dict[str, ObhutError], Collection[str]
]
"""Workers by name; why others could not be reached; the names of all who are pinned."""


class ServedWorker(RemoteWorker):
    """A worker in a process of its own, at this machine or elsewhere.

    Args:
        transport: the way to it.
        described: what it said of itself.
        target: where it is, ``host:port``; or where the relay is.
        where: how that is said.
        blocking: wait after each request.

    Attributes:
        target: likewise.
        network: by which it was found, and is found again.
    """

    def __init__(
        self,
        transport: Transport,
        described: WorkerDescription,
        *,
        target: str,
        where: str,
        blocking: bool | None = None,
    ) -> None:
        super().__init__(transport, described=described.datasets, blocking=blocking)
        self.network: Network | None = None
        self._described = described
        self.target, self._where = target, where

    def __repr__(self) -> str:
        state = "closed" if self.session.closed else self._where
        data = ", ".join(self.datasets) or "no data sets"
        return f"<{type(self).__name__} {self.id} {state}, {data}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        title = (
            f"{self.id} {self._where}, {self._described.sessions} sessions when last "
            "asked"
        )
        return listing(self.datasets.values(), title).html()


class Network(Mapping[str, ServedWorker], Closing):
    """Workers by name. ``with`` closes their sessions at the end.

    Args:
        workers: the workers.
        absent: why workers that are attached somewhere could not be reached, by name.
        pinned: the names of all who are pinned here.
        find: finds them again, but for those that it is given.
    """

    def __init__(
        self,
        workers: Mapping[str, ServedWorker],
        absent: Mapping[str, ObhutError] = {},
        pinned: Collection[str] = (),
        find: Callable[[Mapping[str, ServedWorker]], Found] | None = None,
    ) -> None:
        self._workers = self._own(workers)
        self._absent = dict(absent)
        self._pinned = pinned
        self._find = find

    @property
    def workers(self) -> list[str]:
        """The workers' names."""
        return list(self._workers)

    def reconnect(self) -> Self:
        """Open new sessions with the workers that are not connected any more.

        What is at the other workers stays. ``net["bob"]`` is another object then, and
        tensors at the session that was lost are gone: send them again. Workers that
        could not be reached before are looked for as well. Each is asked whether it
        still has its session; of one that does not, though that had not shown yet, a
        warning of the log ``obhut.client`` says why.

        Returns:
            The network itself.

        Raises:
            ObhutError: as ``connect`` raises it; nothing has changed then.
        """
        if self._find is None:
            raise CallError("expected workers that connect() found")
        there = {n: w for n, w in self._workers.items() if not w.session.closed}
        for name, worker in there.items():
            lost = worker.session.look(ASK_SECONDS)
            if lost is not None:
                why = getattr(lost, "why", lost)
                _LOG.warning("what was at %s is gone, too: %s", name, why)
        kept = {n: w for n, w in there.items() if not w.session.closed}
        workers, absent, pinned = self._find(kept)
        for name, worker in self._workers.items():
            if name not in kept:
                worker.close()
        self._workers = self._own(workers)
        self._absent, self._pinned = absent, pinned
        return self

    def _own(self, workers: Mapping[str, ServedWorker]) -> dict[str, ServedWorker]:
        """Let workers lead to their network."""
        for worker in workers.values():
            worker.network = self
        return dict(workers)

    def __getitem__(self, name: str) -> ServedWorker:
        found = self._workers.get(name)
        if found is not None:
            return found
        if name in self._absent:
            raise self._absent[name]
        raise WorkerNotFoundError(name, self.workers, self._why(name))

    def _why(self, name: str) -> str:
        """Return why a worker that is pinned here was not found."""
        if name not in self._pinned:
            return ""
        return (
            f"{name} is pinned here, but is at none of the addresses, and attached to "
            "none of these workers as far as they tell you: give its own address, or "
            "ask its owner whether it runs, and the aggregator's operator whether you "
            "may reach it there"
        )

    def __contains__(self, name: object) -> bool:
        return name in self._workers

    def __iter__(self) -> Iterator[str]:
        return iter(self._workers)

    def __len__(self) -> int:
        return len(self._workers)

    def __repr__(self) -> str:
        states = [
            f"{name} (lost: net.reconnect())" if worker.session.closed else name
            for name, worker in self._workers.items()
        ]
        return f"<Network of {', '.join(states)}>"

    def close(self) -> None:
        """End the sessions with all workers, whether or not they answer."""
        for worker in self._workers.values():
            with contextlib.suppress(ObhutError):
                worker.close()


def connect(
    *addresses: str, folder: Path | str | None = None, blocking: bool | None = None
) -> Network:
    """Connect to workers at real places.

    Workers that dial out are reached through the aggregator that they are attached
    to: those who are pinned here are found by its address. ``net["bob"]`` says why, if
    bob is attached and yet could not be reached.

    Args:
        addresses: ``host:port`` of each.
        folder: where this user's identity and peers are; by default what
            ``OBHUT_FOLDER`` says, else the current folder if it holds an identity or a
            ``worker.toml``, else ``~/.config/obhut``: as for ``obhut init``.
        blocking: wait after each request; by default what ``OBHUT_BLOCKING`` says.

    Raises:
        IdentityError: if this user has no identity yet.
        TransportError: if nobody answers at an address, or nobody who is pinned.
        AccessDeniedError: if a worker does not know this client.
    """
    if not addresses:
        raise CallError("expected at least one address, host:port")
    home = Path(folder) if folder is not None else default_folder()
    find = functools.partial(_found, addresses, home, blocking)
    return Network(*find({}), find)


def _found(
    addresses: Sequence[str],
    home: Path,
    blocking: bool | None,
    kept: Mapping[str, ServedWorker],
) -> Found:
    """Return who is at addresses, or attached there; who is kept as they are."""
    identity, peers = Identity.load(home), PeerBook.of(home)
    workers: dict[str, ServedWorker] = {}
    attached: dict[str, tuple[str, Peer]] = {}
    for address in addresses:
        with Waiting(f"waiting to hear who is at {address}"):
            peer = knock(address, identity, peers, ASK_SECONDS)
            described = _ask(address, address, identity, peer)
        if peer.name in workers:
            raise CallError(f"{peer.name} is at two of these addresses")
        workers[peer.name] = kept.get(peer.name) or ServedWorker(
            _way(address, identity, peer),
            described,
            target=address,
            where=f"at {address}",
            blocking=blocking,
        )
        for id in described.attached:
            attached.setdefault(id, (address, peer))
    wanted = []
    for one, relay in _pinned(peers, attached):
        if one.name in kept:
            workers.setdefault(one.name, kept[one.name])
        elif one.name not in workers:
            wanted.append((one, relay))
    absent: dict[str, ObhutError] = {}
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="obhut-ask") as pool:
        asked = [
            (peer, pool.submit(_reach, peer, address, relay, identity))
            for peer, (address, relay) in wanted
        ]
    for peer, reached in asked:
        try:
            tunnel, described = reached.result()
        except ObhutError as error:
            absent[peer.name] = error
            continue
        workers[peer.name] = ServedWorker(
            _way(tunnel, identity, peer),
            described,
            target=tunnel.through,
            where=f"through {tunnel.through}",
            blocking=blocking,
        )
    return workers, absent, {peer.name for peer in peers}


def _way(target: str | Tunnel, identity: Identity, peer: Peer) -> GrpcTransport:
    """Return a way to a peer.

    Args:
        target: ``host:port``; or what leads to the worker, which is closed with it.
        identity: who this client is.
        peer: who is there.
    """
    way: Callable[..., GrpcTransport]
    if isinstance(target, Tunnel):
        way = functools.partial(TunnelTransport, target)
    else:
        way = functools.partial(GrpcTransport, target)
    return way(
        *channel_credentials(identity, peer),
        worker=peer.name,
        address=peer.id,
        memory=empty_frame,
    )


def _pinned(
    peers: PeerBook, attached: Mapping[str, tuple[str, Peer]]
) -> Iterable[tuple[Peer, tuple[str, Peer]]]:
    """Yield who of the attached is pinned here, and through whom they are reached."""
    found = []
    for id in attached:
        with contextlib.suppress(PeerNotFoundError):
            peer = peers.find(id)
            if peer.id == id:
                found.append(peer)
    # In the order of their names, and not in the one in which they happened to come.
    for peer in sorted(found, key=lambda one: one.name):
        yield peer, attached[peer.id]


def _reach(
    peer: Peer, address: str, relay: Peer, identity: Identity
) -> tuple[Tunnel, WorkerDescription]:
    """Ask an attached worker who it is, through the relay at an address.

    Raises:
        ObhutError: if it can't be reached, or is somebody else.
    """
    tunnel = Tunnel(Dialler(address, identity, relay, peer.id), address)
    try:
        said = f"{peer.name} through {address}"
        with Waiting(f"waiting for {said}"):
            described = _ask(tunnel.target, said, identity, peer)
    except ObhutError as error:
        tunnel.close()
        if tunnel.trouble is not None:
            raise relayed(tunnel.trouble, peer.name, address)[0] from error
        raise
    return tunnel, described


def _ask(target: str, place: str, identity: Identity, peer: Peer) -> WorkerDescription:
    """Ask a peer who it is, over a connection that only it can have.

    Args:
        target: where, as gRPC takes it.
        place: where, as it is called in texts.
        identity: who asks.
        peer: who is there.

    Raises:
        ObhutError: if it does not answer, or says that it is somebody else.
    """
    credentials, options = channel_credentials(identity, peer)
    with channel(target, credentials, options) as opened:
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes]
        method = opened.unary_unary(DESCRIBE)
        try:
            answer = method(b"", timeout=ASK_SECONDS)
        except grpc.RpcError as error:
            # A failed call is its own exception, which the stubs do not know.
            call: Any = error
            kind = LASTING.get(call.code(), TransportError)
            raise kind(f"{place} does not answer: {call.details()}") from error
    try:
        described = msgspec.json.decode(answer, type=WorkerDescription)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(f"{place} described itself wrongly") from error
    if described.id != peer.id:
        raise RemoteProtocolError(f"{place} says that it is somebody else")
    return described
