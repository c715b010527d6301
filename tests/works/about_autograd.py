"""Autograd, and the modes under which programs run it."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from .programs import Location, row

X = torch.linspace(-1, 1, 12).reshape(4, 3)


def network(dropped: float = 0.0) -> nn.Sequential:
    """Return a small network."""
    drop = nn.Dropout(dropped)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), drop, nn.Linear(8, 2))


def grads(model: nn.Module) -> list[Any]:
    """Return a module's gradients."""
    return [parameter.grad for parameter in model.parameters()]


class Reversed(torch.autograd.Function):
    """Turns the gradient around; makes its result with gradients switched on."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        """Return the tensor."""
        with torch.enable_grad():
            return x * 1

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        """Turn the gradient around."""
        return -grad


@row("`torch.utils.checkpoint` with `use_reentrant=False`")
def checkpointed(at: Location) -> Any:
    """The worker keeps what it would make again."""
    model = at.send(network(dropped=0.3))
    x = at.send(X.clone()).requires_grad_()
    result = checkpoint(model, x, use_reentrant=False)
    (result**2).sum().backward()
    parts = checkpoint_sequential(model, 2, x, use_reentrant=False)
    parts.sum().backward()
    return [result, x.grad, parts, *grads(model)]


@row("`torch.utils.checkpoint` with `use_reentrant=True`")
def reentrant(at: Location) -> Any:
    """It is a custom function of PyTorch's own."""
    model = at.send(network())
    result = checkpoint(model, at.send(X.clone()).requires_grad_(), use_reentrant=True)
    result.sum().backward()
    return grads(model)


@row("a custom `autograd.Function`, also one that enables gradients itself")
def custom_function(at: Location) -> Any:
    """Its backward would have to run at the worker."""
    x = at.send(X.clone()).requires_grad_()
    Reversed.apply(x).sum().backward()
    return x.grad


@row("`torch.autograd.graph.save_on_cpu`")
def saved_on_cpu(at: Location) -> Any:
    """What is saved stays at the worker."""
    model = at.send(network())
    with torch.autograd.graph.save_on_cpu():
        result = model(at.send(X))
    (result**2).sum().backward()
    return grads(model)


@row("`torch.autograd.graph.saved_tensors_hooks`")
def saved_tensors_hooks(at: Location) -> Any:
    """They might change what is saved."""
    model = at.send(network())
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        return model(at.send(X))


@row("`torch.autograd.detect_anomaly`")
def anomaly(at: Location) -> Any:
    """It would look for NaN here."""
    model = at.send(network())
    with warnings.catch_warnings(action="ignore"):
        mode = torch.autograd.detect_anomaly()
    with mode:
        model(at.send(X)).sum().backward()
    return grads(model)


@row("`torch.autograd.set_multithreading_enabled(False)`")
def one_thread(at: Location) -> Any:
    """How the worker's autograd runs is the worker's."""
    model = at.send(network())
    with torch.autograd.set_multithreading_enabled(False):
        model(at.send(X)).sum().backward()
    return grads(model)


@row("`torch.autocast` around several steps, with its cache of weights")
def autocast(at: Location) -> Any:
    """Weights cast once, as PyTorch does, also where a step has changed them since."""
    results: list[Any] = []
    for cached in (True, False):
        model, x = at.send(network()), at.send(X)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cached):
            with torch.no_grad():
                results.append(model(x))
            for _ in range(3):
                optimizer.zero_grad()
                ((model(x) + model(x * 2)).float() ** 2).mean().backward()
                results += [grad.clone() for grad in grads(model)]
                optimizer.step()
            with torch.autocast("cpu", enabled=False):
                results.append(model(x))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            results.append(model(x))
    return results


@row("`nn.LSTM` under `torch.autocast` to bfloat16")
def lstm_under_autocast(at: Location) -> Any:
    """PyTorch then takes a kernel that is the processor's own."""
    model = at.send(nn.LSTM(3, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return model(at.send(X))[0]


@row("`nn.LSTM` inside `torch.autocast`, which is switched off around it")
def lstm_beside_autocast(at: Location) -> Any:
    """What is to be written instead."""
    model, out = at.send(nn.LSTM(3, 2)), at.send(nn.Linear(2, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.autocast("cpu", enabled=False):
            states = model(at.send(X))[0]
        return out(states)


@row("a weight that a program casts itself under `torch.autocast`")
def written_casts(at: Location) -> Any:
    """Such a cast is made whenever it is written."""
    weight = at.send(X.clone()).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        one, two = weight.bfloat16(), weight.to(torch.bfloat16)
        product = weight @ weight.t()
        with torch.no_grad():
            one.detach().zero_()
        (two.float().sum() + product.float().sum() + one.float().sum()).backward()
    return [one, two, product, weight.grad]


@row("`torch.amp.GradScaler`, with `unscale_`, clipping and an infinite loss")
def grad_scaler(at: Location) -> Any:
    """Whether gradients are finite is asked at each step."""
    model, x = at.send(network()), at.send(X)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    scales = []
    for step in range(5):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = (model(x) ** 2).mean()
        scaler.scale(loss * float("inf") if step == 2 else loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return [scales, *(p.detach() for p in model.parameters())]


@row("a gradient penalty that not every weight gets a part of")
def penalty_alone(at: Location) -> Any:
    """The last bias has no gradient, and optimizers pass it by."""
    model, x = at.send(network()), at.send(X.clone()).requires_grad_()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    (slope**2).sum().backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    missing = [parameter.grad is None for parameter in model.parameters()]
    return [
        norm,
        missing,
        x.grad,
        *grads(model),
        *(p.detach() for p in model.parameters()),
    ]


@row("a backward pass through gradients, and through those that it was given")
def backward_of_gradients(at: Location) -> Any:
    """All that they were made of gets its own."""
    warnings.filterwarnings("ignore", "Using backward.. with create_graph=True")
    a, b, v = (at.send(torch.ones(2) * n).requires_grad_() for n in (2, 3, 4))
    (a * a * b).backward(v, create_graph=True)
    slope, a.grad, b.grad, v.grad = a.grad, None, None, None
    slope.sum().backward()
    first = [a.grad, b.grad, v.grad]
    a.grad = b.grad = v.grad = None
    (a * b).sum().backward(inputs=[a], create_graph=True)
    (a * b).sum().backward(inputs=[a], create_graph=True)
    a.grad.sum().backward()
    second = [a.grad, b.grad]
    (slope,) = torch.autograd.grad(a**3, a, v, create_graph=True)
    slope.sum().backward()
    return [first, second, v.grad]
