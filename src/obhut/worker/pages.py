"""Fresh memory in large pages.

The kernel takes three times as long to find and clear 100 MB in pages of 4 KiB as it
takes to copy them, and a third of that in pages of 2 MiB. Many systems give those
only to who asks (``madvise`` in ``/sys/kernel/mm/transparent_hugepage/enabled``).
"""

from __future__ import annotations

import ctypes
import sys

_PAGE = 2 << 20
_MADV_HUGEPAGE = 14
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def in_large_pages(address: int, size: int) -> None:
    """Ask for large pages where memory was not touched yet.

    It is a wish: a system that has none gives others.

    Args:
        address: where the memory begins.
        size: its bytes.
    """
    first, last = -(-address // _PAGE) * _PAGE, (address + size) // _PAGE * _PAGE
    if _LIBC is not None and last > first:
        _LIBC.madvise(
            ctypes.c_void_p(first), ctypes.c_size_t(last - first), _MADV_HUGEPAGE
        )
