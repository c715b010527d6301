"""Which files a child may open: none but those of Python, torch and obhut.

Rules:

- Reading those is all that stays, unless a folder is given to write into; the rest of
  the file system can not be opened, changed or run. Whether a path exists is not
  hidden.
- Newer kernels also keep TCP, abstract sockets and signals from leaving.

Source: landlock(7), linux/landlock.h.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from .libc import call

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # on every machine
_VERSION = 1
_PATH_BENEATH = 1
_EXECUTE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 2, 1 << 3
_WRITE_FILE, _REMOVE_DIR, _REMOVE_FILE = 1 << 1, 1 << 4, 1 << 5
_MAKE_DIR, _MAKE_FILE, _TRUNCATE = 1 << 7, 1 << 8, 1 << 14
_READ = _READ_FILE | _READ_DIR
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
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


def attributes(known: int, network: bool = False) -> tuple[bytes, int]:
    """Return all rights that a version can take away, and their bytes.

    Args:
        known: the version.
        network: whether those to the network are left.
    """
    files = (1 << max(n for v, n in _FILE_RIGHTS.items() if v <= max(known, 1))) - 1
    fields = [files]
    if known >= _NET_SINCE:
        fields.append(0 if network else _NET_RIGHTS)
    if known >= _SCOPE_SINCE:
        fields.append(_SCOPES)
    return struct.pack(f"={len(fields)}Q", *fields), 8 * len(fields)


def restrict(
    readable: Iterable[Path],
    writable: Iterable[Path] = (),
    *,
    listed: Iterable[Path] = (),
    run: bool = False,
    network: bool = False,
) -> None:
    """Hold this process to reading what is there, for good.

    Duty: call it with one thread, after ``PR_SET_NO_NEW_PRIVS``.

    Args:
        readable: files, and folders with all that is below; what is missing is
            passed over.
        writable: folders in which files may be made, changed and removed, too, and
            files that may be written to.
        listed: folders of which names may be read, with all folders below.
        run: whether what may be read may be run.
        network: whether TCP may leave.

    Raises:
        OSError: if the kernel has no Landlock.
    """
    rights, size = attributes(version(), network)
    ruleset = call("syscall", _CREATE_RULESET, rights, size, 0)
    try:
        known = int.from_bytes(rights[:8], sys.byteorder)
        for path in readable:
            _allow(ruleset, path, _READ | (_EXECUTE if run else 0))
        for path in writable:
            _allow(ruleset, path, _READ | _CHANGE & known)
        for path in listed:
            _allow(ruleset, path, _READ_DIR)
        call("syscall", _RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def all_but(secrets: Iterable[Path]) -> Iterator[Path]:
    """Yield what lies beside some files and folders: all but them, to be readable.

    Links are left out: what they lead to is found by its own way. So is what is put
    into a folder on the way to a secret later on.

    Args:
        secrets: what is not to be read, with all that is below.
    """
    hidden = {path.resolve() for path in secrets}
    around = {parent for path in hidden for parent in path.parents}
    for folder in sorted(around or {Path("/")}):
        with contextlib.suppress(OSError):  # a folder that this user can't list
            for path in folder.iterdir():
                if not path.is_symlink() and path not in hidden | around:
                    yield path


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not path.is_dir():
            rights &= _OF_FILES
        rule = struct.pack("=Qi", rights, fd)
        call("syscall", _ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
    finally:
        os.close(fd)
