"""A child's side of shared memory: what it maps, and which tensors live there.

Rules:

- A large frame becomes a tensor's own memory, without a copy, where the parent lends
  few segments; a smaller one is copied by whoever makes a tensor of it.
- A segment goes back when no tensor lives in it. What no tensor needs of one that
  stays is given to the system, so that a small tensor keeps no large one's memory.
- Shared memory does not count against ``RLIMIT_DATA``: the soft limit sinks by what
  tensors live in.
- A file that can only be read is mapped for this process alone: what is written into
  a tensor there is the process's own, and the kernel counts it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import resource
import weakref
from collections.abc import Iterable, Iterator, Sequence

import torch

from obhut.errors import RemoteProtocolError
from obhut.worker.tensors import frame_of

from . import shared_memory
from .segment import LENT_AT_MOST, places

ADOPTED_FROM = 2**20
"""A frame of so many bytes becomes a tensor's memory."""


class _Lodging:
    """A segment in which tensors live.

    Attributes:
        memory: all of it.
        private: whether it is a file, mapped for this process alone.
        tenants: the ranges where tensors live, by a number of their own.
        changed: whether one has left since it was looked at.
    """

    def __init__(self, memory: shared_memory.Memory, private: bool) -> None:
        self.memory = memory
        self.private = private
        self.tenants: dict[int, tuple[int, int]] = {}
        self.changed = True

    def vacant(self) -> Iterator[tuple[int, int]]:
        """Yield where whole pages of no tensor begin, and their bytes."""
        page, start = mmap.PAGESIZE, 0
        ends = (len(self.memory), len(self.memory))
        for begin, end in (*sorted(self.tenants.values()), ends):
            first, last = -(-start // page) * page, begin // page * page
            if last > first:
                yield first, last - first
            start = max(start, end)


class Mappings:
    """What a child has mapped of what its parent lent it, by number."""

    def __init__(self) -> None:
        self._mapped: dict[int, shared_memory.Memory] = {}
        self._private: set[int] = set()
        self._lodgings: dict[int, _Lodging] = {}
        self._free: list[int] = []
        self._limit = resource.getrlimit(resource.RLIMIT_DATA)[1]
        self._adopted = 0

    def take(self, number: int, fd: int | None) -> shared_memory.Memory:
        """Return a segment, which is mapped when it comes first.

        Args:
            number: what the parent calls it.
            fd: its file, if it came along; it is closed.

        Raises:
            RemoteProtocolError: if it is not there.
            MemoryError: if it can not be mapped.
        """
        if fd is None:
            known = self._mapped.get(number)
            if known is None:
                raise RemoteProtocolError(f"no segment {number} was lent")
            return known
        try:
            private = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
            size = os.fstat(fd).st_size
            if private:
                mapped = shared_memory.map_private(fd, size)
                self._private.add(number)
            else:
                mapped = shared_memory.map_shared(fd, size)
            self._mapped[number] = mapped
        finally:
            os.close(fd)
        return mapped

    def forget(self, numbers: Iterable[int]) -> None:
        """Unmap what the parent has closed."""
        for number in numbers:
            self._mapped.pop(number, None)
            self._private.discard(number)

    def frames(
        self, number: int, fd: int | None, sizes: Sequence[int]
    ) -> tuple[memoryview, ...]:
        """Return the frames in a segment. Duty: call ``returned`` in the end."""
        self._free.append(number)  # unless a tensor comes to live in it
        memory = self.take(number, fd)
        offsets, end = places(sizes)
        if end > len(memory):
            raise RemoteProtocolError("a segment is smaller than its frames")
        whole = shared_memory.view(memory)
        room = len(self._lodgings) < LENT_AT_MOST
        lodging = _Lodging(memory, number in self._private)
        found: list[memoryview] = []
        for tenant, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
            if size >= ADOPTED_FROM and room:
                found.append(self._adoptable(number, lodging, tenant, offset, size))
            else:
                found.append(whole[offset : offset + size])
        if lodging.tenants:
            self._free.remove(number)
            self._lodgings[number] = lodging
        return tuple(found)

    def returned(self) -> tuple[int, ...]:
        """Return which segments are not needed any more; each is said once."""
        for number, lodging in list(self._lodgings.items()):
            if not lodging.tenants:
                del self._lodgings[number]
                self._free.append(number)
            elif lodging.changed:
                lodging.changed = False
                for start, size in lodging.vacant():
                    if size >= ADOPTED_FROM:
                        if lodging.private:
                            shared_memory.forget(lodging.memory, start, size)
                        else:
                            shared_memory.free(lodging.memory, start, size)
        self._limit_data()
        free, self._free = tuple(self._free), []
        # A file comes once: it takes room on the disk for as long as it is mapped.
        self.forget(self._private.intersection(free))
        return free

    def passed(self, block: torch.Tensor) -> None:
        """Let the memory go of what was read from a file, until it is read again.

        Args:
            block: (any shape), dense; elements that are not needed for now.
        """
        for lodging in self._lodgings.values():
            start = block.data_ptr() - ctypes.addressof(lodging.memory)
            if lodging.private and 0 <= start < len(lodging.memory):
                end = start + block.nbytes
                if end == max(end for _, end in lodging.tenants.values()):
                    end = len(lodging.memory)
                shared_memory.page_out(lodging.memory, start, end)

    def _adoptable(
        self, number: int, lodging: _Lodging, tenant: int, offset: int, size: int
    ) -> memoryview:
        owner = shared_memory.part(lodging.memory, offset, size)
        lodging.tenants[tenant] = (offset, offset + size)
        weakref.finalize(owner, self._left, lodging, tenant).atexit = False
        # The tensor keeps the owner, and the frame keeps the tensor.
        return frame_of(torch.frombuffer(owner, dtype=torch.uint8))

    @staticmethod
    def _left(lodging: _Lodging, tenant: int) -> None:
        del lodging.tenants[tenant]
        lodging.changed = True

    def _limit_data(self) -> None:
        """Let what lives in shared memory count as data."""
        shared = [one for one in self._lodgings.values() if not one.private]
        ranges = [range_ for one in shared for range_ in one.tenants.values()]
        adopted = sum(end - begin for begin, end in ranges)
        if adopted == self._adopted or self._limit == resource.RLIM_INFINITY:
            return
        self._adopted = adopted
        soft = max(0, self._limit - adopted)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_DATA, (soft, self._limit))
