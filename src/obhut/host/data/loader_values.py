"""What an owner's function returned, said to the worker: runs in the loader's process.

::

    send(pipe, clinic.load())                    # pipe: a descriptor

Rules:

- One array is the features; a pair is features and target; a dict has arrays by name.
  A table of pandas, polars or pyarrow goes as rows, for the keys of tables.
- What yields such pieces, a generator or another iterable, gives their rows one after
  the other; only one piece is in memory.
- An array is NumPy's, PyTorch's, or what NumPy makes numbers of: never objects, text
  or dates, which have no one reading.
- No library is loaded that the owner's function has not loaded, but pyarrow for a
  table.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from obhut.protocol.dtypes import ITEM_BYTES

from .loader_messages import Head, Rows, Values, write

Returned: TypeAlias = Any  # whatever an owner's function returns

_KINDS = (
    "an array, a pair of features and target, a dict of arrays, a table, or an "
    "iterable of those"
)


_NEVER = frozenset({"complex32", "float8_e4m3fnuz", "float8_e5m2fnuz"})
"""Types that travel, but that no data set is of."""


class ReturnedError(ValueError):
    """What a function returned is no data."""


def send(pipe: int, returned: Returned) -> None:
    """Say what a function returned.

    Args:
        pipe: where to.
        returned: what it returned.

    Raises:
        ReturnedError: if that is no data.
        OSError: if nobody listens.
    """
    pieces = 0
    for piece in _pieces(returned):
        pieces += 1
        if _is_table(piece):
            data = _table(piece)
            write(pipe, Rows(len(data)), [data])
            continue
        arrays = {name: _array(name, one) for name, one in _named(piece).items()}
        heads = tuple(
            Head(name, dtype, array.shape) for name, (dtype, array) in arrays.items()
        )
        bodies = (array.reshape(-1).view(np.uint8).data for _, array in arrays.values())
        write(pipe, Values(heads), bodies)
    if not pieces:
        raise ReturnedError("it yielded nothing")


def _pieces(returned: Returned) -> Iterator[Returned]:
    """Yield the pieces that something is made of."""
    single = isinstance(returned, (np.ndarray, Mapping, tuple, list)) or (
        _is_table(returned) or _is_array(returned)
    )
    if single or not hasattr(returned, "__iter__") or isinstance(returned, str | bytes):
        yield returned
    else:
        yield from returned


def _is_table(value: Returned) -> bool:
    return hasattr(value, "__arrow_c_stream__") or hasattr(value, "__dataframe__")


def _is_array(value: Returned) -> bool:
    return hasattr(value, "__array__") or hasattr(value, "__array_interface__")


def _table(table: Returned) -> memoryview:
    """Return a table as a stream of Arrow's IPC format."""
    # Not loaded unless there is a table: it takes a third of a second.
    pa = importlib.import_module("pyarrow")
    made = table
    if type(table).__module__.startswith("pandas"):
        made = _of_pandas(pa, table if table.ndim == 2 else table.to_frame())
    elif not isinstance(table, pa.Table):
        made = pa.table(table)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, made.schema) as writer:
        writer.write_table(made, max_chunksize=2**16)
    return memoryview(sink.getvalue())


def _of_pandas(pa: Returned, frame: Returned) -> Returned:
    """Return a table of pandas' as one of Arrow's.

    Raises:
        ReturnedError: if a column has values of several types.
    """
    try:
        return pa.Table.from_pandas(frame)
    except pa.ArrowException as error:
        for place, name in enumerate(frame.columns):
            try:
                pa.Array.from_pandas(frame.iloc[:, place])
            except pa.ArrowException:
                raise ReturnedError(
                    f"column {name!r:.60} of the table has values of several types: "
                    "make them of one, such as by astype(str)"
                ) from error
        raise


def _named(piece: Returned) -> Mapping[str, Returned]:
    """Return the arrays of a piece by name.

    Raises:
        ReturnedError: if it has none, or names that are no text.
    """
    if isinstance(piece, Mapping):
        for name in piece:
            if not isinstance(name, str) or not name:
                raise ReturnedError(
                    f"a dict has arrays by name, and not by {name!r:.60}"
                )
        if not piece:
            raise ReturnedError("the dict is empty")
        return piece
    if isinstance(piece, tuple):
        if len(piece) != 2:
            raise ReturnedError(
                f"a pair is features and target, and this has {len(piece)} parts: name "
                "them in a dict"
            )
        return {"features": piece[0], "target": piece[1]}
    return {"features": piece}


def _array(name: str, value: Returned) -> tuple[str, npt.NDArray[Any]]:
    """Return the type of an array's elements, and the array in rows.

    Raises:
        ReturnedError: if there are elements that are no numbers.
    """
    if hasattr(value, "detach") and hasattr(value, "cpu"):  # a tensor of PyTorch's
        return _tensor(name, value)
    if isinstance(value, str | bytes | set | Mapping) or value is None:
        raise ReturnedError(
            f"{name} is a {type(value).__name__}, and not {_KINDS}"
            if value is not None
            else f"it returned None, and not {_KINDS}"
        )
    parts = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(one, np.ma.MaskedArray) and np.any(one.mask) for one in parts):
        raise ReturnedError(
            f"{name} is a masked array, of which some elements have no value: return "
            "filled(…), such as with NaN"
        )
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise ReturnedError(f"{name} has rows of several lengths") from error
    if str(array.dtype.newbyteorder("=")) not in ITEM_BYTES:
        raise ReturnedError(
            f"{name} is a {type(value).__name__} of elements of {array.dtype}, and "
            f"not {_KINDS}"
        )
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return str(native.dtype), _in_rows(native)


def _tensor(name: str, tensor: Returned) -> tuple[str, npt.NDArray[Any]]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if str(tensor.layout) != "torch.strided" or dtype not in {*ITEM_BYTES} - _NEVER:
        raise ReturnedError(f"{name} is a tensor of {dtype}, {tensor.layout}")
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    if dtype.startswith(("bfloat", "float8")):  # which NumPy has not
        torch = importlib.import_module("torch")  # it is there: it made the tensor
        plain = plain.view(torch.uint8 if dtype.startswith("float8") else torch.int16)
    return dtype, _in_rows(plain.numpy())


def _in_rows(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    # Unlike ascontiguousarray, this keeps an array without dimensions as it is.
    return np.asarray(array, order="C")
