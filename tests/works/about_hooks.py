"""Hooks that are set before or after what they hang on is sent."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_full_backward_hook
from torch.nn.utils import prune

from .programs import Location, row

X = torch.linspace(-1, 1, 6).reshape(2, 3)


def trained(at: Location, layer: nn.Module) -> Any:
    """Send a layer, run it and go back through it."""
    at.send(layer)
    result = layer(at.send(X))
    (result**2).sum().backward()
    return [result, *(parameter.grad for parameter in layer.parameters())]


@row("a forward hook of a module, set before `send`")
def forward_hook(at: Location) -> Any:
    """The hook runs, here, on what the module returns there."""
    layer = nn.Linear(2, 1)
    seen: list[tuple[int, ...]] = []
    layer.register_forward_hook(lambda *args: seen.append(tuple(args[2].shape)))
    at.send(layer)
    return [layer(at.send(torch.ones(3, 2))), seen]


@row("a forward hook that keeps a result's gradient: `output.retain_grad()`")
def retaining_hook(at: Location) -> Any:
    """What is to be written instead of a backward hook."""
    layer, outputs = nn.Sequential(nn.Linear(3, 2), nn.Tanh()), []

    def keep(module: nn.Module, args: object, output: torch.Tensor) -> None:
        output.retain_grad()
        outputs.append(output)

    layer[0].register_forward_hook(keep)
    return [trained(at, layer), outputs[0].grad]


@row("a forward pre-hook that changes a module's input, set after `send`")
def forward_pre_hook(at: Location) -> Any:
    """It gives the module another remote tensor."""
    layer = at.send(nn.Linear(3, 1))
    layer.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    return layer(at.send(X))


@row("a hook on a parameter (`register_hook`), set before `send`")
def parameter_hook(at: Location) -> Any:
    """It would be lost."""
    layer = nn.Sequential(nn.Linear(3, 1))
    layer[0].weight.register_hook(lambda grad: grad * 2)
    return trained(at, layer)


@row("`register_post_accumulate_grad_hook` on a parameter, set before `send`")
def post_accumulate_hook(at: Location) -> Any:
    """As optimizers that step during the backward pass set it."""
    layer = nn.Linear(3, 1)
    layer.bias.register_post_accumulate_grad_hook(lambda bias: None)
    return trained(at, layer)


@row("a hook on a tensor, set before `send`")
def tensor_hook(at: Location) -> Any:
    """It would be lost."""
    x = X.clone().requires_grad_()
    x.register_hook(lambda grad: grad * 2)
    return at.send(x) * 2


@row("a hook that was removed before `send`")
def removed_hook(at: Location) -> Any:
    """What is no more is not in the way."""
    layer = nn.Linear(3, 1)
    layer.weight.register_hook(lambda grad: grad * 2).remove()
    layer.register_full_backward_hook(lambda *_: None).remove()
    return trained(at, layer)


@row("a full backward hook of a module, set before `send`")
def full_backward_hook(at: Location) -> Any:
    """It would have to run at the worker."""
    layer = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    layer[1].register_full_backward_hook(lambda *_: None)
    return trained(at, layer)


@row("a full backward hook of a module, set after `send`")
def late_full_backward_hook(at: Location) -> Any:
    """It is refused when the module runs."""
    layer = at.send(nn.Linear(3, 1))
    layer.register_full_backward_hook(lambda *_: None)
    return layer(at.send(X))


@row("`register_module_full_backward_hook`, for all modules")
def global_backward_hook(at: Location) -> Any:
    """It is refused when a sent module runs."""
    handle = register_module_full_backward_hook(lambda *_: None)
    try:
        return at.send(nn.Linear(3, 1))(at.send(X))
    finally:
        handle.remove()


@row("`torch.autograd.graph.register_multi_grad_hook`")
def multi_grad_hook(at: Location) -> Any:
    """It asks for the node that accumulates a gradient."""
    layer = at.send(nn.Linear(3, 1))
    torch.autograd.graph.register_multi_grad_hook([layer.weight], lambda grads: None)
    return layer(at.send(X))


@row("`weight_norm` and `spectral_norm`, old and new, `orthogonal`, `prune`")
def parametrized(at: Location) -> Any:
    """They are hooks and modules that run here, on remote tensors."""
    with warnings.catch_warnings(action="ignore"):
        old = nn.utils.weight_norm(nn.Linear(3, 2))
    layers = [
        old,
        nn.utils.spectral_norm(nn.Linear(3, 2)),
        nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)),
        nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2)),
        nn.utils.parametrizations.orthogonal(nn.Linear(3, 3)),
        prune.l1_unstructured(nn.Linear(3, 2), "weight", 0.5),
    ]
    return [trained(at, layer) for layer in layers]
