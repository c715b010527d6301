import pytest
import torch
from torch import nn

import obhut as sy
from obhut.client.remote_tensor import RemoteTensor
from obhut.compat.hook import TorchHook
from obhut.compat.virtual_worker import VirtualWorker
from obhut.errors import CallError, LocationError, NotSendableError

# --- gradients that come back -----------------------------------------------------


def test_send_brings_gradients_back(bob: VirtualWorker) -> None:
    """send(requires_grad=True) sets the local gradient, through local history too."""
    x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    (x.send(bob, requires_grad=True) * 2).sum().backward()
    assert torch.equal(x.grad, torch.full((3,), 2.0))
    y = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    ((y + y).send(bob, requires_grad=True) * 2).sum().backward()
    assert torch.equal(y.grad, torch.full((3,), 4.0))


def test_move_brings_gradients_back(bob: VirtualWorker, alice: VirtualWorker) -> None:
    """move(requires_grad=True), and move_, go on where the tensor was."""
    for move in ("move", "move_"):
        x = torch.ones(3, requires_grad=True)
        there = (x + x).send(alice, requires_grad=True) * 2
        moved = getattr(there, move)(bob, requires_grad=True)
        moved.sum().backward()
        assert torch.equal(x.grad, torch.full((3,), 4.0))


def test_without_it_nothing_comes_back(bob: VirtualWorker) -> None:
    """Gradients stay where they are unless they are asked for."""
    x = torch.ones(3, requires_grad=True)
    (x.send(bob) * 2).sum().backward()
    assert x.grad is None


def test_each_of_several_workers_brings_its_gradient_back(
    bob: VirtualWorker, alice: VirtualWorker
) -> None:
    """x.send(bob, alice, requires_grad=True) adds both up here."""
    x = torch.ones(2, requires_grad=True)
    (x.send(bob, alice, requires_grad=True) * 2).sum().backward()
    assert torch.equal(x.grad, torch.full((2,), 4.0))


def test_a_gradient_that_can_not_come_back_is_told(bob: VirtualWorker) -> None:
    """A tensor that requires none warns, at the line that sends it."""
    with pytest.warns(UserWarning, match=r"requires_grad_\(\) first") as caught:
        torch.ones(2).send(bob, requires_grad=True)
    assert caught[0].filename == __file__


# --- garbage ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gc", "garbage_collection", "garbage_collect_data"])
def test_an_object_can_be_held(bob: VirtualWorker, name: str) -> None:
    """`ptr.gc = False` keeps it at the worker; all names for it say the same."""
    x = torch.ones(2).send(bob)
    assert x.gc is True
    setattr(x, name, False)
    assert x.gc is x.garbage_collection is x.garbage_collect_data is False
    del x
    assert bob.objects_count() == 1


def test_a_modules_parameters_can_be_held(bob: VirtualWorker) -> None:
    """model.send(garbage_collect_data=False) keeps them; by default they go."""
    options = {"requires_grad": True, "inplace": True, "force_send": True}
    nn.BatchNorm1d(2).send(bob, **options)
    assert bob.objects_count() == 0
    nn.BatchNorm1d(2).send(bob, garbage_collect_data=False)
    assert bob.objects_count() == len(nn.BatchNorm1d(2).state_dict())


def test_an_object_can_be_let_go_again(bob: VirtualWorker) -> None:
    """`ptr.gc = True` takes it back."""
    x = torch.ones(2).send(bob)
    x.gc = False
    x.gc = True
    del x
    assert bob.objects_count() == 0


def test_disable_gc_is_the_tensor_itself(bob: VirtualWorker) -> None:
    """`x.send(bob).disable_gc` holds the object and can be used as it was."""
    x = torch.ones(2).send(bob).disable_gc
    assert x.gc is False
    assert x.get().tolist() == [1.0, 1.0]
    assert bob.objects_count() == 0


def test_held_it_stays_held_where_it_moves(
    bob: VirtualWorker, alice: VirtualWorker
) -> None:
    """A move takes the choice along, and leaves nothing behind."""
    x = torch.ones(2).send(bob, garbage_collect_data=False).move(alice)
    assert x.gc is False
    del x
    assert (bob.objects_count(), alice.objects_count()) == (0, 1)


def test_what_is_tagged_is_held(bob: VirtualWorker) -> None:
    """It says so, since it can be found again; a local tensor has nothing to hold."""
    assert torch.ones(2).tag("#x").send(bob).gc is False
    with pytest.raises(LocationError, match="this process"):
        torch.ones(2).gc = False


# --- identity ---------------------------------------------------------------------


def test_a_tensor_has_an_id_and_a_location(bob: VirtualWorker) -> None:
    """Ids are stable, unlike others', the pointer's too; here, location is None."""
    x, y = torch.ones(2), torch.ones(2)
    assert x.id == x.id
    assert x.id != y.id
    assert x.location is None
    assert x.send(bob).id == x.id
    assert y.send(bob).location is bob
    x.id = 17
    assert x.id == 17
    assert nn.Linear(1, 1).weight.location is None


