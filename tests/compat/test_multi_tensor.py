from collections.abc import Callable

import pytest
import torch

import obhut as sy
from obhut.compat.hook import TorchHook
from obhut.compat.multi_tensor import MultiTensor
from obhut.compat.tensors import combine_pointers
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


def test_it_looks_like_one_tensor(bob: VirtualWorker, alice: VirtualWorker) -> None:
    """Shape, dim() and what else tells no value is one tensor's, not a list."""
    x = torch.ones(2, 3).send(bob, alice)
    assert x.shape == x.size() == torch.Size([2, 3])
    assert x.dim() == x.ndim == 2
    assert x.size(0) == 2
    assert x.numel() == 6
    assert x.dtype is torch.float32
    assert x.is_floating_point() is True
    assert x.requires_grad is False
    assert x.sum().item() == [6.0, 6.0]


def test_what_looks_unlike_is_told_for_each(
    bob: VirtualWorker, alice: VirtualWorker
) -> None:
    """Parts of different shapes are not said to have one."""
    pair = combine_pointers(torch.ones(2).send(bob), torch.ones(3).send(alice))
    assert pair.shape == [torch.Size([2]), torch.Size([3])]
    assert pair.dim() == 1


def test_what_is_set_is_set_on_each(bob: VirtualWorker, alice: VirtualWorker) -> None:
    """An attribute reaches the parts: it is not kept here unseen."""
    x = torch.ones(2).send(bob, alice)
    x.requires_grad = True
    assert all(part.requires_grad for part in x)
    x.gc = False
    del x
    assert bob.objects_count() == alice.objects_count() == 1


def test_pointers_can_be_combined(bob: VirtualWorker, alice: VirtualWorker) -> None:
    """combine_pointers(x, y) and x.combine(y) are one object at both workers."""
    x, y = torch.ones(2).send(bob), torch.ones(2).mul(3).send(alice)
    for both in (sy.combine_pointers(x, y), x.combine(y)):
        assert (both + both).get(sum_results=True).tolist() == [8.0, 8.0]
        assert {worker.id for worker in both.locations} == {"bob", "alice"}
    with pytest.raises(LocationError, match="this process"):
        x.combine(torch.ones(2))
    with pytest.raises(LocationError, match="bob and bob"):
        x.combine(torch.ones(2).send(bob))


def test_moved_to_this_process_it_is_fetched(
    hook: TorchHook, bob: VirtualWorker, alice: VirtualWorker
) -> None:
    """move(sy.local_worker) is get(), of all parts."""
    both = torch.ones(2).send(bob, alice)
    assert [x.tolist() for x in both.move(hook.local_worker)] == [[1.0, 1.0]] * 2


def test_gradients_are_at_each_worker(bob: VirtualWorker, alice: VirtualWorker) -> None:
    """backward() runs at each, and .grad is again one for all."""
    x = torch.tensor([1.0, 2.0], requires_grad=True).send(bob, alice)
    assert x.requires_grad is True
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
