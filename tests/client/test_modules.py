"""Modules and optimizers that travel."""

import copy
import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn

import obhut
from obhut.client.modules import location_of
from obhut.errors import CallError, LocationError, NotSendableError


class Net(nn.Module):
    """A user's module that makes tensors of its own and has tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Use factories, as third-party modules do."""
        bias = torch.zeros(3) + torch.arange(3) + torch.tensor([0.5, 0.5, 0.5])
        return self.norm(self.second(self.first(x).relu())) * self.scale + bias


X = torch.linspace(-1, 1, 15).reshape(5, 3)


def trained(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    worker: obhut.VirtualWorker | None,
    *,
    steps: int = 3,
    travels: bool = False,
) -> nn.Module:
    """Train a model, here or at a worker, sent once or for each step."""
    x = X if worker is None else obhut.send(X, worker)
    if worker is not None and not travels:
        obhut.send(model, worker)
    for _ in range(steps):
        if worker is not None and travels:
            obhut.send(model, worker)
        optimizer.zero_grad()
        (model(x) ** 2).mean().backward()
        optimizer.step()
        if worker is not None and travels:
            obhut.get(model)
    if worker is not None and not travels:
        obhut.get(model)
    return model


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    """Compare all parameters and buffers to the last bit."""
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


OPTIMIZERS: list[Callable[..., torch.optim.Optimizer]] = [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    lambda p: torch.optim.Adamax(p, lr=0.01),
    lambda p: torch.optim.Rprop(p, lr=0.01),
    lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
]


@pytest.mark.parametrize("travels", [False, True])
@pytest.mark.parametrize("make", OPTIMIZERS)
def test_an_optimizer_goes_on_wherever_its_model_is(
    make: Callable[..., torch.optim.Optimizer],
    travels: bool,
    bob: obhut.VirtualWorker,
) -> None:
    """Made before the model is sent, with state, sent once or at every step."""
    torch.manual_seed(0)
    remote, local = Net(), Net()
    local.load_state_dict(remote.state_dict())
    ours = trained(remote, make(remote.parameters()), bob, travels=travels)
    theirs = trained(local, make(local.parameters()), None)
    assert_same(ours, theirs)


def test_an_optimizer_made_after_sending_works_too(bob: obhut.VirtualWorker) -> None:
    """The parameters are the same objects before and after."""
    remote = nn.Linear(3, 1)
    local = copy.deepcopy(remote)
    weight = remote.weight
    obhut.send(remote, bob)
    assert remote.weight is weight
    assert isinstance(weight, nn.Parameter)
    trained_local = trained(local, torch.optim.Adam(local.parameters()), None)
    optimizer = torch.optim.Adam(remote.parameters())
    x = obhut.send(X, bob)
    for _ in range(3):
        optimizer.zero_grad()
        (remote(x) ** 2).mean().backward()
        optimizer.step()
    obhut.get(remote)
    assert remote.weight is weight
    assert_same(remote, trained_local)
    (remote(X) ** 2).mean().backward()
    optimizer.step()  # its state has followed the parameters here


def test_send_get_and_move_keep_the_module(
    bob: obhut.VirtualWorker, alice: obhut.VirtualWorker
) -> None:
    """In place, returning the module; tied weights stay tied, buffers travel."""
    model = Net()
    state = copy.deepcopy(model.state_dict())
    assert obhut.send(model, bob) is model
    assert location_of(model) is bob
    assert model.first.weight is model.second.weight
    assert obhut.move(model, alice) is model
    assert location_of(model) is alice
    assert model.scale.location is alice
    assert bob.objects_count() == 0
    assert obhut.get(model) is model
    assert location_of(model) is None
    assert alice.objects_count() == 0
    assert model.first.weight is model.second.weight
    for name, value in state.items():
        assert torch.equal(model.state_dict()[name], value)
    assert "forward" not in vars(model)


