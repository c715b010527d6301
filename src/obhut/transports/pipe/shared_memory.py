"""Shared memory as a process sees it.

Python's own ``mmap`` keeps an open file for each mapping, and a process with many
tensors has few files to spare. So the C library is asked.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref
from typing import TypeAlias

# A type made for each length; what matters is that it has an address and can be
# referred to weakly.
Memory: TypeAlias = "ctypes.Array[ctypes.c_ubyte]"
"""Mapped memory; it is unmapped when nothing refers to it, or to a part of it."""

_POPULATE = getattr(mmap, "MAP_POPULATE", 0)
_REMOVE = getattr(mmap, "MADV_REMOVE", None)
_STEP = 2**22
_PAGE_OUT = 21  # linux/mman.h: MADV_PAGEOUT

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_ssize_t,
]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_FAILED = ctypes.c_void_p(-1).value


def map_shared(fd: int, size: int) -> Memory:
    """Map a file's first bytes, to be read and written, all pages at once.

    Duty: what is behind the end of the file must not be touched.

    Args:
        fd: the file; it may be closed afterwards.
        size: bytes, one at least.

    Raises:
        MemoryError: if it can not be mapped.
    """
    return _map(fd, size, mmap.MAP_SHARED | _POPULATE)


def map_private(fd: int, size: int) -> Memory:
    """Map a file's first bytes, page by page as they are read.

    What is written stays in this process, and counts as its data, as all of it does
    against ``RLIMIT_DATA``. The file need not be open for writing.

    Args, Raises:
        as for ``map_shared``.
    """
    return _map(fd, size, mmap.MAP_PRIVATE)


def _map(fd: int, size: int, flags: int) -> Memory:
    access = mmap.PROT_READ | mmap.PROT_WRITE
    address = _LIBC.mmap(None, size, access, flags, fd, 0)
    if address is None or address == _FAILED:
        raise MemoryError(f"{size:,} bytes can not be mapped")
    memory = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(memory, _LIBC.munmap, address, size).atexit = False
    return memory


def part(memory: Memory, start: int, size: int) -> Memory:
    """Return a part of a mapping, which keeps all of it mapped."""
    return (ctypes.c_ubyte * size).from_buffer(memory, start)


def view(memory: Memory) -> memoryview:
    """Return a mapping's bytes."""
    return memoryview(memory).cast("B")


def free(memory: Memory, start: int, size: int) -> None:
    """Give whole pages back to the system, where it takes them; they read as zeros."""
    if _REMOVE is not None:
        _LIBC.madvise(ctypes.addressof(memory) + start, size, _REMOVE)


def forget(memory: Memory, start: int, size: int) -> None:
    """Give back whole pages of a private mapping; they are read from the file again."""
    _LIBC.madvise(ctypes.addressof(memory) + start, size, mmap.MADV_DONTNEED)


def page_out(memory: Memory, start: int, end: int) -> None:
    """Let a private mapping's pages go until they are read again.

    Changed ones stay, or are swapped: nothing is lost. It is a wish, and one for whole
    steps: what lies behind the last one goes with what follows, for the kernel keeps
    a large page of which half is to go.
    """
    first, last = start // _STEP * _STEP, end // _STEP * _STEP
    if end == len(memory):
        last = end
    if last > first:
        _LIBC.madvise(ctypes.addressof(memory) + first, last - first, _PAGE_OUT)
