"""Freed memory goes back to the system."""

from __future__ import annotations

import subprocess
import sys

HOLES = """
import os
from obhut.testing.vitals import vitals
from obhut.transports.grpc import allocator

size, count = 100_000, 2_000
held = [bytes(size) for _ in range(count)]
del held[: count - 1]  # what is left is behind all the others
before = vitals(os.getpid()).rss
allocator.trim()
after = vitals(os.getpid()).rss
assert before - after > size * count // 2, (before, after)
assert held == [bytes(size)]
"""


def test_holes_are_given_back() -> None:
    """Memory between objects that stay is not this process's any more.

    In a process of its own: where an allocation comes from depends on all before it.
    """
    subprocess.run([sys.executable, "-W", "error", "-c", HOLES], check=True)
