"""A worker's parent process, put together from its configuration.

Rules:

- Nothing is served before all of it is there: identity, peers, data, a child that
  was walled in as the configuration asks.
- It loads no torch.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import grpc
import msgspec

from obhut.errors import ConfigurationError, PeerNotFoundError
from obhut.host import datasets as host_datasets
from obhut.host.configuration import WorkerConfiguration
from obhut.host.datasets import Dataset
from obhut.transports.pipe.children import Children
from obhut.transports.pipe.control import Settings, SharedArray

from .client import GrpcTransport
from .credentials import channel_credentials, principal, server_credentials
from .description import DatasetDescription, WorkerDescription
from .identity import Identity
from .node import Node
from .peers import PeerBook
from .server import Server

_LOG = logging.getLogger("obhut.worker")

EXPIRY_SECONDS = 5.0
"""How often sessions are looked at that nobody uses."""


class Served:
    """A worker that serves.

    Duty: close it.

    Args:
        configuration: what its owner decided.

    Raises:
        ObhutError: if it can not serve as it is configured.
    """

    def __init__(self, configuration: WorkerConfiguration) -> None:
        if str(configuration.device) != "cpu":
            raise ConfigurationError(
                str(configuration.folder),
                "device",
                f"{configuration.device} is not served yet",
                'write device = "cpu"',
            )
        self.configuration = configuration
        self._identity = Identity.load(Path(configuration.folder))
        self.id = self._identity.id
        self._peers = PeerBook(Path(configuration.folder) / "peers")
        self._check_peers()
        self._datasets = host_datasets.load(configuration.datasets)
        limits = configuration.limits
        self._children = Children(
            Settings(
                str(configuration.id),
                memory=int(limits.memory),
                threads=limits.threads,
                sandbox=configuration.sandbox,
                datasets=_shared(self._datasets),
            )
        )
        self._ways: dict[str, GrpcTransport] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        try:
            self.walls = self._children.ready()
            self.node = Node(
                str(configuration.id),
                self.id,
                self._children.start,
                self._way,
                may_open=self._admits(configuration.access.sessions),
                may_deliver=self._admits(configuration.access.deliver),
                sessions_each=limits.sessions,
                session_seconds=float(limits.session_seconds),
                log=_LOG.info,
            )
            self.server = Server(
                self.node,
                str(configuration.listen or "127.0.0.1:0"),
                server_credentials(self._identity, self._peers),
                self._principal,
                self._describe,
                frame_bytes=int(limits.memory),
            )
        except BaseException:
            self._children.close()
            raise
        self._watch = threading.Thread(target=self._expire, daemon=True)

    @property
    def address(self) -> str:
        """Where it listens, as ``host:port``."""
        return self.server.address

    def start(self) -> None:
        """Begin to serve."""
        if self.configuration.policy.kind == "UnsafeOpen":
            _LOG.warning(
                "policy UnsafeOpen: whoever may open a session can fetch every row"
            )
        self.server.start()
        self._watch.start()
        _LOG.info(
            "%s serves at %s, id %s, walls: %s",
            self.configuration.id,
            self.address,
            self.id,
            ", ".join(sorted(self.walls)) or "none",
        )

    def close(self, grace: float = 10.0) -> None:
        """Take no more, finish what was accepted for ``grace`` seconds, and end."""
        self._ended.set()
        self.server.stop(grace)
        for way in list(self._ways.values()):
            way.close()
        self._children.close()

    def _expire(self) -> None:
        while not self._ended.wait(EXPIRY_SECONDS):
            self.node.expire()

    def _principal(self, context: grpc.ServicerContext) -> str:
        return principal(context, self._peers).id

    def _admits(self, named: tuple[str, ...]) -> Callable[[str], bool]:
        """Return whether a principal is among those named by id or by name."""
        ids = {str(peer.name): str(peer.id) for peer in self.configuration.peers}

        def admitted(sender: str) -> bool:
            for name in named:
                try:
                    if ids.get(name) == sender or self._peers.find(name).id == sender:
                        return True
                except PeerNotFoundError:
                    continue
            return False

        return admitted

    def _check_peers(self) -> None:
        """Refuse to start where a name would stand for two keys.

        Raises:
            ConfigurationError: naming the peer.
        """
        for peer in self.configuration.peers:
            try:
                pinned = self._peers.find(str(peer.name))
            except PeerNotFoundError:
                continue
            if pinned.id != str(peer.id):
                raise ConfigurationError(
                    str(self.configuration.folder),
                    f"id of [[peer]] {peer.name}",
                    f"another key is pinned under that name: {pinned.id}",
                    "write that id, or remove the pinned peer: obhut keys remove",
                )

    def _way(self, to: str) -> GrpcTransport | None:
        """Return the way to another worker, one for all deliveries."""
        peer = next((p for p in self.configuration.peers if str(p.id) == to), None)
        if peer is None or peer.address is None:
            return None
        with self._lock:
            known = self._ways.get(to)
            try:
                pinned = self._peers.find(to)
            except PeerNotFoundError:
                if known is not None:
                    self._ways.pop(to).close()
                raise
            if known is not None and known.given_up:
                self._ways.pop(to).close()
                known = None
            if known is None:
                credentials, options = channel_credentials(self._identity, pinned)
                known = self._ways[to] = GrpcTransport(
                    str(peer.address),
                    credentials,
                    options,
                    worker=str(peer.name),
                    address=to,
                    reply_bytes=0,  # a delivery is answered in words
                )
            return known

    def _describe(self, sender: str) -> bytes:
        described = tuple(_described(one) for one in self._datasets.values())
        configuration = self.configuration
        return msgspec.json.encode(
            WorkerDescription(
                str(configuration.id),
                self.id,
                self.node.busy(),
                described if self.node.admits(sender) else (),
            )
        )


def _described(dataset: Dataset) -> DatasetDescription:
    public = dataset.public
    return DatasetDescription(
        str(dataset.name),
        dataset.tags,
        dataset.description,
        tuple(sorted(dataset.tensors)),
        {name: tuple(columns) for name, columns in (public.names or {}).items()},
        dict(public.dtypes or {}),
        public.rows,
        public.rounded,
    )


def _shared(datasets: Mapping[str, Dataset]) -> tuple[SharedArray, ...]:
    """Return how children find the arrays that this process holds."""
    return tuple(
        SharedArray(str(dataset.name), str(part), array.dtype, array.shape, array.fd)
        for dataset in datasets.values()
        for part, array in dataset.tensors.items()
    )
