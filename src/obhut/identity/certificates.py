"""The one form of certificate that is made, pinned and accepted.

A certificate here is a public key in the wrapping that TLS asks for. It vouches for
itself and for nobody else.

Rules:

- There is one form, and what differs from it in anything is refused. Pinned
  certificates become TLS's roots: one with ``CA:TRUE`` would let its holder sign
  certificates for others, and TLS has no later check on the client's side.
- Subject and name are the same in all. A name in a certificate is a claim; who
  somebody is follows from the key, and what they are called is the pinner's word.
- What is stored or handed to TLS is the certificate encoded anew, never text that
  somebody sent: more could follow the certificate in it.

Source: RFC 5280, sections 4.1 and 4.2.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from obhut.errors import CertificateError

HOST = "obhut"
"""The host name in every certificate: TLS wants one, and pinning does not need it."""

_LARGEST = 4096
_LIFETIME = timedelta(days=3652)
_SKEW = timedelta(days=1)
_SUBJECT = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
_REFUSALS = (
    InvalidSignature,
    TypeError,
    UnsupportedAlgorithm,
    ValueError,
    Warning,  # of an odd certificate, where warnings are errors
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""How cryptography refuses bytes; only some of them are a ``ValueError``."""


def make(key: ec.EllipticCurvePrivateKey, now: datetime | None = None) -> bytes:
    """Return a certificate for a key, in PEM.

    It holds for ten years, from a day ago, since peers' clocks differ.

    Args:
        key: on the curve P-256.
        now: the present, in UTC; by default the clock's.
    """
    now = datetime.now(UTC) if now is None else now
    builder = (
        x509.CertificateBuilder()
        .subject_name(_SUBJECT)
        .issuer_name(_SUBJECT)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + _LIFETIME)
    )
    for critical, extension in _extensions(key.public_key()):
        builder = builder.add_extension(extension, critical)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


@functools.lru_cache(maxsize=1024)
def id_of(certificate: bytes) -> str:
    """Return the id of whoever holds a certificate's key.

    The id is the SHA-256 of the public key (DER, SubjectPublicKeyInfo) in base32,
    52 lower-case letters and digits. Nothing else in the certificate has a part in
    it, and nothing else is checked here.

    Args:
        certificate: one, in PEM.

    Raises:
        CertificateError: if it is none.
    """
    parsed = _parse(certificate)
    try:
        public = parsed.public_key()
    except _REFUSALS as error:
        raise CertificateError("its key can not be read") from error
    spki = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    digest = hashlib.sha256(spki).digest()
    return base64.b32encode(digest).decode("ascii").rstrip("=").lower()


def fingerprint(certificate: bytes) -> bytes:
    """Return the SHA-256 of a certificate in PEM: 32 bytes.

    Raises:
        CertificateError: if it is none.
    """
    return _parse(certificate).fingerprint(hashes.SHA256())


def to_der(certificate: bytes) -> bytes:
    """Return a certificate, in PEM, as it travels in TLS.

    Raises:
        CertificateError: if it is none.
    """
    return _parse(certificate).public_bytes(Encoding.DER)


def from_der(certificate: bytes) -> bytes:
    """Return a certificate that TLS received, in PEM.

    Raises:
        CertificateError: if it is none.
    """
    try:
        parsed = x509.load_der_x509_certificate(certificate)
    except _REFUSALS as error:
        raise CertificateError("it can not be read") from error
    return parsed.public_bytes(Encoding.PEM)


def expiry(certificate: bytes) -> datetime:
    """Return when a certificate, in PEM, stops to hold, in UTC.

    Raises:
        CertificateError: if it is none.
    """
    return _parse(certificate).not_valid_after_utc


def checked(certificate: bytes) -> bytes:
    """Return a certificate, encoded anew, if it has the form that ``make`` gives.

    Whether it has expired is not looked at: TLS does that in every handshake.

    Args:
        certificate: one, in PEM.

    Raises:
        CertificateError: if it hasn't.
    """
    parsed = _parse(certificate)
    try:
        why = _what_is_wrong(parsed)
    except _REFUSALS as error:
        raise CertificateError(f"it does not hold: {type(error).__name__}") from error
    if why:
        raise CertificateError(why)
    return parsed.public_bytes(Encoding.PEM)


def _parse(certificate: bytes) -> x509.Certificate:
    if len(certificate) > _LARGEST:
        raise CertificateError(f"it is larger than {_LARGEST:,} bytes")
    if certificate.count(b"-----BEGIN") != 1:
        raise CertificateError("expected one certificate in PEM, and nothing else")
    try:
        return x509.load_pem_x509_certificate(certificate)
    except _REFUSALS as error:
        raise CertificateError("it can not be read") from error


def _what_is_wrong(parsed: x509.Certificate) -> str:
    """Return in what a certificate differs from the form, or an empty text."""
    public = parsed.public_key()
    if not (
        isinstance(public, ec.EllipticCurvePublicKey)
        and isinstance(public.curve, ec.SECP256R1)
    ):
        return "its key is not on the curve P-256"
    if parsed.version is not x509.Version.v3:
        return "it is not of version 3"
    if parsed.serial_number <= 0:
        return "its serial number is not positive"
    if not (parsed.subject == parsed.issuer == _SUBJECT):
        return f"its subject and issuer are not CN={HOST}"
    if not isinstance(parsed.signature_hash_algorithm, hashes.SHA256):
        return "it is not signed over a SHA-256"
    parsed.verify_directly_issued_by(parsed)
    if not parsed.public_bytes(Encoding.DER).endswith(b"\0" + parsed.signature):
        return "its signature is not written as DER wants it"
    found = {(e.critical, e.value) for e in parsed.extensions}
    if found != set(_extensions(public)) or len(found) != len(parsed.extensions):
        return "its extensions are not those that obhut writes (CA:FALSE and no other)"
    return ""


def _extensions(
    public: ec.EllipticCurvePublicKey,
) -> list[tuple[bool, x509.ExtensionType]]:
    """Return what every certificate says of itself, each with whether it is critical.

    The key's identifiers are needed, although all subjects are equal: among equal
    subjects TLS finds a certificate's root by them.
    """
    usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    both_ways = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return [
        (True, x509.BasicConstraints(ca=False, path_length=None)),
        (True, x509.KeyUsage(digital_signature=True, **usage)),
        (False, x509.ExtendedKeyUsage(both_ways)),
        (False, x509.SubjectAlternativeName([x509.DNSName(HOST)])),
        (False, x509.SubjectKeyIdentifier.from_public_key(public)),
        (False, x509.AuthorityKeyIdentifier.from_issuer_public_key(public)),
    ]
