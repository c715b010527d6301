"""An owner's high execution in a process of its own, which may end.

It is for attacks that end it: what they show is the same then, since low is another.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import signal
import struct
import weakref
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch

from obhut.protocol.codec import Frame
from obhut.protocol.messages import Batch
from obhut.worker.effects import Leaving
from obhut.worker.high import High

# Any below: a high's own arguments.


class HighApart(High):
    """One session's tensors, in a forked process.

    Args:
        args: as for ``High``.
        named: likewise.
    """

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        theirs, self._writing = os.pipe()
        self._reading, ours = os.pipe()
        child = os.fork()
        if not child:
            # Whoever waits for an end that is closed here waits for ever otherwise.
            for end in map(int, os.listdir("/proc/self/fd")):
                if end > 2 and end not in (theirs, ours):
                    with contextlib.suppress(OSError):
                        os.close(end)
            self._serve(theirs, ours)
        os.close(theirs)
        os.close(ours)
        weakref.finalize(self, _end, child, self._writing, self._reading)

    def follow(
        self, batch: Batch, frames: Sequence[Frame], undone: Collection[int]
    ) -> list[Leaving]:
        """Let it run a batch; nothing is delivered by one that has ended."""
        asked = (batch, tuple(map(bytes, frames)), tuple(undone))
        try:
            _write(self._writing, pickle.dumps(asked))
            found: list[Leaving] = pickle.loads(_read(self._reading))
        except (EOFError, BrokenPipeError):
            return []
        return found

    def _serve(self, reading: int, writing: int) -> None:
        """Follow until nobody asks, in the forked process."""
        faulthandler.disable()
        torch.set_num_threads(1)  # threads of the other process are not here
        try:
            while True:
                batch, frames, undone = pickle.loads(_read(reading))
                made = [
                    replace(d, frames=tuple(map(bytes, d.frames)))
                    for d in super().follow(batch, frames, undone)
                ]
                _write(writing, pickle.dumps(made))
        except EOFError:
            pass
        finally:
            os._exit(0)


def _end(child: int, *pipes: int) -> None:
    """End a process that nobody asks any more."""
    for pipe in pipes:
        os.close(pipe)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _write(end: int, data: bytes) -> None:
    left = memoryview(struct.pack("<q", len(data)) + data)
    while left:
        left = left[os.write(end, left) :]


def _read(end: int) -> bytes:
    (size,) = struct.unpack("<q", _just(end, 8))
    return _just(end, size)


def _just(end: int, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        part = os.read(end, size - len(found))
        if not part:
            raise EOFError
        found += part
    return bytes(found)
