"""What a program does with modules beside training them."""

from __future__ import annotations

import copy
import functools
import inspect
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from .programs import Location, row

X = torch.linspace(-1, 1, 12).reshape(4, 3)


class Caching(nn.Module):
    """A module that makes what it needs once, and keeps it as plain attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.table = torch.arange(30.0).reshape(10, 3)
        self.by_length: dict[int, tuple[torch.Tensor, ...]] = {}
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Use them."""
        rows = x.shape[0]
        if rows not in self.by_length:
            self.by_length[rows] = (torch.arange(rows).unsqueeze(1), torch.ones(3))
        places, ones = self.by_length[rows]
        result = self.inner(x) * places + self.table[:rows] * ones
        self.seen.append(result.detach())
        return result


class Outside(nn.Module):
    """A module whose tensors a function keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.places = functools.cache(torch.arange)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Ask the function."""
        return self.inner(x) * self.places(3)


class Loose(nn.Module):
    """A module with a weight that is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.ones(3, requires_grad=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Use it."""
        return x * self.weight


@row("attributes of parameters and buffers (`p._no_weight_decay = True`)")
def attributes(at: Location) -> Any:
    """They stay on after `send`, on a copy, and after `get`."""
    model = nn.BatchNorm1d(3)
    model.weight._no_weight_decay = True  # type: ignore[attr-defined]
    model.running_mean.scale = 2.0  # type: ignore[union-attr]

    def read() -> list[Any]:
        return [model.weight._no_weight_decay, model.running_mean.scale]  # type: ignore[union-attr]

    at.send(model)
    there = read()
    at.get(model)
    return [there, read()]


@row("`inspect.signature(model.forward)`, its name and its text")
def signature(at: Location) -> Any:
    """As Hugging Face's Trainer looks for the columns that a model takes."""
    model = at.send(Caching())
    forward = model.forward
    return [
        str(inspect.signature(forward)),
        forward.__name__,
        forward.__qualname__,
        forward.__doc__,
        str(forward.__annotations__),
        forward.__code__.co_varnames,
        inspect.getsource(forward),
    ]


@row("tensors that a module keeps as plain attributes, from place to place")
def kept_tensors(at: Location) -> Any:
    """In attributes, lists, tuples and dicts; made here, and made there."""
    model = Caching()
    results = [model(X)]
    for _ in range(2):
        at.send(model)
        results += [model(at.send(X)), model(at.send(X))]
        at.get(model)
        results.append(model(X))
    return [results, model.seen, list(model.by_length.values())]


@row("a plain attribute that requires a gradient")
def loose_weight(at: Location) -> Any:
    """It would stay untrained."""
    model = nn.Sequential(nn.Linear(3, 3), Loose())
    return at.send(model)(at.send(X))


@row("a module whose tensors a cached function keeps, which ran here first")
def outside(at: Location) -> Any:
    """Nobody knows that it is the module's."""
    model = Outside()
    model(X)
    return at.send(model)(at.send(X))


@row("`AveragedModel`, made before and after `send`, `update_bn`")
def averaged(at: Location) -> Any:
    """Its count of updates may stay here."""
    results: list[Any] = []
    for after in (False, True):
        model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        if after:
            at.send(model)
        means = [
            AveragedModel(model),
            AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)),
        ]
        if not after:
            at.send(model)
            means = [at.send(mean) for mean in means]
        x = at.send(X)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            (model(x) ** 2).sum().backward()
            optimizer.step()
            for mean in means:
                mean.update_parameters(model)
        for mean in means:
            update_bn([x, x], mean)
            at.get(mean)
        results += [list(mean.state_dict().values()) for mean in means]
    return results


@row("`torch.optim.lr_scheduler`: `OneCycleLR`, `ReduceLROnPlateau`, `CyclicLR`")
def schedulers(at: Location) -> Any:
    """They change numbers here; the one on a plateau asks for the loss."""
    results: list[Any] = []
    for make in (
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=9),
        lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0),
        lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.1),
    ):
        model, x = at.send(nn.Linear(3, 1)), at.send(X)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        scheduler = make(optimizer)
        for _ in range(4):
            optimizer.zero_grad()
            loss = (model(x) ** 2).mean()
            loss.backward()
            optimizer.step()
            plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            scheduler.step(*([loss.detach()] if plateau else []))
        results += [model.weight.detach(), optimizer.param_groups[0]["lr"]]
    return results


