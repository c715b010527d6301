"""Rows of a data set, drawn into several.

::

    for name, rows in draw(1_000, {"train": 0.8, "test": 0.2, "seed": 1}):
        take(array, rows)                # name is "train", then "test"

Rules:

- No row is in two of them; if the shares are 1 together, each row is in one.
- Rows keep their order. Which they are depends on the seed and their number alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from obhut.protocol.dtypes import nbytes

from .arrays import Array, ArrayWriter

SEED = "seed"
"""The key beside the shares."""

_TOGETHER = 2**20
"""Bytes that are copied at a time, about."""

Rows = npt.NDArray[np.int64]


def draw(rows: int, split: Mapping[str, float]) -> Iterator[tuple[str, Rows]]:
    """Yield for each share which rows are in it, from 0 and in order.

    Args:
        rows: how many there are.
        split: the shares by name, and the seed.
    """
    shares = {name: share for name, share in split.items() if name != SEED}
    order = np.random.default_rng(int(split.get(SEED, 0))).permutation(rows)
    begin = 0
    for name, total in zip(shares, np.cumsum([*shares.values()]).tolist(), strict=True):
        # 0.7 + 0.2 + 0.1 is a little less than 1.
        end = min(rows, math.floor(total * rows + 0.5 + 1e-9))
        yield name, np.sort(order[begin:end])
        begin = end


def take(array: Array, rows: Rows) -> Array:
    """Return some rows of an array, in memory of their own.

    Raises:
        OSError: if there is no memory for them.
    """
    width = nbytes(array.dtype, array.shape[1:])
    whole = np.frombuffer(array.data, np.uint8).reshape(array.shape[0], width)
    some = max(1, _TOGETHER // max(1, width))
    with ArrayWriter(array.dtype) as writer:
        for begin in range(0, len(rows), some):
            writer.write(whole[rows[begin : begin + some]].reshape(-1).data)
        return writer.finish((len(rows), *array.shape[1:]))
