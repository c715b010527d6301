"""A worker's configuration, as its owner wrote it.

Rules:

- What is not known is refused, and so is what contradicts itself.
- Paths are relative to the file that names them.
- A file that others can change is not read: who writes it decides what leaves.
- Deny is the default: no list of principals admits nobody, and without a
  ``[policy]`` a worker does not start.
- With a policy whose kind is ``Quorum``, its requesters are who may open sessions.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct, field

from obhut.guard.policy import Policy, Quorum

from . import files
from .data.check_declaration import check_declaration
from .data.check_public import check_public
from .data.check_source import check_source
from .data.declaration import DatasetDeclaration, Name
from .data.room import Space
from .sizes import Size
from .strict_toml import Document, Keys
from .wording import quote

Count: TypeAlias = Annotated[int, Meta(ge=1, le=100_000)]

Seconds: TypeAlias = Annotated[int, Meta(ge=1, le=31_536_000)]


class PeerId(str):
    """The hash of a peer's public key: 52 characters in base 32."""

    __slots__ = ()


class Address(str):
    """``host:port``, or ``[host]:port`` where the host has colons."""

    __slots__ = ()


class Device(str):
    """Where operators run: ``cpu``, ``cuda`` or ``cuda:1``."""

    __slots__ = ()


class Limits(Struct, frozen=True, kw_only=True):
    """What requesters may use.

    Attributes:
        memory: bytes that one session may hold.
        sessions: sessions that one requester may have open.
        session_seconds: seconds that a session outlives its connection.
        batch_seconds: seconds that one message may take to compute.
        threads: threads that one session computes with.
        requester_memory: bytes that all sessions of one requester may hold together.
        requester_seconds: processor time of one requester in 24 hours, in seconds.
        requester_state: bytes on disk that one requester's stored values may take.
        requester_crashes: sessions of one requester that may crash in an hour.
        all_sessions: sessions that all requesters together may have open.
        all_memory: bytes that all sessions together may hold.
        spool: the folder where large tensors that come wait on disk; None for memory.
    """

    memory: Size = Size(2 * 2**30)
    sessions: Count = 8
    session_seconds: Seconds = 600
    batch_seconds: Seconds = 3_600
    threads: Annotated[int, Meta(ge=1, le=1024)] = 1
    requester_memory: Size | None = None
    requester_seconds: Annotated[int, Meta(ge=1, le=2**40)] = 86_400
    requester_state: Size = Size(2**30)
    requester_crashes: Annotated[int, Meta(ge=0, le=100_000)] = 10
    all_sessions: Count = 64
    all_memory: Size | None = None
    spool: Path | None = None


class Access(Struct, frozen=True, kw_only=True):
    """Who may do what, by id or by the name of a peer.

    Attributes:
        sessions: who may open a session.
        deliver: who may deliver tensors into a session.
        attach: which workers may attach, to be reached through this one.
    """

    sessions: tuple[str, ...] = ()
    deliver: tuple[str, ...] = ()
    attach: tuple[str, ...] = ()


class PeerTable(Struct, frozen=True, kw_only=True):
    """Somebody known.

    Attributes:
        name: what this worker and its clients call the peer.
        id: the hash of its key.
        address: where it listens; ``None`` if it is reached through a relay.
    """

    name: Name
    id: PeerId
    address: Address | None = None


class WorkerConfiguration(Struct, frozen=True, kw_only=True):
    """All that an owner decides about a worker.

    Attributes:
        id: the worker's name.
        policy: what may leave, with principals by name or id; see ``principals``.
        listen: where it listens; port 0 takes a free one.
        attach: the aggregator that it dials, and is reached through.
        folder: where identity, peers and ledger live.
        sandbox: whether sessions run walled off from the network.
        device: where operators run.
        limits: what requesters may use.
        access: who may do what.
        peers: who is known, and where they listen.
        datasets: the data sets.
    """

    id: Name
    policy: Policy
    listen: Address | None = None
    attach: Address | None = None
    folder: Path = Path()
    sandbox: Literal["auto", "none"] = "auto"
    device: Device = Device("cpu")
    limits: Limits = Limits()
    access: Access = Access()
    peers: tuple[PeerTable, ...] = field(default=(), name="peer")
    datasets: tuple[DatasetDeclaration, ...] = field(default=(), name="dataset")

    @property
    def space(self) -> Space:
        """What memory a data set may take, and where the rest goes."""
        return Space(int(self.limits.memory), Path(self.folder))


