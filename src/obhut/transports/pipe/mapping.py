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
    access = mmap.PROT_READ | mmap.PROT_WRITE
    address = _LIBC.mmap(None, size, access, mmap.MAP_SHARED | _POPULATE, fd, 0)
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
