from __future__ import annotations

import hashlib
from base64 import b32encode
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from obhut.errors import CertificateError
from obhut.identity import certificates
from obhut.identity.identity import Identity

from .forgery import certificate_of, forge, key_of, rsa_key

ALICE, BOB = Identity.create(), Identity.create()

VERSION_1 = b"""\
-----BEGIN CERTIFICATE-----
MIIBHDCBwwIUKuIdlDvdNfOn/VMkSVBy9b3BEfIwCgYIKoZIzj0EAwIwEDEOMAwG
A1UEAwwFb2JodXQwIBcNMjYxMTI0MDY0ODM1WhgPMjEyNjEwMzEwNjQ4MzVaMBAx
DjAMBgNVBAMMBW9iaHV0MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE0jADVcy8
OffVZTj12+z0UMpSx8CkEMeNQ1wNosN16fW3vXHZg7Hjq1DGbr6cMUfYVYB32JF0
3rZIJRli36pWmDAKBggqhkjOPQQDAgNIADBFAiA8MbruuG3CZXbvwNVPndD+FSa3
3IDnR6yHgjhoSO57GwIhAPG9z2io0cLlTSY1VKa3tgDEZDX3+1TlQMl5UcbzB0L9
-----END CERTIFICATE-----
"""


def test_a_certificate_as_made_passes() -> None:
    """What ``make`` makes passes, and comes out the same."""
    assert certificates.checked(ALICE.certificate) == ALICE.certificate


def test_the_forger_can_make_the_right_form() -> None:
    """The forgeries below are refused for what they change, and for nothing else."""
    assert certificates.checked(forge().certificate)


FORGERIES = {
    "may sign for others": lambda: forge(ca=True, signs=True),
    "CA:TRUE and no more": lambda: forge(ca=True),
    "its key may sign": lambda: forge(signs=True),
    "does not say CA:FALSE": lambda: forge(ca=None),
    "says it as if it did not matter": lambda: forge(critical=False),
    "calls itself alice": lambda: forge(name="alice"),
    "serves another host": lambda: forge(hosts=["elsewhere"]),
    "serves another host too": lambda: forge(hosts=["obhut", "elsewhere"]),
    "serves all hosts": lambda: forge(hosts=["*"]),
    "serves no host": lambda: forge(hosts=[]),
    "is for clients only": lambda: forge(usages=[ExtendedKeyUsageOID.CLIENT_AUTH]),
    "is for anything": lambda: forge(usages=[]),
    "is bob's word for it": lambda: forge(issuer=BOB),
    "shows alice's key identifier": lambda: forge(copied=ALICE),
    "has a key of RSA": lambda: forge(key=rsa_key()),
    "has a key on another curve": lambda: forge(
        key=ec.generate_private_key(ec.SECP384R1())
    ),
    "is signed over another digest": lambda: forge(algorithm=hashes.SHA384()),
    "says more": lambda: forge(extra=[x509.OCSPNoCheck()]),
    "limits names": lambda: forge(
        extra=[x509.NameConstraints([x509.DNSName("obhut")], None)]
    ),
}


@pytest.mark.parametrize("forged", FORGERIES.values(), ids=FORGERIES)
def test_another_form_is_refused(forged) -> None:
    """A certificate is refused if anything in it differs from the one form."""
    with pytest.raises(CertificateError):
        certificates.checked(forged().certificate)


def test_a_certificate_of_version_1_is_refused() -> None:
    """Version 1 can't say CA:FALSE, and TLS takes such a root for an authority."""
    with pytest.raises(CertificateError, match="version 3"):
        certificates.checked(VERSION_1)


def test_a_second_certificate_in_the_text_is_refused() -> None:
    """Text with a certificate of mallory's behind alice's is not alice's certificate.

    Roots are one text: what follows would become a root of its own.
    """
    mallory = forge(ca=True, signs=True)
    for text in (
        ALICE.certificate + mallory.certificate,
        mallory.certificate + ALICE.certificate,
        ALICE.certificate + BOB.key,
    ):
        with pytest.raises(CertificateError, match="one certificate"):
            certificates.checked(text)


def test_text_around_a_certificate_is_dropped() -> None:
    """What is stored is the certificate encoded anew, not what somebody sent."""
    sent = b"# alice's\n" + ALICE.certificate + b"\n# and more\n"
    assert certificates.checked(sent) == ALICE.certificate


def test_a_broken_signature_is_refused() -> None:
    """A certificate that its own key did not sign is refused."""
    der = bytearray(certificates.to_der(ALICE.certificate))
    der[-1] ^= 1
    with pytest.raises(CertificateError):
        certificates.checked(certificates.from_der(bytes(der)))


