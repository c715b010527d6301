"""Rows that are here, however they are given, as tensors by the names of their parts.

::

    parts_of((x, y))                              # {"features": x, "target": y}
    parts_of(torch.utils.data.TensorDataset(x, y))
    parts_of({"features": x, "target": y, "hospital": h})

Rules:

- There are features and a target, of the same rows, one or more.
- Nothing is converted or copied; what can not be taken as it is, is told with the line
  to write.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex, TypeAlias

import numpy as np
import torch

from obhut.client.transfer import check_sendable
from obhut.errors import CallError
from obhut.host.printing import several

Parts: TypeAlias = dict[str, torch.Tensor]
"""Tensors of the same rows, by the names of their parts."""

NEEDED = ("features", "target")
"""The parts that every data set has."""


def parts_of(data: Any, whose: str = "") -> Parts:  # Any: whatever the caller passed
    """Return a data set's tensors by the names of their parts.

    Args:
        data: a pair of features and a target, (rows, ...) each, any dtype; a data set
            with two ``tensors``, as ``obhut.LocalDataset`` and PyTorch's
            ``TensorDataset`` have; or a mapping of parts to tensors.
        whose: the client's name, for errors.

    Raises:
        CallError: if it is none of these, or not of the same rows, one or more.
        NotSendableError: if a part is no plain tensor.
    """
    at = f" of {whose}" if whose else ""
    if isinstance(data, Mapping):
        parts = dict(data)
    else:
        tensors = getattr(data, "tensors", data)
        if not isinstance(tensors, tuple | list) or len(tensors) != len(NEEDED):
            raise CallError(f"{_EXPECTED}, got {described(data)}{at}; {_MADE}")
        parts = dict(zip(NEEDED, tensors, strict=True))
    for name in NEEDED:
        if name not in parts:
            raise CallError(f"{_EXPECTED}, got parts {several(list(parts))}{at}")
    for name, tensor in parts.items():
        if not isinstance(tensor, torch.Tensor):
            raise CallError(
                f"expected a tensor as {name!r}{at}, got {described(tensor)}: "
                "torch.as_tensor(x) makes one of numbers in an array, "
                "torch.as_tensor(x.to_numpy()) of those in a table"
            )
        check_sendable(tensor)
    shapes = {name: tuple(one.shape) for name, one in parts.items()}
    counts = {shape[0] if shape else 0 for shape in shapes.values()}
    if len(counts) != 1 or counts == {0}:
        said = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise CallError(
            f"expected parts{at} of the same rows, one or more, got shapes {said}"
        )
    return {name: tensor.detach() for name, tensor in parts.items()}


def rows_of(parts: Parts) -> int:
    """Return how many rows there are."""
    return len(parts["features"])


def whole(value: object) -> int | None:
    """Return a whole number, NumPy's as well; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None  # an array, or a tensor, of several


def column_of(
    parts: Parts, column: int | str | torch.Tensor | Sequence[Any]
) -> np.ndarray[Any, Any]:
    """Return a column's values, (rows,).

    Args:
        parts: of the data set.
        column: of the features, by number; a part, by name; or the values.

    Raises:
        CallError: if there is no such column, or not one value a row.
    """
    features = parts["features"]
    if isinstance(column, str):
        if column not in parts:
            raise CallError(
                f"expected a part of the data set, one of {several(list(parts))}, got "
                f'{column!r}: by_column("target"), or by the number of a column of '
                "the features, by_column(3)"
            )
        values = _array(parts[column])
    elif (number := whole(column)) is not None:
        width = features.shape[1] if features.dim() == 2 else 0
        if not -width <= number < width:
            raise CallError(
                f"expected one of the features' {width} columns, got number {number}"
                if width
                else "expected features (rows, columns), got shape "
                f"{list(features.shape)}; give the values of rows: by_column(hospitals)"
            )
        values = _array(features[:, number])
    elif isinstance(column, torch.Tensor):
        values = _array(column)
    else:
        values = np.asarray(column)
        if values.dtype.kind in "US":  # else a NaN among texts would be one
            values = np.asarray(column, dtype=object)
    rows = rows_of(parts)
    if values.shape not in ((rows,), (rows, 1)):
        raise CallError(
            f"expected a column of a value for each of {rows:,} rows, got shape "
            f"{list(values.shape)}"
        )
    empty = sum(one is None or _is_nan(one) for one in values.ravel().tolist())
    if empty:
        raise CallError(
            f"expected a value in each row of the column, got none in {empty:,} "
            "rows; leave them out, or give them a value of their own"
        )
    return values.ravel()


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    wide = tensor.double() if tensor.is_floating_point() else tensor
    return np.asarray(wide.numpy(force=True))


def described(data: object) -> str:
    """Return what something is, in a few words."""
    kind = type(data).__name__
    if isinstance(data, tuple | list):
        return f"a {kind} of {len(data):,}"
    return f"a {kind}"


_EXPECTED = (
    "expected a data set: a pair (features, target) of tensors, an obhut.LocalDataset "
    "or torch.utils.data.TensorDataset of two, or a mapping "
    '{"features": x, "target": y}'
)

_MADE = (
    "of another Dataset, or a list of samples, "
    "next(iter(torch.utils.data.DataLoader(samples, len(samples)))) makes a pair"
)
