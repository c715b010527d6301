"""A worker's parent process, put together from its configuration.

Rules:

- Nothing is served before all of it is there: identity, peers, data, a child that
  was walled in as the configuration asks.
- It loads no torch.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import grpc
import msgspec

from obhut.errors import ObhutError, PeerNotFoundError
from obhut.host.configuration import Limits, WorkerConfiguration
from obhut.host.data import datasets as host_datasets
from obhut.host.data.datasets import Dataset
from obhut.host.quotas import Quotas
from obhut.host.state_files import FOLDER, StatesOnDisk
from obhut.host.states import States
from obhut.host.waiting import Waiting
from obhut.host.wording import printable
from obhut.identity.identity import Identity
from obhut.identity.peers import Peer, PeerBook
from obhut.transports.grpc import allocator
from obhut.transports.grpc.checking import (
    check_device,
    check_folders,
    check_heads,
    check_peers,
    check_reload,
    not_reloaded,
)
from obhut.transports.grpc.client import GrpcTransport
from obhut.transports.grpc.credentials import (
    caller,
    channel_credentials,
    principal,
    server_credentials,
)
from obhut.transports.grpc.description import WorkerDescription, describe
from obhut.transports.grpc.guarding import guard, resolve
from obhut.transports.grpc.node import Node
from obhut.transports.grpc.node import Ways as Carrying
from obhut.transports.grpc.remembering import Remembering
from obhut.transports.grpc.server import Server
from obhut.transports.grpc.sessions import Starting
from obhut.transports.grpc.streams import EACH
from obhut.transports.grpc.ways import Ways
from obhut.transports.pipe.control import Settings
from obhut.transports.pipe.loading import loading
from obhut.transports.pipe.parent import Child
from obhut.transports.readings import Reading
from obhut.transports.relay.attachment import Attachment
from obhut.transports.relay.messages import Carried
from obhut.transports.relay.relay import CONNECTIONS, Relay
from obhut.transports.relay.splice import Source
from obhut.transports.relay.tunnel import (
    Dialler,
    Tunnel,
    TunnelTransport,
    private_folder,
)

_LOG = logging.getLogger("obhut.worker")

EXPIRY_SECONDS = 5.0
"""How often sessions are looked at that nobody uses."""


class Served:
    """A worker that serves.

    Duty: close it.

    Args:
        configuration: what its owner decided.
        clock: tells the time in seconds, and does not go back.
        file: what the log calls the configuration.
        begin_anew: why an aggregator begins another ledger in the place of the one
            that is there; empty if it does not.

    Raises:
        ObhutError: if it can not serve as it is configured.
    """

    def __init__(
        self,
        configuration: WorkerConfiguration,
        clock: Callable[[], float] = time.monotonic,
        *,
        file: str = "its configuration",
        begin_anew: str = "",
    ) -> None:
        check_device(configuration)
        check_folders(configuration)
        self.configuration = configuration
        self._identity = Identity.load(Path(configuration.folder))
        self.id = self._identity.id
        self._peers = PeerBook.of(Path(configuration.folder))
        check_peers(configuration, self._peers)
        self._guarding = guard(
            configuration, self._identity, self._peers, _log, begin_anew
        )
        limits = configuration.limits
        self._settings = Settings(
            str(configuration.id),
            memory=int(limits.memory),
            threads=limits.threads,
            seconds=float(limits.batch_seconds),
            sandbox=configuration.sandbox,
            policy=self._guarding.encoded,
            aggregates=self._guarding.aggregates,
            spool="" if limits.spool is None else str(limits.spool),
        )
        self._reading = Reading(
            self._load(configuration, {}), self._settings, self._lost
        )
        self._former: list[Reading] = []
        self._turning = threading.Lock()  # from one reading to the next
        self._ways = Ways(self._way, self._knows)
        self._ended = threading.Event()
        self._attachment: Attachment | None = None
        self._folder = private_folder() if configuration.attach is not None else None
        """Where the socket is at which it takes what comes through a relay."""
        try:
            with Waiting("starting the process that computes, which loads PyTorch"):
                self.walls = self._reading.ready()
            self.node = Node(
                str(configuration.id),
                self.id,
                self._starting,
                self._remembered(),
                may_open=self._admits("sessions"),
                may_deliver=self._admits("deliver"),
                quotas=_quotas(limits),
                session_seconds=float(limits.session_seconds),
                clock=clock,
                log=_log,
                gate=self._guarding.gate,
                recall=self._guarding.recall,
                states=self._states(),
                called=self._called,
                file=file,
            )
            may_attach = self._admits("attach")
            self.relay = Relay(
                self._knows,
                self._called,
                may_attach=may_attach,
                file=file,
                may_connect=lambda one: (
                    one == self.id or self.node.knows(one) or may_attach(one)
                ),
                log=_log,
            )
            access = configuration.access
            relayed = 2 * CONNECTIONS if access.attach else 0
            self.server = Server(
                self.node,
                None if configuration.listen is None else str(configuration.listen),
                server_credentials(self._identity, self._peers),
                self._caller,
                self._describe,
                socket=self._folder and self._folder / "s",
                more=self.relay.methods(self._principal),
                frame_bytes=int(limits.memory),
                requester_bytes=int(
                    limits.requester_memory or limits.memory * limits.sessions
                ),
                waiting_seconds=float(limits.session_seconds),
                clock=clock,
                # So that nobody who is named can take the place of the others.
                streams=max(256, EACH * len({*access.sessions, *access.deliver})),
                threads=relayed + 2 * len(access.attach),
            )
        except BaseException:
            self._guarding.close()
            self._reading.close()
            self._remove_folder()
            raise
        self._watch = threading.Thread(target=self._expire, daemon=True)

    @property
    def address(self) -> str:
        """Where it listens, as ``host:port``; nothing, if it only dials out."""
        return self.server.address

    def start(self, attached: Callable[[], None] = lambda: None) -> None:
        """Begin to serve, and to attach if it dials out.

        Args:
            attached: called each time that it is attached, by a thread of its own.
        """
        if self._guarding.gate is None:
            _LOG.warning(
                "policy UnsafeOpen: whoever may open a session can fetch every row"
            )
        self.server.start()
        self._watch.start()
        _LOG.info(
            "%s serves at %s, id %s, walls: %s",
            self.configuration.id,
            self.address or "no port of its own",
            self.id,
            ", ".join(sorted(self.walls)) or "none",
        )
        if self.configuration.attach is not None and self._folder is not None:
            self._attachment = Attachment(
                str(self.configuration.attach),
                self._identity,
                self._relaying,
                self._folder / "s",
                attached=attached,
                log=_log,
            )
            self._attachment.start()

    def close(self, grace: float = 10.0) -> None:
        """Take no more, finish what was accepted for ``grace`` seconds, and end.

        What it relays for others is cut at once: they mend it when there is a relay.
        """
        self._ended.set()
        self.relay.close()
        self.server.stop(grace)
        self.node.finish(grace)
        if self._attachment is not None:
            self._attachment.close()
        self._remove_folder()
        self._ways.close()
        for reading in (self._reading, *self._former):
            reading.close()
        self._guarding.close()

    def _expire(self) -> None:
        looks: tuple[Callable[[], object], ...] = (
            self.node.expire,
            self.server.expire,
            self.relay.expire,
            self._forget_readings,
            allocator.trim,
        )
        while not self._ended.wait(EXPIRY_SECONDS):
            for look in looks:
                try:
                    look()
                except Exception:
                    # The others and the next time are no worse for it.
                    _LOG.exception("what stands still was not looked at")

    def _caller(self, context: grpc.ServicerContext) -> Callable[[], str]:
        who = caller(context, self._peers)
        return lambda: who().id

    def _principal(self, context: grpc.ServicerContext) -> str:
        return principal(context, self._peers).id

    def _remembered(self) -> Carrying:
        """Return the ways of sessions: an owner's ask aggregators first."""
        gate = self._guarding.gate
        if gate is None or gate.aggregates:
            return self._ways
        heads = check_heads(Path(self.configuration.folder), gate.policy)
        return Remembering(self._ways, heads, self._called, _log)

    def _states(self) -> States | None:
        """Return what is stored beyond sessions: nothing, at an aggregator."""
        if self._guarding.aggregates:
            return None
        return StatesOnDisk(
            Path(self.configuration.folder) / FOLDER,
            int(self.configuration.limits.requester_state),
            guarded=self._guarding.gate is not None,
        )

    def _knows(self, id: str) -> bool:
        """Tell whether an id is this worker's, or a peer's that is pinned still."""
        if id == self.id:
            return True
        try:
            return self._peers.find(id).id == id
        except (ObhutError, OSError):
            return False  # what can't be found out is refused

    def _called(self, id: str) -> str:
        """Return what a principal is called here."""
        if id == self.id:
            return str(self.configuration.id)
        try:
            return self._peers.find(id).name
        except (ObhutError, OSError):
            peers = self.configuration.peers
            return next((str(one.name) for one in peers if one.id == id), id)

    def _relaying(self) -> Peer:
        """Return the peer that it attaches to; the configuration names one.

        Raises:
            PeerNotFoundError: if it is not pinned.
        """
        attach = self.configuration.attach
        ids = [str(p.id) for p in self.configuration.peers if p.address == attach]
        return self._peers.find(ids[0])

    def _remove_folder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def reload(self, configuration: WorkerConfiguration) -> None:
        """Take over who may do what, who the peers are, and the data as it is now.

        Sessions that are open keep the data that they have. Those of whoever may not
        open one any more are ended, or may not use a data set any more that it has.

        Args:
            configuration: what its owner decided meanwhile.

        Raises:
            ConfigurationError: if anything else differs, what policies mean among it:
                sessions rely on that. Nothing is taken over then.
            DatasetError, UnsafeFileError: if a data set can not be loaded; likewise.
            SandboxError, TransportError: if no process starts that has it; likewise.
        """
        check_reload(self.configuration, configuration)
        check_peers(configuration, self._peers)
        if resolve(configuration, self._identity, self._peers) != self._guarding.policy:
            raise not_reloaded(configuration, "whom [policy] means")
        before, last = self.configuration, self._reading
        datasets = self._load(configuration, last.datasets)
        changed = [one for one in datasets.values() if last.changed(one)]
        gone = last.datasets.keys() - datasets.keys()
        reading = last
        if changed or gone:
            reading = Reading(datasets, self._settings, self._lost)
            try:
                reading.ready()
            except BaseException:
                reading.close()
                raise
        readings = [*self._former, last]
        with self._turning:
            self.configuration, self._reading = configuration, reading
            if reading is not last:
                self._former.append(last)

        def withdrawn(owner: str) -> bool:
            return any(
                self._may(owner, one, before) and not self._may(owner, now)
                for former in readings
                for name, one in former.datasets.items()
                if (now := datasets.get(name)) is not None
            )

        self.node.end_not_admitted(withdrawn)
        for one in changed:
            _LOG.info("data set %s was read anew: %s rows", one.name, f"{one.rows:,}")
        for name in sorted(gone):
            _LOG.info("data set %s is served no more", name)

    def _load(
        self, configuration: WorkerConfiguration, before: Mapping[str, Dataset]
    ) -> Mapping[str, Dataset]:
        return host_datasets.load(
            configuration.datasets,
            self._guarding.minimum_rows,
            guarded=self._guarding.gate is not None,
            space=configuration.space,
            run=loading(configuration),
            before=before,
        )

    def _lost(self, child: Child) -> None:
        self.node.lost(child.session, child)

    def _starting(self, sender: str) -> Starting:
        """Return what starts a session of a principal, on the data as it is now."""
        with self._turning:
            datasets = self._reading.datasets.items()
            names = [name for name, one in datasets if self._may(sender, one)]
            return self._reading.starting(names)

    def _forget_readings(self) -> None:
        """Let go of data that was read before, where no session has it any more."""
        for reading in [one for one in self._former if not one.in_use]:
            self._former.remove(reading)
            reading.close()

    def _may(
        self,
        sender: str,
        dataset: Dataset,
        configuration: WorkerConfiguration | None = None,
    ) -> bool:
        """Tell whether somebody who may open sessions may use a data set."""
        named = dataset.requesters
        return named is None or self._names(named, sender, configuration)

    def _admits(self, key: str) -> Callable[[str], bool]:
        """Return whether a list of ``[access]`` names a principal, by id or by name."""
        return lambda sender: self._names(
            getattr(self.configuration.access, key), sender
        )

    def _names(
        self,
        named: tuple[str, ...],
        sender: str,
        configuration: WorkerConfiguration | None = None,
    ) -> bool:
        """Tell whether a list names a principal, by id or by name."""
        peers = (configuration or self.configuration).peers
        ids = {str(peer.name): str(peer.id) for peer in peers}
        if any(ids.get(name) == sender for name in named):
            return True
        try:
            called = self._peers.find(sender).name
        except PeerNotFoundError:
            return False
        return called in named or sender in named

    def _way(self, to: str) -> GrpcTransport | None:
        """Return a new way to another worker; None if it is not a known peer's.

        Raises:
            PeerNotFoundError: if it is not pinned.
        """
        configuration = self.configuration
        named = (to, self._called(to))  # the latter is the same for a former key
        peers = (p for p in configuration.peers if p.id in named or p.name in named)
        peer = next(peers, None)
        relayed = configuration.attach is not None or configuration.access.attach
        if peer is None or (peer.address is None and not relayed):
            return None
        pinned = self._peers.find(to)
        credentials, options = channel_credentials(self._identity, pinned)
        name, words = str(peer.name), 0  # bytes: a delivery is answered in words
        if peer.address is None:
            return TunnelTransport(
                self._tunnel(to),
                credentials,
                options,
                worker=name,
                address=to,
                reply_bytes=words,
            )
        return GrpcTransport(
            str(peer.address),
            credentials,
            options,
            worker=name,
            address=to,
            reply_bytes=words,
        )

    def _tunnel(self, to: str) -> Tunnel:
        """Return an address that leads to a worker which has none of its own.

        Raises:
            PeerNotFoundError: if the relay is not pinned.
        """
        attach = self.configuration.attach
        if attach is not None:
            dialler = Dialler(str(attach), self._identity, self._relaying(), to)
            return Tunnel(dialler, str(attach))

        def dial(source: Source) -> Carried:
            return self.relay.connect(self.id, to, source, source.end)

        return Tunnel(dial, "this worker's own relay")

    def _describe(self, sender: str) -> bytes:
        with self._turning:
            datasets, configuration = self._reading.datasets, self.configuration
        described = tuple(
            describe(one) for one in datasets.values() if self._may(sender, one)
        )
        return msgspec.json.encode(
            WorkerDescription(
                str(configuration.id),
                self.id,
                self.node.busy(),
                described if self.node.admits(sender) else (),
                self.relay.attached(sender),
            )
        )


def _log(line: str) -> None:
    """Write a line into the log; part of it may be a peer's words."""
    _LOG.info("%s", printable(line), stacklevel=2)  # where it is written is its kind


def _quotas(limits: Limits) -> Quotas:
    """Return what one requester may use, as the configuration says."""
    return Quotas(
        limits.sessions,
        limits.all_sessions,
        int(limits.memory),
        None if limits.requester_memory is None else int(limits.requester_memory),
        None if limits.all_memory is None else int(limits.all_memory),
        float(limits.requester_seconds),
        limits.requester_crashes,
    )
