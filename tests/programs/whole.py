"""Whole trainings, each of which a program must repeat."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from obhut.client.ratio import Ratio

SGD, Adam = torch.optim.SGD, torch.optim.Adam


def order(seed: int, name: str = "bob") -> torch.Generator:
    """Return the generator from which a worker draws the order of its rows."""
    number = hashlib.sha256(f"{seed} {name}".encode()).digest()[:7]
    return torch.Generator().manual_seed(int.from_bytes(number, "little"))


def momentum(model, data):
    """Five epochs in another order each time."""
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    total, n = 0.0, 0
    for _ in range(5):
        for x, y in data.batches(16, shuffle=True):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(x)
            n += len(x)
    return {"loss": Ratio(total, n)}


def adam(model, data):
    """One epoch, whose sums are other tensors each time."""
    optimizer = Adam(model.parameters(), lr=0.01)
    total = torch.zeros((), device=next(model.parameters()).device)
    n = 0
    for x, y in data.batches(16):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        total = total + loss.detach() * len(x)
        n += len(x)
    return {"loss": Ratio(total, n), "mean": total / n}


def running_average(model, data):
    """An average that begins with the first loss, and the last loss."""
    optimizer = Adam(model.parameters(), lr=0.01)
    average = None
    for _ in range(2):
        for x, y in data.batches(16):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            now = loss.detach()
            average = now if average is None else 0.9 * average + 0.1 * now
    return {"average": average, "last": loss}


def averaged_weights(model, data):
    """An average of the weights beside the model, written in place."""
    optimizer = SGD(model.parameters(), lr=0.1)
    averages = [p.detach().clone() for p in model.parameters()]
    for _ in range(2):
        for x, y in data.batches(16):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            with torch.no_grad():
                for average, parameter in zip(
                    averages, model.parameters(), strict=True
                ):
                    average.lerp_(parameter, 0.1)
    with torch.no_grad():
        for average, parameter in zip(averages, model.parameters(), strict=True):
            parameter.copy_(average)


def averaged_weights_anew(model, data):
    """The same, as other tensors each time."""
    optimizer = SGD(model.parameters(), lr=0.1)
    averages = [p.detach().clone() for p in model.parameters()]
    for x, y in data.batches(16):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        averages = [
            0.9 * average + 0.1 * parameter.detach()
            for average, parameter in zip(averages, model.parameters(), strict=True)
        ]
    with torch.no_grad():
        for average, parameter in zip(averages, model.parameters(), strict=True):
            parameter.copy_(average)


def stochastic_weight_averaging(model, data):
    """The mean of the weights after each epoch (SWA)."""
    optimizer = SGD(model.parameters(), lr=0.1)
    sums = [torch.zeros_like(p) for p in model.parameters()]
    for _ in range(3):
        for x, y in data.batches(16):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        with torch.no_grad():
            for one, parameter in zip(sums, model.parameters(), strict=True):
                one.add_(parameter)
    with torch.no_grad():
        for one, parameter in zip(sums, model.parameters(), strict=True):
            parameter.copy_(one / 3)


def _every(k: int) -> Callable[..., Any]:
    def every(model, data):
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        total, n = 0.0, 0
        for _ in range(2):
            for i, (x, y) in enumerate(data.batches(8)):
                loss = F.cross_entropy(model(x), y) / k
                loss.backward()
                total = total + loss.detach() * len(x)
                n += len(x)
                if i % k == k - 1:
                    optimizer.step()
                    optimizer.zero_grad()
        return {"loss": Ratio(total, n)}

    every.__doc__ = f"A step every {k} batches."
    return every


every_2, every_3, every_4 = map(_every, (2, 3, 4))


def step_schedule(model, data):
    """A learning rate that halves every second epoch."""
    optimizer = SGD(model.parameters(), lr=0.5, momentum=0.5)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    for _ in range(5):
        for x, y in data.batches(16):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        schedule.step()


def cosine_schedule(model, data):
    """A learning rate of a cosine, another in each epoch."""
    optimizer = Adam(model.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
    for _ in range(4):
        for x, y in data.batches(16):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        schedule.step()


def warmed_up(model, data):
    """A step on rows that are written down, before the loop."""
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(2, 16, device=next(model.parameters()).device)).sum().backward()
    optimizer.step()
    for x, y in data.batches(16):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def proximal(model, data):
    """FedProx: near to the weights of the beginning."""
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        for x, y in data.batches(16):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            pairs = zip(model.parameters(), before, strict=True)
            (loss + 0.1 * sum(((p - q) ** 2).sum() for p, q in pairs)).backward()
            optimizer.step()


def clipped(model, data):
    """Gradients of a bounded norm."""
    optimizer = SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        for x, y in data.batches(16):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()


def evaluated(model, data):
    """A loop that counts what is right, after the training."""
    optimizer = SGD(model.parameters(), lr=0.1)
    for x, y in data.batches(16):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    right, n = 0, 0
    with torch.no_grad():
        for x, y in data.batches(32):
            right = right + (model(x).argmax(1) == y).sum()
            n += len(x)
    return {"right": Ratio(right, n)}


def two_sizes(model, data):
    """Large batches after small ones, and rows that are left out."""
    optimizer = SGD(model.parameters(), lr=0.1)
    n = many = 0
    total = 0.0
    for size in (8, 16):
        for x, y in data.batches(size, drop_last=True):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            total = total + loss.detach()
            n += len(x)
            many += 1
    return {"rows": Ratio(total, n), "batches": Ratio(total, many)}


def by_hand(model, data):
    """Momentum without an optimizer."""
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    for _ in range(2):
        for x, y in data.batches(16, shuffle=True):
            parameters = list(model.parameters())
            grads = torch.autograd.grad(F.cross_entropy(model(x), y), parameters)
            velocity = [0.9 * v + g for v, g in zip(velocity, grads, strict=True)]
            with torch.no_grad():
                for parameter, v in zip(parameters, velocity, strict=True):
                    parameter.sub_(0.1 * v)


def one_optimizer_an_epoch(model, data):
    """An optimizer that is made anew."""
    for _ in range(3):
        optimizer = Adam(model.parameters(), lr=0.01)
        for x, y in data.batches(16):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()


def weighted_epochs(model, data):
    """Epochs that do not do the same."""
    optimizer = SGD(model.parameters(), lr=0.1)
    for weight in (1.0, 0.5, 0.25):
        for x, y in data.batches(16):
            optimizer.zero_grad()
            (weight * F.cross_entropy(model(x), y)).backward()
            optimizer.step()


def never_cleared(model, data):
    """Gradients that add up."""
    optimizer = SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        for x, y in data.batches(16):
            F.cross_entropy(model(x), y).backward()
            optimizer.step()


def cleared_last(model, data):
    """Gradients that go after the step, and the last loss."""
    optimizer = SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        for x, y in data.batches(16):
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return loss


def last_gradients(model, data):
    """A step by what the last batch of a loop has left."""
    optimizer = SGD(model.parameters(), lr=0.1)
    for x, y in data.batches(16):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.step()


def kept_graph(model, data):
    """One backward pass through all batches."""
    optimizer = SGD(model.parameters(), lr=0.1)
    total, n = 0.0, 0
    for x, y in data.batches(16):
        total = total + F.cross_entropy(model(x), y) * len(x)
        n += len(x)
    (total / n).backward()
    optimizer.step()
    return Ratio(total, n)


def drawn(model, data):
    """Noise, whose seed is the run's."""
    optimizer = SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        for x, y in data.batches(16):
            optimizer.zero_grad()
            noise = 0.1 * torch.randn_like(x)
            F.cross_entropy(F.dropout(model(x + noise)), y).backward()
            optimizer.step()