def test_a_large_certificate_is_refused_unread() -> None:
    """More than 4 KiB are not looked at."""
    with pytest.raises(CertificateError, match="larger"):
        certificates.checked(ALICE.certificate + b"\n" * 4096)


@given(st.binary(max_size=400))
def test_any_bytes_are_refused(content: bytes) -> None:
    """Bytes that are no certificate raise ``CertificateError`` and nothing else."""
    begin, end = b"-----BEGIN CERTIFICATE-----\n", b"\n-----END CERTIFICATE-----\n"
    for text in (content, begin + content + end):
        with pytest.raises(CertificateError):
            certificates.checked(text)
    with pytest.raises(CertificateError):
        certificates.from_der(content)


def test_a_version_that_does_not_exist_is_refused() -> None:
    """An odd version is refused like all else, though cryptography has its own error.

    The version is the one number at that place: 2 stands for 3.
    """
    der = certificates.to_der(ALICE.certificate)
    version = bytes([0xA0, 3, 2, 1])
    with pytest.raises(CertificateError):
        certificates.from_der(der.replace(version + b"\x02", version + b"\x07", 1))


def test_a_signature_is_written_in_one_way() -> None:
    """A signature whose last bits are called unused is refused, though it verifies.

    Else a certificate could be written in several ways. Some keys' signatures end in
    a zero bit: half of all.
    """
    while True:
        der = bytearray(certificates.to_der(Identity.create().certificate))
        if der[-1] % 2 == 0:
            break
    signature = x509.load_der_x509_certificate(bytes(der)).signature
    assert der[-len(signature) - 1] == 0
    der[-len(signature) - 1] = 1
    with pytest.raises(CertificateError):
        certificates.checked(certificates.from_der(bytes(der)))


@pytest.mark.filterwarnings("ignore")
def test_a_number_below_zero_is_refused() -> None:
    """A serial number that RFC 5280 forbids is refused, with or without warnings."""
    der = certificates.to_der(ALICE.certificate)
    serial = der.index(bytes([0xA0, 3, 2, 1, 2])) + 7
    with pytest.raises(CertificateError, match="serial"):
        certificates.checked(
            certificates.from_der(der[:serial] + b"\x80" + der[serial + 1 :])
        )


@given(st.data())
def test_a_changed_certificate_is_refused(data: st.DataObject) -> None:
    """No byte of a certificate can be changed, whatever it says then."""
    der = bytearray(certificates.to_der(ALICE.certificate))
    place = data.draw(st.integers(0, len(der) - 1))
    der[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CertificateError):
        certificates.checked(certificates.from_der(bytes(der)))


def test_the_id_is_the_hash_of_the_key() -> None:
    """An id is the SHA-256 of the SubjectPublicKeyInfo, in 52 letters of base32."""
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    digest = hashlib.sha256(key_of(ALICE).public_key().public_bytes(*form)).digest()
    expected = b32encode(digest).decode().lower().rstrip("=")
    assert certificates.id_of(ALICE.certificate) == ALICE.id == expected
    assert len(ALICE.id) == 52


def test_the_id_follows_from_the_key_alone() -> None:
    """Another certificate for a key has its id; the same words for another don't."""
    assert forge(key=key_of(ALICE), name="mallory").id == ALICE.id
    assert forge(copied=ALICE).id != ALICE.id


def test_no_certificate_says_whose_it_is() -> None:
    """Subject, issuer and host are the same in all: there is no name to claim."""
    for identity in (ALICE, BOB):
        certificate = certificate_of(identity)
        assert certificate.subject.rfc4514_string() == "CN=obhut"
        assert certificate.issuer.rfc4514_string() == "CN=obhut"


def test_a_certificate_holds_ten_years_from_yesterday() -> None:
    """It holds at a peer whose clock is a day late, and for ten years."""
    now = datetime(2030, 1, 1, tzinfo=UTC)
    made = certificate_of(Identity.create(now))
    assert made.not_valid_before_utc == now - timedelta(days=1)
    assert made.not_valid_after_utc == datetime(2040, 1, 1, tzinfo=UTC)
    assert certificates.expiry(Identity.create(now).certificate).year == 2040


def test_a_fingerprint_is_that_of_the_whole_certificate() -> None:
    """Two certificates of one key have different fingerprints."""
    der = certificates.to_der(ALICE.certificate)
    assert certificates.fingerprint(ALICE.certificate) == hashlib.sha256(der).digest()
    other = forge(key=key_of(ALICE)).certificate
    assert certificates.fingerprint(other) != hashlib.sha256(der).digest()
