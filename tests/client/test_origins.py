"""Gradients that go back to where a tensor came from."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import obhut
from obhut.client.origins import set_aside, tie
from obhut.client.workers import RemoteWorker
from obhut.errors import ReleaseRefusedError


@pytest.fixture
def carol() -> Iterator[obhut.VirtualWorker]:
    """A third virtual worker."""
    worker = obhut.VirtualWorker(id="carol")
    yield worker
    worker.close()


def _sent(x: torch.Tensor, worker: RemoteWorker) -> obhut.RemoteTensor:
    """Send a tensor whose gradients come back."""
    remote = obhut.send(x, worker)
    tie(remote._held, x)
    return remote


def test_gradients_come_back_through_local_history(bob: obhut.VirtualWorker) -> None:
    """A result's history here goes on; a leaf here gets what was added there."""
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    (_sent(x * x, bob) * 3).sum().backward()
    assert torch.equal(x.grad, torch.tensor([6.0, 12.0]))
    y = torch.tensor([1.0, 2.0], requires_grad=True)
    remote = _sent(y, bob)
    (remote * 3).sum().backward()
    assert torch.equal(y.grad, torch.tensor([3.0, 3.0]))
    assert torch.equal(remote.grad.copy().get(), y.grad)


def test_each_pass_adds_what_it_adds(bob: obhut.VirtualWorker) -> None:
    """Twice backward is twice the gradient, here and there; the name stays the same."""
    x = torch.ones(2, requires_grad=True)
    remote = _sent(x, bob)
    (remote * 2).sum().backward()
    named = remote.grad
    (remote * 5).sum().backward()
    assert remote.grad is named
    assert torch.equal(x.grad, torch.full((2,), 7.0))
    assert torch.equal(named.copy().get(), torch.full((2,), 7.0))
    remote.grad = None
    (remote * 4).sum().backward()
    assert torch.equal(x.grad, torch.full((2,), 11.0))
    assert torch.equal(remote.grad.copy().get(), torch.full((2,), 4.0))


def test_a_pass_that_was_broken_off_leaves_nothing_over(
    bob: obhut.VirtualWorker,
) -> None:
    """What an interrupted pass had set aside is not added to a later one."""
    x = torch.ones(2, requires_grad=True)
    remote = _sent(x, bob)
    (remote * 2).sum().backward()
    set_aside([(remote._held.tracked().place(), True)])
    remote.grad = None
    (remote * 3).sum().backward()
    assert torch.equal(remote.grad.copy().get(), torch.full((2,), 3.0))
    assert torch.equal(x.grad, torch.full((2,), 5.0))


def test_the_name_may_go_before_the_pass(bob: obhut.VirtualWorker) -> None:
    """What is left of the graph is enough; then nothing is left at the worker."""
    x = torch.ones(2, requires_grad=True)
    loss = (_sent(x, bob) * 2).sum()
    loss.backward()
    assert torch.equal(x.grad, torch.full((2,), 2.0))
    del loss
    assert bob.objects_count() == 0


def test_a_leaf_that_is_not_reached_gets_nothing(bob: obhut.VirtualWorker) -> None:
    """A pass beside it, or one for other inputs only, brings nothing back."""
    x = torch.ones(2, requires_grad=True)
    remote, other = _sent(x, bob), obhut.send(torch.ones(2, requires_grad=True), bob)
    (other * 2).sum().backward()
    (other * remote).sum().backward(inputs=[other])
    assert x.grad is None
    assert remote.grad is None
    (other * remote).sum().backward(inputs=[remote])
    assert torch.equal(x.grad, torch.ones(2))


def test_only_the_worker_knows_whether_it_was_reached(bob: obhut.VirtualWorker) -> None:
    """Where the way is vague, the worker is asked; nothing there is nothing here."""
    x, y = (torch.ones(2, requires_grad=True) for _ in "xy")
    a, b = _sent(x, bob), _sent(y, bob)
    (grad,) = torch.autograd.grad((a * a * 3).sum() + b.sum(), a, create_graph=True)
    grad.sum().backward()
    assert torch.equal(x.grad, torch.full((2,), 6.0))
    assert y.grad is None
    a.sum().backward()
    (b.sum() + grad.detach().sum()).backward()
    assert torch.equal(x.grad, torch.full((2,), 7.0))
    assert torch.equal(y.grad, torch.ones(2))


