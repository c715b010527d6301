"""What the seed's library got wrong, and what is right here."""

from collections.abc import Callable

import pytest
import torch
from torch import nn, optim

import obhut
from obhut import exceptions
from obhut.compat.virtual_worker import VirtualWorker
from obhut.errors import LocationError, ObjectNotFoundError
from obhut.transports.local import LocalTransport


def test_a_model_at_bob_does_not_run_on_data_at_alice(
    bob: VirtualWorker, alice: VirtualWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It raises, naming both workers, and not one message leaves."""
    model = nn.Linear(2, 1).send(bob)
    data = torch.ones(3, 2).send(alice)
    bob.wait()
    alice.wait()
    counts = bob.objects_count(), alice.objects_count()
    messages = []
    submit = LocalTransport.submit

    def spy(self: LocalTransport, *args: object) -> object:
        messages.append((self.worker, args))
        return submit(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(LocalTransport, "submit", spy)
        with pytest.raises(exceptions.TensorsNotCollocatedException) as caught:
            model(data)
        bob.session.flush()
        alice.session.flush()
    assert messages == []
    assert "bob" in str(caught.value)
    assert "alice" in str(caught.value)
    assert (bob.objects_count(), alice.objects_count()) == counts
    assert model.location is bob


@pytest.mark.parametrize(
    "mix",
    [
        lambda x, y: x + y,
        lambda x, y: torch.stack([x, y]),
        lambda x, y: x.add_(y),
        lambda x, y: torch.where(x > 0, x, y),
    ],
)
def test_errors_name_both_workers(
    bob: VirtualWorker,
    alice: VirtualWorker,
    mix: Callable[[torch.Tensor, torch.Tensor], object],
) -> None:
    """Whatever mixes bob's with alice's tensors says so, and says what to do."""
    x, y = torch.ones(2).send(bob), torch.ones(2).send(alice)
    with pytest.raises(LocationError, match=r"bob and alice.*move") as caught:
        mix(x, y)
    assert set(caught.value.places) == {"bob", "alice"}
    local = torch.ones(2)
    with pytest.raises(
        LocationError, match=r"bob and this process.*obhut\.send\(x, bob\)"
    ):
        mix(x, local)


def test_a_second_send_is_a_second_object(bob: VirtualWorker) -> None:
    """Each send makes a copy with a fate of its own."""
    x = torch.ones(2)
    first, second = x.send(bob), x.send(bob)
    first.add_(1)
    assert torch.equal(first.get(), torch.full((2,), 2.0))
    assert torch.equal(second.get(), torch.ones(2))
    assert torch.equal(x, torch.ones(2))


def test_a_second_send_elsewhere_is_a_second_object(
    bob: VirtualWorker, alice: VirtualWorker
) -> None:
    """Fetching bob's copy leaves alice's where it is."""
    x = torch.ones(2)
    at_bob, at_alice = x.send(bob), x.send(alice)
    at_bob.get()
    assert torch.equal((at_alice + 1).get(), torch.full((2,), 2.0))


def test_a_model_that_was_sent_and_fetched_can_be_sent_again(
    bob: VirtualWorker, alice: VirtualWorker
) -> None:
    """send, get, send: the second journey is like the first."""
    model = nn.Linear(2, 1)
    data = torch.ones(1, 2)
    expected = model(data)
    for worker in (bob, alice, bob):
        model.send(worker)
        assert torch.equal(model(data.send(worker)).get(), expected)
        model.get()
    assert bob.objects_count() == alice.objects_count() == 0


def test_what_a_pointer_says_of_itself_is_right(bob: VirtualWorker) -> None:
    """Sizes, dtype, transposition, masks and requires_grad are the tensor's own."""
    local = torch.tensor([[1.0, -2.0, 3.0], [-4.0, 5.0, -6.0]], dtype=torch.float64)
    x = local.send(bob)
    assert x.size() == x.shape == torch.Size([2, 3])
    assert x.size(1) == x.shape[1] == len(x.T) == 3
    assert x.dim() == x.ndim == 2
    assert x.numel() == 6
    assert x.dtype is torch.float64
    assert (x > 0).dtype is torch.bool
    assert x.T.shape == (3, 2)
    assert torch.equal(x.T.get(), local.T)
    picked = x[x > 0]
    assert picked.shape == (3,)
    assert torch.equal(picked.get(), torch.tensor([1.0, 3.0, 5.0]).double())
    assert not x.requires_grad
    assert not (x * 2).requires_grad
    x.requires_grad_()
    assert x.requires_grad
    assert (x * 2).requires_grad
    assert not x.detach().requires_grad
    assert not (x * 2).is_leaf
    assert torch.ones(1, requires_grad=True).send(bob).requires_grad


def test_a_pointer_is_spent_after_get(bob: VirtualWorker, alice: VirtualWorker) -> None:
    """The remote object went with get(); using its name again raises."""
    x = torch.ones(2, requires_grad=True).send(bob)
    x.get()
    assert bob.objects_count() == 0
    for use in (
        x.get,
        lambda: x + 1,
        lambda: x.move(alice),
        lambda: x.location,
        x.copy,
        lambda: x.tag("#x"),
        lambda: x.sum().backward(),
    ):
        with pytest.raises(ObjectNotFoundError, match=r"bob.*get\(\)"):
            use()


def test_no_grad_holds_at_the_worker(bob: VirtualWorker) -> None:
    """Under no_grad nothing is recorded there either, and leaves can be written."""
    x = torch.ones(2, requires_grad=True).send(bob)
    with torch.no_grad():
        y = x * 2
        x.add_(1)
    assert not y.requires_grad
    assert y.grad_fn is None
    with pytest.raises(RuntimeError, match="does not require grad"):
        y.sum().backward()
    (x * x).sum().backward()
    assert torch.equal(x.grad.copy().get(), torch.full((2,), 4.0))
    back = x.get()
    assert back.requires_grad
    assert torch.equal(back.detach(), torch.full((2,), 2.0))


class _Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.recurrent = kind(3, 4, batch_first=True)
        self.head = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.recurrent(x)[0][:, -1])


