"""The peers that a node has pinned: a name and a certificate each, in a file each.

Rules:

- A peer is its key. The name is what this node calls it, and is the file's.
- One key has one name, and one name one key; files that disagree are all left out.
- A peer that changed to a new key may have its former one for some time: it is found
  by that id, and is the same peer. No other key follows a former one.
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
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from obhut.errors import (
    CertificateError,
    PeerError,
    PeerNotFoundError,
    UnsafeFileError,
)
from obhut.host import files

from . import certificates

_LOG = logging.getLogger(__name__)
_SUFFIX = ".crt"
_FORMER = ".former"
_UNTIL = re.compile(rb"until ([0-9]{1,12})\n", re.ASCII)
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Peer:
    """Somebody who is known by their key.

    Attributes:
        name: what this node calls them.
        id: the hash of their public key; see ``certificates.id_of``.
        certificate: theirs, in PEM.
        until: when this key stops to hold, in seconds since 1970, if it is a former
            one; 0 if it is the peer's key.
    """

    name: str
    id: str
    certificate: bytes = field(repr=False)
    until: int = 0


@dataclass(frozen=True, slots=True)
class _Reading:
    """What the files said when they were last read.

    Attributes:
        marks: what changes when a file does, by the file's name; "." is the folder.
        by_id: former keys too.
        former: the former keys, by the peer's name.
        ends: when the next former key stops to hold.
    """

    marks: Mapping[str, str]
    by_name: Mapping[str, Peer]
    by_id: Mapping[str, Peer]
    former: Mapping[str, Peer]
    broken: Mapping[str, str]
    roots: bytes
    ends: float

    def find(self, name_or_id: str) -> Peer | None:
        """Return the peer of that name or id, if there is one."""
        return self.by_id.get(name_or_id) or self.by_name.get(name_or_id)


class PeerBook:
    """The pinned peers, in the files ``<name>.crt`` of a folder.

    It may be used by several threads. Any look at it raises ``UnsafeFileError`` if
    others than the files' owner could put files into the folder.
    """

    def __init__(self, folder: Path, now: Callable[[], float] = time.time) -> None:
        """Name the folder; it need not exist before there is a peer.

        Args:
            folder: where the files are.
            now: tells the time of day, in seconds since 1970: former keys end by
                it, as certificates do.
        """
        self.folder = folder
        self._now = now
        self._lock = threading.Lock()
        self._last: _Reading | None = None

    @classmethod
    def of(cls, folder: Path) -> PeerBook:
        """Return the peers that a node has pinned, in its own folder."""
        return cls(folder / "peers")

    @property
    def version(self) -> str:
        """A text that changes whenever the files do."""
        return "\n".join(self._read().marks.values())

    @property
    def broken(self) -> Mapping[str, str]:
        """Why files in the folder were left out, by the files' names."""
        return self._read().broken

    @property
    def former(self) -> Mapping[str, Peer]:
        """The former keys that still hold, by the peers' names."""
        return self._read().former

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

    def succeed(self, old: bytes, new: bytes, until: int) -> Peer:
        """Pin a peer's new certificate under the name of the old one.

        To do it again changes nothing.

        Duty: know that the holder of the old key wants it; see ``rotation``.

        Args:
            old: the certificate that is pinned, in PEM.
            new: the one that follows.
            until: when the old one stops to hold, in seconds since 1970.

        Raises:
            CertificateError: if the new one is not such as obhut makes.
            PeerError: if the old one is nobody's, or the new one is another's.
        """
        new = certificates.checked(new)
        new_id, old_id = certificates.id_of(new), certificates.id_of(old)
        reading = self._read()
        known = reading.by_id.get(old_id)
        follower = reading.by_id.get(new_id)
        if (
            known is not None
            and known.until
            and follower == Peer(known.name, new_id, new)
        ):
            return follower
        if known is None or known.until:
            raise PeerError(
                old_id,
                "nobody is pinned with the key that hands over: it was handed over "
                "before, was removed, or never was here; a new invitation pins anew",
            )
        if follower is not None:
            raise PeerError(
                known.name, f"the new key is known already, as {follower.name}'s"
            )
        head = f"until {until}\n".encode()
        # The former one first: broken off here, it is the same as the present one.
        files.write(self._former(known.name), head + known.certificate, replace=True)
        files.write(self._path(known.name), new, replace=True)
        return Peer(known.name, new_id, new)

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
        self._former(name).unlink(missing_ok=True)
        return name

    def _path(self, name: str) -> Path:
        return self.folder / (name + _SUFFIX)

    def _former(self, name: str) -> Path:
        return self.folder / (name + _FORMER)

    def _unchanged(self, name_or_id: str) -> Peer | None:
        """Return a peer if what was last read of it still stands."""
        with self._lock:
            last = self._last
        peer = last.find(name_or_id) if last is not None else None
        if last is None or peer is None or last.ends <= self._now():
            return None
        file = peer.name + (_FORMER if peer.until else _SUFFIX)
        try:  # without pathlib, which takes longer than the kernel
            now = _mark(os.stat(self.folder)), _mark(os.lstat(f"{self.folder}/{file}"))
        except OSError:
            return None
        return peer if now == (last.marks["."], last.marks[file]) else None

    def _read(self) -> _Reading:
        with self._lock:
            marks = self._look()
            last = self._last
            if last is None or last.marks != marks or last.ends <= self._now():
                last = self._last = self._load(marks)
                for name, why in last.broken.items():
                    _LOG.warning("%s was left out: %s", self.folder / name, why)
            return last

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
        former: dict[str, Peer] = {}
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
            if peer.until:
                former[peer.name] = peer
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
        by_id = {peer.id: peer for peer in by_name.values()}
        former = {
            name: peer
            for name, peer in former.items()
            if peer.until > self._now() and name in by_name
        }
        ids = [peer.id for peer in (*by_name.values(), *former.values())]
        for name, peer in list(former.items()):
            if ids.count(peer.id) > 1:
                if by_name[name].id != peer.id:
                    broken[name + _FORMER] = "another peer has that key, or had it"
                del former[name]
        by_id |= {peer.id: peer for peer in former.values()}
        return _Reading(
            marks,
            by_name,
            by_id,
            former,
            broken,
            b"".join(peer.certificate for peer in by_id.values()),
            min((peer.until for peer in former.values()), default=float("inf")),
        )

    def _load_one(self, file_name: str) -> Peer:
        if file_name.endswith(_FORMER) and _NAME.fullmatch(file_name[: -len(_FORMER)]):
            text = files.read(self.folder / file_name)
            head = _UNTIL.match(text)
            if head is None or not int(head[1]):
                raise PeerError(file_name, "it does not say until when it holds")
            certificate = certificates.checked(text[head.end() :])
            id = certificates.id_of(certificate)
            name = file_name[: -len(_FORMER)]
            return Peer(name, id, certificate, int(head[1]))
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