_POLICY_ADVICE = (
    'a worker does not start without one: write kind = "Quorum" under [policy], with '
    'aggregators, contributors and requesters; kind = "UnsafeOpen" lets everything '
    "leave, and is for data that needs no protection"
)


def load(path: str | Path) -> WorkerConfiguration:
    """Read a configuration and check it.

    Raises:
        ConfigurationError: naming the key, what was expected and what came.
        UnsafeFileError: if others could have written it.
    """
    file = Path(path).absolute()
    with contextlib.suppress(FileNotFoundError):  # which is told below
        files.check(file)
    advice = {
        "id": 'add id = "…", the worker\'s name',
        "policy": _POLICY_ADVICE,
        "kind of [policy]": _POLICY_ADVICE,
    }
    document = Document.read(file, advice)
    parsers: Mapping[type, Callable[[object], object]] = {
        Address: _address,
        Device: _device,
        Name: _name,
        Path: lambda value: file.parent / _text(value),
        PeerId: _peer_id,
        Size: Size.parse,
    }
    if "folder" not in document.tables:
        document.tables["folder"] = "."
    configuration = document.convert(
        WorkerConfiguration, lambda kind, value: parsers[kind](value)
    )
    _check_limits(document, configuration.limits)
    _check_addresses(document, configuration)
    _check_peers(document, configuration)
    _check_access(document, configuration)
    configuration = _check_policy(document, configuration)
    _check_unique(document, "dataset", [one.name for one in configuration.datasets])
    ids = {str(peer.name): str(peer.id) for peer in configuration.peers}
    may_open = {ids.get(one, one) for one in configuration.access.sessions}
    for index, declaration in enumerate(configuration.datasets):
        check = document.check_in("dataset", index)
        check_declaration(declaration, check)
        check_public(declaration, check)
        check_source(declaration, check)
        keys = ("dataset", index, "requesters")
        for entry in declaration.requesters or ():
            if ids.get(entry, entry) not in may_open:
                raise document.error(
                    keys,
                    f"{quote(entry)} is not among those who may open sessions",
                    "add it to sessions of [access], or to the requesters of [policy] "
                    "that it follows; or leave it out here",
                )
    return configuration


# --- values that TOML has no type for ---------------------------------------------


def _text(value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("expected text in quotes, and not empty")
    return value


def _name(value: object) -> Name:
    text = _text(value)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,50}", text):
        # 51 characters at most: one longer could pass for an id.
        raise ValueError(
            "expected a name of at most 51 letters, digits, '-', '_' and '.'"
        )
    return Name(text)


def _peer_id(value: object) -> PeerId:
    text = _text(value)
    if not re.fullmatch(r"[a-z2-7]{52}", text):
        raise ValueError("expected an id of 52 letters and digits, as obhut init shows")
    return PeerId(text)


def _address(value: object) -> Address:
    text = _text(value)
    match = re.fullmatch(r"(?:[^\s:\[\]/]+|\[[0-9A-Fa-f:.%]+\]):([0-9]{1,5})", text)
    if match is None or int(match[1]) > 65_535:
        raise ValueError('expected "host:port", such as "0.0.0.0:7000"')
    return Address(text)


def _device(value: object) -> Device:
    text = _text(value)
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", text):
        raise ValueError('expected "cpu", "cuda" or "cuda:0"')
    return Device(text)


# --- what must fit together -------------------------------------------------------


def _check_policy(
    document: Document, configuration: WorkerConfiguration
) -> WorkerConfiguration:
    """Refuse a policy that the rest contradicts; let its requesters open sessions."""
    policy = configuration.policy
    if not isinstance(policy, Quorum):
        return configuration
    for key in ("aggregators", "contributors", "requesters"):
        for entry in getattr(policy, key):
            _check_principal(document, ("policy", key), entry)
    if configuration.id in policy.aggregators and configuration.datasets:
        raise document.error(
            ("policy", "aggregators"),
            f"{quote(configuration.id)} is an aggregator by it, and has data sets",
            "an aggregator holds no data of its own: let another worker serve them",
        )
    access = document.tables.get("access")
    if not isinstance(access, dict) or "sessions" not in access:
        named = msgspec.structs.replace(
            configuration.access, sessions=policy.requesters
        )
        return msgspec.structs.replace(configuration, access=named)
    ids = {str(peer.name): str(peer.id) for peer in configuration.peers}
    asking = {ids.get(one, one) for one in policy.requesters}
    for entry in configuration.access.sessions:
        if ids.get(entry, entry) not in asking:
            raise document.error(
                ("access", "sessions"),
                f"{quote(entry)} is not among the requesters of [policy]",
                "add it there, or leave sessions out: it follows requesters then",
            )
    return configuration


