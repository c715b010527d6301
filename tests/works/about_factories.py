"""Tensors that a program makes: by factories, of data, by old constructors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import clip_grad_value_, parameters_to_vector, vector_to_parameters
from torch.utils.data import DataLoader, TensorDataset

from .programs import Location, row

X = torch.tensor([3.0, 1.0, 2.0])


def losses(at: Location) -> tuple[Any, Any]:
    """Return two numbers."""
    x = at.send(X)
    return x.sum(), x.mean()


@row("`x.new(2, 3)`, `x.new([1, 2])`, `x.new(x.size())`")
def new(at: Location) -> Any:
    """They make what is beside x."""
    x = at.send(X)
    sizes = [x.new(2, 3).zero_(), x.data.new(x.size()).fill_(1), x.new()]
    return [*sizes, x.new([1, 2]), x.new((4, 5)), x.new_zeros(2), x.new_full((2,), 7)]


class Cell(nn.Module):
    """A recurrent network as tutorials write it."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Begin with a hidden state beside the weights."""
        weight = next(self.parameters()).data
        hidden = weight.new(1, x.size(1), 3).zero_()
        result, _ = self.gru(x, hidden)
        return result


@row("a hidden state made by `weight.new(...).zero_()`")
def hidden(at: Location) -> Any:
    """It is where the weights are."""
    model = at.send(Cell())
    result = model(at.send(torch.ones(4, 2, 2)))
    result.sum().backward()
    return [result, *(p.grad for p in model.parameters())]


@row("`x.type(torch.DoubleTensor)`, `x.type_as(y)`")
def typed(at: Location) -> Any:
    """They cast, and keep the place."""
    x, y = at.send(X), at.send(torch.tensor([1]))
    return [x.type(torch.DoubleTensor), x.type("torch.LongTensor"), x.type_as(y)]


@row("`here.to(x)`, `here.type_as(x)`")
def to_remote(at: Location) -> Any:
    """They bring the local tensor to where x is."""
    x = at.send(X.double())
    return [torch.ones(3).to(x) + x, torch.arange(3).type_as(x) * x]


@row("a tensor by `torch.FloatTensor(...)` beside a remote one")
def float_tensor(at: Location) -> Any:
    """Nobody can place what it makes; the error says what can be placed."""
    x = at.send(X)
    with at.inside():
        return x + torch.FloatTensor([1.0, 2.0, 3.0])


def masked(x: torch.Tensor) -> torch.Tensor:
    """Multiply by a mask that is made on the way."""
    return x * torch.ones(len(x))


@row("a helper outside a module that makes a tensor")
def helper(at: Location) -> Any:
    """The error says how it is made there."""
    return masked(at.send(X))


@row("such a helper inside `with bob:`")
def helper_inside(at: Location) -> Any:
    """It makes it there."""
    with at.inside():
        return masked(at.send(X))


@row("`torch.tensor([loss1, loss2])`")
def tensor_of_losses(at: Location) -> Any:
    """The values come here, as by `float()`."""
    one, two = losses(at)
    return [
        torch.tensor([one, two]),
        torch.as_tensor([[one], [2.0]]),
        torch.Tensor([two]),
    ]


@row("`torch.tensor([loss1, loss2])` inside `with bob:`, `x.new_tensor([loss1])`")
def tensor_of_losses_inside(at: Location) -> Any:
    """They are put together there."""
    one, two = losses(at)
    with at.inside():
        made = [torch.tensor([one, two]), torch.as_tensor([[one, 2.0], [two, 1.0]])]
    return [*made, one.new_tensor([one, two]), one.new([one, two])]


@row("`np.array(x)`")
def array(at: Location) -> Any:
    """Its memory is not here."""
    return np.array(at.send(X)).tolist()


@row("`math.sqrt(loss)`, `sum`, `max`, `sorted`, `if loss > 0:`")
def builtins(at: Location) -> Any:
    """They ask for numbers, or add tensors."""
    one, two = losses(at)
    ordered = [float(value) for value in sorted([one, two])]
    return [math.sqrt(one), sum([one, two]), max(one, two), ordered, bool(one > two)]


@row("`torch.cat((x, here))`")
def mixed(at: Location) -> Any:
    """It names both ways out."""
    return torch.cat((at.send(X), X))


@row("an index by a mask that is here")
def mask_here(at: Location) -> Any:
    """How many elements it lets through is known without asking."""
    x, mask = at.send(X), torch.tensor([True, False, True])
    y = x.clone()
    y[mask] = 0
    rows = at.send(torch.arange(6.0).view(2, 3))
    return [x[mask], y, rows[:, mask], rows[0, mask], rows[mask[:2]]]


@row("`parameters_to_vector`, `vector_to_parameters`, `clip_grad_value_`")
def vectors(at: Location) -> Any:
    """They work on what the parameters are."""
    model = at.send(nn.Linear(3, 1))
    F.mse_loss(model(at.send(X[None])), at.send(torch.zeros(1, 1))).backward()
    clip_grad_value_(model.parameters(), 0.1)
    vector = parameters_to_vector(model.parameters())
    vector_to_parameters(vector * 2, model.parameters())
    return [vector, *model.parameters(), *(p.grad for p in model.parameters())]


@row("`TensorDataset(x)` of a remote tensor in a `DataLoader`")
def remote_rows(at: Location) -> Any:
    """Its batches are where the rows are."""
    loader = DataLoader(TensorDataset(at.send(X)), batch_size=2, shuffle=True)
    return [batch for (batch,) in loader]