def test_a_module_makes_its_tensors_where_it_is(
    bob: obhut.VirtualWorker, alice: obhut.VirtualWorker
) -> None:
    """Factories inside ``forward`` follow the module, also after a move and a copy."""
    torch.manual_seed(0)
    model = Net().eval()
    expected = model(X)
    obhut.send(model, bob)
    torch.testing.assert_close(model(obhut.send(X, bob)).get(), expected.detach())
    twin = obhut.copy(model)
    obhut.move(model, alice)
    torch.testing.assert_close(model(obhut.send(X, alice)).get(), expected.detach())
    torch.testing.assert_close(twin(obhut.send(X, bob)).get(), expected.detach())
    assert type(torch.zeros(1)) is torch.Tensor


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True),
        lambda: nn.GRU(3, 4, batch_first=True),
        lambda: nn.RNN(3, 4, batch_first=True, nonlinearity="relu"),
        lambda: nn.MultiheadAttention(3, 3, batch_first=True),
        lambda: nn.TransformerEncoderLayer(3, 3, 8, dropout=0.0, batch_first=True),
    ],
)
def test_recurrent_and_attention_modules_agree(
    build: Callable[[], nn.Module], bob: obhut.VirtualWorker
) -> None:
    """Results and gradients, in training and in evaluation."""
    torch.manual_seed(0)
    remote = build()
    local = copy.deepcopy(remote)
    obhut.send(remote, bob)
    batch = X.reshape(1, 5, 3)

    def run(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        inputs = (x, x, x) if isinstance(model, nn.MultiheadAttention) else (x,)
        result = model(*inputs)
        return result[0] if isinstance(result, tuple) else result

    for mode in (True, False):
        ours = run(remote.train(mode), obhut.send(batch, bob))
        theirs = run(local.train(mode), batch)
        torch.testing.assert_close(ours.detach().get(), theirs.detach())
        ours.sum().backward()
        theirs.sum().backward()
    for name, parameter in remote.named_parameters():
        expected = dict(local.named_parameters())[name].grad
        torch.testing.assert_close(parameter.grad.copy().get(), expected)
    obhut.get(remote)
    torch.testing.assert_close(run(remote, batch), theirs)


def test_state_dicts_go_both_ways(bob: obhut.VirtualWorker) -> None:
    """``load_state_dict`` takes local values; ``state_dict`` gives remote ones."""
    source, model = Net(), obhut.send(Net(), bob)
    model.load_state_dict(source.state_dict())
    assert all(isinstance(v, obhut.RemoteTensor) for v in model.state_dict().values())
    other = obhut.send(Net(), bob)
    other.load_state_dict(model.state_dict())
    assert_same(obhut.get(other), source)
    with pytest.raises(RuntimeError, match="this process"):
        source.load_state_dict(model.state_dict())


def test_a_sent_module_changes_dtype_and_mode(bob: obhut.VirtualWorker) -> None:
    """``double``, ``half``, ``train`` and ``eval`` work, and keep identities."""
    model = obhut.send(Net(), bob)
    weight = model.first.weight
    model.double().eval()
    assert model.first.weight is weight
    assert weight.dtype == torch.float64
    assert model(obhut.send(X.double(), bob)).dtype == torch.float64
    assert obhut.get(model).scale.dtype == torch.float64


def test_a_module_in_use_here_can_be_sent(bob: obhut.VirtualWorker) -> None:
    """Losses, views and weak references in scope are no obstacle, and stay right."""
    model = nn.Linear(3, 1)
    x = X.clone().requires_grad_()
    loss, waiting = model(x).sum(), model(x).sum()
    loss.backward()
    grad, row, weak = model.weight.grad, model.weight[0], weakref.ref(model.weight)
    before = row.detach().clone()
    obhut.send(model, bob)
    assert weak() is model.weight
    assert torch.equal(row.detach(), before)
    assert torch.equal(model.weight.grad.copy().get(), grad)
    view = model.weight[0]
    with pytest.raises(CallError, match="run the forward pass again"):
        waiting.backward()
    obhut.get(model)
    assert weak() is model.weight
    assert torch.equal(model.weight.grad, grad)
    assert torch.equal(view.get(), before)
    model(X).sum().backward()
    assert torch.equal(model.weight.grad, 2 * grad)


def test_what_can_not_travel_leaves_the_module_whole(
    bob: obhut.VirtualWorker, alice: obhut.VirtualWorker
) -> None:
    """All travel or none: a refusal names the reason and changes nothing."""
    with pytest.raises(NotSendableError, match="lazy"):
        obhut.send(nn.LazyLinear(2), bob)
    mixed = nn.Linear(2, 2)
    mixed.register_buffer("sparse", torch.eye(2).to_sparse())
    with pytest.raises(NotSendableError, match="sparse"):
        obhut.send(mixed, bob)
    assert type(mixed.weight) is nn.Parameter
    sent = obhut.send(nn.Linear(2, 2), bob)
    with pytest.raises(LocationError, match=r"model\.move"):
        obhut.send(sent, alice)
    with pytest.raises(LocationError, match="send the module first"):
        obhut.get(nn.Linear(2, 2))
    assert bob.objects_count() == 2


def test_a_model_on_one_worker_does_not_take_data_of_another(
    bob: obhut.VirtualWorker, alice: obhut.VirtualWorker
) -> None:
    """The error names both, and the module works afterwards."""
    model = obhut.send(Net(), bob)
    with pytest.raises(LocationError, match=r"alice and bob|bob and alice"):
        model(obhut.send(X, alice))
    assert type(torch.zeros(1)) is torch.Tensor
    assert model(obhut.send(X, bob)).shape == (5, 3)


def test_placement_makes_what_factories_make(
    bob: obhut.VirtualWorker, alice: obhut.VirtualWorker
) -> None:
    """``with worker:`` creates there, the innermost deciding; else nothing changes."""
    with bob:
        torch.manual_seed(0)
        made = [
            torch.zeros(2, requires_grad=True),
            torch.arange(4),
            torch.randn(3),
            torch.eye(2),
            torch.full((2,), 3.0),
            torch.linspace(0, 1, 5),
            torch.tensor([[1, 2]]),
            torch.randperm(5),
        ]
        with alice:
            inner = torch.ones(2)
        assert torch.ones(2).location is bob
    assert inner.location is alice
    assert all(x.location is bob for x in made)
    assert made[0].requires_grad
    torch.manual_seed(0)
    assert torch.equal(made[2].get(), torch.randn(3))
    assert torch.equal(made[1].get(), torch.arange(4))
    assert type(torch.ones(2)) is torch.Tensor
    with bob, bob:
        assert torch.ones(1).location is bob


def test_an_interrupted_forward_leaves_the_worker(bob: obhut.VirtualWorker) -> None:
    """Ctrl-C inside a sent module does not leave its placement behind."""

    class Interrupted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Be interrupted."""
            raise KeyboardInterrupt

    model = nn.Sequential(nn.Linear(3, 3), Interrupted())
    obhut.send(model, bob)
    with pytest.raises(KeyboardInterrupt):
        model(obhut.send(X, bob))
    assert type(torch.zeros(2)) is torch.Tensor


def test_a_copy_keeps_its_gradients(bob: obhut.VirtualWorker) -> None:
    """As ``copy.deepcopy`` does for what is here."""
    model = obhut.send(nn.Linear(3, 1), bob)
    model(obhut.send(X, bob)).sum().backward()
    twin = copy.deepcopy(model)
    assert twin.weight.grad is not model.weight.grad
    torch.testing.assert_close(twin.weight.grad.get(), X.sum(0, keepdim=True))


def test_what_a_module_had_at_a_worker_goes_with_it():
    """No collector is needed: else earlier rounds' models would fill the worker."""
    bob = obhut.VirtualWorker("bob")
    rows = obhut.send(torch.ones(3, 2), bob)
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))

    def train():
        copy = obhut.send(obhut.copy(model), bob)
        copy(rows).sum().backward()

    train()
    gc.collect()
    before = bob.objects_count()
    gc.disable()
    try:
        for _ in range(3):
            train()
        assert bob.objects_count() == before
    finally:
        gc.enable()


