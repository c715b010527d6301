"""The mark beside a node's identity: that its ledger began, and how far it came.

::

    decide ──▶ append to the ledger ──▶ write the mark ──▶ answer

Rules:

- It is the head of the ledger as last written, signed by the node. It is on the disk
  before anybody learns of a decision, and after the entry: so a ledger may be ahead of
  its mark, by what nobody was told, and is never behind it.
- The file has two places, of which the older is written over, so that one write that
  the disk is waited for is enough, and one that was broken off leaves the other.
- A ledger that does not hold the entry that the mark names is not the one that was
  here: it was emptied, cut, put back from a copy, or is another's.
- Ledger and mark put back together, from one copy, are whole. Owners see that, who keep
  a later head (``host.heads``).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct

from obhut.guard.ledger import Head, encode

from . import files

FILE = "ledger.mark"
"""The mark's name in a worker's folder, beside its key."""


_PLACE = 512
"""Bytes of a place: a sector, which a disk writes as a whole."""


class _Written(Struct, frozen=True, forbid_unknown_fields=True):
    head: Head
    signature: bytes


class Signer(NamedTuple):
    """A node, with its key.

    Attributes:
        id: the node's id.
        sign: signs bytes with its key.
        verify: tells whether a signature of bytes is the node's.
    """

    id: str
    sign: Callable[[bytes], bytes]
    verify: Callable[[bytes, bytes], bool]


class Mark:
    """The mark of one folder.

    Args:
        path: its file.
        signer: the node.
    """

    def __init__(self, path: Path, signer: Signer) -> None:
        self._path = path
        self._signer = signer
        self._older: int | None = None
        """Which place is written next; None where all of the file is."""

    def read(self) -> Head | None:
        """Return the head that was marked last; None if none ever was.

        Raises:
            ValueError: if it is not what this node wrote.
            UnsafeFileError: if others could read or change it.
        """
        try:
            content = files.read(self._path, secret=True)
        except FileNotFoundError:
            return None
        found = [self._decoded(content[at : at + _PLACE]) for at in (0, _PLACE)]
        heads = [head for head in found if head is not None]
        if not heads:
            raise ValueError(f"{FILE} beside it is not what this worker wrote")
        last = max(heads, key=lambda head: head.number)
        self._older = 1 - found.index(last)
        return last

    def write(self, head: Head) -> None:
        """Mark a head; when this returns, it will not be lost.

        Raises:
            OSError: if it could not be written; the former mark is there then.
        """
        written = _Written(head, self._signer.sign(_said(head)))
        place = msgspec.json.encode(written).ljust(_PLACE - 1) + b"\n"
        if self._older is None:
            files.write(self._path, place + place, replace=True)
            self._older = 0
            return
        handle = os.open(self._path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.pwrite(handle, place, self._older * _PLACE)
            os.fdatasync(handle)
        finally:
            os.close(handle)
        self._older = 1 - self._older

    def _decoded(self, place: bytes) -> Head | None:
        """Return the head in a place; None if it is none that this node signed."""
        try:
            found = msgspec.json.decode(place, type=_Written)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        said, signer = _said(found.head), self._signer
        sound = found.head.ledger == signer.id and signer.verify(said, found.signature)
        return found.head if sound else None


def check(marked: Head | None, head: Head, found: str) -> None:
    """Refuse a ledger that is behind its mark, or is another one.

    Args:
        marked: the head that was marked; None if none was.
        head: where the ledger ends.
        found: the hash of its entry with the number of the marked head.

    Raises:
        ValueError: saying which.
    """
    if marked is None:
        if head.number:
            raise ValueError(
                f"its {FILE} is missing, and it has {head.number:,} entries: whether "
                "it is the last one can not be told"
            )
    elif head.number < marked.number:
        raise ValueError(
            f"it ends at entry {head.number:,}{known(marked)}: it is an earlier copy, "
            "or another"
        )
    elif found != marked.hash:
        raise ValueError(
            f"its entry {marked.number:,} is not the one that {FILE} says: it is "
            "another ledger, or one that went on from an earlier copy"
        )


def known(marked: Head | None) -> str:
    """Return what a mark says of a ledger, to go on with in a sentence."""
    if marked is None:
        return ""
    return f", and {FILE} says that it had {marked.number:,} entries"


def _said(head: Head) -> bytes:
    """Return what is signed; a head in the ledger is signed as something else."""
    return b"obhut ledger mark 1\0" + encode(head)
