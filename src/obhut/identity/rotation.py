"""A node's change to a new key, which its old key vouches for.

::

    the node                                    each peer
    rotate: makes the new key beside the old
    ── a hand-over, by mail or any other way ──▶ accept: pins the new key under
                                                 the same name, and the old one
                                                 until a day
    rotate --finish: uses the new key
                                                 that day: the old key is forgotten

Rules:

- A hand-over is signed by both keys, over both: the old one says who follows, the new
  one that its holder is there and asks for it.
- It holds only where the old key is pinned, and is nobody's former key: who was
  removed does not come back by it, and a key that was handed over is worth nothing.
- An aggregator keeps its key: its ledger is the old key's, and the owners' policies
  name it by that. With a new one it would begin with nothing on record.
- An owner behind a policy becomes, to the auditor, somebody else, who shares all that
  the former one was in: whatever includes both is refused. So it has to be agreed to.
- It is no secret. Who has the old key can make another: where that was stolen, remove
  the peer and invite it anew.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate

from obhut.errors import (
    CertificateError,
    HandoverError,
    IdentityError,
    RotationError,
)
from obhut.guard.policy import Quorum
from obhut.host import configuration as configurations
from obhut.host import files, ledger, mark, principals

from . import certificates
from .identity import Identity
from .peers import Peer, PeerBook

DAYS_AT_MOST = 90
"""Days for which a former key may still be pinned."""

CONFIGURATION = "worker.toml"
"""The configuration in a node's folder, if the node is a worker."""

_NEXT = "next"
_LARGEST = 32 * 1024
_DAY = 86_400