def test_nothing_is_wrapped(bob: VirtualWorker) -> None:
    """`child` of a remote tensor is itself; what is here has none."""
    x = torch.ones(2)
    sent = x.send(bob)
    assert sent.child is sent
    assert sent.is_wrapper
    assert sent.has_child()
    assert not hasattr(x, "child")
    assert not x.is_wrapper
    assert not x.has_child()
    sent.child.garbage_collect_data = False
    assert sent.gc is False


def test_a_tensor_becomes_remote_and_local_in_place(bob: VirtualWorker) -> None:
    """send_ and get_ keep the very object, its id, class and values."""
    for x in (torch.ones(2), nn.Parameter(torch.ones(2))):
        kind, id = type(x), x.id
        assert x.send_(bob) is x
        assert isinstance(x, RemoteTensor)
        assert x.location is bob
        (x * x).get()
        assert x.get_() is x
        assert type(x) is kind
        assert x.id == id
        assert x.tolist() == [1.0, 1.0]
        assert x.send(bob, inplace=True) is x
        assert x.get_() is x
    assert bob.objects_count() == 0


def test_a_result_is_fetched_in_place(bob: VirtualWorker) -> None:
    """get_ of an operator's result too; of what is here it is refused."""
    y = torch.tensor([2]).send_(bob) * 2
    y.get_()
    assert torch.equal(y, torch.tensor([4]))
    with pytest.raises(LocationError, match="this process"):
        y.get_()


def test_in_place_goes_to_one_worker(bob: VirtualWorker, alice: VirtualWorker) -> None:
    """send_(bob, alice) is refused, and sends nothing."""
    with pytest.raises(CallError, match="send_ needs one worker"):
        torch.ones(2).send_(bob, alice)
    assert bob.objects_count() == alice.objects_count() == 0


def test_modules_have_the_names_too(bob: VirtualWorker, alice: VirtualWorker) -> None:
    """send_, move_ and get_ of a module are what they are without the underscore."""
    model = nn.Linear(2, 1)
    assert model.send_(bob).move_(alice) is model
    assert model.location is alice
    assert model.get_() is model
    assert model.location is None


# --- home -------------------------------------------------------------------------


def test_moving_to_this_process_is_getting(hook: TorchHook, bob: VirtualWorker) -> None:
    """move(sy.local_worker) brings tensors and modules here; nothing stays at `me`."""
    x = torch.ones(2).send(bob).move(sy.local_worker)
    assert type(x) is torch.Tensor
    assert sy.move(torch.ones(2).send(bob), sy.local_worker).tolist() == [1.0, 1.0]
    model = nn.Linear(2, 1).send(bob)
    assert model.move(sy.local_worker) is model
    assert model.location is None
    assert bob.objects_count() == hook.local_worker.objects_count() == 0
    me = hook.local_worker
    hook.unhook()
    assert sy.move(sy.send(torch.ones(2), bob), me).location is me


# --- what is not here -------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("share", "trusted aggregator"),
        ("fix_precision", "trusted aggregator"),
        ("encrypt", "trusted aggregator"),
        ("private_tensor", "policy"),
        ("remote_get", r"x\.move\(worker\)"),
        ("remote_send", r"x\.move\(worker\)"),
    ],
)
def test_what_is_not_here_says_what_to_write(
    bob: VirtualWorker, alice: VirtualWorker, name: str, words: str
) -> None:
    """Secret sharing and its like are refused on tensors anywhere, and on modules."""
    for x in (torch.ones(2), torch.ones(2).send(bob), nn.Linear(1, 1)):
        with pytest.raises(sy.exceptions.NotHereError, match=rf"{name}\(\).*{words}"):
            getattr(x, name)(bob, alice, crypto_provider=bob)


def test_pointers_to_pointers_are_refused_however_sent(
    bob: VirtualWorker, alice: VirtualWorker
) -> None:
    """x.send(bob).send(alice), with options and in place too, says to use move."""
    x = torch.ones(2).send(bob)
    for send in (
        lambda: x.send(alice),
        lambda: x.send(alice, requires_grad=True),
        lambda: x.send_(alice),
        lambda: sy.send(x, alice),
    ):
        with pytest.raises(NotSendableError, match=r"bob.*x\.move\(worker\)"):
            send()
    assert alice.objects_count() == 0


def test_errors_name_no_private_function(bob: VirtualWorker) -> None:
    """A wrong call is told with the method's own name."""
    for call in (
        lambda: torch.ones(2).send(bob, nothing=1),
        lambda: nn.Linear(1, 1).send(bob, nothing=1),
        lambda: torch.ones(2).describe(),
        lambda: torch.ones(2).copy(1),
    ):
        with pytest.raises(TypeError) as caught:
            call()
        assert "_" not in str(caught.value).partition("(")[0]
