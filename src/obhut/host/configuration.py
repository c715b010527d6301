"""A worker's configuration, as its owner wrote it.

Rules:

- What is not known is refused, and so is what contradicts itself.
- Paths are relative to the file that names them.
- Deny is the default: no list of principals admits nobody, and without a
  ``[policy]`` a worker does not start.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct, field

from .declaration import DatasetDeclaration, Name, check_declaration
from .sizes import Size
from .strict_toml import Document, Keys
from .wording import nearest, quote

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
        threads: threads that one session computes with.
    """

    memory: Size = Size(2 * 2**30)
    sessions: Count = 8
    session_seconds: Seconds = 600
    threads: Annotated[int, Meta(ge=1, le=1024)] = 1


class Access(Struct, frozen=True, kw_only=True):
    """Who may do what, by id or by the name of a peer.

    Attributes:
        sessions: who may open a session.
        deliver: who may deliver tensors into a session.
    """

    sessions: tuple[str, ...] = ()
    deliver: tuple[str, ...] = ()


class Peer(Struct, frozen=True, kw_only=True):
    """Somebody known.

    Attributes:
        name: what this worker and its clients call the peer.
        id: the hash of its key.
        address: where it listens; ``None`` if it is reached some other way.
    """

    name: Name
    id: PeerId
    address: Address | None = None


class Policy(Struct, frozen=True, kw_only=True):
    """What may leave. ``UnsafeOpen`` lets everything leave."""

    kind: Literal["UnsafeOpen"]


class WorkerConfiguration(Struct, frozen=True, kw_only=True):
    """All that an owner decides about a worker.

    Attributes:
        id: the worker's name.
        policy: what may leave.
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
    peers: tuple[Peer, ...] = field(default=(), name="peer")
    datasets: tuple[DatasetDeclaration, ...] = field(default=(), name="dataset")


_POLICY_ADVICE = (
    'a worker does not start without one: write kind = "UnsafeOpen" under [policy] '
    "if everything may leave, with data that needs no protection"
)


def load(path: str | Path) -> WorkerConfiguration:
    """Read a configuration and check it.

    Raises:
        ConfigurationError: naming the key, what was expected and what came.
    """
    file = Path(path).absolute()
    advice = {
        "id": 'add id = "…", the worker\'s name',
        "policy": _POLICY_ADVICE,
        "kind of [policy]": _POLICY_ADVICE,
    }
    document = Document.read(file, advice)
    _check_policy(document)
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
    _check_addresses(document, configuration)
    _check_peers(document, configuration)
    _check_access(document, configuration)
    _check_unique(document, "dataset", [one.name for one in configuration.datasets])
    for index, declaration in enumerate(configuration.datasets):
        check_declaration(document, ("dataset", index), declaration)
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


def _check_policy(document: Document) -> None:
    """Say "not built yet" of a policy before anything is said of its keys."""
    policy = document.tables.get("policy")
    kind = policy.get("kind") if isinstance(policy, dict) else None
    if not isinstance(kind, str) or kind == "UnsafeOpen":
        return
    like = nearest(kind, ("UnsafeOpen",))
    raise document.error(
        ("policy", "kind"),
        f"{quote(kind)} is not built yet; the only kind is "
        '"UnsafeOpen", which lets everything leave',
        f"did you mean {quote(like)}?"
        if like
        else "use it only with data that needs no protection",
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
    for key, entries in (("sessions", access.sessions), ("deliver", access.deliver)):
        for index, entry in enumerate(entries):
            if not re.fullmatch(r"[A-Za-z0-9_.-]{1,52}", entry):
                raise document.error(
                    ("access", key),
                    f"expected ids and names of peers, got {quote(entry)}",
                    "list each by itself; there is no pattern that admits everybody",
                )
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
