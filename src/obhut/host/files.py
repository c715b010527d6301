"""Files that nobody but their owner may change, and secrets nobody else may read.

Rules:

- What is checked is the file that was opened, not the name: no link is followed, and
  a file put in its place in between is not read.
- What a worker relies on is checked together with the way to it: who can change a
  folder on that way, or a link, can put another file there. A folder such as ``/tmp``,
  in which everybody may remove what is their own only, may be on the way.
- This user and root may change things, nobody else; nor may their group. What lies on
  a mount for reading is changed by nobody here.
- A file appears whole or not at all, under permissions of its own from the first
  moment, and takes no other file's place unless told to.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from obhut.errors import UnsafeFileError

_LARGEST = 64 * 1024


def read(path: Path, *, secret: bool = False) -> bytes:
    """Read a small file.

    Args:
        path: where it is.
        secret: whether others must not be able to read it either.

    Raises:
        FileNotFoundError: if there is none.
        UnsafeFileError: if others could have changed it, or read a secret; if it is
            a link, not a file, or too large.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(path, flags)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnsafeFileError(str(path), _why_not_opened(path, error)) from error
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise UnsafeFileError(str(path), "it is not a regular file")
        _check(path, status, 0o077 if secret else 0o022)
        with open(handle, "rb", closefd=False) as file:
            content = file.read(_LARGEST + 1)
    finally:
        os.close(handle)
    if len(content) > _LARGEST:
        raise UnsafeFileError(str(path), f"it is larger than {_LARGEST:,} bytes")
    return content


def check(path: Path) -> None:
    """Refuse a file or a folder that others could change or replace.

    Raises:
        FileNotFoundError: if there is none.
        UnsafeFileError: if they could, or if they could do that to a folder or a link
            on the way to it.
    """
    status = path.stat()
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return
    for step in _way(path.absolute()):
        passed = step.lstat()
        # A link has no mode of its own.
        shared = stat.S_ISLNK(passed.st_mode) or passed.st_mode & stat.S_ISVTX
        _check(step, passed, 0 if shared else 0o022)
    _check(path, status, 0o022)


def check_folder(path: Path) -> None:
    """Refuse a folder in which others could put, replace or remove files.

    Raises:
        FileNotFoundError: if there is none.
        UnsafeFileError: if they could.
    """
    status = path.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise UnsafeFileError(str(path), "it is not a folder")
    _check(path, status, 0o022)


def make_folder(path: Path) -> None:
    """Make a folder that only its owner may enter, if there is none.

    So are those made on the way to it, whatever the umask says.

    Raises:
        UnsafeFileError: if there is one in which others could put files.
    """
    if not path.parent.exists():
        make_folder(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    check_folder(path)


def write(path: Path, content: bytes, *, replace: bool = False) -> None:
    """Write a file that only its owner may read.

    Args:
        path: where to; its folder exists.
        content: all of it.
        replace: whether it may take another file's place.

    Raises:
        FileExistsError: if there is another and it may not take its place.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(draft, flags, 0o600), "wb") as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if replace:
                os.replace(draft, path)
            else:
                os.link(draft, path, follow_symlinks=False)
        finally:
            draft.unlink(missing_ok=True)
    _sync(path.parent)


def _way(path: Path) -> Iterator[Path]:
    """Yield the folders and links that lead to a file, which is there."""
    at, ahead = Path(path.anchor), list(reversed(path.parts[1:]))
    while ahead:
        part = ahead.pop()
        yield at
        if part == "..":
            at = at.parent
            continue
        if not (at / part).is_symlink():
            at /= part
            continue
        yield at / part
        target = (at / part).readlink()
        if target.is_absolute():
            at, target = Path(target.anchor), target.relative_to(target.anchor)
        ahead += reversed(target.parts)


def _check(path: Path, status: os.stat_result, forbidden: int) -> None:
    if status.st_uid not in (os.geteuid(), 0):
        raise UnsafeFileError(
            str(path), f"it belongs to user {status.st_uid}, and not to you"
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & forbidden:
        what = "read or change" if forbidden & 0o044 else "change"
        raise UnsafeFileError(
            str(path),
            f"others may {what} it (mode {mode:04o}); "
            f"run: chmod {mode & ~forbidden:04o} {path}",
        )


def _why_not_opened(path: Path, error: OSError) -> str:
    if path.is_symlink():
        return "it is a link; put the file itself there"
    return error.strerror or "it can not be opened"


def _sync(folder: Path) -> None:
    """Make what was done in a folder last, even if the machine stops now."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
