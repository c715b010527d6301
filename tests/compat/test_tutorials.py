"""The tutorial's parts before the seed's, as far as they are about pointers.

Not here: pointers to pointers (part 3), which are refused by name, and looking
into ``worker._objects``; ``objects_count`` says what is left.
"""

import pytest
import torch
from torch import nn, optim

import obhut as sy
from obhut.compat.hook import TorchHook
from obhut.compat.virtual_worker import VirtualWorker
from obhut.errors import NotSendableError


def test_part_1_sending_and_getting(hook: TorchHook, bob: VirtualWorker) -> None:
    """Two tensors go to bob, are added there and come back; bob keeps nothing."""
    x = torch.tensor([1, 2, 3, 4, 5])
    y = torch.tensor([1, 1, 1, 1, 1])
    x_ptr = x.send(bob)
    y_ptr = y.send(bob)
    assert bob.objects_count() == 2
    z = x_ptr + x_ptr
    assert bob.objects_count() == 3
    assert bob == x_ptr.location
    me = sy.local_worker
    assert me == x_ptr.owner == hook.local_worker
    assert torch.equal(x_ptr.get(), x)
    assert torch.equal(y_ptr.get(), y)
    assert torch.equal(z.get(), x + x)
    assert bob.objects_count() == 0


def test_part_1_pointer_arithmetic(bob: VirtualWorker) -> None:
    """Operators and functions of torch work on pointers as on tensors."""
    x = torch.tensor([1, 2, 3, 4, 5]).send(bob)
    y = torch.tensor([1, 1, 1, 1, 1]).send(bob)
    assert (x + y).get().tolist() == [2, 3, 4, 5, 6]
    assert torch.add(x, y).get().tolist() == [2, 3, 4, 5, 6]
    assert (x - 1).get().tolist() == [0, 1, 2, 3, 4]


def test_part_1_backpropagation(bob: VirtualWorker) -> None:
    """A tensor that comes back brings its gradient along."""
    x = torch.tensor([1, 2, 3, 4, 5.0], requires_grad=True).send(bob)
    y = torch.tensor([1, 1, 1, 1, 1.0], requires_grad=True).send(bob)
    z = (x + y).sum()
    z.backward()
    x = x.get()
    assert x.requires_grad
    assert torch.equal(x.grad, torch.ones(5))


def test_a_gradient_alone_can_be_fetched(bob: VirtualWorker) -> None:
    """x.grad.copy().get() brings a copy and leaves x and its gradient there."""
    x = torch.tensor([1.0, 2.0], requires_grad=True).send(bob)
    (x * x).sum().backward()
    assert torch.equal(x.grad.copy().get(), torch.tensor([2.0, 4.0]))
    assert torch.equal(x.grad.copy().get(), torch.tensor([2.0, 4.0]))
    assert torch.equal(x.get().grad, torch.tensor([2.0, 4.0]))


def _federated_toy_losses(
    bob: VirtualWorker, alice: VirtualWorker, adam: bool
) -> tuple[list[float], nn.Module]:
    data = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1.0]], requires_grad=True)
    target = torch.tensor([[0], [0], [1], [1.0]], requires_grad=True)
    datasets = [
        (data[0:2].send(bob), target[0:2].send(bob)),
        (data[2:].send(alice), target[2:].send(alice)),
    ]
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    opt = (
        optim.Adam(params=model.parameters(), lr=0.1)
        if adam
        else optim.SGD(params=model.parameters(), lr=0.1, momentum=0.5)
    )
    losses = []
    for _ in range(5):
        for rows, wanted in datasets:
            model.send(rows.location)
            opt.zero_grad()
            pred = model(rows)
            loss = ((pred - wanted) ** 2).sum()
            loss.backward()
            opt.step()
            model.get()
            losses.append(loss.get().item())
    return losses, model


def _local_toy_losses(adam: bool) -> tuple[list[float], nn.Module]:
    data = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1.0]])
    target = torch.tensor([[0], [0], [1], [1.0]])
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    opt = (
        optim.Adam(params=model.parameters(), lr=0.1)
        if adam
        else optim.SGD(params=model.parameters(), lr=0.1, momentum=0.5)
    )
    losses = []
    for _ in range(5):
        for rows, wanted in ((data[:2], target[:2]), (data[2:], target[2:])):
            opt.zero_grad()
            loss = ((model(rows) - wanted) ** 2).sum()
            loss.backward()
            opt.step()
            losses.append(loss.item())
    return losses, model


@pytest.mark.parametrize("adam", [False, True])
def test_part_2_a_model_visits_the_data(
    bob: VirtualWorker, alice: VirtualWorker, adam: bool
) -> None:
    """Send and get each step, with one optimizer, give local training's numbers."""
    losses, model = _federated_toy_losses(bob, alice, adam)
    expected, local = _local_toy_losses(adam)
    assert losses == expected
    assert all(map(torch.equal, model.parameters(), local.parameters()))
    assert model.weight.grad is not None


def test_part_3_moving_directly(bob: VirtualWorker, alice: VirtualWorker) -> None:
    """x.move(alice) leaves nothing at bob; x stands for what alice has."""
    x = torch.tensor([1, 2, 3, 4, 5]).send(bob)
    x = x.move(alice)
    assert x.location is alice
    assert bob.objects_count() == 0
    assert alice.objects_count() == 1
    assert x.get().tolist() == [1, 2, 3, 4, 5]


def test_part_3_pointers_to_pointers_are_refused(
    bob: VirtualWorker, alice: VirtualWorker
) -> None:
    """x.send(bob).send(alice) says to use move, and sends nothing."""
    x = torch.ones(2).send(bob)
    with pytest.raises(NotSendableError, match=r"bob.*x\.move\(worker\)"):
        x.send(alice)
    assert alice.objects_count() == 0


def test_part_3_pointers_are_garbage_collected(bob: VirtualWorker) -> None:
    """A remote object goes with the last name for it, also in a loop."""
    x = torch.ones(2).send(bob)
    for _ in range(100):
        y = x + x
    assert bob.objects_count() == 2
    del y
    x = "something else"
    assert bob.objects_count() == 0
