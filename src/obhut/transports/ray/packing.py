"""Values that carry tensors and frames through Ray without copies on the way.

::

    reference = ray.put(Packed(source))     # what comes out of it is the source

A tensor travels as bytes beside what refers to it, and stays in the object store's
shared memory when it arrives.

Rules:

- Duty: who receives it writes to no tensor or frame of it. The memory is mapped to be
  read, and writing ends the process.
- Functions travel as Ray carries them, by value where they can not be imported.
"""

from __future__ import annotations

import ctypes
import io
import pickle
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from ray import cloudpickle

from obhut.protocol.codec import Frame
from obhut.worker.tensors import DTYPE_NAMES, DTYPES, to_frame

_T = TypeVar("_T")


class Packed(Generic[_T]):
    """A value on its way: it is itself again where it arrives.

    Args:
        value: anything that can be pickled.
    """

    def __init__(self, value: _T) -> None:
        self._value = value

    # Any below: as pickle has it.
    def __reduce__(self) -> tuple[Any, ...]:
        buffers: list[pickle.PickleBuffer] = []
        file = io.BytesIO()
        kind: Any = _Pickler
        pickler = kind(file, protocol=5, buffer_callback=buffers.append)
        pickler.dump(self._value)
        arrays = [np.frombuffer(one.raw(), dtype=np.uint8) for one in buffers]
        return _unpacked, (file.getvalue(), arrays)


class _Pickler(cloudpickle.Pickler):
    """Puts the bytes of tensors and frames beside what refers to them."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is torch.Tensor and _is_plain(value):
            name, shape = DTYPE_NAMES[value.dtype], tuple(value.shape)
            return _tensor, (pickle.PickleBuffer(to_frame(value)), name, shape)
        if type(value) is memoryview:
            return memoryview, (pickle.PickleBuffer(value),)
        return super().reducer_override(value)  # type: ignore[no-untyped-call] # Ray's


def _is_plain(tensor: torch.Tensor) -> bool:
    return (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not tensor.requires_grad
        and tensor.dtype in DTYPE_NAMES
    )


def _unpacked(header: bytes, arrays: list[Frame]) -> Any:
    """Return the value. Any: whatever was packed."""
    return pickle.loads(header, buffers=arrays)  # noqa: S301 # see the package's rule


def _tensor(frame: Frame, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor whose memory is the frame's."""
    flat = np.frombuffer(frame, dtype=np.uint8)
    if not flat.size:
        return torch.empty(shape, dtype=DTYPES[dtype], device="cpu")
    # By its address: torch warns of memory that can not be written to.
    memory = (ctypes.c_ubyte * flat.size).from_address(
        flat.__array_interface__["data"][0]
    )
    memory.owner = flat  # type: ignore[attr-defined] # to keep it alive
    return torch.frombuffer(memory, dtype=DTYPES[dtype]).view(shape)
