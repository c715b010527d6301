"""A served worker's policy: whom it means, what it makes of the worker, its ledger.

Rules:

- The ledger is signed with the worker's own key, and lies in its folder.
- An owner has no ledger yet: what its worker lets out is decided at aggregators.
- Whom a policy means is found out without touching the ledger.
- A ledger that took another one's place says so at each start.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from obhut.errors import ConfigurationError, IdentityError, PeerNotFoundError
from obhut.guard.audit import Auditor
from obhut.guard.ledger import Head
from obhut.guard.policy import Policy, Quorum, encode
from obhut.host import ledger, principals
from obhut.host.configuration import WorkerConfiguration
from obhut.host.gate import Gate
from obhut.host.ledger import Ledger
from obhut.host.mark import Signer
from obhut.host.wording import printable
from obhut.identity.identity import Identity
from obhut.identity.peers import Peer, PeerBook

_LOG = logging.getLogger("obhut.worker")


@dataclass(frozen=True, slots=True)
class Guarding:
    """How a worker's policy is applied.

    Duty: close it.

    Attributes:
        policy: with ids in place of names.
        gate: applies it; None if everything may leave.
        ledger: where an aggregator writes decisions down; None elsewhere.
    """

    policy: Policy
    gate: Gate | None
    ledger: Ledger | None

    @property
    def encoded(self) -> bytes:
        """The policy as children get it; empty if everything may leave."""
        return encode(self.policy) if self.gate is not None else b""

    @property
    def aggregates(self) -> bool:
        """Whether the worker is an aggregator."""
        return self.gate is not None and self.gate.aggregates

    @property
    def minimum_rows(self) -> int:
        """How many rows a data set must have to be used."""
        return self.policy.minimum_rows if isinstance(self.policy, Quorum) else 0

    @property
    def recall(self) -> Callable[[int], tuple[Head, str]] | None:
        """What tells owners how far the ledger came; None where there is none."""
        return None if self.ledger is None else self.ledger.recall

    def close(self) -> None:
        """Close the ledger."""
        if self.ledger is not None:
            self.ledger.close()


def guard(
    configuration: WorkerConfiguration,
    identity: Identity,
    peers: PeerBook,
    log: Callable[[str], None],
    begin_anew: str = "",
) -> Guarding:
    """Return how a worker's policy is applied.

    Args:
        configuration: what its owner decided.
        identity: the worker's.
        peers: whom it knows.
        log: takes a line for the operator.
        begin_anew: why another ledger takes the place of the one that is there; empty
            if none does.

    Raises:
        ConfigurationError: if a name in it stands for nobody, or a ledger is to begin
            anew where there is none.
        LedgerError: if the ledger is not what was written.
    """
    policy = resolve(configuration, identity, peers)
    if not isinstance(policy, Quorum) or identity.id not in policy.aggregators:
        if begin_anew:
            raise ConfigurationError(
                str(configuration.folder),
                "[policy]",
                "this worker is no aggregator under a policy, and keeps no ledger",
                "start without --begin-anew",
            )
        gate = Gate(policy, log=log) if isinstance(policy, Quorum) else None
        return Guarding(policy, gate, None)
    auditor = Auditor(identity.id, policy, namer(configuration, identity, peers))
    record = open_ledger(Path(configuration.folder), identity, begin_anew=begin_anew)
    try:
        record.replay(auditor)
    except BaseException:
        record.close()
        raise
    if record.beginning.reason:
        _LOG.warning("%s: %s", configuration.id, begun_anew(record))
    if record.head.number == 0:
        _LOG.warning(
            "%s begins an empty record of releases: what left before, if anything did, "
            "is not counted",
            configuration.id,
        )
    return Guarding(policy, Gate(policy, auditor, record, log=log), record)


def resolve(
    configuration: WorkerConfiguration, identity: Identity, peers: PeerBook
) -> Policy:
    """Return a worker's policy with ids in place of names.

    Raises:
        ConfigurationError: if a name in it stands for nobody, or the policy does not
            fit the worker.
    """

    def find(name: str) -> Peer | None:
        try:
            return peers.find(name)
        except PeerNotFoundError:
            return None

    return principals.resolve(configuration, identity.id, find)


def namer(
    configuration: WorkerConfiguration, identity: Identity, peers: PeerBook
) -> Callable[[str], str]:
    """Return what says how somebody is called here, by their id."""
    known = principals.names(configuration, identity.id)
    names = {id: name for name, id in known.items()}

    def called(id: str) -> str:
        try:
            return names.get(id) or peers.find(id).name
        except PeerNotFoundError:
            return id

    return called


def begun_anew(record: Ledger) -> str:
    """Say of a ledger that took another one's place when and why it did."""
    began = record.beginning
    when = datetime.datetime.fromtimestamp(began.time, datetime.UTC)
    known = "" if began.entries is None else f" of {began.entries:,} entries"
    return (
        f"the record of releases was begun anew at {when:%Y-%m-%d %H:%M} UTC: "
        f"{printable(began.reason)}; what left before, by the one{known} in whose "
        "place it is, is not counted"
    )


def open_ledger(
    folder: Path, identity: Identity, *, reading: bool = False, begin_anew: str = ""
) -> Ledger:
    """Open a worker's ledger, which is made if there never was one. Duty: close it.

    Args:
        folder: the worker's.
        identity: who it is.
        reading: whether it is only looked at; then nothing is made or changed.
        begin_anew: why another takes the place of the one that is there; empty if none
            does.

    Raises:
        LedgerError: if it is not what was written.
        UnsafeFileError: if others could read or change it.
    """
    key = load_pem_private_key(identity.key, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IdentityError(str(folder), "its key is none that obhut makes")
    public, algorithm = key.public_key(), ec.ECDSA(hashes.SHA256())

    def verify(data: bytes, signature: bytes) -> bool:
        try:
            public.verify(signature, data, algorithm)
        except InvalidSignature:
            return False
        return True

    def sign(data: bytes) -> bytes:
        return key.sign(data, algorithm)

    path, signer = folder / ledger.FILE, Signer(identity.id, sign, verify)
    if begin_anew:
        return ledger.begin_anew(path, signer, begin_anew)
    return Ledger(path, signer, reading=reading)
