"""Rows of a Parquet file, through pyarrow.

::

    with ParquetSource(declaration) as rows:
        for batch in rows.batches([0, 3]):       # the first and the fourth column
            ...

Rules:

- Only the columns that are asked for are read, many rows at a time, on all cores.
- A row group is never held as a whole: pages are read as they are needed.
- An index that pandas wrote is put aside: ``*`` does not take it.
- No error has the library's words: they may quote what the file holds.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from obhut.errors import DatasetError

from .arrow import pa, pa_parquet
from .declaration import DatasetDeclaration
from .source import Arrow, Lineless

_BATCH_BYTES = 2**26
"""Bytes of a batch of rows, about."""

_PAGE_BYTES = 2**18
"""Bytes that are read of a column at a time."""

_ROWS = 2**16
"""Rows of a batch at most: more are no faster."""

_INDEX = re.compile(r"__index_level_\d+__")


class ParquetSource(Lineless):
    """Rows of a Parquet file: a ``Source``.

    Raises:
        DatasetError: if it is none, or damaged.
        OSError: if it can not be opened.
    """

    notes: Sequence[str] = ()

    def __init__(self, declaration: DatasetDeclaration) -> None:
        self._name = declaration.file
        declaration.path.open("rb").close()  # which names the reason, if it fails
        # Arrow's own file: its threads would wait for each other in one of Python's.
        self._stream: Arrow = pa.OSFile(str(declaration.path))
        try:
            with self._translated():
                self._file = pa_parquet.ParquetFile(
                    self._stream, buffer_size=_PAGE_BYTES, pre_buffer=False
                )
                schema: Arrow = self._file.schema_arrow
        except BaseException:
            self._stream.close()
            raise
        # Reads the next rows while the caller works on these. No iterator owns it: one
        # that is left is cleared away in any thread, which must wait for no other.
        self._ahead = ThreadPoolExecutor(1)
        self.names: Sequence[str] = schema.names
        self.types: Sequence[Arrow] = schema.types
        self.aside: Mapping[int, str] = pandas_index(schema)

    def close(self) -> None:
        """Close the file, once nothing is read of it."""
        self._ahead.shutdown()
        self._stream.close()

    def batches(self, places: Sequence[int]) -> Iterator[Arrow]:
        """Yield record batches of the columns at these places, in this order.

        Raises:
            DatasetError: if the file is damaged.
        """
        wanted = {self.names[place] for place in places}
        whole = len(wanted) == len(self.names)
        with self._translated():
            batches = self._file.iter_batches(
                batch_size=self._rows(places),
                columns=None if whole else sorted(wanted),
            )
        nth = _nth(self.names)
        order = None
        coming = self._ahead.submit(next, batches, None)
        while True:
            with self._translated():
                batch: Arrow = coming.result()
            if batch is None:
                return
            coming = self._ahead.submit(next, batches, None)
            if order is None:
                # A column `a` of records with a field `b` comes with one called `a.b`,
                # and all of one name come together.
                found = {key: i for i, key in enumerate(_nth(batch.schema.names))}
                order = [found[nth[place]] for place in places]
            if batch.num_rows:
                yield batch.select(order)

    def _rows(self, places: Sequence[int]) -> int:
        """Return how many rows make a batch."""
        metadata = self._file.metadata
        stored = sum(
            metadata.row_group(group).total_byte_size
            for group in range(metadata.num_row_groups)
        )
        mean = stored / max(1, metadata.num_rows) / max(1, len(self.names))
        wide = len(places) * max(8, mean)
        return int(max(1, min(_ROWS, _BATCH_BYTES // wide)))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise DatasetError(
                self._name,
                "is not a Parquet file that can be read",
                "the file is cut off or damaged: get it anew",
            ) from error


def _nth(names: Sequence[str]) -> list[tuple[str, int]]:
    """Return each name with how often it came before."""
    before: Counter[str] = Counter()
    found = []
    for name in names:
        found.append((name, before[name]))
        before[name] += 1
    return found


def pandas_index(schema: Arrow) -> Mapping[int, str]:
    """Return the columns that are an index of pandas, with the reason."""
    try:
        kept = schema.pandas_metadata["index_columns"]
        index = {one for one in kept if isinstance(one, str)}
    except (ValueError, TypeError, KeyError):  # none, or written by others
        index = set()
    return {
        place: "pandas' index"
        for place, name in enumerate(schema.names)
        if name in index or _INDEX.fullmatch(name)
    }
