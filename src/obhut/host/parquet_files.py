"""Parquet files, through pyarrow, which the extra ``obhut[data]`` brings.

Rules:

- Only the declared columns are read, and a batch of rows at a time.
- pyarrow is loaded when the first Parquet file is read, and not before.
"""

from __future__ import annotations

import importlib
import struct
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, TypeAlias

from obhut.errors import DatasetError

from .arrays import Array, ArrayWriter
from .declaration import DatasetDeclaration
from .numbers import NAN, MisfitError, pack
from .tables import CELLS, Part, parts
from .wording import quote

Arrow: TypeAlias = Any  # pyarrow is untyped
"""A module, type or column of pyarrow's."""

_CODES: Mapping[str, str] = {
    "uint8": "B",
    "int8": "b",
    "uint16": "H",
    "int16": "h",
    "uint32": "I",
    "int32": "i",
    "uint64": "Q",
    "int64": "q",
    "float": "f",
    "double": "d",
}
"""Arrow's names of types whose buffers are read as they are, with their codes."""

_CASTS: Mapping[str, str] = {
    "bool": "uint8",
    "halffloat": "float",
    "null": "double",
}
"""Arrow's names of types that are read as others, without a loss."""

_TEXTS = frozenset({"string", "large_string", "string_view"})


def read(declaration: DatasetDeclaration) -> tuple[tuple[Part, Array], ...]:
    """Read the declared columns.

    Raises:
        DatasetError: naming row and column; or if there is no pyarrow.
        OSError: if the file can not be read.
    """
    file = str(declaration.path)
    try:
        arrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise DatasetError(
            file,
            "needs pyarrow, which is not installed",
            "run: pip install 'obhut[data]'",
        ) from error
    with declaration.path.open("rb") as stream:
        try:
            return _read(declaration, arrow, parquet.ParquetFile(stream))
        except DatasetError:
            raise
        except (arrow.ArrowException, OSError, ValueError, KeyError) as error:
            # Without the library's words: they may quote what the file holds.
            raise DatasetError(
                file,
                "is not a Parquet file that can be read",
                "the file is cut off or damaged: get it anew",
            ) from error


def _read(
    declaration: DatasetDeclaration, arrow: Arrow, source: Arrow
) -> tuple[tuple[Part, Array], ...]:
    file = str(declaration.path)
    schema = source.schema_arrow
    found = parts(declaration, schema.names)
    for part in found:
        for name in part.columns:
            _check_type(file, part, name, schema.field(name).type)
    names = sorted({name for part in found for name in part.columns})
    with ExitStack() as stack:
        writers = [stack.enter_context(ArrayWriter(part.dtype)) for part in found]
        done = 0
        for batch in source.iter_batches(
            batch_size=max(1, CELLS // len(names)), columns=names, use_threads=False
        ):
            if not batch.num_rows:
                continue
            for part, writer in zip(found, writers, strict=True):
                try:
                    writer.write(_convert(part, arrow, batch))
                except MisfitError as error:
                    row, column = divmod(error.index, len(part.columns))
                    raise DatasetError(
                        file,
                        error.problem,
                        error.advice,
                        part.columns[column],
                        done + row + 1,
                    ) from None
            done += batch.num_rows
        if not done:
            raise DatasetError(file, "has no rows", "add rows to it")
        return tuple(
            (part, writer.finish(part.shape(done)))
            for part, writer in zip(found, writers, strict=True)
        )


def _check_type(file: str, part: Part, name: str, kind: Arrow) -> None:
    """Refuse a column whose type makes no numbers."""
    if hasattr(kind, "value_type") and str(kind).startswith("dictionary"):
        kind = kind.value_type
    called = str(kind)
    is_text = called in _TEXTS
    is_decimal = called.startswith("decimal")
    if part.classes and (is_text or called in _CODES or called == "bool"):
        return
    if is_text:
        advice = "leave the column out"
        if part.tensor == "target":
            advice = "list its texts in classes"
        raise DatasetError(file, "expected numbers, got text", advice, name)
    if part.classes or (is_decimal and not part.dtype.startswith("float")):
        advice = "convert the column, or choose another dtype"
    elif is_decimal or called in _CODES or called in _CASTS:
        return
    else:
        advice = "convert the column to numbers, or leave it out"
    raise DatasetError(file, f"expected numbers, got {called}", advice, name)


def _convert(part: Part, arrow: Arrow, batch: Arrow) -> bytes:
    """Return the bytes of one tensor's rows.

    Raises:
        MisfitError: at the first element that does not fit.
    """
    width = len(part.columns)
    cells: list[float] = [0] * (batch.num_rows * width)
    for place, name in enumerate(part.columns):
        column = batch.column(name)
        if str(column.type).startswith("dictionary"):
            column = column.dictionary_decode()
        if column.null_count and (part.classes or not part.nan):
            row = column.is_null().to_pylist().index(True)
            raise MisfitError(
                row * width + place,
                "expected a value, got an empty cell",
                NAN if part.dtype.startswith("float") else "fill it in",
            )
        if part.classes:
            values = _classes(part, column.to_pylist())
        else:
            values = _values(arrow, column)
        cells[place::width] = values
    return pack(cells, part.dtype, part.nan)


def _classes(part: Part, texts: Sequence[object]) -> Sequence[float]:
    codes = []
    for row, text in enumerate(texts):
        written = ("false", "true")[text] if isinstance(text, bool) else str(text)
        code = part.classes.get(written.strip())
        if code is None:
            raise MisfitError(
                row,
                f"expected one of the {len(part.classes)} classes, got "
                f"{quote(written)}",
                "correct the cell, or add it to classes",
            )
        codes.append(code)
    return codes


def _values(arrow: Arrow, column: Arrow) -> Sequence[float]:
    """Return a column's numbers; NaN where it has none."""
    if column.null_count:
        column = column.cast(arrow.float64(), safe=False)
        column = column.fill_null(float("nan"))
    called = _CASTS.get(str(column.type))
    if called is None and str(column.type) not in _CODES:
        called = "double"
    if called is not None:
        column = column.cast(called)
    code = _CODES[str(column.type)]
    size = column.type.bit_width // 8
    begin = column.offset * size
    data = memoryview(column.buffers()[1])[begin : begin + len(column) * size]
    return struct.unpack(f"={len(column)}{code}", data)
