"""The demo's first part: the toy of the tutorial that obhut makes true.

Two owners train copies of a model on two rows each; a secure worker averages the
copies, so that the model's owner sees only the average. It can be trained line by line,
and as a program, to the same digits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import nn, optim

import obhut
from obhut import RemoteTensor

LEARNING_RATE = 0.1
LOCAL_STEPS = 10
ROUNDS = 10
STEPS_IN_ROUND = 5

Train: TypeAlias = Callable[
    [nn.Module, optim.Optimizer, RemoteTensor, RemoteTensor, int], list[float]
]
"""Takes steps where the rows are, and returns their losses.

Leak: an owner's own losses come here. Only a worker that enforces nothing lets them;
the hospitals' losses are averaged first.
"""


def line_by_line(
    model: nn.Module,
    optimizer: optim.Optimizer,
    data: RemoteTensor,
    target: RemoteTensor,
    steps: int,
) -> list[float]:
    """Take steps, each of whose operators is a message; fetch each loss."""
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = ((model(data) - target) ** 2).sum()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses


@obhut.program
def step(
    model: nn.Module, optimizer: optim.Optimizer, x: torch.Tensor, y: torch.Tensor
) -> torch.Tensor:
    """Take a step on rows that are all there are."""
    optimizer.zero_grad()
    loss: torch.Tensor = ((model(x) - y) ** 2).sum()
    loss.backward()
    optimizer.step()
    return loss


def as_a_program(
    model: nn.Module,
    optimizer: optim.Optimizer,
    data: RemoteTensor,
    target: RemoteTensor,
    steps: int,
) -> list[float]:
    """Take all steps in one message, and fetch their losses at once."""
    loss = step.run(model=model, optimizer=optimizer, data=(data, target), epochs=steps)
    losses: list[float] = (loss.numerator / loss.denominator).tolist()
    return losses


@dataclass(frozen=True, slots=True)
class ToyResult:
    """What the toy comes to.

    Attributes:
        local: bob's and alice's loss at each local step, before the first average.
        rounds: bob's and alice's last loss in each round.
        predictions: what the model makes of the four rows.
        targets: what they should be.
        loss: the sum of squared errors of these.
        seconds: that all rounds took.
    """

    local: list[tuple[float, float]]
    rounds: list[tuple[float, float]]
    predictions: list[float]
    targets: list[float]
    loss: float
    seconds: float


def train_toy(seed: int, train: Train = line_by_line) -> ToyResult:
    """Train the toy model, with rows that stay at two virtual workers."""
    torch.manual_seed(seed)
    bob = obhut.VirtualWorker("bob")
    alice = obhut.VirtualWorker("alice")
    secure_worker = obhut.VirtualWorker("secure_worker")

    data = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    target = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    bobs_data = obhut.send(data[:2], bob)
    bobs_target = obhut.send(target[:2], bob)
    alices_data = obhut.send(data[2:], alice)
    alices_target = obhut.send(target[2:], alice)

    model = nn.Linear(2, 1)

    def train_and_average(steps: int) -> list[tuple[float, float]]:
        """Train a copy at each owner and let the model be their average."""
        bobs_model = obhut.send(obhut.copy(model), bob)
        alices_model = obhut.send(obhut.copy(model), alice)
        bobs_opt = optim.SGD(bobs_model.parameters(), lr=LEARNING_RATE)
        alices_opt = optim.SGD(alices_model.parameters(), lr=LEARNING_RATE)
        bobs = train(bobs_model, bobs_opt, bobs_data, bobs_target, steps)
        alices = train(alices_model, alices_opt, alices_data, alices_target, steps)
        # Each copy goes straight to the secure worker, not through this process.
        obhut.move(bobs_model, secure_worker)
        obhut.move(alices_model, secure_worker)
        average = obhut.get(obhut.average([alices_model, bobs_model]))
        model.load_state_dict(average.state_dict())
        return [*zip(bobs, alices, strict=True)]

    local = train_and_average(LOCAL_STEPS)
    began = time.perf_counter()
    rounds = [train_and_average(STEPS_IN_ROUND)[-1] for _ in range(ROUNDS)]
    seconds = time.perf_counter() - began

    with torch.no_grad():
        predictions = model(data)
        loss = ((predictions - target) ** 2).sum()
    return ToyResult(
        local,
        rounds,
        predictions.flatten().tolist(),
        target.flatten().tolist(),
        loss.item(),
        seconds,
    )
