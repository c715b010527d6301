"""Parquet files, through pyarrow, which the extra ``obhut[data]`` brings.

Rules:

- Only the declared columns are read, and a batch of rows at a time.
- pyarrow is loaded when the first Parquet file is read, and not before.
"""

from __future__ import annotations

import importlib
from contextlib import ExitStack
from typing import Any, TypeAlias

import numpy as np

from obhut.errors import DatasetError

from .arrays import Array, ArrayWriter
from .declaration import DatasetDeclaration
from .numbers import NAN, Elements, MisfitError, fit
from .tables import CELLS, Part, codes, parts

Arrow: TypeAlias = Any  # pyarrow is untyped
"""A module, type or column of pyarrow's."""

_NUMBERS = frozenset(
    {"uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"}
    | {"float", "double"}
)
"""Arrow's names of types that are numbers, or classes."""

_OTHERS = frozenset({"bool", "halffloat", "null"})
"""Those of types that are read as numbers, without a loss."""

_TEXTS = frozenset({"string", "large_string", "string_view"})


def read(declaration: DatasetDeclaration) -> tuple[tuple[Part, Array], ...]:
    """Read the declared columns.

    Raises:
        DatasetError: naming row and column; or if there is no pyarrow.
        OSError: if the file can not be read.
    """
    file = declaration.file
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
            return _read(declaration, parquet.ParquetFile(stream))
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
    declaration: DatasetDeclaration, source: Arrow
) -> tuple[tuple[Part, Array], ...]:
    file = declaration.file
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
                rows = np.empty((batch.num_rows, len(part.columns)), part.dtype)
                for place, name in enumerate(part.columns):
                    try:
                        rows[:, place] = _convert(part, batch.column(name))
                    except MisfitError as error:
                        raise DatasetError(
                            file,
                            error.problem,
                            error.advice,
                            name,
                            done + error.index + 1,
                        ) from None
                writer.write(rows.view(np.uint8).data)
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
    if part.classes and (is_text or called in _NUMBERS or called == "bool"):
        return
    if is_text:
        advice = "leave the column out"
        if part.tensor == "target":
            advice = "list its texts in classes"
        raise DatasetError(file, "expected numbers, got text", advice, name)
    if part.classes or (is_decimal and not part.dtype.startswith("float")):
        advice = "convert the column, or choose another dtype"
    elif is_decimal or called in _NUMBERS or called in _OTHERS:
        return
    else:
        advice = "convert the column to numbers, or leave it out"
    raise DatasetError(file, f"expected numbers, got {called}", advice, name)


def _convert(part: Part, column: Arrow) -> Elements:
    """Return a column as elements of its tensor.

    Raises:
        MisfitError: at the first that does not fit.
    """
    if str(column.type).startswith("dictionary"):
        column = column.dictionary_decode()
    if column.null_count and (part.classes or not part.nan):
        raise MisfitError(
            int(column.is_null().to_numpy(zero_copy_only=False).argmax()),
            "expected a value, got an empty cell",
            NAN if part.dtype.startswith("float") else "fill it in",
        )
    if part.classes:
        return fit(_codes(part, column.dictionary_encode()), part.dtype, nan=False)
    if column.null_count or str(column.type) not in _NUMBERS | {"bool", "halffloat"}:
        column = column.cast("double", safe=False)
    return fit(column.to_numpy(zero_copy_only=False), part.dtype, part.nan)


def _codes(part: Part, column: Arrow) -> Elements:
    """Return the number of each text, of a column that holds each of them once."""
    places: Elements = column.indices.to_numpy()
    texts = [
        str(text).lower() if isinstance(text, bool) else str(text)
        for text in column.dictionary.to_pylist()
    ]
    try:
        return codes(part, texts)[places]
    except MisfitError as error:
        # Texts come in the order of the rows: this row is the first at fault.
        error.index = int((places == error.index).argmax())
        raise
