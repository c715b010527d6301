from collections.abc import Callable

import pytest
import torch

from obhut.compat.multi_tensor import MultiTensor
from obhut.compat.virtual_worker import VirtualWorker
from obhut.errors import LocationError


def test_a_tensor_can_be_sent_to_several_workers(
    bob: VirtualWorker, alice: VirtualWorker
) -> None:
    """x.send(bob, alice) makes a copy at each; get() brings all, or their sum."""
    x = torch.tensor([1.0, 2.0])
    both = x.send(bob, alice)
    assert isinstance(both, MultiTensor)
    assert len(both) == 2
    assert both.locations == [bob, alice]
    assert list(both.child) == ["bob", "alice"]
    assert bob.objects_count() == alice.objects_count() == 1
    assert "bob" in repr(both)
    assert all(torch.equal(value, x) for value in both.get())
    assert bob.objects_count() == alice.objects_count() == 0
    assert torch.equal(x.send(bob, alice).get(sum_results=True), x * 2)


def test_operations_are_done_at_each_worker(
    bob: VirtualWorker, alice: VirtualWorker
) -> None:
    """Operators, functions, methods and attributes go to all parts."""
    local = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    x, y = local.send(bob, alice), local.T.send(bob, alice)
    for op in _OPERATIONS:
        for value in op(x, y).get():
            assert torch.equal(value, op(local, local.T))
    assert x.shape == [local.shape] * 2
    assert x[0].sum().get() == [torch.tensor(3.0)] * 2


_OPERATIONS: list[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = [
    lambda x, y: x + y,
    lambda x, y: 1 - x * 2,
    lambda x, y: x @ y,
    lambda x, y: -x / y,
    lambda x, y: 1 / x**2,
    lambda x, y: x > y,
    lambda x, y: x == y,
    lambda x, y: torch.add(x, y, alpha=2),
    lambda x, y: torch.stack([x, y]),
    lambda x, y: x.mm(y).relu().mean(dim=0),
    lambda x, y: x.matmul(other=y),
]


def test_gradients_are_at_each_worker(bob: VirtualWorker, alice: VirtualWorker) -> None:
    """backward() runs at each, and .grad is again one for all."""
    x = torch.tensor([1.0, 2.0], requires_grad=True).send(bob, alice)
    assert x.requires_grad == [True, True]
    assert (x * x).sum().backward() is None
    assert x.grad.copy().get(sum_results=True).tolist() == [4.0, 8.0]


def test_all_parts_can_move_to_one_worker(
    bob: VirtualWorker, alice: VirtualWorker, make_worker: Callable[..., VirtualWorker]
) -> None:
    """move() brings the parts together, so that they can be summed there."""
    carol = make_worker("carol")
    both = torch.ones(2).send(bob, alice).move(carol)
    assert carol.objects_count() == 2
    assert bob.objects_count() == alice.objects_count() == 0
    assert sum(both).get().tolist() == [2.0, 2.0]


def test_a_mix_of_workers_is_refused_and_sends_nothing(
    bob: VirtualWorker, alice: VirtualWorker, make_worker: Callable[..., VirtualWorker]
) -> None:
    """Other workers, another order, one worker's or local tensors: LocationError."""
    carol = make_worker("carol")
    x = torch.ones(2)
    both = x.send(bob, alice)
    others = [x.send(bob, carol), x.send(alice, bob), x.send(bob), x]
    counts = [worker.objects_count() for worker in (bob, alice, carol)]
    for other in others:
        with pytest.raises(LocationError, match="bob"):
            both + other
        with pytest.raises(LocationError, match="bob"):
            torch.stack([both, other])
    with pytest.raises(LocationError, match="bob"):
        others[2] + both
    assert [worker.objects_count() for worker in (bob, alice, carol)] == counts


def test_an_unknown_attribute_is_named(
    bob: VirtualWorker, alice: VirtualWorker
) -> None:
    """What a remote tensor does not have, a MultiTensor does not have."""
    both = torch.ones(1).send(bob, alice)
    with pytest.raises(AttributeError, match="no_such_thing"):
        both.no_such_thing  # noqa: B018
    assert not hasattr(both, "__array__")
