"""A node's identity: a key that it made, and that never leaves it.

Rules:

- The id is the hash of the public key, so that it can be read out on the telephone
  and nobody can take another's.
- ``identity.key`` is readable by its owner only, and is refused if it isn't.
- A key is there only after its certificate: without it there is no identity, and one
  can be made.
- An identity is never overwritten, since peers know the node by it, unless they have
  been told who follows (``rotation``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509 import load_pem_x509_certificate

from obhut.errors import CertificateError, IdentityError
from obhut.host import files

from . import certificates
from .certificates import id_of

__all__ = ["Identity", "id_of"]

KEY = "identity.key"
"""The key's name in a node's folder."""

_CERTIFICATE = "identity.crt"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a node is.

    Leak: ``key`` is the secret; it is not printed.

    Attributes:
        id: the hash of the public key; see ``id_of``.
        certificate: in PEM.
        key: ECDSA on P-256, PKCS 8 in PEM, not encrypted.
    """

    id: str
    certificate: bytes = field(repr=False)
    key: bytes = field(repr=False)

    @classmethod
    def create(cls, now: datetime | None = None) -> Identity:
        """Make a new key, and a certificate for it.

        Args:
            now: the present, in UTC; by default the clock's.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = certificates.make(key, now)
        text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return cls(id_of(certificate), certificate, text)

    @classmethod
    def load(cls, folder: Path) -> Identity:
        """Read the identity that is kept in a folder.

        Raises:
            IdentityError: if there is none, or its files don't belong together.
            UnsafeFileError: if others could read the key or change a file.
        """
        try:
            key = files.read(folder / KEY, secret=True)
            certificate = files.read(folder / _CERTIFICATE)
        except FileNotFoundError as error:
            name = Path(error.filename).name
            advice = "make an identity with: obhut init"
            if name == _CERTIFICATE:
                advice = (
                    f"put it back from a copy, or move {KEY} away and {advice}, which "
                    "is another to all peers"
                )
            raise IdentityError(str(folder), f"there is no {name}; {advice}") from error
        try:
            private = load_pem_private_key(key, password=None)
            certificate = certificates.checked(certificate)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise IdentityError(str(folder), f"{KEY} can not be read") from error
        except CertificateError as error:
            raise IdentityError(str(folder), f"{_CERTIFICATE}: {error.why}") from error
        public = load_pem_x509_certificate(certificate).public_key()
        form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if private.public_key().public_bytes(*form) != public.public_bytes(*form):
            raise IdentityError(
                str(folder),
                f"{KEY} and {_CERTIFICATE} do not belong together; if a change of keys "
                "was broken off, end it with: obhut keys rotate --finish",
            )
        return cls(id_of(certificate), certificate, key)

    def save(self, folder: Path, *, replace: bool = False) -> None:
        """Keep the identity in a folder, which is made if need be.

        Args:
            folder: where to.
            replace: whether it may take another's place.

        Raises:
            IdentityError: if the folder holds one already, which stays.
            UnsafeFileError: if others could put files into the folder.
        """
        files.make_folder(folder)
        certificate = {_CERTIFICATE: self.certificate}
        try:
            files.write(folder / KEY, self.key, replace=replace, before=certificate)
        except FileExistsError as error:
            raise IdentityError(
                str(folder), f"there is a {KEY} already, which peers may know"
            ) from error