def all_rows(model, data):
    """All rows in one batch, several times."""
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(5):
        for x, y in data.batches():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
    return loss


def teacher(model, data):
    """The weights of the epoch before teach those of this one."""
    optimizer = SGD(model.parameters(), lr=0.1)
    student, old = model, copy.deepcopy(model)
    for _ in range(3):
        for x, y in data.batches(16):
            optimizer.zero_grad()
            with torch.no_grad():
                wanted = old(x).softmax(1)
            logits = student(x)
            (F.cross_entropy(logits, y) + F.cross_entropy(logits, wanted)).backward()
            optimizer.step()
        with torch.no_grad():
            for one, other in zip(old.parameters(), student.parameters(), strict=True):
                one.copy_(other)


def thawed(model, data):
    """The head alone at first, then all layers, whose state is another."""
    first, head = list(model[0].parameters()), list(model[2].parameters())
    optimizer = SGD([*first, *head], lr=0.1, momentum=0.9)
    for frozen in (True, False):
        for parameter in first:
            parameter.requires_grad_(not frozen)
        for _ in range(2):
            for x, y in data.batches(8):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()


def swapped(model, data):
    """Two sums that change places with each batch."""
    optimizer = SGD(model.parameters(), lr=0.1)
    one = torch.zeros((), device=next(model.parameters()).device)
    other = torch.ones((), device=one.device)
    for _ in range(2):
        for x, y in data.batches(8):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            one, other = other + loss.detach(), one * 0.5
    return {"one": one, "other": other}


def best(model, data):
    """The least loss, and the weights that had it, chosen where they are."""
    optimizer = SGD(model.parameters(), lr=0.5)
    least = torch.full((), 1e9, device=next(model.parameters()).device)
    kept = [p.detach().clone() for p in model.parameters()]
    for _ in range(2):
        for x, y in data.batches(8):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            with torch.no_grad():
                better = loss < least
                least = torch.minimum(loss.detach(), least)
                for one, parameter in zip(kept, model.parameters(), strict=True):
                    one.copy_(torch.where(better, parameter, one))
            optimizer.step()
    with torch.no_grad():
        for one, parameter in zip(kept, model.parameters(), strict=True):
            parameter.copy_(one)
    return least


def evaluated_each_epoch(model, data):
    """A loop that counts after each epoch, in evaluation mode."""
    optimizer = Adam(model.parameters(), lr=0.01)
    results = {}
    for epoch in range(2):
        model.train()
        for x, y in data.batches(16, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(F.dropout(model(x), 0.1, model.training), y).backward()
            optimizer.step()
        model.eval()
        right, n = 0, 0
        with torch.no_grad():
            for x, y in data.batches(32):
                right += (model(x).argmax(1) == y).sum()
                n += len(x)
        results[f"right_{epoch}"] = Ratio(right, n)
    return results


TRAININGS = {
    name: one
    for name, one in list(globals().items())
    if callable(one) and getattr(one, "__module__", "") == __name__
    if not name.startswith("_") and one is not order
}
