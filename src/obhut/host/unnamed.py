"""Files on a disk that have no name: gone with the last process that has them.

::

    fd = unnamed(Path("/var/lib/obhut"))         # to read and write
    reader = read_only(fd)                       # what others get

Rules:

- Nobody can open such a file to write, its owner included: who has the descriptor that
  it was made with is alone with it. A superuser is not held by that.
- A reader is opened anew: a duplicate could be written through, and shares a position.

Leak: what was in a file stays on the disk until something else is written there.

Source: open(2), ``O_TMPFILE``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from pathlib import Path

_NO_SUCH_FILES = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)


def unnamed(folder: Path) -> int:
    """Return a new file's descriptor, for reading and writing.

    Where the file system makes none without a name, the name is taken away at once.

    Raises:
        OSError: if it can not be made.
    """
    flags = os.O_TMPFILE | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
    try:
        return os.open(folder, flags, 0o400)
    except OSError as error:
        if error.errno not in _NO_SUCH_FILES:
            raise
    return named_once(folder)


def named_once(folder: Path) -> int:
    """Return a new file that had a name for a moment, as ``unnamed`` does."""
    fd, path = tempfile.mkstemp(prefix="obhut-", dir=folder)
    with contextlib.ExitStack() as stack:
        stack.callback(os.unlink, path)
        os.fchmod(fd, 0o400)
    return fd


def read_only(fd: int) -> int:
    """Return another descriptor of a file, for reading only."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
