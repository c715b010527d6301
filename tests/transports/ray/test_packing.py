"""Tensors, frames and functions come out of Ray's object store as they went in."""

from __future__ import annotations

import warnings

import pytest
import ray
import torch

from obhut.transports.ray.engine import Engine
from obhut.transports.ray.packing import Packed

KINDS = [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool]

VALUES = [
    *(torch.ones(3, 2).to(kind) for kind in KINDS),
    torch.arange(6.0).view(2, 3).t(),
    torch.zeros(0, 3),
    torch.tensor(2.0),
    torch.tensor([1 + 2j]).conj(),
    torch.eye(3).to_sparse(),
    torch.nn.Parameter(torch.ones(2)),
]


def test_tensors_are_as_they_were(engine: Engine) -> None:
    """Of all dtypes, layouts and classes, and without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = ray.get(ray.put(Packed(VALUES)), timeout=60)
    for came, value in zip(values, VALUES, strict=True):
        assert type(came) is type(value)
        assert came.dtype == value.dtype
        assert came.shape == value.shape
        assert came.requires_grad == value.requires_grad
        assert torch.equal(came.to_dense().cfloat(), value.to_dense().cfloat())


def test_large_tensors_stay_in_the_object_store(engine: Engine) -> None:
    """Read twice, they are the same memory."""
    reference = ray.put(Packed(torch.ones(1_000_000)))
    one, two = ray.get([reference, reference], timeout=60)
    assert one.data_ptr() == two.data_ptr()
    assert one.sum() == 1_000_000


def test_frames_and_functions_travel(engine: Engine) -> None:
    """Memory views are that again; a function has what it closes over."""
    factor = 3
    frame = memoryview(bytes(range(10)))
    value = (frame, memoryview(b""), lambda x: factor * x)
    came, empty, function = ray.get(ray.put(Packed(value)), timeout=60)
    assert came == frame
    assert not len(empty)
    assert function(2) == 6


def test_what_can_not_be_pickled_says_so(engine: Engine) -> None:
    """Where it is sent, and not where it would arrive."""
    with pytest.raises(TypeError, match="pickle"):
        ray.put(Packed(one for one in ()))