def test_a_local_tensor_that_asks_for_none_any_more_gets_none(
    bob: obhut.VirtualWorker,
) -> None:
    """After x.requires_grad_(False) the pass there goes on, and x stays as it is."""
    x = torch.ones(2, requires_grad=True)
    remote = _sent(x, bob)
    x.requires_grad_(False)
    (remote * 2).sum().backward()
    assert x.grad is None
    assert torch.equal(remote.grad.copy().get(), torch.full((2,), 2.0))


def test_a_moved_tensor_lets_gradients_go_back(
    bob: obhut.VirtualWorker, alice: obhut.VirtualWorker, carol: obhut.VirtualWorker
) -> None:
    """Through two workers and this process, as PyTorch does in one place."""
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    remote = _sent(x * 2, bob)
    hidden = remote * remote
    moved = obhut.move(hidden, alice, requires_grad=True)
    assert moved.location is alice
    assert moved.requires_grad
    again = (moved * 3).move("carol", requires_grad=True)
    again.sum().backward()
    assert torch.equal(x.grad, torch.tensor([24.0, 48.0]))
    del hidden, moved, again, remote
    assert [w.objects_count() for w in (bob, alice, carol)] == [0, 0, 0]


def test_what_shares_a_history_goes_back_at_once(
    bob: obhut.VirtualWorker, alice: obhut.VirtualWorker
) -> None:
    """Two results of one hidden layer move; its history is walked once for both."""
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    remote = obhut.send(x, bob)
    hidden = (remote * 2).exp()
    first, second = hidden * 3, hidden.sin()
    first.move(alice, requires_grad=True)
    second.move(alice, requires_grad=True)
    (first * second).sum().backward()
    there = (x * 2).exp()
    ((there * 3) * there.sin()).sum().backward()
    assert torch.allclose(remote.grad.copy().get(), x.grad)


def test_retain_graph_reaches_back(
    bob: obhut.VirtualWorker, alice: obhut.VirtualWorker
) -> None:
    """With it a second pass works at every place; without it fails as in PyTorch."""
    x = torch.ones(2, requires_grad=True)
    remote = _sent(x * 2, bob)
    moved = (remote * 3).move(alice, requires_grad=True)
    loss = (moved * 1).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert torch.equal(x.grad, torch.full((2,), 12.0))
    with pytest.raises(RuntimeError, match="second time"):
        (moved * 1).sum().backward()


def test_moved_without_asking_nothing_goes_back(
    bob: obhut.VirtualWorker, alice: obhut.VirtualWorker
) -> None:
    """By default, and where nothing was recorded, history stays behind."""
    x = obhut.send(torch.ones(2, requires_grad=True), bob)
    plain = (x * 2).move(alice)
    assert not plain.requires_grad
    with torch.no_grad():
        unrecorded = (x * 2).move(alice, requires_grad=True)
    assert not unrecorded.requires_grad
    assert bob.objects_count() == 1


def test_a_split_network_trains_as_a_whole_one(
    bob: obhut.VirtualWorker, alice: obhut.VirtualWorker
) -> None:
    """Two halves at two workers have the gradients of one network, each step."""
    torch.manual_seed(0)
    halves = [
        nn.Sequential(nn.Linear(4, 8), nn.Tanh()),
        nn.Sequential(nn.Linear(8, 2), nn.LogSoftmax(dim=1)),
    ]
    whole = nn.Sequential(*obhut.copy(nn.Sequential(*halves)))
    rows, classes = torch.randn(6, 4), torch.tensor([0, 1, 0, 1, 1, 0])
    for half, worker in zip(halves, (bob, alice), strict=True):
        obhut.send(half, worker)
    everything = [p for half in halves for p in half.parameters()]
    optimizers = [torch.optim.SGD(p, lr=0.1) for p in (everything, whole.parameters())]
    there, classes_there = obhut.send(rows, bob), obhut.send(classes, alice)
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
        hidden = halves[0](there).move(alice, requires_grad=True)
        nn.functional.nll_loss(halves[1](hidden), classes_there).backward()
        nn.functional.nll_loss(whole(rows), classes).backward()
        for optimizer in optimizers:
            optimizer.step()
    for half in halves:
        obhut.get(half)
    assert all(map(torch.equal, everything, whole.parameters()))


def test_a_policy_keeps_gradients_in() -> None:
    """Behind a guard no gradient comes back to this process: backward() says why."""
    policy = obhut.Quorum(aggregators=["agg"], contributors=["a", "b", "c"])
    owner = obhut.VirtualWorker("a", policy=policy)
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(ReleaseRefusedError):
        (_sent(x, owner) * 2).sum().backward()
    assert x.grad is None
    owner.close()
