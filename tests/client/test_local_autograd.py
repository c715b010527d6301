"""What would happen in this process while autograd runs elsewhere is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import obhut
from obhut.errors import NotSendableError, UnsupportedError

X = torch.linspace(-1, 1, 6).reshape(2, 3)


def with_hook(
    kind: str,
) -> Callable[[nn.Sequential], torch.utils.hooks.RemovableHandle]:
    """Return what sets a hook that autograd would have to run."""
    return {
        "parameter": lambda m: m[0].weight.register_hook(lambda grad: grad),
        "tied": lambda m: m[1].weight.register_hook(lambda grad: grad),
        "accumulated": lambda m: m[0].bias.register_post_accumulate_grad_hook(print),
        "buffer": lambda m: m.made.register_hook(lambda grad: grad),
        "full": lambda m: m[1].register_full_backward_hook(print),
        "full, before": lambda m: m.register_full_backward_pre_hook(print),
        "old": lambda m: m[0].register_backward_hook(print),
    }[kind]


@pytest.mark.filterwarnings("ignore:Using a non-full backward hook")
@pytest.mark.parametrize(
    "kind",
    ["parameter", "tied", "accumulated", "buffer", "full", "full, before", "old"],
)
def test_a_hook_keeps_its_module_here(kind: str, bob: obhut.VirtualWorker):
    """It is refused before anything changes; without it the module is sent."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model.register_buffer("made", torch.ones(3, requires_grad=True))
    handle = with_hook(kind)(model)
    with pytest.raises(NotSendableError, match=r"hook.*handle\.remove"):
        obhut.send(model, bob)
    assert bob.objects_count() == 0
    assert type(model[0].weight) is nn.Parameter
    assert "forward" not in vars(model)
    model(X)
    handle.remove()
    assert obhut.send(model, bob)(obhut.send(X, bob)).location is bob


def test_a_hook_keeps_its_tensor_here(bob: obhut.VirtualWorker):
    """A copy without it would give other gradients."""
    x = X.clone().requires_grad_()
    handle = x.register_hook(lambda grad: grad * 2)
    with pytest.raises(NotSendableError, match="a tensor with a hook"):
        obhut.send(x, bob)
    handle.remove()
    assert obhut.send(x, bob).requires_grad


class Scaled(torch.autograd.Function):
    """A custom function that makes its result as it is told to."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, mode: Any) -> torch.Tensor:
        """Double it."""
        with mode():
            return x * 2

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Give another gradient."""
        return -grad, None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_a_custom_function_is_found_in_each_grad_mode(
    mode: Callable[[], object], bob: obhut.VirtualWorker
):
    """Its backward would never run. Where no gradient is wanted it may run here."""
    x = obhut.send(X, bob)
    assert Scaled.apply(x, mode).location is bob
    with pytest.raises(UnsupportedError, match=r"custom autograd\.Function"):
        Scaled.apply(x.requires_grad_(), mode)


def test_inference_mode_is_no_custom_function(bob: obhut.VirtualWorker):
    """It switches the same things off."""
    model = obhut.send(nn.Linear(3, 3), bob)
    with torch.inference_mode():
        assert model(obhut.send(X, bob)).location is bob


def test_checkpoints_name_themselves(bob: obhut.VirtualWorker):
    """The reentrant one is refused as what it is; the other gives equal gradients."""
    remote = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    x = obhut.send(X, bob).requires_grad_()
    remote(X).sum().backward()
    expected = [p.grad.clone() for p in remote.parameters()]
    remote.zero_grad()
    obhut.send(remote, bob)
    with pytest.raises(UnsupportedError, match="write use_reentrant=False"):
        checkpoint(remote, x, use_reentrant=True)
    checkpoint(remote, x, use_reentrant=False).sum().backward()
    for parameter, grad in zip(remote.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad.copy().get(), grad)


def test_hooks_on_what_is_saved_never_see_a_workers(bob: obhut.VirtualWorker):
    """Those of a program are refused; under any, a worker's own are left alone."""
    weight = obhut.send(torch.ones(3, 3), bob).requires_grad_()
    seen: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        seen.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, note):
        assert obhut.send(X, bob).sum().item() == X.sum()
        with torch.no_grad():
            weight @ weight
        with pytest.raises(UnsupportedError, match="saved_tensors_hooks"):
            weight @ weight
    kept = weight @ weight
    with torch.autograd.graph.saved_tensors_hooks(note, note):
        bob.wait()
    kept.sum().backward()
    bob.wait()
    assert seen == []
    with (
        torch.autograd.graph.allow_mutation_on_saved_tensors(),
        pytest.raises(UnsupportedError, match="saved_tensors_hooks"),
    ):
        weight @ weight


def test_anomaly_detection_is_refused_and_left_on(bob: obhut.VirtualWorker):
    """It would print here and raise there."""
    x = obhut.send(X, bob).requires_grad_()
    with pytest.warns(UserWarning, match="Anomaly"):
        mode = torch.autograd.detect_anomaly()
    with mode:
        loss = x.sum()
        bob.wait()
        assert torch.is_anomaly_enabled()
        for go_back in (loss.backward, lambda: torch.autograd.grad(loss, x)):
            with pytest.raises(UnsupportedError, match="detect_anomaly"):
                go_back()
    loss.backward()


def test_a_node_of_a_graph_says_where_it_is(bob: obhut.VirtualWorker):
    """Whatever would hang on it, or walk along it."""
    node = (obhut.send(X, bob).requires_grad_() * 2).grad_fn
    for ask in (
        lambda: node.register_hook(print),
        lambda: node.register_prehook(print),
        lambda: node.next_functions,
        lambda: node.metadata,
    ):
        with pytest.raises(UnsupportedError, match="autograd runs at the worker"):
            ask()


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")
def test_jit_tracing_is_refused(bob: obhut.VirtualWorker):
    """Of a module, whose parameters it would follow into the void, and a function."""
    x = obhut.send(X, bob)
    model = obhut.send(nn.Sequential(nn.Linear(3, 1)), bob)
    for code in (model, lambda x: x * 2):
        with pytest.raises(UnsupportedError, match=r"torch\.jit\.trace"):
            torch.jit.trace(code, x)
    assert model(x).location is bob
