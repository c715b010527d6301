from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from obhut.errors import IdentityError, UnsafeFileError
from obhut.host import files
from obhut.identity.identity import Identity

from .forgery import forge, key_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder that holds an identity."""
    Identity.create().save(tmp_path / "node")
    return tmp_path / "node"


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    """An identity comes out of its folder as it went in."""
    identity = Identity.create()
    identity.save(tmp_path / "new" / "node")
    assert Identity.load(tmp_path / "new" / "node") == identity


def test_each_identity_is_new() -> None:
    """Two identities share neither key nor id."""
    one, other = Identity.create(), Identity.create()
    assert one.id != other.id
    assert one.key != other.key


def test_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    """Folder and files are their owner's only, even where new files are everybody's."""
    umask = os.umask(0)
    try:
        Identity.create().save(tmp_path / "node")
    finally:
        os.umask(umask)
    modes = {p.name: p.stat().st_mode & 0o777 for p in (tmp_path / "node").iterdir()}
    assert modes == {"identity.key": 0o600, "identity.crt": 0o600}
    assert (tmp_path / "node").stat().st_mode & 0o777 == 0o700


def test_the_key_is_not_printed() -> None:
    """Neither ``repr`` nor ``str`` of an identity shows its key."""
    identity = Identity.create()
    assert "PRIVATE" not in repr(identity) + str(identity)


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o620, 0o602, 0o601, 0o644, 0o777])
def test_a_key_that_others_can_reach_is_refused(folder: Path, mode: int) -> None:
    """A key file that anybody else has a right to is not used, and the text says so."""
    (folder / "identity.key").chmod(mode)
    with pytest.raises(UnsafeFileError, match="chmod"):
        Identity.load(folder)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_certificate_that_others_can_change_is_refused(
    folder: Path, mode: int
) -> None:
    """A certificate may be read by others, but not changed."""
    (folder / "identity.crt").chmod(0o644)
    assert Identity.load(folder)
    (folder / "identity.crt").chmod(mode)
    with pytest.raises(UnsafeFileError, match="chmod"):
        Identity.load(folder)


def test_a_link_in_place_of_the_key_is_refused(folder: Path, tmp_path: Path) -> None:
    """A link is not followed, even to a good key."""
    (folder / "identity.key").rename(tmp_path / "elsewhere")
    (folder / "identity.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeFileError, match="link"):
        Identity.load(folder)


def test_a_pipe_or_folder_in_place_of_the_key_is_refused(folder: Path) -> None:
    """What is not a file is refused at once, and nobody waits for a pipe's writer."""
    key = folder / "identity.key"
    key.unlink()
    os.mkfifo(key, 0o600)
    with pytest.raises(UnsafeFileError, match="not a regular file"):
        Identity.load(folder)
    key.unlink()
    key.mkdir(0o700)
    with pytest.raises(UnsafeFileError, match="not a regular file"):
        Identity.load(folder)


def test_a_file_without_an_end_is_refused(folder: Path) -> None:
    """No more than 64 KiB are read."""
    (folder / "identity.crt").write_bytes(b"\n" * (64 * 1024 + 1))
    with pytest.raises(UnsafeFileError, match="larger"):
        Identity.load(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(folder: Path) -> None:
    """A file that belongs to somebody else is theirs to change, and is not used."""
    os.chown(folder / "identity.key", 65534, -1)
    with pytest.raises(UnsafeFileError, match="belongs to user 65534"):
        Identity.load(folder)


def test_a_file_that_can_not_be_opened_is_refused(tmp_path: Path) -> None:
    """A path through a file is refused as an error of the path."""
    (tmp_path / "file").touch(mode=0o600)
    with pytest.raises(UnsafeFileError):
        files.read(tmp_path / "file" / "below")
    with pytest.raises(UnsafeFileError, match="not a folder"):
        files.check_folder(tmp_path / "file")


@pytest.mark.parametrize("name", ["identity.key", "identity.crt"])
def test_half_an_identity_is_none(folder: Path, name: str) -> None:
    """Without one of the files there is no identity, and the text names the file."""
    (folder / name).unlink()
    with pytest.raises(IdentityError, match=f"no {name}.*obhut init"):
        Identity.load(folder)


def test_two_halves_of_two_identities_are_none(folder: Path) -> None:
    """A key and another key's certificate are refused, and not only by TLS."""
    files.write(folder / "identity.crt", Identity.create().certificate, replace=True)
    with pytest.raises(IdentityError, match="belong together"):
        Identity.load(folder)


@pytest.mark.parametrize("content", [b"", b"no key", Identity.create().certificate])
def test_what_is_no_key_is_refused(folder: Path, content: bytes) -> None:
    """A key file with something else in it is an error that names it."""
    files.write(folder / "identity.key", content, replace=True)
    with pytest.raises(IdentityError, match=r"identity\.key can not be read"):
        Identity.load(folder)


def test_an_encrypted_key_is_refused(folder: Path) -> None:
    """A key with a password is refused: a worker has nobody to ask."""
    encrypted = key_of(Identity.load(folder)).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")
    )
    files.write(folder / "identity.key", encrypted, replace=True)
    with pytest.raises(IdentityError, match=r"identity\.key can not be read"):
        Identity.load(folder)


def test_an_own_certificate_of_another_form_is_refused(folder: Path) -> None:
    """No node can be talked into being an authority."""
    authority = forge(ca=True, signs=True)
    files.write(folder / "identity.key", authority.key, replace=True)
    files.write(folder / "identity.crt", authority.certificate, replace=True)
    with pytest.raises(IdentityError, match=r"identity\.crt"):
        Identity.load(folder)


def test_an_identity_is_never_overwritten(folder: Path) -> None:
    """Saving into a folder that has one is refused, and leaves it as it was."""
    before = Identity.load(folder)
    with pytest.raises(IdentityError, match="already"):
        Identity.create().save(folder)
    assert Identity.load(folder) == before
    assert len(list(folder.iterdir())) == 2


def test_a_link_can_not_catch_the_key(tmp_path: Path) -> None:
    """A link laid out for the key to be written through is not written through."""
    node, elsewhere = tmp_path / "node", tmp_path / "elsewhere"
    node.mkdir(0o700)
    (node / "identity.key").symlink_to(elsewhere)
    with pytest.raises(IdentityError, match="already"):
        Identity.create().save(node)
    assert not elsewhere.exists()


def test_a_folder_of_everybody_is_refused(tmp_path: Path) -> None:
    """No key is put where others could exchange it."""
    tmp_path.chmod(0o777)
    with pytest.raises(UnsafeFileError, match="chmod"):
        Identity.create().save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_identities_load_no_torch() -> None:
    """A worker's parent can authenticate its peers without loading torch."""
    code = (
        "import sys; import obhut.transports.grpc.credentials\n"
        "import obhut.identity.joining\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
