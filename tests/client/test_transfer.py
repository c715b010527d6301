"""How tensors travel: sent, fetched, moved; what they bring along."""

from __future__ import annotations

import contextlib
import gc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import obhut
from obhut.client.registry import WORKERS
from obhut.client.transfer import check_sendable, fetch, put, relocate, spend
from obhut.errors import ObjectNotFoundError, RemoteIndexError, WorkerClosedError
from obhut.worker.tensors import DTYPES


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (0, 2)])
@pytest.mark.filterwarnings("ignore:ComplexHalf support:UserWarning")
def test_every_dtype_travels(bob, dtype, shape):
    """A tensor of any type comes back bit for bit."""
    x = torch.zeros(shape).add(1).to(dtype)
    back = obhut.send(x, bob).get()
    assert back.dtype is dtype
    assert back.shape == x.shape
    flat = [t.reshape(-1).view(torch.uint8) for t in (back, x)]
    assert torch.equal(*flat)


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_any_view_travels(shape, random):
    """Transposed, sliced or expanded tensors arrive with their own elements."""
    bob = obhut.VirtualWorker(id="viewer")
    x = torch.arange(float(torch.Size(shape).numel())).view(shape)
    order = list(range(len(shape)))
    random.shuffle(order)
    x = x.permute(order)[:: random.randint(1, 3)]
    if random.random() < 0.5:
        x = x.unsqueeze(0).expand(2, *x.shape)
    remote = obhut.send(x, bob)
    assert remote.shape == x.shape
    assert torch.equal(remote.get(), x)
    bob.close()


def test_a_gradient_travels_along(bob):
    """A leaf is sent with its gradient, and comes back with it."""
    x = torch.ones(2, requires_grad=True)
    (x * 3).sum().backward()
    remote = obhut.send(x, bob)
    assert remote.requires_grad
    assert remote.grad.sum().item() == 6.0
    back = remote.get()
    assert back.requires_grad
    assert back.is_leaf
    assert torch.equal(back.grad, x.grad)
    assert torch.equal(x.grad, torch.full((2,), 3.0))


def test_what_was_sent_is_a_copy(bob):
    """The local tensor stays as it is, and changes on neither side are seen."""
    for size in (3, 1_000_000):
        x = torch.zeros(size)
        remote = obhut.send(x, bob)
        x += 1
        remote += 2
        assert remote.get().eq(2).all()
        assert x.eq(1).all()


def test_what_was_fetched_is_a_copy(bob):
    """A fetched tensor has memory of its own and can be resized."""
    remote = obhut.send(torch.zeros(3), bob)
    future = fetch([remote._held])
    (value,) = future.result()
    remote += 1
    assert value.tolist() == [0.0, 0.0, 0.0]
    assert value.resize_(6).numel() == 6


def test_many_are_fetched_in_one_exchange(bob, alice):
    """Values of several workers come together, in the order they were asked for."""
    tensors = [
        obhut.send(torch.tensor([k]), worker)
        for k, worker in enumerate((bob, alice, bob, alice))
    ]
    tensors[0] = tensors[0] + 0.5
    values = fetch([t._held for t in tensors]).result()
    assert [v.item() for v in values] == [0.5, 1, 2, 3]


def test_spending_lets_go_of_tagged_objects_too(bob):
    """What is fetched for good is gone, even if it was tagged."""
    x = obhut.send(torch.ones(1), bob, tags=("x",))
    spend([x._held], "it was spent")
    assert bob.objects_count() == 0
    with pytest.raises(ObjectNotFoundError, match="it was spent"):
        x.get()


# --- moves --------------------------------------------------------------------------


def test_a_move_leaves_nothing_behind(bob, alice):
    """The object is at the other worker, and only there."""
    x = obhut.send(torch.ones(2), bob)
    moved = x.move(alice)
    assert moved is x
    assert x.location is alice
    assert (bob.objects_count(), alice.objects_count()) == (0, 1)
    assert x.get().tolist() == [1.0, 1.0]


def test_what_waits_is_done_before_a_move(bob, alice):
    """Operators that were not sent yet are part of what moves."""
    x = obhut.send(torch.zeros(1), bob)
    for _ in range(5):
        x += 1
    y = (x * 2).move(alice)
    x += 100
    assert y.get().item() == 10.0


def test_a_shuttle(bob, alice):
    """An object can go to and from as often as it likes."""
    x = obhut.send(torch.zeros(1), bob)
    for k in range(50):
        x.move(alice if k % 2 == 0 else bob)
        x += 1
    assert x.get().item() == 50.0
    assert (bob.objects_count(), alice.objects_count()) == (0, 0)


def test_crossing_moves(bob, alice):
    """Two objects that change places do not wait for each other."""
    x, y = obhut.send(torch.tensor([1.0]), bob), obhut.send(torch.tensor([2.0]), alice)
    for _ in range(10):
        x.move(alice)
        y.move(bob)
        x.move(bob)
        y.move(alice)
    x.move(alice)
    y.move(bob)
    assert (x.location, y.location) == (alice, bob)
    assert (x + 1).get().item() == 2.0
    assert (y + 1).get().item() == 3.0


def test_several_move_in_one_delivery(bob, alice):
    """What is relocated together arrives together, in order."""
    helds = [put(bob.session, torch.tensor([k])) for k in range(5)]
    moved = relocate(helds, alice.session)
    assert [v.item() for v in fetch(moved).result()] == [0, 1, 2, 3, 4]
    for held in helds:
        with pytest.raises(ObjectNotFoundError, match="moved to alice"):
            held.check()


def test_a_failure_does_not_move(bob, alice):
    """What could not be made tells why when it is asked for where it was to go."""
    x = obhut.send(torch.ones(3), bob)
    bad = x.index_select(0, obhut.send(torch.tensor([99]), bob))
    with pytest.raises((RemoteIndexError, ObjectNotFoundError)):
        bad.move(alice).get()
    with contextlib.suppress(RemoteIndexError):
        bob.wait()
    assert alice.objects_count() == 0
    assert x.get().tolist() == [1.0, 1.0, 1.0]


def test_a_move_to_a_closed_worker_keeps_the_object(bob, alice):
    """The object stays where it was, and the error names the closed worker."""
    x = obhut.send(torch.ones(1), bob)
    alice.close()
    with pytest.raises(WorkerClosedError, match="alice"):
        x.move(alice)
    assert x.location is bob
    assert x.get().item() == 1.0


def test_what_can_travel_passes_unchanged():
    """A sendable tensor is returned as it is: a parameter too."""
    for tensor in (torch.ones(1), torch.nn.Parameter(torch.ones(1)), torch.ones(1).t()):
        assert check_sendable(tensor) is tensor


def test_closed_workers_are_not_known(alice):
    """A worker that closed is not found by its id any more."""
    alice.close()
    with pytest.raises(LookupError):
        WORKERS.find("alice")


def test_a_move_that_fails_leaves_the_tensor_where_it_was(bob):
    """The error is raised once; then the name stands for what stayed."""
    narrow = obhut.VirtualWorker(id="narrow", memory_limit=10)
    x = obhut.send(torch.arange(100.0), bob)
    x.move(narrow)
    with pytest.raises(obhut.ObhutError, match="narrow"):
        x.sum().item()
    assert x.location is bob
    assert x.sum().item() == 4950.0
    del x
    gc.collect()  # the error's frames
    assert bob.objects_count() == narrow.objects_count() == 0
    narrow.close()