@row("`nn.GRUCell`, `nn.LSTMCell`, `nn.RNNCell` without a first state")
def cells(at: Location) -> Any:
    """They make it themselves."""
    return [at.send(kind(3, 2))(at.send(X)) for kind in (nn.GRUCell, nn.RNNCell)] + [
        list(at.send(nn.LSTMCell(3, 2))(at.send(X)))
    ]


@row("`nn.DataParallel` over no device")
def data_parallel(at: Location) -> Any:
    """It calls the module."""
    return nn.DataParallel(at.send(nn.Linear(3, 1)))(at.send(X))


@row("`copy.deepcopy` of a module with what it kept, run again")
def deep_copied(at: Location) -> Any:
    """The copy keeps its own."""
    model = at.send(Caching())
    model(at.send(X))
    twin = copy.deepcopy(model)
    return [twin(at.send(X)), model(at.send(X)), len(twin.seen)]


@row("`torch.compile` of a module or a function: runs uncompiled")
def compiled(at: Location) -> Any:
    """A worker runs operators one by one."""
    model = at.send(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), Caching()))
    x = at.send(X)
    model.compile(backend="eager")
    loss = torch.compile(lambda x: (model(x) ** 2).mean(), backend="eager")
    result = torch.compile(model, backend="eager")(x)
    loss(x).backward()
    return [result, *(parameter.grad for parameter in model.parameters())]


@row("`torch.jit.trace`")
def traced(at: Location) -> Any:
    """It would follow dead pointers."""
    torch.jit.trace(at.send(nn.Sequential(nn.Linear(3, 1))), at.send(X))


@row("`torch.jit.script`")
def scripted(at: Location) -> Any:
    """It reads the source of a forward that enters a worker."""
    torch.jit.script(at.send(nn.Sequential(nn.Linear(3, 1))))


@row("a module that `torch.jit.script` made, sent")
def script_sent(at: Location) -> Any:
    """Its parameters are not Python's."""
    return at.send(torch.jit.script(nn.Linear(3, 1)))(at.send(X))


@row("`torch.export.export`")
def exported(at: Location) -> Any:
    """It looks at the memory."""
    torch.export.export(at.send(nn.Linear(3, 1)), (at.send(X),))


@row("`torch.fx.symbolic_trace`")
def symbolic(at: Location) -> Any:
    """It runs Python only."""
    model = at.send(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    return torch.fx.symbolic_trace(model)(at.send(X))


def trained(at: Location, model: nn.Module) -> list[Any]:
    """Train a model by one step, and return its loss and its parameters."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = (model(at.send(X.clone())) ** 2).mean()
    loss.backward()
    optimizer.step()
    return [loss, *(parameter.detach().clone() for parameter in model.parameters())]


@row("a layer that is added after `send`, and `send` again")
def added_layer(at: Location) -> Any:
    """What is there stays; the rest is sent. Made inside the worker it is there."""
    model = at.send(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    model[2] = nn.Linear(4, 3)
    model.append(Caching())
    at.send(model)
    first = trained(at, model)
    with at.inside():
        model.append(nn.Linear(3, 1))
    return [first, trained(at, model)]


@row("a layer that is added after `send`, and left here")
def layer_left_here(at: Location) -> Any:
    """The error names it."""
    model = at.send(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    model[2] = nn.Linear(4, 3)
    return model(at.send(X.clone()))


@row("an `nn.Parameter` that is sent by itself, and given to a module")
def parameter_alone(at: Location) -> Any:
    """It is the module's parameter, and trained."""
    model = at.send(nn.Linear(3, 2))
    model.shift = at.send(nn.Parameter(torch.zeros(2)))
    model.register_forward_hook(lambda module, args, out: out + module.shift)
    step = trained(at, model)
    return [step, list(model.state_dict()), isinstance(model.shift, nn.Parameter)]
