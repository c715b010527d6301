"""The peers that a node has pinned: a name and a certificate each, in a file each.

Rules:

- A peer is its key. The name is what this node calls it, and is the file's.
- One key has one name, and one name one key; files that disagree are all left out.
- No name looks like an id, so that a list of names and ids can't be misread.
- What is not exactly as it should be is left out, and listed under ``broken``.
- The files are the truth: what another process adds or removes holds at the next
  look, without a restart.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from obhut.errors import (
    CertificateError,
    PeerError,
    PeerNotFoundError,
    UnsafeFileError,
)

from . import certificates, files

_LOG = logging.getLogger(__name__)
_SUFFIX = ".crt"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Peer:
    """Somebody who is known by their key.

    Attributes:
        name: what this node calls them.
        id: the hash of their public key; see ``certificates.id_of``.
        certificate: theirs, in PEM.
    """

    name: str
    id: str
    certificate: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Reading:
    """What the files said when they were last read.

    Attributes:
        marks: what changes when a file does, by the file's name; "." is the folder.
    """

    marks: Mapping[str, str]
    by_name: Mapping[str, Peer]
    by_id: Mapping[str, Peer]
    broken: Mapping[str, str]
    roots: bytes

    def find(self, name_or_id: str) -> Peer | None:
        """Return the peer of that name or id, if there is one."""
        return self.by_id.get(name_or_id) or self.by_name.get(name_or_id)


class PeerBook:
    """The pinned peers, in the files ``<name>.crt`` of a folder.

    It may be used by several threads. Any look at it raises ``UnsafeFileError`` if
    others than the files' owner could put files into the folder.
    """

    def __init__(self, folder: Path) -> None:
        """Name the folder; it need not exist before there is a peer."""
        self.folder = folder
        self._lock = threading.Lock()
        self._last: _Reading | None = None

    @property
    def version(self) -> str:
        """A text that changes whenever the files do."""
        return "\n".join(self._read().marks.values())

    @property
    def broken(self) -> Mapping[str, str]:
        """Why files in the folder were left out, by the files' names."""
        return self._read().broken

    def roots(self) -> bytes:
        """Return all certificates, one after the other, in PEM."""
        return self._read().roots

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._read().by_name.values())

    def __len__(self) -> int:
        return len(self._read().by_name)

    def find(self, name_or_id: str) -> Peer:
        """Return the peer of that name or id.

        While neither its file nor the folder changes, no other file is looked at, so
        that it costs the same however many peers there are.

        Raises:
            PeerNotFoundError: if there is none.
        """
        peer = self._unchanged(name_or_id)
        if peer is not None:
            return peer
        reading = self._read()
        peer = reading.find(name_or_id)
        if peer is None:
            raise PeerNotFoundError(name_or_id, tuple(reading.by_name))
        return peer

    def check(self, name: str, id: str) -> None:
        """Refuse a name and an id that could not be added together.

        Raises:
            PeerError: if they can't; it says why.
        """
        if not _NAME.fullmatch(name):
            raise PeerError(
                name,
                "expected 1 to 40 of a to z, 0 to 9, '.', '_' and '-', the first a "
                "letter or digit",
            )
        reading = self._read()
        called = reading.by_name.get(name)
        if called is not None and called.id != id:
            raise PeerError(
                name, f"it is the name of {called.id}; remove that peer first"
            )
        known = reading.by_id.get(id)
        if known is not None and known.name != name:
            raise PeerError(
                name, f"that key is known as {known.name}; remove that peer first"
            )

    def add(self, name: str, certificate: bytes) -> Peer:
        """Pin a peer. To pin it again, under the same name, changes nothing.

        Duty: know from elsewhere that the certificate is theirs.

        Args:
            name: what to call it.
            certificate: its own, in PEM.

        Raises:
            CertificateError: if it is not such a certificate as obhut makes.
            PeerError: if the name can't be used, or name or key are taken.
        """
        certificate = certificates.checked(certificate)
        peer = Peer(name, certificates.id_of(certificate), certificate)
        self.check(name, peer.id)
        files.make_folder(self.folder)
        try:
            files.write(self._path(name), certificate)
        except FileExistsError as error:
            if self._read().by_name.get(name) == peer:
                return peer
            raise PeerError(
                name, f"there is a file {self._path(name)}; remove that peer first"
            ) from error
        return peer

    def remove(self, name_or_id: str) -> str:
        """Forget a peer, or a broken file by its peer's name, and return the name.

        New handshakes are refused from here on. A connection that is open stays so;
        ``credentials.principal`` refuses what comes over it.

        Raises:
            PeerNotFoundError: if there is none.
        """
        if name_or_id + _SUFFIX in self.broken:
            name = name_or_id
        else:
            name = self.find(name_or_id).name
        self._path(name).unlink(missing_ok=True)
        return name

    def _path(self, name: str) -> Path:
        return self.folder / (name + _SUFFIX)

    def _unchanged(self, name_or_id: str) -> Peer | None:
        """Return a peer if what was last read of it still stands."""
        with self._lock:
            last = self._last
        peer = last.find(name_or_id) if last is not None else None
        if last is None or peer is None:
            return None
        path = self._path(peer.name)
        try:
            now = _mark(os.stat(self.folder)), _mark(os.lstat(path))
        except OSError:
            return None
        return peer if now == (last.marks["."], last.marks[path.name]) else None

    def _read(self) -> _Reading:
        with self._lock:
            marks = self._look()
            if self._last is None or self._last.marks != marks:
                self._last = self._load(marks)
                for name, why in self._last.broken.items():
                    _LOG.warning("%s was left out: %s", self.folder / name, why)
            return self._last

    def _look(self) -> dict[str, str]:
        """Return what changes when a file does.

        Raises:
            UnsafeFileError: if others could put files into the folder.
        """
        try:
            marks = {".": _mark(os.stat(self.folder))}
            files.check_folder(self.folder)
            names = sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return {}
        for name in names:
            if not name.startswith("."):
                with contextlib.suppress(FileNotFoundError):
                    marks[name] = _mark(os.lstat(self.folder / name))
        return marks

    def _load(self, marks: Mapping[str, str]) -> _Reading:
        by_name: dict[str, Peer] = {}
        broken: dict[str, str] = {}
        holders: dict[str, list[str]] = {}
        for file_name in [name for name in marks if name != "."]:
            try:
                peer = self._load_one(file_name)
            except FileNotFoundError:
                continue
            except (CertificateError, PeerError, UnsafeFileError) as error:
                broken[file_name] = error.why
                continue
            by_name[peer.name] = peer
            holders.setdefault(peer.id, []).append(peer.name)
        for same in holders.values():
            if len(same) > 1:
                for name in same:
                    del by_name[name]
                    broken[name + _SUFFIX] = (
                        f"{' and '.join(same)} have the same key; remove all but one"
                    )
        return _Reading(
            marks,
            by_name,
            {peer.id: peer for peer in by_name.values()},
            broken,
            b"".join(peer.certificate for peer in by_name.values()),
        )

    def _load_one(self, file_name: str) -> Peer:
        name = file_name.removesuffix(_SUFFIX)
        if name == file_name or not _NAME.fullmatch(name):
            raise PeerError(file_name, f"a peer's file is called <name>{_SUFFIX}")
        certificate = certificates.checked(files.read(self.folder / file_name))
        return Peer(name, certificates.id_of(certificate), certificate)


def _mark(status: os.stat_result) -> str:
    """Return what is another for another file, and after any change to one."""
    return (
        f"{status.st_dev}/{status.st_ino}/{status.st_mode}/{status.st_uid}/"
        f"{status.st_size}/{status.st_mtime_ns}/{status.st_ctime_ns}"
    )