def _check_principal(document: Document, keys: Keys, entry: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,52}", entry):
        raise document.error(
            keys,
            f"expected ids and names of peers, got {quote(entry)}",
            "list each by itself; there is no pattern that admits everybody",
        )


def _check_addresses(document: Document, configuration: WorkerConfiguration) -> None:
    if configuration.listen is None and configuration.attach is None:
        raise document.error(
            ("listen",),
            "is missing, and so is attach: nobody could reach the worker",
            'add listen = "0.0.0.0:7000", or attach = "host:port" with the '
            "aggregator's address",
        )
    targets: list[tuple[Keys, Address | None]] = [(("attach",), configuration.attach)]
    for index, peer in enumerate(configuration.peers):
        targets.append((("peer", index, "address"), peer.address))
    for keys, address in targets:
        if address is not None and address.endswith(":0"):
            raise document.error(
                keys,
                f"expected the port that it listens at, got {quote(address)}",
                "port 0 is for listen only",
            )
    attach = configuration.attach
    if attach is not None and attach not in {p.address for p in configuration.peers}:
        raise document.error(
            ("attach",),
            f"no [[peer]] has the address {quote(attach)}, so that nobody knows whose "
            "key to expect there",
            "add a [[peer]] with the aggregator's name, id and that address",
        )


def _check_limits(document: Document, limits: Limits) -> None:
    """Refuse a limit for all below that for a part of them, and no place to spool."""
    spool = limits.spool
    if spool is not None and not (spool.is_dir() and os.access(spool, os.W_OK)):
        raise document.error(
            ("limits", "spool"),
            f"{quote(str(spool))} is no folder that this user can write to",
            "make it, on a disk, or leave spool out: tensors wait in memory then",
        )
    pairs: list[tuple[str, int | None, str, int | None]] = [
        ("requester_memory", limits.requester_memory, "memory", limits.memory),
        ("all_memory", limits.all_memory, "memory", limits.memory),
        (
            "all_memory",
            limits.all_memory,
            "requester_memory",
            limits.requester_memory,
        ),
        ("all_sessions", limits.all_sessions, "sessions", limits.sessions),
    ]
    for whole, value, part, least in pairs:
        if value is not None and least is not None and value < least:
            raise document.error(
                ("limits", whole),
                f"expected at least as much as {part}, which is {least}, got {value}",
                "write a larger limit, or make the other smaller",
            )


def _check_peers(document: Document, configuration: WorkerConfiguration) -> None:
    names = [peer.name for peer in configuration.peers]
    _check_unique(document, "peer", names)
    ids = [peer.id for peer in configuration.peers]
    _check_unique(document, "peer", ids, "id")
    if configuration.id in names:
        raise document.error(
            ("peer", names.index(configuration.id), "name"),
            f"{quote(configuration.id)} is this worker's own id",
            "give the peer another name",
        )


def _check_access(document: Document, configuration: WorkerConfiguration) -> None:
    access = configuration.access
    for key, entries in (
        ("sessions", access.sessions),
        ("deliver", access.deliver),
        ("attach", access.attach),
    ):
        for index, entry in enumerate(entries):
            _check_principal(document, ("access", key), entry)
            if entry in entries[:index]:
                raise document.error(
                    ("access", key), f"{quote(entry)} is listed twice", "remove one"
                )


def _check_unique(
    document: Document,
    table: str,
    values: list[str] | list[Name] | list[PeerId],
    key: str = "name",
) -> None:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise document.error(
                (table, index, key),
                f"{quote(value)} is the {key} of two [[{table}]]",
                f"give each {key} once",
            )