class _Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(15, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


_MODELS: dict[str, Callable[[], nn.Module]] = {
    "LSTM": lambda: _Recurrent(nn.LSTM),
    "GRU": lambda: _Recurrent(nn.GRU),
    "BatchNorm": _Flat,
}
_OPTIMIZERS: dict[str, Callable[[nn.Module], optim.Optimizer]] = {
    "SGD": lambda model: optim.SGD(model.parameters(), lr=0.1),
    "Adamax": lambda model: optim.Adamax(model.parameters(), lr=0.1),
    "Rprop": lambda model: optim.Rprop(model.parameters(), lr=0.1),
    "amsgrad": lambda model: optim.Adam(model.parameters(), lr=0.1, amsgrad=True),
}


@pytest.mark.parametrize("made_first", [True, False])
@pytest.mark.parametrize("optimizer", _OPTIMIZERS)
@pytest.mark.parametrize("model", _MODELS)
def test_modules_and_optimizers_train_as_they_do_locally(
    bob: VirtualWorker, model: str, optimizer: str, made_first: bool
) -> None:
    """Each pair ends where local training ends, whenever the optimizer was made."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(6, 5, 3, generator=generator)
    target = torch.randn(6, 1, generator=generator)
    torch.manual_seed(0)
    local = _MODELS[model]()
    remote = local.copy()
    local_opt = _OPTIMIZERS[optimizer](local)
    remote_opt = _OPTIMIZERS[optimizer](remote) if made_first else None
    remote.send(bob)
    remote_opt = remote_opt or _OPTIMIZERS[optimizer](remote)
    there, wanted = data.send(bob), target.send(bob)
    for _ in range(3):
        for one, opt, x, y in (
            (local, local_opt, data, target),
            (remote, remote_opt, there, wanted),
        ):
            opt.zero_grad()
            ((one(x) - y) ** 2).mean().backward()
            opt.step()
    remote.get()
    for (name, ours), theirs in zip(
        local.state_dict().items(), remote.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name


def test_federated_avg_is_the_mean(bob: VirtualWorker) -> None:
    """Also of models whose constructor takes arguments, and of biased starts."""
    models = {name: nn.Linear(3, 2) for name in ("bob", "alice", "carol")}
    weights = [model.weight.detach().clone() for model in models.values()]
    for model in models.values():
        model.send(bob)
    mean = obhut.federated_avg(models)
    assert mean.location is bob
    assert torch.allclose(mean.get().weight, sum(weights) / 3)
    alone = obhut.federated_avg({"bob": nn.Linear(3, 2)})
    assert alone.weight.shape == (2, 3)
