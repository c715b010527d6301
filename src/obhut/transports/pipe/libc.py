"""System calls that Python has no function for."""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *args: object) -> int:
    """Call a function of the C library.

    Args:
        name: the function.
        args: integers, byte strings or pointers; integers are passed as 64 bits.

    Raises:
        OSError: if it returns -1.
    """
    passed = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    result = int(getattr(_libc, name)(*passed))
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result