class Handover(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a node gives its peers; see ``Handover.make``.

    Attributes:
        old: the certificate of the key that peers know, in PEM.
        new: that of the key that follows.
        until: when the old key stops to hold, in seconds since 1970, UTC.
        by_old: the old key's signature.
        by_new: the new key's.
    """

    old: str
    new: str
    until: int
    by_old: bytes
    by_new: bytes

    @classmethod
    def make(cls, old: Identity, new: Identity, until: int) -> Handover:
        """Let one identity follow another."""
        said = _said(old.certificate, new.certificate, until)
        return cls(
            old.certificate.decode("ascii"),
            new.certificate.decode("ascii"),
            until,
            _sign(old, b"old" + said),
            _sign(new, b"new" + said),
        )

    @classmethod
    def parse(cls, text: bytes) -> Handover:
        """Read what ``encode`` wrote.

        Raises:
            HandoverError: if it is none, or either key did not sign it.
        """
        if len(text) > _LARGEST:
            raise HandoverError(f"it is larger than {_LARGEST:,} bytes")
        try:
            found = msgspec.json.decode(text, type=cls)
            old = certificates.checked(found.old.encode("ascii", "replace"))
            new = certificates.checked(found.new.encode("ascii", "replace"))
            said = _said(old, new, found.until)
            _verify(old, b"old" + said, found.by_old)
            _verify(new, b"new" + said, found.by_new)
        except (msgspec.DecodeError, UnicodeDecodeError, OverflowError) as error:
            raise HandoverError(
                "expected the file that obhut keys rotate wrote; send all of it again"
            ) from error
        except CertificateError as error:
            raise HandoverError(f"one of its certificates: {error.why}") from error
        except InvalidSignature as error:
            raise HandoverError(
                "it was changed, or not both keys have signed it; have it sent again"
            ) from error
        return msgspec.structs.replace(
            found, old=old.decode("ascii"), new=new.decode("ascii")
        )

    def encode(self) -> bytes:
        """Return it as JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def begin(
    folder: Path, days: int, now: float, *, between_studies: bool = False
) -> Handover:
    """Make a new key for the node of a folder, beside the one that it goes on using.

    A new key that waits there already is taken.

    Args:
        folder: where the node's identity is.
        days: how long peers shall accept both keys.
        now: the present, in seconds since 1970.
        between_studies: as for ``finish``.

    Raises:
        ConfigurationError: if the folder's configuration does not hold.
        HandoverError: if that is too long.
        IdentityError: if there is no identity.
        RotationError: as for ``finish``.
    """
    if not 0 < days <= DAYS_AT_MOST:
        raise HandoverError(f"expected 1 to {DAYS_AT_MOST} days, got {days}")
    old = Identity.load(folder)
    _check(folder, between_studies)
    waiting = folder / _NEXT
    files.sweep(folder)
    files.make_folder(waiting)
    if not _has_key(waiting):
        Identity.create().save(waiting)
    return Handover.make(old, Identity.load(waiting), int(now) + days * _DAY)


def finish(folder: Path, *, between_studies: bool = False) -> Identity:
    """Let the new key of a folder take the old one's place, which is gone then.

    Broken off anywhere, it can be called again.

    Args:
        folder: where the node's identity is.
        between_studies: whether an owner behind a policy agrees to count as somebody
            else from then on.

    Raises:
        ConfigurationError: if the folder's configuration does not hold.
        IdentityError: if no new key waits there.
        RotationError: if the node is an aggregator, or an owner who does not agree.
    """
    _check(folder, between_studies)
    waiting = folder / _NEXT
    if _NEXT in files.sweep(folder):
        return Identity.load(folder)  # all but the sweeping was done
    if not _has_key(waiting):
        raise IdentityError(
            str(folder), "no new key waits there; make one with: obhut keys rotate"
        )
    new = Identity.load(waiting)
    new.save(folder, replace=True)
    files.remove_folder(waiting)
    return new


def accept(handover: Handover, peers: PeerBook, now: float) -> Peer:
    """Pin a peer's new key under the name that it has.

    Args:
        handover: what it sent, parsed.
        peers: where its old key is pinned.
        now: the present, in seconds since 1970.

    Returns:
        the peer, with the new key.

    Raises:
        HandoverError: if it is too old, or holds for too long.
        PeerError: if the old key is not a peer's, or the new one is another's.
    """
    if handover.until <= now:
        raise HandoverError("its time is over; have the peer run obhut keys rotate")
    if handover.until > now + (DAYS_AT_MOST + 1) * _DAY:
        raise HandoverError(f"it would keep the old key for over {DAYS_AT_MOST} days")
    return peers.succeed(
        handover.old.encode("ascii"), handover.new.encode("ascii"), handover.until
    )


def _check(folder: Path, between_studies: bool) -> None:
    """Refuse a change of keys that would break off what an auditor knows."""
    policy, names = None, {}
    own = {id for at in (folder, folder / _NEXT) if (id := _id(at)) is not None}
    if (folder / CONFIGURATION).exists():
        configuration = configurations.load(folder / CONFIGURATION)
        policy = configuration.policy
        names = dict(principals.names(configuration, ""))
        own.add("")  # as which its own name is known here
    named = policy.aggregators if isinstance(policy, Quorum) else ()
    kept = any((folder / name).exists() for name in (ledger.FILE, mark.FILE))
    if kept or any(names.get(n, n) in own for n in named):
        raise RotationError(
            "this node is an aggregator, whose ledger is signed with its key and whom "
            "the owners' policies name by it; with another key it is a new aggregator, "
            "with nothing on record. If the owners agree to that, make one in a new "
            "folder: obhut init"
        )
    if isinstance(policy, Quorum) and not between_studies:
        raise RotationError(
            "this node is an owner, and to aggregators another key is another person: "
            "no release passes that includes it, once those have left that included "
            "the old one. Rotate between studies only, and go on with a new "
            "aggregator; if that is meant, add --between-studies"
        )


def _id(folder: Path) -> str | None:
    """Return the id of a folder's key; None if there is none, or half of another."""
    try:
        return Identity.load(folder).id
    except IdentityError:
        return None


def _has_key(folder: Path) -> bool:
    return (folder / "identity.key").exists()


def _said(old: bytes, new: bytes, until: int) -> bytes:
    both = certificates.fingerprint(old) + certificates.fingerprint(new)
    return b" obhut handover 1 " + both + until.to_bytes(8, "big", signed=True)


def _sign(identity: Identity, said: bytes) -> bytes:
    key = load_pem_private_key(identity.key, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError("its key is not on the curve P-256")
    return key.sign(said, ec.ECDSA(hashes.SHA256()))


def _verify(certificate: bytes, said: bytes, signature: bytes) -> None:
    key = load_pem_x509_certificate(certificate).public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise CertificateError("its key is not on the curve P-256")
    key.verify(signature, said, ec.ECDSA(hashes.SHA256()))
