"""Arrays by name, wherever they come from: NumPy's files, safetensors.

::

    with numpy_files.open_npz(path) as archive:  # or another kind of file
        archive.names                            # ("x", "y")
        with archive.opened("x") as (stored, stream):
            ...                                  # the array's bytes

Rule: nothing is read of an array that nobody asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from .stored import Readable, Stored


class Archive(Protocol):
    """A file of arrays, while it is open."""

    @property
    def names(self) -> Sequence[str]:
        """The names of all arrays, in the order of the file."""

    def opened(self, name: str) -> AbstractContextManager[tuple[Stored, Readable]]:
        """Return what an array is, and a stream that stands at its first byte.

        Raises:
            DatasetError: if the file is damaged, or the array is not of numbers.
            OSError: if the file can not be read.
        """
