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
- Who is killed while writing leaves a draft, which the next who writes there removes.
  Nobody else writes into the folder meanwhile, so that no draft is somebody's.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

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
    with (
        opened(path, secret=secret) as handle,
        open(handle, "rb", closefd=False) as file,
    ):
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise UnsafeFileError(str(path), f"it is larger than {_LARGEST:,} bytes")
    return content


@contextlib.contextmanager
def opened(path: Path, *, secret: bool = False) -> Iterator[int]:
    """Open a file to read it; yield its handle.

    Args:
        path: where it is.
        secret: as for ``read``.

    Raises:
        FileNotFoundError, UnsafeFileError: as ``read``, whatever its size.
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
        yield handle
    finally:
        os.close(handle)


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
    sweep(path)


def write(
    path: Path,
    content: bytes | Sequence[bytes | bytearray | memoryview],
    *,
    replace: bool = False,
    before: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Write a file that only its owner may read.

    Args:
        path: where to; its folder exists.
        content: all of it, or its parts in order.
        replace: whether it may take another file's place.
        before: files beside it that mean nothing without it, by name. They are
            written first, and take the place of others.

    Raises:
        FileExistsError: if there is another and it may not take its place; then
            nothing is written.
    """
    with _alone(path.parent) as folder:
        _sweep(path.parent)
        if not replace and os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        for name, text in {**before, path.name: content}.items():
            draft = _draft(path.with_name(name))
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                with open(os.open(draft, flags, 0o600), "wb") as file:
                    file.writelines((text,) if isinstance(text, bytes) else text)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(draft, path.with_name(name))
            finally:
                draft.unlink(missing_ok=True)
            # So that what comes last is not there before the others, whatever stops.
            os.fsync(folder)


def remove_folder(path: Path) -> None:
    """Remove a folder with all that is in it: whole, or to be swept."""
    with _alone(path.parent):
        os.replace(path, _draft(path))
        _sweep(path.parent)


def sweep(folder: Path) -> frozenset[str]:
    """Remove drafts that were left in a folder; return of what they were."""
    with _alone(folder):
        return _sweep(folder)


def _sweep(folder: Path) -> frozenset[str]:
    drafts = [found for name in os.listdir(folder) if (found := _DRAFT.fullmatch(name))]
    for draft in drafts:
        left = folder / draft[0]
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()
    return frozenset(draft[1] for draft in drafts)


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


_DRAFT = re.compile(r"\.(.+)\.[0-9a-f]{16}")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """Let nobody else write into a folder meanwhile; yield its handle."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)


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
