"""Attacks by the program that owners run: no rule of sums stops them.

Each keeps to all rules of L0 and gets through. They are here so that what L0 does not
promise is seen as clearly as what it does.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

import obhut

from .attack import Attack, Family, Level, Program
from .queries import summed
from .stage import SW, Remote, Stage

THREE = ("alice", "bob", "carol")


def _sum(stage: Stage, parts: Mapping[str, Remote]) -> Remote:
    moved = [obhut.move(part, stage.at[SW]) for part in parts.values()]
    return summed(moved, [1] * len(moved)).get()


def _singled_out(stage: Stage) -> object:
    """Alice and carol multiply by 0 what they deliver."""
    parts = {
        name: stage.vector(name) * (1.0 if name == "bob" else 0.0) for name in THREE
    }
    return _sum(stage, parts)


def _delivered_twice(stage: Stage) -> object:
    """Bob and carol deliver the same in two rounds, alice does not."""
    first = {name: stage.vector(name) for name in THREE}
    stage.try_(lambda: _sum(stage, first))
    other = {name: stage.vector(name) for name in THREE}
    other["alice"] = other["alice"].square()
    return _sum(stage, other)


def _drowned(stage: Stage) -> object:
    """Alice and carol deliver a billionth, bob all."""
    parts = {
        name: stage.vector(name) * (1.0 if name == "bob" else 1e-9) for name in THREE
    }
    return _sum(stage, parts)


def _bits(stage: Stage) -> object:
    """Bob delivers one bit of each value, the others nothing."""
    parts = {
        name: (stage.vector(name) > 0).double() * (1.0 if name == "bob" else 0.0)
        for name in THREE
    }
    return _sum(stage, parts)


def _packed(stage: Stage) -> object:
    """Each owner's rounded values take digits of their own in the sum."""
    unit = 2.0**17
    parts = {
        name: (stage.vector(name) * 2**12).round() * unit**place
        for place, name in enumerate(THREE)
    }
    mixed = _sum(stage, parts)
    for place in (2, 1, 0):
        digits = (mixed / unit**place).round()
        mixed = mixed - digits * unit**place
        stage.claim(digits / 2**12)
    return None


BINS = 256


def _imprinted(stage: Stage) -> object:
    """Weights are chosen so that each row moves biases of its own.

    Source: Fowl et al. 2022, Robbing the Fed, arXiv 2110.13057, section 3.
    """
    edges = torch.linspace(-24.0, 24.0, BINS)
    grads: dict[str, Remote] = {}
    for name in THREE:
        layer = torch.nn.Linear(8, BINS)
        with torch.no_grad():
            layer.weight.copy_(torch.full((BINS, 8), 0.35))
            layer.bias.copy_(-edges)
        remote = obhut.send(layer, stage.at[name])
        torch.relu(remote(stage.at[name].load("rows"))).sum().backward()
        weight, bias = remote.weight.grad, remote.bias.grad
        if weight is not None and bias is not None:
            grads[name] = torch.cat([weight, bias.reshape(BINS, 1)], 1)
    gradient = _sum(stage, grads)
    # A row is in the gradient of each bias below it: neighbours differ by a row.
    between = gradient[:-1] - gradient[1:]
    for row in between:
        if abs(float(row[8]) - 1) < 0.5:  # one row between two biases
            stage.claim(row[:8])
    return len(stage.evidence.claims)


FEATURES = 4096


def _member(stage: Stage) -> object:
    """Whose gradient fits a candidate row best has seen it.

    Everybody is honest: the gradient of one linear model, averaged. The attacker has
    candidates, one of which is a row of bob's.
    """
    draw = torch.Generator().manual_seed(11)
    project = torch.randn(8, FEATURES, generator=draw) / 8**0.5
    grads: dict[str, Remote] = {}
    for name in THREE:
        worker = stage.at[name]
        model = obhut.send(torch.nn.Linear(FEATURES, 1, bias=False), worker)
        with torch.no_grad():
            model.weight.zero_()
        features = torch.cos(worker.load("rows") @ obhut.send(project, worker))
        loss = ((model(features) - worker.load("rows", "target")) ** 2).sum()
        loss.backward()
        if model.weight.grad is not None:
            grads[name] = model.weight.grad
    gradient = _sum(stage, grads).reshape(-1)
    rows, target = stage.evidence.private["bob"][1:3]
    candidates = torch.randn(16, 8, generator=draw) * 4
    targets = torch.randn(16, 1, generator=draw) * 4
    candidates[5], targets[5] = rows[2], target[2]
    scores = (torch.cos(candidates @ project) @ -gradient) / targets.reshape(-1)
    best = int(scores.argmax())
    stage.claim(candidates[best])
    return best


def _gets_through(name: str, tries: str, level: Level, program: Program) -> Attack:
    return Attack(name, tries, Family.PROGRAMS, program, level=level)


ATTACKS = (
    _gets_through(
        "alice * 0", "let all owners but one multiply by 0", Level.L1, _singled_out
    ),
    _gets_through(
        "delivered again",
        "let all owners but one deliver the same again",
        Level.L1,
        _delivered_twice,
    ),
    _gets_through(
        "alice * 1e-9",
        "let all owners but one deliver next to nothing",
        Level.L1,
        _drowned,
    ),
    _gets_through(
        "bits", "let one owner deliver one bit of each value", Level.L1, _bits
    ),
    _gets_through(
        "packed digits", "give each owner digits of the sum", Level.L1, _packed
    ),
    _gets_through(
        "chosen weights",
        "choose weights that keep rows apart in a gradient",
        Level.L2,
        _imprinted,
    ),
    _gets_through(
        "membership",
        "tell which of some rows an honest model was trained on",
        Level.L3,
        _member,
    ),
)