def test_a_forward_without_its_module_says_so():
    """A sent module's forward does not keep the module."""
    bob = obhut.VirtualWorker("bob")
    forward = obhut.send(nn.Sequential(nn.Linear(2, 1)), bob).forward
    gc.collect()
    with pytest.raises(CallError, match="module is gone"):
        forward(obhut.send(torch.ones(1, 2), bob))


def test_what_a_program_set_on_a_tensor_stays_on_it(
    bob: obhut.VirtualWorker, alice: obhut.VirtualWorker
) -> None:
    """Sent, moved, fetched, copied and averaged, here and there, buffers too."""
    model = Net()
    model.noted = nn.Buffer(torch.ones(3), persistent=False)
    model.first.weight.lr_scale = [0.5]
    model.noted.kind = "mask"

    def check(model: nn.Module) -> None:
        assert model.second.weight is model.first.weight
        assert model.first.weight.lr_scale == [0.5]
        assert model.noted.kind == "mask"
        assert isinstance(model.noted, nn.Buffer)
        assert "noted" not in model.state_dict()

    for change in (
        lambda: obhut.copy(model),
        lambda: obhut.average([model, model]),
        lambda: obhut.send(model, bob),
        lambda: obhut.copy(model),
        lambda: copy.deepcopy(model),
        lambda: obhut.average([model, obhut.copy(model)]),
        lambda: obhut.move(model, alice),
        lambda: obhut.get(obhut.copy(model)),
        lambda: obhut.get(model),
    ):
        check(change())
    twin = obhut.copy(model)
    twin.first.weight.lr_scale.append(1.0)
    check(model)


