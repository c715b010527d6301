"""Which files a child may open: none but those of Python, torch and obhut.

Rules:

- Reading those is all that stays, unless a folder is given to write into; the rest of
  the file system can not be opened, changed or run. Whether a path exists is not
  hidden.
- Newer kernels also keep TCP, abstract sockets and signals from leaving.

Source: landlock(7), linux/landlock.h.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

from .libc import call

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # on every machine
_VERSION = 1
_PATH_BENEATH = 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_WRITE_FILE, _REMOVE_DIR, _REMOVE_FILE = 1 << 1, 1 << 4, 1 << 5
_MAKE_DIR, _MAKE_FILE, _TRUNCATE = 1 << 7, 1 << 8, 1 << 14
_CHANGE = _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_FILE | _TRUNCATE

_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
"""How many rights on files a version knows, by the first such version."""

_NET_SINCE, _NET_RIGHTS = 4, 0b11
_SCOPE_SINCE, _SCOPES = 6, 0b11


def version() -> int:
    """Return the kernel's version of Landlock, 0 where it has none."""
    try:
        return call("syscall", _CREATE_RULESET, None, 0, _VERSION)
    except OSError:
        return 0


def attributes(known: int) -> tuple[bytes, int]:
    """Return all rights that a version can take away, and their bytes."""
    files = (1 << max(n for v, n in _FILE_RIGHTS.items() if v <= max(known, 1))) - 1
    fields = [files]
    if known >= _NET_SINCE:
        fields.append(_NET_RIGHTS)
    if known >= _SCOPE_SINCE:
        fields.append(_SCOPES)
    return struct.pack(f"={len(fields)}Q", *fields), 8 * len(fields)


def restrict(readable: Iterable[Path], writable: Iterable[Path] = ()) -> None:
    """Hold this process to reading what is there, for good.

    Duty: call it with one thread, after ``PR_SET_NO_NEW_PRIVS``.

    Args:
        readable: files, and folders with all that is below; what is missing is
            passed over.
        writable: folders in which files may be made, changed and removed, too.

    Raises:
        OSError: if the kernel has no Landlock.
    """
    rights, size = attributes(version())
    ruleset = call("syscall", _CREATE_RULESET, rights, size, 0)
    try:
        known = int.from_bytes(rights[:8], sys.byteorder)
        for path in readable:
            _allow(ruleset, path, 0)
        for path in writable:
            _allow(ruleset, path, _CHANGE & known)
        call("syscall", _RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, more: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rights = _READ_FILE | (_READ_DIR if path.is_dir() else 0) | more
        rule = struct.pack("=Qi", rights, fd)
        call("syscall", _ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
    finally:
        os.close(fd)
