"""Rows of a table that an owner's loader returned: a source as a file is.

::

    rows = LoaderRows(file)
    rows.take(pipe, size)                        # once for each piece
    with rows as source:
        for batch in source.batches([0, 1]):
            ...

Rules:

- Pieces have columns of the same names and types, in the same order.
- What came is checked before anything relies on it: whoever wrote it may be any code.
- No error has pyarrow's words: they may quote what is in the table.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

from obhut.errors import DatasetError

from .arrow import pa
from .parquet_source import pandas_index
from .source import Arrow, Lineless

_PIECE = 2**20


class LoaderRows(Lineless):
    """Rows of a table: a ``Source``.

    Args:
        file: what errors call the loader.
        notes: sentences for the owner.
    """

    def __init__(self, file: str, notes: Sequence[str] = ()) -> None:
        self._name = file
        self.notes = notes
        self._memory = os.memfd_create("obhut-rows", os.MFD_CLOEXEC)
        self._pieces: list[tuple[int, int]] = []
        self._schema: Arrow = None

    def close(self) -> None:
        """Forget the rows."""
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1

    def take(self, pipe: IO[bytes], size: int) -> None:
        """Take a piece in.

        Args:
            pipe: stands at its first byte.
            size: its bytes.

        Raises:
            DatasetError: if there are fewer, or it is no such piece.
            OSError: if there is no memory for it.
        """
        begin, left = os.lseek(self._memory, 0, os.SEEK_END), size
        while left:
            data = pipe.read(min(left, _PIECE))
            if not data:
                raise self._error("ends too early")
            left -= len(data)
            while data:
                data = data[os.write(self._memory, data) :]
        self._pieces.append((begin, size))
        with self._opened(begin, size) as reader:
            if self._schema is None:
                self._schema = reader.schema
            elif not self._schema.equals(reader.schema):
                raise self._error("returned tables of several columns or types")

    @property
    def names(self) -> Sequence[str]:
        """Those of all columns, in order."""
        names: Sequence[str] = self._schema.names
        return names

    @property
    def types(self) -> Sequence[Arrow]:
        """Arrow's type of each column."""
        types: Sequence[Arrow] = self._schema.types
        return types

    @property
    def aside(self) -> Mapping[int, str]:
        """Columns that are pandas' index."""
        return pandas_index(self._schema)

    def batches(self, places: Sequence[int]) -> Iterator[Arrow]:
        """Yield record batches of the columns at these places, in this order.

        Raises:
            DatasetError: if what came is no table.
        """
        for begin, size in self._pieces:
            with self._opened(begin, size) as reader:
                while (batch := self._next(reader)) is not None:
                    if batch.num_rows:
                        yield batch.select(list(places))

    @contextlib.contextmanager
    def _opened(self, begin: int, size: int) -> Iterator[Arrow]:
        """Open a piece as what it must be."""
        # Columns of a batch are parts of this, and keep it.
        page = begin // mmap.PAGESIZE * mmap.PAGESIZE
        mapped = mmap.mmap(
            self._memory, size + begin - page, prot=mmap.PROT_READ, offset=page
        )
        try:
            reader = pa.ipc.open_stream(pa.py_buffer(mapped)[begin - page :])
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._error("returned a table that can not be read") from error
        yield reader

    def _next(self, reader: Arrow) -> Arrow:
        """Return the next batch, once it is known to be sound; None after the last."""
        try:
            batch = reader.read_next_batch()
            batch.validate(full=True)
        except StopIteration:
            return None
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._error("returned a table that can not be read") from error
        return batch

    def _error(self, problem: str) -> DatasetError:
        return DatasetError(self._name, problem, "correct the loader")