def test_single_numbers_may_stay_here(
    bob: obhut.VirtualWorker, alice: obhut.VirtualWorker
) -> None:
    """Beside a module at a worker; not what is trained, nor several numbers."""
    model = obhut.send(nn.Linear(3, 1), bob)
    model.register_buffer("count", torch.tensor(3))
    assert location_of(model) is bob
    assert location_of(obhut.move(model, alice)) is alice
    assert torch.equal(obhut.get(obhut.average([model, model])).count, model.count)
    model.register_buffer("counts", torch.tensor([3]))
    for use in (obhut.get, location_of, lambda m: obhut.move(m, bob)):
        with pytest.raises(LocationError, match="this process"):
            use(model)
    del model.counts
    assert location_of(obhut.get(model)) is None
    with pytest.raises(LocationError, match="send the module first"):
        obhut.get(model)


def test_a_module_made_in_inference_mode_is_sent(bob: obhut.VirtualWorker) -> None:
    """Its parameters have no place in a graph here that could be spoilt."""
    with torch.inference_mode():
        model = obhut.send(nn.Linear(3, 1), bob)
        result = model(obhut.send(torch.ones(2, 3), bob))
    assert torch.equal(result.get(), obhut.get(model)(torch.ones(2, 3)))


def test_what_was_added_to_a_sent_module_is_sent_too(
    bob: obhut.VirtualWorker, alice: obhut.VirtualWorker
) -> None:
    """To where the rest is; the errors lead there."""
    model = obhut.send(nn.Sequential(nn.Linear(3, 2)), bob)
    model.append(nn.Linear(2, 1))
    with pytest.raises(LocationError, match=r"module first: obhut.send\(model, bob\)"):
        obhut.get(model)
    with pytest.raises(LocationError, match="directly"):
        obhut.send(model, alice)
    assert location_of(obhut.send(model, bob)) is bob
    with pytest.raises(LocationError, match="directly"):
        obhut.send(model, bob)
    assert location_of(obhut.move(model, alice)) is alice
