"""Tensors made of data, where the data is or where a policy holds it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

import obhut
from obhut.errors import LocationError, UnsupportedError


@pytest.fixture
def guarded() -> Iterator[obhut.VirtualWorker]:
    """An owner under a policy."""
    policy = obhut.Quorum(aggregators=["agg"], contributors=["bob", "a", "c"])
    worker = obhut.VirtualWorker("bob", policy=policy)
    yield worker
    worker.close()


@pytest.mark.parametrize("make", [torch.tensor, torch.as_tensor, torch.FloatTensor])
def test_values_behind_a_policy_do_not_come_by_a_list(make, guarded):
    """The error says how they are put together there."""
    x = obhut.send(torch.tensor([1.0, 2.0]), guarded)
    with pytest.raises(UnsupportedError, match=r"torch\.stack"):
        make([x.sum(), x.mean()])


def test_a_list_is_put_together_behind_a_policy(guarded):
    """Inside ``with worker:`` nothing has to come here."""
    x = obhut.send(torch.tensor([1.0, 2.0]), guarded)
    with guarded:
        made = [torch.tensor([[x.sum(), 1.0]]), x.new_tensor([x.sum(), x.mean()])]
    assert [y.location for y in made] == [guarded, guarded]
    assert [tuple(y.shape) for y in made] == [(1, 2), (2,)]
    guarded.wait()


def test_longer_tensors_in_a_list_are_refused_as_locally(bob):
    """In PyTorch's own words, here and at the worker."""
    x = obhut.send(torch.ones(3), bob)
    with pytest.raises(ValueError, match="only one element"):
        torch.tensor([x, x])
    with bob, pytest.raises(ValueError, match="only one element"):
        torch.tensor([x, x])


def test_numbers_decide_the_dtype_with_remote_ones(bob):
    """As ``torch.tensor`` finds it over all of them."""
    one = obhut.send(torch.tensor(1), bob)
    with bob:
        made = [torch.tensor([one, 2]), torch.tensor([one, 2.5]), torch.tensor([one])]
    assert [y.dtype for y in made] == [torch.int64, torch.float32, torch.int64]
    assert made[1].tolist() == [1.0, 2.5]


def test_new_takes_sizes_as_any_integers(bob):
    """A size from numpy is a size, and a list is data."""
    x = obhut.send(torch.ones(2, 3), bob)
    assert x.new(np.int64(4)).shape == (4,)
    assert x.new(torch.Size([])).shape == ()
    assert x.new([np.int64(4)]).tolist() == [4.0]
    assert x.new(torch.ones(2)).tolist() == [1.0, 1.0]
    assert x.new(2, 3).dtype is torch.float32


@pytest.mark.parametrize("dtype", ["torch.cuda.FloatTensor", torch.cuda.HalfTensor])
def test_a_type_on_another_device_is_refused(dtype, bob):
    """The worker chooses where it computes."""
    with pytest.raises(UnsupportedError, match="device cuda"):
        obhut.send(torch.ones(2), bob).type(dtype)


def test_a_local_tensor_that_requires_a_gradient_is_not_taken_along(bob):
    """No gradient would come back to it."""
    x, weight = obhut.send(torch.ones(2), bob), torch.ones(2, requires_grad=True)
    with pytest.raises(LocationError, match="requires a gradient"):
        weight.to(x)
    with torch.no_grad():
        assert weight.to(x).location is bob
