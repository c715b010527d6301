import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import obhut
from obhut.client.remote_tensor import RemoteTensor
from obhut.compat.hook import TorchHook, _patches
from obhut.compat.virtual_worker import VirtualWorker
from obhut.errors import CallError, LocationError, WorkerNotFoundError


def _names_on_torch() -> set[tuple[type, str]]:
    return {(owner, name) for owner, name, _ in _patches() if hasattr(owner, name)}


def test_importing_obhut_patches_nothing() -> None:
    """Torch has none of the seed's methods until a TorchHook is made."""
    program = (
        "import torch, obhut\n"
        "before = {c: set(dir(c)) for c in (torch.Tensor, torch.nn.Module)}\n"
        "obhut.VirtualWorker, obhut.send, obhut.FederatedDataset, obhut.TorchHook\n"
        "obhut.install_as_syft()\n"
        "import syft.frameworks.torch.fl\n"
        "bob = obhut.VirtualWorker(id='bob')\n"
        "obhut.send(torch.ones(2), bob).get()\n"
        "assert all(set(dir(c)) == names for c, names in before.items())\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_hook_patches_and_unhook_takes_it_back() -> None:
    """After unhook() torch's classes have exactly the names they had before."""
    before = {owner: dict(vars(owner)) for owner, _, _ in _patches()}
    assert _names_on_torch() == set()
    hook = obhut.TorchHook(torch)
    assert _names_on_torch() == {(owner, name) for owner, name, _ in _patches()}
    hook.unhook()
    assert {owner: dict(vars(owner)) for owner in before} == before
    with pytest.raises(AttributeError):
        torch.ones(1).send("bob")


def test_a_second_hook_warns_and_patches_nothing_again(hook: TorchHook) -> None:
    """TorchHook(torch) twice is one hook, one warning and one unhook()."""
    send = torch.Tensor.send
    with pytest.warns(UserWarning, match="already hooked"):
        again = obhut.TorchHook(torch)
    assert again is hook
    assert torch.Tensor.send is send
    again.unhook()
    assert not hasattr(torch.Tensor, "send")


def test_unhook_twice_leaves_a_later_hook_alone() -> None:
    """An old hook's unhook() does not take back a new hook's patches."""
    old = obhut.TorchHook(torch)
    old.unhook()
    new = obhut.TorchHook(torch)
    old.unhook()
    assert TorchHook.active is new
    assert hasattr(torch.Tensor, "send")


def test_a_hook_can_be_a_context() -> None:
    """`with TorchHook(torch):` unhooks at its end."""
    with obhut.TorchHook(torch):
        assert hasattr(nn.Module, "send")
    assert not hasattr(nn.Module, "send")


def test_what_torch_has_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that somebody else gave to torch survives hook and unhook."""
    monkeypatch.setattr(torch.Tensor, "describe", "somebody else's", raising=False)
    hook = obhut.TorchHook(torch)
    assert torch.Tensor.describe == "somebody else's"
    hook.unhook()
    assert torch.Tensor.describe == "somebody else's"


def test_what_was_sent_stays_usable_after_unhook(
    hook: TorchHook, bob: VirtualWorker
) -> None:
    """Remote tensors have methods of their own and need no hook."""
    x = torch.ones(2).send(bob)
    hook.unhook()
    assert torch.equal((x + 1).get(), torch.full((2,), 2.0))


def test_the_local_worker_owns_what_is_here(
    hook: TorchHook, bob: VirtualWorker
) -> None:
    """`hook.local_worker` is `me`, is `sy.local_worker`, and owns pointers too."""
    x = torch.ones(2)
    pointer = x.send(bob)
    me = hook.local_worker
    assert me.id == "me"
    assert obhut.local_worker is me
    assert x.owner is me
    assert pointer.owner is me
    assert pointer.location is bob


def test_a_local_worker_can_be_given() -> None:
    """TorchHook(torch, local_worker=w) uses it."""
    mine = VirtualWorker(id="mine")
    hook = obhut.TorchHook(torch, local_worker=mine, is_client=True, verbose=False)
    assert hook.local_worker is mine
    assert "mine" in repr(hook)


def test_there_is_no_local_worker_without_a_hook() -> None:
    """`sy.local_worker` is None before TorchHook and after unhook()."""
    assert obhut.local_worker is None
    obhut.TorchHook(torch).unhook()
    assert obhut.local_worker is None


def test_the_hook_can_be_found() -> None:
    """`sy.hook` is the active hook, and None without one."""
    assert obhut.hook is None
    hook = obhut.TorchHook(torch)
    assert obhut.hook is hook
    hook.unhook()
    assert obhut.hook is None


def test_old_options_of_the_hook_are_taken() -> None:
    """All that 0.2 had, and no other."""
    options = {"is_client": False, "verbose": True, "seed": 1, "queue_size": 0}
    hook = obhut.TorchHook(torch, known_workers={}, **options)
    assert (hook.is_client, hook.verbose) == (False, True)
    hook.unhook()
    with pytest.raises(TypeError, match="no_such_option"):
        obhut.TorchHook(torch, no_such_option=1)
    assert obhut.hook is None


def test_send_takes_a_worker_or_its_id(bob: VirtualWorker) -> None:
    """x.send(bob) and x.send("bob") are the same."""
    x = torch.arange(3)
    assert x.send(bob).location is x.send("bob").location is bob
    with pytest.raises(WorkerNotFoundError, match="'nobody-of-that-name'"):
        x.send("nobody-of-that-name")


def test_send_refuses_what_it_does_not_understand(
    bob: VirtualWorker, alice: VirtualWorker
) -> None:
    """No worker, one twice, an unknown one, an unknown option: nothing is sent."""
    x = torch.ones(2)
    with pytest.raises(CallError, match="needs a worker"):
        x.send()
    with pytest.raises(CallError, match="twice"):
        x.send(bob, "bob")
    with pytest.raises(WorkerNotFoundError):
        x.send(alice, "nobody-of-that-name")
    with pytest.raises(TypeError, match="in_place"):
        x.send(bob, in_place=True)
    with pytest.raises(TypeError, match="in_place"):
        nn.Linear(1, 1).send(bob, in_place=True)
    for workers in ((bob, alice), ()):
        with pytest.raises(CallError, match=r"to one worker.*model\.copy\(\)"):
            nn.Linear(1, 1).send(*workers)
    assert bob.objects_count() == alice.objects_count() == 0


def test_old_options_of_send_make_no_difference(bob: VirtualWorker) -> None:
    """`local_autograd` and its like are taken; what they brought about is so."""
    x = torch.ones(2, requires_grad=True)
    sent = x.send(bob, local_autograd=False, no_wrap=True, user=None)
    sent.sum().backward()
    assert torch.equal(sent.get().grad, torch.ones(2))


@pytest.mark.parametrize("option", ["garbage_collect_data", "garbage_collection"])
def test_a_sent_tensor_can_outlive_its_pointer(bob: VirtualWorker, option: str) -> None:
    """With garbage_collect_data=False the object stays when the name goes."""
    kept = torch.ones(2).send(bob, **{option: False})
    dropped = torch.ones(2).send(bob)
    assert bob.objects_count() == 2
    del kept, dropped
    assert bob.objects_count() == 1


def test_get_and_move_of_a_local_tensor_say_that_it_is_here(
    bob: VirtualWorker,
) -> None:
    """A local tensor was not sent: LocationError, as for a local module."""
    for local in (torch.ones(2), nn.Linear(2, 1)):
        with pytest.raises(LocationError, match="this process"):
            local.get()
        with pytest.raises(LocationError, match="this process"):
            local.move(bob)


def test_copy_is_apart_from_history(bob: VirtualWorker) -> None:
    """x.copy() is a leaf that shares nothing, here and there."""
    x = torch.ones(2, requires_grad=True)
    for source in (x * 2, (x.send(bob) * 2)):
        made = source.copy()
        assert made.is_leaf
        assert made.requires_grad
        with torch.no_grad():
            made.zero_()
        value = source.get() if isinstance(source, RemoteTensor) else source
        assert torch.equal(value.detach(), torch.full((2,), 2.0))


def test_tags_and_words_travel(bob: VirtualWorker) -> None:
    """x.tag().describe() before send, or on the pointer, is found at the worker."""
    x = torch.ones(2).tag("#a", "#b").tag("#a").describe("ones")
    assert x.tags == ("#a", "#b")
    assert torch.ones(1).tags == ()
    assert torch.ones(1).description == ""
    pointer = x.send(bob)
    pointer.tag("#c").describe("two ones")
    (found,) = bob.search("#a", "#c")
    assert found.tags == ("#a", "#b", "#c")
    assert found.description == "two ones"


def test_a_module_has_a_location(bob: VirtualWorker, alice: VirtualWorker) -> None:
    """model.location is the worker, or None here; send, move, get work in place."""
    model = nn.Linear(2, 1)
    weight = model.weight
    before = weight.detach().clone()
    assert model.location is None
    assert model.send(bob) is model
    assert model.location is bob
    assert model.move(alice) is model
    assert model.location is alice
    assert bob.objects_count() == 0
    assert model.get() is model
    assert model.location is None
    assert model.weight is weight
    assert torch.equal(weight, before)


def test_every_torch_data_set_can_be_federated(
    hook: TorchHook, bob: VirtualWorker
) -> None:
    """The hook gives `federate` to torch.utils.data.Dataset."""
    data = torch.utils.data.TensorDataset(torch.ones(2, 1), torch.zeros(2))
    assert data.federate((bob,)).workers == ["bob"]
    hook.unhook()
    assert not hasattr(Dataset, "federate")
