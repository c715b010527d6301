"""Memory of messages is kept for later ones, and given back when it is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

KEPT = """
import resource
from obhut.transports.grpc import allocator

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def messages():
    before = faults()
    for _ in range(50):
        held = [bytes(1 << 20) for _ in range(8)]
        del held
    return faults() - before

allocator.keep()
messages()
assert messages() < 256 * 8, "memory of messages is mapped anew"
"""

LARGE = """
import resource
from obhut.transports.grpc import allocator

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def blocks():
    before = faults()
    for _ in range(5):
        held = [b'x' * (40 << 20) for _ in range(2)]
        del held
    return faults() - before

allocator.keep(large=True)
blocks()
assert blocks() < 40 * 256, "large blocks are mapped anew"
"""

HOLES = """
import os
from obhut.testing.vitals import vitals
from obhut.transports.grpc import allocator

allocator.keep()
size, count = 100_000, 2_000
held = [bytes(size) for _ in range(count)]
del held[: count - 1]  # what is left is behind all the others
before = vitals(os.getpid()).rss
allocator.trim()
after = vitals(os.getpid()).rss
assert before - after > size * count // 2, (before, after)
assert held == [bytes(size)]
"""


@pytest.mark.parametrize("code", [KEPT, LARGE, HOLES])
def test_memory_is_kept_for_messages_and_given_back(code: str) -> None:
    """Messages of megabytes take no new pages each; holes are not this process's.

    In a process of its own: where an allocation comes from depends on all before it.
    """
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
